"""The labelling page in a real browser: 40 images by keyboard with the server killed amid, two windows, axe."""

import json
import re
import resource
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode

import pytest
from browsing import answered, name_shown, needs_browser, opened, serious_findings, shown_elsewhere, until
from own_images import Labelling, make_selection, quarter
from playwright.sync_api import Browser, Page, expect

from usl_lightning.labels import LabelIndex

CLASSES = ("upper left", "upper right", "lower left", "lower right")

pytestmark = [pytest.mark.slow, needs_browser]


def test_it_begins_with_the_image_that_is_named(browser: Browser, tmp_path: Path) -> None:
    labels = make_selection(tmp_path)
    index = LabelIndex.read(labels)
    chosen = (index.files or ())[6]
    server = Labelling(labels, "--classes", ",".join(CLASSES), "--image", chosen)
    page = opened(browser, server.address.partition("#")[0])
    page.goto(server.address)
    assert name_shown(page, 7) == chosen
    server.kill()

    other = next(path.name for path in (tmp_path / "images").rglob("*.png") if path.name not in (index.files or ()))
    server = Labelling(labels, "--image", other)
    page = opened(browser, server.address.partition("#")[0])
    page.goto(server.address)
    expect(page.locator("#which")).to_have_text("Image that was not chosen")
    expect(page.locator("#name")).to_have_text(other)
    page.keyboard.press(str(quarter(other) + 1))
    answered(page, 1)
    server.kill()
    assert LabelIndex.read(labels).files[-1] == other  # type: ignore[index]


def test_a_link_of_a_report_leads_to_its_image(browser: Browser, tmp_path: Path) -> None:
    labels = make_selection(tmp_path)
    labels.with_name("stage.json").write_text("{}")
    index = LabelIndex.read(labels)
    image, name = index.indices[6], (index.files or ())[6]
    link = f"select/label.html#{urlencode({'image': image, 'name': name})}"
    report = labels.parent.parent / "report.html"
    report.write_text(f'<a href="{link}" target="_blank" rel="noreferrer">picture</a>')
    page = browser.new_context().new_page()
    server = Labelling(labels, "--classes", ",".join(CLASSES))
    page.goto(report.as_uri())
    with page.context.expect_page() as found:
        page.locator("a").click()
    assert name_shown(found.value, 7) == name
    assert found.value.url.startswith(server.address)
    server.process.terminate()
    server.process.wait()
    page.goto(f"{report.parent.as_uri()}/{link}")
    expect(page.locator("pre")).to_have_text(f"usl label {labels}")


def test_forty_images_by_keyboard_with_the_server_killed_amid(browser: Browser, tmp_path: Path) -> None:
    labels = make_selection(tmp_path)
    server = Labelling(labels)
    page = opened(browser, server.address)
    page.keyboard.type(", ".join(CLASSES))  # the field has the focus where there are no classes yet
    page.keyboard.press("Enter")
    expect(page.locator("#classes button")).to_have_count(4)
    for number in range(1, 21):
        page.keyboard.press(str(quarter(name_shown(page, number)) + 1))
        answered(page, number)
    server.kill()
    assert LabelIndex.read(labels).unlabelled == 20
    name_shown(page, 21)
    page.keyboard.press("1")
    expect(page.locator("#trouble")).to_contain_text("The server has stopped. All answers up to here are saved")
    assert LabelIndex.read(labels).unlabelled == 20

    server = Labelling(labels)
    page = opened(browser, server.address)
    letters = "uplo"  # of each name the first that is free
    for number in range(21, 39):
        page.keyboard.press(letters[quarter(name_shown(page, number))])
        answered(page, number)
    page.keyboard.press("Space")  # skip 39
    name_shown(page, 40)
    page.keyboard.press("?")
    answered(page, 39)
    name_shown(page, 39)
    page.keyboard.press("Backspace")  # undo: 40 again
    answered(page, 38)
    page.keyboard.press(str(quarter(name_shown(page, 40)) + 1))
    answered(page, 39)
    page.keyboard.press("?")
    answered(page, 40)
    expect(page.locator("#done")).to_be_visible()
    server.kill()

    index = LabelIndex.read(labels)
    assert index.classes == CLASSES
    assert index.unsure == (index.indices[38],)
    indices, given = index.for_training()
    file_of = dict(zip(index.indices, index.files or (), strict=True))
    assert given == [quarter(file_of[image]) for image in indices]
    assert len(given) == 39


def test_the_images_of_this_round_come_before_those_that_a_round_left(browser: Browser, tmp_path: Path) -> None:
    labels = make_selection(tmp_path)
    index = LabelIndex.read(labels)
    replace(index, method={**index.method, "kept": 38}).write(labels)
    server = Labelling(labels, "--classes", "cat,dog")
    page = opened(browser, server.address)
    for count, number in enumerate((39, 40, 1, 2)):
        name_shown(page, number)
        answered(page, count)
        page.keyboard.press("1")
    answered(page, 4)
    server.kill()
    assert [place for place, label in enumerate(LabelIndex.read(labels).labels) if label == 0] == [0, 1, 38, 39]


def test_two_windows_lose_no_answer(browser: Browser, tmp_path: Path) -> None:
    labels = make_selection(tmp_path)
    server = Labelling(labels, "--classes", "cat,dog")
    one, two = (opened(browser, server.address) for _ in range(2))
    show_same(one, two, 1)
    one.keyboard.press("1")
    answered(one, 1)
    answered(two, 1)  # it is told
    expect(two.locator("#given")).to_have_text("Answer: cat")
    two.keyboard.press("+")
    two.keyboard.type("bird")
    two.keyboard.press("Enter")
    for page in (one, two):
        expect(page.locator("#classes button")).to_have_count(3)
    # A window that has not yet been told keeps what it has not seen.
    image = LabelIndex.read(labels).indices[1]
    show_same(one, two, 2)
    two.route(re.compile("/state"), lambda route: route.abort())
    expect(two.locator("#trouble")).to_be_visible()  # the question before was answered, or broken off
    one.keyboard.press("3")
    answered(one, 2)
    two.keyboard.press("2")
    expect(two.locator("#status")).to_contain_text("bird was answered in another window, and that stays")
    name_shown(two, 2)  # the next one was shown meanwhile
    index = LabelIndex.read(labels)
    assert dict(zip(index.indices, index.labels, strict=True))[image] == 2
    two.keyboard.press("2")
    answered(two, 2)
    expect(two.locator("#status")).to_contain_text("Saved: dog")
    assert LabelIndex.read(labels).labels[:2] == (0, 1)
    server.kill()


def show_same(one: Page, two: Page, number: int) -> None:
    """Have two windows show this image, though each leaves to the other what that shows."""
    for page in (one, two):
        page.evaluate(f"visit(state.images[{number - 1}])")
        name_shown(page, number)


def test_two_people_are_shown_different_images(browser: Browser, tmp_path: Path) -> None:
    labels = make_selection(tmp_path)
    images = LabelIndex.read(labels).indices
    server = Labelling(labels, "--classes", "cat,dog")
    one = opened(browser, server.address)
    name_shown(one, 1)
    shown_elsewhere(server.address, images[0])
    two = opened(browser, server.address)
    name_shown(two, 2)
    two.reload()  # it is the same window
    name_shown(two, 2)
    for number in range(3, 12, 2):
        until(one, f"elsewhere.has({images[number - 2]})")
        one.keyboard.press("1")
        name_shown(one, number)
        until(two, f"elsewhere.has({images[number - 1]})")
        two.keyboard.press("2")
        name_shown(two, number + 1)
    until(one, f"elsewhere.has({images[11]})")
    one.keyboard.press("Space")
    name_shown(one, 13)
    answered(one, 10)
    answered(two, 10)
    assert LabelIndex.read(labels).labels[:11] == (0, 1) * 5 + (None,)
    server.kill()


def test_a_window_that_has_a_name_already(browser: Browser, tmp_path: Path) -> None:
    labels = make_selection(tmp_path)
    server = Labelling(labels, "--classes", "cat,dog")
    page = browser.new_page()
    page.add_init_script(f"window.name ||= '&wait#{'x' * 5000}'")
    page.goto(server.address)
    name_shown(page, 1)
    shown_elsewhere(server.address, LabelIndex.read(labels).indices[0])
    page.keyboard.press("1")
    answered(page, 1)
    assert LabelIndex.read(labels).labels[0] == 0
    server.kill()


def test_the_last_image_is_shown_to_whoever_is_free(browser: Browser, tmp_path: Path) -> None:
    labels = make_selection(tmp_path, chosen=3)
    images = LabelIndex.read(labels).indices
    server = Labelling(labels, "--classes", "cat,dog")
    one = opened(browser, server.address)
    shown_elsewhere(server.address, images[0])
    two = opened(browser, server.address)
    expect(two.locator("#which")).to_have_text("Image 2 of 3")
    until(one, "elsewhere.size")
    one.keyboard.press("Space")  # what the other shows is left to it
    expect(one.locator("#which")).to_have_text("Image 3 of 3")
    until(two, f"String([...elsewhere]) === '{images[2]}'")
    two.keyboard.press("2")
    expect(two.locator("#which")).to_have_text("Image 1 of 3")
    until(one, f"elsewhere.has({images[0]})")
    one.keyboard.press("1")
    expect(one.locator("#which")).to_have_text("Image 1 of 3")
    two.keyboard.press("1")
    expect(two.locator("#done")).to_be_visible()
    expect(one.locator("#done")).to_be_visible()
    assert LabelIndex.read(labels).labels == (0, 1, 0)
    server.kill()


def test_what_another_window_has_just_said_is_not_overwritten_unseen(browser: Browser, tmp_path: Path) -> None:
    labels = make_selection(tmp_path)
    server = Labelling(labels, "--classes", "cat,dog")
    one, two = (opened(browser, server.address) for _ in range(2))
    show_same(one, two, 4)
    one.keyboard.press("1")  # and the other has begun to press
    expect(two.locator("#given")).to_have_text("Answer: cat")
    two.evaluate("surprise.until = Infinity")  # however slow this machine is
    two.keyboard.press("2")
    expect(two.locator("#status")).to_have_text(
        "cat was answered in another window, and that stays. Answer again to change it."
    )
    name_shown(two, 4)
    assert LabelIndex.read(labels).labels[3] == 0
    two.evaluate("surprise = null")  # time to read it
    two.keyboard.press("2")
    expect(two.locator("#status")).to_contain_text("Saved: dog.")
    assert LabelIndex.read(labels).labels[3] == 1
    show_same(one, one, 5)
    show_same(two, two, 6)
    two.keyboard.press("2")
    one.keyboard.press("1")  # at once: both are kept
    answered(two, 3)
    answered(one, 3)
    assert LabelIndex.read(labels).labels[3:6] == (1, 0, 1)
    server.kill()


def test_an_answer_is_for_its_class_though_another_window_changes_them(browser: Browser, tmp_path: Path) -> None:
    labels = make_selection(tmp_path)
    server = Labelling(labels, "--classes", "cat,dog,hen,zebra")
    one, two = (opened(browser, server.address) for _ in range(2))
    two.route(re.compile("/state"), lambda route: route.abort())
    expect(two.locator("#trouble")).to_be_visible()  # it is told of nothing any more
    one.on("dialog", lambda dialog: dialog.accept())

    def change(named: str, name: str | None) -> None:
        one.evaluate("([named, name]) => changeClass(named, name)", [named, name])
        expect(one.locator("#classes .name", has_text=re.compile(f"^{named}$"))).to_have_count(0)

    show_same(two, two, 5)
    change("dog", None)
    expect(two.locator("#classes .name")).to_have_count(4)
    two.keyboard.press("3")  # a hen, as it is shown there
    expect(two.locator("#status")).to_contain_text("Saved: hen.")
    expect(two.locator("#classes .name")).to_have_text(["cat", "hen", "zebra"])
    change("hen", "rooster")
    name_shown(two, 6)
    two.keyboard.press("2")
    expect(two.locator("#status")).to_contain_text("Saved: rooster.")
    change("rooster", "cat")  # and part of it
    change("zebra", None)
    name_shown(two, 7)
    two.keyboard.press("2")
    expect(two.locator("#status")).to_contain_text("Saved: cat.")
    one.evaluate("addClasses('zebra')")
    expect(one.locator("#classes .name")).to_have_count(2)
    change("zebra", None)
    index = LabelIndex.read(labels)
    assert (index.classes, index.labels[4:8]) == (("cat",), (0, 0, 0, None))
    server.kill()


def test_an_answer_of_a_class_that_is_gone_is_told(browser: Browser, tmp_path: Path) -> None:
    labels = make_selection(tmp_path)
    server = Labelling(labels, "--classes", "cat,dog,hen")
    one, two = (opened(browser, server.address) for _ in range(2))
    two.route(re.compile("/state"), lambda route: route.abort())
    expect(two.locator("#trouble")).to_be_visible()
    show_same(two, two, 5)
    one.on("dialog", lambda dialog: dialog.accept())
    one.evaluate("changeClass('dog', null)")
    expect(one.locator("#classes .name")).to_have_count(2)
    two.keyboard.press("2")
    expect(two.locator("#status")).to_have_text("the class dog is gone by now. Answer again to change it.")
    expect(two.locator("#classes .name")).to_have_text(["cat", "hen"])
    name_shown(two, 5)
    two.keyboard.press("2")
    expect(two.locator("#status")).to_contain_text("Saved: hen.")
    assert LabelIndex.read(labels).labels[4] == 1
    server.kill()


def test_a_refusal_stays_until_something_is_changed(browser: Browser, tmp_path: Path) -> None:
    server = Labelling(make_selection(tmp_path), "--classes", "cat,dog")
    page = opened(browser, server.address)
    page.keyboard.press("+")
    page.keyboard.type("Cat")
    page.keyboard.press("Enter")
    expect(page.locator("#trouble")).to_contain_text("differs from the class 'cat' by its case only")
    for _ in range(2):  # the page looks for news
        with page.expect_response(re.compile("/state")):
            pass
    expect(page.locator("#trouble")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    answered(page, 1)
    expect(page.locator("#trouble")).to_be_hidden()
    server.kill()


def test_a_label_file_that_is_made_anew_is_shown_anew(browser: Browser, tmp_path: Path) -> None:
    labels = make_selection(tmp_path)
    server = Labelling(labels, "--classes", "cat,dog")
    page = opened(browser, server.address)
    page.keyboard.press("1")
    answered(page, 1)
    index = json.loads(labels.read_text())
    labels.unlink()
    expect(page.locator("#trouble")).to_contain_text("labels.json: cannot be read")
    index |= {key: index[key][::-1] for key in ("indices", "files", "hashes")} | {"labels": [None] * 40}
    labels.write_text(json.dumps(index))
    answered(page, 0)
    expect(page.locator("#trouble")).to_be_hidden()
    assert name_shown(page, 1) == index["files"][0]
    expect(page.locator("#image")).to_have_attribute("src", f"images/{index['indices'][0]}")
    expect(page.locator("#undo")).to_be_disabled()
    page.keyboard.press("2")
    answered(page, 1)
    assert LabelIndex.read(labels).labels[:2] == (1, None)
    server.kill()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Browser, tmp_path: Path, scheme: str) -> None:
    labels = make_selection(tmp_path)
    server = Labelling(labels, "--classes", "cat,dog")
    options = {"color_scheme": scheme, "viewport": {"width": 360, "height": 740}, "bypass_csp": True}
    options["reduced_motion"] = "reduce"  # a colour on its way to another is no finding
    page = opened(browser, server.address, **options)
    page.keyboard.press("1")
    answered(page, 1)
    page.locator("#all summary").click()
    expect(page.locator("#similar li")).to_have_count(8)
    assert serious_findings(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    index = json.loads(labels.read_text())
    labels.write_text(json.dumps({**index, "labels": [0] * 40}))
    expect(page.locator("#done")).to_be_visible()
    assert serious_findings(page) == []
    server.kill()


def test_an_answer_that_does_not_fit_on_the_disk_is_told_and_can_be_given_again(
    browser: Browser, tmp_path: Path
) -> None:
    labels = make_selection(tmp_path)
    server = Labelling(labels, "--classes", ",".join(CLASSES))
    page = opened(browser, server.address)
    page.keyboard.press("1")
    answered(page, 1)
    name_shown(page, 2)
    before, beside = labels.read_bytes(), sorted(path.name for path in labels.parent.iterdir())
    free = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))  # EFBIG
    for key in ("2", "?"):
        page.keyboard.press(key)
        expect(page.locator("#trouble")).to_contain_text("labels.json: cannot be written (File too large)")
        expect(page.locator("#progress")).to_have_text(re.compile("^1 of 40 answered"))
        name_shown(page, 2)
        assert labels.read_bytes() == before
        assert sorted(path.name for path in labels.parent.iterdir()) == beside
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, free)
    page.keyboard.press("3")
    answered(page, 2)
    expect(page.locator("#trouble")).to_be_hidden()
    server.kill()
    assert LabelIndex.read(labels).labels[:3] == (0, 2, None)

"""The labelling page in a real browser: 40 images by keyboard with the server killed amid, two windows, axe."""

import json
import re
from pathlib import Path

import pytest
from browsing import answered, name_shown, needs_browser, opened, serious_findings, until
from own_images import Labelling, make_selection, quarter
from playwright.sync_api import Browser, expect

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


def test_two_windows_lose_no_answer(browser: Browser, tmp_path: Path) -> None:
    labels = make_selection(tmp_path)
    server = Labelling(labels, "--classes", "cat,dog")
    one, two = (opened(browser, server.address) for _ in range(2))
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
    two.route(re.compile("/state"), lambda route: route.abort())
    two.keyboard.press("Space")
    name_shown(two, 2)
    one.keyboard.press("3")
    answered(one, 2)
    two.keyboard.press("2")
    expect(two.locator("#status")).to_contain_text("bird was answered in another window, and that stays")
    name_shown(two, 2)  # the next one was shown meanwhile
    two.wait_for_timeout(1100)  # time to read what was said
    until(two, "isPainted()")
    index = LabelIndex.read(labels)
    assert dict(zip(index.indices, index.labels, strict=True))[image] == 2
    two.keyboard.press("2")
    answered(two, 2)
    expect(two.locator("#status")).to_contain_text("Saved: dog")
    assert LabelIndex.read(labels).labels[:2] == (0, 1)
    server.kill()


def test_two_people_who_begin_together(browser: Browser, tmp_path: Path) -> None:
    labels = make_selection(tmp_path)
    server = Labelling(labels, "--classes", "cat,dog")
    one, two = (opened(browser, server.address) for _ in range(2))
    for number in range(1, 4):
        one.keyboard.press("1")
        name_shown(one, number + 1)
        expect(two.locator("#progress")).to_have_text(f"{number} of 40 answered", timeout=1500)
    expect(two.locator("#given")).to_have_text("Answer: cat")
    two.wait_for_timeout(1100)
    two.keyboard.press("Space")
    name_shown(two, 4)
    one.keyboard.press("1")  # and the other has begun to press
    expect(two.locator("#given")).to_have_text("Answer: cat")
    two.keyboard.press("2")
    expect(two.locator("#status")).to_have_text(
        "cat was answered in another window, and that stays. Answer again to change it."
    )
    name_shown(two, 4)
    assert LabelIndex.read(labels).labels[:4] == (0,) * 4
    two.wait_for_timeout(1100)
    two.keyboard.press("2")
    answered(two, 4)
    name_shown(two, 5)
    two.keyboard.press("Space")
    name_shown(two, 6)
    two.keyboard.press("2")
    one.keyboard.press("1")  # of the next image: both are kept
    answered(two, 6)
    answered(one, 6)
    assert LabelIndex.read(labels).labels[:6] == (0, 0, 0, 1, 0, 1)
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

"""The labelling page with guesses, in a real browser: Enter, rows, what helps most, all images, zoom, a phone."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browsing import answered, name_shown, needs_browser, opened, serious_findings, shown_elsewhere, until
from own_images import Labelling, make_selection, quarter
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from usl_lightning.data.images.folders import fingerprint_of, scan
from usl_lightning.labels import LabelIndex

CLASSES = ("cat", "dog", "hen", "zebra")
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "reduced_motion": "reduce"}

pytestmark = [pytest.mark.slow, needs_browser]


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return make_selection(tmp_path)


@pytest.fixture
def server(labels: Path) -> Iterator[Labelling]:
    server = Labelling(labels, "--classes", ",".join(CLASSES))
    yield server
    server.kill()


def answer(page: Page, count: int, first: int = 1) -> None:
    """Give images their right answers by keyboard."""
    for number in range(first, first + count):
        page.keyboard.press(str(quarter(name_shown(page, number)) + 1))
        answered(page, number)


def guessed(page: Page, number: int) -> str:
    """The class that is marked for this image (from 1), once it is."""
    name_shown(page, number)
    expect(page.locator("#classes .guessed")).to_have_count(1)
    return page.locator("#classes .guessed .name").inner_text()


def test_enter_takes_the_guess_that_is_marked(browser: Browser, server: Labelling, labels: Path) -> None:
    page = opened(browser, server.address)
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("There is no guess for this image.")
    answer(page, 8)
    for number in range(9, 15):
        name = name_shown(page, number)
        taken = guessed(page, number)
        expect(page.locator("#guess")).to_contain_text(f"Guess: {taken}, ")
        right = taken == CLASSES[quarter(name)]
        page.keyboard.press("Enter" if right else str(quarter(name) + 1))
        answered(page, number)
        expect(page.locator("#status")).to_contain_text(f"Saved: {CLASSES[quarter(name)]}.")
    index = LabelIndex.read(labels)
    assert index.labels[:14] == tuple(quarter(file) for file in (index.files or ())[:14])
    assert index.bulk == ()
    page.keyboard.press("ArrowLeft")  # an answered image has no guess
    name_shown(page, 14)
    expect(page.locator("#classes .guessed")).to_have_count(0)


def test_a_guess_stays_while_its_image_does(browser: Browser, server: Labelling, labels: Path) -> None:
    one = opened(browser, server.address)
    answer(one, 8)
    name_shown(one, 9)
    shown_elsewhere(server.address, LabelIndex.read(labels).indices[8])
    two = opened(browser, server.address)
    before = guessed(two, 10)
    until(one, "elsewhere.size")
    one.keyboard.press("Space")
    for number in range(11, 31):  # what another window answers changes the next guesses, not this one
        name_shown(one, number)
        one.keyboard.press("1")
        answered(one, number - 2)
    answered(two, 28)
    assert guessed(two, 10) == before
    two.evaluate("changeClass('zebra', 'horse')")
    expect(two.locator("#classes .name")).to_have_text(["cat", "dog", "hen", "horse"])
    two.evaluate("addClasses('cow')")
    expect(two.locator("#classes .name")).to_have_count(5)
    assert guessed(two, 10) == before.replace("zebra", "horse")


def test_rows_are_taken_at_once(browser: Browser, server: Labelling, labels: Path) -> None:
    page = opened(browser, server.address)
    page.keyboard.press("r")
    expect(page.locator("#status")).to_contain_text("There are no guesses yet")
    answer(page, 12)
    expect(page.locator("#rows")).to_be_visible()
    page.keyboard.press("r")
    tiles = page.locator("#row li button")
    expect(page.locator("#row-take")).to_contain_text("Take ")
    count = tiles.count()
    named = page.locator("#row-title").inner_text().removeprefix("All of these: ").removesuffix("?")
    names = [tiles.nth(i).locator("img").get_attribute("alt") or "" for i in range(count)]
    assert {CLASSES[quarter(name)] for name in names} == {named}
    page.keyboard.press("2")
    expect(tiles.nth(1)).to_have_attribute("aria-pressed", "true")
    tiles.nth(0).click()
    page.keyboard.press("1")  # and in again
    expect(page.locator("#row-take")).to_have_text(f"Enter Take {count - 1} as {named}")
    page.keyboard.press("Enter")
    answered(page, 12 + count - 1)
    expect(page.locator("#row-status")).to_have_text(f"Saved: {count - 1} as {named}.")
    index = LabelIndex.read(labels)
    assert len(index.bulk) == count - 1
    file_of = dict(zip(index.indices, index.files or (), strict=True))
    assert {quarter(file_of[image]) for image in index.bulk} == {CLASSES.index(named)}
    assert names[1] not in [file_of[image] for image in index.bulk]

    page.keyboard.press("Backspace")
    answered(page, 12)
    assert LabelIndex.read(labels).bulk == ()
    expect(tiles).to_have_count(count - 1)  # what was left out is not asked for again
    while page.locator("#row").is_visible():  # until nothing is left
        page.keyboard.press("Enter")
        page.wait_for_timeout(300)  # pressed before the images are shown, it takes nothing
    expect(page.locator("#single")).to_be_visible()
    expect(page.locator("#status")).to_contain_text("No more rows: the rest is answered one by one.")
    assert LabelIndex.read(labels).unlabelled == 1


def test_a_similar_image_that_was_not_chosen_is_answered(browser: Browser, server: Labelling, labels: Path) -> None:
    page = opened(browser, server.address)
    answer(page, 4)
    name_shown(page, 5)
    chosen = LabelIndex.read(labels).files or ()
    similar = page.locator("#similar li button")
    page.wait_for_timeout(1000)  # until they are those of this image, not of the one before
    expect(similar).to_have_count(8)
    names = [similar.nth(i).get_attribute("title") or "" for i in range(8)]
    place = next(i for i, name in enumerate(names) if name not in chosen)
    page.locator(f'#similar li button[title="{names[place]}"]').click()
    expect(page.locator("#which")).to_have_text("Image that was not chosen")
    expect(page.locator("#name")).to_have_text(names[place])
    page.keyboard.press("?")
    expect(page.locator("#status")).to_contain_text("This image was not chosen")
    page.keyboard.press(str(quarter(names[place]) + 1))
    expect(page.locator("#progress")).to_have_text("5 of 40 answered, 1 not chosen")
    name_shown(page, 5)
    index = LabelIndex.read(labels)
    assert ((index.files or ())[40:], index.labels[40:]) == ((names[place],), (quarter(names[place]),))
    assert (index.added, index.bulk) == (index.indices[40:], ())
    page.locator("#all summary").click()
    page.locator("#of").select_option(label="given to images that were not chosen")
    expect(page.locator("#found")).to_have_text("1 of 41 images")
    page.locator("#all ol button").click()
    expect(page.locator("#given")).to_have_text(f"Answer: {CLASSES[quarter(names[place])]}")
    page.keyboard.press("ArrowLeft")
    name_shown(page, 5)
    page.keyboard.press("Backspace")
    expect(page.locator("#progress")).to_have_text("4 of 40 answered")
    expect(page.locator("#which")).to_have_text("Image that was not chosen")
    expect(page.locator("#found")).to_have_text("0 of 40 images")
    page.keyboard.press("Space")
    name_shown(page, 5)
    assert LabelIndex.read(labels).added == ()


def test_rows_hold_other_images_unless_nobody_wants_them(browser: Browser, server: Labelling, labels: Path) -> None:
    page = opened(browser, server.address)
    answer(page, 32)
    guessed(page, 33)
    page.keyboard.press("r")
    chosen = LabelIndex.read(labels).files or ()
    tiles = page.locator("#row li button")

    def others() -> int:
        names = [tiles.nth(i).locator("img").get_attribute("alt") or "" for i in range(tiles.count())]
        return sum(name not in chosen for name in names)

    expect(page.locator("#row-take")).to_contain_text("Take ")
    assert not others()
    for wanted in (True, False, True):
        with page.expect_response(re.compile("/row")):
            page.locator("#beside").set_checked(wanted)
        page.wait_for_timeout(300)
        assert bool(others()) == wanted
    for _ in range(8):  # rows; one that is not all shown yet is not taken
        page.wait_for_timeout(500)
        if page.locator("#done").is_visible():
            break
        page.keyboard.press("Enter")
    expect(page.locator("#done-title")).to_have_text("As many answers as images were chosen")
    expect(page.locator("#done-open")).to_contain_text(" of those that were chosen have none.")


def test_a_row_counts_when_all_of_it_is_shown(browser: Browser, server: Labelling, labels: Path) -> None:
    page = opened(browser, server.address)
    answer(page, 8)
    guessed(page, 9)
    index = LabelIndex.read(labels)
    held: list[Route] = []
    broken = f"thumbs/{index.indices[9]}"
    page.route(
        re.compile("/thumbs/"),
        lambda route: route.abort() if route.request.url.endswith(broken) else held.append(route),
    )
    page.keyboard.press("r")
    expect(page.locator("#row-take")).to_contain_text("Take ")
    page.keyboard.press("Enter")
    expect(page.locator("#row-status")).to_have_text("Not taken: the images were not all shown yet.")
    answered(page, 8)
    while page.locator("#progress").inner_text() == "8 of 40 answered":
        for route in held:
            route.continue_()
        held.clear()
        page.wait_for_timeout(300)
        page.keyboard.press("Enter")
    assert LabelIndex.read(labels).labels[9] is None


def test_the_most_helpful_come_first_and_say_why(browser: Browser, server: Labelling) -> None:
    page = opened(browser, server.address)
    answer(page, 9)
    guessed(page, 10)
    expect(page.locator("#why")).to_be_empty()
    page.keyboard.press("q")
    expect(page.locator("#why")).to_contain_text("Shown now because: ")
    expect(page.locator("#helpful")).to_have_attribute("aria-pressed", "true")
    seen = set()
    for number in range(10, 16):
        expect(page.locator("#why")).to_contain_text(
            re.compile("Shown now because: (unsure: .* or |maybe .*, which has )")
        )
        expect(page.locator("#which")).to_have_text(re.compile("^Image .* of 40$"))
        name = page.locator("#name").inner_text()
        assert name not in seen
        seen.add(name)
        page.keyboard.press(str(quarter(name) + 1))
        answered(page, number)
    page.keyboard.press("q")
    expect(page.locator("#why")).to_be_empty()


def test_the_reason_is_of_the_same_answers_as_the_guess(browser: Browser, server: Labelling) -> None:
    page = opened(browser, server.address)
    answer(page, 12)
    guessed(page, 13)
    page.keyboard.press("q")
    expect(page.locator("#why")).not_to_be_empty()
    expect(page.locator("#classes .guessed")).to_have_count(1)
    later = "guesses.queue = guesses.queue.map(([image]) => [image, '{}']); showGuess();"
    page.evaluate(f"() => {{ offered = null; {later.format('the second answers')} }}")  # while the image loads
    expect(page.locator("#why")).to_have_text("Shown now because: the second answers")
    page.evaluate(f"() => {{ {later.format('the third answers')} }}")  # the guess is on the screen, and stays
    expect(page.locator("#why")).to_have_text("Shown now because: the second answers")


def test_from_forty_answers_on_they_come_first_by_themselves(browser: Browser, tmp_path: Path) -> None:
    labels = make_selection(tmp_path, chosen=48)
    index = LabelIndex.read(labels)
    known = [quarter(file) for file in index.files or ()]
    answers = [*known[:38], *([None] * 10)]
    replace(index, classes=CLASSES, labels=tuple(answers)).write(labels)
    server = Labelling(labels)
    page = opened(browser, server.address)
    for number in (39, 40):
        expect(page.locator("#which")).to_have_text(f"Image {number} of 48")
        expect(page.locator("#classes .guessed")).to_have_count(1)
        expect(page.locator("#helpful")).to_have_attribute("aria-pressed", "false")
        expect(page.locator("#why")).to_be_empty()
        page.keyboard.press(str(known[number - 1] + 1))
        expect(page.locator("#progress")).to_have_text(f"{number} of 48 answered")
    expect(page.locator("#helpful")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#which")).to_have_text(re.compile("^Image 4.* of 48$"))
    expect(page.locator("#why")).to_contain_text("Shown now because: ")
    page.keyboard.press("q")
    expect(page.locator("#helpful")).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#why")).to_be_empty()
    server.kill()


def test_counts_and_what_is_enough(browser: Browser, server: Labelling) -> None:
    page = opened(browser, server.address)
    expect(page.locator("#classes .count")).to_have_text(["0 of 4"] * 4)
    expect(page.locator("#enough")).to_be_hidden()
    answer(page, 20)
    expect(page.locator("#enough")).to_have_text(re.compile(r"About \d+% right \(\d+% to \d+%\)"))
    counts = [int(text.split()[0]) for text in page.locator("#classes .count").all_inner_texts()]
    assert sum(counts) == 20


def test_images_are_found_filtered_and_changed_in_place(browser: Browser, server: Labelling, labels: Path) -> None:
    page = opened(browser, server.address)
    answer(page, 12)
    index = LabelIndex.read(labels)
    file = (index.files or ())[3]
    page.keyboard.press("/")
    page.keyboard.type(Path(file).stem)
    tiles = page.locator("#all ol button")
    expect(tiles).to_have_count(1)
    page.keyboard.press("Enter")  # to the first that was found
    expect(tiles.first).to_be_focused()
    page.locator("#all").dispatch_event("toggle")  # it comes late on a busy machine, and lists anew
    expect(tiles.first).to_be_focused()
    until(page, "document.querySelector('#all ol img').since")  # it is on the screen
    wrong = (quarter(file) + 1) % 4
    page.keyboard.press(str(wrong + 1))
    expect(tiles.first.locator("span")).to_contain_text(CLASSES[wrong])
    assert LabelIndex.read(labels).labels[3] == wrong
    expect(page.locator("#which")).to_have_text("Image 13 of 40")  # what was shown still is

    page.locator("#find").fill("")
    page.locator("#of").select_option(label=CLASSES[wrong])
    expect(page.locator("#found")).to_have_text(re.compile(r"^\d+ of 40 images$"))
    assert {text.split(",")[0] for text in tiles.locator("span").all_inner_texts()} == {CLASSES[wrong]}
    page.locator("#of").select_option(label="any")
    page.locator("#find").focus()
    page.keyboard.press("Escape")
    answer(page, 12, first=13)
    first = f"[...guesses.doubts].sort((one, two) => one[1] - two[1])[0]?.[0] === {index.indices[3]}"
    until(page, first)  # the list stays as it was when it was asked for
    page.locator("#by").select_option(label="most doubtful first")
    expect(tiles.first).to_have_attribute("aria-label", re.compile(re.escape(file)))
    expect(tiles.first.locator("span")).to_contain_text(re.compile(r", doubtful: likely to \d+%"))
    expect(tiles).to_have_count(24)
    tiles.first.click()
    name_shown(page, 4)


def test_an_image_that_was_not_chosen_is_found_by_name(browser: Browser, server: Labelling, labels: Path) -> None:
    page = opened(browser, server.address)
    answer(page, 4)
    name_shown(page, 5)
    here = set(LabelIndex.read(labels).files or ())
    file = next(file for file in scan(labels.parents[3] / "images").files if file not in here)
    page.keyboard.press("/")
    page.keyboard.type(file.upper().removesuffix(".PNG"))
    others = page.locator("#others li button")
    expect(others).to_have_count(1)
    expect(page.locator("#found")).to_have_text("0 of 40 images")
    page.keyboard.press("Enter")  # to what was found
    expect(others.first).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#which")).to_have_text("Image that was not chosen")
    expect(page.locator("#name")).to_have_text(file)
    page.keyboard.press("2")
    expect(page.locator("#progress")).to_have_text("5 of 40 answered, 1 not chosen")
    name_shown(page, 5)
    expect(page.locator("#all ol button span")).to_have_text(["dog"])  # it is listed among those with an answer
    expect(others).to_have_count(0)
    assert (LabelIndex.read(labels).files or ())[40:] == (file,)


def test_classes_are_renamed_merged_and_deleted(browser: Browser, server: Labelling, labels: Path) -> None:
    page = opened(browser, server.address)
    answer(page, 8)
    other = opened(browser, server.address)
    names = page.locator("#classes .name")
    page.locator("#edit summary").click()
    page.locator("#changed").select_option("hen")
    page.locator("#new-name").fill("rooster")
    page.keyboard.press("Enter")
    expect(names).to_have_text(["cat", "dog", "rooster", "zebra"])
    expect(other.locator("#classes .name")).to_have_text(["cat", "dog", "rooster", "zebra"])
    before = LabelIndex.read(labels)
    asked: list[str] = []
    page.on(
        "dialog", lambda dialog: (asked.append(dialog.message), dialog.accept() if len(asked) > 1 else dialog.dismiss())
    )
    page.locator("#changed").select_option("cat")
    page.locator("#new-name").fill("zebra")
    page.keyboard.press("Enter")
    expect(page.locator("#new-name")).to_have_value("zebra")  # not what was meant
    page.keyboard.press("Enter")
    expect(names).to_have_text(["dog", "rooster", "zebra"])
    page.locator("#changed").select_option("dog")
    page.locator("#delete").click()
    expect(names).to_have_text(["rooster", "zebra"])
    assert [text.split("?")[0].split(" (")[0] for text in asked] == ["Make cat", "Make cat", "Delete dog"]
    becomes = {0: 1, 1: None, 2: 0, 3: 1, None: None}
    assert LabelIndex.read(labels).labels == tuple(becomes[label] for label in before.labels)
    expect(page.locator("#undo")).to_be_disabled()
    expect(other.locator("#classes .name")).to_have_text(["rooster", "zebra"])


def scale(page: Page) -> float:
    frame, image = (page.locator(name).bounding_box() for name in ("#frame", "#image"))
    assert frame is not None
    assert image is not None
    return image["width"] / frame["width"]


def test_zoom_by_key_and_wheel(browser: Browser, server: Labelling) -> None:
    page = opened(browser, server.address)
    name_shown(page, 1)
    page.keyboard.press("z")
    assert scale(page) == pytest.approx(3)
    page.keyboard.press("z")
    assert scale(page) == pytest.approx(1)
    frame = page.locator("#frame").bounding_box()
    assert frame is not None
    corner = frame["x"] + frame["width"] / 4, frame["y"] + frame["height"] / 4
    page.mouse.move(*corner)
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(200)
    assert scale(page) == pytest.approx(2.718, abs=0.01)
    image = page.locator("#image").bounding_box()
    assert image is not None  # what is under the pointer stays there
    assert (corner[0] - image["x"]) / image["width"] == pytest.approx(0.25, abs=0.01)
    page.mouse.down()
    page.mouse.move(corner[0] + 30, corner[1] + 20)
    page.mouse.up()
    moved = page.locator("#image").bounding_box()
    assert moved is not None
    assert moved["x"] - image["x"] == pytest.approx(30, abs=1)
    page.keyboard.press("1")
    name_shown(page, 2)
    assert scale(page) == pytest.approx(1)


def test_arrow_keys_move_what_is_zoomed_into(browser: Browser, server: Labelling) -> None:
    page = opened(browser, server.address)
    name_shown(page, 1)
    page.keyboard.press("z")
    frame = page.locator("#frame").bounding_box()
    assert frame is not None
    for key, times, x, y in (
        ("ArrowRight", 1, -1.25, -1), ("ArrowDown", 2, -1.25, -1.5), ("ArrowLeft", 9, 0, -1.5), ("ArrowUp", 9, 0, 0),
    ):  # fmt: skip
        for _ in range(times):  # the first goes down, all others are repeated while it is held
            page.keyboard.down(key)
        page.keyboard.up(key)
        image = page.locator("#image").bounding_box()
        assert image is not None
        assert (image["x"] - frame["x"]) / frame["width"] == pytest.approx(x, abs=0.01)
        assert (image["y"] - frame["y"]) / frame["height"] == pytest.approx(y, abs=0.01)
    name_shown(page, 1)
    page.keyboard.press("z")
    page.keyboard.press("ArrowRight")
    name_shown(page, 2)


def test_a_large_image_is_sharp_where_it_is_zoomed_into(browser: Browser, tmp_path: Path) -> None:
    labels = make_selection(tmp_path, hashes=False)
    index = json.loads(labels.read_text())
    Image.new("L", (2000, 500)).save(tmp_path / "images" / index["files"][1])
    listed = scan(tmp_path / "images")
    index["dataset"]["fingerprint"] = fingerprint_of(listed.files, listed.sizes)
    labels.write_text(json.dumps(index))
    server = Labelling(labels, "--classes", ",".join(CLASSES))
    page = opened(browser, server.address)
    name_shown(page, 1)
    page.keyboard.press("z")
    page.keyboard.press("1")
    name_shown(page, 2)
    assert page.evaluate("document.querySelector('#image').naturalWidth") == 1600
    page.keyboard.press("z")
    until(page, "document.querySelector('#image').naturalWidth === 2000")
    assert scale(page) == pytest.approx(3)
    page.keyboard.press("2")  # it is the same image
    name_shown(page, 3)
    page.keyboard.press("Backspace")
    name_shown(page, 2)
    assert scale(page) == pytest.approx(1)
    answered(page, 1)
    server.kill()


@pytest.mark.parametrize("count", [300, 21])  # more than there are keys, or just many
def test_many_classes(browser: Browser, tmp_path: Path, count: int) -> None:
    labels = make_selection(tmp_path)
    index = LabelIndex.read(labels)
    known = [count - 10 + quarter(file) for file in index.files or ()]
    classes = tuple(f"kind number {i}" for i in range(count))
    replace(index, classes=classes, labels=(*known[:20], *([None] * 20))).write(labels)
    server = Labelling(labels)
    page = opened(browser, server.address)
    name_shown(page, 21)
    expect(page.locator("#classes .guessed")).to_be_in_viewport()  # the list is scrolled to it
    page.keyboard.press(".")
    page.keyboard.type(f" NUMBER {known[20]}")
    expect(page.locator("#classes li:visible")).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text(f"Saved: kind number {known[20]}.")
    name_shown(page, 22)
    expect(page.locator("#classes li:visible")).to_have_count(count)
    page.keyboard.type("no such")
    expect(page.locator("#classes li:visible")).to_have_count(0)
    page.keyboard.press("Enter")
    page.locator("#part").fill("")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    answered(page, 22)
    assert LabelIndex.read(labels).labels[20:23] == (known[20], 0, None)
    server.kill()


LONG = "pneumonoultramicroscopicsilicovolcanoconiosis_of_the_lungs_of_a_very_long_animal"


@pytest.mark.parametrize("options", [PHONE, {**PHONE, "viewport": {"width": 844, "height": 390}}, {}])
def test_names_that_are_long_or_go_from_right_to_left(browser: Browser, tmp_path: Path, options: Any) -> None:
    labels = make_selection(tmp_path)
    index = LabelIndex.read(labels)
    known = [quarter(file) for file in index.files or ()]
    classes = (LONG, "קטן (חתול)", "a whole sentence with many words, so that it goes on and on", "d")
    replace(index, classes=classes, labels=(*known[:20], *([None] * 20))).write(labels)
    server = Labelling(labels)
    page = opened(browser, server.address, bypass_csp=True, **options)
    width = page.viewport_size["width"] if page.viewport_size else 0
    page.locator("#edit summary").click()
    page.locator("#all summary").click()
    page.keyboard.press("q")
    guessed_right_to_left = False
    for number in range(20, 40):
        expect(page.locator("#classes .guessed")).to_have_count(1)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        if page.locator("#classes .guessed .name").inner_text() == classes[1]:
            guessed_right_to_left = True
            expect(page.locator("#guess")).to_contain_text(f"Guess: \u2068{classes[1]}\u2069, ")
        name = page.locator("#name").inner_text()
        page.evaluate(f"give({quarter(name)}, performance.now())")
        expect(page.locator("#progress")).to_contain_text(f"{number + 1} of 40")
    assert guessed_right_to_left
    expect(page.locator("#done")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert serious_findings(page) == []
    server.kill()


def test_help(browser: Browser, server: Labelling) -> None:
    page = opened(browser, server.address)
    name_shown(page, 1)
    page.keyboard.press("h")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("1")  # answers nothing behind it
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    answered(page, 0)
    page.keyboard.press("1")
    answered(page, 1)


def touch(page: Page, *moves: list[tuple[float, float]]) -> None:
    """Fingers that go down, along these points, rest and lift: a tap on what they had flung would only stop it."""
    session = page.context.new_cdp_session(page)

    def send(kind: str, step: int | None) -> None:
        points = (
            []
            if step is None
            else [{"x": finger[step][0], "y": finger[step][1], "id": i} for i, finger in enumerate(moves)]
        )
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    send("touchStart", 0)
    for step in range(1, len(moves[0])):
        send("touchMove", step)
    page.wait_for_timeout(200)
    send("touchEnd", None)


def in_reach(page: Page, height: int) -> bool:
    """Whether all classes can be tapped without scrolling the page."""
    buttons = [page.locator("#classes button").nth(i).bounding_box() for i in range(4)]
    return all(button is not None and button["y"] + button["height"] <= height for button in buttons)


def test_a_phone_on_its_side(browser: Browser, server: Labelling) -> None:
    page = opened(browser, server.address, **{**PHONE, "viewport": {"width": 844, "height": 390}})
    name_shown(page, 1)
    assert in_reach(page, 390)
    assert page.evaluate("() => document.documentElement.scrollWidth") == 844


def test_a_phone(browser: Browser, server: Labelling, labels: Path) -> None:
    page = opened(browser, server.address, **PHONE)
    for number in range(1, 9):
        page.locator("#classes button").nth(quarter(name_shown(page, number))).tap()
        answered(page, number)
    taken = guessed(page, 9)
    box = page.locator("#frame").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    expect(page.locator("#guess")).to_contain_text("Swipe right takes it.")
    touch(page, [(x - 80, y), (x, y + 2), (x + 80, y + 4)])  # to the right: the guess
    answered(page, 9)
    assert LabelIndex.read(labels).labels[8] == CLASSES.index(taken)
    name_shown(page, 10)
    touch(page, [(x, y), (x + 10, y + 90), (x + 20, y + 180)])  # down: the page moves, nothing is answered
    page.evaluate("() => scrollTo(0, 0)")
    touch(page, [(x + 80, y), (x, y), (x - 80, y)])  # to the left: skipped
    name_shown(page, 11)
    answered(page, 9)
    touch(page, [(x - 20, y), (x - 40, y), (x - 60, y)], [(x + 20, y), (x + 40, y), (x + 60, y)])
    assert scale(page) > 2
    name_shown(page, 11)
    assert page.evaluate("() => document.documentElement.scrollWidth") == 390
    assert in_reach(page, 844)
    expect(page.locator("#classes kbd").first).to_be_hidden()  # room for more classes
    page.locator("#rows").tap()
    expect(page.locator("#row")).to_be_visible()
    page.locator("#row li button").first.tap()
    expect(page.locator("#row li button").first).to_have_attribute("aria-pressed", "true")
    page.locator("#row-leave").tap()
    page.locator("#similar li button").first.tap()
    expect(page.locator("#which")).to_be_in_viewport()  # though the similar ones are far below
    for tile in page.locator("#similar li button").all():
        if page.locator("#which").inner_text() == "Image that was not chosen":
            break
        tile.tap()
        expect(page.locator("#which")).to_contain_text("Image ")
    page.locator("#classes button").first.tap()
    expect(page.locator("#progress")).to_have_text("10 of 40 answered, 1 not chosen")
    assert page.evaluate("() => document.documentElement.scrollWidth") == 390


DESK = {"reduced_motion": "reduce"}


@pytest.mark.parametrize(("scheme", "size"), [("light", PHONE), ("dark", PHONE), ("light", DESK)])
def test_axe_finds_nothing_serious(browser: Browser, server: Labelling, scheme: str, size: Any) -> None:
    page = opened(browser, server.address, color_scheme=scheme, bypass_csp=True, **size)
    answer(page, 12)
    guessed(page, 13)
    page.keyboard.press("q")
    expect(page.locator("#why")).not_to_be_empty()
    page.locator("#all summary").click()
    page.locator("#edit summary").click()
    assert serious_findings(page) == []
    page.keyboard.press("h")
    assert serious_findings(page) == []
    page.keyboard.press("Escape")
    page.locator("#rows").click()
    expect(page.locator("#row")).to_be_visible()
    expect(page.locator("#row-title")).to_be_in_viewport()
    page.locator("#row li button").first.click()
    assert serious_findings(page) == []

"""An answer is for what was on the screen: slow images, keys at random, several windows, in a real browser."""

import random
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from browsing import needs_browser, until
from own_images import make_selection, served
from playwright.sync_api import Browser, Page, Route, expect

pytestmark = [pytest.mark.slow, needs_browser]

KEYS = ("1", "2", "3", "c", "d", "b", "?", "9", "x", "ArrowLeft", "ArrowRight", "Space", "Enter", "Tab", "Backspace")

WATCH = """
const onScreen = () => {
    const image = document.querySelector("#image");
    if (!image || !image.complete || !image.naturalWidth || !image.checkVisibility()) return null;
    return Number(new URL(image.src).pathname.split("/").at(-1));
};
const inRow = () => [...document.querySelectorAll("#row:not([hidden]) li button[aria-pressed=false] img")]
    .filter((image) => image.complete && image.naturalWidth && image.checkVisibility())
    .map((image) => Number(new URL(image.src).pathname.split("/").at(-1)));
const guessed = () => document.querySelector("#classes .guessed .name")?.textContent;
window.noted = [];
const now = () => ({ image: onScreen(), row: inRow(), guessed: guessed() });
addEventListener("keydown", (event) => noted.push({ ...now(), key: event.key }), true);
addEventListener("pointerdown", () => noted.push({ image: onScreen(), key: "pointer" }), true);
window.sent = [];
const send = window.fetch;
window.fetch = (address, options) => {
    if (address === "answers" || address === "rows") sent.push({ ...JSON.parse(options.body), after: noted.at(-1) });
    return send(address, options);
};
"""
"""Notes what is on the screen whenever something is pressed, and for each answer after which press it was sent."""


def watched(browser: Browser, address: str) -> Page:
    """A window that notes as `WATCH` says."""
    page = browser.new_context().new_page()
    page.add_init_script(WATCH)
    page.goto(address)
    expect(page.locator("#which")).to_contain_text("Image ", timeout=30_000)
    return page


def puts_back(answer: dict[str, Any], earlier: list[dict[str, Any]]) -> bool:
    """Whether it takes back one of the same window, and was not given to the image on the screen."""
    reverse = (answer["image"], answer["seen"], answer["answer"])
    known = reverse in [(each["image"], each["answer"], each["seen"]) for each in earlier]
    return known and (answer["after"]["key"] == "Backspace" or answer["after"]["image"] != answer["image"])


def test_random_keys_never_answer_an_image_that_is_not_shown(browser: Browser, tmp_path: Path) -> None:
    rng = random.Random(0)
    with served(make_selection(tmp_path), lambda: time.sleep(2)) as (address, store):
        windows = [watched(browser, address) for _ in range(2)]
        for _ in range(200):
            page = rng.choice(windows)
            if rng.random() < 0.05:
                expect(page.locator("#image")).to_be_visible(timeout=30_000)
                page.wait_for_timeout(100)
            page.keyboard.press(rng.choice(KEYS), delay=rng.choice((0, 0, 30)))
            page.wait_for_timeout(rng.choice((0, 10, 60)))
        by_window = [page.evaluate("sent") for page in windows]
        page.wait_for_timeout(500)
        labels = dict(zip(store.read().indices, store.read().labels, strict=True))
    # Backspace takes one's last answer back, once that is saved: another key may have been pressed meanwhile.
    given = [each for sent in by_window for place, each in enumerate(sent) if not puts_back(each, sent[:place])]
    assert len(given) >= 5, "some images were shown long enough to be answered"
    assert [answer["image"] for answer in given] == [answer["after"]["image"] for answer in given]
    for image, label in labels.items():
        assert label is None or (image, label) in {(answer["image"], answer["answer"]) for answer in given}


def test_a_key_that_went_down_before_the_image_came_is_none_for_it(browser: Browser, tmp_path: Path) -> None:
    gate = threading.Semaphore(1)
    with served(make_selection(tmp_path), gate.acquire) as (address, store):
        page = watched(browser, address)
        page.keyboard.press("1")
        expect(page.locator("#status")).to_contain_text("Saved: cat.")
        expect(page.locator("#image")).to_have_count(0)
        expect(page.locator("#which")).to_have_text("Loading image 2 of 40 …")
        for key in ("1", "?", "2", "b"):
            page.keyboard.press(key)
        expect(page.locator("#status")).to_have_text("Not taken: the image was not shown yet.")
        page.locator("#classes button").nth(1).focus()
        page.keyboard.down("Enter")
        page.keyboard.down("Enter")  # held: it repeats
        page.keyboard.up("Enter")
        page.keyboard.down("Space")  # pressed now, let go when the image is there
        box = page.locator("#classes button").nth(2).bounding_box()
        assert box is not None
        gate.release()
        expect(page.locator("#which")).to_have_text("Image 2 of 40")
        page.keyboard.up("Space")
        page.wait_for_timeout(200)
        assert len(page.evaluate("sent")) == 1
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text("Saved: dog.")
        page.mouse.move(box["x"] + 5, box["y"] + 5)
        page.mouse.down()
        gate.release()
        expect(page.locator("#which")).to_have_text("Image 3 of 40")
        page.mouse.up()
        page.wait_for_timeout(200)
        assert len(page.evaluate("sent")) == 2
        page.mouse.click(box["x"] + 5, box["y"] + 5)
        expect(page.locator("#status")).to_contain_text("Saved: bird.")
        assert store.read().labels[:4] == (0, 1, 2, None)
        gate.release(100)


def test_the_next_image_is_shown_while_an_answer_is_being_saved(browser: Browser, tmp_path: Path) -> None:
    with served(make_selection(tmp_path)) as (address, store):
        page = watched(browser, address)
        held: list[Route] = []
        page.route(re.compile("/answers$"), lambda route: held.append(route))
        page.keyboard.press("1")
        expect(page.locator("#which")).to_have_text("Image 2 of 40")
        expect(page.locator("#progress")).to_have_text("0 of 40 answered")
        page.keyboard.press("2")  # waits for the first
        page.wait_for_timeout(200)
        assert len(held) == len(page.evaluate("sent")) == 1
        held.pop().continue_()
        expect(page.locator("#which")).to_have_text("Image 3 of 40")
        expect(page.locator("#progress")).to_have_text("1 of 40 answered")
        until(page, "sent.length === 2")
        page.keyboard.press("3")
        held.pop().fulfill(status=400, json={"problem": "the disk is full"})
        expect(page.locator("#which")).to_have_text("Image 2 of 40")
        expect(page.locator("#trouble")).to_have_text("the disk is full")
        expect(page.locator("#image")).to_be_visible()
        page.wait_for_timeout(200)
        assert len(page.evaluate("sent")) == 2  # the third was for another image than that which is shown
        assert store.read().labels[:3] == (0, None, None)


def test_a_key_amid_the_list_is_for_what_was_on_the_screen(browser: Browser, tmp_path: Path) -> None:
    with served(make_selection(tmp_path)) as (address, store):
        page = watched(browser, address)
        page.locator("#all summary").click()
        page.evaluate("""() => document.querySelector("#all ol").addEventListener("load", ({ target }) => {
            const key = new KeyboardEvent("keydown", { key: "1", bubbles: true });
            target.closest("button").dispatchEvent(key);  // it is there, and not yet on the screen
        }, true)""")
        page.locator("#all").dispatch_event("toggle")  # lists anew
        until(page, "document.querySelector('#all ol img').since")
        page.wait_for_timeout(200)
        assert page.evaluate("sent") == []
        page.locator("#all ol button").first.focus()
        page.keyboard.press("2")
        expect(page.locator("#found")).to_contain_text("Image 1 of 40: dog")
        assert store.read().labels[:2] == (1, None)


def test_an_image_that_cannot_be_shown_is_skipped_or_not_sure(browser: Browser, tmp_path: Path) -> None:
    with served(make_selection(tmp_path), lambda: None) as (address, store):
        image = store.read().indices[0]
        page = browser.new_page()
        page.route(re.compile(rf"/images/{image}$"), lambda route: route.fulfill(body="no", content_type="image/png"))
        page.goto(address)
        expect(page.locator("#frame")).to_have_text("This image cannot be shown.")
        expect(page.locator("#which")).to_have_text("Image 1 of 40")
        page.keyboard.press("1")
        expect(page.locator("#status")).to_contain_text("cannot be shown can be skipped, or marked as not sure")
        page.keyboard.press("?")
        expect(page.locator("#progress")).to_have_text("1 of 40 answered")
        assert store.read().unsure == (image,)


def test_why_an_image_cannot_be_shown(browser: Browser, tmp_path: Path) -> None:
    labels = make_selection(tmp_path)
    with served(labels, guess=True) as (address, store):
        index = store.read()
        for image, answer in zip(index.indices, (0, 1, 2, 0, 1), strict=False):
            store.answer(image, answer, None)
        file = next((tmp_path / "images").rglob(Path((index.files or ())[5]).name))
        content = file.read_bytes()
        file.write_bytes(content[:50])
        page = watched(browser, address)
        expect(page.locator("#which")).to_have_text("Image 6 of 40")
        expect(page.locator("#frame")).to_contain_text("This image cannot be shown: ")
        expect(page.locator("#frame")).to_contain_text(file.name)
        expect(page.locator("#rows")).to_be_visible()  # guesses are there
        expect(page.locator("#classes .guessed")).to_have_count(0)
        page.keyboard.press("Space")
        expect(page.locator("#classes .guessed")).to_have_count(1)
        file.write_bytes(content)
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#image")).to_be_visible()
        expect(page.locator("#classes .guessed")).to_have_count(1)


def test_random_keys_take_no_guess_and_no_row_that_is_not_shown(browser: Browser, tmp_path: Path) -> None:
    rng = random.Random(1)
    keys = ("1", "2", "3", "Enter", "Enter", "Enter", "r", "q", "z", "a", "Escape", "Space", "Backspace", "ArrowLeft")
    with served(make_selection(tmp_path), lambda: time.sleep(0.2), guess=True) as (address, store):
        for image, answer in zip(store.read().indices, (0, 1, 2, 0, 1), strict=False):
            store.answer(image, answer, None)
        windows = [watched(browser, address) for _ in range(2)]
        for page in windows:
            expect(page.locator("#classes .guessed")).to_have_count(1, timeout=30_000)
        for _ in range(150):
            page = rng.choice(windows)
            page.keyboard.press(rng.choice(keys), delay=rng.choice((0, 0, 30)))
            page.wait_for_timeout(rng.choice((0, 10, 200, 600)))
        sent = [answer for page in windows for answer in page.evaluate("sent")]
    rows = [one for one in sent if "images" in one and one["answer"] is not None]
    guesses = [one for one in sent if "image" in one and one["after"]["key"] == "Enter"]
    assert rows, "some rows were shown long enough"
    assert guesses, "some guesses were"
    assert [one["images"] for one in rows] == [one["after"]["row"] for one in rows]
    assert [(one["image"], one["class"]) for one in guesses] == [
        (one["after"]["image"], one["after"]["guessed"]) for one in guesses
    ]

"""The labelling page in a real browser, for tests."""

import json
import os
import re
import shutil
import time
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

AXE = Path(__file__).parents[1] / "axe" / "axe.min.js"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome") or ""

needs_browser = pytest.mark.skipif(
    not CHROMIUM, reason="no browser: apt-get install chromium, or set CHROMIUM to another's path"
)


def opened(browser: Browser, address: str, **options: object) -> Page:
    """A new window; it may ask for nothing but what is below its address, and no script of it may fail."""
    page = browser.new_context(**options).new_page()  # type: ignore[arg-type]
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)

    def check(url: str) -> None:
        assert url.startswith(address), url

    page.on("request", lambda request: check(request.url))
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    page.goto(address)
    expect(page.locator("#which")).to_contain_text("Image ")
    return page


def answered(page: Page, count: int) -> None:
    """Wait until so many images have an answer."""
    expect(page.locator("#progress")).to_have_text(re.compile(f"^{count} of 40 answered"))


def shown_elsewhere(address: str, *images: int) -> None:
    """Wait until the server knows that the windows there are show these images."""
    for _ in range(600):
        with urllib.request.urlopen(f"{address}state?window=test", timeout=60) as told:
            if json.load(told)["elsewhere"] == [*images]:
                return
        time.sleep(0.05)
    raise AssertionError(images)


def until(page: Page, expression: str) -> None:
    """Wait for it to be true; what Playwright itself waits by the page's policy forbids."""
    for _ in range(600):
        if page.evaluate(f"Boolean({expression})"):
            return
        page.wait_for_timeout(100)
    raise AssertionError(expression)


def name_shown(page: Page, number: int) -> str:
    """The file's name, once this image (from 1) is shown."""
    expect(page.locator("#which")).to_have_text(f"Image {number} of 40")
    return page.locator("#name").inner_text()


def serious_findings(page: Page) -> list[tuple[str, list[str]]]:
    """What axe finds in the page as it is; it has to be opened with `bypass_csp`."""
    page.add_script_tag(content=AXE.read_text())
    violations = page.evaluate("axe.run().then(result => result.violations)")
    return [
        (each["id"], [node["html"] for node in each["nodes"]])
        for each in violations
        if each["impact"] in ("serious", "critical")
    ]

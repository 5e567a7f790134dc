"""The page beside a label file that links of a report go by."""

import re
import stat
from pathlib import Path

import pytest

from usl_lightning.stage.label_page import leads_to, make_page, page_of

SECRET = "http://127.0.0.1:8642/s3cret/"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """That of a stage."""
    stage = tmp_path / "runs/my photos/select"
    stage.mkdir(parents=True)
    (stage / "stage.json").write_text("{}")
    (stage / "labels.json").write_text("{}")
    return stage / "labels.json"


def test_it_leads_to_the_labelling_page_while_that_is_open(labels: Path) -> None:
    page = make_page(labels)
    assert page == labels.with_name("label.html")
    closed = page.read_text()
    assert f"usl label &#x27;{labels}&#x27;" in closed
    with leads_to(SECRET, labels):
        assert re.findall(r'href="([^"]*)"', page.read_text()) == [SECRET]
        assert stat.S_IMODE(page.stat().st_mode) == 0o600
        assert make_page(labels) == page
        assert SECRET in page.read_text()
    assert page.read_text() == closed
    assert sorted(path.name for path in labels.parent.iterdir()) == ["label.html", "labels.json", "stage.json"]


def test_one_that_opens_later_makes_it_too_and_the_one_that_ends_first_leaves_it(labels: Path) -> None:
    page = labels.with_name("label.html")
    first = leads_to(SECRET, labels)
    with first:
        with leads_to("http://127.0.0.1:1/other/", labels):
            assert "/other/" in page.read_text()
        assert "is not open" in page.read_text()
    with leads_to("http://127.0.0.1:1/other/", labels):
        first = leads_to(SECRET, labels)
        first.__enter__()
    assert SECRET in page.read_text(), "of the one that is still open"
    first.__exit__(None, None, None)
    assert "is not open" in page.read_text()


def test_what_a_killed_server_left_is_replaced(labels: Path) -> None:
    leads_to(SECRET, labels).__enter__()
    with leads_to("http://127.0.0.1:1/other/", labels):
        assert SECRET not in labels.with_name("label.html").read_text()


def test_nothing_is_written_beside_other_label_files_or_over_other_pages(labels: Path) -> None:
    own = labels.with_name("mine.json")
    assert page_of(own) is None
    assert make_page(own) is None
    page = labels.with_name("label.html")
    page.write_text("<p>mine")
    with leads_to(SECRET, labels), leads_to(SECRET, own):
        assert make_page(labels) is None
    assert page.read_text() == "<p>mine"
    labels.with_name("stage.json").unlink()
    page.unlink()
    with leads_to(SECRET, labels):
        assert not page.exists()

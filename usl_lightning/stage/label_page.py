"""The page beside a label file by which links reach the labelling page, whose secret address is another each time."""

import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path

from usl_lightning.base.atomic import read_file
from usl_lightning.stage.folder import StageFolder

_START = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="light dark">
<title>The labelling page of usl</title>
"""

_OPEN = """<p><a id="page" href="{address}" rel="noreferrer">Label images</a></p>
<script>
  const page = document.getElementById("page");
  page.href += location.hash; // which image
  location.replace(page.href);
</script>
</html>
"""

_CLOSED = """<p>The labelling page is not open. This opens it; then load this page again:</p>
<pre>{command}</pre>
</html>
"""


def page_of(labels: Path) -> Path | None:
    """The page beside the label file of a stage; None of another file, in whose folder nothing is written."""
    stage = StageFolder(labels.parent)
    return stage.label_page if labels.name == stage.labels.name and stage.record_path.exists() else None


def make_page(labels: Path) -> Path | None:
    """The page beside the label file of a stage, which is made if it is not there; None if it cannot be."""
    page = page_of(labels)
    if page is not None and not os.path.lexists(page):
        _write(page, _closed(labels))
    return page if page is not None and _written(page) else None


@contextmanager
def leads_to(address: str, labels: Path) -> Iterator[None]:
    """Have the page of a stage lead to where its images are labelled meanwhile, and then say how to begin again.

    This user alone can read it. What is behind `#` in a link goes along.

    Args:
        address: the secret one.
        labels: the label file.
    """
    page = page_of(labels)
    if page is not None and (_written(page) or not os.path.lexists(page)):
        _write(page, _OPEN.format(address=escape(address)))
    try:
        yield
    finally:
        if page is not None and escape(address) in _written(page):  # it may be that of another server by now
            _write(page, _closed(labels))


def _closed(labels: Path) -> str:
    return _CLOSED.format(command=escape(shlex.join(["usl", "label", str(labels)])))


def _written(page: Path) -> str:
    """What this file has written there; empty if there is nothing, or something else."""
    try:
        text = read_file(page).decode(errors="replace")
    except OSError:
        return ""
    return text if text.startswith(_START) else ""


def _write(page: Path, text: str) -> None:
    """Put a page there whole, for this user alone; a folder that cannot be written stays without."""
    with suppress(OSError):
        handle, name = tempfile.mkstemp(".html", ".usl-label-", page.parent)
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(_START + text)
            os.replace(name, page)
        except OSError:
            os.unlink(name)
            raise

"""What keeps the page's address secret: who sees this machine's list of processes must not learn it."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path

from usl_lightning.base.atomic import check_file

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={address}">
<title>Label images</title>
<p><a href="{address}" rel="noreferrer">Label images</a></p>
</html>
"""


@contextmanager
def leading_to(address: str, folder: Path) -> Iterator[str]:
    """Yield the `file:` address of a page that leads to `address`, which this user alone can read; then remove it.

    A browser is told what to open by its arguments, and everybody on the machine can read those.

    Args:
        address: the secret one.
        folder: where to put the page: browsers in a sandbox see a user's own folders, not the temporary one.
    """
    for left in folder.glob(".usl-label-*.html"):  # by servers that were killed
        with suppress(OSError):
            check_file(left)
            with open(left, "rb") as page:
                fcntl.flock(page, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
    try:
        handle, name = tempfile.mkstemp(".html", ".usl-label-", folder.absolute())
    except OSError:
        handle, name = tempfile.mkstemp(".html", ".usl-label-")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            os.fchmod(handle, 0o600)
            file.write(_PAGE.format(address=escape(address)))
            file.flush()
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # tells that it is in use
            yield Path(name).as_uri()
    finally:
        with suppress(OSError):
            os.unlink(name)

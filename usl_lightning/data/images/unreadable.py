"""Which files of a folder are no images that can be decoded. PIL and NumPy only."""

import contextlib
import hashlib
import logging
import os

from usl_lightning.base.errors import UslError
from usl_lightning.base.files import read_json, write_json
from usl_lightning.base.progress import progress
from usl_lightning.data.images import folders
from usl_lightning.data.images.decode import decode
from usl_lightning.data.images.folders import FileList
from usl_lightning.data.images.rendering import VERSION
from usl_lightning.data.images.threads import map_in_order
from usl_lightning.data.images.walk import UnreadableImageError

log = logging.getLogger("usl_lightning")

_LISTED = 10  # skipped files named in the log


def check_readable(listing: FileList, on_error: str) -> tuple[FileList, dict[str, str]]:
    """Stop at what cannot be an image, or leave out everything that cannot be decoded: the list, and what is not in it.

    Which images make up the set must be known before training, so `skip` decodes every file once; what it
    found is kept in the cache folder.

    Args:
        listing: the files.
        on_error: `fail` or `skip`.

    Raises:
        UslError: names the first, or none can be read.
    """
    if on_error == "fail":
        wrong = [(str(listing.beside / name), problem) for name, problem in listing.odd]
        wrong += [
            (listing.where(i), "empty file, expected an image") for i, size in enumerate(listing.sizes) if not size
        ]
        if wrong:
            first, problem = wrong[0]
            more = f" (and {len(wrong) - 1} more like it)" if len(wrong) > 1 else ""
            raise UslError(f"{first}: {problem}{more}; remove it or give --data.on_error skip")
        return listing, {}
    problems = unreadable(listing)
    count = len({*listing.files, *problems})
    if len(problems) == count:
        first, problem = next(iter(problems.items()))
        raise UslError(f"{listing.root}: none of its {count} images can be read; first: {first}: {problem}")
    if problems:
        named = ", ".join(list(problems)[:_LISTED]) + (", …" if len(problems) > _LISTED else "")
        log.warning(
            "%s: %d of %d images cannot be read and are left out: %s", listing.root, len(problems), count, named
        )
    return listing.without(set(problems)), problems


def unreadable(listing: FileList) -> dict[str, str]:
    """What cannot be read or decoded, in the order of the names, and why. It is kept in the cache folder.

    What the system refuses (permissions) is asked anew the next time: mending that leaves no trace in a listing.

    Args:
        listing: the files; what is odd of them is part of the answer.
    """
    key = f"{VERSION} {os.path.realpath(listing.root)} {folders.fingerprint_of(listing.files, listing.sizes)}"
    kept = folders.cache_folder() / "folders" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.skip.json"
    with contextlib.suppress(OSError, UslError, TypeError, ValueError, AttributeError):  # missing or damaged: look
        known = read_json(kept, "it is made again")
        return dict(sorted({**known, **dict(listing.odd)}.items()))
    found, lasting = dict(listing.odd), dict[str, str]()
    with progress("looking for unreadable images", len(listing.files), "img") as bar:
        for file, (refused, damaged) in zip(
            listing.files, map_in_order(lambda i: _problem(listing, i), range(len(listing.files))), strict=True
        ):
            if refused or damaged:
                found[file] = refused or damaged
            if damaged:
                lasting[file] = damaged
            bar.update()
    if len(found) == len(lasting) + len(listing.odd):
        with contextlib.suppress(UslError, OSError):  # no place to keep it: the next start looks again
            write_json(kept, lasting)
    return dict(sorted(found.items()))


def _problem(listing: FileList, i: int) -> tuple[str, str]:
    """(why the system does not give a file, why it cannot be decoded); at most one of them."""
    file = listing.files[i]
    try:
        content = listing.read(i)
    except UnreadableImageError as error:
        return str(error).removeprefix(f"{listing.where(i)}: "), ""
    try:
        decode(content, file, 3, 16)
    except UnreadableImageError as error:
        return "", str(error).removeprefix(f"{file}: ")
    return "", ""

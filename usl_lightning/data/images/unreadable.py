"""Which files of a folder are no images that can be decoded. PIL and NumPy only."""

import contextlib
import hashlib
import os

from usl_lightning.base.errors import UslError
from usl_lightning.base.files import read_json, write_json
from usl_lightning.base.progress import progress
from usl_lightning.data.images import folders
from usl_lightning.data.images.decode import decode
from usl_lightning.data.images.folders import FileList
from usl_lightning.data.images.rendering import VERSION
from usl_lightning.data.images.threads import map_in_order
from usl_lightning.data.images.walk import UnreadableImageError, read_file


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
            listing.files, map_in_order(lambda file: _problem(listing, file), listing.files), strict=True
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


def _problem(listing: FileList, file: str) -> tuple[str, str]:
    """(why the system does not give it, why it cannot be decoded); at most one of them."""
    path = listing.root / file
    try:
        content = read_file(path)
    except UnreadableImageError as error:
        return str(error).removeprefix(f"{path}: "), ""
    try:
        decode(content, file, 3, 16)
    except UnreadableImageError as error:
        return "", str(error).removeprefix(f"{file}: ")
    return "", ""

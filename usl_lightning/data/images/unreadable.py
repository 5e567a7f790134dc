"""Which files of a folder are no images that can be decoded. PIL and NumPy only."""

import contextlib
import hashlib
import json
import os

from usl_lightning.base.errors import UslError
from usl_lightning.base.files import write_json
from usl_lightning.base.progress import progress
from usl_lightning.data.images import folders
from usl_lightning.data.images.decode import VERSION, UnreadableImageError, decode
from usl_lightning.data.images.folders import FileList
from usl_lightning.data.images.threads import map_in_order


def unreadable(listing: FileList) -> tuple[str, ...]:
    """Those of the files that cannot be decoded. What was found is kept in the cache folder.

    Args:
        listing: the files.
    """
    key = f"{VERSION} {os.path.realpath(listing.root)} {folders.fingerprint_of(listing.files, listing.sizes)}"
    kept = folders.cache_folder() / "folders" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.skip.json"
    try:
        return tuple(json.loads(kept.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        pass

    def fails(file: str) -> bool:
        try:
            decode((listing.root / file).read_bytes(), file, 3, 16)
        except (UnreadableImageError, OSError):
            return True
        return False

    failed = []
    with progress("looking for unreadable images", len(listing.files), "img") as bar:
        for bad in map_in_order(fails, listing.files):
            failed.append(bad)
            bar.update()
    skipped = tuple(file for file, bad in zip(listing.files, failed, strict=True) if bad)
    with contextlib.suppress(UslError, OSError):  # no place to keep it: the next start looks again
        write_json(kept, skipped)
    return skipped

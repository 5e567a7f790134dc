"""A cheap digest of the files a data set is read from, for `usl run`. Imports neither torch nor NumPy."""

import hashlib
from pathlib import Path

from usl_lightning.base.errors import UslError
from usl_lightning.base.files import note, noted_hash
from usl_lightning.data.images import array_files, catalog, folders, splits


def data_signature(
    name: str,
    dir: str | None = None,
    *,
    split: str = "train",
    image_size: int | None = None,
    labels_file: str | None = None,
    class_list: str | None = None,
    download: bool = False,
) -> str:
    """`sha256:…` that changes when files of `split` or of `test` are added, removed, renamed or resized.

    Of images, only names (relative to the folder) and sizes are looked at, so that 100,000 files take less
    than a second; a label file and a class list are read. Moving the whole set changes nothing. Within a stage, files
    that are opened afterwards are refused if they are not what they were here.

    Args:
        name, dir, split, image_size, labels_file, class_list: as `open_source` takes them.
        download: fetch the set first if it is missing.

    Raises:
        UslError: there is no such set, or the files of `split` are missing.
    """
    name = catalog.canonical_name(name)
    parts = [name]
    if name in catalog.FOLDER_SETS:
        parts += _folder_parts(name, dir, split, labels_file, class_list)
    else:
        parts += _file_parts(name, dir, split, image_size, download)
    for extra in (labels_file, class_list):
        parts.append("" if extra is None else _digest(extra))
    return "sha256:" + hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _folder_parts(name: str, dir: str | None, split: str, labels_file: str | None, class_list: str | None) -> list[str]:
    places = splits.split_folders(name, dir)
    only = None if labels_file else splits.class_names(name, places["train"], class_list)
    parts: list[str] = []
    for part in sorted({split, "test"} & set(places)):
        found = folders.scan(places[part], only, trust_index=False)
        parts += [part, folders.fingerprint_of(found.files, found.sizes)]
        if found.packed is not None and found.packed.texts is not None and labels_file is None:
            parts.append(found.packed.labels_hash)
    return parts


def _file_parts(name: str, dir: str | None, split: str, image_size: int | None, download: bool) -> list[str]:
    paths: list[Path] = []
    if name in catalog.FILE_SETS:
        there = array_files.locate(dir)
        paths = [there[part][0] for part in sorted({split, "test"} & set(there))]
    else:
        for part in dict.fromkeys((split, "test")):
            try:
                found = catalog.locate(name, part, dir, image_size=image_size, download=download)
            except UslError:
                if part == split:
                    raise
                continue  # the set may be used without a test split
            paths += [path for one in found for path in one.paths]
    note(*paths)
    return [f"{path.name}\0{path.stat().st_size}" for path in dict.fromkeys(paths)]


def _digest(path: str) -> str:
    try:
        return noted_hash(path)
    except OSError as error:
        raise UslError(f"{path}: cannot be read ({error.strerror})") from error

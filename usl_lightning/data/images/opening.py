"""Opening one split of a data set by its name, and the label index made for it."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypedDict, Unpack

import torch

from usl_lightning.base.errors import UslError
from usl_lightning.base.files import as_noted
from usl_lightning.data.images import array_files, arrays, catalog, splits
from usl_lightning.data.images.source import ArraySource, ImageSource, array_fingerprint, convert_images, dataset_id
from usl_lightning.data.images.subset import subset_of
from usl_lightning.labels import LabelIndex


class Looks(TypedDict, total=False):
    """How the images of a data set are to be taken.

    Attributes:
        image_size: side in pixels. Images of another size are resized (shorter side, then centre crop).
        channels: 1 or 3; default: as the images are.
        labels_file: for folders, a CSV `file,label`.
        class_list: for ImageNet, a file with one class folder a line.
        classes: for folders whose sub-folders are no classes, the names that people will label by, perhaps none; no
            image has a label then.
        on_error: for folders, what to do with an unreadable image: stop, or leave it out and list it.
        background: for folders, the colour that transparent pixels are laid on: a name of CSS, or `#rrggbb`.
    """

    image_size: int | None
    channels: int | None
    labels_file: str | None
    class_list: str | None
    classes: list[str] | None
    on_error: Literal["fail", "skip"]
    background: str


def open_source(
    name: str,
    split: str,
    *,
    dir: str | None = None,
    cache: str | None = None,
    download: bool = False,
    subset_file: str | None = None,
    **looks: Unpack[Looks],
) -> ImageSource:
    """Open one split of a data set.

    Args:
        name: a named set, `folder`, or `arrays` (see `catalog.NAMES`).
        split: `train`, `test`, or another the set has; parts are joined with `+` (`train+unlabeled` of
            STL-10 is its 5,000 labelled images, then its 100,000 unlabelled ones).
        dir: the folder that holds the data sets (default: `$USL_DATA`, then `./data`); for `folder`, the
            image folder itself; for `arrays`, the file or the folder of the files.
        cache: for folders, where to keep the decoded images.
        download: fetch what is missing, where a public address is known.
        subset_file: a label index: the images that it names are all there are.
        looks: see `Looks`.

    Raises:
        UslError: unknown name or split, missing or damaged data, an option the set does not have.
    """
    if subset_file is not None:
        return subset_of(open_source(name, split, dir=dir, cache=cache, download=download, **looks), subset_file)
    name, image_size, channels = catalog.canonical_name(name), looks.get("image_size"), looks.get("channels")
    _check_options(image_size, channels)
    if name in catalog.FOLDER_SETS:
        from usl_lightning.data.images.cache import CachedSource
        from usl_lightning.data.images.folder_source import open_folder

        source = open_folder(name, split, dir=dir, **looks)
        return source if cache is None else CachedSource(source, cache)
    catalog.check_use(name, {"cache": cache, **looks})
    return _open_arrays(name, split, dir, image_size, channels, download)


def open_given(given: Mapping[str, Any]) -> ImageSource:
    """Open what parameters of a data module say: `dataset`, `split`, and what `open_source` takes; the others are left.

    Raises:
        UslError: see `open_source`.
    """
    names = {"dir", "cache", "download", "subset_file", *Looks.__annotations__}
    options = {name: value for name, value in given.items() if name in names and value is not None}
    return open_source(str(given["dataset"]), str(given.get("split") or "train"), **options)


def _check_options(image_size: int | None, channels: int | None) -> None:
    if image_size is not None and image_size < 1:
        raise UslError(f"--data.image_size is {image_size}, expected a number of pixels, 1 or more")
    if channels not in (None, 1, 3):
        raise UslError(f"--data.channels is {channels}, expected 1 or 3")


def _open_arrays(
    name: str, split: str, folder: str | None, image_size: int | None, channels: int | None, download: bool
) -> ArraySource:
    read = _read_arrays(name, split, folder, image_size, download)
    images = torch.from_numpy(read.images)
    converted = convert_images(images, image_size, channels)
    changed = converted is not images
    return ArraySource(
        converted,
        torch.from_numpy(read.labels),
        read.classes,
        name=name,
        split=split,
        fingerprint=array_fingerprint(images) if changed else None,
        originals=partial(_originals, name, split, folder, image_size, download) if changed else None,
    )


def _originals(name: str, split: str, folder: str | None, image_size: int | None, download: bool) -> torch.Tensor:
    return torch.from_numpy(_read_arrays(name, split, folder, image_size, download).images)


def _read_arrays(name: str, split: str, folder: str | None, image_size: int | None, download: bool) -> arrays.Arrays:
    if name in catalog.FILE_SETS:
        read = array_files.read(split, folder)
        as_noted(*(path for path, _ in array_files.locate(folder).values()))
    else:
        found = catalog.locate(name, split, folder, image_size=image_size, download=download)
        read = arrays.read_named(name, found)
        as_noted(*(path for part in found for path in part.paths))
    return read


def has_split(name: str, split: str, *, dir: str | None = None) -> bool:
    """Whether the set has this split (for folders and arrays: whether it is there).

    Raises:
        UslError: there is no such set.
    """

    name = catalog.canonical_name(name)
    if name in catalog.FOLDER_SETS:
        return split in splits.split_folders(name, dir)
    if name in catalog.FILE_SETS:
        return split in array_files.locate(dir)
    return all(part in catalog.ARRAY_SETS[name].splits for part in split.split("+"))


def read_labels(path: str, source: ImageSource) -> LabelIndex:
    """Read a label index made for `source`.

    It is checked against the source first, and gets the positions that its images have there; a format without
    labels then gets the source's labels of its indices, and of no other image. An index of the first of several splits
    counts for all of them, as STL-10's `train` for `train+unlabeled`.

    Raises:
        UslError: it is damaged, of another data set, or has no labels and the source has none either.
    """
    index = LabelIndex.read(path)
    if index.dataset is not None and isinstance(source, ArraySource) and source.begins_with(index.dataset):
        index = replace(index, dataset=dataset_id(source), soft={})  # which is of the images of then
    index = index.placed(dataset_id(source), source.classes, source.files, source.content_hashes)
    if index.dataset is not None:
        return index
    if not index.plain:
        numbers = range(1 + max(label or 0 for label in index.labels))
        return replace(index, classes=source.classes or tuple(map(str, numbers)))
    chosen = source.labels[torch.tensor(index.indices, dtype=torch.int64)]
    return index.with_labels(chosen.tolist(), source.classes)

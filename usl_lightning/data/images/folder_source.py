"""Image folders as a source: decoded and resized when they are read."""

import csv
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.data.images import folders
from usl_lightning.data.images.decode import Probe, UnreadableImageError, decode, probe
from usl_lightning.data.images.folders import FileList
from usl_lightning.data.images.source import ImageSource
from usl_lightning.data.images.threads import map_in_order
from usl_lightning.data.images.unreadable import unreadable

log = logging.getLogger("usl_lightning")

_PROBED = 256  # evenly spaced files whose headers decide size and channels
_LISTED = 10  # skipped files named in the log


class FolderSource(ImageSource):
    """Images of a folder, decoded when read; see `decode.py` for what becomes of each kind of file.

    Args:
        listing: the files, in order.
        labels: int64 [n], -1 where unknown.
        classes: names in label order.
        name, split: what the set is called.
        image_size: side in pixels; None: all files have one size, that of the first.
        channels: 1 or 3; None: 1 if all of 256 evenly spaced files are grey, else 3.
        skipped: files left out.
    """

    statistics_images = 4096

    def __init__(
        self,
        listing: FileList,
        labels: Tensor,
        classes: tuple[str, ...] = (),
        *,
        name: str,
        split: str,
        image_size: int | None = None,
        channels: int | None = None,
        skipped: tuple[str, ...] = (),
    ) -> None:
        self.root, self.files, self.sizes = listing.root, listing.files, listing.sizes
        self._only = listing.only
        self.labels, self.classes, self.skipped = labels, classes, skipped
        self.name, self.split, self.image_size = name, split, image_size
        probes = self._probe(image_size is None, channels is None)
        self.channels = channels or (1 if all(p.grey for p in probes) else 3)
        self.height = image_size or probes[0].height
        self.width = image_size or probes[0].width

    def read(self, indices: Tensor) -> Tensor:
        """The images at `indices` as uint8 [b, c, h, w].

        Raises:
            UslError: a file is damaged, has changed, or has another size where all must be equal.
        """
        images = torch.empty(len(indices), self.height, self.width, self.channels, dtype=torch.uint8)
        pixels = images.numpy()
        for slot, i in enumerate(indices.tolist()):
            image = decode(self._content(i), self._where(i), self.channels, self.image_size)
            if image.shape != pixels.shape[1:]:
                self._refuse_size(i, image.shape[0], image.shape[1])
            pixels[slot] = image
        return images.permute(0, 3, 1, 2).contiguous()

    def read_batches(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """`read` of each batch, in order, on all cores."""
        return map_in_order(self.read, batches)

    def _fingerprint(self) -> str:
        assert self.files is not None
        return folders.fingerprint_of(self.files, self.sizes)

    def _where(self, i: int) -> str:
        assert self.files is not None
        return os.path.join(self.root, self.files[i])

    def _content(self, i: int) -> bytes:
        try:
            with open(self._where(i), "rb") as file:
                content = file.read()
        except OSError as error:
            raise UnreadableImageError(f"{self._where(i)}: cannot be read ({error.strerror})") from error
        if len(content) != self.sizes[i]:
            folders.drop_index(self.root, self._only)
            raise UslError(
                f"{self._where(i)}: changed since the folder was listed ({self.sizes[i]} bytes then,"
                f" {len(content)} now); start again"
            )
        return content

    def _probe(self, sizes: bool, colours: bool) -> list[Probe]:
        """The headers of up to 256 evenly spaced files, as far as they are needed."""
        if not sizes and not colours:
            return []
        n = min(len(self), _PROBED)
        picks = [i * len(self) // n for i in range(n)]
        probes = [probe(self._content(i), self._where(i)) for i in picks]
        for i, found in zip(picks, probes, strict=True):
            if sizes and (found.height, found.width) != (probes[0].height, probes[0].width):
                self.height, self.width = probes[0].height, probes[0].width
                self._refuse_size(i, found.height, found.width)
        return probes

    def _refuse_size(self, i: int, height: int, width: int) -> None:
        raise UslError(
            f"{self._where(i)} is {width}×{height}, but {self._where(0)} is {self.width}×{self.height}; give"
            " --data.image_size to bring all images to one size"
        )


# opening -------------------------------------------------------------------------------------------------


def open_folder(
    name: str,
    split: str,
    *,
    dir: str | None,
    image_size: int | None,
    channels: int | None,
    labels_file: str | None,
    class_list: str | None,
    on_error: Literal["fail", "skip"],
    classes: Sequence[str] | None = None,
) -> FolderSource:
    """Open one split of a set of image files; the arguments are those of `open_source`.

    The class of an image is its first-level folder; files beside those folders have none. Classes are
    numbered in code point order of the training split's folders, or as `class_list` or `labels_file` say.
    With `classes`, folders say nothing: no image has a label.

    Raises:
        UslError: see `open_source`.
    """
    places = folders.split_folders(name, dir)
    if split not in places:
        raise UslError(
            f"{name}: no split '{split}' in {places['train'].parent if len(places) > 1 else places['train']};"
            f" there is {', '.join(places)} (a folder 'test' or 'val' beside 'train' would be the test split)"
        )
    if classes is not None and (labels_file or class_list):
        raise UslError(
            "--data.classes is for images without labels; leave out --data.labels_file and --data.class_list"
        )
    root = places[split]
    wanted = None if labels_file or classes is not None else folders.class_names(name, places["train"], class_list)
    listing = folders.scan(root, wanted)
    listing, skipped = _check_readable(listing, on_error)
    if labels_file is not None:
        prefix = f"{root.name}/" if len(places) > 1 else ""
        labels, names = _labels_of_csv(Path(labels_file), class_list, listing.files, prefix, tuple(places))
    elif classes is not None:
        labels, names = [-1] * len(listing.files), tuple(classes)
    else:
        names = wanted or _class_folders(places["train"], listing, split)
        labels = _labels_of_folders(listing, names, places["train"])
    return FolderSource(
        listing,
        torch.tensor(labels, dtype=torch.int64),
        names,
        name=name,
        split=split,
        image_size=image_size,
        channels=channels,
        skipped=skipped,
    )


def open_images(
    dir: str, *, image_size: int | None, channels: int | None, on_error: Literal["fail", "skip"]
) -> FolderSource:
    """All images below a folder, nested or flat, without labels; the arguments are those of `open_source`.

    Raises:
        UslError: no such folder, no image in it, or an unreadable one.
    """
    listing, skipped = _check_readable(folders.scan(Path(dir).expanduser()), on_error)
    return FolderSource(
        listing,
        torch.full((len(listing.files),), -1),
        name="folder",
        split="all",
        image_size=image_size,
        channels=channels,
        skipped=skipped,
    )


def _class_folders(train: Path, listing: FileList, split: str) -> tuple[str, ...]:
    """The training split's class folders, every one with an image."""
    if split != "train":
        return tuple(sorted(e.name for e in os.scandir(train) if e.is_dir() and not e.name.startswith(".")))
    classes = listing.class_folders()
    filled = {file.partition("/")[0] for file in listing.files if "/" in file}
    for one in classes:
        if one not in filled:
            raise UslError(f"{train / one}: class folder without an image; add images to it or remove it")
    return tuple(classes)


def _labels_of_folders(listing: FileList, classes: tuple[str, ...], train: Path) -> list[int]:
    number = {name: i for i, name in enumerate(classes)}
    labels = []
    for file in listing.files:
        first, slash, _ = file.partition("/")
        if slash and first not in number:
            raise UslError(f"{listing.root / file}: class {first} is not among those of {train}")
        labels.append(number[first] if slash else -1)
    return labels


def _labels_of_csv(
    path: Path, class_list: str | None, files: Sequence[str], prefix: str, splits: tuple[str, ...]
) -> tuple[list[int], tuple[str, ...]]:
    """Labels of `files` from a CSV `file,label`, and the class names.

    Paths in the CSV are relative to the data folder: with splits, they begin with `train/` and so on. A
    file that is not listed, or has an empty label, has no label. Classes are the labels that occur, sorted
    (as numbers if they all are), or those of the class list.
    """
    label_of = _read_csv(path)
    names = {label for label in label_of.values() if label}
    if class_list is not None:
        classes = folders.read_class_list(Path(class_list))
        for file, label in label_of.items():
            if label and label not in classes:
                raise UslError(f"{path}: {file} has label {label}, which is not in {class_list}")
    else:
        classes = tuple(sorted(names, key=(lambda n: (int(n), n)) if all(map(_is_number, names)) else None))
    known = {prefix + file for file in files}
    elsewhere = tuple(f"{split}/" for split in splits if f"{split}/" != prefix) if prefix else ()
    for file in label_of:
        if file not in known and not file.startswith(elsewhere):
            raise UslError(f"{path}: there is no image {file} in the folder (paths are relative to --data.dir)")
    number = {name: i for i, name in enumerate(classes)}
    return [number.get(label_of.get(prefix + file, ""), -1) for file in files], classes


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _read_csv(path: Path) -> dict[str, str]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UslError(f"{path}: cannot be read ({error})") from error
    if not rows or rows[0] != ["file", "label"]:
        raise UslError(f"{path}: first line is {','.join(rows[0]) if rows else 'missing'}, expected file,label")
    label_of: dict[str, str] = {}
    for line, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) != 2:
            raise UslError(f"{path}: line {line} has {len(row)} values, expected file,label")
        if row[0] in label_of:
            raise UslError(f"{path}: line {line} names {row[0]} a second time")
        label_of[row[0]] = row[1]
    return label_of


# files that cannot be read -------------------------------------------------------------------------------


def _check_readable(listing: FileList, on_error: str) -> tuple[FileList, tuple[str, ...]]:
    """Stop at an empty file, or leave out everything that cannot be decoded.

    Which images make up the set must be known before training, so `skip` decodes every file once; what it
    found is kept in the cache folder.
    """
    if on_error == "fail":
        empty = [file for file, size in zip(listing.files, listing.sizes, strict=True) if size == 0]
        if empty:
            more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
            raise UslError(
                f"{listing.root / empty[0]}: empty file{more}, expected an image; remove it or give"
                " --data.on_error skip"
            )
        return listing, ()
    skipped = unreadable(listing)
    if len(skipped) == len(listing.files):
        raise UslError(f"{listing.root}: none of its {len(skipped)} images can be read; first: {skipped[0]}")
    if skipped:
        named = ", ".join(skipped[:_LISTED]) + (", …" if len(skipped) > _LISTED else "")
        log.warning(
            "%s: %d of %d images cannot be read and are left out: %s",
            listing.root, len(skipped), len(listing.files), named,
        )  # fmt: skip
    return listing.without(set(skipped)), skipped

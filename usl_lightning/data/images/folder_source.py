"""Image folders as a source: decoded and resized when they are read."""

import copy
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from usl_lightning.base.documents import composed
from usl_lightning.base.errors import UslError, printable
from usl_lightning.base.files import read_once, sha256_of
from usl_lightning.data.images import folders, splits
from usl_lightning.data.images.decode import Interpolation, Probe, decode, probe
from usl_lightning.data.images.folders import FileList
from usl_lightning.data.images.rendering import WHITE, rendering_of
from usl_lightning.data.images.source import ImageSource
from usl_lightning.data.images.threads import map_in_order
from usl_lightning.data.images.unreadable import unreadable
from usl_lightning.data.images.walk import UnreadableImageError, read_file
from usl_lightning.labels.names import check_apart, checked, clean
from usl_lightning.labels.tables import is_number, label_cells, labels_in

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
        background: what transparent pixels are laid on, see `colour_of`.
        problems: files left out, and why.
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
        background: str = WHITE,
        problems: Mapping[str, str] | None = None,
    ) -> None:
        self.root, self.files, self.sizes = listing.root, listing.files, listing.sizes
        self._only = listing.only
        self.problems = dict(problems or {})
        self.labels, self.classes, self.skipped = labels, classes, tuple(self.problems)
        self.name, self.split, self.image_size, self.background = name, split, image_size, background
        self.rendering = rendering_of(background)
        self._interpolation: Interpolation = "bilinear"
        probes = self._probe(image_size is None, channels is None)
        self.channels = channels or (1 if all(p.grey for p in probes) else 3)
        self.height = image_size or probes[0].height
        self.width = image_size or probes[0].width

    def read(self, indices: Tensor) -> Tensor:
        """The images at `indices` as uint8 [b, c, h, w].

        Raises:
            UnreadableImageError: a file is damaged, gone, or has changed.
            UslError: one has another size where all must be equal.
        """
        images = torch.empty(len(indices), self.height, self.width, self.channels, dtype=torch.uint8)
        pixels = images.numpy()
        for slot, i in enumerate(indices.tolist()):
            content, where = self._content(i), self._where(i)
            image = decode(content, where, self.channels, self.image_size, self.background, self._interpolation)
            if image.shape != pixels.shape[1:]:
                self._refuse_size(i, image.shape[0], image.shape[1])
            pixels[slot] = image
        return images.permute(0, 3, 1, 2).contiguous()

    def read_batches(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """`read` of each batch, in order, on all cores."""
        return map_in_order(self.read, batches)

    def content_hashes(self, images: Iterable[int]) -> Iterator[str]:
        """`sha256:…` of the content of each image's file, in order, on all cores."""
        return map_in_order(lambda image: sha256_of(self._content(image)), images)

    def resized(self, size: int, interpolation: Interpolation) -> "FolderSource":
        other = copy.copy(self)
        other.image_size = other.height = other.width = size
        other.channels, other._interpolation = 3, interpolation
        return other

    def _fingerprint(self) -> str:
        assert self.files is not None
        return folders.fingerprint_of(self.files, self.sizes)

    def _where(self, i: int) -> str:
        assert self.files is not None
        return os.path.join(self.root, self.files[i])

    def _content(self, i: int) -> bytes:
        content = read_file(self._where(i))
        if len(content) != self.sizes[i]:
            folders.drop_index(self.root, self._only)
            raise UnreadableImageError(
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
        probes = [probe(self._content(i), self._where(i), self.background) for i in picks]
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
    image_size: int | None = None,
    channels: int | None = None,
    labels_file: str | None = None,
    class_list: str | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    classes: Sequence[str] | None = None,
    background: str = WHITE,
) -> FolderSource:
    """Open one split of a set of image files; the arguments are those of `open_source` and `Looks`.

    The class of an image is its first-level folder; files beside those folders have none. Classes are
    numbered in code point order of the training split's folders, or as `class_list` or `labels_file` say.
    With `classes`, folders say nothing: no image has a label.

    Raises:
        UslError: see `open_source`.
    """
    places = splits.split_folders(name, dir)
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
    by_folder = labels_file is None and classes is None
    wanted = splits.class_names(name, places["train"], class_list) if by_folder else None
    listing, problems = _check_readable(folders.scan(root, wanted), on_error)
    if labels_file is not None:
        base = Path(os.path.expanduser(str(dir))) if name == "folder" else root.parent
        prefixes = {one: _prefix(place, base) for one, place in places.items()}
        left_out = tuple(problems)
        labels, names = _labels_of_csv(Path(labels_file), class_list, listing.files, left_out, split, prefixes)
    elif classes is not None:
        labels, names = [-1] * len(listing.files), checked([clean(one) for one in classes], "--data.classes")
    else:
        class_folders = wanted or _class_folders(places["train"], listing, split)
        labels = _labels_of_folders(listing, class_folders, places["train"])
        names = checked(class_folders, f"{places['train']}")
    return FolderSource(
        listing,
        torch.tensor(labels, dtype=torch.int64),
        names,
        name=name,
        split=split,
        image_size=image_size,
        channels=channels,
        background=background,
        problems=problems,
    )


def open_images(
    dir: str,
    *,
    image_size: int | None,
    channels: int | None,
    on_error: Literal["fail", "skip"],
    background: str = WHITE,
) -> FolderSource:
    """All images below a folder, nested or flat, without labels; the arguments are those of `open_source`.

    Raises:
        UslError: no such folder, no image in it, or an unreadable one.
    """
    listing, problems = _check_readable(folders.scan(Path(os.path.expanduser(dir))), on_error)
    return FolderSource(
        listing,
        torch.full((len(listing.files),), -1),
        name="folder",
        split="all",
        image_size=image_size,
        channels=channels,
        background=background,
        problems=problems,
    )


def _prefix(place: Path, base: Path) -> str:
    """What paths relative to `base` begin with in a folder below it."""
    return "" if place == base else f"{place.relative_to(base).as_posix()}/"


def _class_folders(train: Path, listing: FileList, split: str) -> tuple[str, ...]:
    """The names of the training split's class folders, every one with an image, in composed form."""
    if split != "train":
        listing = folders.scan(train)
    folder_of: dict[str, str] = {}
    for folder in sorted(listing.class_folders(), key=composed):
        other = folder_of.setdefault(composed(folder), folder)
        if other != folder:
            raise UslError(f"{train}: {other!a} and {folder!a} are one name, written in two ways; rename one")
    splits.check_no_splits(train, listing)
    splits.check_classes(train, folder_of)
    filled = {file.partition("/")[0] for file in listing.files if "/" in file}
    for folder in folder_of.values():
        if folder not in filled and split == "train":
            raise UslError(f"{train / folder}: class folder without an image; add images to it or remove it")
    return tuple(folder_of)


def _labels_of_folders(listing: FileList, classes: tuple[str, ...], train: Path) -> list[int]:
    number = {name: i for i, name in enumerate(classes)}
    labels = []
    for file in listing.files:
        first, slash, _ = file.partition("/")
        if slash and composed(first) not in number:
            raise UslError(f"{listing.root / file}: class {first} is not among those of {train}")
        labels.append(number[composed(first)] if slash else -1)
    return labels


def _labels_of_csv(
    path: Path,
    class_list: str | None,
    files: Sequence[str],
    left_out: Sequence[str],
    split: str,
    prefixes: Mapping[str, str],
) -> tuple[list[int], tuple[str, ...]]:
    """Labels of `files` from a CSV `file,label`, and the class names.

    Paths in the CSV are relative to the data folder: with splits, they begin with `train/` and so on. A
    file that is not listed, or has no label there, has none. Classes are the labels that occur, sorted (as
    numbers if they all are), or those of the class list.
    """
    cells = read_once("labels", path, lambda: label_cells(path))
    listed: tuple[str, ...] = ()
    if class_list is not None:
        names = splits.read_class_list(Path(class_list), {cell for _, cell in cells.values()})
        listed = checked(names, class_list)
    label_of = labels_in(path, cells, listed)
    classes = listed or _classes_of(path, label_of.values())
    paths = [composed(prefixes[split] + file) for file in files]
    known = set(paths)
    elsewhere = tuple(composed(prefix) for prefix in prefixes.values() if prefix != prefixes[split])
    elsewhere += tuple(composed(prefixes[split] + file) for file in left_out)  # files, and folders with `/`
    for file, label in label_of.items():
        if label and label not in classes:
            raise UslError(
                f"{path}: {printable(file, 200)} has label {printable(label, 80)}, which is not in {class_list}"
            )
        if file not in known and not file.startswith(elsewhere):
            missing = printable(file, 200)
            raise UslError(f"{path}: there is no image {missing} in the folder (paths are relative to --data.dir)")
    number = {name: i for i, name in enumerate(classes)}
    return [number.get(label_of.get(one) or "", -1) for one in paths], classes


def _classes_of(path: Path, labels: Iterable[str | None]) -> tuple[str, ...]:
    names = dict.fromkeys(label for label in labels if label)  # in their order, so that a refusal is always the same
    try:
        check_apart(names)
    except UslError as error:
        raise UslError(f"{path}: {error}, or name the classes with --data.class_list") from error
    return tuple(sorted(names, key=(lambda n: (int(n), n)) if all(map(is_number, names)) else None))


# files that cannot be read -------------------------------------------------------------------------------


def _check_readable(listing: FileList, on_error: str) -> tuple[FileList, dict[str, str]]:
    """Stop at what cannot be an image, or leave out everything that cannot be decoded: the list, and what is not in it.

    Which images make up the set must be known before training, so `skip` decodes every file once; what it
    found is kept in the cache folder.
    """
    if on_error == "fail":
        wrong = dict(listing.odd)
        wrong |= {
            f: "empty file, expected an image" for f, n in zip(listing.files, listing.sizes, strict=True) if not n
        }
        if wrong:
            first, problem = next(iter(wrong.items()))
            more = f" (and {len(wrong) - 1} more like it)" if len(wrong) > 1 else ""
            raise UslError(f"{listing.root / first}: {problem}{more}; remove it or give --data.on_error skip")
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

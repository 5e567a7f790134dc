"""The files of a split of a set of image files, and their labels, before any is decoded. Standard library only."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from usl_lightning.base.documents import composed
from usl_lightning.base.errors import UslError, printable
from usl_lightning.base.files import read_once
from usl_lightning.data.images import folders, splits
from usl_lightning.data.images.folders import FileList
from usl_lightning.labels.names import check_apart, checked, clean
from usl_lightning.labels.tables import is_number, label_cells, labels_in


@dataclass(frozen=True)
class LabelledFiles:
    """The images of a split.

    Attributes:
        listing: the files, in order.
        labels: of each, -1 where unknown.
        classes: names in label order.
        problems: files left out, and why.
    """

    listing: FileList
    labels: list[int]
    classes: tuple[str, ...]
    problems: Mapping[str, str] = field(default_factory=dict)


def list_folder(
    name: str,
    split: str,
    *,
    dir: str | None,
    labels_file: str | None,
    class_list: str | None,
    classes: Sequence[str] | None,
    readable: Callable[[FileList], tuple[FileList, Mapping[str, str]]],
) -> LabelledFiles:
    """List one split of a set of image files.

    The class of an image is its first-level folder; files beside those folders have none. Classes are
    numbered in code point order of the training split's folders, or as `class_list` or `labels_file` say.
    Where shards have labels, those count in place of folders.
    With `classes`, neither says anything: no image has a label.

    Args:
        name, split, dir, labels_file, class_list, classes: see `open_source` and `Looks`.
        readable: what is taken of a list, and what is not, and why; see `check_readable`.

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
    listing, problems = readable(folders.scan(root, wanted))
    if labels_file is not None:
        base = Path(os.path.expanduser(str(dir))) if name == "folder" else root.parent
        prefixes = {one: _prefix(place, base) for one, place in places.items()}
        labels, names = _labels_of_csv(Path(labels_file), class_list, listing.files, tuple(problems), split, prefixes)
    elif classes is not None:
        labels, names = [-1] * len(listing.files), checked([clean(one) for one in classes], "--data.classes")
    elif folders.labels_in_shards(places["train"]):
        labels, names = _labels_of_shards(listing, places["train"], class_list)
    else:
        class_folders = wanted or _class_folders(places["train"], listing, split)
        labels = _labels_of_folders(listing, class_folders, places["train"])
        names = checked(class_folders, f"{places['train']}")
    return LabelledFiles(listing, labels, names, problems)


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


def _labels_of_shards(listing: FileList, train: Path, class_list: str | None) -> tuple[list[int], tuple[str, ...]]:
    """Labels that stand in shards, and the class names: those that the shards name, or of a list, or all that occur.

    Numbers are the places of names in a class list whose names are none.
    """
    known = (listing if listing.root == train else folders.scan(train)).packed
    packed = listing.packed
    assert known is not None
    assert known.texts is not None
    listed: tuple[str, ...] = ()
    if class_list is not None:
        listed = checked(splits.read_class_list(Path(class_list), known.texts), class_list)
    name_of = _names_of_texts(train, known.texts, known.named, listed)
    classes = listed or (checked(known.texts, f"{train}") if known.named else _classes_of(train, name_of.values()))
    number: dict[str | None, int] = {name: i for i, name in enumerate(classes)}
    texts = () if packed is None or packed.texts is None else packed.texts
    codes = []
    for text in texts:
        name = name_of.get(text, text)
        if name is not None and name not in number:
            raise UslError(f"{listing.root}: label {printable(text, 80)} is not among those of {class_list or train}")
        codes.append(-1 if name is None else number[name])
    codes.append(-1)  # of files without one
    return [codes[code] for code in packed.labels] if packed is not None else [-1] * len(listing.files), classes


def _names_of_texts(train: Path, texts: Sequence[str], named: bool, listed: Sequence[str]) -> dict[str, str | None]:
    """The class that each label in shards means; None is no label."""
    if named:
        return {text: clean(text) for text in texts}
    if listed and all(map(is_number, texts)) and not any(map(is_number, listed)):
        return {text: listed[int(text)] if int(text) < len(listed) else text for text in texts}
    cells = {text: (0, clean(text)) for text in texts}
    try:
        return labels_in(train, cells, listed)
    except UslError as error:
        raise UslError(str(error).replace(": line 0: ", ": label ")) from error


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

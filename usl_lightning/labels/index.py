"""The label index: which images were chosen, and the labels they were given.

One file, read and written by every stage. Neither torch nor Lightning is imported here, so that a wrong
file is refused at once. Only entries of an index ever reach a loss.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from usl_lightning.base.documents import composed
from usl_lightning.base.errors import UslError, printable
from usl_lightning.base.files import read_once
from usl_lightning.labels import formats
from usl_lightning.labels.checks import validate
from usl_lightning.labels.entries import DatasetId, Entries, refuse, short


@dataclass(frozen=True)
class LabelIndex(Entries):
    """Chosen images in order of choice; see `Entries` for what it holds."""

    @property
    def unlabelled(self) -> int:
        """How many entries have no label yet, but those that are `unsure`."""
        return sum(label is None for label in self.labels) - len(self.unsure)

    @property
    def labelled(self) -> int:
        """How many entries have a label."""
        return sum(label is not None for label in self.labels)

    @property
    def answered(self) -> "LabelIndex":
        """The same, with all that have no label yet marked `unsure`: training leaves them out."""
        missing = {index for index, label in zip(self.indices, self.labels, strict=True) if label is None}
        return replace(self, unsure=tuple(index for index in self.indices if index in missing))

    @classmethod
    def read(cls, path: str | Path) -> "LabelIndex":
        """Read `.json` (this format or a plain list), `.npy` or `.csv` (`Index,ImageID`); once a stage.

        Raises:
            UslError: the file is missing or damaged, or an entry is wrong; the line names file and entry.
        """
        return read_once("label index", path, lambda: cls._read(path))

    @classmethod
    def _read(cls, path: str | Path) -> "LabelIndex":
        index = cls(**vars(formats.read(Path(path))))
        validate(index, str(path))
        return index

    def write(self, path: str | Path, known: "LabelIndex | None" = None) -> None:
        """Write atomically, in the format of the suffix; `.npy` and `.csv` carry no labels.

        Args:
            path: of the file.
            known: one that was read or written before; what this one shares with it is not looked at again.

        Raises:
            UslError: an entry is wrong, the suffix is not known, or the file cannot be written.
        """
        validate(self, str(path), known)
        formats.write(self, Path(path))

    def check(self, dataset: DatasetId, classes: Sequence[str] = (), files: Sequence[str] | None = None) -> None:
        """Make sure that this index belongs to `dataset`.

        Args:
            dataset: the data set it is to be used with.
            classes: that data set's class names; empty: not known, not checked. People who label may add some.
            files: that data set's files, if it is an image folder.

        Raises:
            UslError: another data set, an index or a label out of range, another class list or another file.
        """
        where = self.path or "label index"
        if self.dataset is not None and (self.dataset.fingerprint, self.dataset.size) != (
            dataset.fingerprint,
            dataset.size,
        ):
            raise UslError(
                f"{where}: chosen from {self.dataset}, but the data is {dataset.beside(self.dataset)}; use the "
                "data it was chosen from, or select again"
            )
        for i, index in enumerate(self.indices):
            if index >= dataset.size:
                refuse(where, i, f"index {index} is out of range, {dataset} ends before it")
        if classes and self.classes and tuple(classes) != self.classes[: len(classes)]:
            raise UslError(
                f"{where}: its {len(self.classes)} classes ({_some(self.classes)}) are not the data set's"
                f" {len(classes)} ({_some(classes)}); label it again with these"
            )
        known = max(len(classes), len(self.classes))
        for i, label in enumerate(self.labels):
            if classes and label is not None and label >= known:
                refuse(where, i, f"label {label} is out of range, {dataset} has {known} classes")
        if files is not None and self.files is not None:
            _check_files(where, self, files)

    def placed(
        self,
        dataset: DatasetId,
        classes: Sequence[str] = (),
        files: Sequence[str] | None = None,
        hashes_of: Callable[[Sequence[int]], Iterable[str]] | None = None,
    ) -> "LabelIndex":
        """This index as one of `dataset`, at the positions that its images have there.

        With `hashes` the chosen files alone are looked at, and the folder may have grown since. Without, see `check`.

        Args:
            dataset, classes, files: see `check`.
            hashes_of: `sha256:…` of the content of the files at some positions of `files`.

        Raises:
            UslError: see `check`; a chosen file is missing or has another content than when it was chosen.
        """
        if not self.hashes or files is None or hashes_of is None:
            self.check(dataset, classes, files)
            return self
        same = self.dataset is not None and self.dataset.fingerprint == dataset.fingerprint
        index = self if same else self._moved(dataset, files)
        index.check(dataset, classes, files)
        for i, (found, expected) in enumerate(zip(hashes_of(index.indices), index.hashes, strict=True)):
            if found != expected:
                where, file = self.path or "label index", printable(files[index.indices[i]], 200)
                advice = "put that file back, use the folder it was chosen from, or select again"
                refuse(where, i, f"{file} has another content than when it was chosen; {advice}")
        return index

    def _moved(self, dataset: DatasetId, files: Sequence[str]) -> "LabelIndex":
        """The index with the positions of its files among those of another state of the folder."""
        where = self.path or "label index"
        if self.followers:
            raise UslError(f"{where}: its followers are of {self.dataset}, but the data is {dataset}; select again")
        position_of = {composed(file): position for position, file in enumerate(files)}
        moved: dict[int, int] = {}
        for i, (position, file) in enumerate(zip(self.indices, self.files or (), strict=True)):
            if composed(file) not in position_of:
                refuse(
                    where, i, f"{short(file)} is not in the data; put it back, use the folder it was chosen from, or"
                    " select again",
                )  # fmt: skip
            moved[position] = position_of[composed(file)]
        return replace(
            self,
            dataset=dataset,
            indices=tuple(moved.values()),
            files=tuple(files[position] for position in moved.values()),
            unsure=tuple(moved[position] for position in self.unsure),
            bulk=tuple(moved[position] for position in self.bulk),
            added=tuple(moved[position] for position in self.added),
            soft={},  # of the images of then
        )

    def with_labels(self, labels: Sequence[int], classes: Sequence[str] = ()) -> "LabelIndex":
        """This index with the data set's labels of *these indices alone*, as the formats without labels need.

        Args:
            labels: one label for each entry, -1 where the data set has none:
                `source.labels[list(index.indices)].tolist()`.
            classes: the data set's class names.

        Raises:
            UslError: the data set has no label for an entry.
        """
        missing = sum(label < 0 for label in labels)
        if missing or len(labels) != len(self):
            where = self.path or "label index"
            raise UslError(
                f"{where}: carries no labels, and the data set has none for {missing} of its {len(self)}"
                " images; give a JSON label index with labels"
            )
        return replace(self, labels=tuple(int(label) for label in labels), classes=tuple(classes))

    def for_training(self) -> tuple[list[int], list[int]]:
        """(indices, labels) of the labelled entries, all but those that are `unsure`; then of their followers.

        Raises:
            UslError: the index is empty, some images have no label yet, or all are `unsure`.
        """
        where = self.path or "label index"
        if not self.indices:
            raise UslError(f"{where}: no entry; select at least one image")
        if self.unlabelled:
            raise UslError(
                f"{where}: {self.unlabelled} of {len(self)} images have no label yet; give them theirs with "
                f"usl label {where}"
            )
        known = [(index, label) for index, label in zip(self.indices, self.labels, strict=True) if label is not None]
        if not known:
            raise UslError(f"{where}: all {len(self)} images are marked not sure; expected at least one label")
        for followers, label in zip(self.followers, self.labels, strict=False):
            known += [(index, label) for index in followers if label is not None]
        return [index for index, _ in known], [label for _, label in known]

    def union(self, other: "LabelIndex") -> "LabelIndex":
        """The entries of this index, then those of `other` that are new; a label beats no label.

        An image follows one entry at most, the first's before the other's, and none if it is an entry itself.

        Raises:
            UslError: the two are of different data sets or classes, disagree on a label, or one has an index outside
                the other's data set; the line names its file.
        """
        self._check_same(other)
        theirs = other.path or "the other label index"
        dataset = self.dataset or other.dataset
        unsure, singly = {*self.unsure, *other.unsure}, self._singly | other._singly
        picks = self._picks | other._picks
        for part in (self, other):
            if dataset is not None:
                part.check(dataset)
        label_of = dict(zip(self.indices, self.labels, strict=True))
        file_of = dict(zip(self.indices, self.files or (), strict=False))
        hash_of = dict(zip(self.indices, self.hashes, strict=False))
        for i, (index, label) in enumerate(zip(other.indices, other.labels, strict=True)):
            known = label_of.get(index)
            if known is not None and label is not None and known != label:
                refuse(theirs, i, f"image {index} has label {label}, but {known} in the first")
            label_of[index] = label if known is None else known
            if other.files is not None:
                file_of.setdefault(index, other.files[i])
            if other.hashes and hash_of.setdefault(index, other.hashes[i]) != other.hashes[i]:
                refuse(theirs, i, f"{file_of[index]} had another content than for the first")
        complete = len(file_of) == len(label_of)
        return LabelIndex(
            dataset,
            {"name": "union", "of": [self.method, other.method]},
            tuple(label_of),
            tuple(label_of.values()),
            self.classes or other.classes,
            tuple(file_of[index] for index in label_of) if complete else None,
            unsure=tuple(index for index, label in label_of.items() if label is None and index in unsure),
            followers=_followers_of_both(self, other, tuple(label_of)),
            hashes=tuple(hash_of[index] for index in label_of) if len(hash_of) == len(label_of) else (),
            bulk=tuple(index for index, label in label_of.items() if label is not None and index not in singly),
            added=tuple(index for index in label_of if index not in picks),
        )

    def difference(self, other: "LabelIndex") -> "LabelIndex":
        """The entries of this index that are not in `other`.

        Raises:
            UslError: the two are of different data sets or classes.
        """
        self._check_same(other)
        left = self._without(set(other.indices))
        return replace(left, method={"name": "difference", "of": [self.method, other.method]}, path=None, soft={})

    def with_added(self, images: Sequence[int], files: Sequence[str] = (), hashes: Sequence[str] = ()) -> "LabelIndex":
        """This index with images that were not chosen, which are yet to be given labels.

        Args:
            images: positions that are no entries yet; they follow no entry any more.
            files: of each, if this index has `files`.
            hashes: of each, if this index has `hashes`.
        """
        taken, more = set(images), len(images)
        followers = tuple(tuple(index for index in each if index not in taken) for each in self.followers)
        return replace(
            self,
            indices=(*self.indices, *images),
            labels=(*self.labels, *(None,) * more),
            files=None if self.files is None else (*self.files, *files),
            hashes=(*self.hashes, *hashes) if self.hashes else (),
            followers=(*followers, *((),) * more) if followers else (),
            added=(*self.added, *images),
        )

    @property
    def settled(self) -> "LabelIndex":
        """This index without those of its `added` that have no label: nobody asks for one."""
        labelled = {index for index, label in zip(self.indices, self.labels, strict=True) if label is not None}
        gone = set(self.added) - labelled
        return self._without(gone) if gone else self

    def _without(self, gone: set[int]) -> "LabelIndex":
        keep = [i for i, index in enumerate(self.indices) if index not in gone]
        return replace(
            self,
            indices=tuple(self.indices[i] for i in keep),
            labels=tuple(self.labels[i] for i in keep),
            files=None if self.files is None else tuple(self.files[i] for i in keep),
            unsure=tuple(index for index in self.unsure if index not in gone),
            followers=tuple(
                tuple(index for index in self.followers[i] if index not in gone) for i in keep if self.followers
            ),
            hashes=tuple(self.hashes[i] for i in keep if self.hashes),
            bulk=tuple(index for index in self.bulk if index not in gone),
            added=tuple(index for index in self.added if index not in gone),
        )

    @property
    def picks(self) -> "LabelIndex":
        """This index without those that were `added`."""
        return self._without(set(self.added)) if self.added else self

    @property
    def _picks(self) -> set[int]:
        return set(self.indices) - set(self.added)

    @property
    def _singly(self) -> set[int]:
        """The images that have a label which somebody gave to them alone."""
        return {i for i, label in zip(self.indices, self.labels, strict=True) if label is not None} - {*self.bulk}

    def _check_same(self, other: "LabelIndex") -> None:
        mine, theirs = self.path or "label index", other.path or "the other label index"
        if self.dataset and other.dataset and self.dataset.fingerprint != other.dataset.fingerprint:
            raise UslError(f"{mine} was chosen from {self.dataset}, {theirs} from {other.dataset.beside(self.dataset)}")
        if self.classes and other.classes and self.classes != other.classes:
            raise UslError(f"{mine} has classes {_some(self.classes)}; {theirs} {_some(other.classes)}")


# checks --------------------------------------------------------------------------------------------------


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _followers_of_both(first: LabelIndex, second: LabelIndex, entries: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    if not (first.followers or second.followers):
        return ()
    taken, followers_of = set(entries), dict[int, list[int]]()
    for part in (first, second):
        for entry, followers in zip(part.indices, part.followers, strict=False):
            free = [image for image in followers if image not in taken]
            followers_of.setdefault(entry, []).extend(free)
            taken.update(free)
    return tuple(tuple(followers_of.get(entry, ())) for entry in entries)


def _check_files(where: str, index: LabelIndex, files: Sequence[str]) -> None:
    """Each entry's file is the data set's at that index; an `ImageID` may lack folders and suffix."""
    assert index.files is not None
    exact = index.dataset is not None
    for i, (position, file) in enumerate(zip(index.indices, index.files, strict=True)):
        actual, file = PurePosixPath(composed(files[position])), composed(file)
        names = {str(actual), actual.name, actual.stem, str(actual.with_suffix("")), str(position)}
        if file != str(actual) and (exact or file not in names):
            refuse(where, i, f"index {position} is {short(file)} there, but {actual} in the data")


def answers_so_far(index: LabelIndex) -> str:
    """`"12 of 40 are done"`, and how many beside them; empty if none is."""
    done = index.chosen - index.unlabelled
    beside = f", {len(index.added)} beside them" if index.added else ""
    return f"{done} of {index.chosen} are done{beside}" if done or beside else ""


def images_to_label(index: LabelIndex) -> str:
    """`"40 images to label"`."""
    return "1 image to label" if index.unlabelled == 1 else f"{index.unlabelled} images to label"

"""The answers of those who label: every one is in the label file before it counts. Imports nothing heavy."""

import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from usl_lightning.base.atomic import open_lock, real_path
from usl_lightning.base.errors import UslError
from usl_lightning.labels import LabelIndex
from usl_lightning.labels.names import NOT_SURE, check_length, check_name, check_new, clean

Answer = int | Literal["unsure"] | None
"""A class number; "unsure", from who has looked and cannot tell; None, no answer yet."""

Check = Callable[[LabelIndex], None]
"""Raises if the index is not the one that a change is for."""

Beside = Callable[[int], tuple[str, str]]
"""Image that was not chosen -> its file and the hash of that, empty where there is none.

Raises:
    UslError: it is no image of the data set that can be shown.
"""


class ChangedMeanwhileError(UslError):
    """The label file is not any more what the page showed."""


class AnsweredMeanwhileError(ChangedMeanwhileError):
    """Somebody else has answered since the image was shown."""


class LabelStore:
    """A label file that several windows, servers and imports can change at once.

    The file is the only state. A change reads it, checks itself against it and replaces it, under a lock that holds
    between processes too: no answer is lost, and a kill at any moment leaves the file as it was before or after.

    Args:
        path: a label index in JSON, of a known data set.

    Raises:
        UslError: the file is missing, damaged, or of a format that cannot hold labels.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._threads = threading.Lock()
        self._known: tuple[str, LabelIndex] | None = None  # version, content
        if self.read().dataset is None or path.suffix.lower() != ".json":
            raise UslError(f"{path}: has no room for labels; expected the labels.json that `usl select` wrote")

    def read(self) -> LabelIndex:
        """The file as it is now."""
        known = self._known
        version = self.version if known is not None else ""  # before it is read: what changes meanwhile is read again
        if known is None or known[0] != version:
            index = LabelIndex.read(self.path)
            known = self._known = version, index
        return known[1]

    @property
    def version(self) -> str:
        """A text that is another one after every change.

        Raises:
            UslError: the file is gone.
        """
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise UslError(f"{self.path}: cannot be read ({error.strerror}); was it moved?") from error
        return f"{status.st_ino:x}-{status.st_mtime_ns:x}"

    def answer(
        self,
        image: int,
        answer: Answer,
        seen: Answer,
        check: Check | None = None,
        beside: Beside | None = None,
    ) -> LabelIndex:
        """Note what one image is.

        Args:
            image: its position in the data set, one of the index's.
            answer: what it is; of an image that was not chosen, all but a class means that it is left out again.
            seen: the answer it had when it was shown, so that nobody overwrites what they have not seen.
            check: raises if the file is not the one that the answer is for; nothing changes the file meanwhile.
            beside: tells of images that were not chosen, which then are taken too.

        Returns:
            The file's new content.

        Raises:
            AnsweredMeanwhileError: it has another answer by now, which is kept; one that was taken back is none.
            UslError: no such image or class, or the file cannot be written.
        """
        with self._changing(check) as index:
            index = _with_all(index, (image,), beside)
            now = answers_of(index)[image]
            if now not in (seen, answer, None):
                raise AnsweredMeanwhileError(f"{name_of(now, index)} was answered in another window, and that stays")
            return self._write(with_answers(index, {image: answer}))

    def answer_row(
        self,
        images: Sequence[int],
        answer: int | None,
        check: Check | None = None,
        beside: Beside | None = None,
    ) -> LabelIndex:
        """Note that several images without an answer are all of one class; or, with None, take that back.

        Those that have an answer by now keep it.

        Args:
            images: positions in the data set, each of the index's.
            answer: the class. None: of those that still have the answer that a row gave them, take it away.
            check, beside: see `answer`.

        Returns:
            The file's new content.

        Raises:
            UslError: no such image or class, or the file cannot be written.
        """
        with self._changing(check) as index:
            index = _with_all(index, images, beside)
            known, bulk = answers_of(index), set(index.bulk)
            if answer is None:
                return self._write(with_answers(index, {image: None for image in images if image in bulk}))
            news = [image for image in images if known[image] is None]
            return self._write(with_answers(index, dict.fromkeys(news, answer), bulk=True))

    def change_class(
        self, number: int, name: str | None, *, merge: bool = False, check: Check | None = None
    ) -> LabelIndex:
        """Give a class another name, make it part of another class, or delete it.

        Args:
            number: the class.
            name: its new one; with `merge` that of the class it becomes part of. None: delete it, and its images have
                no answer.
            merge: whether the new name is that of another class.
            check: see `answer`.

        Returns:
            The file's new content; classes after one that is gone move up.

        Raises:
            UslError: no such class, or a name that it cannot have.
        """
        with self._changing(check) as index:
            return self._write(with_changed_class(index, number, name, merge=merge))

    def add_class(self, name: str, check: Check | None = None) -> LabelIndex:
        """Add a class after those there are; one of that name stays what it is.

        Args:
            name: of the class.
            check: see `answer`.

        Returns:
            The file's new content.

        Raises:
            UslError: the name is empty, too long, looks like another class's, or means something else.
        """
        with self._changing(check) as index:
            return self._write(with_class(index, name))

    def merge(self, answers: Mapping[int, Answer], classes: tuple[str, ...]) -> LabelIndex:
        """Note many answers at once; they win over those there are.

        Args:
            answers: position in the data set -> answer, numbered by `classes`.
            classes: the file's, and perhaps more.

        Raises:
            UslError: the classes changed meanwhile, or the file cannot be written.
        """
        with self._changing() as index:
            if index.classes != classes[: len(index.classes)]:
                raise UslError(f"{self.path}: its classes were changed meanwhile; repeat the command")
            known = answers_of(index)
            news = {image: answer for image, answer in answers.items() if known.get(image, answer) != answer}
            return self._write(with_answers(replace(index, classes=classes), news))

    @contextmanager
    def _changing(self, check: Check | None = None) -> Iterator[LabelIndex]:
        try:
            real = real_path(self.path)  # whichever link leads to it, the lock is one
            lock = open_lock(real.with_name(f".{real.name}.lock"))
        except OSError as error:
            raise UslError(f"{self.path.parent}: cannot be written ({error.strerror})") from error
        with self._threads, lock:
            with suppress(OSError):  # a file system without locks: the threads of one server still take turns
                fcntl.flock(lock, fcntl.LOCK_EX)
            index = self.read()
            if check is not None:
                check(index)
            yield index

    def _write(self, index: LabelIndex) -> LabelIndex:
        index = index.settled
        index.write(self.path, None if self._known is None else self._known[1])
        self._known = self.version, index
        return index


def answers_of(index: LabelIndex) -> dict[int, Answer]:
    """Position in the data set -> answer, in the order of choice."""
    unsure = set(index.unsure)
    return {
        image: "unsure" if image in unsure else label for image, label in zip(index.indices, index.labels, strict=True)
    }


def _with_all(index: LabelIndex, images: Sequence[int], beside: Beside | None) -> LabelIndex:
    """The index with those of these images that it does not hold, if what is not chosen may be answered."""
    news = sorted(set(images) - set(index.indices), key=images.index)
    if not news:
        return index
    if beside is None:
        raise UslError(f"image {news[0]} is not one of the {len(index)} to label")
    files, hashes = zip(*map(beside, news), strict=True)
    return index.with_added(news, files, hashes)


def with_answers(index: LabelIndex, answers: Mapping[int, Answer], *, bulk: bool = False) -> LabelIndex:
    """The index with these answers in place of those it has.

    Args:
        index: any.
        answers: position in the data set -> answer.
        bulk: whether they were given to all of these at a glance.

    Raises:
        UslError: there is no such class.
    """
    for answer in answers.values():
        if isinstance(answer, int) and not 0 <= answer < len(index.classes):
            raise UslError(f"there is no class {answer}; expected 0 to {len(index.classes) - 1}")
    place_of = {image: place for place, image in enumerate(index.indices)}
    here, labels = {image: answer for image, answer in answers.items() if image in place_of}, list(index.labels)
    for image, answer in here.items():
        labels[place_of[image]] = answer if isinstance(answer, int) else None
    unsure = (set(index.unsure) - set(here)) | {image for image, answer in here.items() if answer == "unsure"}
    at_a_glance = (set(index.bulk) - set(here)) | {i for i, answer in here.items() if bulk and isinstance(answer, int)}
    return replace(
        index,
        labels=tuple(labels),
        unsure=tuple(sorted(unsure, key=place_of.__getitem__)),
        bulk=tuple(sorted(at_a_glance, key=place_of.__getitem__)),
    )


def with_class(index: LabelIndex, name: str) -> LabelIndex:
    """The index with one more class, or as it is if it has that one.

    Raises:
        UslError: see `LabelStore.add_class`.
    """
    name = clean(name)
    if name in index.classes:
        return index
    return replace(index, classes=(*index.classes, _new_name(name, index.classes)))


def with_changed_class(index: LabelIndex, number: int, name: str | None, *, merge: bool = False) -> LabelIndex:
    """The index with a class that has another name, is part of another class, or is gone.

    Raises:
        UslError: see `LabelStore.change_class`.
    """
    if not 0 <= number < len(index.classes):
        raise UslError(f"there is no class {number}; expected 0 to {len(index.classes) - 1}")
    others = index.classes[:number] + index.classes[number + 1 :]
    name = None if name is None else clean(name)
    if name is not None and not merge:
        if name in others:
            raise UslError(f"there is a class '{name}'; merge the two, or choose another name")
        return replace(index, classes=(*others[:number], _new_name(name, others), *others[number:]))
    if name is not None and name not in others:
        raise UslError(f"there is no other class '{name}' to merge '{index.classes[number]}' with")
    place = {old: new for new, old in enumerate(i for i in range(len(index.classes)) if i != number)}
    becomes = None if name is None else others.index(name)
    labels = tuple(None if label is None else place.get(label, becomes) for label in index.labels)
    gone = {image for image, label in zip(index.indices, labels, strict=True) if label is None}
    return replace(index, classes=others, labels=labels, bulk=tuple(image for image in index.bulk if image not in gone))


def _new_name(name: str, others: Sequence[str]) -> str:
    check_length(name)
    check_name(name)
    check_new(name, others)
    return name


def name_of(answer: Answer, index: LabelIndex) -> str:
    """An answer as people read it."""
    if answer is None:
        return "no answer"
    return NOT_SURE if answer == "unsure" else index.classes[answer]

"""The classifier behind the labelling page: it learns from every answer, in threads of its own. No torch until then."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from usl_lightning.base.errors import UslError
from usl_lightning.labelling.similar import SimilarImages
from usl_lightning.labelling.store import LabelStore
from usl_lightning.labels import LabelIndex

if TYPE_CHECKING:
    from usl_lightning.stage.guesses import Guesser

log = logging.getLogger(__name__)

GROWN = 1.05
"""How many times as many answers the quality is judged anew with."""


DOUBTFUL = 2.0
"""How many times as likely another class has to be, by the other labels, for an answer to be doubtful."""


ENDING = 10.0
"""Seconds that are waited for the end of a thread, at most."""


@dataclass(frozen=True)
class Guesses:
    """What the answers in one state of the label file say of its images, and of others with features.

    Attributes:
        version: of the file.
        index: its content.
        images: int64 [n], those of the file in its order, then the others.
        p: [n, classes], probabilities; NaN of images without features, and of all before two classes have answers.
    """

    version: str
    index: LabelIndex
    images: NDArray[np.int64]
    p: NDArray[np.float32]

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which images have a guess."""
        return np.isfinite(self.p).all(1) & (self.p.shape[1] > 0)


@dataclass(frozen=True)
class Quality:
    """How good the guesses are.

    Attributes:
        number: another one after every judgement.
        enough: of the accuracy and what more would bring, see `Guesser.judge`; None: answers are too few to tell.
        likely: image whose label is doubtful -> how likely it is by the others' labels; no class number, so that it
            stays true.
        label_of: image -> the name of the class that it was judged with.
    """

    number: int
    enough: Mapping[str, float] | None
    likely: Mapping[int, float]
    label_of: Mapping[int, str]


class Guessing:
    """Guesses that follow the label file.

    Args:
        store: the label file.
        similar: features of its images; those that are not known by then have no guess.
    """

    def __init__(self, store: LabelStore, similar: SimilarImages) -> None:
        self.store, self.similar = store, similar
        self.guesses: Guesses | None = None
        self.quality: Quality | None = None
        self._guesser: Guesser | None = None
        self._news, self._stopped, self._wanted = threading.Condition(), False, True
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._guess_on, self._judge_on)]
        self._judged: tuple[int, tuple[str, ...]] = 0, ()  # answers, classes

    def start(self) -> "Guessing":
        """Begin to follow the file."""
        for thread in self._threads:
            thread.start()
        return self

    def once(self) -> Guesses:
        """The guesses by the file as it is, made here and now, of a classifier that its labels have judged."""
        from usl_lightning.stage.guesses import Guesser

        self._guesser, version, index = Guesser(self.similar.features, self.similar.others), "", self.store.read()
        _, rows, labels, chosen = self._known(index)
        if len(set(labels)) > 1:
            self._guesser.judge(rows, labels, len(index.classes), chosen)
        return self._learned(version, index)

    def end(self) -> None:
        """Begin nothing more, and let nobody wait for it."""
        with self._news:
            self._stopped = True
            self._news.notify_all()

    def stop(self) -> None:
        """End, when what is under way is done: the process must not end amid it."""
        self.end()
        for thread in self._threads:
            thread.join(ENDING)

    def changed(self) -> None:
        """Say that the file has changed."""
        with self._news:
            self._wanted = True
            self._news.notify_all()

    def after(self, version: str, seconds: float) -> Guesses | None:
        """The guesses of a state of the file, or of a later one; those that there are after so many seconds."""
        self.changed()
        end = time.monotonic() + seconds
        with self._news:
            while self.guesses is None or self.guesses.version not in (version, self._version()):
                left = end - time.monotonic()
                if self._stopped or left <= 0:
                    break
                self._news.wait(left)
            return self.guesses

    def _version(self) -> str:
        try:
            return self.store.version
        except UslError:
            return ""

    def _guess_on(self) -> None:
        from usl_lightning.stage.guesses import Guesser

        self._guesser = Guesser(self.similar.features, self.similar.others)
        while self._next(lambda: self._wanted):
            self._wanted = False
            try:
                version = self.store.version  # before it is read: what changes meanwhile is learned from again
                if self.guesses is None or self.guesses.version != version:
                    self._tell(self._learned(version, self.store.read()))
            except UslError as error:  # the file is gone, or being replaced
                log.debug("no guesses: %s", error)

    def _judge_on(self) -> None:
        while self._next(self._to_judge):
            if self.guesses is not None and self._guesser is not None:
                self._judge(self._guesser, self.guesses.index)

    def _judge(self, guesser: "Guesser", index: LabelIndex) -> None:
        images, rows, labels, chosen = self._known(index)
        self._judged = len(rows), index.classes
        enough, likely, rather = guesser.judge(rows, labels, len(index.classes), chosen)
        names = {image: index.classes[label] for image, label in zip(images, labels, strict=True)}
        with self._news:
            number = 1 + (0 if self.quality is None else self.quality.number)
            known = np.bincount(labels)[labels] > 1  # of a class with one label, the others tell nothing
            doubted = known & (rather > DOUBTFUL * likely)
            likely_of = dict(zip(np.array(images)[doubted].tolist(), likely[doubted].tolist(), strict=True))
            self.quality = Quality(number, enough, likely_of, names)

    def _to_judge(self) -> bool:
        """Whether there are some more answers, or fewer, than the last judgement was of."""
        if self.guesses is None or self._guesser is None or not self.guesses.known.any():
            return False
        labels, (judged, classes) = len(self._known(self.guesses.index)[1]), self._judged
        return not judged <= labels <= judged * GROWN or classes != self.guesses.index.classes

    def _next(self, wanted: Callable[[], bool]) -> bool:
        """Wait until something is wanted; false when all is to end."""
        with self._news:
            while not self._stopped and not wanted():
                self._news.wait()
            return not self._stopped

    def _known(self, index: LabelIndex) -> tuple[list[int], list[int], list[int], list[bool]]:
        """Images, rows and labels of what is answered and has features, and whether it was chosen."""
        row_of, added = self.similar.row_of, set(index.added)
        known = [
            (image, row_of[image], label, image not in added)
            for image, label in zip(index.indices, index.labels, strict=True)
            if label is not None and image in row_of
        ]
        return tuple(map(list, zip(*known, strict=True))) if known else ([], [], [], [])  # type: ignore[return-value]

    def _learned(self, version: str, index: LabelIndex) -> Guesses:
        _, rows, labels, _ = self._known(index)
        here = set(index.indices)
        others = (image for image in self.similar.row_of if image not in here)
        images = np.array([*index.indices, *others], dtype=np.int64)
        p = np.full((len(images), len(index.classes)), np.nan, dtype=np.float32)
        if len(set(labels)) > 1 and self._guesser is not None:
            probabilities = self._guesser.guess(rows, labels, len(index.classes))
            there = np.array([self.similar.row_of.get(image, -1) for image in images.tolist()])
            p[there >= 0] = probabilities[there[there >= 0]]
        return Guesses(version, index, images, p)

    def _tell(self, guesses: Guesses) -> None:
        with self._news:
            self.guesses = guesses
            self._news.notify_all()

"""What the guesses are good for: which images to answer next and why, rows of one class, doubtful answers."""

from collections import Counter
from collections.abc import Collection
from typing import Any
from unicodedata import bidirectional

import numpy as np
from numpy.typing import NDArray

from usl_lightning.labelling.guessing import Guesses, Quality
from usl_lightning.labelling.similar import SimilarImages
from usl_lightning.labelling.store import answers_of
from usl_lightning.labels import LabelIndex

OF_EACH = 4
"""Answers of a class below which its images come first, and the page says how many are missing."""

LIKELY = 0.2
"""Probability of a rare class from which an image may be worth a look."""

NEXT = 50
"""Images that are told to come next."""

ROW = 12
"""Images of a row."""

FIRST = 0.75
"""Share of the chosen images that have an answer before rows hold others, which teach less: the guesses knew them."""

DOUBTED = 200
"""Answers that are told to be doubtful, at most."""


def told(guesses: Guesses, quality: Quality | None) -> dict[str, Any]:
    """Everything that the page shows of them, for JSON.

    `guess`: for each chosen image of the label file in its order, the class number and how sure (percent), or null.
    `queue`: images without an answer, the most helpful first, each with the reason. `doubts`: answered images, the
    most doubtful first, each with how likely its answer is (percent). `enough`: the estimate.
    """
    return {
        "version": guesses.version,
        "key": f"{guesses.version}-{0 if quality is None else quality.number}",
        "classes": guesses.index.classes,
        "guess": _guesses(guesses),
        "queue": helpful(guesses),
        "doubts": [] if quality is None else doubtful(guesses, quality)[:DOUBTED],
        "enough": None if quality is None else quality.enough,
    }


def helpful(guesses: Guesses) -> list[tuple[int, str]]:
    """Images without an answer and why each would help: of rare classes first, then those it is least sure of.

    Those that a round before left without an answer come last.
    """
    places = _open(guesses)
    if not len(places):
        return []
    p, classes, counts = guesses.p[places], guesses.index.classes, Counter(guesses.index.labels)
    older = places < kept_by(guesses.index)
    queue: dict[int, str] = {}
    for number in sorted(range(len(classes)), key=lambda number: counts[number]):
        missing = max(0, OF_EACH - counts[number])
        for place in np.argsort(-p[:, number], kind="stable")[:missing]:
            if p[place, number] >= LIKELY:
                queue.setdefault(int(place), f"maybe {_apart(classes[number])}, which has {_answers(counts[number])}")
    two = np.sort(p, 1)[:, -2:]
    for place in np.lexsort((two[:, 1:].sum(1) - two[:, 0], older))[:NEXT]:
        second, first = np.argsort(p[place], kind="stable")[-2:]
        told = " or ".join(f"{_apart(classes[number])} ({p[place, number]:.0%})" for number in (first, second))
        queue.setdefault(int(place), f"unsure: {told}")
    in_order = sorted(queue, key=older.__getitem__)[:NEXT]
    return [(guesses.index.indices[places[place]], queue[place]) for place in in_order]


def kept_by(index: LabelIndex) -> int:
    """How many of its first images are of the rounds before."""
    kept = index.method.get("kept")
    return kept if type(kept) is int and kept > 0 else 0


def doubtful(guesses: Guesses, quality: Quality) -> list[tuple[int, int]]:
    """Images whose answer the others speak against, and how likely it is, in percent; the least likely first."""
    names = guesses.index.classes
    doubts = [
        (image, round(100 * quality.likely[image]))
        for image, answer in answers_of(guesses.index).items()
        if isinstance(answer, int) and image in quality.likely and quality.label_of[image] == names[answer]
    ]
    return sorted(doubts, key=lambda doubt: doubt[1])


def candidates(guesses: Guesses, without: Collection[str], beside: Collection[int]) -> NDArray[np.int64]:
    """Places in `guesses` of what a row may be made of: images without an answer that have a guess.

    Args:
        guesses: of all.
        without: images that are not asked for again, as texts.
        beside: images that were not chosen, and may be taken too once `FIRST` of the chosen have an answer.
    """
    open_ones = sum(answer is None for answer in answers_of(guesses.index).values())
    enough = open_ones <= (1 - FIRST) * guesses.index.chosen
    others = range(len(guesses.index), len(guesses.images)) if enough else ()
    images = guesses.images.tolist()
    places = [*_open(guesses).tolist(), *(place for place in others if images[place] in beside)]
    wanted = [place for place in places if str(images[place]) not in without]
    return np.array(wanted, dtype=np.int64)[guesses.known[wanted]] if wanted else np.zeros(0, dtype=np.int64)


def row(
    guesses: Guesses, similar: SimilarImages, places: NDArray[np.int64], image: int | None = None
) -> tuple[int, list[int], float] | None:
    """(class, images, likely): up to `ROW` images, guessed to be of one class, nearest to one.

    `likely`: how many of them are, by the guesses' own probabilities.

    Args:
        guesses: of all.
        similar: their features.
        places: of those that it may be made of, see `candidates`.
        image: that one; None, or one that is not among them: that which the guess is surest of.

    Returns:
        None if nothing is left to guess.
    """
    if not len(places):
        return None
    images = guesses.images[places].tolist()
    guessed, sure = guesses.p[places].argmax(1), guesses.p[places].max(1)
    first = images.index(image) if image in images else int(sure.argmax())
    same = [one for one, number in zip(images, guessed, strict=True) if number == guessed[first]]
    chosen = [images[first], *similar.near(images[first], ROW - 1, same)]
    sure_of = dict(zip(images, sure.tolist(), strict=True))
    return int(guessed[first]), chosen, sum(sure_of[one] for one in chosen)


def _open(guesses: Guesses) -> NDArray[np.int64]:
    """Places of the images of the file that have a guess and no answer."""
    unanswered = np.array([answer is None for answer in answers_of(guesses.index).values()], dtype=bool)
    return np.flatnonzero(guesses.known[: len(unanswered)] & unanswered)


def _guesses(guesses: Guesses) -> list[tuple[int, int] | None]:
    """Of those that were chosen."""
    added = set(guesses.index.added)
    asked = np.array([place for place, image in enumerate(guesses.index.indices) if image not in added], dtype=np.int64)
    known, p = guesses.known[asked], guesses.p[asked]
    if not known.any():
        return [None] * len(known)
    sure = np.full((len(known), 2), -1)
    sure[known, 0] = p[known].argmax(1)
    sure[known, 1] = np.round(100 * p[known].max(1))
    return [(number, percent) if number >= 0 else None for number, percent in sure.tolist()]


def _apart(name: str) -> str:
    """A name in a sentence; of letters that go from right to left, so that what stands around it stays in order."""
    return f"\u2068{name}\u2069" if any(bidirectional(letter) in ("R", "AL") for letter in name) else name


def _answers(count: int) -> str:
    return "1 answer" if count == 1 else f"{count} answers"

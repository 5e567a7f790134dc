"""`usl labels draw` and `corrupt`: shares and imbalanced versions of a data set, and wrong labels, as index files."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from usl_lightning.base.commands import known_options
from usl_lightning.base.errors import UslError
from usl_lightning.base.typed import as_seed, home
from usl_lightning.labels import LabelIndex

OPTIONS = {
    "draw": ("out", "share", "imbalance", "seed", "dir", "split"),
    "corrupt": ("out", "share", "seed"),
}

IMBALANCES = ("light", "heavy")


def main(arguments: Sequence[str]) -> None:
    """Write a label index of some images of a data set, or one whose labels are partly wrong.

    Args:
        arguments: what follows `usl labels`: `draw DATASET …` or `corrupt A.json …`.

    Raises:
        UslError: a mistake in the arguments, or the file to write exists.
    """
    operation, rest = arguments[0], list(arguments[1:])
    where = f"usl labels {operation}"
    if not rest or rest[0].startswith("-"):
        what = "a data set, e.g. cifar10" if operation == "draw" else "a label index"
        raise UslError(f"{where}: expected {what}")
    given = known_options(f"labels {operation}", rest[1:], OPTIONS[operation])
    out = home(given["out"]) if given.get("out") else None
    if out is None or out.suffix != ".json":
        raise UslError(f"{where}: expected --out FILE.json")
    if os.path.lexists(out):
        raise UslError(f"{out}: exists already; choose another --out")
    seed = as_seed(given.get("seed", "0"), f"{where}: --seed")
    index = _drawn(rest[0], given, seed) if operation == "draw" else _corrupted(home(rest[0]), given, seed)
    index.write(out)
    counts = [index.labels.count(label) for label in range(len(index.classes))]
    print(f"{out}: {len(index)} images; of a class {min(counts, default=0)} to {max(counts, default=0)}")


def class_sizes(counts: Sequence[int], imbalance: str) -> list[int]:
    """How many images of each class an imbalanced version keeps.

    Args:
        counts: of the whole set, by class.
        imbalance: `light`: half of the last class; `heavy`: class i of c loses i/c of its images, so that of ten
            classes one loses none, one a tenth, and so on to nine tenths (both after SeLa, section 4.4); a number f:
            class i keeps the share f^(-i/(c - 1)), so that the first is f times the last (a long tail: Cui et al., CVPR
            2019).

    Returns:
        At least 1 of each class that has any.

    Raises:
        UslError: none of these.
    """
    c = len(counts)
    try:
        factor = 0.0 if imbalance in IMBALANCES else float(imbalance)
    except ValueError:
        factor = math.nan
    if imbalance == "light":
        shares = [1.0] * (c - 1) + [0.5]
    elif imbalance == "heavy":
        shares = [1 - i / c for i in range(c)]
    elif factor >= 1 and math.isfinite(factor):
        shares = [factor ** (-i / max(c - 1, 1)) for i in range(c)]
    else:
        raise UslError(
            f"usl labels draw: --imbalance {imbalance}: expected light, heavy, or how many times the first class is "
            "the last, 1 or more"
        )
    return [min(count, max(1, round(count * share))) for count, share in zip(counts, shares, strict=True)]


def corrupted(labels: Sequence[int | None], classes: int, share: float, seed: int) -> list[int | None]:
    """Labels of which a share, drawn at random, are another class each, drawn evenly from the others.

    Args:
        labels: class numbers; None stays None.
        classes: how many there are, 2 at least.
        share: of those that have a label, rounded.
        seed: decides which, and which class.
    """
    rng = np.random.default_rng(seed)
    known = [i for i, label in enumerate(labels) if label is not None]
    wrong, result = rng.permutation(known)[: round(share * len(known))], list(labels)
    for i in wrong.tolist():
        label = labels[i]
        assert label is not None
        result[i] = (label + int(rng.integers(1, classes))) % classes
    return result


def _drawn(name: str, given: Mapping[str, str], seed: int) -> LabelIndex:
    """Images by `--share`, of each class alike, or by `--imbalance`, with their labels."""
    if ("share" in given) == ("imbalance" in given):
        raise UslError("usl labels draw: expected --share or --imbalance, one of them")
    from usl_lightning.data.images.opening import open_source
    from usl_lightning.data.images.source import dataset_id

    source = open_source(name, given.get("split", "train"), dir=given.get("dir"))
    labels = source.labels.numpy()
    classes = len(source.classes)
    if not classes or (labels < 0).all():
        raise UslError(f"usl labels draw: {name}: no image has a label; both need the classes")
    counts = np.bincount(labels[labels >= 0], minlength=classes).tolist()
    if "share" in given:
        share = _share(given["share"], "usl labels draw")
        sizes = [round(count * share) for count in counts]
    else:
        sizes = class_sizes(counts, given["imbalance"])
    if not any(sizes):
        raise UslError(f"usl labels draw: --share {given['share']}: no image of any class; give a larger one")
    rng = np.random.default_rng(seed)
    picked = [rng.permutation(np.flatnonzero(labels == label))[:size] for label, size in enumerate(sizes)]
    indices = sorted(int(i) for part in picked for i in part)
    options = {key: given[key] for key in ("share", "imbalance") if key in given}
    return LabelIndex(
        dataset=dataset_id(source),
        method={"name": "draw", "seed": seed, "params": options},
        indices=tuple(indices),
        labels=tuple(int(labels[i]) for i in indices),
        classes=source.classes,
        files=None if source.files is None else tuple(source.files[i] for i in indices),
        hashes=() if source.files is None else tuple(source.content_hashes(indices)),
    )


def _corrupted(path: Path, given: Mapping[str, str], seed: int) -> LabelIndex:
    """An index with `--share` of its labels wrong."""
    if "share" not in given:
        raise UslError("usl labels corrupt: expected --share, of the labels that are to be wrong, such as 0.2")
    share, index = _share(given["share"], "usl labels corrupt"), LabelIndex.read(path)
    if len(index.classes) < 2 or all(label is None for label in index.labels):
        raise UslError(f"usl labels corrupt: {path}: expected labels of two classes or more, with their names")
    method = {"name": "corrupt", "seed": seed, "params": {"share": share, "of": dict(index.method)}}
    return replace(index, labels=tuple(corrupted(index.labels, len(index.classes), share, seed)), method=method)


def _share(text: str, where: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise UslError(f"{where}: --share {text}: expected a number above 0, 1 at most")
    return share

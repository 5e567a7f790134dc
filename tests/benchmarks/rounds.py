"""Labelling in rounds against labelling at once: 4 × 10 labels with each selector of the next images, and 40 at once.

    OMP_NUM_THREADS=1 python tests/benchmarks/rounds.py [--seeds 5] [--rounds 4] [--budget 10] [--runs FOLDER]
        [--only SELECTOR … --out FILE]

Sets: digits, Fashion-MNIST (1,000 images to choose from, 2,000 new ones) and emoji, the folders of picture_sets.py,
with the features of the published network (EfficientNet-Lite0), kept in a file; digits and Fashion-MNIST also with
principal components of their pixels. The first round is k-means + nearest, the best of 20 starts, as are the images
chosen at once; the classifier between and after the rounds is Blend. The accuracy is that on new images. The noise of a
difference is its standard error over sets and seeds. CBSSAL and MMA look at four weak views of each image, drawn once.
VAAL sees the images in grey and is small: 16 channels in its first layer instead of 128, 300 steps instead of 39,062.
Each run is kept, so that a broken one goes on. Figures go to tests/benchmarks/results/rounds.json.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from machine import machine
from picture_sets import made
from torch import Tensor

from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.images.folder_source import FolderSource
from usl_lightning.data.images.opening import open_source
from usl_lightning.data.keys import Key
from usl_lightning.data.views import Weak
from usl_lightning.features.published import extract_features, published_encoder, seen_by
from usl_lightning.init.choice import BACKBONE
from usl_lightning.selection.badge import BADGE
from usl_lightning.selection.bald import BALD
from usl_lightning.selection.cbssal import CBSSAL
from usl_lightning.selection.core_gcn import CoreGCN
from usl_lightning.selection.coreset import select_coreset
from usl_lightning.selection.dropquery import DropQuery
from usl_lightning.selection.entropy import Entropy
from usl_lightning.selection.kmeans_nearest import select_kmeans_nearest
from usl_lightning.selection.least_confidence import LeastConfidence
from usl_lightning.selection.margin import Margin
from usl_lightning.selection.maxherding import select_maxherding
from usl_lightning.selection.mma import MMA
from usl_lightning.selection.next_selector import Known, NextSelector
from usl_lightning.selection.random import select_random
from usl_lightning.selection.tod import TOD, output_discrepancy
from usl_lightning.selection.uherding import UHerding
from usl_lightning.selection.vaal import VAAL
from usl_lightning.selection.view_selector import ViewSelector
from usl_lightning.semisup.blend import Blend
from usl_lightning.vectors.density import keep_first
from usl_lightning.vectors.distances import unit_rows
from usl_lightning.vectors.memory import once, remembering

RESULTS = Path(__file__).parent / "results" / "rounds.json"
SIZES = {"digits": (2000, 2000), "fashion": (1000, 2000), "emoji": (2000, 2000)}
COMPONENTS = {"digits": 20, "fashion": 64}
AT_ONCE = "k-means, at once"
kmeans = partial(select_kmeans_nearest, restarts=20)

VIEWS = 4


@dataclass(frozen=True)
class Seen(Known):
    """And the features of views of each image, unit rows [VIEWS, n, d], and the images in grey, [n, 1, 28, 28]."""

    views: Tensor = field(kw_only=True)
    images: Tensor = field(kw_only=True)


Choice = Callable[[Seen, Known | None, int, int], Tensor]
"""Known, what was known a round before, how many more, seed -> the images of the next round."""

Set = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Features and labels of the images to choose from, and of new ones; views of the former, and themselves in grey."""


def displacing(select: Callable[..., Tensor]) -> Choice:
    """A selector of the whole budget, of whose picks each kept image displaces the nearest, as with --keep."""

    def choose(known: Seen, earlier: Known | None, count: int, seed: int) -> Tensor:
        picks = select(known.features, len(known.kept) + count, seed=seed)
        return keep_first(known.kept, picks, known.features)[len(known.kept) :]

    return choose


def looking(method: type[NextSelector], **options: Any) -> Choice:
    """A selector that looks at the classifier."""
    model = method(image=ImageSpec(3, 8, 8, (), ()), budget=1, features="at hand", **options)
    return lambda known, earlier, count, seed: model.pick(known, count, seed)


def looking_at_views(method: type[ViewSelector], **options: Any) -> Choice:
    """A selector that looks at what the classifier makes of views."""
    model = method(image=ImageSpec(3, 8, 8, (), ()), budget=1, views=VIEWS, **options)

    def choose(known: Seen, earlier: Known | None, count: int, seed: int) -> Tensor:
        model.scores = model.score(known.classify(view) for view in known.views)
        return model.pick(known, count, seed)

    return choose


def random(known: Seen, earlier: Known | None, count: int, seed: int) -> Tensor:
    """Others at random."""
    return known.open[select_random(len(known.open), count, seed=seed + 1000 * len(known.kept))]


def coreset(known: Seen, earlier: Known | None, count: int, seed: int) -> Tensor:
    """The farthest from the labelled."""
    return select_coreset(known.features, len(known.kept) + count, first=known.kept)[len(known.kept) :]


def tod(known: Seen, earlier: Known | None, count: int, seed: int) -> Tensor:
    """TOD, which looks at two classifiers."""
    model = TOD(image=ImageSpec(3, 8, 8, (), ()), budget=1, features="at hand")
    if earlier is not None:
        return known.highest(output_discrepancy(known.probabilities, earlier.probabilities), count)
    return model.pick(known, count, seed)


@dataclass(frozen=True)
class Grey:
    """Images [n, 1, h, w] as VAAL asks for them."""

    images: Tensor
    channels: int = 1

    def read(self, rows: Tensor) -> Tensor:
        """Some of them."""
        return self.images[rows]

    def __len__(self) -> int:
        return len(self.images)


def vaal(known: Seen, earlier: Known | None, count: int, seed: int) -> Tensor:
    """VAAL, whose two networks are trained on the images."""
    model = VAAL(image=ImageSpec(1, 28, 28, (), ()), budget=1, features="at hand", width=16, steps=300)
    with torch.enable_grad():
        model.learn(Grey(known.images), known.kept, seed, torch.device("cpu"))
    return model.pick(known, count, seed)


CHOICES: dict[str, Choice] = {
    "random": random,
    "UHerding": looking(UHerding),
    "margin": looking(Margin),
    "MaxHerding from the labelled": looking(UHerding, uncertain=False, sigma=1.0),
    "BADGE": looking(BADGE),
    "Coreset from the labelled": coreset,
    "DropQuery": looking(DropQuery),
    "entropy": looking(Entropy),
    "UHerding, width 1": looking(UHerding, sigma=1.0),
    "TOD": tod,
    "BALD": looking(BALD),
    "least confidence": looking(LeastConfidence),
    "k-means, displaced": displacing(kmeans),
    "MaxHerding, displaced": displacing(select_maxherding),
    "CBSSAL": looking_at_views(CBSSAL),
    "MMA": looking_at_views(MMA),
    "MMA, 20 clusters": looking_at_views(MMA, clusters=20),
    "UncertainGCN": looking(CoreGCN, rule="uncertain"),
    "CoreGCN": looking(CoreGCN),
    "VAAL": vaal,
}


def feature_sets(folder: Path) -> dict[str, Set]:
    """Name -> a set."""
    sets = {}
    for name, sizes in SIZES.items():
        kept = folder / f"{name}.npz"
        if not kept.exists():
            root, arrays = made(name, folder / "picture_sets"), {}
            for split, most in zip(("train", "test"), sizes, strict=True):
                source = open_source("folder", split, dir=str(root), image_size=28, channels=3)
                some = select_random(len(source), min(most, len(source))).sort().values
                files = [root / split / source.files[i] for i in some.tolist()]
                arrays[f"{split}_labels"] = source.labels[some].numpy()
                arrays[f"{split}_published"] = extract_features(files, BACKBONE).numpy()
                arrays[f"{split}_pixels"] = source.read(some)[:, 0].flatten(1).float().numpy()
                if split == "train":
                    arrays |= views_of(source, some, flip=name != "digits")
            np.savez(kept, **arrays)
        loaded = {key: torch.from_numpy(value) for key, value in np.load(kept).items()}
        labels = loaded["train_labels"].long(), loaded["test_labels"].long()
        seen = [loaded[f"{part}_published"] for part in ("train", "test", "views")]
        images = loaded["train_pixels"].to(torch.uint8).unflatten(1, (1, 28, 28))
        sets[f"{name}, published"] = (seen[0], labels[0], seen[1], labels[1], seen[2], images)
        if name in COMPONENTS:
            mean = loaded["train_pixels"].double().mean(0)
            centred = [loaded[f"{part}_pixels"].double() - mean for part in ("train", "test", "views")]
            axes = torch.linalg.eigh(centred[0].T @ centred[0]).eigenvectors.flip(1)[:, : COMPONENTS[name]]
            own = [(each @ axes).float() for each in centred]
            sets[f"{name}, components"] = (own[0], labels[0], own[1], labels[1], own[2], images)
    return sets


def views_of(source: FolderSource, rows: Tensor, *, flip: bool) -> dict[str, Any]:
    """Weak views of some images: as the published network describes them [VIEWS, n, d], and their pixels."""
    seen, encoder, weak = seen_by(BACKBONE, source), published_encoder(BACKBONE), Weak(flip=flip)
    kinds: dict[str, list[list[Tensor]]] = {"views_published": [], "views_pixels": []}
    with torch.inference_mode():
        for number in range(VIEWS):
            for parts in kinds.values():
                parts.append([])
            for some in rows.split(50):
                key = Key.of(number, slots=some)
                kinds["views_published"][number].append(encoder(weak(seen.read(some), key)))
                kinds["views_pixels"][number].append(weak(source.read(some), key)[:, 0].flatten(1) * 255)
    return {name: torch.stack([torch.cat(part) for part in parts]).numpy() for name, parts in kinds.items()}


def learned(x: Tensor, labels: Tensor, rows: Tensor, seed: int) -> Blend:
    """Blend of these labels."""
    classes = tuple(map(str, range(int(labels.max()) + 1)))
    model = Blend(image=ImageSpec(3, 8, 8, (), (), classes), features="at hand")
    model.learn_from(x, rows, labels[rows], seed=seed)
    return model


def _first(x: Tensor, labels: Tensor, budget: int, seed: int) -> tuple[Tensor, Blend]:
    """The first round, which all have in common."""
    rows = kmeans(x, budget, seed=seed)
    return rows, learned(x, labels, rows, seed)


def run(data: Set, choice: Choice, args: Any, seed: int) -> dict[str, Any]:
    """The accuracy on new images after each round."""
    x, labels, new, truth, views, images = data
    x, new, views = unit_rows(x), unit_rows(new), F.normalize(views, dim=2)
    told, seconds, earlier = [], 0.0, None
    rows, model = once(lambda: _first(x, labels, args.budget, seed), x, "first round", args.budget, seed)
    for number in range(args.rounds):
        model = learned(x, labels, rows, seed) if number else model
        right = model.votes(new).argmax(1) == truth
        estimate = model.judgement.estimate if model.judgement else None
        told.append(
            {
                "labels": len(rows),
                "accuracy": round(float(right.double().mean()), 4),
                "estimate": None if estimate is None else round(estimate.accuracy, 4),
                "classes": len(labels[rows].unique()),
            }
        )
        if number + 1 < args.rounds:
            start = time.perf_counter()
            votes, answers = model.votes, labels[rows]
            known = Seen(x, lambda f, votes=votes: votes(f).softmax(1), rows, rows, answers, views=views, images=images)
            rows, earlier = torch.cat([rows, choice(known, earlier, args.budget, seed)]), known
            seconds += time.perf_counter() - start
    return {"rounds": told, "seconds": round(seconds / max(1, args.rounds - 1), 3)}


def at_once(data: Set, select: Callable[..., Tensor], args: Any, seed: int) -> Any:
    """The accuracy on new images of as many labels at once."""
    x, labels, new, truth, _, _ = data
    x, new = unit_rows(x), unit_rows(new)
    rows = select(x, args.budget * args.rounds, seed=seed)
    right = learned(x, labels, rows, seed).votes(new).argmax(1) == truth
    accuracy, classes = round(float(right.double().mean()), 4), len(labels[rows].unique())
    return {"rounds": [{"labels": len(rows), "accuracy": accuracy, "classes": classes}]}


def table(found: dict[tuple[str, str, int], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each choice the mean accuracy of each set, and what it gains over the choice at once."""
    names, sets = list(dict.fromkeys(k[1] for k in found)), list(dict.fromkeys(k[0] for k in found))
    seeds = sorted({k[2] for k in found})

    def last(which: str, name: str, seed: int) -> float:
        return float(found[which, name, seed]["rounds"][-1]["accuracy"])

    rows = {}
    for name in names:
        gains = [last(s, name, seed) - last(s, AT_ONCE, seed) for seed in seeds for s in sets]
        rows[name] = {
            **{s: round(statistics.mean(last(s, name, seed) for seed in seeds), 4) for s in sets},
            "mean": round(statistics.mean(last(s, name, seed) for s in sets for seed in seeds), 4),
            "gain": round(statistics.mean(gains), 4),
            "noise": round(statistics.stdev(gains) / len(gains) ** 0.5, 4),
            "least_gain": round(min(statistics.mean(gains[i :: len(sets)]) for i in range(len(sets))), 4),
            "seconds": round(statistics.mean(found[s, name, e].get("seconds", 0) for s in sets for e in seeds), 3),
        }
    return rows


def main() -> None:
    """Run what is missing, print the table, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--budget", type=int, default=10)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark_rounds"))
    parser.add_argument("--only", nargs="+", default=[*CHOICES], choices=[*CHOICES], help="these selectors")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    work: dict[str, Callable[..., Any]] = {
        AT_ONCE: lambda data, seed: at_once(data, kmeans, args, seed),
        "random, at once": lambda data, seed: at_once(data, select_random, args, seed),
        **{
            name: partial(lambda c, data, seed: run(data, c, args, seed), choice)
            for name, choice in CHOICES.items()
            if name in args.only
        },
    }
    found = {}
    with torch.no_grad(), remembering():
        sets = feature_sets(args.runs)
        for name, (which, data) in itertools.product(work, sets.items()):
            for seed in range(args.seeds):
                kept = args.runs / f"{which}-{name}-{args.rounds}x{args.budget}-{seed}.json".replace(" ", "_")
                if not kept.exists():
                    kept.write_text(json.dumps(work[name](data, seed)))
                found[which, name, seed] = json.loads(kept.read_text())
            accuracies = [found[which, name, seed]["rounds"][-1]["accuracy"] for seed in range(args.seeds)]
            print(f"{which:24}{name:32}{statistics.mean(accuracies):.4f}", flush=True)
    rows = table(found)
    columns = list(next(iter(rows.values())))
    print(f"\n{'':32}" + "".join(f"{column:>22}" for column in columns))
    for name, row in rows.items():
        print(f"{name:32}" + "".join(f"{row[column]:>22}" for column in columns))
    about = {"rounds": args.rounds, "budget": args.budget, "seeds": args.seeds, "machine": machine()}
    runs = [{"set": s, "selector": name, "seed": seed, **each} for (s, name, seed), each in found.items()]
    lines = ",\n".join(json.dumps(each) for each in runs)
    head = json.dumps({**about, "table": rows}, indent=1).removesuffix("\n}")
    args.out.write_text(f'{head},\n "runs": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()

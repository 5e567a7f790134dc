"""How often `usl init` chooses the right features, without labels and by labels, and what a wrong choice costs.

    OMP_NUM_THREADS=1 nice -n 10 python tests/benchmarks/init_choice.py [SET ...]

Sets: digits, Fashion-MNIST and emoji as folders of pictures (see picture_sets.py), at most 600 images and 300 new ones
of each, and what can be made of them: other colours, sizes, numbers of a class, both kinds in one folder, and shapes
that are drawn here. Own training is that which `init` plans for two minutes on a thread, once a set; with the ten
minutes that it plans by itself own features would be better.

Of each set and of 3 seeds: what Blend reaches on new images with 40 and 100 labels, which are chosen as `init`'s chain
does on the features that were chosen without labels; by own features, by published ones and by both. Then what `init`
decides by these labels, where own features are there, and whether pixels, which own training begins from, would be
taken rather than published features. A decision costs the difference to the best of the three. For 40 labels there is
also what is reached if each kind of features chooses its labels.

What was measured is kept in runs/benchmark_init_choice/, so that a broken benchmark goes on; tables go to
results/init_choice.json.
"""

import argparse
import colorsys
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import machine
from picture_sets import made
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.images.opening import open_source
from usl_lightning.data.keys import permutation
from usl_lightning.features.published import extract_features
from usl_lightning.init.choice import BACKBONE, PIXELS, SAMPLE, Choice, choose_features
from usl_lightning.init.folder import inspect_folder
from usl_lightning.init.given import decided, held_out, likelihood
from usl_lightning.init.plan import Wishes, make_plan
from usl_lightning.init.template import chain_text
from usl_lightning.models.encoder import load_encoder
from usl_lightning.selection.kmeans_nearest import select_kmeans_nearest
from usl_lightning.semisup.blend import Blend

RESULT = Path(__file__).parent / "results" / "init_choice.json"
WORK = Path("runs/benchmark_init_choice").resolve()
MINUTES = 2.0
IMAGES, NEW = 600, 300
BUDGETS, SEEDS = (40, 100), 3
KINDS = ("own", "published", "both")

Change = Callable[[Image.Image, random.Random], Image.Image]


# pictures ------------------------------------------------------------------------------------------------


def part(split: Path, most: int) -> list[Path]:
    """Evenly spaced pictures of a split."""
    files = sorted(split.rglob("*.png"))
    return [files[i * len(files) // min(most, len(files))] for i in range(min(most, len(files)))]


def changed(root: Path, base: str, change: Change | None = None, share: float = 1.0) -> None:
    """Write a part of a set, each picture changed.

    Args:
        root: to be written.
        base: of picture_sets.py.
        change: of a picture.
        share: of all images; the rest is another set's.
    """
    whole, draws = made(base, Path("runs/picture_sets")), random.Random(0)
    for split, most in (("train", IMAGES), ("test", NEW)):
        for path in part(whole / split, int(most * share)):
            to = root / split / path.parent.name / path.name
            to.parent.mkdir(parents=True, exist_ok=True)
            image = Image.open(path)
            (image if change is None else change(image, draws)).save(to)


def coloured(image: Image.Image, draws: random.Random) -> Image.Image:
    """Grey pictures, with ink and paper of any colours, light on dark or dark on light."""
    bright = [0.25 * draws.random(), 0.75 + 0.25 * draws.random()]
    draws.shuffle(bright)
    ends = [colorsys.hsv_to_rgb(draws.random(), 0.6, value) for value in bright]
    return ImageOps.colorize(image.convert("L"), *(tuple(int(255 * part) for part in end) for end in ends))


def on_white(image: Image.Image) -> Image.Image:
    """Without transparency."""
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def unequal(root: Path) -> None:
    """Fashion-MNIST, of each class three quarters of the one before."""
    whole = made("fashion", Path("runs/picture_sets"))
    for number, folder in enumerate(sorted((whole / "train").iterdir())):
        for path in part(folder, int(159 * 0.75**number)):
            (root / "train" / folder.name).mkdir(parents=True, exist_ok=True)
            Image.open(path).save(root / "train" / folder.name / path.name)
    for path in part(whole / "test", NEW):
        (root / "test" / path.parent.name).mkdir(parents=True, exist_ok=True)
        Image.open(path).save(root / "test" / path.parent.name / path.name)


def mixed(root: Path) -> None:
    """Emoji and clothes in one folder."""
    changed(root, "emoji", share=0.5)
    changed(root, "fashion", share=0.5)


def shapes(root: Path) -> None:
    """Polygons and circles of any size, place, turn and colour, filled or not, on noise of any colour: 8 classes."""
    draws = random.Random(0)
    for split, most in (("train", IMAGES), ("test", NEW)):
        for number in range(most):
            sides, filled = (3, 4, 6, 40)[number % 4], number // 4 % 2
            paper = tuple(draws.randrange(256) for _ in range(3))
            noise = Image.frombytes("RGB", (48, 48), draws.randbytes(3 * 48 * 48))
            image = Image.blend(Image.new("RGB", (48, 48), paper), noise, 0.25)
            ink, size = tuple((c + 128 + draws.randrange(-40, 40)) % 256 for c in paper), draws.randrange(9, 19)
            place = (draws.randrange(size + 2, 46 - size), draws.randrange(size + 2, 46 - size), size)
            fill = {"fill": ink} if filled else {"outline": ink, "width": 3}
            ImageDraw.Draw(image).regular_polygon(place, sides, rotation=draws.randrange(360), **fill)
            folder = root / split / f"{sides}-{'full' if filled else 'line'}"
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{number:04}.png")


SETS: dict[str, Callable[[Path], None]] = {
    "fashion": partial(changed, base="fashion"),
    "emoji": partial(changed, base="emoji"),
    "digits": partial(changed, base="digits"),
    "emoji-grey": partial(changed, base="emoji", change=lambda image, _: on_white(image).convert("L")),
    "emoji-24-pixels": partial(changed, base="emoji", change=lambda image, _: image.resize((24, 24))),
    "fashion-imbalanced": unequal,
    "digits-coloured": partial(changed, base="digits", change=coloured),
    "emoji-and-fashion": mixed,
    "shapes": shapes,
    "fashion-coloured": partial(changed, base="fashion", change=coloured),
    "emoji-imbalanced": partial(changed, base="imbalanced"),
}


def pictures(name: str) -> Path:
    """The folder of a set, made if it is not there."""
    root = WORK / name / "pictures"
    if not root.exists():
        partial_ = WORK / name / "unfinished"
        SETS[name](partial_)
        partial_.rename(root)
    return root


# features ------------------------------------------------------------------------------------------------


def trained(root: Path) -> dict[str, Any]:
    """The checkpoint of own training as `init` plans it, and what that took."""
    chain, run = root.parent / "own.yaml", root.parent / "own"
    plan = make_plan(inspect_folder(root), Wishes(minutes=MINUTES), Choice("own", ("own training",)))
    chain.write_text(chain_text(plan, chain))
    words = ["run", chain, "--only", "pretrain", "--out", root.parent]
    subprocess.run([sys.executable, "-m", "usl_lightning.cli", *map(str, words)], check=True)
    about = {"network": plan.network.backbone, "steps": plan.pretrain_steps, "epochs": round(plan.epochs, 1)}
    return {**about, "checkpoint": str(run / "pretrain" / "checkpoints" / "last.ckpt")}


def own_features(checkpoint: str, root: Path, split: str) -> Tensor:
    """By the network of our own."""
    encoder = load_encoder(checkpoint)
    size = encoder.image.height if encoder.image.height == encoder.image.width else None
    source = open_source("folder", split, dir=str(root), image_size=size, channels=encoder.image.channels)
    with torch.inference_mode():
        return torch.cat([encoder(source.read(rows)).float() for rows in torch.arange(len(source)).split(100)])


def kinds_of(own: Tensor, published: Tensor) -> dict[str, Tensor]:
    """Several networks count the same, as in `SideBySide`."""
    beside = torch.cat([F.normalize(each, dim=1) for each in (own, published)], 1)
    return dict(zip(KINDS, (own, published, beside), strict=True))


# measuring -----------------------------------------------------------------------------------------------


def reached(
    x: Tensor, new: Tensor, truth: Tensor, rows: Tensor, labels: Tensor, classes: tuple[str, ...], seed: int
) -> float:
    """Accuracy of Blend on new images."""
    model = Blend(image=ImageSpec(3, 1, 1, (), (), classes), features="at hand")
    model.learn_from(x, rows, labels[rows], seed=seed)
    with torch.inference_mode():
        told = model.votes(F.normalize(new.float(), dim=1))
    return float((told.argmax(1) == truth).double().mean())


def measured(name: str) -> dict[str, Any]:
    """All that is measured on a set, tensors among it."""
    kept = WORK / name / "measured.pt"
    if kept.exists():
        found: dict[str, Any] = torch.load(kept)
        return found
    start, root = time.process_time(), pictures(name)
    sources = [open_source("folder", split, dir=str(root), image_size=1, channels=3) for split in ("train", "test")]
    choice = choose_features(sources[0])
    own = trained(root)
    old, new = (
        kinds_of(own_features(own["checkpoint"], root, source.split), extract_features(source, BACKBONE, keep=True))
        for source in sources
    )
    small = open_source("folder", "train", dir=str(root), image_size=PIXELS, channels=3)
    old["pixels"] = small.read(torch.arange(len(small))).float().flatten(1)
    labels, truth, classes = sources[0].labels, sources[1].labels, tuple(sources[0].classes)
    runs = []
    for budget in BUDGETS:
        for seed in range(SEEDS):
            rows = chosen(old[choice.features], budget, seed)
            if budget == BUDGETS[0]:
                alone = {k: rows if k == choice.features else chosen(old[k], budget, seed) for k in KINDS}
            sample = torch.cat([rows, permutation(len(labels), 0, "choice of features")[:SAMPLE]]).unique()
            at = torch.searchsorted(sample, rows)
            runs.append(
                {
                    "budget": budget,
                    "seed": seed,
                    "labels": labels[rows],
                    "held_out": {k: held_out(x[sample], at, labels[rows], classes) for k, x in old.items()},
                    "accuracy": {k: reached(old[k], new[k], truth, rows, labels, classes, seed) for k in KINDS},
                }
            )
            if budget == BUDGETS[0]:
                each = {k: reached(old[k], new[k], truth, alone[k], labels, classes, seed) for k in KINDS}
                runs[-1]["with_own_picks"] = each
            print(name, budget, seed, runs[-1]["accuracy"], flush=True)
    found = {"choice": vars(choice), "own": own, "images": len(labels), "runs": runs}
    found["processor_seconds"] = round(time.process_time() - start)
    torch.save(found, kept)
    return found


def chosen(features: Tensor, budget: int, seed: int) -> Tensor:
    """As the chain chooses."""
    return select_kmeans_nearest(features, budget, seed=seed, restarts=20, move=4.0)


# telling -------------------------------------------------------------------------------------------------


def judged(run: dict[str, Any], without: str) -> dict[str, Any]:
    """What labels decide, and what that and the choice without them cost.

    Args:
        run: of one budget and seed.
        without: the choice without labels.
    """
    labels, most = run["labels"], max(run["accuracy"].values())
    known = torch.bincount(labels)[labels] > 1
    told = {kind: each[known] for kind, each in run["held_out"].items()}
    of_all = {kind: told[kind] for kind in KINDS}
    alone = {kind: told[kind] for kind in ("published", "pixels")}
    by_labels, why = decided(of_all, labels[known], without)
    ways = {"by labels": by_labels, "without labels": without}
    for kind in KINDS:
        ways |= {f"always {kind}": kind, f"{kind}, then by labels": decided(of_all, labels[known], kind)[0]}
    own = decided(alone, labels[known], "published")[0] == "pixels"
    ways["published, then by labels and pixels"] = "own" if own else "published"
    return {
        "seed": run["seed"],
        "by_labels": by_labels,
        "why": why,
        "nats": {kind: round(likelihood(each, labels[known]), 1) for kind, each in told.items()},
        "costs": {way: round(most - run["accuracy"][kind], 4) for way, kind in ways.items()},
    }


def of_set(found: dict[str, Any]) -> dict[str, Any]:
    """What the file has of a set."""
    choice, budgets = found["choice"], {}
    for budget in BUDGETS:
        runs = [run for run in found["runs"] if run["budget"] == budget]
        budgets[budget] = {"accuracy": means([run["accuracy"] for run in runs])}
        if "with_own_picks" in runs[0]:
            budgets[budget]["accuracy_by_own_picks"] = means([run["with_own_picks"] for run in runs])
        budgets[budget]["decisions"] = [judged(run, choice["features"]) for run in runs]
    figures = {key: round(choice[key], 3) for key in ("kept", "kept_by_pixels", "imbalance")}
    own = {key: found["own"][key] for key in ("network", "steps", "epochs")}
    seconds = found["processor_seconds"]
    return {
        "images": found["images"], "without_labels": choice["features"], **figures, "own_training": own,
        "processor_seconds_beside_own_training": seconds, "budgets": budgets,
    }  # fmt: skip


def means(runs: list[dict[str, float]]) -> dict[str, list[float]]:
    """Of each kind the mean over seeds, and their sample deviation."""
    each = {kind: [run[kind] for run in runs] for kind in KINDS}
    return {kind: [round(statistics.mean(x), 4), round(statistics.stdev(x), 4)] for kind, x in each.items()}


def costs(sets: dict[str, dict[str, Any]], budget: int) -> dict[str, Any]:
    """What each way to decide costs, over all sets and seeds: the mean, the most, and how often a point at most."""
    runs = [decision["costs"] for one in sets.values() for decision in one["budgets"][budget]["decisions"]]
    each = {way: [run[way] for run in runs] for way in runs[0]}
    return {
        way: {
            "mean": round(statistics.mean(x), 4),
            "most": max(x),
            "right": f"{sum(cost <= 0.01 for cost in x)} of {len(x)}",
        }
        for way, x in each.items()
    }


def main() -> None:
    """Measure what is missing; write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", help="all by default")
    sets: dict[str, dict[str, Any]] = {}
    for name in parser.parse_args().sets or SETS:
        sets[name] = of_set(measured(name))
        report = {"machine": machine(), "costs": {budget: costs(sets, budget) for budget in BUDGETS}, "sets": sets}
        RESULT.write_text(json.dumps(report, indent=1) + "\n")
        for budget, one in sets[name]["budgets"].items():
            print(
                name, budget, sets[name]["without_labels"], [d["by_labels"] for d in one["decisions"]], one["accuracy"]
            )
    print(json.dumps(report["costs"], indent=1))


if __name__ == "__main__":
    main()

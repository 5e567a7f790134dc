"""How long a person sits at the labelling page: 500 images of emoji and of Fashion-MNIST, through the server's API.

    OMP_NUM_THREADS=1 python tests/benchmarks/labelling.py emoji fashion --seeds 3
    OMP_NUM_THREADS=1 python tests/benchmarks/labelling.py --order --seeds 5
    OMP_NUM_THREADS=1 python tests/benchmarks/labelling.py --latency

The folders are those of picture_sets.py. 500 images are chosen by k-means on the published network's features, and come
in a random order, as those of a selection that does not sort them. The person knows the truth and takes 1.5 s to answer
an image, 0.6 s to accept a guess that is right, 3 s to look over a row and 0.6 s for each image that is left out of it.
Nobody is perfect: one in 10 wrong images of a row is overlooked, and one in 50 wrong guesses is accepted. Two ways to
work: `guesses`, one by one; `rows`: 100 one by one, then rows as long as the page says that four in five of the next
are right, and 25 one by one in between: of three rules the fastest on Fashion-MNIST (the others: 40, three in four, 20;
120, nine in ten, 25). `rows of all`: the same, where rows hold images that were not chosen, too, once the page does so,
until there are 500 answers; `rows` is with that turned off. Without guesses 500 answers take 12.5 minutes.

The accuracy after 100 and 500 answers is that of logistic regression (C = 30) on the whole features, on the test images
of the folder; beside it, that of the first 100 and 500 of the selection, and of as many drawn at random.

`--order`: the accuracy after some of these 500 answers, all right, in the order of choice, which is random here, and
the most helpful first, as the page has it with `q`; chosen from half of the images of `train`, measured on the others.

`--latency`: the time until the guesses of a new answer are there, for features of 50 dimensions and 500 answers, on one
core; and, in a label file of 10,000 images with guesses, the time that the server takes for an answer, and in Chromium
the time from a key until the page says that its answer is saved, and until the next image is on the screen. Figures go
to results/labelling.json.
"""

import argparse
import http.client
import json
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from picture_sets import made
from playwright.sync_api import sync_playwright
from torch import Tensor

from usl_lightning.data.images.opening import open_source
from usl_lightning.data.images.source import ImageSource, dataset_id
from usl_lightning.features.published import extract_features
from usl_lightning.init.choice import BACKBONE
from usl_lightning.labelling.guessing import Guesses
from usl_lightning.labelling.queue import helpful
from usl_lightning.labels import LabelIndex
from usl_lightning.selection.kmeans_nearest import select_kmeans_nearest
from usl_lightning.stage.guesses import Guesser
from usl_lightning.stage.overview import make_overview
from usl_lightning.vectors.distances import unit_rows

RESULTS = Path(__file__).parent / "results" / "labelling.json"
ANSWER, ACCEPT, LOOK_OVER = 1.5, 0.6, 3.0  # seconds
OVERLOOKED, WAVED_THROUGH = 0.1, 0.02  # of what is wrong
FIRST, BETWEEN = 100, 25  # images that are answered one by one
LIKELY = 0.8
BUDGET = 500


class Server:
    """`usl label` in a process of its own, and one connection to it."""

    def __init__(self, labels: Path) -> None:
        words = [sys.executable, "-m", "usl_lightning.cli", "label", str(labels), "--no-browser"]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        found = re.search(r"http://(127\.0\.0\.1:\d+)(/\S+)", self.process.stdout.readline())
        assert found is not None
        self.client, self.path = http.client.HTTPConnection(found[1], timeout=120), found[2]
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, address: str, body: Any = None) -> Any:
        start = time.perf_counter()
        content = None if body is None else json.dumps(body)
        self.client.request("GET" if body is None else "POST", self.path + address, content)
        response = self.client.getresponse()
        got = response.read()
        assert response.status in (200, 204), got
        self.seconds.setdefault(address.partition("?")[0], []).append(time.perf_counter() - start)
        return json.loads(got) if got else None

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait()


@contextmanager
def serving(labels: Path) -> Iterator[Server]:
    server = Server(labels)
    try:
        yield server
    finally:
        server.stop()


@dataclass
class Person:
    """Somebody at the page.

    Args:
        server: that is answered.
        truth: image -> class.
        seed: of what is overlooked.
    """

    server: Server
    truth: dict[int, int]
    seed: int
    seconds: float = 0.0
    single: dict[int, int] = field(default_factory=dict)
    bulk: dict[int, int] = field(default_factory=dict)
    beside: bool = False

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        state = self.server("state")
        self.selection, self.classes = state["selection"], state["classes"]
        self.images = [each["image"] for each in state["images"]]
        self.left_out: list[int] = []
        while self.server("guesses") is None:  # the classifier is being loaded
            time.sleep(0.1)

    @property
    def open(self) -> list[int]:
        return [image for image in self.images if image not in self.single and image not in self.bulk]

    @property
    def done(self) -> bool:
        return len(self.single) + len(self.bulk) >= BUDGET

    def one(self, guesses: dict[str, Any]) -> None:
        """Answer the next image."""
        image = self.open[0]
        guess = guesses["guess"][self.images.index(image)]
        right = self.truth[image]
        accepted = guess is not None and (guess[0] == right or self.rng.random() < WAVED_THROUGH)
        answer = guess[0] if guess is not None and accepted else right
        self.seconds += ACCEPT if accepted else ANSWER
        body = {"image": image, "answer": answer, "class": self.classes[answer], "seen": None}
        self.server("answers", {**body, "selection": self.selection})
        self.single[image] = answer

    def row(self) -> bool:
        """Look over the next row; false if it is not worth it."""
        beside = "true" if self.beside else "false"
        row = self.server(f"row?without={','.join(map(str, self.left_out[-300:]))}&beside={beside}")
        if row is None or len(row["images"]) < 4 or row["likely"] < LIKELY * len(row["images"]):
            return False
        number, images = row["class"], row["images"]
        out = [image for image in images if self.truth[image] != number and self.rng.random() >= OVERLOOKED]
        taken = [image for image in images if image not in out]
        self.seconds += LOOK_OVER + ACCEPT * len(out)
        self.left_out += out
        if taken:
            body = {"images": taken, "answer": number, "class": row["named"], "selection": self.selection}
            self.server("rows", body)
            self.bulk |= dict.fromkeys(taken, number)
        return True

    def told(self) -> dict[str, Any]:
        def share(given: dict[int, int]) -> float | None:
            right = [self.truth[image] == answer for image, answer in given.items()]
            return round(statistics.mean(right), 4) if right else None

        waits = {name: self.server.seconds.get(name, [0.0]) for name in ("answers", "rows", "guesses", "row")}
        return {
            "minutes": round(self.seconds / 60, 2),
            "right": share(self.single | self.bulk),
            "single": {"answers": len(self.single), "right": share(self.single)},
            "bulk": {"answers": len(self.bulk), "right": share(self.bulk)},
            "beside": len({*self.single, *self.bulk} - {*self.images}),
            "median_ms": {name: round(1000 * statistics.median(seconds), 1) for name, seconds in waits.items()},
        }


def by_guesses(person: Person, after: Callable[[], None]) -> None:
    """One by one, with what is guessed."""
    while not person.done:
        person.one(person.server("guesses"))
        after()


def by_rows(person: Person, after: Callable[[], None]) -> None:
    """Some one by one, then rows while they are good, and so on."""
    first = FIRST
    while not person.done:
        for _ in range(min(first, len(person.open), BUDGET - len(person.single) - len(person.bulk))):
            person.one(person.server("guesses"))
            after()
        while not person.done and person.row():
            after()
        first = BETWEEN


def by_rows_of_all(person: Person, after: Callable[[], None]) -> None:
    """The same, with images that were not chosen."""
    person.beside = True
    by_rows(person, after)


WAYS = {"guesses": by_guesses, "rows": by_rows, "rows of all": by_rows_of_all}


def write_selection(folder: Path, source: ImageSource, features: Tensor, seed: int, root: Path) -> Path:
    """What a selection of 500 leaves, without any label."""
    picks = select_kmeans_nearest(features, BUDGET, seed=seed, restarts=1)
    picks = picks[torch.randperm(BUDGET, generator=torch.Generator().manual_seed(seed))]
    folder.mkdir(parents=True)
    positions, files = picks.tolist(), source.files or ()
    index = LabelIndex(
        dataset_id(source), {"name": "kmeans", "seed": seed}, tuple(positions), (None,) * BUDGET, source.classes,
        tuple(files[i] for i in positions), hashes=tuple(source.content_hashes(positions)),
    )  # fmt: skip
    index.write(folder / "labels.json")
    overview = make_overview(features, picks)
    assert overview is not None
    overview.write(folder / "overview.npz")
    (folder / "config.yaml").write_text(f"data: {{init_args: {{dataset: folder, dir: '{root}'}}}}\n")
    return folder / "labels.json"


@dataclass(frozen=True)
class Folder:
    """What a set is measured by.

    Attributes:
        x: features [n + t, d], of its images, then of its test images.
        truth: classes [n + t].
        images: n.
    """

    x: Tensor
    truth: Tensor
    images: int

    def accuracy(self, given: dict[int, int]) -> float:
        """Of logistic regression from these answers, on the test images."""
        guesser = Guesser(self.x.numpy(), np.arange(0))
        p = guesser.guess(list(given), list(given.values()), int(self.truth.max()) + 1)
        right = torch.from_numpy(p[self.images :]).argmax(1) == self.truth[self.images :]
        return round(float(right.double().mean()), 4)


def sat_at(labels: Path, way: str, folder: Folder, seed: int) -> dict[str, Any]:
    """One person who works in one way."""
    chosen = LabelIndex.read(labels).indices
    known = dict(enumerate(folder.truth[: folder.images].tolist()))
    learned: dict[int, float] = {}
    with serving(labels) as server:
        person = Person(server, known, seed)

        def after() -> None:
            given = person.single | person.bulk
            for count in (100, BUDGET):
                if len(given) >= count and count not in learned:
                    learned[count] = folder.accuracy(given)

        WAYS[way](person, after)
    drawn = torch.randperm(folder.images, generator=torch.Generator().manual_seed(seed)).tolist()
    beside = {
        count: {
            name: folder.accuracy({image: known[image] for image in images[:count]})
            for name, images in (("selection", chosen), ("random", drawn))
        }
        for count in (100, BUDGET)
    }
    kept = LabelIndex.read(labels)
    told = person.told()
    assert (len(kept.bulk), len(kept.added)) == (len(person.bulk), told["beside"])
    assert dict(zip(kept.indices, kept.labels, strict=True)).items() >= (person.single | person.bulk).items()
    return {**told, "accuracy_after": learned, "accuracy_of": beside}


def look_at(name: str, sets: Path) -> tuple[ImageSource, Folder, Path]:
    """The images of a set, with features."""
    root = made(name, sets).resolve()
    both = [open_source("folder", split, dir=str(root), image_size=224, channels=3) for split in ("train", "test")]
    x = torch.cat([unit_rows(extract_features(each, BACKBONE, keep=True)).float() for each in both])
    return both[0], Folder(x, torch.cat([each.labels for each in both]), len(both[0])), root


def figures(name: str, sets: Path, seeds: int, ways: list[str]) -> dict[str, Any]:
    """Some ways to work on one set."""
    source, measured, root = look_at(name, sets)
    x = measured.x[: len(source)]
    report: dict[str, Any] = {"images": len(source), "classes": len(source.classes)}
    for way in ways:
        runs = []
        for seed in range(seeds):
            with tempfile.TemporaryDirectory(prefix="usl-labelling-") as folder:
                labels = write_selection(Path(folder) / "select", source, x, seed, root)
                runs.append(sat_at(labels, way, measured, seed))
            print(name, way, runs[-1], flush=True)
        means = {key: round(statistics.mean(run[key] for run in runs), 4) for key in ("minutes", "right", "beside")}
        after = {
            count: round(statistics.mean(run["accuracy_after"][count] for run in runs), 4) for count in (100, BUDGET)
        }
        report[way] = {**means, "accuracy_after": after, "runs": runs}
    return report


ANSWERS = (40, 60, 100, 200)
ORDERS = {"as chosen": ANSWERS[-1], "most helpful first": 0, "most helpful from 40 on": 40}
"""How many answers are given in the order of choice before those come first that help most."""


def orders(name: str, sets: Path, seeds: int) -> dict[str, dict[int, float]]:
    """Order of the answers -> their number -> mean accuracy."""
    source = open_source("folder", "train", dir=str(made(name, sets).resolve()), image_size=224, channels=3)
    x, found = unit_rows(extract_features(source, BACKBONE, keep=True)).float(), list[list[list[float]]]()
    for seed in range(seeds):
        mixed = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        half = len(x) // 2
        both = Folder(x[mixed], source.labels[mixed], half)
        picks = select_kmeans_nearest(both.x[:half], BUDGET, seed=seed, restarts=1)
        picks = picks[torch.randperm(BUDGET, generator=torch.Generator().manual_seed(seed))]
        truth = dict(zip(picks.tolist(), both.truth[picks].tolist(), strict=True))
        overview = make_overview(both.x[:half], picks)
        ways = [helpful_first(truth, overview, source.classes, start) for start in ORDERS.values()]
        found.append([[both.accuracy({i: truth[i] for i in order[:n]}) for n in ANSWERS] for order in ways])
    means = torch.tensor(found).mean(0).tolist()
    return {
        order: {n: round(mean, 4) for n, mean in zip(ANSWERS, each, strict=True)}
        for order, each in zip(ORDERS, means, strict=True)
    }


def helpful_first(truth: dict[int, int], overview: Any, classes: tuple[str, ...], start: int) -> list[int]:
    """The order in which the page asks for these images, until there are the most of `ANSWERS`: `start` as chosen."""
    features = overview.features[: len(truth)].astype(np.float32)
    guesser, images, order = Guesser(features, np.arange(0)), [*truth], [*truth][:start]
    while len(order) < max(ANSWERS):
        index = LabelIndex(None, {}, tuple(images), tuple(truth[i] if i in order else None for i in images), classes)
        if len({truth[i] for i in order}) < 2:
            order.append(images[len(order)])
            continue
        p = guesser.guess([images.index(i) for i in order], [truth[i] for i in order], len(classes))
        order.append(helpful(Guesses("", index, np.array(images), p))[0][0])
    return order


def refits() -> list[dict[str, Any]]:
    """Milliseconds of a new guess of all images from 500 answers, and of the judgement behind it."""
    torch.set_num_threads(1)
    told = []
    for n in (1_000, 10_000, 100_000):
        rng = np.random.default_rng(0)
        truth = rng.integers(0, 10, n)
        x = (0.5 * rng.normal(size=(10, 50))[truth] + rng.normal(size=(n, 50))).astype(np.float32)
        guesser, answers = Guesser(x, np.arange(0)), truth[:BUDGET].tolist()
        times = []
        for answered in range(BUDGET - 9, BUDGET + 1):
            start = time.perf_counter()
            guesser.guess(range(answered), answers[:answered], 10)
            times.append(1000 * (time.perf_counter() - start))
        start = time.perf_counter()
        guesser.judge(range(BUDGET), answers, 10)
        judged = time.perf_counter() - start
        told.append({"images": n, "median_ms": round(statistics.median(times), 1), "most_ms": round(max(times), 1),
                     "judgement_ms": round(1000 * judged, 1)})  # fmt: skip
    return told


def answers_of_10k(sets: Path) -> dict[str, dict[str, float]]:
    """Milliseconds of an answer in a label file of all 10,000 images of fashion, for the server and on the page."""
    root = made("fashion", sets).resolve()
    source = open_source("folder", "train", dir=str(root), image_size=28, channels=1)
    everything = list(range(len(source)))
    with tempfile.TemporaryDirectory(prefix="usl-labelling-") as folder:
        stage = Path(folder) / "select"
        stage.mkdir()
        index = LabelIndex(
            dataset_id(source), {}, tuple(everything), (None,) * len(everything), source.classes, source.files,
            hashes=tuple(source.content_hashes(everything)),
        )  # fmt: skip
        index.write(stage / "labels.json")
        (stage / "config.yaml").write_text(f"data: {{init_args: {{dataset: folder, dir: '{root}'}}}}\n")
        overview = make_overview(torch.randn(len(source), 50), torch.arange(len(source)))
        assert overview is not None
        overview.write(stage / "overview.npz")
        with serving(stage / "labels.json") as server:
            selection = server("state")["selection"]
            for image in range(30):
                server("answers", {"image": image, "answer": image % 2, "seen": None, "selection": selection})
            saved, shown = zip(
                *keys_pressed(f"http://{server.client.host}:{server.client.port}{server.path}", 30), strict=True
            )
        times = {
            "server": [1000 * seconds for seconds in server.seconds["answers"]],
            "saved": saved,
            "next_shown": shown,
        }
    return {
        name: {"median_ms": round(statistics.median(each), 1), "most_ms": round(max(each), 1)}
        for name, each in times.items()
    }


_SEEN = """() => {
  const status = document.getElementById("status");
  addEventListener("keydown", (event) => { window.pressed = event.timeStamp; window.saved = null; }, true);
  new MutationObserver(() => { if (status.textContent.startsWith("Saved")) window.saved = performance.now(); })
    .observe(status, { childList: true });
}"""


def keys_pressed(address: str, count: int) -> list[tuple[float, float]]:
    """Milliseconds in Chromium from a key until its answer is said to be saved, and until the next image is shown."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        page.wait_for_function("() => shown && shown.since < Infinity && !document.getElementById('rows').hidden")
        page.evaluate(_SEEN)
        told = []
        for number in range(count):
            page.wait_for_timeout(500)
            page.keyboard.press(str(number % 2 + 1))
            page.wait_for_function("() => saved && shown.since > pressed && shown.since < Infinity")
            told.append(tuple(page.evaluate("() => [saved - pressed, shown.since - pressed]")))
        browser.close()
    return told


def main() -> None:
    """Measure what was asked for; other figures stay as they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*")
    parser.add_argument("--ways", nargs="+", default=[*WAYS], choices=[*WAYS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--order", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("runs/picture_sets"))
    arguments = parser.parse_args()
    report = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    report["machine"] = machine()
    for name in arguments.sets:
        told = figures(name, arguments.folder, arguments.seeds, arguments.ways)
        report[name] = {**report.get(name, {}), **told}
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.order:
        report["order"] = {name: orders(name, arguments.folder, arguments.seeds) for name in ("emoji", "fashion")}
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
        print(report["order"])
    if arguments.latency:
        report["refit"], report["answer_in_10000"] = refits(), answers_of_10k(arguments.folder)
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
        print(report["refit"], report["answer_in_10000"])


if __name__ == "__main__":
    main()

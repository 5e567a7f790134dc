"""`usl compare`: its cells are the selectors' choices, a stopped run goes on, and its refusals name what is meant."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from usl_lightning.cli import main
from usl_lightning.compare import comparison
from usl_lightning.compare.spec import selector_names
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.images.opening import open_source
from usl_lightning.data.images.source import ImageSource
from usl_lightning.evaluation.label_quality import label_quality
from usl_lightning.selection.coreset import select_coreset
from usl_lightning.selection.density import Density
from usl_lightning.selection.kmeans_nearest import select_kmeans_nearest
from usl_lightning.selection.maxherding import MaxHerding
from usl_lightning.selection.random import select_random
from usl_lightning.selection.selector import Selector
from usl_lightning.semisup.probe import Probe

N = 1437
OUT = Path("runs/mine")
SPEC = ImageSpec(1, 8, 8, (0.5,), (0.5,), tuple(map(str, range(10))))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder with the pixels of the training digits as features, and a configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("USL_CACHE", str(tmp_path / "cache"))
    np.save("pixels.npy", pixels(digits()).numpy())
    write()


@pytest.fixture
def bench_head() -> Path:
    """A checkpoint with a projection head."""
    main(["fit", "--config=digits_simclr.yaml", "--trainer.max_steps=2", "--run_dir=network"])
    return Path("network/checkpoints/last.ckpt")


def digits() -> ImageSource:
    return open_source("digits", "train")


def pixels(source: ImageSource) -> torch.Tensor:
    return source.read(torch.arange(N)).reshape(N, -1).float()


def write(**changes: Any) -> None:
    content = {
        "data": {"dataset": "digits"},
        "features": {"features": "pixels.npy"},
        "selectors": ["random", {"class_path": "kmeans_nearest", "init_args": {"iterations": 3}}, "coreset"],
        "budgets": [5, 20],
        "seeds": [0, 3],
        **changes,
    }
    Path("mine.yaml").write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))


def compare(*words: str) -> list[dict[str, str]]:
    """The rows of the table."""
    main(["compare", "mine.yaml", *words])
    return list(csv.DictReader((OUT / "table.csv").open()))


def cells(out: Path = OUT) -> dict[tuple[str, int, int], dict[str, Any]]:
    read = [json.loads(path.read_text()) for path in (out / "cells").glob("*.json")]
    return {(cell["selector"], cell["budget"], cell["seed"]): cell for cell in read}


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["compare", *words])
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert len(lines) == 1
    assert not OUT.exists()
    return lines[0]


def test_cells_are_the_selectors_choices_and_their_figures() -> None:
    rows = compare()
    features, labels = pixels(digits()), digits().labels
    expected = {
        "random": lambda budget, seed: select_random(N, budget, seed=seed),
        "kmeans_nearest": lambda budget, seed: select_kmeans_nearest(features, budget, seed=seed, iterations=3),
        "coreset": lambda budget, seed: select_coreset(features, budget, seed=seed),
    }
    found = cells()
    assert list(found.keys() ^ {(s, b, seed) for s in expected for b in (5, 20) for seed in (0, 3)}) == []
    for (selector, budget, seed), cell in found.items():
        chosen = expected[selector](budget, seed)
        assert cell["indices"] == chosen.tolist()
        quality = label_quality(labels, chosen, features, num_classes=10)
        assert {name: cell[name] for name in quality} == quality
    assert [(row["selector"], row["budget"], row["seed"]) for row in rows[:4]] == [
        ("random", "5", "0"), ("random", "5", "3"), ("random", "20", "0"), ("random", "20", "3"),
    ]  # fmt: skip
    for row in rows:
        cell = found[row["selector"], int(row["budget"]), int(row["seed"])]
        assert float(row["propagated_accuracy"]) == cell["propagated_accuracy"]


def test_what_no_seed_can_change_is_chosen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    for found in (Density, MaxHerding):
        choose = found.choose

        def counted(self: Selector, features: torch.Tensor, seed: int, choose: Any = choose) -> torch.Tensor:
            asked.append((type(self).__name__, self.budget))
            chosen: torch.Tensor = choose(self, features, seed)
            return chosen

        monkeypatch.setattr(found, "choose", counted)
    write(
        selectors=["density", "maxherding", {"class_path": "maxherding", "name": "wide", "init_args": {"sigma": 3.0}}]
    )
    compare()
    assert sorted(asked) == sorted([("Density", b) for b in (5, 20)] + 2 * [("MaxHerding", b) for b in (5, 20)])
    made = cells()
    assert made["maxherding", 20, 0]["indices"] == made["maxherding", 20, 3]["indices"]
    assert made["maxherding", 20, 0]["indices"] != made["wide", 20, 0]["indices"]


def test_the_summary_is_over_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    compare()
    table, found = json.loads((OUT / "table.json").read_text()), cells()
    assert len(table["summary"]) == 6
    for row in table["summary"]:
        values = [found[row["selector"], row["budget"], seed]["propagated_accuracy"] for seed in (0, 3)]
        told = row["propagated_accuracy"]
        assert (told["mean"], told["least"], told["most"]) == pytest.approx((np.mean(values), min(values), max(values)))
    out = capsys.readouterr().out
    told = next(r for r in table["summary"] if (r["selector"], r["budget"]) == ("coreset", 20))["propagated_accuracy"]
    assert f"{told['mean']:.3f} ({told['least']:.3f}-{told['most']:.3f})" in out
    with Image.open(OUT / "comparison.png") as picture:
        assert min(picture.size) > 300


def test_the_overlap_is_the_share_that_two_choose_alike() -> None:
    compare()
    picks = {cell: set(about["indices"]) for cell, about in cells().items()}
    with (OUT / "overlap.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 6
    for row in rows:
        budget, seeds = int(row["budget"]), [(0, 3)] if row["selector"] == row["other"] else [(0, 0), (3, 3)]
        alike = [len(picks[row["selector"], budget, a] & picks[row["other"], budget, b]) for a, b in seeds]
        assert float(row["in_common"]) == pytest.approx(np.mean(alike) / budget, abs=1e-4)


def test_a_stopped_run_goes_on_and_a_changed_cell_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int, int]] = []
    choose = comparison._choose

    def counted(ground: Any, entry: Any, budget: int, seed: int) -> torch.Tensor:
        if len(made) == stop:
            raise KeyboardInterrupt
        made.append((entry.name, budget, seed))
        return choose(ground, entry, budget, seed)

    monkeypatch.setattr(comparison, "_choose", counted)
    stop = 5
    with pytest.raises(SystemExit) as interrupted:
        compare()
    assert interrupted.value.code == 130
    assert len(cells()) == 5
    assert not (OUT / "table.csv").exists()
    stop = -1
    rows = compare()
    assert len(made) == len(set(made)) == len(rows) == 12
    first = (OUT / "table.csv").read_text()
    assert compare() == rows, "nothing to do"
    assert len(made) == 12
    write(selectors=["random", {"class_path": "kmeans_nearest", "init_args": {"iterations": 1}}, "coreset"])
    compare()
    assert {name for name, _, _ in made[12:]} == {"kmeans_nearest"}
    assert len(made) == 16
    write()
    compare()
    assert len(made) == 16, "the cells of before are still there"
    assert (OUT / "table.csv").read_text() == first
    np.save("pixels.npy", pixels(digits()).numpy() + 1)
    compare("--seeds", "3")
    assert len(made) == 22, "other features are another comparison"


def test_choices_do_not_depend_on_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    compare()
    before, opened = cells(), comparison._data

    def shuffled(asked: Any) -> Any:
        data = opened(asked)
        data.train_source.labels = torch.roll(data.train_source.labels, 1)
        return data

    monkeypatch.setattr(comparison, "_data", shuffled)
    compare("--out", "runs/shuffled")
    after = cells(Path("runs/shuffled"))
    assert {key: cell["indices"] for key, cell in before.items()} == {k: c["indices"] for k, c in after.items()}
    assert any(before[key]["class_counts"] != after[key]["class_counts"] for key in before)


def test_an_oracle_and_a_selector_with_features_of_its_own() -> None:
    np.save("other.npy", np.random.default_rng(0).normal(size=(N, 4)))
    own = {"class_path": "coreset", "init_args": {"features": "other.npy"}, "name": "own"}
    write(selectors=[{"class_path": "stratified", "init_args": {"allow_oracle": True}}, own], budgets=10)
    compare()
    found = cells()
    assert found["stratified", 10, 3]["class_counts"] == [1] * 10
    expected = select_coreset(torch.from_numpy(np.load("other.npy")), 10, seed=3)
    assert found["own", 10, 3]["indices"] == expected.tolist()


def test_the_features_of_a_projection_head_may_be_compared(bench_head: Path) -> None:
    """What is chosen from is what `usl select --model.head projection` looks at."""
    write(features=None, selectors=["coreset"])
    for head in ("encoder", "projection"):
        words = [f"--features.init_from={bench_head}", f"--features.head={head}", "--budgets=5", "--seeds=0"]
        main(["compare", "mine.yaml", *words, f"--out={head}"])
        main(["select", "--config=digits_coreset.yaml", f"--model.init_from={bench_head}", f"--model.head={head}",
              "--model.budget=5", f"--run_dir=picked_{head}"])  # fmt: skip
        picked = json.loads(Path(f"picked_{head}", "labels.json").read_text())["indices"]
        assert cells(Path(head))["coreset", 5, 0]["indices"] == picked
    one, other = (cells(Path(head))["coreset", 5, 0]["indices"] for head in ("encoder", "projection"))
    assert one != other


def test_classifiers_that_learn_from_each_choice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compare()
    before = {path: path.read_bytes() for path in (OUT / "cells").iterdir()}
    rows = compare("--classifiers", "[probe, blend]")
    assert "accuracy by probe" in capsys.readouterr().out
    source, found = digits(), cells()
    for row in rows:
        cell = found[row["selector"], int(row["budget"]), int(row["seed"])]
        picks = torch.tensor(cell["indices"])
        rest = torch.ones(N, dtype=torch.bool)
        rest[picks] = False
        probe = Probe(image=SPEC, features="here")
        told = probe.learn_from(pixels(source), picks, source.labels[picks], seed=cell["seed"]).argmax(1)
        right = float((told[rest] == source.labels[rest]).double().mean())
        assert float(row["probe_accuracy"]) == cell["probe_accuracy"] == pytest.approx(right)
        assert cell["blend_accuracy"] is not None
    assert set((OUT / "cells").iterdir()) == {*before}, "nothing was chosen anew"
    after = {path: path.stat().st_mtime_ns for path in before}
    assert "probe_accuracy" not in compare("--classifiers", "[]")[0]
    compare("--classifiers", "[blend]")
    assert after == {path: path.stat().st_mtime_ns for path in before}, "what is known is not made again"
    real = comparison.revision_of
    monkeypatch.setattr(comparison, "revision_of", lambda path: 7 if path.endswith("Blend") else real(path))
    compare("--classifiers", "[probe, blend]")
    assert {cell["classifiers"]["blend"] for cell in cells().values()} == {7}, "of other mathematics it is made again"
    main(["compare", "mine.yaml", "--budgets", "1", "--classifiers", "probe", "--out", "one"])
    assert {cell["probe_accuracy"] for cell in cells(Path("one")).values()} == {None}, "one label is of one class"


def test_the_command_line_beats_the_file() -> None:
    rows = compare("--budgets", "[7]", "--seeds", "1")
    assert {(row["budget"], row["seed"]) for row in rows} == {("7", "1")}


def test_every_selector_has_a_short_name() -> None:
    names = selector_names()
    assert {"activeft", "kmeans_nearest", "random", "usl", "uslt_selection"} <= names.keys()
    assert names["usl"] == "usl_lightning.selection.usl.USL"
    assert "base" not in names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"selectors": ["random", "coreste"]},
            "mine.yaml: selectors[1]: unknown selector 'coreste' (did you mean 'core",
        ),
        ({"selectors": ["a.b.C"]}, "mine.yaml: selectors: C: class_path: there is no class a.b.C"),
        ({"selectors": ["usl_lightning.models.ema.EMA"]}, "EMA is not a selector"),
        ({"selectors": ["usl", "usl"]}, "mine.yaml: selectors[1]: the name 'usl' is taken"),
        ({"selectors": [{"class_path": "usl", "init_arg": {}}]}, "unknown key 'init_arg' (did you mean 'init_args'?)"),
        (
            {"selectors": [{"class_path": "usl", "init_args": {"kk": 1}}]},
            "selectors: usl: unknown key 'kk' (did you mean",
        ),
        ({"selectors": [{"class_path": "usl", "init_args": {"k": "x"}}]}, "selectors: usl: k: expected int, found x"),
        ({"selectors": []}, "mine.yaml: selectors: expected a list"),
        ({"budgets": [0]}, "mine.yaml: budgets: 0 is out of range; expected 1 or more"),
        ({"budgets": [3, 3]}, "mine.yaml: budgets: expected at least one number, none of them twice"),
        ({"budgets": [2000]}, "mine.yaml: budgets: 2000 of 1437 images cannot be picked"),
        ({"budgets": None}, "mine.yaml: budgets: expected a list of whole numbers, 1 or more, found None"),
        ({"seeds": "one"}, "mine.yaml: seeds: expected a list of whole numbers, 0 to 4294967295, found 'one'"),
        ({"classifiers": ["svm"]}, "mine.yaml: classifiers: 'svm': expected a list of probe, propagate, blend"),
        ({"classifiers": [["probe"]]}, "mine.yaml: classifiers: ['probe']: expected a list of probe, propagate, blend"),
        ({"classifiers": ["probe", "probe"]}, "mine.yaml: classifiers: expected none of them twice"),
        ({"seed": 0}, "mine.yaml: unknown key 'seed' (did you mean 'seeds'?)"),
        ({"features": {}}, "mine.yaml: features: nothing given; expected one source of features"),
        ({"features": {"features": "none.npy"}}, "features.features: no such file: none.npy"),
        ({"features": {"feature": "none.npy"}}, "features: unknown key 'feature' (did you mean 'features'?)"),
        ({"data": {}}, "mine.yaml: data.dataset: the data set is missing"),
        (
            {"data": {"dataset": "digits", "splt": "test"}},
            "mine.yaml: data: unknown key 'splt' (did you mean 'split'?)",
        ),
    ],
)
def test_refusals(changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(**changes)
    assert message in refused(capsys, "mine.yaml")


def test_refusals_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "the configuration is missing" in refused(capsys)
    assert "--budget: unknown option (did you mean 'budgets'?)" in refused(capsys, "mine.yaml", "--budget", "3")
    with pytest.raises(SystemExit):
        main(["select", "--config", "mine.yaml"])
    assert "run it with usl compare mine.yaml" in capsys.readouterr().err


def test_a_damaged_cell_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    write(selectors=["random"], budgets=[5], seeds=[0])
    compare()
    (path,) = (OUT / "cells").glob("*.json")
    path.write_text('{"indices": [1')
    with pytest.raises(SystemExit):
        compare()
    assert f"{path}: cannot be read" in capsys.readouterr().err

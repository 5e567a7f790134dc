"""`usl propagate` from end to end: what it leaves, what it is refused for, and a training that it guides."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from methods import Bench, Shipped, methods, model_options, options, usl

from usl_lightning.data.batch import ImageSpec
from usl_lightning.labels import LabelIndex
from usl_lightning.models.method import Method
from usl_lightning.selection.priors import Priors
from usl_lightning.stage.folder import StageFolder


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """160 digits, 20 labels."""
    return Bench(tmp_path_factory.mktemp("bench"))


def words(bench: Bench) -> list[str]:
    return ["propagate", *bench.words(Shipped(Method, "fit", "digits_priors.yaml"))[1:]]


def test_it_leaves_a_prior_its_figures_and_an_index_that_names_it(bench: Bench, tmp_path: Path) -> None:
    usl(*words(bench), "--run_dir", tmp_path / "it")
    figures = json.loads((tmp_path / "it" / "result.json").read_text())
    assert figures["labels"] == 20
    assert figures["prior_accuracy"] > 0.5
    assert set(figures) == {
        "labels", "prior_coverage", "prior_confidence", "prior_accuracy", "prior_calibration_error",
    }  # fmt: skip
    folder = StageFolder(tmp_path / "it")
    assert folder.complete
    outputs = folder.outputs()
    assert Path(outputs["priors"]).exists()
    index = LabelIndex.read(outputs["labels"])
    assert index.soft == {"file": "outputs/priors.npz", "source": "propagation"}
    assert (folder.path / index.soft["file"]).exists()
    assert index.indices == tuple(range(20)), "they are no labels"
    index.write(tmp_path / "again.json")
    assert LabelIndex.read(tmp_path / "again.json") == index
    usl(*words(bench), "--run_dir", tmp_path / "again")
    for name in ("clusters", "tables", "weights"):
        with np.load(outputs["priors"]) as one, np.load(tmp_path / "again" / "outputs" / "priors.npz") as two:
            assert np.array_equal(one[name], two[name])


def test_features_may_be_those_of_a_projection(bench: Bench, tmp_path: Path) -> None:
    """What the prior is made of is what `usl select --model.head projection` looks at."""
    checkpoint = bench.checkpoint("digits_simclr.yaml")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    heads = [value for name, value in state.items() if name.startswith("projector.") and value.ndim == 2]
    given = {"image": ImageSpec(1, 8, 8, (0.0,), (1.0,), tuple("0123456789")), "init_from": str(checkpoint)}
    for head, size in (("encoder", heads[0].shape[1]), ("projection", heads[-1].shape[0])):
        method = Priors(**given, head=head)
        method.load_network()
        assert method.encoder.feature_dim == size
        how = model_options({"init_from": str(checkpoint), "head": head})
        usl(*words(bench), *how, "--run_dir", tmp_path / head)
    one, two = (np.load(tmp_path / head / "outputs/priors.npz")["clusters"] for head in ("encoder", "projection"))
    assert not np.array_equal(one, two)


def test_labels_but_the_known_change_nothing(bench: Bench, tmp_path: Path) -> None:
    """The others are for the figures alone."""
    made = np.load(bench.folder / "data" / "train.npz")
    labels = made["labels"].copy()
    labels[20:] = (labels[20:] + 1) % 10
    wrong = bench.write("wrong", made["images"], labels)
    for name, data in (("right", bench.folder / "data"), ("other", wrong)):
        usl(*words(bench), *options(data__dir=str(data)), "--run_dir", tmp_path / name)
    with np.load(tmp_path / "right/outputs/priors.npz") as one, np.load(tmp_path / "other/outputs/priors.npz") as two:
        assert all(np.array_equal(one[name], two[name]) for name in ("clusters", "tables", "weights"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"clusters": [9]},
            "k=9 clusters of constrained seed k-means: expected a number from 10, the labelled classes",
        ),
        ({"clusters": [200]}, "to 160, the images there are"),
        ({"clusters": []}, "model.clusters: no number is given"),
        ({"clusters": [0]}, "--model.clusters: 0 is out of range; expected 1 or more"),
        ({"spread": "far"}, "expected one of 'clusters', 'graph', 'nearest', found far"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(
    given: dict[str, Any], said: str, bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AssertionError, match="exit code 2"):
        usl(*words(bench), *model_options(given), "--run_dir", tmp_path / "refused")
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("usl: ")]
    assert said in line
    assert not (tmp_path / "refused").exists()


def test_a_class_without_a_label_is_warned_of(bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = np.load(bench.folder / "data" / "train.npz")
    few = [int(np.flatnonzero(made["labels"] == label)[0]) for label in range(9)]
    (tmp_path / "nine.json").write_text(json.dumps(few))
    usl(*words(bench), f"--data.labels={tmp_path / 'nine.json'}", "--run_dir", tmp_path / "it")
    assert re.search(r"no label of 1 of the 10 classes \(9\); their prior is zero", caplog.text)


def test_a_wrong_prior_is_refused_before_anything_is_written(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (flexmatch,) = [each for each in methods("fit") if str(each) == "FlexMatch"]
    np.save(tmp_path / "above.npy", np.full((160, 10), 0.5, np.float32))
    np.save(tmp_path / "others.npy", np.zeros((99, 10), np.float32))
    for file, said in (("above.npy", "add up to more than 1"), ("others.npy", "99 rows for 160 images"),
                       ("none.npz", "no such file")):  # fmt: skip
        given = model_options({"prior_file": str(tmp_path / file)})
        with pytest.raises(AssertionError, match="exit code 2"):
            usl(*bench.words(flexmatch), *given, *options(trainer__max_steps=2), "--run_dir", tmp_path / "refused")
        (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("usl: ")]
        assert said in line
        assert not (tmp_path / "refused" / "checkpoints").exists()


def test_the_median_of_the_last_evaluations_is_told(bench: Bench, tmp_path: Path) -> None:
    (fixmatch,) = [each for each in methods("fit") if str(each) == "FixMatch"]
    for every, steps, count in ((1, 23, 20), (2, 5, 3)):
        run = tmp_path / str(every)
        more = options(trainer__max_steps=steps, trainer__val_check_interval=every)
        usl(*bench.words(fixmatch), *more, "--run_dir", run)
        rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
        seen = [float(value) for step, name, value in rows if name == "test_accuracy" and int(step) < steps - 1]
        result = json.loads((run / "result.json").read_text())
        last = [*seen, result["test_accuracy"]][-20:]
        assert result["test_accuracy_evaluations"] == len(last) == count
        assert result["test_accuracy_median"] == pytest.approx(float(np.median(last)))
    usl(*bench.words(fixmatch), *options(trainer__max_steps=2), "--run_dir", tmp_path / "none")
    assert "test_accuracy_median" not in json.loads((tmp_path / "none" / "result.json").read_text())

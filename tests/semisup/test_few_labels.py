"""Probe, Propagate and Blend by the real command: what they learn, leave, tell of themselves, and refuse."""

import json
import math
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from runs import last_checkpoint
from sklearn.datasets import load_digits

from usl_lightning.cli import main
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.images.opening import open_source
from usl_lightning.data.images.source import dataset_id
from usl_lightning.features.votes import load_votes
from usl_lightning.labels import LabelIndex
from usl_lightning.models.encoder import Encoder, load_encoder, read_checkpoint
from usl_lightning.models.heads import load_classifier
from usl_lightning.semisup.blend import Blend
from usl_lightning.semisup.ensemble import Ensemble
from usl_lightning.semisup.few_labels import FewLabels
from usl_lightning.semisup.probe import Probe
from usl_lightning.semisup.propagate import Propagate

CLASSES: dict[str, Any] = {"probe": Probe, "propagate": Propagate, "blend": Blend, "ensemble": Ensemble}
METHODS = tuple(CLASSES)
IMAGES = 400

ORDER = np.random.default_rng(0).permutation(1797)
"""Digits lie writer by writer in scikit-learn's file."""

PIXELS = np.rint(load_digits().images[ORDER] * (255 / 16)).astype(np.uint8)
TRUTH = load_digits().target[ORDER]


def usl(*words: Any) -> None:
    main([str(word) for word in words])


def refused(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    """The line of a refusal."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        usl(*words)
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def arrays(folder: Path, labels: np.ndarray | None = None) -> Path:
    """400 digits to learn from and 200 to test on."""
    folder.mkdir(parents=True)
    np.savez(folder / "train.npz", images=PIXELS[:IMAGES], labels=TRUTH[:IMAGES] if labels is None else labels)
    np.savez(folder / "test.npz", images=PIXELS[-200:], labels=TRUTH[-200:])
    return folder


def index(data: Path, positions: list[int], path: Path, **changes: Any) -> Path:
    """A label index of these images with their true labels."""
    source = open_source("arrays", "train", dir=str(data))
    labels = tuple(TRUTH[positions].tolist())
    known = {"labels": labels, "classes": source.classes, **changes}
    LabelIndex(dataset_id(source), {"name": "test"}, tuple(positions), **known).write(path)
    return path


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, 60 labels, and features of the pixels."""
    folder = tmp_path_factory.mktemp("few")
    arrays(folder / "data")
    index(folder / "data", list(range(60)), folder / "labels.json")
    return folder


def words(bench: Path, method: str, run_dir: Path, *more: Any) -> list[Any]:
    """A fit from the random features of a small network."""
    given = ["--data.dataset", "arrays", "--data.dir", bench / "data", "--data.labels", bench / "labels.json"]
    network = ["--model.backbone", "small", "--model.pretrained", "false"]
    return ["fit", "--config", f"digits_{method}.yaml", *given, *network, "--run_dir", run_dir, *more]


@pytest.fixture(scope="module")
def fitted(bench: Path) -> dict[str, Path]:
    """The run folder of each method."""
    for method in METHODS:
        usl(*words(bench, method, bench / method))
    return {method: bench / method for method in METHODS}


def result(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "result.json").read_text())


# What comes out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_and_says_how_good_it_is(method: str, fitted: dict[str, Path]) -> None:
    told = result(fitted[method])
    assert told["test_accuracy"] > 0.6
    low, high = told["estimated_interval"]
    assert 0 <= low < told["estimated_accuracy"] < high <= 1
    assert low - 0.05 < told["test_accuracy"] < high + 0.05
    assert told["estimated_from"] == 60
    evaluation = json.loads((fitted[method] / "evaluation.json").read_text())
    assert evaluation["classifier"]["accuracy"] == pytest.approx(told["test_accuracy"])
    judged = evaluation["judged_by_labels"]
    assert judged["estimate"]["accuracy"] == told["estimated_accuracy"]
    assert len(judged["reliability"]) == 15
    assert sum(row[0] for row in judged["reliability"]) <= 3 * 60
    assert 0 <= judged["calibration_error"] < 0.3


@pytest.mark.parametrize("method", METHODS)
def test_its_checkpoint_is_looked_at_again(
    method: str, fitted: dict[str, Path], bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["--config", fitted[method] / "config.yaml", "--ckpt_path", "last"]
    before = (fitted[method] / "evaluation.json").read_text()
    usl("test", *config)
    assert f"{result(fitted[method])['test_accuracy']:.4f}" in capsys.readouterr().out
    again = json.loads((fitted[method] / "evaluation.json").read_text())
    assert {**again, "checkpoint": ""} == {**json.loads(before), "checkpoint": ""}
    for number in range(5):
        pixels = np.load(bench / "data" / "test.npz")["images"][number]
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    usl("predict", *config, "--folder", tmp_path, "--out", tmp_path / "folder.csv")
    usl("predict", *config, "--split", "test", "--out", tmp_path / "split.csv")
    alone, together = ((tmp_path / name).read_text().splitlines()[1:6] for name in ("folder.csv", "split.csv"))
    assert [row.split(",")[1] for row in alone] == [row.split(",")[1] for row in together]


@pytest.mark.parametrize("method", METHODS)
def test_a_selector_hears_the_same_of_it(method: str, fitted: dict[str, Path], bench: Path, tmp_path: Path) -> None:
    """What a checkpoint makes of features is what the method itself does, by as many neighbours."""
    if method == "propagate":
        usl(*words(bench, method, tmp_path), "--model.k=3")
    path = (tmp_path if method == "propagate" else fitted[method]) / "checkpoints" / "last.ckpt"
    stored = read_checkpoint(path)
    more = {"k": 3} if method == "propagate" else {}
    spec = ImageSpec(1, 8, 8, (0.5,), (0.5,), tuple(map(str, range(10))))
    model = CLASSES[method](image=spec, features="at hand", **more)
    model.on_load_checkpoint(stored)
    model.load_state_dict(stored["state_dict"])
    votes = load_votes(path)
    features = torch.nn.functional.normalize(torch.rand(50, votes.inputs, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(votes(features), model.votes(features))


def test_a_checkpoint_from_before_weights_and_means_is_looked_at(fitted: dict[str, Path], tmp_path: Path) -> None:
    """By all, and as it was: both count the same, and no mean goes."""
    stored = torch.load(fitted["blend"] / "checkpoints" / "last.ckpt", weights_only=False)
    since = ("votes.weights", "votes.heads.1.mean")
    stored["state_dict"] = {name: value for name, value in stored["state_dict"].items() if name not in since}
    torch.save(stored, tmp_path / "earlier.ckpt")
    spec = ImageSpec(1, 8, 8, (0.5,), (0.5,), tuple(map(str, range(10))))
    model, stored = Blend(image=spec, features="at hand"), read_checkpoint(tmp_path / "earlier.ckpt")
    model.on_load_checkpoint(stored)
    model.load_state_dict(stored["state_dict"])
    for votes in (model.votes, load_votes(tmp_path / "earlier.ckpt")):
        assert votes.weights.tolist() == [0.5, 0.5]
        assert not bool(votes.heads[1].mean.any())  # type: ignore[union-attr]


@pytest.mark.parametrize("method", METHODS)
def test_the_same_run_gives_the_same_bits(method: str, fitted: dict[str, Path], bench: Path, tmp_path: Path) -> None:
    """Again with the checkpoint, as a killed one goes on; and afresh, from features computed anew."""
    usl(*words(bench, method, tmp_path / "afresh", "--model.cache", tmp_path / "cache"))
    usl(*words(bench, method, fitted[method], "--ckpt_path", "last"))
    first, second = (last_checkpoint(folder) for folder in (tmp_path / "afresh", fitted[method]))
    assert first["state_dict"].keys() == second["state_dict"].keys()
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name]), name
    assert result(tmp_path / "afresh") == result(fitted[method])


def test_test_images_are_looked_at_once(bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their features are kept like those that are learned from: more labels, or another method, need no second look."""
    seen: list[int] = []
    look = Encoder.forward
    monkeypatch.setattr(Encoder, "forward", lambda self, images: (seen.append(len(images)), look(self, images))[1])
    cache = ["--model.cache", tmp_path / "cache"]
    usl(*words(bench, "blend", tmp_path / "first", *cache))
    assert sum(seen) == IMAGES + 200
    more = ["--data.labels", index(bench / "data", list(range(90)), tmp_path / "labels.json")]
    usl(*words(bench, "blend", tmp_path / "more", *cache, *more))
    usl(*words(bench, "probe", tmp_path / "probe", *cache))
    usl("test", "--config", tmp_path / "more" / "config.yaml", "--ckpt_path", "last")
    assert sum(seen) == IMAGES + 200
    logits = load_classifier(tmp_path / "probe" / "checkpoints" / "last.ckpt")(torch.from_numpy(PIXELS[-200:, None]))
    right = (logits.argmax(1).numpy() == TRUTH[-200:]).mean()
    assert result(tmp_path / "probe")["test_accuracy"] == pytest.approx(right)


def test_a_later_stage_can_start_from_it(fitted: dict[str, Path]) -> None:
    image = load_encoder(fitted["propagate"] / "checkpoints" / "last.ckpt").image
    assert image.classes == tuple("0123456789")


def test_a_probe_is_a_network_that_can_be_exported(
    fitted: dict[str, Path], bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = torch.from_numpy(np.load(bench / "data" / "test.npz")["images"])[:, None]
    classifier = load_classifier(fitted["probe"] / "checkpoints" / "last.ckpt")
    with torch.no_grad():
        confidence, label = classifier(images).softmax(1).max(1)
    config = ["--config", fitted["probe"] / "config.yaml", "--ckpt_path", "last"]
    usl("predict", *config, "--split", "test", "--out", tmp_path / "split.csv")
    rows = [row.split(",") for row in (tmp_path / "split.csv").read_text().splitlines()[1:]]
    assert [int(row[1]) for row in rows] == label.tolist()
    assert [float(row[2]) for row in rows] == pytest.approx(confidence.tolist(), abs=1e-4)
    usl("export", *config, "--out", tmp_path / "probe.pt2")
    program = torch.export.load(tmp_path / "probe.pt2").module()
    torch.testing.assert_close(program(images).max(1).values, confidence, atol=1e-4, rtol=1e-4)
    config = ["--config", fitted["blend"] / "config.yaml", "--ckpt_path", "last"]
    line = refused(capsys, "export", *config, "--out", tmp_path / "blend.pt2")
    assert "a Probe is one" in line


def test_no_label_outside_of_the_index_is_read(bench: Path, fitted: dict[str, Path], tmp_path: Path) -> None:
    labels = TRUTH[:IMAGES].copy()
    labels[60:] = (labels[60:] + 3) % 10
    wrong = arrays(tmp_path / "data", labels)
    usl(*words(bench, "blend", tmp_path / "wrong", "--data.dir", wrong))
    first, second = (last_checkpoint(folder)["state_dict"] for folder in (tmp_path / "wrong", fitted["blend"]))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert result(tmp_path / "wrong") == result(fitted["blend"])


def test_in_a_chain_the_summary_has_the_estimate(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"data.dataset": "arrays", "data.dir": str(bench / "data")}
    network = {"model.backbone": "small", "model.pretrained": False}
    stages = [
        {"name": "pick", "command": "select", "config": "digits_usl.yaml", "set": {"model.budget": 30, **network}},
        {
            "name": "train", "command": "fit", "config": "digits_blend.yaml",
            "set": {"data.labels": "${pick.labels}", **network},
        },
    ]  # fmt: skip
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump({"seed": 0, "set": data, "stages": stages}))
    monkeypatch.chdir(tmp_path)
    usl("run", "chain.yaml")
    summary = json.loads((tmp_path / "runs/chain/summary.json").read_text())
    assert summary["results"][0]["method"] == "blend"
    told = result(tmp_path / "runs/chain/train")
    assert summary["results"][0]["estimated_accuracy"] == told["estimated_accuracy"]
    assert summary["results"][0]["estimated_interval"] == told["estimated_interval"]
    shown = capsys.readouterr().out
    assert summary["results"][0]["estimated_with_40_more"] == told.get("estimated_with_40_more")
    assert "estimated accuracy: by the labels alone, with a 90% interval" in shown
    assert f"{told['estimated_accuracy']:.2f} (" in shown


# Odd labels and images -----------------------------------------------------------------------------------


def test_features_from_a_file(bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.load(bench / "data" / "train.npz")["images"].reshape(IMAGES, -1).astype(np.float32)
    np.save(tmp_path / "features.npy", pixels)
    given = words(bench, "blend", tmp_path / "run", "--model.features", tmp_path / "features.npy")
    usl(*given, "--model.backbone=null")
    assert result(tmp_path / "run")["estimated_accuracy"] > 0.7
    assert "test_accuracy" not in result(tmp_path / "run")
    config = ["--config", tmp_path / "run" / "config.yaml", "--ckpt_path", "last"]
    assert "its features came from a file" in refused(capsys, "predict", *config, "--split", "test")
    assert "its features came from a file" in refused(capsys, "test", *config)


def test_hardly_any_labels(bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of a class, too few to tell; nothing is told that is not known."""
    one_of_each = [int(np.nonzero(label == TRUTH)[0][0]) for label in (0, 1, 2)]
    few = index(bench / "data", one_of_each, tmp_path / "few.json")
    for method in METHODS:
        usl(*words(bench, method, tmp_path / method, "--data.labels", few))
        printed = capsys.readouterr()
        assert "too few labels to tell" in printed.out + printed.err
        assert set(result(tmp_path / method)) == {"folds", "test_accuracy", "test_calibration_error"}
        assert result(tmp_path / method)["folds"] == len(one_of_each)


def test_labels_of_one_class(bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zeros = np.nonzero(TRUTH[:IMAGES] == 0)[0][:12].tolist()
    same = index(bench / "data", zeros, tmp_path / "same.json")
    line = refused(capsys, *words(bench, "blend", tmp_path / "run", "--data.labels", same))
    assert f"{same}: all 12 labels are '0'; expected images of at least 2 classes" in line
    assert not (tmp_path / "run").exists()


def test_unsure_images_are_left_out(bench: Path, fitted: dict[str, Path], tmp_path: Path) -> None:
    labels = (*TRUTH[:60].tolist(), None, None)
    changes = {"labels": labels, "unsure": (60, 61)}
    some = index(bench / "data", list(range(62)), tmp_path / "some.json", **changes)
    usl(*words(bench, "probe", tmp_path / "run", "--data.labels", some))
    assert result(tmp_path / "run")["estimated_from"] == 60
    assert result(tmp_path / "run")["test_accuracy"] == result(fitted["probe"])["test_accuracy"]


def test_images_without_an_answer_are_left_out_if_so_asked(
    bench: Path, fitted: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = (*TRUTH[:60].tolist(), None, None, None)
    some = index(bench / "data", list(range(63)), tmp_path / "some.json", labels=labels, unsure=(61,))
    asked = words(bench, "probe", tmp_path / "run", "--data.labels", some)
    assert "2 of 63 images have no label yet" in refused(capsys, *asked)
    usl(*asked, "--data.unanswered", "leave_out")
    assert result(tmp_path / "run")["estimated_from"] == 60
    assert result(tmp_path / "run")["test_accuracy"] == result(fitted["probe"])["test_accuracy"]


def make(method: str, classes: int = 3) -> FewLabels:
    found = CLASSES[method]
    names = tuple(map(str, range(classes)))
    return found(image=ImageSpec(1, 8, 8, (0.5,), (0.5,), names), features="unused")  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("images", "labelled"), [(3, 2), (3, 3), (40, 12)])
def test_equal_images_and_hardly_any(method: str, images: int, labelled: int) -> None:
    model = make(method)
    features = torch.ones(images, 4)
    logits = model.learn_from(features, torch.arange(labelled), torch.arange(labelled) % 2, seed=0)
    probabilities = logits.softmax(1)
    assert bool(probabilities.isfinite().all())
    if method == "probe":  # where no neighbour is nearer than others, which ones count is a matter of order
        torch.testing.assert_close(probabilities[:, 0], probabilities[:1, 0].expand(images), atol=0.02, rtol=0)
    assert model.judgement is not None
    assert model.judgement.with_more is None
    estimate = model.judgement.estimate
    assert (estimate is None) == (labelled < 10)
    if estimate is not None:
        assert estimate.low < 0.6


@pytest.mark.parametrize("method", METHODS)
def test_classes_without_a_label_make_it_less_sure(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of ten classes have no label, three just one: nothing of what it chooses or estimates changes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 10
    features = torch.eye(10)[labels] + 0.3 * torch.randn(600, 10, generator=generator)
    rows = torch.cat([torch.nonzero(labels == label)[: 1 if label < 3 else 4, 0] for label in range(7)])
    rest = torch.ones(600, dtype=torch.bool)
    rest[rows] = False
    told, estimates, temperatures = {}, {}, {}
    for softer in (True, False):
        if not softer:
            monkeypatch.setattr("usl_lightning.evaluation.trial.softening", lambda *_: 1.0)
        model = make(method, classes=10)
        told[softer] = model.learn_from(features, rows, labels[rows], seed=0)[rest].softmax(1)
        temperatures[softer] = float(model.votes.temperature)
        assert model.judgement is not None
        assert model.judgement.estimate is not None
        estimates[softer] = astuple(model.judgement.estimate)
    assert torch.equal(told[True].argmax(1), told[False].argmax(1))
    assert estimates[True] == pytest.approx(estimates[False], abs=1e-5)
    accuracy = float((told[True].argmax(1) == labels[rest]).float().mean())
    off = {softer: abs(float(each.amax(1).mean()) - accuracy) for softer, each in told.items()}
    assert off[True] < off[False] - 0.01
    assert temperatures[True] > temperatures[False]


def test_more_labels_than_folds_are_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usl_lightning.semisup.few_labels.MOST", 40)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 3
    features = torch.eye(3)[labels] + 0.3 * torch.randn(200, 3, generator=generator)
    for method in METHODS:
        model = make(method)
        logits = model.learn_from(features, torch.arange(150), labels[:150], seed=0)
        assert float((logits.argmax(1) == labels)[150:].float().mean()) > 0.9
        assert model.judgement is not None
        assert model.judgement.estimate is not None
        assert model.judgement.estimate.labels == 40


@pytest.mark.parametrize(
    ("method", "more", "part"),
    [
        ("probe", ["--model.strengths", "[]"], "model.strengths"),
        ("probe", ["--model.strengths", "[1.0, 0.0]"], "model.strengths"),
        ("propagate", ["--model.k", "0"], "model.k"),
        ("blend", ["--model.k", "-1"], "model.k"),
        ("blend", ["--model.folds", "1"], "model.folds"),
        ("blend", ["--model.repeats", "0"], "model.repeats"),
        ("blend", ["--model.init_from", "x.ckpt"], "x.ckpt"),
    ],
)
def test_values_out_of_range(
    method: str, more: list[str], part: str, bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert part in refused(capsys, *words(bench, method, tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_no_source_of_features(bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, *words(bench, "probe", tmp_path / "run", "--model.backbone=null"))
    assert "expected the checkpoint whose encoder gives the features" in line


def test_a_mean_of_two_is_no_surer_than_the_least_lets_it() -> None:
    model = make("blend")
    features = torch.eye(3)[torch.arange(60) % 3]
    logits = model.learn_from(features, torch.arange(30), torch.arange(30) % 3, seed=0)
    assert math.isfinite(float(logits.abs().max()))
    assert float((logits.argmax(1) == torch.arange(60) % 3).float().mean()) == 1


@pytest.mark.parametrize("config", ["digits_propagate", "digits_blend"])
def test_a_k_of_more_than_there_are_images_is_told_as_used(
    config: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "six.npz", images=rng.integers(0, 256, (6, 8, 8), np.uint8), labels=[0, 1] * 3, classes=["a", "b"]
    )
    np.save(tmp_path / "features.npy", rng.normal(size=(6, 4)).astype(np.float32))
    (tmp_path / "labels.json").write_text("[0, 1, 2]")
    words = ["--data.dataset=arrays", f"--data.dir={tmp_path / 'six.npz'}", f"--data.labels={tmp_path / 'labels.json'}"]
    words += [f"--model.features={tmp_path / 'features.npy'}", f"--run_dir={tmp_path / 'run'}"]
    with caplog.at_level("INFO"):
        main(["fit", f"--config={config}.yaml", *words])
    assert "k = 5 instead of 10, for 6 images" in caplog.text
    assert json.loads((tmp_path / "run" / "result.json").read_text())["k"] == 5

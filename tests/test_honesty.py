"""No label outside the label index is read by anything that trains or selects."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from runs import differing, last_checkpoint, usl
from sklearn.datasets import load_digits

DATA = {"data.dataset": "arrays", "model.backbone": "small_w16"}
STAGES = [
    {
        "name": "pretrain",
        "command": "fit",
        "config": "digits_simclr.yaml",
        "set": {**DATA, "trainer.max_steps": 12, "trainer.val_check_interval": 6, "data.batch_size": 64},
    },
    {
        "name": "select",
        "command": "select",
        "config": "digits_usl.yaml",
        "set": {"data.dataset": "arrays", "model.init_from": "${pretrain.checkpoint}"},
    },
    {
        "name": "train",
        "command": "fit",
        "config": "digits_fixmatch.yaml",
        "set": {
            **DATA, "trainer.max_steps": 12, "trainer.log_every_n_steps": 1, "data.batch_size": 8,
            "model.threshold": 0.11, "model.init_from": "${pretrain.checkpoint}", "data.labels": "${select.labels}",
        },
    },
]  # fmt: skip


def write_data(folder: Path, labels: np.ndarray) -> None:
    """Digits with these labels of the first 1,000, the training images; the rest are the test images."""
    images, truth = load_digits(return_X_y=True)
    images = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    folder.mkdir()
    np.savez(folder / "train.npz", images=images[:1000], labels=labels)
    np.savez(folder / "test.npz", images=images[1000:], labels=truth[1000:])


def write_chain(folder: Path) -> None:
    for stage in STAGES:
        stage["set"]["data.dir"] = str(folder / "data")  # type: ignore[index]
    (folder / "chain.yaml").write_text(yaml.safe_dump({"seed": 0, "stages": STAGES}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run folders of a chain with the true labels, and of one where all but the chosen labels are wrong."""
    truth = load_digits().target[:1000]
    honest, shuffled = (tmp_path_factory.mktemp(name) for name in ("honest", "shuffled"))
    write_data(honest / "data", truth)
    write_chain(honest)
    usl(honest, "run", "chain.yaml").done()
    chosen = json.loads((honest / "runs/chain/select/labels.json").read_text())["indices"]
    others = np.setdiff1d(np.arange(1000), chosen)
    wrong = truth.copy()
    wrong[others] = (truth[others] + np.random.default_rng(0).integers(1, 10, len(others))) % 10
    write_data(shuffled / "data", wrong)
    write_chain(shuffled)
    usl(shuffled, "run", "chain.yaml").done()
    return honest / "runs/chain", shuffled / "runs/chain"


def test_stage_1_learns_the_same(runs: tuple[Path, Path]) -> None:
    states = [last_checkpoint(run / "pretrain")["state_dict"] for run in runs]
    assert differing(*states) == []
    reports = [json.loads((run / "pretrain/result.json").read_text()) for run in runs]
    assert reports[1]["knn_accuracy"] < reports[0]["knn_accuracy"] - 0.3, "the labels are wrong indeed"
    assert reports[1]["feature_std"] == reports[0]["feature_std"]


def test_stage_2_selects_the_same(runs: tuple[Path, Path]) -> None:
    indices = [json.loads((run / "select/labels.json").read_text()) for run in runs]
    for key in ("indices", "labels", "dataset", "classes"):
        assert indices[0][key] == indices[1][key]


def test_stage_3_learns_the_same(runs: tuple[Path, Path]) -> None:
    checkpoints = [last_checkpoint(run / "train") for run in runs]
    for key in ("state_dict", "optimizer_states"):
        assert differing(checkpoints[0][key], checkpoints[1][key]) == []
    results = [json.loads((run / "train/result.json").read_text()) for run in runs]
    told = [result.pop("pseudo_label_accuracy") for result in results]
    assert told[1] < told[0], "a report alone, and the labels are wrong indeed"
    assert results[0] == results[1]
    logs = [(run / "train/metrics.csv").read_text().splitlines() for run in runs]
    honest, shuffled = ([row for row in log if ",pseudo_label_accuracy," not in row] for log in logs)
    assert honest == shuffled
    masks = [row for row in honest if ",mask_rate," in row]
    assert any(float(row.split(",")[2]) > 0 for row in masks)


def test_stage_3_does_learn_from_the_index(runs: tuple[Path, Path]) -> None:
    """The counter-check: one other label in the index, and the weights differ."""
    run = runs[0]
    index = json.loads((run / "select/labels.json").read_text())
    index["labels"][0] = (index["labels"][0] + 1) % 10
    (run / "other.json").write_text(json.dumps(index))
    words = ["fit", "--config", "digits_fixmatch.yaml", "--run_dir", str(run / "other"), "--data.labels"]
    words += [str(run / "other.json"), "--model.init_from", str(run / "pretrain/checkpoints/last.ckpt")]
    settings = STAGES[2]["set"].items()  # type: ignore[attr-defined]
    words += [f"--{key}={value}" for key, value in settings if not str(value).startswith("${")]
    usl(run, *words, "--data.dir", str(run.parent.parent / "data")).done()
    states = [last_checkpoint(run / name)["state_dict"] for name in ("train", "other")]
    assert any("head" in place for place in differing(*states))

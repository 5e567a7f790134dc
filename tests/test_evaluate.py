"""`usl test` and `usl validate` on a stage-1 checkpoint: a table, `evaluation.json`, and what it leaves out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from usl_lightning.cli import main
from usl_lightning.data.images.opening import open_source
from usl_lightning.evaluation.features import Features, evaluate_features
from usl_lightning.models.encoder import load_encoder

SMALL = ["--config", "digits_simclr.yaml", "--model.backbone", "small_w16", "--model.hidden_dim", "16"]
SMALL += ["--model.projection_dim", "8", "--data.batch_size", "32", "--trainer.max_steps", "3"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage that was trained for three steps."""
    run_dir = tmp_path_factory.mktemp("run") / "stage"
    main(["fit", *SMALL, "--run_dir", str(run_dir)])
    return run_dir


@pytest.mark.parametrize("command", ["test", "validate"])
def test_everything_is_measured_on_all_images(run_dir: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.name in ("result.json", "stage.json")}
    main([command, *SMALL, "--run_dir", str(run_dir), "--ckpt_path", "last"])
    shown = capsys.readouterr().out
    with Image.open(run_dir / "filters.png") as picture:
        assert picture.size == (16 * 66 + 17 * 4, 16 + 66 + 2 * 4)  # 3×3, magnified 22 times, side by side
    report = json.loads((run_dir / "evaluation.json").read_text())
    assert report["images"] == {"train": 1437, "test": 360}
    assert (report["method"], report["dataset"]) == ("SimCLR", "digits")
    result = json.loads((run_dir / "result.json").read_text())
    assert report["metrics"]["knn_accuracy"] == pytest.approx(result["knn_accuracy"])
    assert result["knn_k"] == 20
    names = ("knn_accuracy", "knn_1_accuracy", "knn_20_accuracy", "probe_accuracy", "probe_1000_accuracy")
    names += (
        "knn_pca_accuracy",
        "probe_sgd_accuracy",
        *(f"probe_layer{number}_accuracy" for number in (1, 2, 3)),
        "nmi",
        "ari",
        "neighbour_purity",
        "feature_std",
        "uniformity",
        "rankme",
    )
    assert report["metrics"].keys() == set(names)
    for name in names:
        assert f"{report['metrics'][name]:.4f}" in next(line for line in shown.splitlines() if line.startswith(name))
    assert "k = 20 of 1437 images" in shown
    assert shown.splitlines()[-2] == str(run_dir / "evaluation.json")
    checkpoint = run_dir / "checkpoints/last.ckpt"
    assert shown.splitlines()[-1].startswith(
        f"next: usl select --config digits_usl.yaml --model.init_from {checkpoint}"
    )
    assert before == {path: path.read_bytes() for path in before}, "the record of the run stays as it is"
    assert len(before) == 2


def test_figures_are_those_of_the_checkpoints_encoder(run_dir: Path) -> None:
    encoder = load_encoder(run_dir / "checkpoints/last.ckpt")
    main(["test", *SMALL, "--run_dir", str(run_dir), "--ckpt_path", "last"])
    splits = []
    for split in ("train", "test"):
        source = open_source("digits", split)
        with torch.no_grad():
            splits.append(Features(encoder(source.read(torch.arange(len(source)))), source.labels))
    expected = evaluate_features(*splits, knn_k=20).metrics
    metrics = json.loads((run_dir / "evaluation.json").read_text())["metrics"]
    assert metrics.pop("rankme") == pytest.approx(expected.pop("rankme"), rel=0.01)
    metrics = {name: value for name, value in metrics.items() if "_layer" not in name}  # of maps, not of features
    assert metrics == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("labels", "measured", "said"),
    [
        (
            True,
            {"feature_std", "uniformity", "rankme", "nmi", "ari", "neighbour_purity"},
            "kNN and linear probe: the data set has no test images",
        ),
        (
            False,
            {"feature_std", "uniformity", "rankme"},
            "k-means, kNN and linear probe: no training image has a label",
        ),
    ],
)
def test_a_set_without_test_images_or_labels(
    tmp_path: Path, labels: bool, measured: set[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    images, truth = load_digits(return_X_y=True)
    arrays = {"images": np.rint(images[:200] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)}
    np.savez(tmp_path / "train.npz", **arrays, **({"labels": truth[:200]} if labels else {}))
    words = [*SMALL, "--data.dataset", "arrays", "--data.dir", str(tmp_path), "--run_dir", str(tmp_path / "run")]
    main(["fit", *words])
    assert json.loads((tmp_path / "run/result.json").read_text()) == {}
    main(["test", *words, "--ckpt_path", "last"])
    report = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert report["metrics"].keys() == measured
    assert report["left_out"] == [said]
    assert report["images"] == {"train": 200}
    assert f"left out: {said}" in capsys.readouterr().out

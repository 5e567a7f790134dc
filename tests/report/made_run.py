"""A run folder as `usl run` leaves it, made without training: real files, invented figures."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from usl_lightning.chain.plan import Plan, PlannedStage
from usl_lightning.data.images.opening import open_source
from usl_lightning.data.images.source import dataset_id
from usl_lightning.evaluation.classification import Tally, write_scores
from usl_lightning.labels import LabelIndex
from usl_lightning.stage.folder import StageFolder
from usl_lightning.stage.overview import make_overview

CLASSES = ('"><img src=x onerror=alert(1)>', "<script>alert('2')", "it's & so on")
EVIL_FILE = "<b onmouseover=alert(3)>.png"
PER_CLASS, BUDGET = 8, 6
STEPS = 100

PLAN = Plan(
    ("chain.yaml", "--name=run", "--data.dir=my images"),
    3,
    (
        PlannedStage("pretrain", "fit"),
        PlannedStage("select_usl", "select", ("pretrain",)),
        PlannedStage("select_random", "select"),
        PlannedStage("train_usl", "fit", ("pretrain", "select_usl")),
        PlannedStage("train_random", "fit", ("pretrain", "select_random")),
    ),
)

CLASS_OF = {
    "pretrain": "usl_lightning.pretrain.simclr.SimCLR",
    "select_usl": "usl_lightning.selection.usl.USL",
    "select_random": "usl_lightning.selection.random.Random",
    "train_usl": "usl_lightning.semisup.flexmatch.FlexMatch",
    "train_random": "usl_lightning.semisup.flexmatch.FlexMatch",
}


def write_images(folder: Path, *, side: int = 9) -> None:
    """An image folder with class folders and a file whose names are attacks."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(PER_CLASS):
            pixels = rng.integers(0, 80, (side, side), dtype=np.uint8) + np.uint8(60 * number)
            file = EVIL_FILE if number == 0 and i == 0 else f"{i}.png"
            Image.fromarray(pixels).save(folder / name / file)


def make_run(folder: Path, *, upto: int = 5, labelled: bool = True, side: int = 9) -> Path:
    """`folder/run`, a chain of which the first `upto` stages are complete and the next is interrupted.

    Args:
        folder: an empty one; the images are in `folder/images`.
        upto: of the five stages.
        labelled: False: the chosen images have no labels yet.
        side: pixels of the images.
    """
    images, run = folder / "images", folder / "run"
    write_images(images, side=side)
    for number, stage in enumerate(PLAN.stages[: upto + 1]):
        make_stage(run / stage.name, images, complete=number < upto, labelled=labelled)
    with PLAN.written(run, StageFolder(run / "pretrain")):
        pass
    return run


def make_stage(path: Path, images: Path, *, complete: bool = True, labelled: bool = True) -> None:
    """A stage's folder; its name says which."""
    name, folder = path.name, StageFolder(path)
    command = "select" if name.startswith("select") else "fit"
    model: dict[str, Any] = {"class_path": CLASS_OF[name], "init_args": {"threshold": 0.95}}
    data = {"class_path": "…", "init_args": {"dataset": "folder", "dir": str(images), "split": "train"}}
    if name.startswith("train"):
        data["init_args"]["labels"] = f"elsewhere/select_{name.partition('_')[2]}/labels.json"
    identity = {"command": command, "version": "0.1.0", "model.class_path": CLASS_OF[name]}
    folder.begin(identity)
    trainer = {"max_steps": STEPS, "precision": "32-true"}
    config = {"seed_everything": 3, "trainer": trainer, "model": model, "data": data}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    metrics: dict[str, Any] = {}
    if command == "fit":
        (path / "metrics.csv").write_text(_curves(name, STEPS if complete else 50))
    elif complete:
        metrics = _choose(folder, name, labelled)
    if name.startswith("train") and complete:
        metrics = _tested(folder, name)
    elif name == "pretrain" and complete:
        metrics = {"knn_accuracy": 0.5, "feature_std": 0.03, "knn_k": 20}
    if complete:
        folder.finish(identity, 61.5, metrics)


def _curves(name: str, steps: int) -> str:
    rows = ["step,name,value"]
    for step in range(9, steps, 10):
        rows.append(f"{step},loss,{2 - step / 100}")
        if name.startswith("train"):
            rows += [f"{step},mask_rate,{step / 200}", *(f"{step},thresholds_{i},{0.3 * i + 0.1}" for i in range(3))]
    rows += [f"{steps},test_accuracy,0.75"] if steps == STEPS else [f"{steps},los"]  # a kill cut the last line
    return "\n".join(rows)


def chosen_of(name: str) -> list[int]:
    """The images that a selection chose: two of each class, or four of the first and two of the second."""
    return [0, 7, 8, 9, 16, 17] if name == "select_usl" else [2, 3, 4, 5, 10, 11]


def features(n: int) -> torch.Tensor:
    """Three groups far from each other, in the order of the images."""
    noise = torch.randn(n, 5, generator=torch.Generator().manual_seed(0))
    return 0.1 * noise + 3 * torch.eye(3, 5).repeat_interleave(n // 3, 0)


def _choose(folder: StageFolder, name: str, labelled: bool) -> dict[str, Any]:
    images = yaml.safe_load((folder.path / "config.yaml").read_text())["data"]["init_args"]["dir"]
    source, chosen = open_source("folder", "train", dir=images), chosen_of(name)
    assert source.files is not None
    index = LabelIndex(
        dataset=dataset_id(source),
        method={"name": "usl" if name == "select_usl" else "random"},
        indices=tuple(chosen),
        labels=tuple(source.labels[chosen].tolist()) if labelled else (None,) * len(chosen),
        classes=source.classes if labelled else (),
        files=tuple(source.files[i] for i in chosen),
    )
    index.write(folder.labels)
    if name == "select_usl":
        clusters = torch.arange(len(source)) // (len(source) // 3)
        overview = make_overview(features(len(source)), torch.tensor(chosen), k=2, clusters=clusters)
        assert overview is not None
        overview.write(folder.overview)
    return {"budget": len(chosen), **({"classes_covered": 3, "balance": 1.0} if labelled else {})}


def _tested(folder: StageFolder, name: str) -> dict[str, Any]:
    wrong = 1 if name == "train_usl" else 4
    labels = torch.arange(3).repeat_interleave(4)
    taken = torch.cat([(labels[:wrong] + 1) % 3, labels[wrong:]])
    tally = Tally(3)
    tally.update(20 * torch.nn.functional.one_hot(taken, 3).float(), labels)
    scores = tally.scores()
    assert scores is not None
    write_scores(folder.path / "evaluation.json", {}, {"ema": scores, "online": scores}, sorted(CLASSES))
    return {"test_accuracy": scores.accuracy, "test_calibration_error": scores.calibration_error}

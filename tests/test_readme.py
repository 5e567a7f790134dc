"""Every command of the README, as it stands there, in one folder, in the order of the page.

Commands on CIFAR-10 and on a user's folder get small files of that kind and a handful of steps; the others run
exactly as typed. Instead of a person with the labelling page, the test answers.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import Outcome, usl
from test_sources import make_cifar

from usl_lightning.chain.naming import label_file_in
from usl_lightning.data.images.opening import open_source
from usl_lightning.labelling.store import LabelStore

README = Path(__file__).parent.parent / "README.md"
FEW = "--trainer.max_steps 2"
SHORT = {
    "usl run photos.yaml": "--pretrain.data.batch_size 16 --trainer.max_steps 2",
    "cifar10_simclr.yaml": f"{FEW} --data.batch_size 8 --model.backbone small_w16 --trainer.precision 32-true",
    "cifar10_fixmatch.yaml": f"{FEW} --data.batch_size 4 --data.unlabelled_ratio 2 --trainer.precision 32-true",
}
"""Part of a command -> what is added to it here."""


def commands() -> list[str]:
    """Every `usl …` of the README that is more than a name; those of its blocks as often as they stand there."""
    text = README.read_text(encoding="utf-8")
    blocks = [line.strip() for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    inline = re.findall(r"`(usl [^`]+)`", text)
    blocks = [line for line in blocks if line.startswith("usl ")]
    return [*blocks, *(line for line in dict.fromkeys(inline) if line not in blocks)]


def prepare(folder: Path) -> None:
    """A user's images (digits without labels), CIFAR-10 files, and a label index of theirs."""
    source = open_source("digits", "train")
    for i in range(120):
        path = folder / ("photos" if i < 100 else "more_photos") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(source.read(torch.tensor([i]))[0, 0].numpy())
        picture.resize((36, 36)).save(path)
    make_cifar(folder / "DATA", "cifar10", text_keys=False)
    (folder / "labels.json").write_text(json.dumps([0, 3, 5]))


def answer(path: Path) -> None:
    """What a person would on the page of `usl label`: the file's name says which digit it is."""
    labels = open_source("digits", "train").labels
    store = LabelStore(path)
    for digit in range(10):
        store.add_class(str(digit))
    for image, file in zip(store.read().indices, store.read().files or (), strict=True):
        store.answer(image, int(labels[int(Path(file).stem)]), None)


@pytest.mark.slow
def test_every_command_of_the_readme(tmp_path: Path) -> None:
    prepare(tmp_path)
    stages = [command for command in commands() if "FILE" not in command]
    assert len(stages) >= 10
    for command, following in zip(stages, [*stages[1:], ""], strict=True):
        words = command.split()[1:]
        if words[0] == "label":
            answer(label_file_in(tmp_path / words[1]))
            continue
        more = next((extra for part, extra in SHORT.items() if part in command), "")
        outcome: Outcome = usl(tmp_path, *words, *more.split())
        stopped = following.startswith("usl label")
        assert outcome.code == (3 if stopped else 0), (command, outcome.err[-2000:])
        assert not stopped or "25 images to label: usl label runs/photos/select/labels.json" in outcome.out, outcome
    assert len(list((tmp_path / "sorted").rglob("*.png"))) == 20
    for made in ("runs/photos/report.html", "runs/photos/train/predictions_more_photos.csv"):
        assert (tmp_path / made).stat().st_size > 200, made
    summary = json.loads((tmp_path / "runs" / "digits_quickstart" / "summary.json").read_text())
    accuracy = {result["selection"]: result["test_accuracy"] for result in summary["results"]}
    assert accuracy["kmeansnearest"] > accuracy["random"] + 0.2, "what the page promises"
    for picture in ("views.png", "runs/digits_quickstart/summary.png"):
        assert np.asarray(Image.open(tmp_path / picture)).std() > 10

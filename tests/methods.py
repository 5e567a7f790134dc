"""Every method that a shipped configuration of digits names, small enough to be trained in a second.

A new method is found by itself. What its configuration leaves open is taken from the command in its header: labels, and
the checkpoints of the configurations that come before it, which are trained as small. `SETTINGS` is for what must be
smaller or another way for its state to be at work within a few steps.
"""

import importlib
import json
import os
import re
import shlex
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from torch import Tensor
from training import CHILDREN

from usl_lightning.base.configs import find_config, names_of_all, shipped, shipped_folder
from usl_lightning.base.parameters import parameters
from usl_lightning.cli import main
from usl_lightning.models.method import Method
from usl_lightning.stage.words import StageCommand

SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "Adapter": {"": {"unlabelled_weight": 1.0}, "bottleneck": {"tuned": "bottleneck", "unlabelled_weight": 1.0}},
    "MoCo": {
        "": {"queue_size": 96},  # a ring of three batches
        "cld": {"queue_size": 96, "projection_layers": 1, "cld_weight": 0.8, "cld_clusters": 6},
        "eman": {"queue_size": 96, "eman": True, "shuffle_groups": None},
    },
    "NPID": {"": {}, "noise": {"negatives": 6}, "cld": {"cld_weight": 1.0, "cld_clusters": 6}},
    "Jigsaw": {"": {"permutations": 20, "hidden_dim": 30}},
    "PIRL": {"": {}, "noise": {"negatives": 6}},
    "Taught": {"": {"teacher_size": 32, "bank_size": 80}},
    "SwAV": {"": {"queue_size": 64, "queue_after": 3, "frozen_steps": 2, "prototypes": 20}},
    "OBoW": {"": {"words": 80}},  # a ring of two batches and a half, each level
    "DINO": {"": {"frozen_steps": 2, "outputs": 20}, "sinkhorn": {"centring": "sinkhorn", "outputs": 20}},
    "MSF": {  # a bank of two batches and a half
        "": {"bank_size": 80, "neighbours": 3},
        "previous": {"bank_size": 80, "neighbours": 3, "constraint": "previous"},
        "clusters": {"bank_size": 80, "neighbours": 3, "constraint": "clusters", "clusters": 12},
    },
    "DeepCluster": {"": {"clusters": 12}},
    "DeepClusterV1": {"": {"clusters": 12, "components": 8}},
    "Exemplar": {"": {}, "patches": {"patch": 6}},
    "MultiTask": {  # of images of 24 pixels
        "": {"permutations": 20, "hidden_dim": 30},
        "all": {
            "tasks": {"rotation": 0.5, "jigsaw": 1.0, "relative_patch": 1.0, "exemplar": 0.3, "counting": 0.1},
            "permutations": 20, "hidden_dim": 30, "counts": 20,
        },
    },
    "CPC": {"": {"predicted": 2, "blocks": 2, "hidden_dim": 16}},
    "Counting": {"": {"hidden_dim": 32, "counts": 20}},
    "SeLa": {
        "": {"reassignments": 3, "hidden_dims": [20]},  # with dropout
        "turns": {"reassignments": 3, "rotation_weight": 0.7},
        "clusters": {"reassignments": 3, "labelling": "kmeans"},
    },
    "EMANFixMatch": {"": {"threshold": 0.15, "ema_decay": 0.5}},
    "SelfTraining": {"": {"threshold": 0.15, "ema_decay": 0.5}},
    "CoMatch": {"": {"bank_size": 80, "aligned_batches": 3, "graph_threshold": 0.15}},  # both wrap
    "CMSFSemi": {"": {"bank_size": 80, "cache_size": 30, "neighbours": 3}},  # both wrap
    "FlexMatch": {"": {}, "guided": {"prior_file": "priors.npz", "prior_steps": 2, "prior_after": "update"}},
    "Distill": {"": {"distillation_weight": 0.8}},  # both of its losses
    "FineTune": {"": {}, "linear": {"tuned": "linear", "projection_layers_kept": 0, "ema_decay": 0.9}},
    "VAAL": {"": {"steps": 3, "width": 2, "batch_size": 8}},
    "CBSSAL": {"": {"views": 3}},
    "MMA": {"": {}, "clusters": {"clusters": 4}},
    "USLTTraining": {
        "": {},
        "moving": {
            "cosine_scale": 40.0, "frozen": True, "reduction": "batch", "reweight": False, "global_after": 1,
            "reassignment": {"smallest": 12, "largest": 20, "after": 1, "every": 2},
        },
    },
}  # fmt: skip
"""Class -> name of a variant -> parameters; a class that is not here has one variant and no parameters."""

STEADY: dict[str, dict[str, Any]] = {
    "MixMatch": {"ramp_steps": 0},
    "USLTTraining": {"global_after": 0},
    "NPID": {"negatives": None},  # Z is of the first micro-batch
    "PIRL": {"negatives": None},
    **{name: {"ramp": 0.0} for name in ("PseudoLabel", "PiModel", "MeanTeacher", "VAT", "ICT", "ReMixMatch")},
}
"""Class -> parameters of a loss that is the same function at every step."""

EARLIER = "runs/digits_simclr/checkpoints/last.ckpt"
"""In a command: the checkpoint of stage 1."""


CLASSIFIER = "runs/digits_blend/checkpoints/last.ckpt"
"""In a command: the checkpoint of a classifier."""


@dataclass(frozen=True)
class Shipped:
    """A method as a configuration of digits sets it up.

    Attributes:
        method: its class.
        command: `fit` or `select`.
        config: name of the file.
        variant: of its parameters, see `SETTINGS`.
    """

    method: type[Method]
    command: str
    config: str
    variant: str = ""

    def __str__(self) -> str:
        return "-".join([self.method.__name__, *filter(None, [self.variant])])


def command_of(config: str) -> list[str]:
    """The words of the first command in a configuration's header; without a file, of one that its classes can run."""
    if config not in shipped():
        return _command_of_parts(config)
    text = re.sub(r" \\\n#\s+", " ", (shipped_folder() / config).read_text())  # a long command goes on in the next line
    found = re.search(r"^#\s+(usl .+)$", text, re.MULTILINE)
    assert found, f"{config}: its header does not say its command"
    return shlex.split(found[1])


def _command_of_parts(config: str) -> list[str]:
    flat, method = StageCommand("fit", [find_config(config)]).flat(), class_of(config)
    assert method is not None
    command = next((verb for verb in ("select", "propagate") if verb in method.verbs), "fit")
    needs = {"data.labels": "labels.json", "data.neighbors_from": EARLIER}
    needs |= {"model.init_from": EARLIER} if command != "fit" else {}
    if "classifier_from" in parameters(str(flat["model.class_path"])):
        needs |= {"model.keep_from": "labels.json", "model.classifier_from": CLASSIFIER}
    known = {f"{group}.{name}" for group in ("model", "data") for name in parameters(str(flat[f"{group}.class_path"]))}
    return ["usl", command, "--config", config, *(f"--{key}={value}" for key, value in needs.items() if key in known)]


def class_of(config: str) -> type[Method] | None:
    """The method that a configuration names; None of a chain or a comparison."""
    module, _, name = str(StageCommand("fit", [find_config(config)]).flat().get("model.class_path", "")).rpartition(".")
    return getattr(importlib.import_module(module), name) if module else None


def methods(command: str) -> list[Shipped]:
    """Every method of this command, in each of its variants; by a file of its own where there is one."""
    found: dict[type[Method], str] = {}
    for config in sorted(names_of_all(), key=lambda name: (name not in shipped(), len(name), name)):
        method = class_of(config) if config.startswith("digits_") else None
        if method is not None and command_of(config)[1] == command:
            found.setdefault(method, config)
    return [
        Shipped(method, command, config, variant)
        for method, config in sorted(found.items(), key=lambda item: item[1])
        for variant in SETTINGS.get(method.__name__, {"": {}})
    ]


def usl(*words: str | Path) -> None:
    """`usl WORDS` in this process; fails with what it says if it is refused."""
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        raise AssertionError(f"usl {' '.join(map(str, words))}: exit code {stop.code}") from stop


def dies_after(name: str, shipped: Shipped, words: list[str]) -> int | None:
    """The exit code of a process that `usl WORDS` runs in and that gets `kill -9` when this method's work is done."""
    process = CHILDREN.Process(target=_die_after, args=(name, shipped.method, words))
    process.start()
    process.join(120)
    return process.exitcode


def _die_after(name: str, method: Any, words: list[str]) -> None:
    work = getattr(method, name)

    def work_and_die(self: Any, features: Tensor, *others: Any) -> Tensor:
        work(self, features, *others)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    setattr(method, name, work_and_die)
    main(words)


def options(**values: Any) -> list[str]:
    """`--key=value` of dotted keys, their dots as two underscores."""
    return [f"--{key.replace('__', '.')}={_typed(value)}" for key, value in values.items()]


def model_options(parameters: dict[str, Any]) -> list[str]:
    """`--model.key=value` of parameters."""
    return [f"--model.{name}={_typed(value)}" for name, value in parameters.items()]


def callbacks(*calls: tuple[str, dict[str, Any]]) -> str:
    """The option that adds callbacks, `module.Class` with their arguments, to a run."""
    made = [{"class_path": name, "init_args": arguments} for name, arguments in calls]
    return f"--trainer.callbacks={json.dumps(made)}"


def _typed(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@dataclass
class Bench:
    """A folder with 160 digits to train on, 40 to test on, 20 labels, and the checkpoints that methods start from."""

    folder: Path
    _checkpoints: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        images = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
        self.write("data", images[:160], labels[:160], images[160:200], labels[160:200])
        (self.folder / "labels.json").write_text(json.dumps(list(range(20))))

    def write(self, name: str, images: Any, labels: Any, test_images: Any = None, test_labels: Any = None) -> Path:
        """A folder of images [n, h, w] with labels [n]; the same for the test if no others are given."""
        (self.folder / name).mkdir()
        np.savez(self.folder / name / "train.npz", images=images, labels=labels)
        if test_images is not None:
            np.savez(self.folder / name / "test.npz", images=test_images, labels=test_labels)
        return self.folder / name

    def words(self, shipped: Shipped) -> list[str]:
        """`usl` and these words set the method up on the small data."""
        typed = command_of(shipped.config)
        flat = StageCommand.parse(shipped.command, typed[2:]).flat()
        given = {k: self._here(v) for k, v in StageCommand.parse(shipped.command, typed[2:]).overrides.items()}
        given |= {"data.dataset": "arrays", "data.dir": str(self.folder / "data")}
        if shipped.command == "fit":
            given |= {"data.batch_size": "8" if "data.labels" in flat else "32", "trainer.accelerator": "cpu"}
            small = {"model.backbone": "small_w16", "data.unlabelled_ratio": "3"}
            small["model.threshold"] = "0.3"  # a network that is hardly trained is sure of nothing
            given |= {key: value for key, value in small.items() if key in flat}
        given = [f"--{key}={value}" for key, value in given.items()]
        settings = dict(SETTINGS.get(shipped.method.__name__, {}).get(shipped.variant, {}))
        if "prior_file" in settings:
            settings["prior_file"] = str(self.prior())
        return [shipped.command, "--config", shipped.config, *given, *model_options(settings)]

    def checkpoint(self, config: str) -> Path:
        """Of two steps of the method of this configuration."""
        if config not in self._checkpoints:
            method = class_of(config)
            assert method is not None
            folder = self.folder / config
            usl(*self.words(Shipped(method, "fit", config)), "--run_dir", folder, *options(trainer__max_steps=2))
            self._checkpoints[config] = folder / "checkpoints" / "last.ckpt"
        return self._checkpoints[config]

    def prior(self) -> Path:
        """What the 20 labels say of all images."""
        folder = self.folder / "priors"
        if not folder.exists():
            usl("propagate", *self.words(Shipped(Method, "fit", "digits_priors.yaml"))[1:], "--run_dir", folder)
        return folder / "outputs" / "priors.npz"

    def _here(self, value: str) -> str:
        """What a header's command names, as it is here."""
        run = re.fullmatch(r"runs/(\w+)/checkpoints/last\.ckpt", value)
        if run:
            return str(self.checkpoint(f"{run[1]}.yaml"))
        return str(self.folder / "labels.json") if value.endswith("labels.json") else value

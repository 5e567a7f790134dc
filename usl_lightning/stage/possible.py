"""What a stage's settings ask for can be at all: names, sizes, numbers that go together, and what this machine does."""

import glob
import os
import sys
from collections.abc import Mapping
from typing import Any

from usl_lightning.base import trainer
from usl_lightning.base.accounts import HOW, logged_in, sends_nothing
from usl_lightning.base.defaults import defaults
from usl_lightning.base.errors import UslError, printable
from usl_lightning.base.machine import RANKS, cores
from usl_lightning.base.parameters import needs_of, parameters, required_of
from usl_lightning.base.problems import FROM_ELSEWHERE
from usl_lightning.base.typed import home
from usl_lightning.data.images.catalog import ARRAY_SETS, canonical_name, known_image, parts_of
from usl_lightning.models.names import TRAINED_FOR, named_networks, too_small, unknown_network
from usl_lightning.stage.given import check_counts, check_given, unwritable
from usl_lightning.stage.taken import LEARN_FEATURES
from usl_lightning.stage.words import StageCommand

_CLUSTER = ("MASTER_ADDR", "NODE_RANK", "GROUP_RANK", "SLURM_STEP_", "KUBERNETES_PORT", "LSB_JOBID")

_GPUS = ("/dev/nvidia*", "/dev/kfd", "/dev/dxg", "/dev/accel*")
"""Devices that Linux shows where there is a GPU."""

COMPILED = "activation_checkpointing: a compiled network decides itself what to keep; leave one out"

_QUICKEST = 1e-4
"""Seconds of a training step that is shorter than any."""


def check_possible(stage: StageCommand, *, here: bool) -> None:
    """Refuse what cannot come to anything.

    Args:
        stage: of a chain or a table.
        here: whether it will run on this machine.

    Raises:
        UslError: names the key.
    """
    flat = stage.flat()
    check_networks(flat)
    check_split(flat)
    check_size(flat)
    check_steps(stage)
    if str(flat.get("model.class_path")).startswith(LEARN_FEATURES) and flat.get("data.batch_size") == 1:
        raise UslError("data.batch_size: 1 is a single image, with nothing to compare it to; use 2 or more")
    if here:
        check_needs(flat)
        check_given(flat)
        check_diaries(stage)
        check_machine(flat)
    if "optimizer" in parameters(str(flat.get("model.class_path"))):
        _check_division(flat)
    if stage.command in ("fit", "select"):
        check_counts(flat)


def check_steps(stage: StageCommand) -> None:
    """Refuse trainings without an end, and of a time in which no machine takes their steps.

    Raises:
        UslError: names the key.
    """
    steps, longest = stage.flat().get("trainer.max_steps"), stage.tree().get("trainer", {}).get("max_time")
    if steps == -1 and "trainer.max_steps" in stage.overrides:
        raise UslError("trainer.max_steps: -1 would never end; expected 1 or more")
    if stage.command == "fit" and stage.flat().get("trainer.max_epochs") == 0:
        raise UslError("trainer.max_epochs: 0 is over before the first step; leave it out")
    if "optimizer" in parameters(str(stage.flat().get("model.class_path"))):
        _check_switches(stage.flat())
    seconds = trainer.seconds(longest)
    if stage.command == "fit" and isinstance(steps, int) and seconds is not None and seconds < steps * _QUICKEST:
        raise UslError(f"trainer.max_time: {longest} is over before {steps} steps are taken; give a longer one")


def _check_switches(flat: Mapping[str, Any]) -> None:
    """Of what is trained in steps."""
    every, part = flat.get("trainer.val_check_interval"), flat.get("trainer.accumulate_grad_batches", 1)
    if type(every) is int and type(part) is int and every % part:
        raise UslError(validations_amid(every, part))
    if flat.get("compile") is True and flat.get("activation_checkpointing") is True:
        raise UslError(COMPILED)


def _check_division(flat: Mapping[str, Any]) -> None:
    devices, nodes = flat.get("trainer.devices"), flat.get("trainer.num_nodes", 1)
    batch = flat.get("data.batch_size", defaults(str(flat.get("data.class_path"))).get("batch_size"))
    if all(type(number) is int and number > 0 for number in (devices, nodes, batch)) and batch % (devices * nodes):
        raise UslError(f"data.batch_size: {batch} images cannot be divided over {devices * nodes} processes")


def validations_amid(every: int, part: int) -> str:
    """What to say of validations that would come amid a step.

    Args:
        every: batches between two of them.
        part: batches of a step.
    """
    valid = [size for size in (every - every % part, every - every % part + part) if size]
    return (
        f"trainer.val_check_interval: {every} batches end amid a step of {part} (trainer.accumulate_grad_batches); "
        f"use {' or '.join(map(str, valid))}"
    )


def check_needs(flat: Mapping[str, Any]) -> None:
    """Refuse a stage that lacks what its method or its data cannot do without.

    Args:
        flat: the configuration as dotted keys.

    Raises:
        UslError: names the keys.
    """
    for group in ("model", "data"):
        for name in sorted({*required_of(str(flat.get(f"{group}.class_path")))} - FROM_ELSEWHERE):
            if not any(f"{key}.".startswith(f"{group}.{name}.") for key in flat):
                raise UslError(f"{group}.{name}: must be given")
        for need in needs_of(str(flat.get(f"{group}.class_path"))):
            keys = [f"{group}.{name}" for name in need.split(" or ")]
            if not any(flat.get(key) for key in keys):
                method = str(flat[f"{group}.class_path"]).rpartition(".")[2]
                raise UslError(f"{' or '.join(keys)}: must be given; {method} does not do without")
    others = [key for key in ("model.init_from", "model.backbone") if flat.get(key) is not None]
    if "features" in parameters(str(flat.get("model.class_path"))) and flat.get("model.features") and others:
        raise UslError(f"{others[0]} and model.features: are given; expected one source of features")


def check_networks(flat: Mapping[str, Any]) -> None:
    """Refuse names that no network has.

    Args:
        flat: the configuration as dotted keys.

    Raises:
        UslError: names the key and the nearest name.
    """
    for key, name in named_networks(flat):
        if problem := unknown_network(name.partition(TRAINED_FOR)[0]):
            raise UslError(f"{key}: {problem}")


def check_size(flat: Mapping[str, Any]) -> None:
    """Refuse a network that reduces the images to nothing, or is made for others, as far as the sizes are known.

    Args:
        flat: the configuration as dotted keys.

    Raises:
        UslError: says of which size they are to be.
    """
    method, (_, side) = str(flat.get("model.class_path")), known_image(flat)
    usual = defaults(method)
    name = flat.get("model.backbone", usual.get("backbone"))
    sees_its_own = "features" in parameters(method) and flat.get("model.pretrained", usual.get("pretrained")) is True
    if isinstance(name, str) and side is not None and not sees_its_own and (problem := too_small(name, side)):
        raise UslError(f"model.backbone: {problem}")


def check_split(flat: Mapping[str, Any]) -> None:
    """Refuse a split that a set, of whose files each is a split, has not.

    Args:
        flat: the configuration as dotted keys.

    Raises:
        UslError: names those there are.
    """
    name = flat.get("data.dataset")
    if name is not None and canonical_name(str(name)) in ARRAY_SETS:
        try:
            parts_of(canonical_name(str(name)), str(flat.get("data.split", "train")))
        except UslError as error:
            raise UslError(f"data.split: {error}") from error


def check_machine(flat: Mapping[str, Any]) -> None:
    """Refuse what this machine cannot do: what its CPU does not compute, and processes that would never meet.

    Args:
        flat: the configuration as dotted keys.

    Raises:
        UslError: names the key and what is possible.
    """
    devices, nodes = flat.get("trainer.devices"), flat.get("trainer.num_nodes")
    for name in RANKS:
        value = os.environ.get(name, "0")
        if not (value.isascii() and value.isdecimal()):
            raise UslError(f"{name}={printable(value, 60)} in the environment: expected a whole number; unset it")
    if nodes in (None, 1) and os.environ.get("NODE_RANK", "0") != "0" and "RANK" not in os.environ:
        raise UslError(
            f"NODE_RANK={os.environ['NODE_RANK']} in the environment, but trainer.num_nodes is 1: unset it, or give "
            "the number of nodes"
        )
    if isinstance(nodes, int) and nodes > 1 and not any(name.startswith(_CLUSTER) for name in os.environ):
        raise UslError(
            f"trainer.num_nodes: {nodes}, but nothing says where the others are; start it by srun or torchrun, or set "
            "MASTER_ADDR, MASTER_PORT and NODE_RANK"
        )
    check_packages(flat)
    accelerator = flat.get("trainer.accelerator")
    if not _computes_on_cpu(accelerator):
        if accelerator in ("gpu", "cuda", "mps") and _computes_on_cpu("auto"):
            raise UslError(f"trainer.accelerator: {accelerator}, but this machine has no GPU; use auto or cpu")
        return
    strategy = str(flat.get("trainer.strategy.class_path", flat.get("trainer.strategy"))).rpartition(".")[2].lower()
    if strategy.startswith(("fsdp", "deepspeed")):
        raise UslError(f"trainer.strategy: {strategy} is not for a CPU; use ddp")
    if str(flat.get("trainer.precision")) in ("16", "16-mixed", "16-true"):
        raise UslError(f"trainer.precision: {flat['trainer.precision']} is not for a CPU; use bf16-mixed or 32-true")
    text, most = str(devices), 4 * cores()
    if devices not in (None, "auto") and not (text.isascii() and text.isdecimal() and int(text[:9]) > 0):
        raise UslError(f"trainer.devices: {printable(text, 60)} on a CPU; expected a number of processes, 1 or more")
    if text.isascii() and text.isdecimal() and int(text[:9]) > most:
        raise UslError(
            f"trainer.devices: {text[:9]} processes on the {cores()} cores of this machine's CPU; "
            f"expected at most {most}"
        )


def check_diaries(stage: StageCommand) -> None:
    """Refuse to log to Weights & Biases without being logged in there, and loggers that cannot be begun.

    Raises:
        UslError: says how to log in, or without.
    """
    away = not sends_nothing() and not logged_in()
    if stage.wandb == "online" and away:
        raise UslError(f"--wandb: {HOW}, or use --wandb offline")
    for class_path, given in trainer.classes("logger", stage.tree().get("trainer", {}).get("logger")):
        name = class_path.rpartition(".")[2]
        stays = given.get("offline") is True or given.get("mode") in ("offline", "disabled")
        if name == "WandbLogger" and trainer.is_lightnings(class_path) and away and not stays:
            raise UslError(f"trainer.logger: {name}: {HOW}, or give it offline: true")
        folder = given.get("save_dir")
        if isinstance(folder, str) and (problem := unwritable(home(folder))):
            raise UslError(f"trainer.logger: {name}: save_dir: {problem}; give another folder")


def check_packages(flat: Mapping[str, Any]) -> None:
    """Refuse names of the Trainer's that need a package which is not installed.

    Args:
        flat: the configuration as dotted keys.

    Raises:
        UslError: names the package.
    """
    for key, value in flat.items():
        group, _, name = key.removesuffix(".class_path").partition(".")
        missing = trainer.missing_package(name, value) if group == "trainer" else None
        if missing is not None:
            raise UslError(f"trainer.{name}: {missing[0]} needs the package {missing[1]}; pip install {missing[1]}")


def _computes_on_cpu(accelerator: Any) -> bool:
    """Whether a Trainer with this accelerator computes on the CPU for certain: Linux shows a GPU as a device."""
    if accelerator in (None, "auto"):
        return sys.platform == "linux" and not any(map(glob.glob, _GPUS))
    return bool(accelerator == "cpu")

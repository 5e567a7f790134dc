"""What a stage asks for that is not there: networks, images, a device. Told before it starts; imports nothing heavy."""

import glob
import os
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from usl_lightning.base import trainer
from usl_lightning.base.errors import UslError, printable
from usl_lightning.base.machine import RANKS, cores
from usl_lightning.base.parameters import parameters
from usl_lightning.data.images.catalog import ARRAY_SETS, canonical_name, parts_of
from usl_lightning.data.images.counts import most_images
from usl_lightning.models.names import unknown_network
from usl_lightning.models.published import check_weights
from usl_lightning.stage.given import check_cache, check_data, check_files, check_needs
from usl_lightning.stage.words import StageCommand

NETWORKS = ("model.backbone", "model.teacher")
"""Parameters that name networks."""

_OWN = "@"  # after the name of a network that was trained here, see `backbones.own_name`
_CLUSTER = ("MASTER_ADDR", "NODE_RANK", "GROUP_RANK", "SLURM_STEP_", "KUBERNETES_PORT", "LSB_JOBID")

_GPUS = ("/dev/nvidia*", "/dev/kfd", "/dev/dxg", "/dev/accel*")
"""Devices that Linux shows where there is a GPU."""

LEARN_FEATURES = "usl_lightning.pretrain."
"""Where the methods are that compare the images of a batch with each other."""

_most_images = cache(most_images)  # the stages of a table are many


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
    if flat.get("trainer.max_steps") == -1 and "trainer.max_steps" in stage.overrides:
        raise UslError("trainer.max_steps: -1 would never end; expected 1 or more")
    if str(flat.get("model.class_path")).startswith(LEARN_FEATURES) and flat.get("data.batch_size") == 1:
        raise UslError("data.batch_size: 1 is a single image, with nothing to compare it to; use 2 or more")
    if here:
        check_needs(flat)
        check_files(flat)
        check_data(flat)
        check_cache(flat)
        check_machine(flat)
        check_published(flat)
    if stage.command == "select":
        check_budget(flat)


def check_networks(flat: Mapping[str, Any]) -> None:
    """Refuse names that no network has.

    Args:
        flat: the configuration as dotted keys.

    Raises:
        UslError: names the key and the nearest name.
    """
    for key in NETWORKS:
        for name in _networks(flat.get(key)):
            problem = unknown_network(name.partition(_OWN)[0])
            if problem:
                raise UslError(f"{key}: {problem}")


def check_published(flat: Mapping[str, Any]) -> None:
    """Refuse networks whose published weights are wanted, are not on this machine and cannot be fetched.

    Args:
        flat: the configuration as dotted keys.

    Raises:
        UslError: names the network and says where to get its weights.
    """
    gives_features = "features" in parameters(str(flat.get("model.class_path")))  # published ones unless told otherwise
    wanted = {"model.backbone": flat.get("model.pretrained", gives_features), "model.teacher": True}
    for key in NETWORKS:
        for name in _networks(flat.get(key)) if wanted[key] is True else ():
            if _OWN not in name:
                check_weights(name)


def _networks(given: Any) -> list[str]:
    """The names in what a parameter of `NETWORKS` is given."""
    names = given.split(",") if isinstance(given, str) else given if isinstance(given, list) else []
    return [str(name).strip() for name in names]


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


def check_budget(flat: Mapping[str, Any]) -> None:
    """Refuse a choice of more images than there are.

    Args:
        flat: the configuration of a selection.

    Raises:
        UslError: tells how many there are.
    """
    budget = flat.get("model.budget")
    if not isinstance(budget, int) or flat.get("data.dataset") is None:
        return
    directory, split = flat.get("data.dir"), str(flat.get("data.split", "train"))
    listed = {name: flat.get(f"data.{name}") for name in ("class_list", "labels_file")}
    count = _most_images(str(flat["data.dataset"]), None if directory is None else str(directory), split, **listed)
    if count is not None and budget > count:
        raise UslError(f"model.budget: {budget} images cannot be picked from {count}")


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

"""What a chain for a folder is to do, and how long it will take here."""

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from usl_lightning.base.errors import UslError
from usl_lightning.init.folder import Inspection
from usl_lightning.init.speed import Network, best_network, candidates, device_name, machine_name

MINUTES = {"cpu": 10.0, "mps": 20.0, "cuda": 60.0}
"""How long a chain may take unless told otherwise."""

PER_CLASS, UNKNOWN = 4, 40
"""Images to label of each class, and in all where the classes are not known."""

WORTH = 100
"""Epochs of stage 1 that a larger network must leave time for."""

START = 15.0
"""Seconds until a stage has begun: Python, imports, configuration, the first step."""

SHARE = 0.6
"""Of the time for training that stage 1 gets."""

MU = 7
"""Unlabelled images for each labelled one in FixMatch, each seen twice."""

MOST_EPOCHS = 800
"""Of stage 1, however much time there is."""


@dataclass(frozen=True)
class Wishes:
    """What the user asked for.

    Attributes:
        budget: images to label; None: by the classes.
        classes: names to label by, perhaps none, if the folders are no classes; None: they are.
        class_count: how many classes there will be; None: not known.
        minutes: of the whole chain; None: by the device.
    """

    budget: int | None = None
    classes: tuple[str, ...] | None = None
    class_count: int | None = None
    minutes: float | None = None


@dataclass(frozen=True)
class Plan:
    """A chain.

    Attributes:
        found: the folder.
        machine: in words.
        network: of all stages.
        view: class and arguments of stage 1's views.
        classes: `data.classes`; None: the class folders, or none.
        budget: images to label.
        selections: names of the selectors: `usl`, and `random` to compare with where the labels are known.
        batch_size: of stage 1.
        labelled_batch: of stage 3.
        pretrain_steps, train_steps: of stages 1 and 3.
        seconds: estimated, of `pretrain`, of each selection by its name, of each `train`.
        minutes: asked for.
    """

    found: Inspection
    machine: str
    network: Network
    view: dict[str, Any]
    classes: tuple[str, ...] | None
    budget: int
    selections: tuple[str, ...]
    batch_size: int
    labelled_batch: int
    pretrain_steps: int
    train_steps: int
    seconds: dict[str, float]
    minutes: float

    @property
    def epochs(self) -> float:
        """Of stage 1."""
        return self.pretrain_steps * self.batch_size / readable(self.found)

    @property
    def total(self) -> float:
        """Seconds of the chain, without the labelling."""
        train = len(self.selections) * self.seconds["train"]
        return self.seconds["pretrain"] + sum(self.seconds[name] for name in self.selections) + train


def labels_known(found: Inspection, classes: Sequence[str] | None) -> bool:
    """Whether the folders say the class of every image, and there are two classes or more."""
    counts = found.train.class_counts
    return classes is None and len(counts) > 1 and sum(counts.values()) == found.train.count


def check_budget(found: Inspection, wishes: Wishes) -> int:
    """The number of images to label.

    Raises:
        UslError: more than there are, or too few images to learn from at all.
    """
    count = readable(found)
    if count < 10:
        raise UslError(f"usl init: {found.folder}: {count} images; expected 10 or more to learn from")
    if wishes.budget is not None:
        if not 1 <= wishes.budget <= count:
            have = f"{found.folder} has {count} images"
            raise UslError(f"usl init: --budget {wishes.budget}: {have}; expected 1 to {count}")
        return wishes.budget
    folders = found.train.class_counts if wishes.classes is None else {}
    classes = wishes.class_count or (len(folders) if len(folders) > 1 else 0)
    return min(PER_CLASS * classes or UNKNOWN, max(2, count // 4))


def make_plan(found: Inspection, wishes: Wishes) -> Plan:
    """Choose everything; networks are timed on this machine for some seconds.

    Raises:
        UslError: the budget does not fit the folder.
    """
    budget, device = check_budget(found, wishes), device_name()
    classes = _classes(found, wishes)
    selections = ("kmeans", "random") if labels_known(found, classes) else ("kmeans",)
    minutes = wishes.minutes or MINUTES[device]
    count = readable(found)
    reading = count * found.decoding / torch.get_num_threads()
    training = max(0.2 * 60 * minutes, 60 * minutes - START * (1 + 2 * len(selections)) - 2 * reading)

    networks = candidates(found, device)
    views = [choose_view(found.channels, min(network.height, network.width)) for network in networks]
    wanted = 2 * WORTH * count / (SHARE * training)
    number, network = best_network(networks, [build_view(view) for view in views], found.channels, device, wanted)

    batch_size = min(network.fits, 2 ** int(math.log2(count // 2)))
    labelled_batch = min(32, 2 * network.fits // (1 + 2 * MU))  # as many views as stage 1 has, or fewer
    each = 1 / network.views_per_second
    choosing = count * each / 3 + _neighbour_seconds(count, device)
    training = max(0.2 * 60 * minutes, training - choosing)
    step1, step3 = 2 * batch_size * each, labelled_batch * (1 + 2 * MU) * each
    most = max(2_000, MOST_EPOCHS * count // batch_size)
    pretrain_steps = _rounded(SHARE * training / step1, low=100, high=most)
    left = (training - pretrain_steps * step1) / len(selections)
    train_steps = _rounded(left / step3, low=100, high=20_000)
    seconds = {
        "pretrain": START + reading + pretrain_steps * step1,
        "kmeans": START + reading + choosing,
        "random": START,
        "train": START + reading + train_steps * step3,
    }
    return Plan(
        found, machine_name(), network, views[number], classes, budget, selections, batch_size, labelled_batch,
        pretrain_steps, train_steps, seconds, minutes,
    )  # fmt: skip


def readable(found: Inspection) -> int:
    """Images to learn from, as far as they were seen to be readable."""
    return found.train.count - len(found.train.unreadable)


def _classes(found: Inspection, wishes: Wishes) -> tuple[str, ...] | None:
    """`data.classes`: the names wished for; none where folders are not to be taken for classes, or one is alone."""
    folders = found.train.class_counts
    if wishes.classes is None:
        return () if len(folders) == 1 else None
    return wishes.classes or (() if folders else None)


def _neighbour_seconds(count: int, device: str) -> float:
    """Of the density and the clusters of features of 512 numbers, by products a second as measured on an AMD EPYC."""
    products = 2.0 * 512 * count * min(count, 70_000)
    return products / (5e12 if device == "cuda" else 2e10 * torch.get_num_threads())


def _rounded(steps: float, *, low: int, high: int) -> int:
    """To two digits, between `low` and `high`."""
    steps = min(max(steps, low), high)
    unit = 10 ** max(0, int(math.log10(steps)) - 1)
    return max(low, int(steps // unit * unit))


_VIEWS = "usl_lightning.data.views"


def choose_view(channels: int, side: int) -> dict[str, Any]:
    """Class and arguments of stage 1's view: small grey images need gentler ones, large ones are blurred too."""
    if channels == 1 and side <= 48:
        return {"class_path": f"{_VIEWS}.SmallGreyView", "init_args": {"scale": [0.2, 1.0], "degrees": 0, "flip": True}}
    blur = 0.5 if side >= 96 else 0.0
    return {
        "class_path": f"{_VIEWS}.SimCLRView",
        "init_args": {"scale": [0.2, 1.0], "strength": 0.5, "blur": blur, "flip": True},
    }


def build_view(view: Mapping[str, Any]) -> nn.Module:
    """The module that a `class_path` and its `init_args` mean."""
    module, _, name = view["class_path"].rpartition(".")
    built: nn.Module = getattr(importlib.import_module(module), name)(**view["init_args"])
    return built

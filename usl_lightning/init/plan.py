"""What a chain for a folder is to do, and how long it will take here."""

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from usl_lightning.base.errors import UslError
from usl_lightning.init.choice import Choice
from usl_lightning.init.folder import Inspection
from usl_lightning.init.speed import Network, best_network, busyness, candidates, device_name, machine_name
from usl_lightning.labels import LabelIndex
from usl_lightning.models.backbones import native_size

MINUTES = {"cpu": 10.0, "mps": 20.0, "cuda": 60.0}
"""How long a chain may take unless told otherwise."""

PER_CLASS, HOUR = 4, 300
"""Images to label of each class where the folders tell it, and in an hour of a person's time, at 12 seconds each."""

WORTH = 100
"""Epochs of stage 1 that a larger network must leave time for."""

START = 15.0
"""Seconds until a stage has begun: Python, imports, configuration, the first step."""

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
        rounds: that the images are labelled in.
        labels: those that are there already, and are kept.
    """

    budget: int | None = None
    classes: tuple[str, ...] | None = None
    class_count: int | None = None
    minutes: float | None = None
    rounds: int = 1
    labels: LabelIndex | None = None

    @property
    def kept(self) -> int:
        """Images of those labels, which the budget counts."""
        return 0 if self.labels is None else self.labels.chosen


@dataclass(frozen=True)
class Plan:
    """A chain.

    Attributes:
        found: the folder.
        machine: in words.
        choice: which features it is to work on, and why.
        network: of our own training; for published features alone, what these look at.
        view: class and arguments of stage 1's views.
        classes: `data.classes`; None: the class folders, or none.
        budget: images to label.
        selections: names of the selectors: `kmeans`, and `random` to compare with where the labels are known.
        batch_size: of stage 1.
        pretrain_steps: of stage 1; 0 without own training.
        seconds: estimated, of `pretrain` if it is planned, of each selection by its name, of each `train`; with what
            else the machine is doing now.
        load: how many times as long work takes now as on a free machine; 1 if it is free.
        minutes: asked for, of a free machine.
        rounds: that the images are labelled in.
        labels: those that are there already, and are kept.
    """

    found: Inspection
    machine: str
    choice: Choice
    network: Network
    view: dict[str, Any]
    classes: tuple[str, ...] | None
    budget: int
    selections: tuple[str, ...]
    batch_size: int
    pretrain_steps: int
    seconds: dict[str, float]
    load: float
    minutes: float
    rounds: int
    labels: LabelIndex | None = None

    @property
    def epochs(self) -> float:
        """Of stage 1."""
        return self.pretrain_steps * self.batch_size / readable(self.found)

    @property
    def total(self) -> float:
        """Seconds of the chain, without the labelling."""
        return self._sum(self.seconds)

    @property
    def told(self) -> float:
        """The same as the sum of its parts as they are told, so that whoever adds them up finds it."""
        return self._sum({name: rounded(seconds) for name, seconds in self.seconds.items()})

    def _sum(self, seconds: Mapping[str, float]) -> float:
        again = (self.rounds - 1) * (seconds["train"] + START * self.load)
        return sum(seconds.values()) + (len(self.selections) - 1) * seconds["train"] + again

    @property
    def budgets(self) -> list[int]:
        """Images of each round."""
        kept = 0 if self.labels is None else self.labels.chosen
        each, more = divmod(self.budget - kept, self.rounds)
        first, *others = [each + 1] * more + [each] * (self.rounds - more)
        return [kept + first, *others]


def rounded(seconds: float) -> float:
    """As it is told: to tens of seconds, 10 at least, or to minutes, or to tenths of an hour."""
    if seconds < 90:
        return max(10, round(seconds, -1))
    unit = 60 if seconds < 5_400 else 360
    return unit * round(seconds / unit)


def labels_known(found: Inspection, classes: Sequence[str] | None) -> bool:
    """Whether the folders say the class of every image, and there are two classes or more."""
    counts = found.train.class_counts
    return classes is None and len(counts) > 1 and sum(counts.values()) == found.train.count


def check_budget(found: Inspection, wishes: Wishes) -> int:
    """The number of images to label.

    Raises:
        UslError: more than there are, fewer than are labelled already or than there are rounds, too few images to
            learn from at all, or always the same one.
    """
    count = readable(found)
    if count < 10:
        raise UslError(f"usl init: {found.folder}: {count} images; expected 10 or more to learn from")
    if found.copies and len(found.copies[0]) == len(found.train.readable):
        raise UslError(f"usl init: {found.folder}: all images are the same one; expected different ones to learn from")
    if wishes.budget is not None:
        if not 1 <= wishes.budget <= count:
            have = f"{found.folder} has {count} images"
            raise UslError(f"usl init: --budget {wishes.budget}: {have}; expected 1 to {count}")
        budget = wishes.budget
        if wishes.labels is not None and budget < wishes.kept:
            raise UslError(
                f"usl init: --budget {budget}: the {wishes.kept} images of {wishes.labels.path} count; expected "
                f"{wishes.kept} or more, or --labels none"
            )
    elif wishes.labels is not None:
        budget = wishes.kept
    else:
        known = labels_known(found, data_classes(found, wishes))
        budget = min(PER_CLASS * len(found.train.class_counts) if known else HOUR, max(2, count // 4))
    if wishes.kept and wishes.rounds > max(1, budget - wishes.kept):
        raise UslError(
            f"usl init: --rounds {wishes.rounds}: {wishes.kept} images are chosen already; expected --budget "
            f"{wishes.kept + wishes.rounds} or more, which counts them, or --labels none"
        )
    if wishes.rounds > budget:
        raise UslError(
            f"usl init: --rounds {wishes.rounds}: {budget} images are to be labelled; expected 1 to {budget}"
        )
    return budget


def make_plan(found: Inspection, wishes: Wishes, choice: Choice) -> Plan:
    """Choose everything; networks are timed on this machine for some seconds.

    Args:
        found: the folder.
        wishes: of the user.
        choice: which features suit the images.

    Raises:
        UslError: the budget does not fit the folder.
    """
    budget, device = check_budget(found, wishes), device_name()
    classes = data_classes(found, wishes)
    compared = labels_known(found, classes) and wishes.rounds == 1 and wishes.labels is None
    selections = ("kmeans", "random") if compared else ("kmeans",)
    minutes, load = wishes.minutes or MINUTES[device], busyness()
    tests = 0 if found.test is None else found.test.count
    published = choice.dimensions
    width = {"own": 512, "published": published, "both": 512 + published}[choice.features]  # of the features, at most
    looking = choice.seconds if choice.features != "own" else found.decoding / torch.get_num_threads()  # an image
    seconds = {
        "kmeans": load * START
        + readable(found) * looking
        + load * _clustering_seconds(readable(found), budget, width, device),
        "random": load * START,
        "train": load * (START + _learning_seconds(readable(found), budget, width)) + tests * looking,
    }
    seconds = {name: seconds[name] for name in (*selections, "train")}
    if choice.features == "published" or choice.own is not None:
        return Plan(
            found, machine_name(), choice, _seen(choice), {}, classes, budget, selections, 0, 0, seconds, load, minutes,
            wishes.rounds, wishes.labels,
        )  # fmt: skip
    rest = sum(seconds.values()) / load + (len(selections) - 1) * seconds["train"] / load
    training = max(0.2 * 60 * minutes, 60 * minutes - rest - START)
    network, view = _network(found, device, WORTH * 2 * readable(found) / training, load)
    batch_size = min(network.fits, 2 ** int(math.log2(readable(found) // 2)))
    step = 2 * batch_size / (network.views_per_second * load)  # on a free machine
    most = max(2_000, MOST_EPOCHS * readable(found) // batch_size)
    steps = _rounded(training / step, low=100, high=most)
    reading = readable(found) * found.decoding / torch.get_num_threads()
    seconds = {"pretrain": load * (START + steps * step) + reading, **seconds}
    return Plan(
        found, machine_name(), choice, network, view, classes, budget, selections, batch_size, steps, seconds, load,
        minutes, wishes.rounds, wishes.labels,
    )  # fmt: skip


def _seen(choice: Choice) -> Network:
    """The network that nothing has to be trained for: one of our own that is there, or the published one."""
    if choice.own is not None:
        image = choice.own.encoder.image
        size = image.height if image.height == image.width else None
        return Network(choice.own.encoder.backbone, image.height, image.width, size)
    side, _ = native_size(choice.backbone)
    return Network(choice.backbone, side, side, side)


def _network(found: Inspection, device: str, wanted: float, load: float) -> tuple[Network, dict[str, Any]]:
    """The network that own training has time for, timed under the load of now, and stage 1's view for it."""
    networks = candidates(found, device)
    views = [choose_view(found.channels, min(network.height, network.width)) for network in networks]
    modules = [build_view(view) for view in views]
    number, network = best_network(networks, modules, found.channels, device, wanted / load)
    return network, views[number]


def readable(found: Inspection) -> int:
    """Images to learn from, as far as they were seen to be readable."""
    return found.train.count - len(found.train.unreadable)


def data_classes(found: Inspection, wishes: Wishes) -> tuple[str, ...] | None:
    """`data.classes`: the names wished for; none where folders are not to be taken for classes, or one is alone."""
    folders = found.train.class_counts
    if wishes.classes is None:
        return () if len(folders) == 1 else None
    return wishes.classes or (() if folders else None)


def _clustering_seconds(count: int, budget: int, width: int, device: str) -> float:
    """Of 20 starts of k-means on features of so many numbers, by products a second as measured on an AMD EPYC."""
    products = 2.0 * width * budget * min(count, max(10_000, 20 * budget)) * 20 * 25  # 25 iterations are usual
    return products / (5e12 if device == "cuda" else 2e10 * torch.get_num_threads())


def _learning_seconds(count: int, budget: int, width: int) -> float:
    """Of a classifier of few labels: the folds of its regression, and neighbours of all images; measured likewise."""
    products = 2.0 * width * count * min(count, 70_000)
    return 2 + 0.03 * budget + products / (2e10 * torch.get_num_threads())


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

"""`usl init FOLDER`: from a folder of images to a chain that can be run."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usl_lightning.base.atomic import check_replaceable
from usl_lightning.base.commands import known_options
from usl_lightning.base.errors import UslError
from usl_lightning.base.files import write_text
from usl_lightning.base.typed import as_count, home
from usl_lightning.chain.file import REFERENCE, Chain
from usl_lightning.chain.naming import most_labels_in
from usl_lightning.labels.names import checked, clean
from usl_lightning.models.names import unknown_network
from usl_lightning.pictures.png import is_png_of

if TYPE_CHECKING:  # they import torch
    from usl_lightning.data.images.source import ImageSource
    from usl_lightning.init.folder import Inspection
    from usl_lightning.init.given import Given, Opened
    from usl_lightning.init.plan import Plan

SHOWN = 24
"""Images on the contact sheet."""


@dataclass(frozen=True)
class InitOptions:
    """`usl init FOLDER` and its options.

    Attributes:
        folder: of the images.
        output: the chain file; by default beside the folder, with its name.
        budget: images to label; None: 4 of each class that the folders tell, or 300, an hour of a person's time.
        classes: names to label by, perhaps none, where sub-folders are no classes; None: they are.
        class_count: how many classes there will be; None: not known.
        minutes: how long the chain may take; None: by the device.
        force: replace the chain file.
        rounds: that the images are labelled in.
        backbone: published network to look with, or several with commas between them; None: the one that is here.
        labels: a run or a label file to decide by, or `none`; None: those of the run of this name, if there are any.
    """

    folder: Path
    output: Path
    budget: int | None = None
    classes: tuple[str, ...] | None = None
    class_count: int | None = None
    minutes: float | None = None
    force: bool = False
    rounds: int = 1
    backbone: str | None = None
    labels: str | None = None

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> "InitOptions":
        """Read the arguments after `usl init`.

        Raises:
            UslError: no folder, or an option that means nothing.
        """
        if not arguments or arguments[0].startswith("-"):
            raise UslError("usl init: expected the folder of your images, e.g. usl init photos")
        folder = home(arguments[0])
        typed = known_options("init", arguments[1:])
        named = folder.resolve()
        output = home(typed.get("output", str(named.parent / f"{named.name or 'images'}.yaml")))
        if output.suffix not in (".yaml", ".yml"):
            raise UslError(f"usl init: --output {output}: expected a name that ends in .yaml")
        classes, count = _classes(typed.get("classes"))
        return cls(
            folder,
            output,
            _positive("budget", typed, int),
            classes,
            count,
            _positive("minutes", typed, float),
            typed.get("force") == "true",
            _positive("rounds", typed, int) or 1,
            _backbone(typed.get("backbone")),
            typed.get("labels"),
        )


def _positive(key: str, typed: dict[str, str], kind: type) -> Any:
    """The number given for an option, None if there is none."""
    if key not in typed:
        return None
    try:
        value = kind(typed[key])
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        what = "a whole number, 1 or more" if kind is int else "a number above 0"
        raise UslError(f"usl init: --{key} {typed[key]}: expected {what}")
    return value


def _backbone(text: str | None) -> str | None:
    """The networks given, each with a name that some network has."""
    for name in () if text is None else text.split(","):
        if problem := unknown_network(name.strip()):
            raise UslError(f"usl init: --backbone: {problem}")
    return text


def _classes(text: str | None) -> tuple[tuple[str, ...] | None, int | None]:
    """The class names, and how many classes there are, as far as a text says: `10` or `cat,dog`."""
    if text is None:
        return None, None
    names = [clean(name) for name in text.split(",") if name.strip()]
    said = as_count(text)
    count = len(names) if said is None else said
    if count < 2 or len(set(names)) < len(names) or text == "true":
        raise UslError(
            f"usl init: --classes {text[:60]}: expected how many, or names: 2 or more, each once, as in cat,dog"
        )
    return (() if said is not None else checked(names, "usl init: --classes")), count


def main(arguments: Sequence[str]) -> None:
    """Look at a folder, say what is in it, and write a chain for it.

    Raises:
        UslError: no folder, no image in it, a budget it does not have, or a chain file that is there already.
    """
    given = InitOptions.parse(arguments)
    if os.path.lexists(given.output) and not given.force:
        raise UslError(f"usl init: {given.output} is there already; --force replaces it, --output FILE.yaml is another")
    sheet = given.output.with_name(f"{given.output.stem}_seen.png")
    check_replaceable(sheet, partial(is_png_of, "usl init"), "usl init: --output")
    if given.labels is not None:
        label_file(given)
    from usl_lightning.init.folder import inspect_folder

    found = inspect_folder(given.folder)
    if REFERENCE.search(str(found.data.resolve())):
        raise UslError(f"usl init: {found.data.resolve()}: '${{…}}' in a path would mean a stage; rename the folder")
    from usl_lightning.init.choice import choose_features
    from usl_lightning.init.given import decide_by_labels
    from usl_lightning.init.plan import Wishes, check_budget, data_classes, labels_known, make_plan
    from usl_lightning.init.template import chain_text, screen

    wishes = Wishes(given.budget, given.classes, given.class_count, given.minutes, given.rounds)
    images = partial(_opened, found, "train", data_classes(found, wishes))
    known = labels_known(found, data_classes(found, wishes))
    answered, problem = _answered(given, images, found.channels, known=known)
    wishes = replace(wishes, labels=None if answered is None else answered.index)
    check_budget(found, wishes)
    source = images(image_size=1, channels=3)
    choice = choose_features(source, backbone=given.backbone)
    if answered is not None:
        choice = decide_by_labels(choice, answered, source)
    elif problem:
        choice = replace(choice, why=(*choice.why, problem))
    plan = make_plan(found, wishes, choice)
    source = _open_as_stages_do(plan)
    name = None if answered is None else free_name(given.output.stem)
    draw_seen(source, sheet)
    write_text(given.output, chain_text(plan, given.output, name))  # last: it would be in the way of another try
    Chain.read(given.output)
    print(screen(plan, given.output, sheet, name))


def _answered(given: InitOptions, images: "Opened", channels: int, *, known: bool) -> tuple["Given | None", str]:
    """The labels that are asked for or there, if any; and why those that are there are not used.

    Args:
        given: what was typed.
        images: of the folder.
        channels: of them.
        known: the folders tell all classes, so that nobody has labelled anything; what is there is not looked for.
    """
    from usl_lightning.init.given import read_given

    if known and given.labels is None:
        return None, ""
    try:
        labels = label_file(given)
        if labels is None:
            return None, ""
        return read_given(labels, images, channels=channels, anew=given.minutes is not None), ""
    except UslError as error:
        if given.labels is not None:
            raise
        return None, f"the labels of the run of this name are not used: {error}"


def label_file(given: InitOptions) -> Path | None:
    """The label file that is asked for, or that of the run which has the chain's or the folder's name, if there is any.

    Raises:
        UslError: what is asked for is not there, or has no label yet.
    """
    if given.labels == "none":
        return None
    if given.labels is not None:
        asked = home(given.labels)
        if as_count(given.labels) is not None and not asked.exists():
            raise UslError(
                f"usl init: --labels {asked}: expected a run or a label file that is there; how many images to label "
                f"is --budget {asked}"
            )
        found = asked if asked.suffix in (".json", ".csv", ".npy") else most_labels_in(asked)
        if found is None:
            raise UslError(f"usl init: --labels {asked}: no image has a label in this run yet; usl label {asked}")
        return found
    runs = [Path("runs") / name for name in dict.fromkeys((given.output.stem, given.folder.resolve().name))]
    files = (most_labels_in(run) for run in runs if (run / "run.json").exists())
    return next((file for file in files if file is not None), None)


def free_name(name: str) -> str | None:
    """A name that no run has yet, where one has that of the chain; else None."""
    taken, number = Path("runs"), 2
    if not (taken / name).exists():
        return None
    while (taken / f"{name}_{number}").exists():
        number += 1
    return f"{name}_{number}"


def _open_as_stages_do(plan: "Plan") -> "ImageSource":
    """Refuse now what the first stage would refuse; the images to learn from, as it looks at them."""
    found, size = plan.found, plan.network.image_size
    if found.test is not None:
        _opened(found, "test", plan.classes, image_size=size, channels=found.channels)
    return _opened(found, "train", plan.classes, image_size=size, channels=found.channels)


def _opened(
    found: "Inspection", split: str, classes: tuple[str, ...] | None, *, image_size: int | None, channels: int
) -> "ImageSource":
    from usl_lightning.data.images.opening import open_source

    return open_source(
        "folder", split, dir=str(found.data), image_size=image_size, channels=channels,
        on_error="skip" if found.unreadable else "fail", classes=None if classes is None else list(classes),
    )  # fmt: skip


def draw_seen(source: "ImageSource", path: Path) -> None:
    """Write a contact sheet of evenly spaced images as a network looks at them, in their pixels.

    Args:
        source: the images in the network's size.
        path: the PNG.
    """
    import torch

    from usl_lightning.pictures.grid import contact_sheet

    count = min(SHOWN, len(source))
    contact_sheet(source.read(torch.arange(count) * len(source) // count), path, command="usl init")

"""The chain file that `usl init` writes, and the screen it shows."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from usl_lightning.data.images.folders import cache_folder
from usl_lightning.data.modules import RESIDENT_FILES
from usl_lightning.init.folder import Inspection, told
from usl_lightning.init.plan import START, Plan, labels_known, readable, rounded

EXAMPLES = 2
"""Files that are named of each kind of trouble."""

BUSY = 1.3
"""Work that takes so many times as long as on a free machine is told."""


# the file ------------------------------------------------------------------------------------------------


def chain_text(plan: Plan, path: Path, name: str | None = None) -> str:
    """The chain as YAML, with what it does and may be changed as comments.

    Args:
        plan: what it is to do.
        path: where it will be, for the commands in it.
        name: of its run, where that is not to be the file's.
    """
    first = ["stages:", *_pretrain(plan)] if "pretrain" in plan.seconds else []
    rest = _rounds(plan) if plan.rounds > 1 else _branches(plan) if first else ["stages:", *_branches(plan)]
    return "\n".join([*_header(plan, path, name), *_shared(plan), *first, *rest, ""])


def _header(plan: Plan, path: Path, name: str | None) -> Iterator[str]:
    known = labels_known(plan.found, plan.classes)
    labels = "with known labels" if known else "to be labelled by you"
    if plan.labels is not None:
        labels = f"{plan.labels.labelled} of them labelled already"
    yield f"# Chain on {_line(path.stem)}: {_images(plan)}; {plan.budget} are picked, {labels}."
    yield "#"
    yield f"#   {_run(path.name, name)}"
    yield "#"
    if plan.labels is not None:
        yield f"# It goes on with the labels of {_line(str(plan.labels.path))}, and with more after --redo train."
        yield "#"
    elif not known:
        again = f" {plan.rounds} times" if plan.rounds > 1 else ""
        some = f"{plan.budgets[0]} of them" if plan.rounds > 1 else f"{plan.budget} images"
        yield f"# It picks {some}, stops until they are labelled, and then goes on with those that are{again}."
        rounds = "" if plan.rounds > 1 else "With `usl init --rounds N` they are labelled in rounds; "
        yield f"# {rounds}`usl more` adds a round to a finished run."
        yield "#"
    yield from (f"# {_line(why)}" for why in plan.choice.why)
    yield f"# Written by `usl init` on {plan.machine}{_timed(plan, ', where ')}: {_minutes(plan.told)} in all."
    yield "# Whatever a stage has may be set here; `usl fit --config folder_simclr.yaml --help` lists it."
    yield "# --wandb logs to Weights & Biases too (--wandb offline: without a network); to TensorBoard, if installed:"
    yield "# --trainer.logger TensorBoardLogger --trainer.logger.save_dir runs/tensorboard"


def _shared(plan: Plan) -> Iterator[str]:
    found, network = plan.found, plan.network
    yield "seed: 0"
    yield "set:  # of all stages"
    yield f"  data.dir: {_value(str(found.data.resolve()))}"
    if network.image_size is not None:
        whose = f"; {plan.choice.backbone} looks at as many" if plan.choice.features == "published" else ""
        yield f"  data.image_size: {network.image_size}  # pixels a side, of the largest centred square{whose}"
    yield f"  data.channels: {found.channels}"
    if found.transparent:
        yield "  data.background: white  # what transparent pixels are laid on: a name, or '#rrggbb'"
    if found.unreadable:
        yield "  data.on_error: skip  # leave out files that cannot be read"
    if plan.classes is not None:
        yield f"  data.classes: {_value(list(plan.classes))}  # names to label by; sub-folders are no classes"
    if found.train.count > RESIDENT_FILES:
        yield f"  data.cache: {_value(str(cache_folder() / 'images'))}  # keeps the decoded images"


def _pretrain(plan: Plan) -> Iterator[str]:
    yield from _stage("pretrain", "fit", "folder_simclr.yaml", f"SimCLR, {_minutes(plan.seconds['pretrain'])}")
    yield f"      model.backbone: {plan.network.backbone}"
    yield "      model.view:"
    yield f"        class_path: {plan.view['class_path']}"
    yield f"        init_args: {_value(plan.view['init_args'])}  # for letters and digits flip: false"
    yield f"      model.optimizer.warmup_steps: {min(100, plan.pretrain_steps // 10)}"
    yield f"      data.batch_size: {plan.batch_size}"
    yield f"      trainer.max_steps: {plan.pretrain_steps}  # {plan.epochs:.3g} epochs"
    yield f"      trainer.precision: {plan.network.precision}"


SELECTIONS = {"kmeans": "folder_kmeans_nearest.yaml", "random": "folder_random.yaml"}
"""What a person is to label: the image nearest to each k-means centre, which led to the best classifier on every set of
features it was measured on; and random ones, to compare with, where the labels are known."""


def _branches(plan: Plan) -> Iterator[str]:
    several = len(plan.selections) > 1
    for selection in plan.selections:
        name = f"select_{selection}" if several else "select"
        yield from _stage(name, "select", SELECTIONS[selection], _minutes(plan.seconds[selection]))
        if selection == "kmeans":
            yield from _features(plan)
            yield from _kept(plan)
            yield "      model.restarts: 20  # of k-means, of which the best counts"
            yield "      model.move: 4  # a label goes to where copies are if it stands for four times as many there"
        yield f"      model.budget: {plan.budget}"
    for selection in plan.selections:
        name = f"train_{selection}" if several else "train"
        about = f"logistic regression and label propagation, {_minutes(plan.seconds['train'])}"
        yield from _stage(name, "fit", "folder_blend.yaml", about)
        yield from _features(plan)
        yield f"      data.labels: ${{select{f'_{selection}' if several else ''}.labels}}"
        yield "      data.unanswered: leave_out  # what is labelled counts; with more labels: --redo train"


def _rounds(plan: Plan) -> Iterator[str]:
    """The images of the first round as without rounds; of the next ones those that help its classifier most."""
    yield "rounds:  # each selects, waits for the labels, and trains on all so far"
    yield f"  budget: {plan.budgets}  # images of each"
    yield f"  first:  # {_minutes(plan.seconds['kmeans'])}"
    yield f"    config: {SELECTIONS['kmeans']}"
    yield "    set:"
    yield from _kept(plan)
    yield "      model.restarts: 20  # of k-means, of which the best counts"
    yield "  next:"
    yield "    config: folder_uherding.yaml"
    yield "    set: {model.sigma: 1.0}"
    yield f"  classifier:  # logistic regression and label propagation, {_minutes(plan.seconds['train'])}"
    yield "    config: folder_blend.yaml"
    yield "    set: {data.unanswered: leave_out}  # what is labelled counts"
    yield "  set:"
    yield from (line.removeprefix("  ") for line in _features(plan))


def _kept(plan: Plan) -> Iterator[str]:
    """Labels that are there already."""
    if plan.labels is not None:
        yield f"      model.keep_from: {_value(str(Path(str(plan.labels.path)).resolve()))}  # the budget counts them"


def _features(plan: Plan) -> Iterator[str]:
    """Where a stage's features come from; those of both sources stand side by side."""
    if plan.choice.own is not None:
        yield f"      model.init_from: {_value(str(plan.choice.own.checkpoint.absolute()))}"
    elif plan.choice.features != "published":
        yield "      model.init_from: ${pretrain.checkpoint}"
    if plan.choice.features != "own":
        yield f"      model.backbone: {plan.choice.backbone}  # with its published weights"


def _stage(name: str, command: str, config: str, about: str) -> Iterator[str]:
    yield f"  - name: {name}  # {about}"
    yield f"    command: {command}"
    yield f"    config: {config}"
    yield "    set:"


def _value(value: Any) -> str:
    """A value as YAML in one line: JSON is."""
    return json.dumps(value, ensure_ascii=False)


def _run(path: str, name: str | None) -> str:
    """The command that runs a chain, to be typed as it stands."""
    return _line(shlex.join(["usl", "run", path, *([] if name is None else ["--name", name])]))


def _line(text: str) -> str:
    """A name that may hold anything, in a comment."""
    return " ".join(text.split())


# the screen ----------------------------------------------------------------------------------------------


def screen(plan: Plan, path: Path, sheet: Path, name: str | None = None) -> str:
    """What was found and what is planned, for people.

    Args:
        plan: what the chain is to do.
        path: where it was written.
        sheet: the picture of what the network will see.
        name: of its run, where that is not to be the file's.
    """
    here = Path.cwd()
    shown, seen = (each.relative_to(here) if each.is_relative_to(here) else each for each in (path, sheet))
    known = labels_known(plan.found, plan.classes)
    some = f"{plan.budgets[0]} of {plan.budget}" if plan.rounds > 1 else f"{plan.budget}"
    again = f", {plan.rounds} times" if plan.rounds > 1 else ""
    stop = "" if known else f" It stops for {some} images to be labelled, and goes on with those that are{again}."
    if plan.labels is not None:
        new = plan.budget - plan.labels.chosen
        stop = f" It goes on with the labels that are there{f', and stops for {new:,} images more' * (new > 0)}."
    ending = [
        f"What the network will see is in {_line(str(seen))}.",
        f"{_line(str(shown))} is written.{stop}",
        f"next: {_run(str(shown), name)}",
    ]
    return "\n".join([*_findings(plan), "", *_estimates(plan), "", *ending])


def _findings(plan: Plan) -> Iterator[str]:
    found = plan.found
    yield f"{_line(str(found.data))}: {_images(plan)}"
    if len(found.train.looked) < found.train.count:
        yield _row("looked at", f"{len(found.train.looked):,} evenly spaced ones of {found.train.count:,}")
    yield _row("sizes", _sizes(found))
    yield _row("labels", _labels(plan))
    if found.test is not None:
        yield _row("test", f"{found.test.count:,} images beside them to measure on")
    copies = sum(len(group) - 1 for group in found.copies)
    repeat = "1 file repeats another" if copies == 1 else f"{copies:,} files repeat others"
    yield _row("copies", f"{repeat}: {_example(found.copies)}" if copies else "none")
    if found.leaked:
        both = "1 image is" if len(found.leaked) == 1 else f"{len(found.leaked):,} images are"
        yield _row("leaks", f"{both} both in train and in test: {_example(found.leaked)}")
    if found.away:
        are = "1 image is a link" if len(found.away) == 1 else f"{len(found.away):,} images are links"
        yield _row(
            "links",
            f"{are} out of the folder, which `usl label` does not show: copy them (cp -rL); first: "
            f"{found.away[0].file}",
        )
    if found.transparent:
        some = "1 image is" if len(found.transparent) == 1 else f"{len(found.transparent):,} images are"
        behind = "learned and shown on white; data.background is another colour"
        yield _row("transparent", f"{some} transparent in places, {behind}; first: {found.transparent[0].file}")
    bad = [one.problem for one in found.unreadable]
    left_out = "1 file is left out" if len(bad) == 1 else f"{len(bad):,} files are left out"
    some = f"{'; '.join(bad[:EXAMPLES])}{'; …' * (len(bad) > EXAMPLES)}"
    yield _row("unreadable", f"{left_out}: {some}" if bad else "none")
    if found.others:
        yield _row("ignored", f"{told(found.others)}: no image files")


def _estimates(plan: Plan) -> Iterator[str]:
    network, seconds = plan.network, plan.seconds
    size = f"{network.width}×{network.height}"
    for number, why in enumerate(plan.choice.why):
        yield _row("" if number else "features", why)
    yield f"on {plan.machine}: {network.backbone}, {size} pixels, {network.precision}"
    yield _row("timed", f"{_timed(plan)}; the rest is from a table" if _timed(plan) else "nothing: all is from a table")
    if plan.load >= BUSY:
        yield _row("busy", f"the machine is: everything takes {plan.load:.1f} times as long as when it is free")
    if "pretrain" in seconds:
        steps = f"{plan.pretrain_steps:,} steps of {plan.batch_size} images, {plan.epochs:.3g} epochs"
        yield _row("pretrain", f"{_minutes(seconds['pretrain']):13} SimCLR, {steps}")
    for name in plan.selections:
        yield _row("select", f"{_minutes(seconds[name]):13} {name}, {plan.budget} of {readable(plan.found):,}")
    after = f", after each of {plan.rounds} rounds" if plan.rounds > 1 else ""
    if len(plan.selections) > 1:
        after = f", for each of the {len(plan.selections)} selections"
    yield _row("train", f"{_minutes(seconds['train']):13} logistic regression and label propagation{after}")
    yield _row("in all", _minutes(plan.told) + _advice(plan))


def _timed(plan: Plan, before: str = "") -> str:
    """What was timed, and how fast it is now, after some words; nothing, if nothing was."""
    speeds = []
    if plan.choice.features != "own":
        speeds.append(f"{plan.choice.backbone} at {1 / plan.choice.seconds:,.0f} images a second")
    if "pretrain" in plan.seconds:
        speeds.append(f"{plan.network.backbone} at {plan.network.views_per_second:,.0f} views a second")
    return before * bool(speeds) + " and ".join(speeds)


def _advice(plan: Plan) -> str:
    free = plan.total / plan.load
    if plan.load >= BUSY:
        return f"; {_minutes(free)} on this machine when it is free"
    if free > 1.1 * 60 * plan.minutes + START:
        return f" (more than the {plan.minutes:g} asked for: less would learn nothing)"
    if 0 < plan.epochs < 20:
        return f" (few epochs: better features come of more time, --minutes {20 / plan.epochs * plan.minutes:.0f})"
    return ""


def _images(plan: Plan) -> str:
    found = plan.found
    kind = "grey" if found.channels == 1 else "colour"
    return f"{readable(found):,} {kind} images"


def _sizes(found: Inspection) -> str:
    common = found.sizes.most_common(3)
    if len(found.sizes) == 1:
        return f"{common[0][0][1]}×{common[0][0][0]} pixels, all"
    shown = ", ".join(f"{width}×{height} ({count:,})" for (height, width), count in common)
    more = f", … {len(found.sizes):,} sizes" if len(found.sizes) > len(common) else ""
    return f"{shown}{more}; shorter side {found.side} in the middle"


def _labels(plan: Plan) -> str:
    if plan.labels is not None:
        some = f"{plan.labels.labelled:,} of {len(plan.labels):,} images have one"
        return f"{some}, in {_line(str(plan.labels.path))}; these are kept"
    counts = plan.found.train.class_counts
    kind = ("sub-folder", "class folders") if plan.found.train.of_folders else ("label", "classes that the shards name")
    if plan.classes is not None:
        several = f"{kind[0]} is" if len(counts) == 1 else f"{len(counts)} {kind[0]}s are"
        folders = f"; the {several} not taken for classes" if counts else ""
        named = f"none yet; classes to label by: {_some(list(plan.classes))}" if plan.classes else "none yet"
        return named + folders
    if not counts:
        return "none yet: no class folders"
    known = sum(counts.values())
    fewest, most = min(counts.values()), max(counts.values())
    spread = f"{fewest:,} to {most:,} images each" if fewest < most else f"{most:,} image{'s' * (most > 1)} each"
    text = f"{len(counts)} {kind[1]} ({_some(list(counts))}), {spread}"
    if beside := plan.found.train.count - known:
        text += f"; {beside:,} images beside them have no label" if beside > 1 else "; 1 image beside them has no label"
    return f"{text}; if they are no classes: --classes NAMES"


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + ", …" * (len(names) > 4)


def _example(groups: list[list[str]]) -> str:
    return ", ".join(f"{group[1]} = {group[0]}" for group in groups[:EXAMPLES]) + ", …" * (len(groups) > EXAMPLES)


def _row(name: str, text: str) -> str:
    return f"  {name:11} {text}"


def _minutes(seconds: float) -> str:
    told = rounded(seconds)
    if told <= 90:
        return f"about {told:.0f} s"
    return f"about {told / 60:.0f} min" if told < 5_400 else f"about {told / 3600:.1f} h"

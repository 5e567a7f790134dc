"""`usl more RUN --budget N`: one more round of labelling for a run that is finished."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from usl_lightning.base.commands import known_options
from usl_lightning.base.configs import find_config
from usl_lightning.base.errors import UslError
from usl_lightning.base.typed import as_count, options
from usl_lightning.chain.options import RunOptions
from usl_lightning.chain.pipeline import run_chain
from usl_lightning.chain.plan import Plan

USAGE = "usl more: expected a run and how many images, e.g. usl more runs/my_images --budget 40"


def main(arguments: Sequence[str]) -> None:
    """Add a round to a run and run it, as `usl run` does: it stops where images are to be labelled.

    Raises:
        UslError: no run, one that is not finished or has no classifier that a round could be chosen by, or no budget.
    """
    words = list(arguments)
    if not words or words[0].startswith("-"):
        raise UslError(USAGE)
    folder = Path(words[0])
    given = known_options("more", words[1:])
    budget = given.get("budget", "")
    if not as_count(budget):
        raise UslError(f"usl more: --budget {budget or 'is missing'}: expected the images of the round, 1 or more")
    run_chain(_longer(folder, budget, dry="dry-run" in given))


def _longer(folder: Path, budget: str, *, dry: bool) -> RunOptions:
    """The run with a round more."""
    plan = Plan.read(folder)
    if plan is None:
        raise UslError(f"usl more: {folder}: no run of `usl run`; expected the folder that holds its run.json")
    chain, *typed = plan.arguments
    own = {"name": folder.resolve().name, "out": str(folder.parent)}
    kept = [(key, value) for key, value in options(typed) if key not in (*own, "more")]
    rounds = [value for key, value in options(typed) if key == "more"]
    here = [*kept, *(pair for pair in own.items() if pair != _usual(chain, pair[0]))]
    before = RunOptions.parse([chain, *(f"--{key}={value}" for key, value in here)])
    unfinished = [stage.name for stage in before.chain.stages if not before.folder(stage.name).complete]
    if unfinished:
        again = shlex.join(["usl", "run", *before.typed])
        raise UslError(f"usl more: {folder} is not finished, {', '.join(unfinished)} to come; it goes on with: {again}")
    longer = [chain, *(f"--{key}={value}" for key, value in here), f"--more={','.join([*rounds, budget])}"]
    run = RunOptions.parse([*longer, *(["--dry-run"] if dry else [])])
    run.again = shlex.join(["usl", "run", *longer])
    return run


def _usual(chain: str, key: str) -> tuple[str, str]:
    return key, {"name": find_config(chain).stem, "out": "runs"}[key]

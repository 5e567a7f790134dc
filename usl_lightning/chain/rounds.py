"""Rounds of labelling in a chain, written out as stages: select_1, train_1, select_2, train_2, …"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from usl_lightning.base.configs import find_config
from usl_lightning.base.documents import settled
from usl_lightning.base.errors import UslError, did_you_mean
from usl_lightning.base.parameters import parameters
from usl_lightning.base.ranges import whole
from usl_lightning.stage.words import StageCommand

KEYS = ("budget", "first", "next", "classifier", "set")
PART_KEYS = ("config", "set")


def stages_of(path: Path, rounds: Any, more: Sequence[int] = ()) -> list[dict[str, Any]]:
    """The entries of `stages:` that rounds come to.

    A round selects images beside those of the rounds before, whose labels stand, and trains a classifier of them all;
    the next round's selector looks at it, if it is one that does.

    Args:
        path: the chain file.
        rounds: what stands under `rounds`: `budget`, the images of each round; `first` and `next`, the selectors, and
            `classifier`, each a configuration or a mapping of `config` and `set`; `set`, for all of these stages.
        more: images of each further round.

    Raises:
        UslError: names the key and what was expected.
    """
    where = f"{path}: rounds"
    if not isinstance(rounds, Mapping):
        raise UslError(f"{where}: expected {', '.join(KEYS)}, found {settled(rounds)!r}")
    _check_keys(rounds, KEYS, where)
    budgets = [*_budgets(rounds.get("budget"), where), *more]
    parts = {name: _part(rounds.get(name), f"{where}: {name}") for name in ("first", "next", "classifier")}
    for part in parts.values():
        part["set"] = {**_mapping(rounds.get("set"), f"{where}: set"), **part["set"]}
    if "classifier_from" in _parameters(path, parts["first"]):
        raise UslError(
            f"{where}: first: {parts['first']['config']} looks at a classifier, and before the first round there is "
            "none; expected another selector, such as k-means + nearest"
        )
    known, stages, total = _parameters(path, parts["next"]), list[dict[str, Any]](), 0
    for number, budget in enumerate(budgets, 1):
        total += budget
        before = {"model.keep_from": f"${{select_{number - 1}.labels}}"} if number > 1 else {}
        for back, name in enumerate(("classifier_from", "earlier_from"), 1):
            if number > back and name in known:
                before[f"model.{name}"] = f"${{train_{number - back}.checkpoint}}"
        select, train = parts["next" if before else "first"], parts["classifier"]
        stages += [
            {
                "name": f"select_{number}",
                "command": "select",
                "config": select["config"],
                "set": {**select["set"], "model.budget": str(total), **before},
            },
            {
                "name": f"train_{number}",
                "command": "fit",
                "config": train["config"],
                "set": {**train["set"], "data.labels": f"${{select_{number}.labels}}"},
            },
        ]
    return stages


def _budgets(value: Any, where: str) -> list[int]:
    numbers = settled(value)
    numbers = numbers if isinstance(numbers, list) else [numbers]
    for number in numbers:
        problem = whole(1).problem(number)
        if problem is not None or not isinstance(number, int):
            what = problem or f"found {number!r}; expected the images of each round, such as [40, 40, 40]"
            raise UslError(f"{where}: budget: {what}")
    if not numbers:
        raise UslError(f"{where}: budget: there is no round; expected the images of each, such as [40, 40, 40]")
    return numbers


def _part(value: Any, where: str) -> dict[str, Any]:
    """A configuration, by its name alone or with what it sets."""
    part = {"config": value} if isinstance(value, str) and settled(value) is not None else value
    if not isinstance(part, Mapping) or not isinstance(part.get("config"), str):
        raise UslError(f"{where}: expected the name of a configuration, or config and set")
    _check_keys(part, PART_KEYS, where)
    return {"config": str(part["config"]), "set": _mapping(part.get("set"), f"{where}: set")}


def _check_keys(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise UslError(f"{where}: unknown key '{key}'{did_you_mean(str(key), known)}; expected {', '.join(known)}")


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value or {}, Mapping):
        raise UslError(f"{where}: expected a mapping of keys to values")
    return dict(value or {})


def _parameters(path: Path, part: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a selector takes."""
    config = find_config(part["config"], beside=path.parent)
    flat = StageCommand("select", [config], {key: str(value) for key, value in part["set"].items()}).flat()
    return parameters(str(flat.get("model.class_path")))

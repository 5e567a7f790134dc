"""Rounds that are added to a chain without any: the images that help its classifier most, and the classifier again."""

import json
from dataclasses import dataclass, field
from typing import Any

from usl_lightning.base.errors import UslError
from usl_lightning.base.parameters import parameters
from usl_lightning.chain.file import Stage
from usl_lightning.stage.words import StageCommand

NEXT, SIGMA = "usl_lightning.selection.uherding.UHerding", "1.0"
"""What chooses, and its kernel: ahead of as many images at once on every set of tests/benchmarks/rounds.py."""

FEW_LABELS = tuple(f"usl_lightning.semisup.{each}" for each in ("probe.Probe", "propagate.Propagate", "blend.Blend"))
"""Classifiers that it can look at."""


@dataclass
class Added:
    """Stages of further rounds, after the first selection whose labels a classifier of few labels is trained from.

    Attributes:
        select, train: those two.
        more: images of each further round.
        stages: what they come to; `settle` says what these set, once all options are known.
    """

    select: Stage
    train: Stage
    more: list[int]
    stages: list[Stage] = field(init=False)

    def __post_init__(self) -> None:
        self.stages = [
            Stage(f"{each.name}_{number}", each.command, each.config)
            for number in range(2, len(self.more) + 2)
            for each in (self.select, self.train)
        ]

    @classmethod
    def after(cls, stages: list[Stage], more: list[int]) -> "Added":
        """Find the two.

        Raises:
            UslError: there are none.
        """
        for select in stages:
            for train in stages if select.command == "select" else ():
                takes = train.set.get("data.labels") == f"${{{select.name}.labels}}"
                if takes and _flat(train).get("model.class_path") in FEW_LABELS:
                    return cls(select, train, more)
        names = ", ".join(path.rpartition(".")[2] for path in FEW_LABELS)
        raise UslError(
            f"no round can be added: the chain has no 'rounds:', and no stage learns from a selection by one of {names}"
        )

    def settle(self) -> None:
        """Give the stages what the two have, beside what they were given themselves."""
        flat, own = _flat(self.select), parameters(NEXT)
        total = int(flat["model.budget"])
        kept = {key: _text(value) for key, value in flat.items() if key.removeprefix("model.") in own}
        others = {key: value for key, value in self.select.set.items() if not key.startswith("model.")}
        before = self.select.name, self.train.name
        for select, train, images in zip(self.stages[::2], self.stages[1::2], self.more, strict=True):
            total += images
            chain = {
                "model.budget": str(total),
                "model.sigma": SIGMA,
                "model.keep_from": f"${{{before[0]}.labels}}",
                "model.classifier_from": f"${{{before[1]}.checkpoint}}",
            }
            select.set = {"model.class_path": NEXT, **others, **kept, **chain, **select.set}
            train.set = {**self.train.set, "data.labels": f"${{{select.name}.labels}}", **train.set}
            before = select.name, train.name


def _flat(stage: Stage) -> dict[str, Any]:
    return StageCommand(stage.command, [stage.config], dict(stage.set)).flat()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

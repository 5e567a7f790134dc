"""Training steps of the methods of stage 1 relative to SimCLR's, in one run.

    python tests/benchmarks/pretrain_throughput.py [--steps 5] [--methods swav dino …]

Each method as its configuration of digits sets it up, 256 images a step, without the trainer. The methods take turns, a
step each, so that whatever else the machine does hits all alike; a method's cost is the median over the turns of its
seconds over SimCLR's in the same turn. Prints a table and writes results/pretrain_throughput.json.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import machine

from usl_lightning.base.configs import pairs, shipped
from usl_lightning.data.batch import Batch
from usl_lightning.data.keys import Key, permutation
from usl_lightning.stage.parser import StageCLI
from usl_lightning.stage.words import StageCommand

PREFIX = "digits_"


def methods() -> list[str]:
    """Those of stage 1 that digits have a configuration for."""
    named = {name for name, (_, part) in pairs().items() if part == f"{PREFIX}pretrain"}
    named |= {name for name in shipped() if name.startswith(f"{PREFIX}cmsf")}
    return sorted(name.removeprefix(PREFIX).removesuffix(".yaml") for name in named)


class Trainer:
    """What a step asks of it."""

    def __init__(self, data: Any) -> None:
        self.datamodule, self.global_step, self.max_steps, self.accumulate_grad_batches = data, 0, 300, 1
        self.world_size, self.is_global_zero, self.gradient_clip_val, self.loggers = 1, True, None, []
        self.log_every_n_steps = 50


def steps_of(method: str) -> Iterator[float]:
    """Seconds of each step, without end; the first is for warming up."""
    import torch

    cli = StageCLI(StageCommand.parse("fit", [f"--config={PREFIX}{method}.yaml"]))
    model, data = cli.model, cli.datamodule
    data.setup("fit")
    trainer = Trainer(data)
    model.trainer = trainer
    model.setup("fit")
    model.log_training = lambda *views, **values: None
    if hasattr(model, "on_train_start"):
        model.on_train_start()
    optimizer = model.configure_optimizers()["optimizer"]
    source, size = data.train_source, data.batch_size
    while True:
        indices = permutation(len(source), trainer.global_step)[:size]
        labels = torch.full((size,), -1)
        batch = Batch(source.read(indices), labels, indices, Key.of(trainer.global_step, slots=torch.arange(size)))
        start = time.perf_counter()
        optimizer.zero_grad()
        model.training_step(batch, trainer.global_step).backward()
        model.optimizer_step(0, trainer.global_step, optimizer, None)
        trainer.global_step += 1
        yield time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=methods())
    arguments = parser.parse_args()
    named = ["simclr", *(name for name in arguments.methods if name != "simclr")]
    running = {name: steps_of(name) for name in named}
    for steps in running.values():
        next(steps)
    turns = [{name: next(steps) for name, steps in running.items()} for _ in range(arguments.steps)]
    rows = {
        name: {
            "seconds_per_step": statistics.median(turn[name] for turn in turns),
            "relative_cost": statistics.median(turn[name] / turn["simclr"] for turn in turns),
        }
        for name in named
    }
    for name, row in rows.items():
        print(f"{name:16}{row['seconds_per_step']:10.3f} s{row['relative_cost']:8.2f}")
    path = Path(__file__).parent / "results" / "pretrain_throughput.json"
    path.write_text(json.dumps({"machine": machine(), "steps": arguments.steps, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

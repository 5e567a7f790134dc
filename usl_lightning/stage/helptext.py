"""`usl COMMAND --config FILE --help`: every parameter of a stage, its value and what it means."""

import inspect
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from usl_lightning.base.ranges import ranges_of
from usl_lightning.stage.identity import TRAINER_FIELDS
from usl_lightning.stage.parser import StageCLI
from usl_lightning.stage.words import StageCommand

COMMON = (*TRAINER_FIELDS, "devices", "num_nodes", "strategy", "accelerator", "val_check_interval", "log_every_n_steps")


def print_help(stage: StageCommand) -> None:
    """Print the parameters of the stage's model and data with their present values, and the usual trainer ones.

    Raises:
        UslError: a mistake in the configuration.
    """
    config = StageCLI(stage, build=False).resolved()
    print(f"usl {stage.command} --config {stage.configs[-1]} [--KEY VALUE ...]\n")
    for group in ("model", "data"):
        section = config[group]
        found = _find(section["class_path"])
        print(f"{group}: {section['class_path']}\n  {(inspect.getdoc(found) or '').splitlines()[0]}")
        meanings = dict(_meanings(found))
        ranges = ranges_of(found)
        for name, value in section["init_args"].items():
            if name not in ("image", "seed"):
                allowed = f" ({ranges[name]})" if name in ranges else ""
                print(_line(f"--{group}.{name}", value, meanings.get(name, "") + allowed))
    print("trainer: Lightning's; see its documentation for the others")
    for name in COMMON:
        print(_line(f"--trainer.{name}", config["trainer"].get(name), ""))
    for group in ("checkpoint", "processes"):
        print(f"{group}:")
        for name, value in config[group].items():
            print(_line(f"--{group}.{name}", value, ""))
    print(_line("--seed_everything", config["seed_everything"], "of everything random"))


def _find(class_path: str) -> type:
    module, _, name = class_path.rpartition(".")
    return getattr(import_module(module), name)  # type: ignore[no-any-return]


def _meanings(found: type) -> Iterator[tuple[str, str]]:
    """Parameter -> its description, from the docstrings of a class and its bases."""
    import docstring_parser

    for base in reversed(inspect.getmro(found)):
        if base.__module__.startswith("usl_lightning") and base.__doc__:
            for parameter in docstring_parser.parse(base.__doc__).params:
                for name in parameter.arg_name.split(", "):
                    yield name, " ".join((parameter.description or "").split())


def _line(option: str, value: Any, meaning: str) -> str:
    if isinstance(value, Mapping) and "class_path" in value:
        value = value["class_path"].rpartition(".")[2]
    elif isinstance(value, Mapping):
        value = " ".join(f"{key}={item}" for key, item in value.items())
    return f"  {f'{option} = {value}':44}  {meaning}"

"""What the stages of a chain take, and from where: told before the first of them starts."""

import os
from collections.abc import Mapping
from pathlib import Path

from usl_lightning.base.classes import ROOT
from usl_lightning.base.configs import find_labels
from usl_lightning.base.errors import UslError, did_you_mean
from usl_lightning.chain.file import REFERENCE, Stage
from usl_lightning.stage.identity import names_a_file
from usl_lightning.stage.taken import check_network_of
from usl_lightning.stage.words import StageCommand

_OF_THE_CHAIN = ("config", "c", "run_dir", "ckpt_path", "extend", "wandb")
_OUTPUTS = ("checkpoint", "labels", "priors", "self_labels", "predictions")
"""What methods of this package leave; others may leave more."""

_LEFT_BY = {"checkpoint": "fit", "labels": "select", "priors": "propagate", "self_labels": "fit", "predictions": "fit"}


def check_sources(stage: Stage, earlier: Mapping[str, StageCommand], folder: Path) -> None:
    """Refuse what a stage is to take from where it cannot be, and options that are no parameters.

    Args:
        stage: of a chain.
        earlier: name -> what each of the stages before comes to.
        folder: of the run, where files may be that are yet to be made.

    Raises:
        UslError: names the key.
    """
    for key, value in stage.set.items():
        if key in _OF_THE_CHAIN:
            raise UslError(f"{key}: the chain sees to that for all of its stages; leave it out")
        references = REFERENCE.findall(value)
        if names_a_file(key) and references and not REFERENCE.fullmatch(value):
            raise UslError(f"{key}: {value}: expected ${{STAGE.OUTPUT}} alone")
        for source, output in references:
            if source not in earlier:
                near = did_you_mean(source, earlier)
                raise UslError(f"{key}: ${{{source}.{output}}}: '{source}' is no earlier stage{near}")
            _check_output(key, source, output, earlier[source])
        place = os.path.abspath(folder) + os.sep
        path = os.path.abspath(os.path.expanduser(find_labels(value)))
        named = names_a_file(key) and value not in ("", "null") and not REFERENCE.search(value)
        if named and not os.path.exists(path) and not path.startswith(place):
            raise UslError(f"{key}: {value}: no such file")


def check_taken(stage: Stage, own: StageCommand, earlier: Mapping[str, StageCommand]) -> None:
    """Refuse networks that lack what a stage is to take of them or are others than its own, and labels of other images.

    Args:
        stage: of a chain, whose sources and parameters are right by themselves.
        own: what it comes to.
        earlier: name -> what each of the stages before comes to.

    Raises:
        UslError: names the key and the stage that leaves the network.
    """
    for key, value in stage.set.items():
        for source, output in REFERENCE.findall(value):
            mine, theirs = own.flat(), earlier[source].flat()
            if output == "checkpoint":
                check_network_of(key, source, mine, theirs)
            elif output == "labels" and not _begins_with(_images(mine), _images(theirs)):
                raise UslError(
                    f"{key}: ${{{source}.labels}}: '{source}' chooses from {' '.join(_images(theirs))}, this stage has "
                    f"{' '.join(_images(mine))}; expected the same data.dataset and data.split"
                )


def _check_output(key: str, source: str, output: str, command: StageCommand) -> None:
    where = f"{key}: ${{{source}.{output}}}"
    is_ours = str(command.flat().get("model.class_path")).startswith(f"{ROOT.name}.")
    near = did_you_mean(output, _OUTPUTS)
    if output not in _OUTPUTS and (is_ours or near):
        raise UslError(f"{where}: no such output{near}; expected one of {', '.join(_OUTPUTS)}")
    if output in _OUTPUTS and (taken := _taken_by(key)) not in ("", output):
        raise UslError(f"{where}: expected what a stage leaves as {taken}")
    if (by := _LEFT_BY.get(output, command.command)) != command.command:
        raise UslError(f"{where}: '{source}' is a stage of {command.command}; {output} is what one of {by} leaves")


def _taken_by(key: str) -> str:
    """What a parameter takes of an earlier stage; "" if that is not known."""
    if key in ("data.labels", "data.subset_file", "model.keep_from", "model.labels_from"):
        return "labels"
    return "checkpoint" if key.endswith("_from") else ""


def _begins_with(images: tuple[str, str], others: tuple[str, str]) -> bool:
    """Whether they are the same, or a sum of splits that begins with them: `train+unlabeled` with `train`."""
    return images[0] == others[0] and f"{images[1]}+".startswith(f"{others[1]}+")


def _images(flat: Mapping[str, object]) -> tuple[str, str]:
    """The data set, and the split of it, that a stage learns or chooses from."""
    name = str(flat.get("data.dataset")).removeprefix("medmnist:")
    return name, str(flat.get("data.split") or "train")

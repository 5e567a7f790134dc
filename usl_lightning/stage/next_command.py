"""The last line that a stage prints: the command that goes on with what it has left."""

import shlex
from pathlib import Path

from usl_lightning.base.configs import names_of_all, shipped_folder
from usl_lightning.labels import LabelIndex
from usl_lightning.labels.index import images_to_label
from usl_lightning.stage.folder import StageFolder
from usl_lightning.stage.words import RESULTS, StageCommand


def next_command(stage: StageCommand, verbs: tuple[str, ...], index: LabelIndex | None = None) -> str:
    """What to do next, as it is typed.

    Args:
        stage: that is complete.
        verbs: of its model.
        index: of a selection, what was chosen.
    """
    folder, config = StageFolder(stage.run_dir), stage.configs[-1]
    if config.name == "config.yaml":  # that of a stage, which is called as the one it was made of
        config = stage.run_dir
    labels = f"--data.labels {shlex.quote(str(folder.labels))}"
    if encoder := stage.flat().get("model.init_from"):
        labels += f" --model.init_from {shlex.quote(str(encoder))}"
    if index is not None and index.unlabelled:
        return f"{images_to_label(index)}: usl label {shlex.quote(str(folder.labels))}"
    if stage.command == "select":
        return f"next: usl fit --config {config_beside(config, 'fixmatch')} {labels} trains from these"
    if stage.command == "propagate":
        prior = f"--model.prior_file {shlex.quote(str(folder.outputs()['priors']))}"
        return f"next: usl fit --config {config_beside(config, 'flexmatch')} {labels} {prior} is guided by them"
    if "predict" in verbs:
        return f"next: usl predict {shlex.quote(str(stage.run_dir))} FOLDER classifies other images"
    after = config_beside(config, "usl", f"{config.stem}_select.yaml")
    looked_at = stage.command not in RESULTS and stage.ckpt_path not in (None, "last")
    checkpoint = shlex.quote(str(stage.ckpt_path if looked_at else folder.last_checkpoint))
    return f"next: usl select --config {after} --model.init_from {checkpoint} picks the images to label"


def config_beside(config: Path, method: str, *first: str) -> str:
    """Name of the configuration of a method for the data set that `config` is for; `FILE` if there is none."""
    words, known = config.stem.split("_"), set(names_of_all())
    names = [*first, *("_".join([*words[:end], f"{method}.yaml"]) for end in range(len(words) - 1, 0, -1))]
    return next((name for name in names if name in known), "FILE")


def as_typed(config: Path) -> str:
    """A configuration's name where it is a shipped one, else its path."""
    return config.name if config.parent == shipped_folder() else str(config)

"""A value that means nothing is a mistake, not another setting: told before what is in a folder is compared with it."""

from collections.abc import Iterable, Mapping

from usl_lightning.stage.words import StageCommand

OPEN = ("backbone", "precision")
"""Parameters whose values only the libraries know: all others are checked before anything is loaded."""


def refuse_typos(stage: StageCommand, changes: Iterable[str]) -> None:
    """Look closely at the values that differ from those of an earlier run.

    Args:
        stage: as typed.
        changes: see `differences`.

    Raises:
        UslError: one means nothing; what was meant instead.
    """
    changed = {line.split(" ", 1)[0].rpartition(".")[2] for line in changes}
    if not changed & set(OPEN):
        return
    from usl_lightning.models.backbones import check_backbone
    from usl_lightning.stage.parser import StageCLI

    model = StageCLI(stage, build=False).resolved()["model"]["init_args"]
    backbone = model.get("backbone") if isinstance(model, Mapping) else None
    if "backbone" in changed and isinstance(backbone, str):
        check_backbone(backbone)

"""A value that means nothing is told as such, not as a setting that has changed."""

import pytest

from usl_lightning.base.errors import UslError
from usl_lightning.stage.typos import refuse_typos
from usl_lightning.stage.words import StageCommand


def test_an_unknown_backbone_is_told_if_it_has_changed() -> None:
    stage = StageCommand.parse("fit", ["--config=digits_simclr.yaml", "--model.backbone=smal"])
    with pytest.raises(UslError, match="smal"):
        refuse_typos(stage, ["model.backbone was small, now smal"])
    refuse_typos(stage, ["model.temperature was 0.5, now 0.4"])


def test_a_known_backbone_is_another_setting() -> None:
    stage = StageCommand.parse("fit", ["--config=digits_simclr.yaml", "--model.backbone=small_w16"])
    refuse_typos(stage, ["model.backbone was small, now small_w16"])

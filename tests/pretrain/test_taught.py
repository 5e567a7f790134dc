"""Distillation into a student, against loops; its teachers."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from by_hand import IMAGE, assert_steps_are
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.views import Weak
from usl_lightning.models.encoder import ENTRY, Encoder, encoder_entry
from usl_lightning.pretrain.taught import Taught


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a network for images of three channels and 12 pixels."""
    torch.manual_seed(1)
    encoder = Encoder("small_w16", ImageSpec(3, 12, 12, (0.3,) * 3, (0.2,) * 3))
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    path = tmp_path_factory.mktemp("teacher") / "teacher.ckpt"
    torch.save({"state_dict": state, ENTRY: encoder_entry(encoder, online="encoder.")}, path)
    return path


def test_steps_by_hand(teacher: Path) -> None:
    taught = Taught(
        IMAGE, Weak(), Optimization(), teacher_from=str(teacher), backbone="small_w16", bank_size=20,
        relational_weight=0.5, temperature=0.2,
    )  # fmt: skip
    kept: list[Tensor] = []
    before = {name: value.clone() for name, value in taught.teacher.state_dict().items()}

    def slow(batch: Batch, step: int) -> Tensor:
        nonlocal kept
        view = taught.view(batch.images, batch.key.fold("view"))
        large = F.interpolate(view.repeat(1, 3, 1, 1), (12, 12), mode="bilinear", antialias=True)
        targets = F.normalize(taught.teacher(large), dim=1).detach()
        own = F.normalize(taught.projector(taught.encoder(view)), dim=1)
        losses = []
        for row, target in zip(own, targets, strict=True):
            others = [target, *kept]
            p = torch.stack([(target @ other / 0.2).exp() for other in others])
            q = torch.stack([(row @ other / 0.2).exp() for other in others])
            related = -(p / p.sum() * (q / q.sum()).log()).sum()
            losses.append((row - target).square().sum() + 0.5 * related)
        kept = [*kept, *targets][-20:]
        return torch.stack(losses).mean()

    assert_steps_are(taught, slow)
    after = taught.teacher.state_dict()
    assert all(torch.equal(value.double(), after[name].double()) for name, value in before.items())


@pytest.mark.parametrize("options", [{}, {"teacher": "tf_efficientnet_lite0", "teacher_from": "a.ckpt"}])
def test_one_teacher_is_expected(options: dict[str, str]) -> None:
    with pytest.raises(UslError, match=r"model\.teacher: expected a network of timm, or a checkpoint as"):
        Taught(IMAGE, Weak(), Optimization(), backbone="small_w16", **options)  # type: ignore[arg-type]

"""The steps of stage 3 never wait for the device."""

from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec, SemiBatch
from usl_lightning.data.keys import Key
from usl_lightning.data.views import CoMatchStrong, FixMatchStrong, Weak, pixels
from usl_lightning.semisup.boss import BOSS
from usl_lightning.semisup.comatch import CoMatch
from usl_lightning.semisup.fixmatch import FixMatch
from usl_lightning.semisup.flexmatch import FlexMatch
from usl_lightning.semisup.freematch import FreeMatch
from usl_lightning.semisup.ict import ICT
from usl_lightning.semisup.mean_teacher import MeanTeacher
from usl_lightning.semisup.mixmatch import MixMatch
from usl_lightning.semisup.pi_model import PiModel
from usl_lightning.semisup.pseudo_label import PseudoLabel
from usl_lightning.semisup.remixmatch import ReMixMatch
from usl_lightning.semisup.semisup_module import SemiSupervisedModule
from usl_lightning.semisup.softmatch import SoftMatch
from usl_lightning.semisup.uda import UDA
from usl_lightning.semisup.vat import VAT

METHODS: dict[str, Callable[[ImageSpec, str], SemiSupervisedModule]] = {
    "fixmatch": lambda image, net: FixMatch(
        image, Weak(), FixMatchStrong(), Optimization(), backbone=net, threshold=0.2
    ),
    "flexmatch": lambda image, net: FlexMatch(
        image, Weak(), FixMatchStrong(), Optimization(), backbone=net, threshold=0.2
    ),
    "comatch": lambda image, net: CoMatch(
        image,
        Weak(),
        FixMatchStrong("comatch"),
        CoMatchStrong(),
        Optimization(),
        backbone=net,
        bank_size=20,
        threshold=0.2,
    ),
    "mixmatch": lambda image, net: MixMatch(image, Weak(), Optimization(), backbone=net, ramp_steps=4),
    "boss": lambda image, net: BOSS(image, Weak(), FixMatchStrong(), Optimization(), backbone=net, threshold=0.2),
    "ict": lambda image, net: ICT(image, Weak(), Optimization(), backbone=net, ramp=0.0),
    "mean_teacher": lambda image, net: MeanTeacher(image, Weak(), Optimization(), backbone=net, ramp=0.0),
    "pi_model": lambda image, net: PiModel(image, Weak(), Optimization(), backbone=net, ramp=0.0),
    "pseudo_label": lambda image, net: PseudoLabel(
        image, Weak(), Optimization(), backbone=net, threshold=0.2, ramp=0.0
    ),
    "remixmatch": lambda image, net: ReMixMatch(
        image, Weak(), FixMatchStrong(), Optimization(), backbone=net, strong_views=2, aligned_batches=2, ramp=0.0
    ),
    "uda": lambda image, net: UDA(image, Weak(), FixMatchStrong(), Optimization(), backbone=net, threshold=0.2),
    "vat": lambda image, net: VAT(image, Weak(), Optimization(), backbone=net, ramp=0.0),
    "freematch": lambda image, net: FreeMatch(image, Weak(), FixMatchStrong(), Optimization(), backbone=net),
    "softmatch": lambda image, net: SoftMatch(image, Weak(), FixMatchStrong(), Optimization(), backbone=net),
}


# The device ----------------------------------------------------------------------------------------------

COLOR = ImageSpec(3, 16, 16, (0.3,) * 3, (0.2,) * 3, ("a", "b", "c"), count=40)


def batch(labels: list[int]) -> Batch:
    rows = torch.arange(len(labels))
    images = torch.zeros(len(labels), 3, 16, 16, dtype=torch.uint8)
    return Batch(images, torch.tensor(labels), rows, Key.of(0, slots=rows))


@pytest.mark.parametrize("method", METHODS)
def test_a_step_does_not_wait_for_the_device(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without values refuse to tell one to the host; the views take the way they take on a GPU."""
    monkeypatch.setattr(pixels, "_switch_sorted", pixels._switch_where)
    model = METHODS[method](COLOR, "small_nf")
    monkeypatch.setattr(model, "log_dict", lambda values, **_: None)
    with FakeTensorMode(allow_non_fake_inputs=True):
        batches = SemiBatch(batch([0, 1, 2]), batch([-1] * 8))
        for _ in range(3):  # the bank of CoMatch is full then
            model.training_step(batches, 0).backward()


def test_the_way_of_the_cpu_would_wait() -> None:
    """So the test above can fail."""
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(DynamicOutputShapeException):
        FixMatchStrong()(batch([-1] * 8).images, batch([-1] * 8).key)

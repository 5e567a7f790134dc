"""Several tasks of one network: the weighted sum of what the methods of the single tasks compute."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from by_hand import IMAGE, Trainer, assert_steps_are, batch_of
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.views import Recipe
from usl_lightning.data.views.steps import RandomResizedCrop
from usl_lightning.pretrain.counting import Counting
from usl_lightning.pretrain.exemplar import Exemplar
from usl_lightning.pretrain.jigsaw import Jigsaw
from usl_lightning.pretrain.multi_task import MultiTask, Tasks
from usl_lightning.pretrain.pretrain_module import PretrainModule
from usl_lightning.pretrain.relative_patch import RelativePatch
from usl_lightning.pretrain.rotnet import RotNet

LARGE = Recipe([RandomResizedCrop(24, (0.5, 1.0))])
WEIGHTS = {"rotation": 0.5, "jigsaw": 1.0, "relative_patch": 2.0, "exemplar": 0.25, "counting": 0.125}
SINGLE: dict[str, tuple[type[PretrainModule], dict[str, Any]]] = {
    "rotation": (RotNet, {}),
    "jigsaw": (Jigsaw, {"patch": 7, "permutations": 5, "hidden_dim": 6}),
    "relative_patch": (RelativePatch, {"patch": 7, "hidden_dim": 6}),
    "exemplar": (Exemplar, {}),
    "counting": (Counting, {"hidden_dim": 6, "counts": 5, "margin": 2.0}),
}


def several(**weights: float) -> MultiTask:
    torch.manual_seed(0)
    return MultiTask(
        IMAGE, LARGE, Optimization(), Tasks(**weights), patch=7, permutations=5, hidden_dim=6, counts=5, margin=2.0,
        backbone="small_w16",
    )  # fmt: skip


def single(name: str, net: MultiTask) -> PretrainModule:
    """The method of one task, with the network and the head of several."""
    kind, parameters = SINGLE[name]
    made = kind(IMAGE, LARGE, Optimization(), backbone="small_w16", **parameters)  # type: ignore[call-arg]
    made.encoder = net.encoder
    for part, module in net.heads[name].named_children():
        setattr(made, part, module)
    return made


@pytest.mark.parametrize("names", [list(WEIGHTS), ["jigsaw", "counting"], ["rotation"]], ids=len)
def test_the_loss_and_its_gradients_are_the_weighted_sum_of_the_methods(names: list[str]) -> None:
    """Also what each of them logs. The keys of a task do not depend on which others there are."""
    net, told, expected = several(**{name: WEIGHTS[name] for name in names}), dict[str, Tensor](), dict[str, Tensor]()
    methods = {name: single(name, net) for name in names}

    def slow(batch: Batch, step: int) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for name, method in methods.items():
            method.trainer = Trainer()  # type: ignore[assignment]
            logged: dict[str, Tensor] = {}
            method.log_training = lambda *views, _into=logged, **values: _into.update(values)  # type: ignore[method-assign]
            own = method.training_step(replace(batch, key=batch.key.fold(name)), step)
            logged[f"{name}_loss"] = logged.pop("loss")
            expected.update(logged)
            total = total + WEIGHTS[name] * own
        expected["loss"] = total
        return total

    def log(step: int, values: dict[str, Tensor]) -> None:
        told.update(values)
        assert told.keys() == expected.keys()
        for name, value in told.items():
            torch.testing.assert_close(value, expected[name], check_dtype=False)

    assert_steps_are(net, slow, log=log)


def test_a_task_of_weight_0_is_not_there() -> None:
    """The same weights, random numbers and loss, bit for bit, as of a method that has never heard of it."""
    without, zero = several(jigsaw=1.0), several(jigsaw=1.0, rotation=0.0, counting=0.0, exemplar=0.0)
    losses = []
    for net in (without, zero):
        net.log_training = lambda *views, **values: None  # type: ignore[method-assign]
        losses.append(net.training_step(batch_of(0), 0))
    own, other = (net.state_dict() for net in (without, zero))
    assert own.keys() == other.keys()
    assert torch.equal(losses[0], losses[1])
    assert all(torch.equal(value, other[name]) for name, value in own.items())
    assert list(zero.heads) == ["jigsaw"]


def test_what_is_no_task_is_refused() -> None:
    with pytest.raises(UslError, match=r"model\.tasks: no task has a weight above 0; give one to rotation, jigsaw, "):
        several()
    with pytest.raises(UslError, match=r"^Tasks\.jigsaw: -1 is out of range; expected 0 or more"):
        Tasks(jigsaw=-1)


def test_only_the_rotation_wants_square_images() -> None:
    wide = ImageSpec(1, 6, 8, (0.3,), (0.2,), count=40)
    MultiTask(wide, LARGE, Optimization(), Tasks(jigsaw=1.0), patch=7, permutations=5, backbone="small_w16")
    with pytest.raises(UslError, match="MultiTask: the images are 6×8, and a quarter turn of them has another shape"):
        MultiTask(wide, LARGE, Optimization(), Tasks(rotation=1.0), backbone="small_w16")

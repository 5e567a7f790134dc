"""Schedules against their formulas; which weights decay."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from training import MakeData, digits, few_labels, train

from usl_lightning.compute.optim import Optimization, Schedule, lr_factor
from usl_lightning.data.modules import ImageData
from usl_lightning.data.views import FixMatchStrong, Weak
from usl_lightning.models.small import SmallNet
from usl_lightning.pretrain.simclr import SimCLR
from usl_lightning.semisup.fixmatch import FixMatch

K = 1000


@pytest.mark.parametrize("step", [0, 1, 250, 500, 999])
def test_closed_forms(step: int) -> None:
    assert lr_factor(step, K, schedule="cosine") == pytest.approx((1 + math.cos(math.pi * step / K)) / 2)
    assert lr_factor(step, K, schedule="fixmatch") == pytest.approx(math.cos(7 * math.pi * step / (16 * K)))
    assert lr_factor(step, K, schedule="constant") == 1


def test_ends() -> None:
    assert lr_factor(K, K, schedule="cosine") == pytest.approx(0, abs=1e-12)
    assert lr_factor(K, K, schedule="fixmatch") == pytest.approx(math.cos(7 * math.pi / 16))
    assert lr_factor(10 * K, K, schedule="cosine") == lr_factor(K, K, schedule="cosine")


@given(st.integers(1, 50), st.integers(1, 100), st.sampled_from(["cosine", "fixmatch", "constant"]))
def test_warm_up_is_linear_and_ends_at_one(warmup: int, more: int, schedule: Schedule) -> None:
    def factor(step: int) -> float:
        return lr_factor(step, warmup + more, schedule=schedule, warmup_steps=warmup)

    assert [factor(step) for step in range(warmup)] == pytest.approx([(s + 1) / warmup for s in range(warmup)])
    assert factor(warmup) == 1
    late = [factor(step) for step in range(warmup, warmup + more + 1)]
    assert all(a >= b >= -1e-12 for a, b in itertools.pairwise(late))
    # After the warm-up, it is the schedule of the steps that are left.
    assert late == pytest.approx([lr_factor(s, more, schedule=schedule) for s in range(more + 1)])


def test_all_warm_up_divides_by_nothing() -> None:
    assert lr_factor(5, 5, schedule="cosine", warmup_steps=5) == 1


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars"])
def test_biases_and_norms_do_not_decay(name: str) -> None:
    net = nn.Sequential(SmallNet(1, width=4), nn.Linear(64, 3))
    net[1].weight.requires_grad_(False)
    built = Optimization(name=name, weight_decay=0.1).build(net, max_steps=10, batch_size=4)  # type: ignore[arg-type]
    decays = {id(p): group["weight_decay"] for group in built["optimizer"].param_groups for p in group["params"]}
    trained = {parameter: full for full, parameter in net.named_parameters() if parameter.requires_grad}
    assert len(decays) == len(trained)
    for parameter, full in trained.items():
        is_weight = full.endswith("weight") and parameter.ndim > 1
        assert decays[id(parameter)] == (0.1 if is_weight else 0.0), full
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(decays[id(m.weight)] == decays[id(m.bias)] == 0 for m in norms)


def test_no_parameter_is_pulled_to_zero_without_a_gradient_but_weights() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = Optimization(lr=1.0, weight_decay=0.5, momentum=0).build(net, max_steps=1, batch_size=1)["optimizer"]
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (0.5 if name == "0.weight" else 1))


def test_rate_per_batch_and_schedule_are_applied() -> None:
    net = nn.Linear(1, 1)
    settings = Optimization(lr=0.3, per_batch=256, schedule="fixmatch", warmup_steps=2)
    built = settings.build(net, max_steps=8, batch_size=64)
    assert built["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(8):
        rates.append(built["optimizer"].param_groups[0]["lr"])
        built["optimizer"].step()
        built["lr_scheduler"]["scheduler"].step()
    factors = [lr_factor(s, 8, schedule="fixmatch", warmup_steps=2) for s in range(8)]
    assert rates == pytest.approx([0.3 * 64 / 256 * factor for factor in factors])


def test_sgd_takes_nesterovs_step() -> None:
    """v ← μv + g; w ← w - lr(g + μv), by hand over three steps."""
    net = nn.Linear(1, 1, bias=False)
    settings = Optimization(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.0, schedule="constant")
    optimizer = settings.build(net, max_steps=3, batch_size=1)["optimizer"]
    weight, velocity = net.weight.item(), 0.0
    for gradient in (1.0, -2.0, 0.5):
        net.weight.grad = torch.full_like(net.weight, gradient)
        optimizer.step()
        velocity = 0.9 * velocity + gradient
        weight -= 0.1 * (gradient + 0.9 * velocity)
    assert net.weight.item() == pytest.approx(weight, abs=1e-6)


def test_the_schedule_keeps_no_code_in_a_checkpoint() -> None:
    net = nn.Linear(1, 1)
    built = Optimization().build(net, max_steps=8, batch_size=64)
    state = built["lr_scheduler"]["scheduler"].state_dict()

    def plain(value: object) -> bool:
        if isinstance(value, dict):
            return all(map(plain, value.values()))
        if isinstance(value, list | tuple):
            return all(map(plain, value))
        return value is None or type(value) in (int, float, str, bool)

    assert plain(state)


def test_a_constant_part_keeps_its_rate_while_the_rest_follows_the_schedule() -> None:
    """As SimSiam's predictor; weights, biases, scheduled or not, each once."""
    net = nn.ModuleDict({"encoder": nn.Linear(3, 4), "predictor": nn.Linear(4, 3)})
    built = Optimization(lr=0.1, schedule="cosine", warmup_steps=2).build(
        net, max_steps=K, batch_size=4, constant=[net["predictor"]]
    )
    optimizer, schedule = built["optimizer"], built["lr_scheduler"]["scheduler"]
    fixed = {id(p) for p in net["predictor"].parameters()}
    for step in range(5):
        seen = set()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                factor = 1.0 if id(parameter) in fixed else lr_factor(step, K, schedule="cosine", warmup_steps=2)
                assert group["lr"] == pytest.approx(0.1 * factor)
                seen.add(id(parameter))
        assert seen == {id(p) for p in net.parameters()}
        optimizer.step()
        schedule.step()


PLAIN = Optimization(lr=1.0, momentum=0.0, weight_decay=0.0, schedule="constant")


def contrastive(data: ImageData) -> SimCLR:
    return SimCLR(data.spec, Weak(), PLAIN, backbone="small_nf", projection_norm=False, knn_k=5)


def guessing(data: ImageData) -> FixMatch:
    return FixMatch(data.spec, Weak(), FixMatchStrong(), PLAIN, backbone="small_nf")


@pytest.mark.parametrize(("make", "data"), [(contrastive, digits), (guessing, few_labels)])
def test_gradients_are_clipped_under_mixed_precision(
    make: Callable[[ImageData], LightningModule], data: MakeData, tmp_path: Path
) -> None:
    """At rate 1 the first step is as long as the gradient that is left."""
    initial: dict[str, Tensor] = {}

    def watched(data: ImageData) -> LightningModule:
        model = make(data)
        initial.update({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
        return model

    trained = train(watched, data, tmp_path, 1, precision="bf16-mixed", gradient_clip_val=0.01)["state_dict"]
    moved = torch.cat([(trained[name] - value).flatten() for name, value in initial.items()])
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)


def test_lars_adapts_matrices_whether_they_decay_or_not() -> None:
    """v ← μv + γ·η·|w|/(|g| + β|w|)·(g + βw) (You et al., 2017, Eq. 6 and Alg. 1); biases and norms as SGD."""
    for decay in (0.0, 0.1):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
        settings = Optimization("lars", lr=0.5, momentum=0.9, weight_decay=decay, schedule="constant")
        optimizer = settings.build(net, max_steps=2, batch_size=1)["optimizer"]
        expected = {name: p.detach().clone() for name, p in net.named_parameters()}
        velocity = {name: torch.zeros_like(value) for name, value in expected.items()}
        for _ in range(2):
            for name, parameter in net.named_parameters():
                g, w = torch.randn_like(parameter), expected[name]
                parameter.grad = g.clone()
                if name == "0.weight":
                    g = 0.001 * w.norm() / (g.norm() + decay * w.norm()) * (g + decay * w)
                velocity[name] = 0.9 * velocity[name] + g
                expected[name] = w - 0.5 * velocity[name]
            optimizer.step()
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-6, atol=1e-9)

"""The moving average against its closed form."""

import copy

import pytest
import torch
from torch import nn

from usl_lightning.models.ema import EMA


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()


def change(net: nn.Module, step: int) -> None:
    """New weights, and new batch-norm statistics (a count among them), as a training step makes."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    net.train()(torch.randn(8, 3, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_parameters_follow_the_closed_form_and_buffers_are_copied(decay: float) -> None:
    """After t updates: decay^t·w₀ + Σ (1 - decay)·decay^(t-s)·w_s."""
    online, steps = network(), 7
    ema = EMA(online, decay)
    history = [copy.deepcopy(list(online.parameters()))]
    for step in range(1, steps + 1):
        change(online, step)
        ema.update(online)
        history.append(copy.deepcopy(list(online.parameters())))
    weights = [decay**steps] + [(1 - decay) * decay ** (steps - s) for s in range(1, steps + 1)]
    for i, own in enumerate(ema.module.parameters()):
        expected = sum(w * past[i].detach() for w, past in zip(weights, history, strict=True))
        torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-12)
    assert int(ema.module[1].num_batches_tracked) == steps
    for own, theirs in zip(ema.module.buffers(), online.buffers(), strict=True):
        assert torch.equal(own, theirs)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999, 1 - 2**-9])
def test_a_step_is_that_of_lerp_bit_for_bit(decay: float) -> None:
    online = network().float()
    ema = EMA(online, decay)
    change(online.double(), 1)
    online.float()
    expected = [own.lerp(new, 1 - decay) for own, new in zip(ema.module.parameters(), online.parameters(), strict=True)]
    ema.update(online)
    for own, value in zip(ema.module.parameters(), expected, strict=True):
        assert torch.equal(own.view(torch.int32), value.view(torch.int32))


def test_it_is_a_copy_in_evaluation_mode_without_gradients() -> None:
    online = network()
    ema = EMA(online, 0.9)
    assert not ema.train().module[1].training
    assert not nn.ModuleList([ema]).train()[0].module[1].training
    assert online[1].training
    assert not any(p.requires_grad for p in ema.parameters())
    change(online, 1)
    assert not torch.equal(ema.module[0].weight, online[0].weight)


def test_update_does_not_touch_the_online_network() -> None:
    online = network()
    ema = EMA(online, 0.9)
    change(online, 1)
    before = copy.deepcopy(online.state_dict())
    ema.update(online)
    for name, value in online.state_dict().items():
        assert torch.equal(value, before[name])


def test_state_is_complete() -> None:
    """A resumed average goes on exactly."""
    online = network()
    ema = EMA(online, 0.9)
    change(online, 1)
    ema.update(online)
    again = EMA(network(), 0.9)
    again.load_state_dict(ema.state_dict())
    change(online, 2)
    ema.update(online)
    again.update(online)
    for own, theirs in zip(ema.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(own, theirs)


def test_copy_from_starts_again() -> None:
    online = network()
    ema = EMA(online, 0.9)
    change(online, 1)
    ema.copy_from(online)
    for own, theirs in zip(ema.module.state_dict().values(), online.state_dict().values(), strict=True):
        assert torch.equal(own, theirs)


def test_a_momentum_encoder_trains_along_with_statistics_of_its_own() -> None:
    online = network()
    momentum = nn.ModuleDict({"key": EMA(online, 0.5, evaluated=False)})
    momentum.train()
    keys = momentum["key"]
    assert keys.module[1].training
    statistics = keys.module[1].running_mean.clone()
    change(online, 1)
    old = keys.module[0].weight.clone()
    keys.update(online)
    torch.testing.assert_close(keys.module[0].weight, (old + online[0].weight) / 2)
    assert torch.equal(keys.module[1].running_mean, statistics)
    keys.module(torch.randn(8, 3, dtype=torch.float64))
    assert not torch.equal(keys.module[1].running_mean, statistics)
    assert not momentum.eval()["key"].module[1].training

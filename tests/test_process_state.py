"""What processes send each other, and how a bit that differs is seen."""

import time
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from usl_lightning.base.errors import UslError
from usl_lightning.engine.processes import (
    Agreement,
    check_start,
    fingerprint,
    process_statistics,
    says_lost,
    syncs_batch_norm,
    unequal,
)
from usl_lightning.engine.trainer import LostChildError
from usl_lightning.pretrain.moco import MoCo
from usl_lightning.stage.parser import TRAINER_DEFAULTS


def test_only_batch_norms_that_are_not_synchronised_have_statistics_of_their_own() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.GroupNorm(1, 3))
    net.register_buffer("queue", torch.zeros(4))
    names = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert process_statistics(net) == names
    assert process_statistics(net[1]) == {name.removeprefix("1.") for name in names}
    assert process_statistics(nn.SyncBatchNorm.convert_sync_batchnorm(net)) == set()


def test_batch_norm_is_synchronised_by_default_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TRAINER_DEFAULTS["sync_batchnorm"] is True
    plain, moco = nn.Linear(2, 2), nn.Linear(2, 2)
    moco.sync_batch_norm = MoCo.sync_batch_norm
    assert not syncs_batch_norm(plain, True, "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [syncs_batch_norm(plain, True, kind) for kind in ("auto", "gpu", "cuda", "cpu")] == [True, True, True, False]
    assert not syncs_batch_norm(plain, False, "cuda"), "--trainer.sync_batchnorm false"
    assert not syncs_batch_norm(moco, True, "cuda"), "it groups the batch itself"


@given(place=st.integers(0, 59), bit=st.integers(0, 31), dtype=st.sampled_from([torch.float32, torch.int32]))
def test_a_fingerprint_sees_every_bit(place: int, bit: int, dtype: torch.dtype) -> None:
    value = torch.arange(60, dtype=dtype).view(3, 4, 5).transpose(0, 2)
    other = value.contiguous().clone()
    other.view(-1).view(torch.int32)[place] ^= torch.tensor(1 << bit, dtype=torch.int64).to(torch.int32)
    assert torch.equal(fingerprint(value), fingerprint(value.contiguous()))
    assert not torch.equal(fingerprint(value), fingerprint(other))


def test_a_fingerprint_sees_order_and_takes_any_tensor() -> None:
    assert not torch.equal(fingerprint(torch.tensor([1.0, 2.0])), fingerprint(torch.tensor([2.0, 1.0])))
    for value in (torch.tensor(True), torch.tensor(3), torch.zeros(0), torch.ones(3, dtype=torch.bfloat16)):
        assert fingerprint(value).shape == (2,)


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the two other processes send, one exchange after the other, as if there were three."""
    sent: list[Any] = []
    monkeypatch.setattr("usl_lightning.engine.processes.gather", lambda own: torch.cat([own, *sent.pop(0)]))
    return sent


def test_a_tensor_that_differs_is_named(others: list[Any]) -> None:
    state = {"a": torch.zeros(3), "b": torch.ones(2), "c": torch.ones(2)}
    own = torch.stack([fingerprint(value) for value in state.values()])[None]
    odd = own[:, [0, 0, 0]]
    others.append([own, odd])
    assert unequal(state) == "b on process 2 is not what it is on process 0 (2 of 3 tensors differ)"
    others.append([own, own])
    assert unequal(state) is None


def test_processes_that_start_from_other_checkpoints_are_refused(others: list[Any]) -> None:
    """Each reads the file itself: on one machine it may be damaged, and the one before be taken."""
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    own, odd = (torch.stack([fingerprint(v) for v in m.state_dict().values()])[None] for m in (model, other))
    six, three = torch.tensor([6]), torch.tensor([3])
    others[:] = [[six, three]]
    with pytest.raises(UslError, match=r"^process 2 has a checkpoint of step 3, process 0 of step 6; give all of them"):
        check_start(6, model)
    others[:] = [[six, six], [odd, own]]
    with pytest.raises(UslError, match=r"^step 6: weight on process 1 is not what .* they have not read the same"):
        check_start(6, model)
    others[:] = [[six, six], [own, own]]
    check_start(6, model)


def test_a_lost_process_is_told_from_other_errors() -> None:
    closed = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:23261"
    aborted = "NCCL error: remote process exited or there was a network error, NCCL version 2.29"
    for error in (RuntimeError(closed), dist.DistBackendError(aborted), LostChildError("process 1 failed (2)")):
        assert says_lost(error)
    for error in (
        RuntimeError("DataLoader timed out after 5 seconds"),
        dist.DistBackendError("Duplicate GPU detected"),
    ):
        assert not says_lost(error)


def test_processes_talk_about_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two processes that take 0.1 s a step, the other is asked to stop at step 7."""
    now, asked = 0.0, []
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr("usl_lightning.engine.processes.world_size", lambda: 2)

    def all_reduce(told: torch.Tensor, op: object) -> None:
        asked.append(step)
        told[1] = 10 * (step >= 7)

    monkeypatch.setattr("usl_lightning.engine.processes.dist.all_reduce", all_reduce)
    agreement, found = Agreement(), []
    for step in range(1, 40):
        now += 0.1
        found.append(agreement.most(step, 0, 0, device=torch.device("cpu")))
    stops = [step for step, (_, signum) in enumerate(found, 1) if signum == 10]
    assert asked[0] == 1
    assert {b - a for a, b in pairwise(asked)} <= {9, 10}
    assert stops == asked[1:]
    assert not any(late for late, _ in found)


def test_one_process_need_not_ask() -> None:
    assert Agreement().most(1, 1, 0, device=torch.device("cpu")) == (1, 0)

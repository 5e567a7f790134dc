"""MSF's loss and neighbours against loops; a step by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.keys import Key
from usl_lightning.data.views import Weak
from usl_lightning.pretrain.byol import byol_loss
from usl_lightning.pretrain.msf import MSF, mean_shift_loss, neighbours_in


def rows(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_is_the_papers_equation(n: int, k: int, d: int, seed: int) -> None:
    v, neighbours = rows(n, d, seed), rows(n * k, d, seed + 1).view(n, k, d)
    total = 0.0
    for row, others in zip(v.tolist(), neighbours.tolist(), strict=True):
        for other in others:
            lengths = (math.sqrt(sum(x * x for x in each)) for each in (row, other))
            own, its = ([x / length for x in each] for each, length in zip((row, other), lengths, strict=True))
            total += sum((a - b) ** 2 for a, b in zip(own, its, strict=True))
    assert mean_shift_loss(v, neighbours).item() == pytest.approx(total / (n * k), rel=1e-9, abs=1e-12)


def test_with_itself_alone_it_is_half_of_byol() -> None:
    v, u = rows(7, 5, 0), rows(7, 5, 1)
    assert mean_shift_loss(v, u[:, None]).item() == pytest.approx(byol_loss(v, u).item())


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000), st.data())
@settings(max_examples=50, deadline=None)
def test_neighbours_are_the_nearest_that_are_there(size: int, targets: int, seed: int, data: st.DataObject) -> None:
    there = data.draw(st.integers(1, size))
    k = data.draw(st.integers(1, there))
    bank, u = (F.normalize(rows(n, 3, seed + i), dim=1) for i, n in enumerate((size, targets)))
    found = neighbours_in(bank, torch.tensor(there), u, k)
    for target, own in zip(u, found, strict=True):
        order = sorted(range(there), key=lambda i: -float(target @ bank[i]))
        torch.testing.assert_close(own, bank[order[:k]])


def model(**options: int) -> MSF:
    image = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b"), count=40)
    return MSF(image, Weak(), Optimization(), backbone="small", hidden_dim=24, projection_dim=6, **options)  # type: ignore[arg-type]


def test_two_steps_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second finds neighbours in the first batch too; the ring's oldest rows make place."""
    msf = model(neighbours=3, bank_size=7)
    monkeypatch.setattr(msf, "log_training", lambda *views, **values: None)
    msf.eval()
    kept: list[Tensor] = []
    for step in range(2):
        slots = torch.arange(5)
        images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(step))
        batch = Batch(images, torch.full((5,), -1), slots, Key.of(step, slots=slots))
        with torch.no_grad():
            loss = msf.training_step(batch, step)
            v = msf.predictor(msf.projector(msf.encoder(msf.view(images, batch.key.fold("view")))))
            u = F.normalize(msf.target.module(msf.weak(images, batch.key.fold("weak"))), dim=1)
        kept = [*kept, *u][-7:]
        bank = torch.stack(kept)
        nearest = torch.stack([bank[(bank @ row).topk(3).indices] for row in u])
        assert loss.item() == pytest.approx(float(mean_shift_loss(v, nearest)), rel=1e-5)
    assert not any(parameter.requires_grad for parameter in msf.target.parameters())


@pytest.mark.parametrize(
    ("options", "line"),
    [({"bank_size": 3}, "model.bank_size: 3 embeddings cannot hold a batch of 4"),
     ({"bank_size": 9, "neighbours": 5}, "model.neighbours: 5: the first step has only the 4 of its batch")],
)  # fmt: skip
def test_mistakes_are_one_line(options: dict[str, int], line: str) -> None:
    msf = model(**options)
    data = type("D", (), {"batch_size": 4})()
    msf.trainer = type("T", (), {"world_size": 1, "is_global_zero": True, "datamodule": data})()  # type: ignore[assignment]
    with pytest.raises(UslError, match=line):
        msf.setup("fit")

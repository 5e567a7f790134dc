"""NPID's losses against loops; its bank by hand."""

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
from usl_lightning.models.instances import instance_loss, instance_nce
from usl_lightning.pretrain.npid import NPID


def unit(n: int, d: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


@given(st.integers(1, 6), st.integers(1, 9), st.sampled_from([0.07, 0.5, 2.0]), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_the_softmax_is_over_all_images(n: int, images: int, temperature: float, seed: int) -> None:
    v, bank = unit(n, 4, seed), unit(images, 4, seed + 1)
    indices = torch.arange(n) % images
    total = 0.0
    for row, index in zip(v.tolist(), indices.tolist(), strict=True):
        cosines = (sum(a * b for a, b in zip(row, other, strict=True)) for other in bank.tolist())
        weights = [math.exp(cosine / temperature) for cosine in cosines]
        total -= math.log(weights[index] / sum(weights))
    assert instance_loss(v, bank, indices, temperature=temperature).item() == pytest.approx(total / n, rel=1e-9)


@given(st.integers(1, 5), st.integers(1, 6), st.floats(-2, 4), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_noise_is_told_from_the_image(n: int, m: int, log_z: float, seed: int) -> None:
    generator, images = torch.Generator().manual_seed(seed), 50
    own, others = (torch.randn(n, k, generator=generator, dtype=torch.float64) for k in (1, m))
    total = 0.0
    for i in range(n):
        p, *noise = (math.exp(s) / math.exp(log_z) for s in (own[i, 0].item(), *others[i].tolist()))
        total -= math.log(p / (p + m / images)) + sum(math.log(1 - q / (q + m / images)) for q in noise)
    found = instance_nce(own[:, 0], others, torch.tensor(log_z, dtype=torch.float64), images=images)
    assert found.item() == pytest.approx(total / n, rel=1e-9)


def model(**options: float) -> NPID:
    image = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b"), count=12)
    return NPID(image, Weak(), Optimization(), backbone="small", projection_dim=6, **options)  # type: ignore[arg-type]


def batch(indices: list[int]) -> Batch:
    images = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor(indices)
    return Batch(images[rows], torch.full((len(rows),), -1), rows, Key.of(0, slots=torch.arange(len(rows))))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_rows_move_towards_what_was_seen_last(momentum: float, monkeypatch: pytest.MonkeyPatch) -> None:
    npid = model(momentum=momentum)
    monkeypatch.setattr(npid, "log_training", lambda *views, **values: None)
    met = batch([3, 7, 3, 0])
    before = npid.bank.clone()
    npid.eval()
    v = F.normalize(npid.projector(npid.encoder(npid.view(met.images, met.key.fold("view")))), dim=1)
    npid.training_step(met, 0).backward()
    expected = before.clone()
    for slot, index in ((1, 7), (2, 3), (3, 0)):  # image 3 as in slot 2
        expected[index] = F.normalize(momentum * before[index] + (1 - momentum) * v[slot].detach(), dim=0)
    torch.testing.assert_close(npid.bank, expected)
    assert npid.projector.weight.grad is not None


def test_z_is_estimated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    npid = model(negatives=5)
    monkeypatch.setattr(npid, "log_training", lambda *views, **values: None)
    npid.eval()
    met, bank = batch([1, 2]), npid.bank.clone()
    with torch.no_grad():
        v = F.normalize(npid.projector(npid.encoder(npid.view(met.images, met.key.fold("view")))), dim=1)
    npid.training_step(met, 0)
    first, noise = npid.log_z.item(), met.key.fold("noise").integers(5, 12)
    looked = [math.exp(float(bank[j] @ v[i]) / 0.1) for i in range(2) for j in (i + 1, *noise[i].tolist())]
    assert math.exp(first) == pytest.approx(12 * sum(looked) / len(looked), rel=1e-4)
    npid.training_step(batch([3, 4]), 1)
    assert npid.log_z.item() == first


def test_as_many_negatives_as_images_are_refused() -> None:
    npid = model(negatives=12)
    data = type("D", (), {"batch_size": 4})()
    npid.trainer = type("T", (), {"world_size": 1, "is_global_zero": True, "datamodule": data})()  # type: ignore[assignment]
    with pytest.raises(UslError, match=r"model\.negatives: 12 of 12 images; use fewer, or null for all of them"):
        npid.setup("fit")

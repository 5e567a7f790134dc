"""ReMixMatch's guesses against a slow version over many steps; turned images; its step by hand; bad input."""

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec, SemiBatch
from usl_lightning.data.keys import Key
from usl_lightning.data.views import FixMatchStrong, Weak
from usl_lightning.models.mixing import mix_weights, partners_of
from usl_lightning.semisup.remixmatch import ReMixMatch, rotated

GREY = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b", "c"))


def batch(n: int, labels: list[int] | None = None, first: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(n + first)
    images = torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    known = torch.tensor([-1] * n if labels is None else labels)
    return Batch(images, known, torch.arange(n), Key.of(first, slots=torch.arange(n)))


def made(monkeypatch: pytest.MonkeyPatch, backbone: str = "small_nf", **options: Any) -> ReMixMatch:
    torch.manual_seed(0)
    options = {"strong_views": 2, "aligned_batches": 5, "ramp": 0.4, **options}
    model = ReMixMatch(GREY, Weak(), FixMatchStrong(), Optimization(), backbone=backbone, **options)
    index = SimpleNamespace(for_training=lambda: ([1, 2, 3, 4], [0, 0, 1, 2]))
    datamodule = SimpleNamespace(index=index)
    trainer = SimpleNamespace(max_steps=10, global_step=1, log_every_n_steps=50, datamodule=datamodule)
    monkeypatch.setattr(model, "log_dict", lambda values, **_: None)
    monkeypatch.setattr(ReMixMatch, "global_step", 1)
    monkeypatch.setattr(model, "_trainer", trainer)
    model.setup("fit")
    return model


def test_forty_guesses_are_the_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(monkeypatch)
    assert model.shares.tolist() == [0.5, 0.25, 0.25]
    history: list[list[float]] = []
    for step in range(40):
        with torch.no_grad():
            model.model.head.bias.copy_(torch.tensor([math.sin(step), 0.0, math.cos(step)]))  # type: ignore[union-attr,operator]
            views = Weak()(batch(6, first=step).images, Key.of(step, slots=torch.arange(6)))
            probs = model.model(views).softmax(1).tolist()
        guess = model.guess(views, torch.arange(len(views))).tolist()
        history = [*history, [sum(p[c] for p in probs) / 6 for c in range(3)]][-5:]
        mean = [sum(row[c] for row in history) / len(history) for c in range(3)]
        for own, p in zip(guess, probs, strict=True):
            ratios = [p[c] / mean[c] * share for c, share in enumerate((0.5, 0.25, 0.25))]
            powers = [(ratio / sum(ratios)) ** 2 for ratio in ratios]
            assert own == pytest.approx([power / sum(powers) for power in powers], rel=1e-4)


def test_turned_images_are_numpys() -> None:
    images = torch.rand(4, 3, 5, 5)
    for image, turned, quarters in zip(images, rotated(images, torch.arange(4)), range(4), strict=True):
        np.testing.assert_array_equal(turned, np.rot90(image, quarters, (1, 2)))


@pytest.mark.parametrize("rotation_weight", [0.5, 0.0])
def test_30_steps_are_algorithm_1(monkeypatch: pytest.MonkeyPatch, rotation_weight: float) -> None:
    model = made(monkeypatch, rotation_weight=rotation_weight)
    for step in range(30):
        x, u = batch(4, [0, 1, 2, 0], 8 * step), batch(8, first=8 * step + 1)
        twin = copy.deepcopy(model.mean_probs)
        loss = model.training_step(SemiBatch(x, u), 0)
        views = [model.strong(x.images, x.key.fold("strong"))]
        views += [model.strong(u.images, u.key.fold("strong", k)) for k in range(2)]
        views.append(model.weak(u.images, u.key.fold("weak")))
        with torch.no_grad():
            model.mean_probs = twin  # as it was before, to be written to again
            guess = model.guess(views[-1], torch.arange(len(views[-1])))
        targets = [F.one_hot(x.labels, 3).float(), guess, guess, guess]
        keys = [x.key.fold("mix"), *(u.key.fold("mix", k) for k in range(3))]
        weights = torch.cat([mix_weights(key, alpha=0.75) for key in keys])
        own = weights.view(-1, 1, 1, 1)
        images = own * torch.cat(views) + (1 - own) * partners_of(views, keys)
        aims = weights[:, None] * torch.cat(targets) + (1 - weights)[:, None] * partners_of(targets, keys)
        mixed = model.model(images)
        expected = F.cross_entropy(mixed[:4], aims[:4]) + 0.25 * 1.5 * F.cross_entropy(mixed[4:], aims[4:])
        expected = expected + 0.25 * 0.5 * F.cross_entropy(model.model(views[1]), guess)
        if rotation_weight:
            quarters = u.key.fold("turn").integers(1, 4)[:, 0]
            turned = torch.stack([torch.rot90(v, int(k), (1, 2)) for v, k in zip(views[1], quarters, strict=True)])
            assert model.rotation is not None
            expected = expected + 0.5 * F.cross_entropy(model.rotation(model.model.encoder(turned)), quarters)
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


def test_only_square_images_are_turned() -> None:
    image = ImageSpec(1, 8, 6, (0.3,), (0.2,), ("a", "b"))
    with pytest.raises(UslError, match=r"^model\.rotation_weight: images of 8×6 pixels cannot be turned"):
        ReMixMatch(image, Weak(), FixMatchStrong(), Optimization(), backbone="small_nf")
    ReMixMatch(image, Weak(), FixMatchStrong(), Optimization(), backbone="small_nf", rotation_weight=0.0)

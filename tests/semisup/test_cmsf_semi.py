"""CMSF-semi's steps against a slow version that keeps its own bank, cache and network of pseudo-labels."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec, SemiBatch
from usl_lightning.data.keys import Key, permutation
from usl_lightning.data.views import Weak
from usl_lightning.semisup.cmsf_semi import CMSFSemi, group_labels, related_rows

K, IMAGES, THRESHOLD = 3, 40, 0.5
GREY = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b", "c"), count=IMAGES)
KNOWN = {3: 0, 10: 1, 17: 2, 24: 0, 31: 1, 38: 1}


class Data:
    """What a step asks of its data."""

    batch_size, unlabelled_ratio, seed, unlabelled_count = 4, 2, 0, IMAGES
    train_source = range(IMAGES)

    class index:  # noqa: N801
        """The labels."""

        @staticmethod
        def for_training() -> tuple[tuple[int, ...], tuple[int, ...]]:
            return tuple(KNOWN), tuple(KNOWN.values())


class Trainer:
    """What a step asks of it."""

    global_step, accumulate_grad_batches, log_every_n_steps, datamodule = 0, 1, 50, Data()


def model(**options: Any) -> CMSFSemi:
    sizes = {"hidden_dim": 24, "projection_dim": 6, "neighbours": K, "bank_size": 30, "cache_size": 10}
    settings = {"threshold": THRESHOLD, "passes": 40, "momentum": 0.8, "backbone": "small_w16"}
    made = CMSFSemi(GREY, Weak(), Optimization(), **{**sizes, **settings, **options})
    made.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    made.trainer = Trainer()  # type: ignore[assignment]
    made.setup("fit")
    return made.double()


def batch_of(step: int) -> SemiBatch:
    """The unlabelled part goes through all images, labelled ones among them."""
    names = list(KNOWN)
    labelled = torch.tensor([names[(4 * step + i) % 6] for i in range(4)])
    unlabelled = (8 * step + torch.arange(8)) * 7 % IMAGES
    made = []
    for name, indices in (("l", labelled), ("u", unlabelled)):
        generator = torch.Generator().manual_seed(step)
        pixels = torch.randint(0, 256, (len(indices), 1, 8, 8), dtype=torch.uint8, generator=generator)
        pixels[:, :, 2:6, 2:6] //= 1 + indices.view(-1, 1, 1, 1) % 3  # something to tell classes by
        labels = torch.tensor([KNOWN[int(i)] if name == "l" else -1 for i in indices])
        made.append(Batch(pixels, labels, indices, Key.of(name, step, slots=torch.arange(len(indices)))))
    return SemiBatch(*made)


class Slow:
    """Rows of the bank are (embedding, label or None), those of the cache (embedding, label)."""

    def __init__(self, cmsf: CMSFSemi) -> None:
        self.cmsf, self.labeller = cmsf, copy.deepcopy(cmsf.labeller)
        self.bank: list[tuple[Tensor, int | None]] = []
        self.cache: list[tuple[Tensor, int]] = []
        self.guessed: list[bool] = []

    def __call__(self, batch: SemiBatch, step: int) -> Tensor:
        cmsf = self.cmsf
        if step and step % (IMAGES // 8 // 2) == 0:
            self.train(step)
        views, weak, images = [], [], []
        for part in batch:
            views.append(cmsf.view(part.images, part.key.fold("view")))
            weak.append(cmsf.weak(part.images, part.key.fold("weak")))
            images += part.indices.tolist()
        features = cmsf.model.encoder(torch.cat(views))
        v = cmsf.predictor(cmsf.projector(features))
        with torch.no_grad():
            u = F.normalize(cmsf.target.module(torch.cat(weak)), dim=1)
            labels = [self.label(image, row) for image, row in zip(images, u, strict=True)]
        self.guessed += [label is not None for image, label in zip(images, labels, strict=True) if image not in KNOWN]
        self.bank = [*self.bank, *zip(u, labels, strict=True)][-30:]
        self.cache = [*self.cache, *[(row, KNOWN[image]) for row, image in zip(u[:4], images[:4], strict=True)]][-10:]
        shifts = []
        for prediction, target, label in zip(v, u, labels, strict=True):
            rows = [row for row, other in self.bank if label is None or label == other]
            nearest = sorted(rows, key=lambda row: -float(row @ target))[:K]
            shifts.append(torch.stack([2 - 2 * F.cosine_similarity(prediction, row, dim=0) for row in nearest]).mean())
        logs = cmsf.model.head(features.detach()).log_softmax(1)
        first = -sum(logs[i, KNOWN[images[i]]] for i in range(4)) / 4
        rest = -sum((logs[i, label] for i, label in enumerate(labels) if i >= 4 and label is not None), torch.zeros(()))
        return torch.stack(shifts).mean() + first + rest / 8  # type: ignore[no-any-return]

    def label(self, image: int, target: Tensor) -> int | None:
        probs = self.labeller(target[None]).softmax(1)[0]
        guess = int(probs.argmax()) if float(probs.max()) >= THRESHOLD else None
        return KNOWN.get(image, guess)

    def train(self, step: int) -> None:
        """Forty passes over the cache by plain SGD, its formula written out."""
        network = self.labeller.requires_grad_(True).train()
        moments = [torch.zeros_like(p) for p in network.parameters()]
        for number in range(40):
            order = permutation(len(self.cache), 0, "pseudo-labels", step, number).tolist()
            z, labels = torch.stack([self.cache[i][0] for i in order]), torch.tensor([self.cache[i][1] for i in order])
            loss = F.cross_entropy(network(z), labels)
            gradients = torch.autograd.grad(loss, list(network.parameters()))
            with torch.no_grad():
                for p, gradient, moment in zip(network.parameters(), gradients, moments, strict=True):
                    moment.copy_(0.9 * moment + gradient + 1e-4 * p)
                    p -= 0.01 * moment
        self.labeller.requires_grad_(False).eval()


def test_thirty_steps_by_hand() -> None:
    """Values and gradients while it is trained; bank and cache wrap, and pseudo-labels come in between."""
    cmsf = model()
    slow = Slow(cmsf)
    parameters = [p for p in cmsf.parameters() if p.requires_grad]
    assert not {id(p) for p in cmsf.labeller.parameters()} & {id(p) for p in parameters}
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    for step in range(30):
        cmsf.trainer.global_step = step  # type: ignore[misc]
        before = {name: buffer.clone() for name, buffer in cmsf.named_buffers()}
        expected = slow(batch_of(step), step)
        gradients = torch.autograd.grad(expected, parameters)
        for name, buffer in cmsf.named_buffers():  # statistics of batch norm, which `slow` has moved
            buffer.copy_(before[name])
        loss = cmsf.training_step(batch_of(step), step)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-9)
        found = torch.autograd.grad(loss, parameters)
        for parameter, own, other in zip(parameters, found, gradients, strict=True):
            assert float((own - other).norm()) <= 1e-5 * float(other.norm()) + 1e-9
            parameter.grad = own
        cmsf.optimizer_step(0, step, optimizer)  # type: ignore[arg-type]
    assert 0.1 < sum(slow.guessed) / len(slow.guessed) < 0.95
    assert not any(slow.guessed[: 2 * 6]), "nothing is guessed before the first training"
    assert all(parameter.grad is None for parameter in cmsf.labeller.parameters())


def test_labels_come_before_guesses_and_both_before_none() -> None:
    logits = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]]).log()
    labels = group_labels(torch.tensor([1, -1, -1]), logits, threshold=0.8)
    assert labels.tolist() == [1, 0, -1]
    rows = related_rows(labels, torch.tensor([0, 1, -1, 0]), torch.tensor([True, True, True, False]))
    assert rows.int().tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]]


def test_the_network_of_pseudo_labels_takes_any_cache() -> None:
    """One image is too few for batch norm, so nothing is learned; it stays in evaluation mode whoever asks."""
    cmsf = model()
    cmsf.train()
    assert not cmsf.labeller.training
    before = copy.deepcopy(cmsf.labeller.state_dict())
    cmsf.cache.write(torch.ones(1, 6))
    cmsf.cache_labels.write(torch.ones(1, 1, dtype=torch.long))
    cmsf._train_labeller()
    assert all(torch.equal(value, before[name]) for name, value in cmsf.labeller.state_dict().items())
    assert isinstance(cmsf.labeller, nn.Sequential)


def test_more_trainings_than_an_epoch_has_steps_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert model(trainings=5).lowered == {}  # 40 images, 8 a step
        assert model(trainings=6).lowered == {"trainings": 5}
    assert caplog.text.count("5 trainings of the network of pseudo-labels instead of 6") == 1


def test_a_bank_below_the_batch_is_refused() -> None:
    with pytest.raises(UslError, match=r"model\.bank_size: 11 embeddings cannot hold a batch of 12 images"):
        model(bank_size=11)


def test_more_neighbours_than_the_bank_has_are_refused() -> None:
    with pytest.raises(UslError, match=r"model\.neighbours: 31 of a bank of 30 embeddings; use fewer"):
        model(neighbours=31)

"""FixMatch's loss against a loop over samples; its step by hand; what is evaluated and handed on."""

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec, SemiBatch
from usl_lightning.data.keys import Key
from usl_lightning.data.views import FixMatchStrong, Weak
from usl_lightning.models.encoder import Encoder, encoder_entry, load_encoder
from usl_lightning.models.guesses import fixmatch_loss
from usl_lightning.semisup.fixmatch import FixMatch


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    exponentials = [math.exp(x - top) for x in row]
    return [e / sum(exponentials) for e in exponentials]


def slow_fixmatch(weak: Tensor, strong: Tensor, threshold: float) -> tuple[float, list[list[float]], list[bool]]:
    """Equation 4 sample by sample: value, gradient with respect to the strong logits, mask."""
    total, gradient, mask = 0.0, [], []
    for w, s in zip(weak.tolist(), strong.tolist(), strict=True):
        p, q = softmax(w), softmax(s)
        label = p.index(max(p))
        passes = p[label] >= threshold
        mask.append(passes)
        total += -math.log(q[label]) if passes else 0.0
        gradient.append([(q[c] - (c == label)) / len(weak) if passes else 0.0 for c in range(len(s))])
    return total / len(weak), gradient, mask


def logits(n: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weak, strong = (3 * torch.randn(n, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return weak.requires_grad_(), strong.requires_grad_()


@given(st.integers(1, 12), st.integers(2, 6), st.sampled_from([0.0, 0.5, 0.8, 0.95, 1.0]), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_values_and_gradients_are_the_loops(n: int, classes: int, threshold: float, seed: int) -> None:
    weak, strong = logits(n, classes, seed)
    loss, mask = fixmatch_loss(weak, strong, threshold=threshold)
    loss.backward()
    value, gradient, passes = slow_fixmatch(weak, strong, threshold)
    assert loss.item() == pytest.approx(value, abs=1e-10)
    assert mask.tolist() == passes
    torch.testing.assert_close(strong.grad, torch.tensor(gradient, dtype=torch.float64), rtol=1e-8, atol=1e-10)
    assert weak.grad is None, "the pseudo-label is a constant"


def test_the_threshold_itself_passes() -> None:
    weak = torch.tensor([[0.0, 0.0], [0.0, 0.1]], dtype=torch.float64)
    assert fixmatch_loss(weak, weak, threshold=0.5)[1].tolist() == [True, True]
    assert fixmatch_loss(weak, weak, threshold=0.50001)[1].tolist() == [False, True]


def test_nothing_confident_is_zero_with_a_graph() -> None:
    weak, strong = logits(4, 3, 0)
    loss, mask = fixmatch_loss(weak.detach() * 0, strong, threshold=0.95)
    loss.backward()
    assert loss.item() == 0
    assert not mask.any()
    assert strong.grad is not None
    assert not strong.grad.any()


def test_the_mean_is_over_all_samples_not_those_that_pass() -> None:
    strong = torch.zeros(4, 2)
    weak = torch.tensor([[9.0, 0.0]] + [[0.0, 0.0]] * 3)
    assert fixmatch_loss(weak, strong, threshold=0.9)[0].item() == pytest.approx(math.log(2) / 4)


# The module ----------------------------------------------------------------------------------------------

GREY = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b", "c"))


def fixmatch(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[FixMatch, dict[str, Any]]:
    """A network without norms whose guesses differ (its head: the three main directions), and what it logs."""
    torch.manual_seed(0)
    options = {"threshold": 0.5, "unlabelled_weight": 3.0, "ema_decay": 0.9, **options}
    model = FixMatch(GREY, Weak(), FixMatchStrong(), Optimization(), backbone="small_nf", **options)
    with torch.no_grad():
        features = model.model.encoder(batch(50, [-1] * 50).images)
        spread = features - features.mean(0)
        model.model.head.weight.copy_(torch.linalg.svd(spread, full_matrices=False).Vh[:3] / 4 / spread.std())
        model.model.head.bias.copy_(-(model.model.head.weight @ features.mean(0)))
    logged: dict[str, Any] = {}
    monkeypatch.setattr(model, "log", lambda name, value, **_: logged.update({name: float(value)}))
    monkeypatch.setattr(model, "log_dict", lambda values, **_: logged.update(values))
    return model, logged


def batch(n: int, labels: list[int], name: str = "x", split: str = "train") -> Batch:
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Batch(images, torch.tensor(labels), torch.arange(n), Key.of(0, name, slots=torch.arange(n)), split)


def test_the_step_is_algorithm_1(monkeypatch: pytest.MonkeyPatch) -> None:
    model, logged = fixmatch(monkeypatch)
    labelled, unlabelled = batch(3, [0, 1, 2]), batch(10, [-1] * 10, "u")
    calls: list[int] = []
    model.model.encoder.register_forward_hook(lambda _m, inputs, _o: calls.append(len(inputs[0])))
    loss = model.training_step(SemiBatch(labelled, unlabelled), 0)
    assert calls == [3 + 2 * 10], "one forward pass"

    def one_by_one(view: Tensor) -> Tensor:
        return torch.cat([model.model(image[None]) for image in view]).double()

    x = one_by_one(model.weak(labelled.images, labelled.key.fold("weak")))
    weak = one_by_one(model.weak(unlabelled.images, unlabelled.key.fold("weak")))
    strong = one_by_one(model.strong(unlabelled.images, unlabelled.key.fold("strong")))
    supervised = -sum(math.log(softmax(row)[label]) for row, label in zip(x.tolist(), [0, 1, 2], strict=True)) / 3
    unsupervised, _, mask = slow_fixmatch(weak, strong, 0.5)
    assert 0 < sum(mask) < 10, "some guesses are confident, some not"
    assert loss.item() == pytest.approx(supervised + 3.0 * unsupervised, rel=1e-4)
    assert float(logged["mask_rate"]) == pytest.approx(sum(mask) / 10)
    assert float(logged["supervised_loss"]) == pytest.approx(supervised, rel=1e-4)
    assert float(logged["unsupervised_loss"]) == pytest.approx(unsupervised, rel=1e-4)


def test_an_optimizer_step_moves_the_average_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = fixmatch(monkeypatch)
    before = copy.deepcopy(model.ema.module.state_dict())
    optimizer = torch.optim.SGD(model.model.parameters(), 0.01)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model.training_step(SemiBatch(batch(3, [0, 1, 2]), batch(6, [-1] * 6, "u")), 0)
        loss.backward()
        return loss

    model.optimizer_step(0, 0, optimizer, closure)
    online = dict(model.model.named_parameters())
    assert any(not torch.equal(online[name], before[name]) for name in online)
    for name, own in model.ema.module.named_parameters():
        torch.testing.assert_close(own, 0.9 * before[name] + 0.1 * online[name].detach())
    assert all(parameter.grad is None for parameter in model.ema.parameters())


def test_only_the_online_network_is_optimized(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = fixmatch(monkeypatch)
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(batch_size=4), max_steps=10, accumulate_grad_batches=1, gradient_clip_val=None
    )
    monkeypatch.setattr(model, "_trainer", trainer)
    groups = model.configure_optimizers()["optimizer"].param_groups
    optimized = {id(parameter) for group in groups for parameter in group["params"]}
    assert optimized == {id(parameter) for parameter in model.model.parameters()}


@pytest.mark.parametrize("parts", [1, 3])
def test_accuracy_is_the_averages_and_counts_every_image_once(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    model, logged = fixmatch(monkeypatch)
    model.eval()
    model.ema.copy_from(model.model)
    with torch.no_grad():
        model.model.head.weight.neg_()
    test = batch(30, [i % 3 for i in range(30)])
    for rows in torch.arange(30).chunk(parts):
        model.test_step(Batch(test.images[rows], test.labels[rows], rows, test.key[rows], "test"), 0)
    model.on_test_epoch_end()

    def accuracy(network: torch.nn.Module) -> float:
        return (network(test.images).argmax(1) == test.labels).double().mean().item()

    assert logged["test_accuracy"] == pytest.approx(accuracy(model.ema.module))
    assert logged["test_accuracy_online"] == pytest.approx(accuracy(model.model))
    assert logged["test_accuracy"] != logged["test_accuracy_online"]
    logged.clear()
    model.on_test_epoch_end()
    assert not logged, "the next pass starts from nothing"


def test_test_images_without_labels_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    model, logged = fixmatch(monkeypatch)
    model.eval()
    known = batch(9, [i % 3 for i in range(9)], split="test")
    model.validation_step(known, 0)
    model.on_validation_epoch_end()
    expected = dict(logged)
    some = batch(9, [i % 3 for i in range(9)])
    images = torch.cat([some.images, some.images])
    labels = torch.cat([some.labels, torch.full((9,), -1)])
    model.validation_step(Batch(images, labels, torch.arange(18), Key.of(0, slots=torch.arange(18)), "test"), 0)
    model.on_validation_epoch_end()
    assert logged == expected
    logged.clear()
    model.validation_step(batch(4, [-1] * 4, split="test"), 0)
    model.on_validation_epoch_end()
    assert not logged, "no labels, no accuracy"


def test_prediction_is_the_averages_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = fixmatch(monkeypatch)
    model.eval()
    probabilities = model.predict_step(batch(5, [-1] * 5), 0)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(5))
    torch.testing.assert_close(probabilities, model.ema.module(batch(5, [-1] * 5).images).softmax(1))


def test_init_from_starts_both_networks_and_a_resume_does_not_read_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.manual_seed(7)
    earlier = Encoder("small_nf", GREY)
    state = {f"encoder.{name}": value for name, value in earlier.state_dict().items()}
    path = tmp_path / "simclr.ckpt"
    torch.save({"encoder": encoder_entry(earlier, online="encoder."), "state_dict": state}, path)
    model, _ = fixmatch(monkeypatch, init_from=str(path))
    model.setup("test")
    assert not torch.equal(model.model.encoder.net.stem[0].weight, earlier.net.stem[0].weight)
    model.setup("fit")
    for name, value in earlier.state_dict().items():
        assert torch.equal(model.model.encoder.state_dict()[name], value)
        assert torch.equal(model.ema.module.encoder.state_dict()[name], value)
    assert torch.equal(model.ema.module.head.weight, model.model.head.weight)


def test_both_encoders_can_be_handed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, _ = fixmatch(monkeypatch)
    with torch.no_grad():
        model.model.encoder.net.stem[0].weight.add_(1)
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "a.ckpt")
    for weights, network in (("online", model.model), ("ema", model.ema.module)):
        loaded = load_encoder(tmp_path / "a.ckpt", weights)  # type: ignore[arg-type]
        for name, value in network.encoder.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value)


@pytest.mark.parametrize(("classes", "known"), [((), "no class is known"), (("one",), "'one' is the only class known")])
def test_too_few_classes_are_refused(classes: tuple[str, ...], known: str) -> None:
    image = ImageSpec(1, 8, 8, (0.3,), (0.2,), classes)
    with pytest.raises(UslError, match=f"{known}; a classifier needs at least 2: label images"):
        FixMatch(image, Weak(), FixMatchStrong(), Optimization(), backbone="small_nf")


def test_pseudo_labels_of_a_pass_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without batch norm the two ways are the same loss and gradient; the weak views get no graph."""
    batches = SemiBatch(batch(3, [0, 1, 2]), batch(10, [-1] * 10, "u"))
    losses, gradients, passes = [], [], []
    for joint in (True, False):
        model, _ = fixmatch(monkeypatch, joint_pass=joint)
        sizes: list[tuple[int, bool]] = []
        model.model.encoder.register_forward_hook(
            lambda _m, inputs, out, sizes=sizes: sizes.append((len(inputs[0]), out.requires_grad))
        )
        loss = model.training_step(batches, 0)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.model.parameters()]))
        passes.append(sizes)
    assert passes == [[(23, True)], [(13, True), (10, False)]]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])

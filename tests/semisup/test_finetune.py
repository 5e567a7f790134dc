"""Fine-tuning: which weights are taken over, which are frozen, what is refused."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training import few_labels, train

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.keys import Key
from usl_lightning.data.modules import LabelledData
from usl_lightning.data.views import Weak
from usl_lightning.models.heads import load_classifier
from usl_lightning.pretrain.simclr import SimCLR
from usl_lightning.semisup.finetune import FineTune

GREY = ImageSpec(1, 8, 8, (0.3,), (0.2,), tuple("0123456789"))


def stage_1(path: Path, layers: int = 3, norm: bool = True, backbone: str = "small_w16") -> SimCLR:
    """A SimCLR with running statistics of its own, and its checkpoint."""
    torch.manual_seed(1)
    model = SimCLR(
        GREY, Weak(), Optimization(), backbone=backbone, hidden_dim=12, projection_dim=6, projection_layers=layers,
        projection_norm=norm,
    )  # fmt: skip
    images = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        for _ in range(20):
            model.projector(model.encoder(images))
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return model


def finetune(path: Path, **options: Any) -> FineTune:
    torch.manual_seed(2)
    options = {"init_from": str(path), "hidden_dim": 12, **options}
    return FineTune(GREY, Weak(), Optimization(lr=0.1), "small_w16", **options)


def images(n: int = 5) -> Tensor:
    return torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("kept", [0, 1, 2])
def test_the_logits_are_those_of_the_kept_layers(tmp_path: Path, kept: int, norm: bool) -> None:
    earlier = stage_1(tmp_path / "a.ckpt", norm=norm).eval()
    model = finetune(tmp_path / "a.ckpt", projection_layers_kept=kept, projection_norm=norm)
    model.setup("fit")
    model.eval()
    last = model.model.head if kept == 0 else model.model.head[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        x = earlier.encoder(images())
        for layer in range(kept):  # linear, (norm,) ReLU
            part = earlier.projector[layer * (3 if norm else 2) :][: 3 if norm else 2]
            assert isinstance(part[0], nn.Linear)
            x = part(x)
        torch.testing.assert_close(model.model(images()), last(x))
        torch.testing.assert_close(model.ema.module(images()), last(x))
    assert x.shape[1] == (256 if kept == 0 else 12)


def test_all_weights_are_tuned_by_default(tmp_path: Path) -> None:
    stage_1(tmp_path / "a.ckpt")
    model = finetune(tmp_path / "a.ckpt", projection_layers_kept=1)
    assert all(p.requires_grad for p in model.model.parameters())
    assert all(m.training for m in model.model.modules())


@pytest.mark.parametrize("kept", [0, 1])
def test_linear_means_frozen(tmp_path: Path, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No gradient, no graph, no batch statistics: only the last layer is trained."""
    stage_1(tmp_path / "a.ckpt")
    model = finetune(tmp_path / "a.ckpt", projection_layers_kept=kept, tuned="linear")
    model.setup("fit")
    monkeypatch.setattr(model, "log_dict", lambda *_, **__: None)
    for mode in (model.eval, model.train):
        mode()
    last = model.model.head if kept == 0 else model.model.head[-1]
    trained = [name for name, p in model.model.named_parameters() if p.requires_grad]
    assert trained == ([f"head.{3 * kept}.weight", f"head.{3 * kept}.bias"] if kept else ["head.weight", "head.bias"])
    assert not any(m.training for m in model.model.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d))
    inputs: list[Tensor] = []
    last.register_forward_pre_hook(lambda _m, x: inputs.append(x[0]))  # type: ignore[union-attr]
    before = copy.deepcopy(model.state_dict())
    batch = Batch(images(8), torch.arange(8), torch.arange(8), Key.of(0, slots=torch.arange(8)))
    model.training_step(batch, 0).backward()
    assert not inputs[0].requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_frozen_may_be_in_training_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the USL paper's code: the batch normalises, the running statistics move, of the weights only the last."""
    stage_1(tmp_path / "a.ckpt")
    model = finetune(tmp_path / "a.ckpt", tuned="linear", train_mode_frozen=True)
    model.setup("fit")
    monkeypatch.setattr(model, "log_dict", lambda *_, **__: None)
    model.eval()
    model.train()
    norm = next(m for m in model.model.modules() if isinstance(m, nn.BatchNorm2d))
    seen: list[tuple[Tensor, Tensor]] = []
    norm.register_forward_hook(lambda _m, x, out: seen.append((x[0].clone(), out.clone())))
    inputs: list[Tensor] = []
    model.model.head.register_forward_pre_hook(lambda _m, x: inputs.append(x[0]))
    before, running = copy.deepcopy(model.state_dict()), norm.running_mean.clone()  # type: ignore[union-attr]
    batch = Batch(images(8), torch.arange(8), torch.arange(8), Key.of(0, slots=torch.arange(8)))
    model.training_step(batch, 0).backward()
    x, out = seen[0]
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(out.shape[1]), atol=1e-5, rtol=0)
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, 0.9 * running + 0.1 * x.mean((0, 2, 3)))
    assert not inputs[0].requires_grad
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all("running" in name or "num_batches" in name for name in moved)
    trained = [name for name, p in model.model.named_parameters() if p.requires_grad]
    assert trained == ["head.weight", "head.bias"]


def test_norms_that_are_replaced_stay_frozen(tmp_path: Path) -> None:
    """As Lightning does on several GPUs, after the model is made."""
    stage_1(tmp_path / "a.ckpt")
    model = finetune(tmp_path / "a.ckpt", projection_layers_kept=1, tuned="linear")
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model).train()
    norms = [m for m in converted.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) > 2
    assert all(isinstance(norm, nn.SyncBatchNorm) and not norm.training for norm in norms)
    assert not any(parameter.requires_grad for norm in norms for parameter in norm.parameters())


def test_a_linear_run_changes_the_last_layer_alone(tmp_path: Path) -> None:
    earlier = stage_1(tmp_path / "a.ckpt")
    checkpoint = train(lambda _: finetune(tmp_path / "a.ckpt", tuned="linear"), labelled, tmp_path / "run", 9)
    state = checkpoint["state_dict"]
    for name, value in earlier.encoder.state_dict().items():
        assert torch.equal(state[f"model.encoder.{name}"], value)
        assert torch.equal(state[f"ema.module.encoder.{name}"], value)
    assert not torch.equal(state["model.head.weight"], finetune(tmp_path / "a.ckpt").model.head.weight)
    assert len(checkpoint["optimizer_states"][0]["state"]) == 2


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_without_a_decay_the_network_itself_is_evaluated(tmp_path: Path, decay: float) -> None:
    stage_1(tmp_path / "a.ckpt")
    state = train(lambda _: finetune(tmp_path / "a.ckpt", ema_decay=decay), labelled, tmp_path / "run", 3)["state_dict"]
    assert torch.equal(state["ema.module.head.weight"], state["model.head.weight"]) == (decay == 0)


def test_the_step_is_the_mean_cross_entropy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage_1(tmp_path / "a.ckpt")
    model = finetune(tmp_path / "a.ckpt", tuned="linear")
    monkeypatch.setattr(model, "log_dict", lambda *_, **__: None)
    batch = Batch(images(4), torch.tensor([3, 1, 4, 1]), torch.arange(4), Key.of(0, slots=torch.arange(4)))
    loss = model.training_step(batch, 0)
    loss.backward()
    view = model.view(batch.images, batch.key.fold("view"))
    probabilities = torch.cat([model.model(one[None]) for one in view]).softmax(1)
    assert loss.item() == pytest.approx(-probabilities[range(4), [3, 1, 4, 1]].log().mean().item(), rel=1e-5)
    gradient = (probabilities - F.one_hot(batch.labels, 10)).mean(0)
    torch.testing.assert_close(model.model.head.bias.grad, gradient, rtol=1e-5, atol=1e-6)


# Handed on -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_classifier_is_rebuilt_from_its_checkpoint(tmp_path: Path, kept: int, norm: bool) -> None:
    model = finetune(tmp_path / "a.ckpt", projection_layers_kept=kept, projection_norm=norm)
    with torch.no_grad():
        for parameter in model.ema.parameters():
            parameter.mul_(1.5)
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "b.ckpt")
    loaded = load_classifier(tmp_path / "b.ckpt")
    assert not loaded.training
    assert loaded.encoder.image.classes == GREY.classes
    with torch.no_grad():
        assert torch.equal(loaded(images()), model.eval().ema.module(images()))
        assert not torch.equal(loaded(images()), model.model(images())), "the moving average"


def test_features_are_no_classifier(tmp_path: Path) -> None:
    stage_1(tmp_path / "a.ckpt")
    with pytest.raises(UslError, match=r"a.ckpt: holds no classifier; expected a checkpoint of a stage that trains"):
        load_classifier(tmp_path / "a.ckpt")


# Mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        (2, {"projection_layers_kept": 2}, "2 layers .* cannot be kept, it has 2, .* output; expected at most 1$"),
        (3, {"projection_layers_kept": 5}, "it has 3, the last of which is its output; expected at most 2$"),
        (
            3,
            {"projection_layers_kept": 1, "hidden_dim": 7},
            "begins with 256→12 and batch norm, this model's with 256→7 and batch norm; set model.hidden_dim",
        ),
        (
            3,
            {"projection_layers_kept": 2, "projection_norm": False},
            "begins with .*256→12, 12→12 and batch norm, this model's with 256→12, 12→12; set",
        ),
    ],
)
def test_layers_that_do_not_fit_are_refused(tmp_path: Path, layers: int, options: dict[str, Any], message: str) -> None:
    stage_1(tmp_path / "a.ckpt", layers)
    model = finetune(tmp_path / "a.ckpt", **options)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UslError, match=f"^model.projection_layers_kept: .*{message}"):
        model.setup("fit")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "nothing is copied"


def test_a_checkpoint_without_projection_head_is_refused(tmp_path: Path) -> None:
    earlier = stage_1(tmp_path / "a.ckpt")
    checkpoint: dict[str, Any] = {"state_dict": {f"encoder.{k}": v for k, v in earlier.encoder.state_dict().items()}}
    earlier.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "b.ckpt")
    with pytest.raises(UslError, match="cannot be kept, it has none; expected at most 0"):
        finetune(tmp_path / "b.ckpt", projection_layers_kept=1).setup("fit")
    finetune(tmp_path / "b.ckpt").setup("fit")


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_a_start_is_needed_only_to_train(stage: str) -> None:
    model = FineTune(GREY, Weak(), Optimization(), "small_w16")
    if stage == "test":
        model.setup(stage)
        return
    with pytest.raises(UslError, match=r"model.init_from: expected a checkpoint of stage 1 to fine-tune"):
        model.setup(stage)


# Training ------------------------------------------------------------------------------------------------


def labelled() -> LabelledData:
    """The 20 labelled digits of `few_labels`, 8 a step."""
    return LabelledData(few_labels().labels, dataset="digits", batch_size=8, seed=3)

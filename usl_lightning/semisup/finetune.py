"""SimCLRv2's fine-tuning (Chen et al., 2020, "Big Self-Supervised Models are Strong Semi-Supervised Learners").

The distillation that follows it is in `distill.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, whole
from usl_lightning.compute.device import full_precision
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.models.ema import EMA
from usl_lightning.models.encoder import read_checkpoint
from usl_lightning.models.heads import classifier_head
from usl_lightning.semisup.semisup_module import SemiSupervisedModule

PROJECTOR = "projector."
"""What the names of a stage-1 projection head's weights begin with."""


def init_projection(projection: nn.Sequential, path: str | Path) -> None:
    """Copy the first layers of a stage-1 checkpoint's projection head into `projection`.

    Args:
        projection: linear layers, each with its norm (if any) and ReLU.
        path: a checkpoint of `usl fit`.

    Raises:
        UslError: it has no projection head, too few layers, or layers of another kind or size; nothing is copied then.
    """
    stored = read_checkpoint(path).get("state_dict", {})
    state = {name.removeprefix(PROJECTOR): value for name, value in stored.items() if name.startswith(PROJECTOR)}
    own = projection.state_dict()
    kept, layers = _count(own), _count(state)
    if kept >= layers:
        has = f"it has {layers}, the last of which is its output" if layers else "it has none"
        raise UslError(
            f"model.projection_layers_kept: {kept} layers of the projection head in {path} cannot be kept, {has}; "
            f"expected at most {max(0, layers - 1)}"
        )
    first = {
        name: value for name, value in state.items() if name.partition(".")[0] in dict(projection.named_children())
    }
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in first.items()}:
        raise UslError(
            f"model.projection_layers_kept: the projection head in {path} begins with {_described(first)}, this "
            f"model's with {_described(own)}; set model.hidden_dim and model.projection_norm as they were there"
        )
    projection.load_state_dict(first)


def _count(state: Mapping[str, Tensor]) -> int:
    """Linear layers."""
    return sum(value.dim() == 2 for value in state.values())


def _described(state: Mapping[str, Tensor]) -> str:
    sizes = ", ".join(f"{value.shape[1]}→{value.shape[0]}" for value in state.values() if value.dim() == 2)
    return sizes + (" and batch norm" if any(name.endswith("running_mean") for name in state) else "")


class FineTune(SemiSupervisedModule):
    """The encoder of an earlier stage, and perhaps the first layers of its projection head, trained on the labels.

    Args:
        image: channels, size, statistics and classes of the images; the command line takes it from the data.
        view: of the images; published: random crop and mirror.
        optimizer: how the weights are updated.
        backbone: name of the network; that of the checkpoint.
        pretrained: start from published weights of the backbone instead of a checkpoint.
        init_from: checkpoint of stage 1 (or of USL-T) to start from; without it, `pretrained` must be set.
        tuned: `all` weights, or `linear`: only the last layer is trained, all before it is frozen: without gradient, in
            evaluation mode (batch norm with its running statistics).
        train_mode_frozen: what is frozen is in training mode all the same, as in the USL paper's code: batch norm
            normalises with the batch and moves its running statistics.
        projection_layers_kept: layers of the projection head that stay, at most all but its last; published: 1 of 3
            with few labels, 0 with all labels.
        hidden_dim: width of these layers; that of the checkpoint.
        projection_norm: whether they have batch norm; as in the checkpoint.
        ema_decay: of the moving average that is evaluated; 0, as published, evaluates the trained network itself.
    """

    ranges: ClassVar[Ranges] = {"projection_layers_kept": whole(0), "hidden_dim": whole(1)}

    needs = ("init_from or pretrained",)

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        backbone: str = "resnet18_cifar",
        pretrained: bool = False,
        init_from: str | None = None,
        tuned: Literal["all", "linear"] = "all",
        train_mode_frozen: bool = False,
        projection_layers_kept: int = 0,
        hidden_dim: int = 512,
        projection_norm: bool = True,
        ema_decay: float = 0.0,
    ) -> None:
        super().__init__(
            image, optimizer, backbone=backbone, pretrained=pretrained, ema_decay=ema_decay, init_from=init_from
        )
        self.view, self.tuned, self.train_mode_frozen = view, tuned, train_mode_frozen
        encoder = self.model.encoder
        self.model.head = classifier_head(
            encoder.feature_dim, hidden_dim, image.num_classes, layers=projection_layers_kept, norm=projection_norm
        )
        if tuned == "linear":
            for part in self._before_last():
                part.requires_grad_(False)
        self.ema = EMA(self.model, ema_decay)
        self.train()

    def train(self, mode: bool = True) -> "FineTune":
        """Training mode; what is frozen stays in evaluation mode, unless `train_mode_frozen`."""
        super().train(mode)
        if self.tuned == "linear" and not self.train_mode_frozen:
            for part in self._before_last():
                part.eval()
        return self

    def _projection(self) -> nn.Sequential | None:
        """The layers kept of the projection head, if any; asked anew each time, as norms may be replaced in between."""
        head = self.model.head
        return head[:-1] if isinstance(head, nn.Sequential) else None

    def _before_last(self) -> list[nn.Module]:
        """All but the last layer."""
        projection = self._projection()
        return [self.model.encoder] if projection is None else [self.model.encoder, projection]

    def setup(self, stage: str) -> None:
        """Start from an earlier encoder and projection head; a checkpoint being resumed is loaded later and wins."""
        projection = self._projection()
        if stage == "fit" and self.init_from is None and (projection is not None or not self.pretrained):
            raise UslError("model.init_from: expected a checkpoint of stage 1 to fine-tune; `usl fit` writes one")
        if stage == "fit" and self.init_from is not None and projection is not None:
            init_projection(projection, self.init_from)
        super().setup(stage)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one global batch."""
        logits = full_precision(self.model(self.view(batch.images, batch.key.fold("view"))))
        loss = F.cross_entropy(logits, batch.labels)
        self.log_training(loss=loss)
        return loss

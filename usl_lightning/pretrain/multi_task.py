"""Multi-task self-supervised visual learning (Doersch and Zisserman, ICCV 2017; Caruana, 1997, of tasks in general)."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, above, at_least, check, whole
from usl_lightning.compute.device import full_precision
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.keys import Key
from usl_lightning.models.heads import projection_mlp
from usl_lightning.models.turning import TURNS, check_square, turned_views, turns_of
from usl_lightning.pretrain.counting import global_loss, quarters
from usl_lightning.pretrain.jigsaw import GRID, head_of_pieces, puzzles, spread_permutations
from usl_lightning.pretrain.pretrain_module import NetworkOptions, PretrainModule
from usl_lightning.pretrain.relative_patch import NEIGHBOURS, pairs

Answer = tuple[Tensor, dict[str, Tensor]]
"""The loss of a task, and what is logged beside it."""


def answer(logits: Tensor, right: Tensor, name: str) -> Answer:
    """Cross-entropy of logits [n, k] with the right answers, int64 [n]; under the name, the share that is right."""
    return F.cross_entropy(logits, right), {name: (logits.argmax(1) == right).float().mean()}


@dataclass(frozen=True)
class Tasks:
    """What one network is asked, and the weight of each task's loss; one of weight 0 has no head and is not asked.

    Attributes:
        rotation: by how much is an image turned? As in RotNet.
        jigsaw: in which order are its pieces? As in Jigsaw.
        relative_patch: where does one piece lie beside another? As in RelativePatch.
        exemplar: which of all images is it? As in Exemplar, of whole images.
        counting: what is seen in its quarters together is what is seen in it. As in Counting.
    """

    ranges: ClassVar[Ranges] = {
        "rotation": at_least(0),
        "jigsaw": at_least(0),
        "relative_patch": at_least(0),
        "exemplar": at_least(0),
        "counting": at_least(0),
    }

    rotation: float = 0.0
    jigsaw: float = 0.0
    relative_patch: float = 0.0
    exemplar: float = 0.0
    counting: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        check(type(self), vars(self))


class Rotation(nn.Module):
    """RotNet's head."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.head = nn.Linear(features, TURNS)

    def forward(self, encoder: nn.Module, view: nn.Module, batch: Batch, key: Key) -> Answer:
        """All turns of each image, told apart."""
        logits = self.head(encoder(turned_views(batch.images, view, key.fold("view"))))
        return answer(logits, turns_of(logits), "turns_told")


class Order(nn.Module):
    """Jigsaw's heads and orders."""

    orders: Tensor

    def __init__(self, features: int, patch: int, permutations: int, hidden_dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.piece_head = head_of_pieces(features, hidden_dim)
        self.head = nn.Linear(GRID * GRID * hidden_dim, permutations)
        self.register_buffer("orders", spread_permutations(permutations))

    def forward(self, encoder: nn.Module, view: nn.Module, batch: Batch, key: Key) -> Answer:
        """The order of the nine pieces of each image."""
        pieces, drawn = puzzles(view(batch.images, key.fold("view")), self.orders, key, size=self.patch)
        logits = self.head(self.piece_head(encoder(pieces)).view(len(batch), -1))
        return answer(logits, drawn, "orders_told")


class Place(nn.Module):
    """The head of relative patches."""

    def __init__(self, features: int, patch: int, hidden_dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.head = projection_mlp(2 * features, hidden_dim, len(NEIGHBOURS), output_norm=False)

    def forward(self, encoder: nn.Module, view: nn.Module, batch: Batch, key: Key) -> Answer:
        """The place of one piece beside another of the same image."""
        pieces, places = pairs(view(batch.images, key.fold("view")), key, size=self.patch)
        logits = self.head(torch.cat(encoder(pieces).chunk(2), dim=1))
        return answer(logits, places, "places_told")


class Instance(nn.Module):
    """Exemplar-CNN's head, which grows with the images."""

    def __init__(self, features: int, images: int) -> None:
        super().__init__()
        self.head = nn.Linear(features, images)

    def forward(self, encoder: nn.Module, view: nn.Module, batch: Batch, key: Key) -> Answer:
        """Which of all images each one is."""
        logits = full_precision(self.head(encoder(view(batch.images, key.fold("view")))))
        return answer(logits, batch.indices, "images_told")


class Counts(nn.Module):
    """Counting's head."""

    def __init__(self, features: int, hidden_dim: int, counts: int, margin: float) -> None:
        super().__init__()
        self.margin = margin
        self.projector = projection_mlp(features, hidden_dim, counts, norm=False)

    def forward(self, encoder: nn.Module, view: nn.Module, batch: Batch, key: Key) -> Answer:
        """What is seen in each image and in its quarters."""
        small = torch.cat(quarters(view(batch.images, key.fold("view"))))
        same, other = global_loss(self.projector(encoder(small)), margin=self.margin)
        return same + other, {"same_loss": same, "other_loss": other}


class MultiTask(PretrainModule):
    """Several tasks, each with a head of its own, teach one network.

    Each task draws views of its own and goes through the network by itself: batch norm takes the statistics of one
    task's images at a time, and its moving averages are of all tasks in turn.

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data. Square ones for
            the rotation.
        view: draws a view of each image for each task; the same kind for all, so that no task is told by its colours.
        optimizer: how the weights are updated.
        tasks: the weight of each task.
        patch: side of a piece in pixels, less than a 3×3 cell's; of the jigsaw and of relative patches.
        permutations: orders of the jigsaw to tell apart.
        hidden_dim: of the hidden layers of the heads of jigsaw, relative patches and counting.
        counts: how many things are counted.
        margin: by how much the counts of different images are to differ.
        network: the network, what it starts from, and its monitor: see `PretrainModule`.
    """

    ranges: ClassVar[Ranges] = {
        "patch": whole(1),
        "permutations": whole(2, up_to=362_880),
        "hidden_dim": whole(1),
        "counts": whole(1),
        "margin": above(0),
    }

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        tasks: Tasks,
        patch: int = 64,
        permutations: int = 100,
        hidden_dim: int = 1000,
        counts: int = 1000,
        margin: float = 10.0,
        **network: Unpack[NetworkOptions],
    ) -> None:
        if not any(asdict(tasks).values()):
            raise UslError(
                f"model.tasks: no task has a weight above 0; give one to {', '.join(asdict(tasks))}, or to several"
            )
        if tasks.rotation:
            check_square(image, "MultiTask")
        super().__init__(image, optimizer, **network)
        self.view = view
        self.weights = {name: weight for name, weight in asdict(tasks).items() if weight > 0}
        features = self.encoder.feature_dim
        heads: dict[str, Callable[[], nn.Module]] = {
            "rotation": partial(Rotation, features),
            "jigsaw": partial(Order, features, patch, permutations, hidden_dim),
            "relative_patch": partial(Place, features, patch, hidden_dim),
            "exemplar": partial(Instance, features, image.count),
            "counting": partial(Counts, features, hidden_dim, counts, margin),
        }
        self.heads = nn.ModuleDict({name: heads[name]() for name in self.weights})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The losses of the tasks for one global batch, weighted and added."""
        losses, figures = dict[str, Tensor](), dict[str, Tensor]()
        for name, head in self.heads.items():
            losses[name], told = head(self.encoder, self.view, batch, batch.key.fold(name))
            figures |= {f"{name}_loss": losses[name], **told}
        loss = torch.stack([self.weights[name] * own for name, own in losses.items()]).sum()
        self.log_training(loss=loss, **figures)
        return loss

"""SwAV: Unsupervised Learning of Visual Features by Contrasting Cluster Assignments (Caron et al., NeurIPS 2020)."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, above, whole
from usl_lightning.compute.distributed import gather
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.views.crops import multi_crop
from usl_lightning.models.guesses import Ring
from usl_lightning.models.heads import projection_mlp
from usl_lightning.pretrain.pretrain_module import NetworkOptions, PretrainModule
from usl_lightning.vectors.sinkhorn import sinkhorn_codes

LARGE = 2
"""Views whose codes the others predict."""


def swapped_prediction(scores: Sequence[Tensor], codes: Sequence[Tensor], *, temperature: float) -> Tensor:
    """Cross-entropy of each view's code and the softmax of every other view's scores (Eqs. 1, 2 and 6).

    Args:
        scores: of each view with the prototypes, [n, K]; the first have codes.
        codes: of the first views, [n, K], each row a distribution; no gradient flows into them.
        temperature: τ, above 0; 0.1 in the paper.

    Returns:
        A scalar: the mean over images, codes and the views that predict them.
    """
    logs = [F.log_softmax(each / temperature, dim=1) for each in scores]
    losses = [
        -(code.detach() * log).sum(1).mean()
        for coded, code in enumerate(codes)
        for predicting, log in enumerate(logs)
        if predicting != coded
    ]
    return torch.stack(losses).mean()


class SwAV(PretrainModule):
    """Each view predicts which prototypes another view of the same image is assigned to.

    The assignments of a batch are balanced over the prototypes by three iterations of Sinkhorn-Knopp, so that not all
    images get the same one. Small views predict, at a fraction of the cost, and are not assigned. The published queue
    is each process's own and is not in its checkpoints; here it is of the global batch, and is.

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data.
        view: draws a view of each image; called twice with independent keys.
        optimizer: how the weights are updated.
        small_view: draws the small views, of a size below that of `view`.
        small_views: how many of each image; 6 in the paper.
        prototypes: K, at most the images there are.
        temperature: τ of the predictions.
        epsilon: ε of the assignments.
        iterations: of Sinkhorn-Knopp.
        queue_size: embeddings of earlier batches that are assigned with each batch; for batches that are small beside
            the prototypes. 0: none.
        queue_after: step from which they are, once there are that many.
        frozen_steps: steps before the prototypes begin to move; one epoch in the published code.
        hidden_dim, projection_dim: sizes of the 2-layer projection MLP, whose output has no batch norm.
        network: the network, what it starts from, and its monitor: see `PretrainModule`.
    """

    up_to_images = ("prototypes",)
    ranges: ClassVar[Ranges] = {
        "small_views": whole(0),
        "prototypes": whole(2),
        "temperature": above(0),
        "epsilon": above(0),
        "iterations": whole(1),
        "queue_size": whole(0),
        "queue_after": whole(0),
        "frozen_steps": whole(0),
        "hidden_dim": whole(1),
        "projection_dim": whole(1),
    }

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        small_view: nn.Module | None = None,
        small_views: int = 0,
        prototypes: int = 3000,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        queue_size: int = 0,
        queue_after: int = 0,
        frozen_steps: int = 0,
        hidden_dim: int = 2048,
        projection_dim: int = 128,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.view, self.small_view, self.small_views = view, view if small_view is None else small_view, small_views
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.queue_after, self.frozen_steps = queue_after, frozen_steps
        self.projector = projection_mlp(self.encoder.feature_dim, hidden_dim, projection_dim, output_norm=False)
        self.prototypes = nn.Linear(projection_dim, prototypes, bias=False)
        self.queues = nn.ModuleList(Ring(queue_size, projection_dim) for _ in range(LARGE if queue_size else 0))
        self._to_unit_length()

    def setup(self, stage: str) -> None:
        """Start from an earlier encoder.

        Raises:
            UslError: more prototypes than images.
        """
        super().setup(stage)
        count, prototypes = self.encoder.image.count, len(self.prototypes.weight)
        if stage == "fit" and prototypes > count:
            raise UslError(f"model.prototypes: {prototypes} for {count} images; use at most {count}")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one global batch (Alg. 1)."""
        crops = multi_crop(batch.images, batch.key, [self.view] * LARGE, self.small_view, self.small_views)
        projected = [self.projector(self.encoder(size)) for size in crops]
        with torch.autocast(batch.images.device.type, enabled=False):
            dtype = torch.promote_types(projected[0].dtype, torch.float32)
            views = [z for size in projected for z in torch.split(F.normalize(size.to(dtype), dim=1), len(batch))]
            prototypes = self.prototypes.weight.to(dtype)
            codes = [self._codes(number, views[number], prototypes, batch) for number in range(LARGE)]
            moving = torch.lerp(prototypes.detach(), prototypes, float(self.global_step >= self.frozen_steps))
            loss = swapped_prediction([z @ moving.T for z in views], codes, temperature=self.temperature)
        self.log_training(*views[:LARGE], loss=loss)
        return loss

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """A step of the optimizer; the prototypes are of unit length before each."""
        optimizer.step(closure=optimizer_closure)
        self._to_unit_length()

    @torch.no_grad()
    def _codes(self, number: int, z: Tensor, prototypes: Tensor, batch: Batch) -> Tensor:
        """The codes of this process's images, [b, K], by those of the global batch and the queue."""
        own = gather(z)
        rows, there = own, None
        if len(self.queues):
            queue: Ring = self.queues[number]  # type: ignore[assignment]
            used = queue.full() & (self.global_step >= self.queue_after)
            rows = torch.cat([own, queue.rows.to(own.dtype)])
            there = torch.cat([torch.ones(len(own), dtype=torch.bool, device=own.device), used.expand(len(queue.rows))])
        scores = rows @ prototypes.T
        codes = sinkhorn_codes(scores, epsilon=self.epsilon, iterations=self.iterations, there=there)
        if len(self.queues):
            queue.write(own)
        return codes[batch.key.slots]

    @torch.no_grad()
    def _to_unit_length(self) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

"""USL-T: training-based unsupervised selective labelling (Wang, Lian, Yu, ECCV 2022, section 2.3)."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, above, at_least, whole, within
from usl_lightning.compute.distributed import gather, gather_uneven
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec, PairBatch
from usl_lightning.data.keys import Key, permutation
from usl_lightning.data.sampling import process_range
from usl_lightning.evaluation.clusters import cluster_metrics
from usl_lightning.models.cluster_heads import (
    ENTRY,
    ClusterHeads,
    Reassignment,
    cluster_confidence,
    heads_entry,
    reassign,
    update_sizes,
)
from usl_lightning.pretrain.pretrain_module import NetworkOptions, PretrainModule

Reduction = Literal["weights", "batch"]


def local_loss(
    anchor_logits: Tensor,
    neighbor_logits: Tensor,
    mean_prob: Tensor,
    *,
    adjustment: float,
    temperature: float,
    momentum: float,
) -> tuple[Tensor, Tensor]:
    """An image belongs to the cluster of its neighbour, less what is common to all images (Eq. 11-14).

    The target is the softmax of (z' - α·log z̄) / t, which is the published code's sharpening p^(1/t) of
    softmax(z' - α·log z̄); the loss is KL(target ‖ softmax(anchor)).

    Args:
        anchor_logits: [b, c].
        neighbor_logits: z', [b, c]; no gradient flows into them.
        mean_prob: z̄, [c], the moving average of the mean prediction; as it is, used for this batch's targets.
        adjustment: α ≥ 0, of the step against one cluster for all.
        temperature: t in (0, 1], of the step against even predictions.
        momentum: weight of the *old* average, in [0, 1] (the paper's Eq. 12 weights the new one).

    Returns:
        The loss, averaged over the batch, and z̄ after it: updated with the mean softmax of the unadjusted z'. Both
        in float32 or better.
    """
    with torch.autocast(anchor_logits.device.type, enabled=False):
        anchor, neighbor, mean = (_precise(x) for x in (anchor_logits, neighbor_logits.detach(), mean_prob.detach()))
        adjusted = neighbor - adjustment * mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
        target = (adjusted / temperature).log_softmax(1)
        loss = F.kl_div(anchor.log_softmax(1), target, log_target=True, reduction="batchmean")
        new_mean = momentum * mean + (1 - momentum) * neighbor.softmax(1).mean(0)
        return loss, new_mean / new_mean.sum()


def global_loss(
    anchor_logits: Tensor,
    target_logits: Tensor,
    *,
    threshold: float,
    reweight: bool = True,
    reduction: Reduction = "weights",
    renormalize: bool = False,
) -> Tensor:
    """Learnable k-means: an image belongs to its own most likely cluster, once that is sure (Eq. 8-10).

    Args:
        anchor_logits: [b, c].
        target_logits: [b, c], of the same images unaugmented; no gradient flows into them.
        threshold: τ in [0, 1]; an image counts if its largest probability is *above* it, as in the published code
            (the paper: at least).
        reweight: weigh an image by the inverse frequency of its cluster among those that count, n / n_cluster;
            otherwise by 1.
        reduction: divide the weighted sum by the sum of the weights, or by the size of the batch, b (Eq. 10).
        renormalize: scale the weights of those that count to a mean of 1, as on ImageNet-100; it matters to the
            reduction "batch" alone.

    Returns:
        The loss, a scalar in float32 or better; 0, with a graph, if no image counts.
    """
    if reduction not in ("weights", "batch"):
        raise UslError(f"reduction {reduction!r}: expected 'weights' or 'batch'")
    with torch.autocast(anchor_logits.device.type, enabled=False):
        confidence, clusters = _precise(target_logits.detach()).softmax(1).max(1)
        anchor = _precise(anchor_logits)
        weights = (confidence > threshold).to(anchor.dtype)
        if reweight:
            counts = anchor.new_zeros(anchor.shape[1]).index_add_(0, clusters, weights)
            weights = weights * (weights.sum() / counts[clusters].clamp(min=1))
            if renormalize:
                weights = weights / (counts > 0).sum().clamp(min=1)  # the clusters, which count the same
        total = (weights * F.cross_entropy(anchor, clusters, reduction="none")).sum()
        return total / (len(anchor) if reduction == "batch" else weights.sum().clamp(min=1))


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class USLTTraining(PretrainModule):
    """The training of USL-T: clusters, and the features they are seen in, learned together.

    Its checkpoint is what `USLT` selects from (`usl select`); its encoder can start a stage-3 run.

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data.
        view: the strong view of an image and of its neighbour.
        optimizer: how the weights are updated.
        clusters: C, outputs of each head: the number of images to label, or somewhat more.
        heads: H, clusterings learned at once; their losses are added up. Selection uses the first.
        adjustment, temperature: α and t of the local loss.
        momentum: weight of the old value in the moving average z̄.
        local_weight: λ, weight of the local loss.
        local_steps: steps with the local loss, which only has to kick-start the clusters (appendix 6.9.2); after them
            it is off. None: all.
        global_after: steps without the global loss, before it starts.
        threshold: τ of the global loss.
        reweight, reduction, renormalize: of the global loss.
        cosine_scale: heads of scaled cosines that start from the features of random images; None: linear layers.
        frozen: keep the encoder as it is, batch-norm statistics too.
        train_mode_targets: the passes without gradient (unaugmented image, neighbour) are in training mode and
            move the batch-norm statistics, as in the published code; False: in evaluation mode.
        reassignment: move nearly empty clusters onto the largest ones; None: never.
        network: the network, what it starts from, and its monitor: see `PretrainModule`.
    """

    up_to_images = ("clusters",)
    ranges: ClassVar[Ranges] = {
        "clusters": whole(2),
        "heads": whole(1),
        "adjustment": at_least(0),
        "temperature": above(0, up_to=1),
        "momentum": within(0, 1),
        "local_weight": at_least(0),
        "local_steps": whole(0),
        "global_after": whole(0),
        "threshold": within(0, 1),
        "cosine_scale": above(0),
    }

    mean_prob: Tensor
    sizes: Tensor

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        clusters: int,
        heads: int = 3,
        adjustment: float = 5.0,
        temperature: float = 0.25,
        momentum: float = 0.5,
        local_weight: float = 5.0,
        local_steps: int | None = None,
        global_after: int = 0,
        threshold: float = 0.95,
        reweight: bool = True,
        reduction: Reduction = "weights",
        renormalize: bool = False,
        cosine_scale: float | None = None,
        frozen: bool = False,
        train_mode_targets: bool = True,
        reassignment: Reassignment | None = None,
        **network: Unpack[NetworkOptions],
    ) -> None:
        if local_steps is not None and local_steps < global_after:
            raise UslError(
                f"local_steps={local_steps} and global_after={global_after}: between them there is nothing to learn; "
                "expected global_after no larger"
            )
        super().__init__(image, optimizer, **network)
        self.encoder.requires_grad_(not frozen)
        self.view, self.heads = view, ClusterHeads(self.encoder.feature_dim, clusters, heads, cosine_scale)
        self.adjustment, self.temperature, self.momentum = adjustment, temperature, momentum
        self.local_weight, self.threshold = local_weight, threshold
        self.local_steps, self.global_after = local_steps, global_after
        self.reweight, self.reduction, self.renormalize = reweight, reduction, renormalize
        self.frozen, self.train_mode_targets, self.reassignment = frozen, train_mode_targets, reassignment
        self.images = image.count
        self.register_buffer("mean_prob", torch.full((heads, clusters), 1 / clusters))
        self.register_buffer("sizes", torch.full((heads, clusters), image.count / clusters))
        self._assigned: list[tuple[Tensor, Tensor]] = []

    def setup(self, stage: str) -> None:
        """Start from the stage-1 encoder; a checkpoint being resumed is loaded after this and wins.

        Raises:
            UslError: more clusters than images, or the checkpoint does not fit.
        """
        super().setup(stage)
        if stage == "fit" and self.heads.clusters > self.images:
            raise UslError(
                f"model.clusters: {self.heads.clusters} clusters of {self.images} images; expected a number from 2 "
                f"to {self.images}"
            )

    def train(self, mode: bool = True) -> "USLTTraining":
        """Training mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.train(mode and not self.frozen)
        return self

    def on_train_start(self) -> None:
        """Put cosine heads on random images (appendix 6.3.2); a resumed run has its heads already."""
        if self.heads.cosine_scale is not None and self.trainer.global_step == 0:
            self.heads.start_from(self._sample_features())

    @torch.no_grad()
    def _sample_features(self) -> Tensor:
        """Features [H, C, d] of unaugmented random images, distinct within a head; computed by all processes."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        shape = len(self.heads), self.heads.clusters
        orders = [permutation(self.images, data.seed, "centroids", head)[: shape[1]] for head in range(shape[0])]
        share = process_range(math.prod(shape), self.trainer.global_rank, self.trainer.world_size)
        mode = self.encoder.training
        self.encoder.eval()
        parts = [
            self.encoder(data.train_source.read(rows).to(self.device)).float()
            for rows in torch.split(torch.cat(orders)[share.start : share.stop], data.eval_batch_size)
        ]
        self.encoder.train(mode)
        return gather_uneven(torch.cat(parts)).view(*shape, -1)

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """The loss of one global batch (Eq. 15): global + λ·local, of all heads, each while it is on."""
        image, neighbor = batch
        with self._without_gradient():
            target = self._logits(image.images)
        anchor = self._logits(self.view(image.images, image.key.fold("view")))
        with self._without_gradient():
            near = self._logits(self.view(neighbor.images, neighbor.key.fold("view")))
        total_local = total_global = anchor.new_zeros(())
        for head in range(len(self.heads)):
            local, self.mean_prob[head] = local_loss(
                anchor[:, head],
                near[:, head],
                self.mean_prob[head],
                adjustment=self.adjustment,
                temperature=self.temperature,
                momentum=self.momentum,
            )
            total_local = total_local + local
            total_global = total_global + global_loss(
                anchor[:, head],
                target[:, head],
                threshold=self.threshold,
                reweight=self.reweight,
                reduction=self.reduction,
                renormalize=self.renormalize,
            )
        global_on, local_on = self._on()
        loss = global_on * total_global + local_on * self.local_weight * total_local
        sure = self._count(target)
        self.log_training(loss=loss, local_loss=total_local, global_loss=total_global, confident=sure)
        return loss

    def _on(self) -> tuple[bool, bool]:
        """Which of the losses count at this step: the global one, the local one."""
        if self.local_steps is None and not self.global_after:
            return True, True
        step = self.trainer.global_step
        return step >= self.global_after, self.local_steps is None or step < self.local_steps

    def _logits(self, views: Tensor) -> Tensor:
        """Logits [b, H, C] of the global batch: its statistics are part of both losses."""
        return gather(self.heads(self.encoder(views)))

    @contextmanager
    def _without_gradient(self) -> Iterator[None]:
        mode = self.encoder.training
        self.encoder.train(mode and self.train_mode_targets)
        with torch.no_grad():
            yield
        self.encoder.train(mode)

    def _count(self, target: Tensor) -> Tensor:
        """Update the sizes of the clusters, if they matter; the fraction of targets [b, H, C] above the threshold."""
        confidence, clusters = target.softmax(2).max(2)
        counts = confidence > self.threshold
        if self.reassignment is not None:
            for head, sizes in enumerate(self.sizes):
                self.sizes[head] = update_sizes(
                    sizes, clusters[:, head], counts[:, head], images=self.images, momentum=self.reassignment.momentum
                )
        return counts.float().mean()

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """A step of the optimizer; then nearly empty clusters are moved, which any checkpoint made after it holds."""
        optimizer.step(closure=optimizer_closure)
        rule, done = self.reassignment, self.trainer.global_step + 1
        if rule is None or done <= rule.after or done % rule.every:
            return
        seed: int = self.trainer.datamodule.seed  # type: ignore[attr-defined]
        pairs = torch.arange(self.heads.clusters // 2, device=self.device)
        for head, layer in enumerate(self.heads.layers):
            key = Key.of(seed, "reassignment", done, head, slots=pairs)
            noise = key.uniform(self.heads.inputs, -math.sqrt(3), math.sqrt(3))
            reassign(layer, self.sizes[head], noise, rule)  # type: ignore[arg-type]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say how to rebuild the encoder and the heads without this class."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[ENTRY] = heads_entry(self.heads, "heads.")

    # Monitors: the clusters of the first head over the training images; labels are read for this report alone.

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect the clusters of the training images."""
        clusters = self.heads(self.encoder(batch.images))[:, 0].argmax(1)
        self._assigned.append((clusters, batch.labels))

    def on_validation_epoch_end(self) -> None:
        """Log how many clusters are used, how large they are, and how well they agree with the classes."""
        clusters, labels = (gather_uneven(torch.cat(column)) for column in zip(*self._assigned, strict=True))
        self._assigned.clear()
        self._log_clusters(clusters, labels)

    def on_test_epoch_end(self) -> None:
        """The same, and what the features are worth."""
        super().on_test_epoch_end()
        features, labels = self.measured[0]
        self._log_clusters(cluster_confidence(features, self.heads)[0], labels)

    def _log_clusters(self, clusters: Tensor, labels: Tensor) -> None:
        values = cluster_metrics(clusters, labels, num_clusters=self.heads.clusters)
        known = {name: value for name, value in values.items() if not math.isnan(value)}
        self.log_dict(known, prog_bar=True, rank_zero_only=True)

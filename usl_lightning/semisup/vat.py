"""VAT: Virtual Adversarial Training (Miyato et al., 2018)."""

import math
from collections.abc import Callable
from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, above, at_least, whole, within
from usl_lightning.compute.batch_norm import kept_statistics
from usl_lightning.compute.device import full_precision
from usl_lightning.compute.optim import Optimization, ramp_up
from usl_lightning.data.batch import ImageSpec, SemiBatch
from usl_lightning.data.keys import Key
from usl_lightning.semisup.semisup_module import NetworkOptions, SemiSupervisedModule

Network = Callable[[Tensor], Tensor]


def divergence(target_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(target) ‖ softmax(logits)), a mean over n; no gradient flows into the target.

    Args:
        target_logits, logits: [n, classes].
    """
    return F.kl_div(
        logits.log_softmax(1), target_logits.detach().log_softmax(1), reduction="batchmean", log_target=True
    )


def entropy(logits: Tensor) -> Tensor:
    """The entropy of the predictions [n, classes], a mean over n."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()


def unit(perturbation: Tensor) -> Tensor:
    """Perturbations [n, …] scaled to the length 1 each; zeros stay zeros."""
    norms = perturbation.flatten(1).norm(dim=1).view(-1, *[1] * (perturbation.dim() - 1))
    return perturbation / norms.clamp_min(torch.finfo(norms.dtype).tiny)


def adversarial_perturbation(
    network: Network, logits: Tensor, start: Tensor, *, radius: float, step: float, power_steps: int
) -> Tensor:
    """The perturbation of a given length that changes the prediction most, by power iteration (§3.3).

    Each step takes the gradient of the divergence at ξ·d for the next direction d.

    Args:
        network: perturbation [n, c, h, w] -> logits [n, classes] of the perturbed images.
        logits: those of the images themselves.
        start: any directions, [n, c, h, w], none of them 0.
        radius: ε.
        step: ξ.
        power_steps: K; 0 leaves the directions as they are.

    Returns:
        [n, c, h, w], each of length ε.
    """
    direction = unit(start)
    for _ in range(power_steps):
        tried = (step * direction).requires_grad_()
        with torch.enable_grad():
            change = divergence(logits, network(tried))
        direction = unit(torch.autograd.grad(change, tried)[0])
    return radius * direction


def normal_numbers(key: Key, n: int) -> Tensor:
    """float32 [b, n], normally distributed (Box & Muller, 1958)."""
    u, v = key.uniform(2 * n).chunk(2, dim=1)
    return (-2 * (1 - u).log()).sqrt() * (2 * math.pi * v).cos()


class VAT(SemiSupervisedModule):
    """The prediction is to stay as it is under the small perturbation that would change it most; and to be sure.

    Perturbations are measured in normalised images. All passes over unlabelled images are of 32 bits, normalise with
    their batch alone, and leave the running statistics as they are.

    Args:
        image: channels, size, statistics and classes of the images; the command line takes it from the data.
        weak: view of all images.
        optimizer: how the weights are updated.
        radius: ε, the length of the perturbation; 6 for 32×32 pixels in three channels. It grows as the root of their
            number does.
        step: ξ, at which the power iteration takes its gradient. The published 1e-6 is lost in the rounding of 32 bits:
            directions are then next to random; 0.01 to 0.1 finds them.
        power_steps: K of the power iteration.
        unlabelled_weight: α, the final weight of the divergence.
        entropy_weight: the weight of the entropy of the predictions.
        ramp: share of the training over which α rises linearly from 0.
        network: the network, what it starts from, and a prior: see `SemiSupervisedModule`.
    """

    ranges: ClassVar[Ranges] = {
        "radius": at_least(0),
        "step": above(0),
        "power_steps": whole(0),
        "unlabelled_weight": at_least(0),
        "entropy_weight": at_least(0),
        "ramp": within(0, 1),
    }

    def __init__(
        self,
        image: ImageSpec,
        weak: nn.Module,
        optimizer: Optimization,
        radius: float = 6.0,
        step: float = 1e-6,
        power_steps: int = 1,
        unlabelled_weight: float = 1.0,
        entropy_weight: float = 0.06,
        ramp: float = 0.4,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.weak, self.radius, self.step, self.power_steps = weak, radius, step, power_steps
        self.unlabelled_weight, self.entropy_weight, self.ramp = unlabelled_weight, entropy_weight, ramp

    def training_step(self, batch: SemiBatch, batch_idx: int) -> Tensor:
        """The loss of one global batch (Eq. 8)."""
        labelled, unlabelled = batch
        x = full_precision(self.model(self.weak(labelled.images, labelled.key.fold("weak"))))
        views = self.weak(unlabelled.images, unlabelled.key.fold("weak"))
        with torch.autocast(views.device.type, enabled=False), kept_statistics(self.model):
            u, perturbed = self._predictions(views, unlabelled.key.fold("direction"))
        guess = self.guided(u, unlabelled.indices)
        supervised = F.cross_entropy(x, labelled.labels)
        smoothness, uncertainty = divergence(guess, perturbed), entropy(u)
        weight = self.unlabelled_weight * ramp_up(self.global_step, self.steps_of(self.ramp))
        loss = supervised + weight * smoothness + self.entropy_weight * uncertainty
        self.log_training(loss=loss, supervised_loss=supervised, smoothness_loss=smoothness, entropy_loss=uncertainty)
        self.log_guesses(guess, torch.ones_like(guess[:, 0]))
        return loss

    def _predictions(self, views: Tensor, key: Key) -> tuple[Tensor, Tensor]:
        """Logits of views [n, c, h, w] as they are, and adversarially perturbed."""
        std = self.model.encoder.std
        views = views.to(std.dtype)

        def network(perturbation: Tensor) -> Tensor:
            return full_precision(self.model(views + std * perturbation))

        logits = full_precision(self.model(views))
        start = normal_numbers(key, views[0].numel()).view_as(views).to(views.dtype)
        perturbation = adversarial_perturbation(
            network, logits.detach(), start, radius=self.radius, step=self.step, power_steps=self.power_steps
        )
        return logits, network(perturbation)

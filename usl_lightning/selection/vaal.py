"""VAAL: Variational Adversarial Active Learning (Sinha, Ebrahimi, Darrell, ICCV 2019)."""

import math
from collections.abc import Iterator
from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.progress import counted
from usl_lightning.base.ranges import Ranges, at_least, whole
from usl_lightning.data.images.source import ImageSource
from usl_lightning.data.keys import Key, permutation
from usl_lightning.data.modules import ImageData
from usl_lightning.features.parts import Place
from usl_lightning.labels import LabelIndex
from usl_lightning.selection.next_selector import Known, NextOptions, NextSelector

SIDE = 32
"""Of the images it learns from; the paper's network halves them four times."""

RATE = 5e-4


class VAE(nn.Module):
    """Images [b, c, 32, 32] -> their reconstruction, and mean and log-variance [b, latent] of what they came from.

    Args:
        channels: c.
        latent: dimensions of the code.
        width: channels of the first layer, which double three times; 128 in the published code.
    """

    def __init__(self, channels: int, latent: int, width: int) -> None:
        super().__init__()
        widths, side = [width * factor for factor in (1, 2, 4, 8)], SIDE // 16
        self.encoder = nn.Sequential(
            *(_halved(a, b) for a, b in zip([channels, *widths], widths, strict=False)), nn.Flatten()
        )
        self.mean, self.log_variance = (nn.Linear(widths[3] * side**2, latent) for _ in range(2))
        self.decoder = nn.Sequential(
            nn.Linear(latent, widths[3] * (2 * side) ** 2),
            nn.Unflatten(1, (widths[3], 2 * side, 2 * side)),
            *(_doubled(a, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True)),
            nn.ConvTranspose2d(width, channels, 1),
        )

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, mean, log-variance; `noise`, [b, latent], is normal."""
        mean, log_variance = self.encode(images)
        return self.decoder(mean + noise * (log_variance / 2).exp()), mean, log_variance

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance."""
        found = self.encoder(images)
        return self.mean(found), self.log_variance(found)


def _halved(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())


def _doubled(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())


def discriminator(latent: int) -> nn.Sequential:
    """Codes [b, latent] -> logits [b, 1] of being labelled."""
    return nn.Sequential(nn.Linear(latent, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 1))


def vae_loss(images: Tensor, rebuilt: Tensor, mean: Tensor, log_variance: Tensor, *, beta: float) -> Tensor:
    """Mean squared error, and β times the divergence from the standard normal, summed over all dimensions (eq. 1).

    Args:
        images, rebuilt: [b, c, h, w].
        mean, log_variance: of the codes, [b, latent].
        beta: β.
    """
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
    return F.mse_loss(rebuilt, images) + beta * divergence


def told_apart(labelled: Tensor, unlabelled: Tensor, *, taken_for: float) -> Tensor:
    """Binary cross-entropy of the discriminator's logits: all as labelled, or the unlabelled as what they are.

    Args:
        labelled, unlabelled: logits [b, 1].
        taken_for: 1, what the VAE wants the unlabelled to be taken for (eq. 2), or 0, what they are (eq. 3).
    """
    wanted = torch.full_like(unlabelled, taken_for)
    return F.binary_cross_entropy_with_logits(labelled, torch.ones_like(labelled)) + (
        F.binary_cross_entropy_with_logits(unlabelled, wanted)
    )


class VAAL(NextSelector):
    """The images that a discriminator of a VAE's codes finds least like the labelled ones (Algorithm 2).

    It is trained on the images alone, at 32 × 32, those that are kept against the others. The paper trains it beside
    the classifier, on which it has no influence; the classifier is not looked at.

    Args:
        init_from: checkpoint whose encoder gives the features, for the report alone.
        steps: of the discriminator, each with two of the VAE; in the published code 100 passes over CIFAR-10 in batches
            of 128, 39,062.
        batch_size: images of each kind.
        latent: dimensions of the code.
        width: of the VAE's first layer.
        beta: weight of the divergence.
        adversary: weight of the discriminator in the VAE's loss.
        options: the budget, what is kept, the classifier and the features: see `NextSelector`.
    """

    ranges: ClassVar[Ranges] = {
        "steps": whole(0),
        "batch_size": whole(1),
        "latent": whole(1),
        "width": whole(1),
        "beta": at_least(0),
        "adversary": at_least(0),
    }

    scores: Tensor
    _labelled: Tensor

    def __init__(
        self,
        steps: int = 39_062,
        batch_size: int = 128,
        latent: int = 32,
        width: int = 128,
        beta: float = 1.0,
        adversary: float = 1.0,
        **options: Unpack[NextOptions],
    ) -> None:
        super().__init__(**options)
        self.steps, self.batch_size, self.latent, self.width = steps, batch_size, latent, width
        self.beta, self.adversary = beta, adversary

    def kept(self, data: ImageData) -> LabelIndex | None:
        """See `NextSelector`."""
        index = super().kept(data)
        self._labelled = torch.tensor([] if index is None else index.indices, dtype=torch.int64)
        return index

    def evidence(self, data: ImageData) -> Tensor:
        """See `FeatureMethod`; and the networks are trained."""
        with torch.inference_mode(False), torch.enable_grad():
            self.learn(data.train_source, self._labelled, data.seed, Place(data.trainer).device)
        return super().evidence(data)

    def learn(self, source: ImageSource, labelled: Tensor, seed: int, device: torch.device) -> None:
        """Train both networks on some images, of which those at `labelled`, int64 [m], have labels; score all."""
        self._labelled = labelled
        free = torch.ones(len(source), dtype=torch.bool)
        free[labelled] = False
        self.scores = torch.zeros(len(source))
        if free.any():
            self.scores = self._trained(source, free.nonzero()[:, 0], seed, device)

    def pick(self, known: Known, count: int, seed: int) -> Tensor:
        """Those of the lowest scores."""
        return known.highest(-self.scores.to(known.features.device), count)

    def _trained(self, source: ImageSource, others: Tensor, seed: int, device: torch.device) -> Tensor:
        """Train both networks; the discriminator's logits [n] of all images."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vae, judge = VAE(source.channels, self.latent, self.width), discriminator(self.latent)
            for module in (*vae.modules(), *judge.modules()):
                if isinstance(module, nn.Linear | nn.Conv2d):  # of the transposed ones not, as published
                    nn.init.kaiming_normal_(module.weight)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        vae, judge = vae.to(device), judge.to(device)
        of_vae = torch.optim.Adam(vae.parameters(), lr=RATE)
        of_judge = torch.optim.Adam(judge.parameters(), lr=RATE)
        pools = [_drawn(rows, self.batch_size, seed, name) for rows, name in ((self._labelled, "own"), (others, "new"))]
        for step in counted(self.steps, "VAAL", "step"):
            for part in range(2):
                x, new = (_shown(source, next(pool)).to(device) for pool in pools)
                losses, codes = [], []
                for name, images in (("own", x), ("new", new)):
                    noise = _normal(
                        Key.of(seed, "VAAL", name, step, part, slots=torch.arange(len(images))), self.latent
                    )
                    rebuilt, mean, log_variance = vae(images, noise.to(device))
                    losses.append(vae_loss(images, rebuilt, mean, log_variance, beta=self.beta))
                    codes.append(mean)
                fooled = told_apart(judge(codes[0]), judge(codes[1]), taken_for=1.0)
                of_vae.zero_grad()
                torch.autograd.backward(losses[0] + losses[1] + self.adversary * fooled)
                of_vae.step()
            with torch.no_grad():
                codes = [vae.encode(images)[0] for images in (x, new)]
            of_judge.zero_grad()
            torch.autograd.backward(told_apart(judge(codes[0]), judge(codes[1]), taken_for=0.0))
            of_judge.step()
        vae.eval()
        with torch.no_grad():
            rows = torch.split(torch.arange(len(source)), 256)
            return torch.cat([judge(vae.encode(_shown(source, some).to(device))[0])[:, 0].cpu() for some in rows])


def _drawn(rows: Tensor, size: int, seed: int, name: str) -> Iterator[Tensor]:
    """Batches of rows [m] without end: in a random order, and again in another one."""
    number = 0
    while True:
        yield from torch.split(rows[permutation(len(rows), seed, "VAAL", name, number)], size)
        number += 1


def _shown(source: ImageSource, rows: Tensor) -> Tensor:
    """Images in [-1, 1], float [b, c, 32, 32]."""
    x = source.read(rows).float() / 127.5 - 1
    if x.shape[2:] == (SIDE, SIDE):
        return x
    return F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True)


def _normal(key: Key, n: int) -> Tensor:
    """Standard normal numbers [b, n] (Box and Muller, 1958)."""
    first, second = key.uniform(2 * n).chunk(2, dim=1)
    return (-2 * (1 - first).log()).sqrt() * (2 * math.pi * second).cos()

"""Prior pseudo-labels that guide a method of stage 3 (AS3L, Wen, Pizarro and Williams, 2022, section 3.4)."""

import logging
from typing import Any, Literal

import torch
from torch import Tensor, nn

from usl_lightning.compute.device import full_precision
from usl_lightning.compute.distributed import gather_uneven
from usl_lightning.data.keys import derive_seed
from usl_lightning.data.modules import LabelledData
from usl_lightning.evaluation.priors import prior_figures
from usl_lightning.features.prior_files import read_prior
from usl_lightning.models.guesses import posterior_logits
from usl_lightning.vectors.priors import Prior, Recipe

log = logging.getLogger(__name__)

After = Literal["drop", "update"]


class Guidance(nn.Module):
    """Adds a prior to predictions, for a while or made anew from time to time; which one is in force is in the state.

    Args:
        prior_file: see `SemiSupervisedModule`.
        steps: T, or a share of the training.
        after: what comes then.
    """

    clusters: Tensor
    tables: Tensor
    weights: Tensor
    made: Tensor

    def __init__(self, prior_file: str, steps: float, after: After) -> None:
        super().__init__()
        self.prior_file, self.after = prior_file, after
        self._steps, self._made, self._recipe = steps, -1, Recipe()
        self.register_buffer("clusters", torch.zeros(0, 1, dtype=torch.int32))
        self.register_buffer("tables", torch.zeros(1, 1, 1))
        self.register_buffer("weights", torch.zeros(0))
        self.register_buffer("made", torch.zeros((), dtype=torch.long))

    def begin(self, data: LabelledData, max_steps: int) -> None:
        """Read the file; a checkpoint being resumed is loaded after this and wins.

        Raises:
            UslError: no prior of these images and classes, or too few images for one to be made anew.
        """
        prior, self._recipe = read_prior(self.prior_file, data)
        rows, labels = (torch.tensor(column) for column in data.index.for_training())
        if self.after == "update":
            self._recipe.check(len(set(labels.tolist())), len(data.classes), len(data.train_source))
        self._take(prior)
        self._steps = round(self._steps * max_steps) if self._steps < 1 else round(self._steps)
        self._tell(prior, rows, data, min(self._steps, max_steps))

    def like(self, state: dict[str, Any], prefix: str) -> None:
        """Take the sizes of a state that is about to be loaded."""
        for name in ("clusters", "tables", "weights"):
            setattr(self, name, torch.empty_like(state[prefix + name], device=self.made.device))
        self._made = -1

    def forward(self, logits: Tensor, indices: Tensor, step: int) -> Tensor:
        """Logits [n, c] with the prior of the images int64 [n] at a step of the training, without gradient."""
        logits = logits.detach()
        if step >= self._steps and (self.after == "drop" or not self._steps):
            return logits
        return posterior_logits(logits, self._prior.rows(indices).to(logits.dtype))

    def is_due(self, step: int) -> bool:
        """Whether the prior is to be made anew before this step: every T steps, where it is updated."""
        if self.after == "drop" or not self._steps or step % self._steps or not step:
            return False
        if self._made < 0:  # asked once, so that no step waits for the device
            self._made = int(self.made)
        return step > self._made

    @torch.no_grad()
    def update(self, encoder: nn.Module, data: LabelledData, step: int) -> dict[str, float]:
        """Make the prior from the features of a network, of which each process computes its share.

        Args:
            encoder: the network, in evaluation mode.
            data: the images and the labels.
            step: of the training.

        Returns:
            `prior_figures` of it.
        """
        features = gather_uneven(torch.cat([full_precision(encoder(batch.images)) for batch in data.whole_set()]))
        rows, labels = (torch.tensor(column) for column in data.index.for_training())
        seed = derive_seed(data.seed, "prior", step)
        prior = self._recipe.prior(features, rows, labels, len(data.classes), seed=seed)
        self._take(prior)
        self.made.fill_(step)
        self._made = step
        return prior_figures(prior, rows, data.train_source.labels)

    @property
    def _prior(self) -> Prior:
        return Prior(self.clusters, self.tables, self.weights)

    def _take(self, prior: Prior) -> None:
        for name, value in prior._asdict().items():
            setattr(self, name, value.to(self.made.device, getattr(self, name).dtype))

    def _tell(self, prior: Prior, rows: Tensor, data: LabelledData, steps: int) -> None:
        figures = prior_figures(prior, rows, data.train_source.labels)
        told = ", ".join(f"{name.partition('_')[2].replace('_', ' ')} {value:.3f}" for name, value in figures.items())
        then = ", then they are made anew" if self.after == "update" and steps else ""
        log.info("prior pseudo-labels: %s; they guide %d steps%s", told, steps, then)

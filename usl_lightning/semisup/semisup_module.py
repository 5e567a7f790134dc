"""What every stage-3 method shares: a classifier, its moving average, and how they are tested."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, at_least
from usl_lightning.compute.batch_norm import kept_statistics
from usl_lightning.compute.device import full_precision
from usl_lightning.compute.distributed import gather, mean_over_processes
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.modules import ImageData
from usl_lightning.evaluation.classification import Scores, Tally, confident_counts, scores_table, write_scores
from usl_lightning.models.ema import EMA
from usl_lightning.models.encoder import ENTRY, Encoder, encoder_entry, init_encoder
from usl_lightning.models.heads import Classifier
from usl_lightning.models.method import Evaluation, Method
from usl_lightning.semisup.classes import check_classes, check_two, untestable
from usl_lightning.semisup.guidance import After, Guidance

GUESS_MOMENTUM = 0.99
"""Of the moving histogram of pseudo-labels: it tells of about the last 100 steps."""

LOGGED_CLASSES = 20
"""Of more classes the logs have quantiles: values one by one would fill them."""


def class_values(name: str, values: Tensor) -> dict[str, Tensor]:
    """Values [classes] as scalars: `name_0`, `name_1`, …; of more than 20, `name_min`, `name_median`, `name_max`.

    The median of an even number of values is the lower of the two in the middle.
    """
    if len(values) <= LOGGED_CLASSES:
        return {f"{name}_{i}": value for i, value in enumerate(values.unbind())}
    return {f"{name}_min": values.min(), f"{name}_median": values.median(), f"{name}_max": values.max()}


def guess_statistics(share: Tensor) -> dict[str, Tensor]:
    """The histogram of pseudo-labels as scalars: see `SemiSupervisedModule.log_guesses`.

    Args:
        share: [c], of all unlabelled images, those that count as each class; sums up to 1 at most.
    """
    histogram = share / share.sum().clamp_min(torch.finfo(share.dtype).tiny)
    entropy = torch.special.entr(histogram).sum() / math.log(len(share))
    return {"guess_balance": entropy, **class_values("guesses", histogram)}


class StartOptions(TypedDict, total=False):
    """Parameters that methods hand on to `SemiSupervisedModule`; those with a network of their own, these alone."""

    pretrained: bool
    init_from: str | None
    prior_file: str | None
    prior_steps: float
    prior_after: After


class NetworkOptions(StartOptions, total=False):
    """The others."""

    backbone: str
    ema_decay: float


class SemiSupervisedModule(Method):
    """Base of the methods that train a classifier from few labels and many images.

    A method writes its `training_step`; what is evaluated and handed on is the moving average `ema`. One that guesses
    pseudo-labels tells of them with `log_guesses`.

    Args:
        image: channels, size, statistics and classes of the images.
        optimizer: how the weights are updated.
        backbone: name of the network, see `usl_lightning.models.backbones`.
        pretrained: start from published weights of the backbone.
        ema_decay: of the moving average of the weights, which is evaluated; in [0, 1).
        init_from: checkpoint of an earlier stage whose encoder to start from.
        prior_file: prior pseudo-labels that guide the guesses: a file of `usl propagate`, or a matrix of class shares.
        prior_steps: T, how many steps they do; below 1, the share of the training that they do.
        prior_after: what comes then: `drop` goes on without; `update` makes them anew every T steps, in the way the
            file's were made, of the features of the moving average.

    Raises:
        UslError: fewer than two classes.

    Attributes:
        threshold: the least probability that counts as a pseudo-label in the reports of a validation; that of the
            method, if it has one.
        scores: what the last pass over the test images said of `ema` and `online`; empty if none has a label.
    """

    ranges: ClassVar[Ranges] = {"ema_decay": at_least(0, below=1), "prior_steps": at_least(0)}

    verbs = ("fit", "validate", "test", "predict")
    threshold: float = 0.95
    guess_share: Tensor

    def __init__(
        self,
        image: ImageSpec,
        optimizer: Optimization,
        *,
        backbone: str = "wrn_28_2",
        pretrained: bool = False,
        ema_decay: float = 0.999,
        init_from: str | None = None,
        prior_file: str | None = None,
        prior_steps: float = 6900.0,
        prior_after: After = "drop",
    ) -> None:
        super().__init__()
        check_two(image)
        self.model = Classifier(Encoder(backbone, image, pretrained=pretrained), image.num_classes)
        self.ema = EMA(self.model, ema_decay)
        self.image, self.optimization = image, optimizer
        self.pretrained, self.init_from = pretrained, init_from
        self.guidance = None if prior_file is None else Guidance(prior_file, prior_steps, prior_after)
        self.lowered: dict[str, int] = {}
        """Parameters that were used with less than was given."""
        self.register_buffer("guess_share", torch.zeros(image.num_classes))
        self.scores: dict[str, Scores] = {}
        self._begin_evaluation()

    def setup(self, stage: str) -> None:
        """Start from an earlier encoder and a prior; a checkpoint being resumed is loaded after this and wins."""
        if stage == "fit" and self.init_from is not None:
            init_encoder(self.model.encoder, self.init_from)
            self.ema.copy_from(self.model)
        if stage == "fit" and self.guidance is not None:
            self.guidance.begin(self.trainer.datamodule, self.trainer.max_steps)  # type: ignore[attr-defined]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take priors of any length: the images that are classified need not be those that were trained on."""
        if self.guidance is not None:
            self.guidance.like(checkpoint["state_dict"], "guidance.")

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """A step of the optimizer, then of the moving average: both are in any checkpoint made after it."""
        optimizer.step(closure=optimizer_closure)
        self.ema.update(self.model)

    def logits(self, labelled: Tensor, weak: Tensor, *strong: Tensor, joint: bool = True) -> list[Tensor]:
        """Logits [b, classes] of each group of views, of 32 bits or more.

        Args:
            labelled, weak, strong: views [b, c, h, w]; the groups may differ in b.
            joint: one forward pass for all. False: the weak ones in a pass of their own, without gradient.
        """
        views = [labelled, weak, *strong] if joint else [labelled, *strong]
        split = list(torch.split(full_precision(self.model(torch.cat(views))), [len(view) for view in views]))
        if not joint:
            with torch.no_grad():
                split.insert(1, full_precision(self.model(weak)))
        return split

    @torch.no_grad()
    def teacher_logits(self, views: Tensor) -> Tensor:
        """Logits [b, classes] of the moving average as a teacher: normalised with the batch, as the network itself is.

        At the beginning the running statistics are far off, and they are not the average's own.
        """
        with kept_statistics(self.ema.module):
            return full_precision(self.ema.module(views))

    def guided(self, logits: Tensor, indices: Tensor) -> Tensor:
        """What guesses are made of: these logits, with the prior of their images as long as there is one.

        Args:
            logits: [n, classes], of this process's part of the batch.
            indices: int64 [n], the images.

        Returns:
            [n, classes], without gradient; without a prior the same values, bit for bit.
        """
        if self.guidance is None:
            return logits.detach()
        if self.guidance.is_due(self.global_step):
            self._update_prior(self.guidance)
        return self.guidance(logits, indices, self.global_step)  # type: ignore[no-any-return]

    def _update_prior(self, guidance: Guidance) -> None:
        """A pass over all images amid the step."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        figures = guidance.update(self.ema.module.get_submodule("encoder"), data, self.global_step)
        for logger in self.loggers if self.trainer.is_global_zero else ():
            logger.log_metrics(figures, self.global_step)

    def steps_of(self, share: float) -> int:
        """Steps that a share of the training is, from 0 to 1."""
        return round(share * self.trainer.max_steps) if share else 0

    def log_training(self, **values: Tensor) -> None:
        """Log scalars of a training step, averaged over the processes."""
        self.log_dict(mean_over_processes(**values), prog_bar=True)

    def log_guesses(self, predictions: Tensor, mask: Tensor) -> None:
        """Log which share of the unlabelled images teaches (`mask_rate`), and as what; called in a training step.

        At the steps that are logged follow the classes' shares of late, as `guesses_0`, `guesses_1`, … (see
        `class_values`), and `guess_balance`: the entropy of the shares, 1 if all classes are guessed alike, 0 if only
        one is.

        Args:
            predictions: [n, classes], logits or probabilities whose largest is the pseudo-label.
            mask: [n], bool or 0 … 1: whether, or how much, each of them counts.
        """
        share = torch.zeros_like(self.guess_share, dtype=torch.float32)
        share.scatter_add_(0, predictions.detach().argmax(1), mask.float() / len(mask))
        share = mean_over_processes(share=share)["share"]
        self.guess_share.lerp_(share.to(self.guess_share.dtype), 1 - GUESS_MOMENTUM)
        self.log_dict({"mask_rate": share.sum()}, prog_bar=True)
        if self._is_logged():
            self.log_dict(guess_statistics(self.guess_share))

    def log_classes(self, name: str, values: Tensor) -> None:
        """Log a value of each class as `name_0`, `name_1`, … (see `class_values`) at the steps that are logged.

        Args:
            values: [classes], the same on every process.
        """
        if self._is_logged():
            self.log_dict(class_values(name, values.detach()))

    def _is_logged(self) -> bool:
        """Whether the step that is being taken goes to the loggers."""
        try:
            trainer = self.trainer
        except RuntimeError:
            return False  # there is none
        return (trainer.global_step + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say how to rebuild the encoders without this class."""
        checkpoint[ENTRY] = encoder_entry(self.model.encoder, online="model.encoder.", ema="ema.module.encoder.")

    # Evaluation: the moving average first, the online network beside it.

    def _begin_evaluation(self) -> None:
        self._tallies: list[Tally] = []
        self._confident: Tensor | None = None

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count what both networks make of images of the split `test`; of others, unlabelled, what would be guessed.

        Their labels, if the data set has any, are for the report alone.
        """
        if batch.split != "test":
            counts = confident_counts(full_precision(self.model(batch.images)), batch.labels, threshold=self.threshold)
            self._confident = counts if self._confident is None else self._confident + counts
            return
        if not self._tallies:
            self._tallies = [Tally(len(self.guess_share), batch.images.device) for _ in range(2)]
        for tally, network in zip(self._tallies, (self.ema.module, self.model), strict=True):
            tally.update(network(batch.images), batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Log accuracies and calibration errors, and how many guesses are confident and how many of them right."""
        tallies = self._tallies or [Tally(len(self.guess_share), self.device) for _ in range(2)]
        both = {name: tally.scores() for name, tally in zip(("ema", "online"), tallies, strict=True)}
        self.scores = {name: scores for name, scores in both.items() if scores is not None}
        for name, scores in self.scores.items():
            suffix = "" if name == "ema" else "_online"
            self.log(f"test_accuracy{suffix}", scores.accuracy, prog_bar=not suffix, rank_zero_only=True)
            self.log(f"test_calibration_error{suffix}", scores.calibration_error, rank_zero_only=True)
        counts = self.guess_share.new_zeros(4, dtype=torch.long) if self._confident is None else self._confident
        images, confident, known, right = gather(counts[None]).sum(0).tolist()
        if images:
            self.log("pseudo_label_rate", confident / images, rank_zero_only=True)
        if known:
            self.log("pseudo_label_accuracy", right / known, rank_zero_only=True)
        self._begin_evaluation()

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Class probabilities of the moving average, [b, classes]."""
        return full_precision(self.ema.module(batch.images)).softmax(1)

    def check_classes(self, data: ImageData, checkpoint: Path) -> None:
        """A classifier is not looked at with other classes than it knows."""
        check_classes(self.image.classes, data, checkpoint)

    def untestable(self, data: ImageData) -> str | None:
        """A classifier is measured on test images."""
        return untestable(data)

    def evaluate(self, metrics: Mapping[str, Any], data: ImageData, *, closely: bool) -> Evaluation:
        """The scores of both networks.

        Raises:
            UslError: asked `closely`, and no test image has a label.
        """
        scores, classes = self.scores, self.image.classes
        if not scores:
            if closely:
                raise UslError(f"no test image of {data.dataset} has a label to measure by; expected some that do")
            return Evaluation({**metrics, **self.lowered})

        def write(path: Path, about: Mapping[str, Any]) -> None:
            write_scores(path, about, scores, classes)

        table = scores_table({"EMA": scores["ema"], "online": scores["online"]}, classes)
        return Evaluation({**metrics, **self.lowered}, f"{table}\n", write)

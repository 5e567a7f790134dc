"""What the classifiers share that are learned at once from features and few labels; and how good they are."""

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, whole
from usl_lightning.compute.device import full_precision
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.keys import permutation
from usl_lightning.data.modules import ImageData, LabelledData
from usl_lightning.data.sampling import StepLoader
from usl_lightning.evaluation.classification import Scores, Tally, scores_table, write_scores
from usl_lightning.evaluation.estimate import FEWEST, nearest_share
from usl_lightning.evaluation.folds import stratified_folds
from usl_lightning.evaluation.told import PREDICTIONS, HeldOut, Told
from usl_lightning.evaluation.trial import Judgement, Trial
from usl_lightning.features.parts import Place
from usl_lightning.features.published import source_features
from usl_lightning.features.source import FeatureMethod, FeatureOptions, SourceOptions
from usl_lightning.features.votes import NEIGHBORS, complete_state, states_of_heads
from usl_lightning.models.encoder import ENTRY, encoder_entry, encoder_like
from usl_lightning.models.method import Evaluation
from usl_lightning.semisup.classes import check_classes, check_two, untestable
from usl_lightning.vectors.distances import unit_rows
from usl_lightning.vectors.votes import Learner, Votes

log = logging.getLogger(__name__)

MOST = 1000
"""Labels that folds are made of, drawn at random where there are more: that tells enough of the settings."""

JUDGED = "usl_judged"
"""Key of a checkpoint under which `Judgement` is stored, as plain data."""


class FewLabelsOptions(FeatureOptions, total=False):
    """Parameters that methods hand on to `FewLabels`."""

    folds: int
    repeats: int


class FewLabels(FeatureMethod):
    """Base of the classifiers that are learned at once, in seconds, from features and few labels.

    A method says which learners it has. Settings and temperatures are chosen by cross-validation over the labels, which
    also tells how good the classifier is: see `estimate_accuracy`.

    Args:
        image: channels, size, statistics and classes of the images.
        folds: parts that the labels are held out in; each label by itself if there are fewer.
        repeats: how often they are parted anew.
        source: where the features come from: see `FeatureMethod`.

    Raises:
        UslError: fewer than two classes.

    Attributes:
        usual: of each learner, the temperature before any label is seen.
        scores: what the last pass over the test images said; None if none has a label.
        told: what was said of the images that were learned from; None before that.
        held_out: what was said of the labelled ones while they were held out; None before that.
        lowered: parameters that were used with less than was given, as there are so few images.
    """

    ranges: ClassVar[Ranges] = {"folds": whole(2), "repeats": whole(1)}

    verbs = ("fit", "validate", "test", "predict")
    by_steps = False
    usual: tuple[float, ...]
    votes: Votes

    def __init__(self, image: ImageSpec, folds: int = 10, repeats: int = 3, **source: Unpack[SourceOptions]) -> None:
        super().__init__(image=image, **source)
        check_two(image)
        self.folds, self.repeats = folds, repeats
        self.judgement: Judgement | None = None
        self.lowered: dict[str, int] = {}
        self.scores: Scores | None = None
        self.held_out: HeldOut | None = None
        self.told: Told | None = None

    @abstractmethod
    def learners(self, features: Tensor, rows: Tensor, labels: Tensor) -> tuple[Learner, ...]:
        """Those of the method, for unit features [n, d] whose `rows` [m] have these labels [m]."""

    @abstractmethod
    def heads_like(self, states: Sequence[dict[str, Tensor]]) -> Sequence[nn.Module]:
        """Heads of the sizes of these state dicts, which are yet to be loaded."""

    # Learning.

    def learn(self, features: Tensor, data: LabelledData) -> None:
        """Learn from all labels, and judge what came of it.

        Args:
            features: [n, d], of all images.
            data: has the labels.

        Raises:
            UslError: features without a direction, or labels of one class alone.
        """
        rows, labels = _labelled(data)
        k, most = getattr(self, "k", 0), max(1, len(features) - 1)
        if k > most:
            log.info("propagation: k = %d instead of %d, for %d images", most, k, len(features))
            self.lowered["k"] = most
        if self.folds > len(rows):
            log.info("cross-validation: folds = %d instead of %d, of as many labels", len(rows), self.folds)
            self.lowered["folds"] = len(rows)
        chosen = ~torch.isin(rows, torch.tensor(data.index.added, dtype=torch.int64))
        logits = self.learn_from(features, rows, labels, seed=data.seed, chosen=chosen)
        self.told = Told.of(logits.softmax(1), data.classes, self.held_out)
        if self.judgement is not None and self.judgement.estimate is None:
            log.warning(
                "%s: too few labels to tell how good the classifier is; expected at least %d whose class has another",
                data.labels, FEWEST,
            )  # fmt: skip

    def learn_from(
        self, features: Tensor, rows: Tensor, labels: Tensor, *, seed: int, chosen: Tensor | None = None
    ) -> Tensor:
        """The same, from the labels themselves.

        Args:
            features: [n, d], of all images.
            rows: int64 [m], those that are labelled.
            labels: int64 [m], of two classes or more.
            seed: of the folds.
            chosen: bool [m], which of them stand for others in the estimate, see `LabelIndex.added`; None: all.

        Returns:
            Logits [n, c] of all images.
        """
        x = unit_rows(features).float()
        rows, labels = rows.to(x.device), labels.to(x.device)
        learners = self.learners(x, rows, labels)
        few = permutation(len(rows), seed, "few labels").to(x.device)[:MOST].sort().values
        asked = learners if len(few) == len(rows) else self.learners(x, rows[few], labels[few])
        folds = stratified_folds(labels[few], self.folds, self.repeats, seed=seed)
        trial = Trial(asked, labels[few], folds, self.usual)
        heads = [learner.head(found.setting) for learner, found in zip(learners, trial.found, strict=True)]
        self.votes = Votes(heads).to(x.device)
        self.votes.temperatures.copy_(torch.tensor([found.temperature for found in trial.found]))
        self.votes.temperature.fill_(trial.mixed.temperature * trial.softer)
        self.votes.weights.copy_(trial.weights)
        logits = self.votes.mixed([learner.scores(head) for learner, head in zip(learners, heads, strict=True)])
        unlabelled = torch.ones(len(x), dtype=torch.bool, device=x.device)
        unlabelled[rows] = False
        confidences = (logits[unlabelled] * trial.softer).softmax(1).amax(1)
        share = nearest_share(x, rows[few], None if chosen is None else chosen.to(x.device)[few])
        self.judgement = trial.judge(confidences, share, len(rows))
        self.held_out = HeldOut(rows[few].cpu(), labels[few].cpu(), trial.held_out().cpu())
        return logits

    # What a checkpoint has.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say how to rebuild the network and what the labels said."""
        if self.needs_network:
            checkpoint[ENTRY] = encoder_entry(self.encoder, online="encoder.")
            checkpoint[ENTRY]["spec"]["classes"] = list(self.image.classes)
        else:
            checkpoint[ENTRY] = {"spec": {}, "prefixes": {}}
        checkpoint[NEIGHBORS] = getattr(self, "k", 0)
        assert self.judgement is not None
        checkpoint[JUDGED] = asdict(self.judgement)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build what the weights are to be loaded into: their sizes are those of the images and labels of the fit."""
        state, device = complete_state(checkpoint["state_dict"]), self.device
        checkpoint["state_dict"] = state
        self.encoder = encoder_like(checkpoint[ENTRY]["spec"]).eval().to(device)
        self.votes = Votes(self.heads_like(states_of_heads(state))).to(device)
        self.judgement = Judgement.of(checkpoint[JUDGED])

    def write_outputs(self, folder: Path) -> None:
        """Write what was said of the images that were learned from, `predictions.npz`, which the report shows."""
        if self.told is not None:
            self.told.write(folder / f"{PREDICTIONS}.npz")

    # Looking at images.

    def forward(self, images: Tensor) -> Tensor:
        """Logits [b, c] of images [b, c, h, w]."""
        features = full_precision(self.encoder(images))
        logits: Tensor = self.votes(F.normalize(features, dim=1))
        return logits

    def test_batches(self, data: ImageData) -> StepLoader[ImageData]:
        """One of all test images: their features are kept, as those that are learned from."""
        return StepLoader(lambda _: data, stop=1)

    def test_step(self, data: ImageData, batch_idx: int) -> None:
        """Count what the classifier makes of this process's share of the test images."""
        place, source = Place(data.trainer), data.source("test")
        features = source_features(
            self.encoder, self.sees(source), place, workers=data.workers, cache=self.cache, sharded=True
        )
        share = place.share(len(source))
        labels = source.labels[share.start : share.stop].to(place.device)
        tally = Tally(self.image.num_classes, place.device)
        size = data.eval_batch_size
        for few, known in zip(torch.split(features, size), torch.split(labels, size), strict=True):
            tally.update(self.votes(F.normalize(few, dim=1)), known)
        self.scores = tally.scores()

    def on_test_epoch_end(self) -> None:
        """Log the accuracy and the calibration error."""
        if self.scores is not None:
            self.log("test_accuracy", self.scores.accuracy, rank_zero_only=True)
            self.log("test_calibration_error", self.scores.calibration_error, rank_zero_only=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Class probabilities, [b, classes]."""
        probabilities: Tensor = self(batch.images).softmax(1)
        return probabilities

    def check_classes(self, data: ImageData, checkpoint: Path) -> None:
        """A classifier is not looked at with other classes than it knows."""
        check_classes(self.image.classes, data, checkpoint)

    def untestable(self, data: ImageData) -> str | None:
        """A classifier is measured on test images."""
        return untestable(data)

    def evaluate(self, metrics: Mapping[str, Any], data: ImageData, *, closely: bool) -> Evaluation:
        """The scores on test images, if there are any with labels, and what the labels say.

        Raises:
            UslError: asked `closely`, and no test image has a label.
        """
        scores, classes, judgement = self.scores, self.image.classes, self.judgement
        if scores is None and closely:
            raise UslError(f"no test image of {data.dataset} has a label to measure by; expected some that do")
        assert judgement is not None

        def write(path: Path, about: Mapping[str, Any]) -> None:
            told = {**about, "judged_by_labels": asdict(judgement)}
            write_scores(path, told, {} if scores is None else {"classifier": scores}, classes)

        table = "" if scores is None else f"{scores_table({'classifier': scores}, classes)}\n"
        return Evaluation({**metrics, **self.lowered, **judgement.metrics()}, table, write)


def _labelled(data: LabelledData) -> tuple[Tensor, Tensor]:
    """Positions and labels of the images that a person has labelled; those that follow one are not among them.

    Raises:
        UslError: some have no label yet, or all have the same.
    """
    index = data.index
    index.for_training()  # refuses what cannot be learned from
    known = [(i, label) for i, label in zip(index.indices, index.labels, strict=True) if label is not None]
    labels = sorted({label for _, label in known})
    if len(labels) < 2:
        where = data.labels or "data.oracle_labels"
        raise UslError(
            f"{where}: all {len(known)} labels are '{data.classes[labels[0]]}'; expected images of at least 2 classes"
        )
    return torch.tensor([i for i, _ in known]), torch.tensor([label for _, label in known])

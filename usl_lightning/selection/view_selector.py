"""What selectors share that pick the next images by what a classifier makes of several views of each."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Unpack

from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, whole
from usl_lightning.data.modules import ImageData
from usl_lightning.data.views import Weak
from usl_lightning.features.parts import Place
from usl_lightning.features.published import source_features
from usl_lightning.labels import LabelIndex
from usl_lightning.selection.next_selector import NextOptions, NextSelector


class ViewOptions(NextOptions, total=False):
    """Parameters that methods hand on to `ViewSelector`."""

    view: nn.Module | None


class ViewSelector(NextSelector):
    """Base of the selectors that look at views of the images, not at their features alone.

    Args:
        view: of an image; None: `Weak`, the weak view of stage 3.
        views: of each image.
        options: the budget, what is kept, the classifier and the features: see `NextSelector`.
    """

    ranges: ClassVar[Ranges] = {"views": whole(1)}

    scores: Tensor

    def __init__(self, view: nn.Module | None = None, views: int = 2, **options: Unpack[NextOptions]) -> None:
        super().__init__(**options)
        self.view, self.views = view or Weak(), views

    @abstractmethod
    def score(self, views: Iterator[Tensor]) -> Tensor:
        """How much each image would help, [n], by its probabilities [n, c] in each view."""

    def kept(self, data: ImageData) -> LabelIndex | None:
        """See `NextSelector`.

        Raises:
            UslError: see `NextSelector`; the features are those of a file, which has none of views.
        """
        if self.features is not None:
            raise UslError(
                f"model.features: {type(self).__name__} looks at views of the images, of which a file has no features; "
                "give model.init_from or model.backbone"
            )
        return super().kept(data)

    def evidence(self, data: ImageData) -> Tensor:
        """See `FeatureMethod`; and the views are looked at."""
        place = Place(data.trainer)
        votes, seen = self._votes.to(place.device), self.sees(data.train_source)

        def probabilities() -> Iterator[Tensor]:
            for number in range(self.views):
                view = lambda batch, n=number: self.view(batch.images, batch.key.fold("view", data.seed, n))  # noqa: E731
                x = source_features(self.encoder, seen, place, workers=data.workers, view=view)
                yield votes(nn.functional.normalize(x, dim=1) if votes.unit else x).softmax(1)

        self.scores = self.score(probabilities())
        return super().evidence(data)

"""A trained classifier of a run, from Python."""

import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pytorch_lightning import LightningModule
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.images.files import open_files
from usl_lightning.data.images.folder_source import open_images
from usl_lightning.data.images.shards import is_place
from usl_lightning.data.images.source import ImageSource
from usl_lightning.data.keys import Key
from usl_lightning.models.encoder import read_checkpoint, stored_image
from usl_lightning.stage.parser import StageCLI
from usl_lightning.stage.words import StageCommand

BATCH = 64

CHANNELS = (1, 3, 4)
"""Of an array: grey, colour, colour with alpha, which is laid on the background of the training."""

Picture = str | Path | Image.Image | Tensor | NDArray[np.uint8]
"""A file; or an image: of Pillow, uint8 [h, w] or [h, w, channels] of NumPy, uint8 [channels, h, w] of PyTorch."""

EXPECTED = (
    "expected a file, or an image: Pillow's, uint8 [h, w] or [h, w, 1, 3 or 4] of NumPy, uint8 [1, 3 or 4, h, w] of "
    "PyTorch"
)


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of n images.

    Attributes:
        labels: the most probable class of each, by name.
        probabilities: float32 [n, classes].
        classes: their names.
        files: the images, where a folder or files were given.
    """

    labels: tuple[str, ...]
    probabilities: Tensor
    classes: tuple[str, ...]
    files: tuple[str, ...] | None = None


class LoadedClassifier:
    """The classifier that a stage has trained, in this process.

    Args:
        model: of stage 3, with its weights.
        background: what transparent pixels are laid on.

    Attributes:
        classes: names, in the order of the probabilities.
    """

    def __init__(self, model: LightningModule, background: str) -> None:
        self._model, self._background = model.eval(), background
        self._image: ImageSpec = model.image  # type: ignore[assignment]
        self.classes: tuple[str, ...] = self._image.classes

    @classmethod
    def of(cls, words: Sequence[str]) -> Self:
        """Load the classifier that `usl predict WORDS` would take.

        Raises:
            UslError: there is none.
        """
        stage = StageCommand.parse("predict", words)
        stage.check()
        random = torch.random.get_rng_state(), np.random.get_state()
        cli = StageCLI(stage, build=False)
        checkpoint = stage.checkpoint()
        cli.build(stored_image(checkpoint))
        if "predict" not in cli.model.verbs:
            raise UslError(
                f"{stage.run_dir}: {type(cli.model).__name__} is no classifier; expected a stage that learned from "
                "labels"
            )
        stored = read_checkpoint(checkpoint)
        cli.model.on_load_checkpoint(stored)
        cli.model.load_state_dict(stored["state_dict"])
        torch.random.set_rng_state(random[0])  # making networks draws weights, which were replaced
        np.random.set_state(random[1])
        return cls(cli.model, cli.config.data.init_args.background)

    def predict(self, images: Picture | Sequence[Picture] | NDArray[np.uint8]) -> Prediction:
        """The class of each image, brought to the size that the classifier learned from.

        Args:
            images: a folder, whose images are taken in the order of their paths; a file; an image; several files or
                images in a list, or in an array uint8 [n, h, w] or [n, h, w, channels] of NumPy or uint8
                [n, channels, h, w] of PyTorch.

        Raises:
            UslError: no image, one that cannot be read, or what is none.
        """
        with ExitStack() as stack:
            source, files = self._opened(images, stack)
            source = self._model.sees(source)  # type: ignore[operator]
            parts = []
            for rows in torch.split(torch.arange(len(source)), BATCH):
                batch = Batch(source.read(rows), torch.full_like(rows, -1), rows, Key.of("predict", slots=rows), "all")
                with torch.inference_mode():
                    parts.append(self._model.predict_step(batch, 0).float())
        probabilities = torch.cat(parts)
        labels = tuple(self.classes[number] for number in probabilities.argmax(1).tolist())
        return Prediction(labels, probabilities.clone(), self.classes, files)

    def _opened(self, images: Any, stack: ExitStack) -> tuple[ImageSource, tuple[str, ...] | None]:
        """The images as a source, and their files' names where they are files."""
        wanted: dict[str, Any] = {
            "image_size": self._image.height if self._image.height == self._image.width else None,
            "channels": self._image.channels,
            "background": self._background,
        }
        if isinstance(images, str | Path) and is_place(os.path.expanduser(images)):
            source = open_images(str(images), on_error="fail", **wanted)
            return source, None if source.files is None else tuple(source.files)
        several = _listed(images)
        if several and all(isinstance(each, str | Path) for each in several):
            return open_files(several, **wanted), tuple(map(str, several))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="usl-images-")))
        paths = []
        for number, image in enumerate(several):
            paths.append(Path(image) if isinstance(image, str | Path) else folder / f"{number:08}.png")
            if not isinstance(image, str | Path):  # so all is as if it had been a file
                _picture(image, number).save(paths[-1], compress_level=1)
        return open_files(paths, **wanted), None


def _listed(images: Any) -> list[Any]:
    """Images one by one.

    Raises:
        UslError: there is none to be taken from it, or an array that may be one image or several.
    """
    if isinstance(images, str | Path | Image.Image):
        return [images]
    if isinstance(images, Tensor):
        return list(images if images.dim() == 4 else images[None])
    if isinstance(images, np.ndarray):
        if images.ndim == 3 and images.shape[2] not in CHANNELS and images.shape[0] in CHANNELS:
            raise UslError(
                f"images: {list(images.shape)} may be one image or several; expected [h, w, 3] of one, [n, h, w, 3] of "
                "several, or a list of them"
            )
        several = images.ndim == 4 or (images.ndim == 3 and images.shape[2] not in CHANNELS)
        return list(images if several else images[None])
    if isinstance(images, Iterable) and not isinstance(images, bytes):
        return list(images)
    raise UslError(f"images: {type(images).__name__}; {EXPECTED}")


def _picture(image: Any, number: int) -> Image.Image:
    """An image as Pillow's, in a mode that PNG has, turned as its orientation says.

    Raises:
        UslError: it is none.
    """
    if isinstance(image, Image.Image):
        return _plain(ImageOps.exif_transpose(image), number)
    if not isinstance(image, Tensor | np.ndarray):
        raise UslError(f"image {number}: {type(image).__name__}; {EXPECTED}")
    if isinstance(image, Tensor):
        image = (image.permute(1, 2, 0) if image.dim() == 3 else image).cpu()
    array = np.asarray(image)
    flat = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in CHANNELS)
    if array.dtype != np.uint8 or not flat or array.size == 0:
        raise UslError(f"image {number}: {array.dtype} {list(array.shape)}; {EXPECTED}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(array))


def _plain(image: Image.Image, number: int) -> Image.Image:
    """An image of Pillow in a mode that PNG has; what files of such a mode would be, see `decode`."""
    if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        return image
    if image.mode.startswith("I;16"):  # in another order of its bytes, which Pillow itself would cut off at 255
        return Image.fromarray(np.asarray(image).astype(np.uint16))
    if image.mode == "I" and 0 <= image.getextrema()[0] <= image.getextrema()[1] < 1 << 16:  # type: ignore[operator]
        return Image.fromarray(np.asarray(image).astype(np.uint16))
    if image.mode in ("F", "I", "LAB"):
        raise UslError(f"image {number}: of mode {image.mode}, whose range is not known; expected RGB or grey")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")

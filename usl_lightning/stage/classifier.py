"""A trained classifier of a run, from Python."""

import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning import LightningModule
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.images.files import open_files
from usl_lightning.data.images.folder_source import open_images
from usl_lightning.data.images.source import ImageSource
from usl_lightning.data.keys import Key
from usl_lightning.models.encoder import read_checkpoint, stored_image
from usl_lightning.stage.parser import StageCLI
from usl_lightning.stage.words import StageCommand

BATCH = 64

Picture = str | Path | Image.Image | Tensor | NDArray[np.uint8]
"""A file; or an image: of Pillow, uint8 [h, w] or [h, w, 3] of NumPy, uint8 [1 or 3, h, w] of PyTorch."""


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
                images in a list, or in an array uint8 [n, h, w, 3] of NumPy or uint8 [n, c, h, w] of PyTorch.

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
        if isinstance(images, str | Path) and os.path.isdir(os.path.expanduser(images)):
            source = open_images(str(images), on_error="fail", **wanted)
            return source, None if source.files is None else tuple(source.files)
        several = _listed(images)
        if several and all(isinstance(each, str | Path) for each in several):
            return open_files(several, **wanted), tuple(map(str, several))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="usl-images-")))
        paths = [folder / f"{number:08}.png" for number in range(len(several))]
        for number, (image, path) in enumerate(zip(several, paths, strict=True)):
            _picture(image, number).save(path, compress_level=1)  # so all is as if it had been a file
        return open_files(paths, **wanted), None


def _listed(images: Any) -> list[Any]:
    """Images one by one."""
    if isinstance(images, str | Path | Image.Image):
        return [images]
    if isinstance(images, Tensor):
        return list(images if images.dim() == 4 else images[None])
    if isinstance(images, np.ndarray):
        whole = images.ndim == 4 or (images.ndim == 3 and images.shape[2] != 3)
        return list(images if whole else images[None])
    return list(images)


def _picture(image: Any, number: int) -> Image.Image:
    """An image as Pillow's.

    Raises:
        UslError: it is none.
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Tensor):
        image = (image.permute(1, 2, 0) if image.dim() == 3 else image).cpu()
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise UslError(
            f"image {number}: {array.dtype} {list(array.shape)}; expected uint8 [h, w] or [h, w, 3] (PyTorch: "
            "[1 or 3, h, w])"
        )
    return Image.fromarray(np.ascontiguousarray(array))

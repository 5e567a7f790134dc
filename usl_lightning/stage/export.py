"""`usl export`: a trained classifier as one file that runs without this package."""

import importlib.util
import io
import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from usl_lightning.base.atomic import atomic_path, check_replaceable
from usl_lightning.base.errors import UslError
from usl_lightning.base.files import write_json
from usl_lightning.base.version import __version__
from usl_lightning.models.heads import Classifier, load_classifier

SUFFIXES = (".onnx", ".pt2")
"""ONNX, and PyTorch's ExportedProgram (`torch.export.load`)."""

MADE_BY = "usl-lightning"

PIXELS = ("uint8", "float32")


class Deployed(nn.Module):
    """Images [b, c, h, w], uint8 or floats in [0, 1] -> class probabilities [b, classes], float32."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier.eval()

    def forward(self, images: Tensor) -> Tensor:
        """The normalisation is the encoder's."""
        return self.classifier(images).float().softmax(1)


def export_classifier(checkpoint: Path, out: Path, *, pixels: str = "uint8") -> None:
    """Write the moving average of a stage-3 checkpoint with its preprocessing, for batches of any size.

    Beside it goes `OUT.json`: class names, and what images are expected. The same is inside the file: as ONNX metadata,
    or as the extra file `about.json` of an ExportedProgram.

    Args:
        checkpoint: of `usl fit`.
        out: its suffix tells the format, see `SUFFIXES`.
        pixels: type of the images it will take: uint8 from 0 to 255, or float32 from 0 to 1.

    Raises:
        UslError: another suffix, no classifier in the checkpoint, a package is missing, or the file cannot be written.
    """
    if out.suffix not in SUFFIXES:
        raise UslError(f"--out {out}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if pixels not in PIXELS:
        raise UslError(f"--pixels {pixels}: expected {' or '.join(PIXELS)}")
    described = out.with_name(f"{out.name}.json")
    check_replaceable(described, lambda start: MADE_BY.encode() in start, "--out")
    if not os.path.lexists(described):  # then what is there was not exported
        check_replaceable(out, lambda _: False, "--out")
    if out.suffix == ".onnx":
        _check_onnx()
    classifier = load_classifier(checkpoint)
    image = classifier.encoder.image
    about = _about(classifier, pixels)
    shape, dtype = (2, image.channels, image.height, image.width), getattr(torch, pixels)
    write = _write_onnx if out.suffix == ".onnx" else _write_program
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters, about their own insides
        with atomic_path(out) as temporary:
            write(Deployed(classifier), torch.zeros(shape, dtype=dtype), about, temporary)
            write_json(described, about)  # first: by it the file is known as this command's, should it be killed


def _about(classifier: Classifier, pixels: str) -> dict[str, Any]:
    image = classifier.encoder.image
    return {
        "made_by": f"{MADE_BY} {__version__}",
        "backbone": classifier.encoder.backbone,
        "classes": list(image.classes),
        "input": {
            "name": "images",
            "dtype": pixels,
            "range": [0, 255] if pixels == "uint8" else [0, 1],
            "shape": ["batch", image.channels, image.height, image.width],
            "channels": "grey" if image.channels == 1 else "RGB",
            "from_other_sizes": "the largest centred square, resized bilinearly with antialiasing",
        },
        "output": {"name": "probabilities", "dtype": "float32", "shape": ["batch", image.num_classes]},
    }


def _check_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UslError(
            f"usl export: ONNX needs {' and '.join(missing)}; pip install {' '.join(missing)}, or give a name in .pt2"
        )


def _write_program(model: nn.Module, example: Tensor, about: dict[str, Any], out: Path) -> None:
    program = torch.export.export(model, (example,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
    content = io.BytesIO()  # given a path, it insists on the suffix
    torch.export.save(program, content, extra_files={"about.json": json.dumps(about)})
    out.write_bytes(content.getvalue())


def _write_onnx(model: nn.Module, example: Tensor, about: dict[str, Any], out: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        model,
        (example,),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update({key: json.dumps(value) for key, value in about.items()})
    program.save(str(out), external_data=False)

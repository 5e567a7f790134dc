"""Published checkpoints of other programs as encoders: their names key by key, their statistics."""

import argparse
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from usl_lightning.base.arrays import check_records
from usl_lightning.base.atomic import check_file
from usl_lightning.base.errors import UslError, did_you_mean, printable
from usl_lightning.data.batch import ImageSpec
from usl_lightning.models.backbones import OURS, create_backbone
from usl_lightning.models.encoder import ENTRY, Encoder, encoder_entry
from usl_lightning.models.published import not_weights

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
UNIT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Kind:
    """How the files of one program are laid out.

    Attributes:
        what: whose they are.
        where: entries of the file that hold the weights, in the order in which they are looked for; with several in
            `joined` each keeps its name in front. "" is the file itself.
        rules: pattern of a whole name -> what it becomes, `net.…` or `projector.…`; None: it is left out. The first
            that matches counts, and a name that none matches is refused.
        statistics: mean and deviation that the images were normalised with.
        backbone: the network, unless another is named; "" must be named.
        size: side of its images.
        joined: whether all entries of `where` are taken.
    """

    what: str
    where: tuple[str, ...]
    rules: tuple[tuple[str, str | None], ...]
    statistics: Statistics = IMAGENET
    backbone: str = "resnet50"
    size: int = 224
    joined: bool = False


_SIMCLR_CONV = {"0": "1", "2": "2", "4": "3"}
_SIMCLR_NORM = {"1": "1", "3": "2", "5": "3"}

KINDS = {
    "moco": Kind(
        "MoCo v1 and v2 (facebookresearch/moco)",
        ("state_dict",),
        (
            (r"module\.encoder_q\.fc\.(weight|bias)", r"projector.0.\1"),
            (r"module\.encoder_q\.fc\.(.+)", r"projector.\1"),
            (r"module\.encoder_q\.(.+)", r"net.\1"),
            (r"module\.(encoder_k\..+|queue|queue_ptr)", None),
        ),
    ),
    "simclrv2": Kind(
        "SimCLRv2 without selective kernels (Separius/SimCLRv2-Pytorch)",
        ("resnet", "head"),
        (
            (r"resnet\.net\.0\.0\.weight", "net.conv1.weight"),
            (r"resnet\.net\.0\.1\.0\.(\w+)", r"net.bn1.\1"),
            *(
                (rf"resnet\.net\.(\d)\.blocks\.(\d+)\.net\.{place}\.weight", rf"net.layer\1.\2.conv{layer}.weight")
                for place, layer in _SIMCLR_CONV.items()
            ),
            *(
                (rf"resnet\.net\.(\d)\.blocks\.(\d+)\.net\.{place}\.0\.(\w+)", rf"net.layer\1.\2.bn{layer}.\3")
                for place, layer in _SIMCLR_NORM.items()
            ),
            (r"resnet\.net\.(\d)\.blocks\.(\d+)\.projection\.shortcut\.weight", r"net.layer\1.\2.downsample.0.weight"),
            (r"resnet\.net\.(\d)\.blocks\.(\d+)\.projection\.bn\.0\.(\w+)", r"net.layer\1.\2.downsample.1.\3"),
            (r"resnet\.fc\..+", None),
            (r"head\.layers\.(.+)", r"projector.\1"),
        ),
        statistics=UNIT,
        joined=True,
    ),
    "swav": Kind(
        "SwAV and DeepCluster v2 (facebookresearch/swav)",
        ("state_dict", ""),
        (
            (r"(?:module\.)?projection_head\.(\d+\..+)", r"projector.\1"),
            (r"(?:module\.)?projection_head\.(weight|bias)", r"projector.0.\1"),
            (r"(?:module\.)?prototypes\..+", None),
            (r"(?:module\.)?(.+)", r"net.\1"),
        ),
    ),
    "byol": Kind(
        "BYOL, and other methods of solo-learn (vturrisi/solo-learn)",
        ("state_dict",),
        (
            (r"(?:backbone|encoder)\.(.+)", r"net.\1"),
            (r"projector\.(.+)", r"projector.\1"),
            (r"(?:momentum_\w+|predictor|classifier|queue\w*|prototypes)(?:\..+)?", None),
        ),
    ),
    "dino": Kind(
        "DINO, the teacher (facebookresearch/dino)",
        ("teacher", ""),
        (
            (r"(?:module\.)?head\..+", None),
            (r"(?:module\.)?(?:backbone\.)?(.+)", r"net.\1"),
        ),
    ),
    "cld": Kind(
        "CLD on CIFAR, or with --backbone resnet50 on ImageNet (frank-xwang/CLD-UnsupervisedLearning)",
        ("net", "state_dict"),
        (
            (r"module\.(?:encoder_k\..+|queue|queue_ptr)", None),
            (r"module\.(?:encoder_q\.)?(?:linear|fc)\.(weight|bias)", r"projector.0.\1"),
            (r"module\.(?:encoder_q\.)?fc\.(\d+\..+)", r"projector.\1"),
            (r"module\.(?:encoder_q\.)?group\w*\..+", None),
            (r"module\.(?:encoder_q\.)?(.+)\.shortcut\.(.+)", r"net.\1.downsample.\2"),
            (r"module\.(?:encoder_q\.)?(.+)", r"net.\1"),
        ),
        statistics=CIFAR,
        backbone="resnet18_cifar",
        size=32,
    ),
    "timm": Kind("a network of timm, named by --backbone", ("state_dict", ""), ((r"(.+)", r"net.\1"),), backbone=""),
}
"""What `usl import --as` takes."""


def import_checkpoint(path: Path, kind: str, backbone: str | None = None, size: int | None = None) -> dict[str, Any]:
    """A checkpoint of this package, as `init_from` takes it, of a published one.

    Args:
        path: of the file; only tensors and plain data are read from it.
        kind: a key of `KINDS`.
        backbone: its network, if it is another than the kind's own.
        size: side of the images it is for, if it is another.

    Raises:
        UslError: the file cannot be read, is of another kind, or of another network; names the keys that tell.
    """
    if kind not in KINDS:
        raise UslError(f"--as {kind}{did_you_mean(kind, KINDS)}; expected one of {', '.join(KINDS)}")
    layout = KINDS[kind]
    backbone = backbone or layout.backbone
    if not backbone:
        raise UslError(f"--as {kind}: the file does not say which network it is of; give --backbone NAME")
    weights = _renamed(_weights(_read(path), layout, path, kind), layout, path, kind)
    encoder = _encoder(backbone, layout, size)
    network = {name.removeprefix("net."): value for name, value in weights.items() if name.startswith("net.")}
    _fill(encoder.net, network, kind, f"{path}: not the {kind} checkpoint of '{backbone}'")
    projection = {name: value for name, value in weights.items() if name.startswith("projector.")}
    state = {**{f"encoder.{name}": value for name, value in encoder.state_dict().items()}, **projection}
    about = {"imported": {"as": kind, "file": path.name}}
    return {"state_dict": state, ENTRY: encoder_entry(encoder, online="encoder."), **about}


def _read(path: Path) -> Mapping[str, Any]:
    try:
        check_file(path)
        if path.suffix == ".safetensors":
            from timm.models import load_state_dict

            return load_state_dict(str(path), device="cpu")  # type: ignore[no-any-return]
        if zipfile.is_zipfile(path):
            check_records(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # in what DINO's training writes
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UslError(f"{path}: no such file") from None
    except Exception as error:  # of as many kinds as there are formats
        raise UslError(
            f"{path}: cannot be read as weights ({type(error).__name__}); if it holds objects of its program, write "
            "its tensors alone to a file there"
        ) from error
    if not isinstance(content, Mapping):
        raise UslError(f"{path}: holds a {type(content).__name__}; expected a published checkpoint")
    return content


def _weights(content: Mapping[str, Any], layout: Kind, path: Path, kind: str) -> dict[str, Tensor]:
    """Name -> tensor, from the entries of the file that hold them."""
    if layout.joined:
        parts = {name: content[name] for name in layout.where if isinstance(content.get(name), Mapping)}
        found = {f"{part}.{name}": value for part, inner in parts.items() for name, value in inner.items()}
    else:
        entries = (content if not name else content.get(name) for name in layout.where)
        found = dict(next((entry for entry in entries if isinstance(entry, Mapping)), {}))
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors or len(tensors) < len(found):
        expected = " and ".join(name or "weights alone" for name in layout.where)
        raise UslError(f"{path}: not a checkpoint --as {kind}, which has {expected}; it has {_some(map(str, content))}")
    for name, value in tensors.items():
        if wrong := not_weights(value):
            raise UslError(f"{path}: {printable(name, 200)} is {wrong}; expected the weights of a network")
    return tensors


def _renamed(state: Mapping[str, Tensor], layout: Kind, path: Path, kind: str) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, value in state.items():
        for pattern, becomes in layout.rules:
            match = re.fullmatch(pattern, name)
            if match:
                if becomes is not None:
                    renamed[match.expand(becomes)] = value
                break
        else:
            unknown.append(name)
    if unknown or not any(name.startswith("net.") for name in renamed):
        raise UslError(f"{path}: not a checkpoint --as {kind}: its weights are called {_some(unknown or state)}")
    return renamed


def _encoder(backbone: str, layout: Kind, size: int | None) -> Encoder:
    statistics = layout.statistics
    if layout is KINDS["cld"] and backbone != layout.backbone:
        statistics, side = IMAGENET, size or 224
    else:
        side = size or layout.size
    if not layout.backbone and backbone not in OURS:  # timm knows what its own were trained with
        config: Any = create_backbone(backbone, 3)[0].pretrained_cfg
        statistics, side = (tuple(config["mean"]), tuple(config["std"])), size or int(config["input_size"][-1])
    return Encoder(backbone, ImageSpec(3, side, side, *statistics))


def _fill(net: nn.Module, weights: dict[str, Tensor], kind: str, wrong: str) -> None:
    """Load all weights of a network, and no others; those of a classifier on top are left out."""
    own = net.state_dict()
    classifier = str(getattr(net, "pretrained_cfg", {}).get("classifier") or "fc") if kind == "timm" else "fc"
    given = {name: value for name, value in weights.items() if name in own or not name.startswith(f"{classifier}.")}
    given |= {name: own[name] for name in own.keys() - given.keys() if name.endswith("num_batches_tracked")}
    missing, unexpected = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    shapes = [
        f"{name} of {list(given[name].shape)} where {list(own[name].shape)} is expected"
        for name in own.keys() & given.keys()
        if given[name].shape != own[name].shape
    ]
    shapes += [
        f"{name} of {given[name].dtype} where {own[name].dtype} is expected"
        for name in own.keys() & given.keys()
        if given[name].is_floating_point() != own[name].is_floating_point()
    ]
    faults = [
        f"it lacks {_some(missing)}" if missing else "",
        f"it has {_some(unexpected)} too" if unexpected else "",
        f"it has {_some(sorted(shapes))}" if shapes else "",
    ]
    if any(faults):
        raise UslError(f"{wrong}: {'; '.join(filter(None, faults))}; --backbone names another")
    net.load_state_dict(given)


def _some(names: Any) -> str:
    listed = list(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return printable(", ".join(listed[:3]), 300) + more if listed else "nothing"

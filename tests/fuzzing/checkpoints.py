"""Readers of checkpoints and of files of weights."""

import argparse
import io
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fuzzing import Reader
from fuzzing.containers import CHECKPOINT
from fuzzing.run_folders import finished_run
from usl_lightning.data.batch import ImageSpec
from usl_lightning.engine.checkpoint_files import IDENTITY
from usl_lightning.models.cluster_heads import ENTRY as HEADS
from usl_lightning.models.cluster_heads import ClusterHeads, heads_entry, load_heads
from usl_lightning.models.encoder import ENTRY, Encoder, init_encoder, load_encoder, stored_image
from usl_lightning.models.foreign import import_checkpoint
from usl_lightning.models.heads import load_classifier
from usl_lightning.models.published import read_weights
from usl_lightning.stage.resume import check_resume, newest_whole


@cache
def _stored(stage: str) -> dict[str, Any]:
    """What a checkpoint of the run holds, but the optimizer's state: it is large, and nothing is made of it here."""
    content = torch.load(finished_run() / stage / "checkpoints" / "last.ckpt", weights_only=True)
    return {key: value for key, value in content.items() if key != "optimizer_states"}


def _saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _heads() -> bytes:
    heads = ClusterHeads(4, 3, 2)
    state = {f"heads.{name}": value for name, value in heads.state_dict().items()}
    return _saved({HEADS: heads_entry(heads, "heads."), "state_dict": state})


def _looks(path: Path) -> tuple[Callable[[], object], ...]:
    """What stages and exports take from a checkpoint of training with labels."""
    identity, image = _stored("train")[IDENTITY], ImageSpec(1, 8, 8, (0.5,), (0.5,), ())
    return (
        lambda: check_resume(path, identity),
        lambda: check_resume(path, identity, typed=["model.class_path"], training=False),
        lambda: stored_image(path),
        lambda: load_encoder(path),
        lambda: load_encoder(path, "ema"),
        lambda: load_classifier(path),
        lambda: init_encoder(Encoder("small_nf", image), path),
        lambda: newest_whole(path.parent),
    )


def read_checkpoint(path: Path) -> None:
    """A valid file in all ways, another in one or two of them, by its content."""
    content = path.read_bytes()
    looks, first = _looks(path), zlib.crc32(content)
    if content not in _checkpoints():
        looks = (looks[first % len(looks)], looks[first // 8 % len(looks)])
    for look in looks:
        look()


@cache
def _checkpoints() -> tuple[bytes, ...]:
    content = _stored("train")
    return (_saved({key: content[key] for key in ("state_dict", IDENTITY, ENTRY, "global_step", "callbacks")}),)


def read_heads(path: Path) -> None:
    """Those of USL-T."""
    heads = load_heads(path)
    assert torch.is_tensor(heads(torch.zeros(2, heads.inputs)))


def weights(path: Path) -> None:
    """Published weights, into a network."""
    assert all(torch.is_tensor(value) for value in read_weights(path, "resnet18").values())


def _weights() -> Sequence[bytes]:
    state = {"conv.weight": torch.randn(3, 2), "bn.running_mean": torch.zeros(3)}
    return [_saved(state), _saved({"state_dict": state})]


def _safetensors() -> Sequence[bytes]:
    from safetensors.torch import save

    return [save({"conv.weight": torch.randn(3, 2), "bn.running_mean": torch.zeros(3)})]


NETWORK = "small_nf"
"""Of the published checkpoints: a small one."""


@cache
def _network() -> dict[str, torch.Tensor]:
    """Weights of a network, named as timm's."""
    state = Encoder(NETWORK, ImageSpec(3, 32, 32, (0.0,) * 3, (1.0,) * 3)).net.state_dict()
    return {name: value.contiguous() for name, value in state.items()}


def importing(kind: str) -> Callable[[Path], None]:
    """What `usl import --as KIND` makes of a file: a checkpoint that `init_from` takes."""

    def read(path: Path) -> None:
        imported = import_checkpoint(path, kind, NETWORK)
        assert {f"encoder.net.{name}" for name in _network()} <= imported["state_dict"].keys()
        assert imported[ENTRY]["spec"]["backbone"] == NETWORK

    return read


def _published(kind: str) -> Sequence[bytes]:
    """Files as the authors' programs write them."""
    own, head = _network(), {"weight": torch.randn(2, 3), "bias": torch.zeros(2)}
    if kind == "timm":
        return [_saved(own), _saved({"state_dict": {**own, "fc.weight": torch.randn(2, 3)}, "epoch": 3})]
    if kind == "dino":
        teacher = {f"module.backbone.{name}": value for name, value in own.items()}
        return [_saved({"teacher": teacher, "args": argparse.Namespace(lr=0.1), "epoch": 3})]
    names = {"moco": "module.encoder_q.", "byol": "backbone.", "swav": "module."}
    state = {names[kind] + name: value for name, value in own.items()}
    top = {"moco": "module.encoder_q.fc.", "byol": "classifier.", "swav": "module.prototypes."}
    state |= {top[kind] + name: value for name, value in head.items()}
    return [_saved({"state_dict": state, "epoch": 3, "arch": "x"})]


def _imports() -> tuple[Reader, ...]:
    kinds = ("moco", "swav", "byol", "dino", "timm")
    return tuple(
        Reader(f"import_{kind}", ".pth", lambda kind=kind: _published(kind), importing(kind), CHECKPOINT)
        for kind in kinds
    )


def _network_safetensors() -> Sequence[bytes]:
    from safetensors.torch import save

    return [save(_network())]


READERS = (
    Reader("checkpoint", ".ckpt", _checkpoints, read_checkpoint,
           CHECKPOINT, lambda folder: folder / "last.ckpt"),
    Reader("heads_checkpoint", ".ckpt", lambda: [_heads()], read_heads, CHECKPOINT),
    Reader("weights_pth", ".pth", _weights, weights, CHECKPOINT),
    Reader("weights_safetensors", ".safetensors", _safetensors, weights),
    *_imports(),
    Reader("import_safetensors", ".safetensors", _network_safetensors, importing("timm")),
)  # fmt: skip

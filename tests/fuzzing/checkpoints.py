"""Readers of checkpoints and of files of weights."""

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


READERS = (
    Reader("checkpoint", ".ckpt", _checkpoints, read_checkpoint,
           CHECKPOINT, lambda folder: folder / "last.ckpt"),
    Reader("heads_checkpoint", ".ckpt", lambda: [_heads()], read_heads, CHECKPOINT),
    Reader("weights_pth", ".pth", _weights, weights, CHECKPOINT),
    Reader("weights_safetensors", ".safetensors", _safetensors, weights),
)  # fmt: skip

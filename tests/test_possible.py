"""What is told of networks, images and devices without torch is what torch, timm and the readers tell."""

import inspect
import re
import sys
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from lightning_fabric.connector import _PRECISION_INPUT_INT, _PRECISION_INPUT_STR, _PRECISION_INPUT_STR_ALIAS
from PIL import Image
from pytorch_lightning.accelerators import AcceleratorRegistry
from pytorch_lightning.strategies import StrategyRegistry
from pytorch_lightning.trainer.setup import _init_profiler
from timm.models._registry import _deprecated_models

from usl_lightning.base import trainer
from usl_lightning.base.errors import UslError
from usl_lightning.data.images.catalog import IMAGES, known_image
from usl_lightning.data.images.counts import most_images
from usl_lightning.data.images.opening import open_source
from usl_lightning.models.backbones import OURS, check_image_size, create_backbone
from usl_lightning.models.names import own_networks, too_small, unknown_network
from usl_lightning.stage import possible
from usl_lightning.stage.possible import check_machine, check_networks


def test_every_network_is_known() -> None:
    assert own_networks() == tuple(OURS)
    names = [*OURS, *timm.list_models(), *timm.list_pretrained()[::7]]
    assert [name for name in names if unknown_network(name)] == []
    earlier = list(_deprecated_models)[::7]
    assert len(earlier) > 20
    assert [name for name in earlier if unknown_network(name)] == []


@pytest.mark.parametrize(
    "name",
    [
        "none",
        "relu",
        "avg",
        "Xception",
        "state_dict",
        "",
        "smal",
        "resnet5",
        "resnet50.",
        "resnet50.a1_in2k",
        "a(",
        "x" * 300,
    ],
)
def test_no_other_is(name: str) -> None:
    assert unknown_network(name).startswith("unknown '")
    with pytest.raises(UslError):
        create_backbone(name or ",", 3)


SIZES = (3, 4, 7, 8, 15, 16, 31, 32, 62, 63, 64, 224, 384)
FAMILIES = (
    "resnet18", "resnetv2_50", "ecaresnet26t", "seresnext26d_32x4d", "efficientnet_b0", "mobilenetv3_small_050",
    "convnext_atto", "vgg11", "regnetx_002", "densenet121", "mixnet_s", "levit_128s", "selecsls42",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224", "beit_base_patch16_384", "cait_xxs24_224",
    "mixer_s16_224", "vit_tiny_patch16_384",
)  # fmt: skip
OF_ANY_SIZE = ("mixer_s16_224",)


@pytest.mark.parametrize("name", [*OURS, *FAMILIES])
def test_images_that_are_too_small_are_those_that_the_network_refuses(name: str) -> None:
    with torch.device("meta"):
        net, _ = create_backbone(name, 3)
    for side in SIZES:
        try:
            check_image_size(net, name, side, side)
            refused = False
        except UslError:
            refused = True
        assert bool(too_small(f"{name}.tag", side)) == (refused and name not in OF_ANY_SIZE), side


def test_the_sizes_of_images_that_are_known() -> None:
    for name, (channels, side) in IMAGES.items():
        if name in ("digits", "fashion_mnist"):
            source = open_source(name, "train")
            assert (source.channels, source.height, source.width) == (channels, side, side)
        assert known_image({"data.dataset": name}) == (channels, side)
    assert known_image({"data.dataset": "digits", "data.image_size": 32, "data.channels": 3}) == (3, 32)
    assert known_image({"data.dataset": "folder"}) == (None, None)


def test_several_networks() -> None:
    check_networks({"model.backbone": "small, resnet50.a1_in1k,small_s2@1x28x28", "model.teacher": None})
    for given in ("small,smal", ["small", "smal"]):
        with pytest.raises(UslError, match=r"model\.backbone: unknown 'smal' \(did you mean 'small'\?\)"):
            check_networks({"model.backbone": given})


def test_the_precisions_are_lightnings() -> None:
    known = (_PRECISION_INPUT_INT, _PRECISION_INPUT_STR, _PRECISION_INPUT_STR_ALIAS)
    assert {str(value) for kind in known for value in typing.get_args(kind)} == set(trainer.NAMES["precision"])


def test_the_names_of_strategies_accelerators_and_profilers_are_lightnings() -> None:
    started = {name for name in StrategyRegistry.available_strategies() if re.match("ddp_(spawn|fork|notebook)", name)}
    assert set(trainer.NAMES["strategy"]) == {"auto", *StrategyRegistry.available_strategies()} - started
    assert set(trainer.NAMES["accelerator"]) == {"auto", "gpu", *AcceleratorRegistry.available_accelerators()}
    told = re.findall(r'"(\w+)": \w+Profiler', inspect.getsource(_init_profiler))
    assert set(told) == set(trainer.NAMES["profiler"])


def test_images_are_counted_unread(tmp_path: Path) -> None:
    images = np.zeros((7, 8, 8), np.uint8)
    np.save(tmp_path / "a.npy", images)
    np.savez(tmp_path / "b.npz", train_images=images, test_images=images[:3])
    np.savez_compressed(tmp_path / "c.npz", images=np.asfortranarray(images))
    sets = [("arrays", "a.npy", "train"), ("arrays", "b.npz", "test"), ("arrays", "c.npz", "train")]
    for name in ("train/x/1.png", "train/y/2.png", "train/3.png", "test/x/1.png"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / "d" / name)
    sets += [("folder", "d", "train"), ("folder", "d", "test"), ("digits", ".", "train"), ("digits", ".", "train+test")]
    for name, place, split in sets:
        source = open_source(name, split, dir=str(tmp_path / place))
        assert most_images(name, str(tmp_path / place), split) == len(source)


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\x93NUMPY\1\0\xff\xff", b"\x93NUMPY\1\0\x08\0{'a':1}"])
def test_what_cannot_be_counted_is_told_by_its_reader(content: bytes, tmp_path: Path) -> None:
    for name in ("a.npy", "b.npz"):
        (tmp_path / name).write_bytes(content)
        assert most_images("arrays", str(tmp_path / name), "train") is None
    for name, split in (("folder", "train"), ("nope", "train"), ("digits", "nope"), ("bloodmnist", "train")):
        assert most_images(name, str(tmp_path / "nowhere"), split) is None


def test_nodes_that_something_names_are_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "NODE_RANK", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UslError, match=r"trainer\.num_nodes: 2, but nothing says where the others are"):
        check_machine({"trainer.num_nodes": 2})
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    check_machine({"trainer.num_nodes": 2})
    monkeypatch.setattr(possible, "_GPUS", ("/dev/null",))
    check_machine({"trainer.devices": 999, "trainer.accelerator": "gpu"})  # Lightning tells how many there are


@pytest.mark.parametrize(("key", "value", "part"), [
    ("accelerator", "gpu", "gpu, but this machine has no GPU; use auto or cpu"),
    ("devices", "0", "0 on a CPU; expected a number of processes, 1 or more"),
    ("devices", [0], r"\[0\] on a CPU; expected a number of processes"),
    ("strategy", "fsdp_cpu_offload", "fsdp_cpu_offload is not for a CPU; use ddp"),
    ("strategy.class_path", "pytorch_lightning.strategies.FSDPStrategy", "fsdpstrategy is not for a CPU"),
    ("strategy", "xla", "xla needs the package torch_xla; pip install torch_xla"),
    ("accelerator", "tpu", "tpu needs the package torch_xla"),
    ("precision", "transformer-engine", "transformer-engine needs the package transformer_engine"),
    ("logger", [{"class_path": "MLFlowLogger"}], "MLFlowLogger needs the package mlflow; pip install mlflow"),
])  # fmt: skip
def test_what_this_machine_lacks(key: str, value: Any, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(possible, "_GPUS", ())
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(trainer, "find_spec", lambda name: None)
    with pytest.raises(UslError, match=rf"^trainer\.{key.partition('.')[0]}: {part}"):
        check_machine({f"trainer.{key}": value})


@pytest.mark.parametrize(("name", "value", "part"), [
    ("RANK", "x", "RANK=x in the environment: expected a whole number; unset it"),
    ("SLURM_PROCID", "", "SLURM_PROCID= in the environment"),
    ("LOCAL_RANK", "-1", "LOCAL_RANK=-1 in the environment"),
    ("NODE_RANK", "1", "NODE_RANK=1 in the environment, but trainer.num_nodes is 1"),
])  # fmt: skip
def test_a_process_that_does_not_know_which_it_is(
    name: str, value: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning would end in a traceback, or the run leave no record: it would be taken for one of several."""
    monkeypatch.setenv(name, value)
    with pytest.raises(UslError, match=part):
        check_machine({})
    monkeypatch.setenv(name, "0")
    check_machine({})

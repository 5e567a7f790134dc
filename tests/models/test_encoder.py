"""Encoders: normalisation travels with the weights; loading is all or nothing."""

import copy
import dataclasses
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.views import Weak
from usl_lightning.models.encoder import (
    ENTRY,
    Encoder,
    encoder_entry,
    init_encoder,
    load_encoder,
    read_checkpoint,
)
from usl_lightning.models.heads import Classifier
from usl_lightning.pretrain.simclr import SimCLR

GREY = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b", "c"))
COLOUR = ImageSpec(3, 8, 8, (0.3, 0.4, 0.5), (0.2, 0.3, 0.1))


def encoder(backbone: str = "small_w16", image: ImageSpec = GREY, seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(backbone, image)


def save(path: Path, model: Encoder, **changes: Any) -> Path:
    """A checkpoint as a stage writes it: an online encoder and its moving average, which differs."""
    state = {f"model.encoder.{name}": value for name, value in model.state_dict().items()}
    state |= {f"ema.encoder.{name}": value + 1 for name, value in model.state_dict().items()}
    state["model.head.weight"] = torch.zeros(2)
    entry = encoder_entry(model, online="model.encoder.", ema="ema.encoder.")
    torch.save({ENTRY: entry, "state_dict": state, **changes}, path)
    return path


def test_normalises_by_its_own_statistics() -> None:
    model = encoder(image=COLOUR).eval()
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (COLOUR.mean, COLOUR.std))
    expected = model.net((images.float() / 255 - mean) / std)
    torch.testing.assert_close(model(images), expected)
    torch.testing.assert_close(model(images.float() / 255), expected)
    assert {"mean", "std"} <= model.state_dict().keys()


def test_published_weights_are_fed_as_they_were_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training, and by whoever loads the checkpoint: with the statistics of the weights, not of the data."""
    net = timm.create_model("test_resnet", num_classes=0)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    config = dataclasses.replace(
        timm.get_pretrained_cfg("test_resnet"),
        file=str(tmp_path / "weights.pth"), num_classes=0, mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.3),
    )  # fmt: skip
    monkeypatch.setitem(timm.models._registry._model_pretrained_cfgs, "test_resnet", config)
    image = ImageSpec(3, 32, 32, (0.1,) * 3, (0.2,) * 3, ("a", "b"))
    model = SimCLR(image, Weak(), Optimization(), backbone="test_resnet", pretrained=True)
    model.encoder.eval()
    assert image.mean == (0.1,) * 3, "the caller's is left as it was"
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.2, 0.4, 0.6), (0.1, 0.2, 0.3)))
    with torch.no_grad():
        expected = net.eval()((images / 255 - mean) / std)
        torch.testing.assert_close(model.encoder(images), expected, rtol=1e-4, atol=1e-5)
        again = load_encoder(save(tmp_path / "a.ckpt", model.encoder))
        torch.testing.assert_close(again(images), expected, rtol=1e-4, atol=1e-5)
    assert (again.image.mean, again.image.classes) == ((0.2, 0.4, 0.6), ("a", "b"))


@pytest.mark.parametrize("pretrained", [True, False])
def test_weights_that_do_not_exist_are_refused_in_a_line(pretrained: bool) -> None:
    with pytest.raises(
        UslError, match=r"^model\.backbone: timm has no weights 'resnet18\.nonsense'.*resnet18\.a1_in1k"
    ):
        Encoder("resnet18.nonsense", ImageSpec(3, 64, 64, (0.1,) * 3, (0.2,) * 3), pretrained=pretrained)


@pytest.mark.parametrize("backbone", ["small_w16", "wrn_28_2", "resnet18_cifar"])
def test_round_trip_through_a_checkpoint(tmp_path: Path, backbone: str) -> None:
    model = encoder(backbone).eval()
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    again = load_encoder(save(tmp_path / "a.ckpt", model))
    assert not again.training
    assert vars(again.image) == vars(GREY)
    assert torch.equal(again(images), model(images))


def test_moving_average_is_loaded_by_name(tmp_path: Path) -> None:
    model = encoder()
    path = save(tmp_path / "a.ckpt", model)
    own, average = model.state_dict(), load_encoder(path, "ema").state_dict()
    assert all(torch.equal(average[name], own[name] + 1) for name in own)
    only_online = save(tmp_path / "b.ckpt", model, **{ENTRY: encoder_entry(model, online="model.encoder.")})
    with pytest.raises(UslError, match="holds no ema weights; it has online"):
        load_encoder(only_online, "ema")


def test_init_copies_weights_and_normalisation(tmp_path: Path) -> None:
    model = encoder()
    other = encoder(image=ImageSpec(1, 28, 28, (0.9,), (0.1,)), seed=1)
    init_encoder(other, save(tmp_path / "a.ckpt", model))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen", "channels", "width", "backbone", "stride"])
def test_init_refuses_other_weights_and_copies_nothing(tmp_path: Path, damage: str) -> None:
    stored = {
        "channels": lambda: encoder(image=COLOUR),
        "width": lambda: encoder("small"),
        "backbone": lambda: encoder("wrn_28_2"),
        # The same names and shapes, another network.
        "stride": lambda: encoder("small_s2_w64"),
    }.get(damage, encoder)()
    path = save(tmp_path / "a.ckpt", stored)
    if damage in ("missing", "unexpected", "misshapen"):
        content = torch.load(path)
        name = "model.encoder.net.stages.2.conv2.weight"
        weight = content["state_dict"].pop(name)
        if damage == "unexpected":
            content["state_dict"] |= {name: weight, "model.encoder.net.extra": weight}
        if damage == "misshapen":
            content["state_dict"][name] = weight[:-1]
        torch.save(content, path)
    model = encoder("small_w64" if damage == "stride" else "small_w16", seed=1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UslError, match=r"^model\.init_from: ") as error:
        init_encoder(model, path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    named = {
        "missing": "net.stages.2.conv2.weight",
        "unexpected": "net.extra",
        "misshapen": "net.stages.2.conv2.weight",
    }
    assert named.get(damage, model.backbone) in str(error.value)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_many_differences_are_counted(tmp_path: Path) -> None:
    with pytest.raises(UslError, match=r"differ in .+, .+, .+ and \d+ more$"):
        init_encoder(encoder(), save(tmp_path / "a.ckpt", encoder("wrn_28_2")))


class Evil:
    """A pickle that runs a command when it is opened."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("wrap", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_malicious_pickle_is_not_run(tmp_path: Path, wrap: Any) -> None:
    path, witness = tmp_path / "evil.ckpt", tmp_path / "pwned"
    wrap({"state_dict": Evil(witness)}, path)
    with pytest.raises(UslError, match=r"evil\.ckpt: not a readable checkpoint"):
        read_checkpoint(path)
    assert not witness.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 damaged"], ids=["empty", "text", "damaged"])
def test_unreadable_files_are_refused_in_a_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    with pytest.raises(UslError, match=r"a\.ckpt: not a readable checkpoint") as error:
        load_encoder(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UslError, match="no such checkpoint"):
        load_encoder(tmp_path / "none.ckpt")
    with pytest.raises(UslError, match="not a readable checkpoint"):
        load_encoder(tmp_path)


def test_a_cut_checkpoint_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", encoder())
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UslError, match="not a readable checkpoint"):
        load_encoder(path)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        torch.zeros(3),
        {"weight": torch.zeros(3)},
        {"state_dict": {}},
        {"state_dict": {}, ENTRY: torch.zeros(3)},
        {"state_dict": {}, ENTRY: {"weight": torch.zeros(3)}},
    ],
)
def test_checkpoints_of_other_programs_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(UslError, match=r"a\.ckpt: ") as error:
        load_encoder(tmp_path / "a.ckpt")
    assert "\n" not in str(error.value)
    with pytest.raises(UslError, match=r"a\.ckpt: "):
        init_encoder(encoder(), tmp_path / "a.ckpt")


def test_classifier_is_encoder_and_linear_layer() -> None:
    model = Classifier(encoder().eval(), 3)
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    expected = model.encoder(images) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(images), expected)

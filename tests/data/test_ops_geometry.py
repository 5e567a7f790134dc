"""Operations on places against Pillow and torchvision, on real images."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from real_images import photos
from test_ops_color import SETS, against_pil, images_of, spread, worst
from torch import Tensor
from torchvision.transforms import functional as tv

from usl_lightning.data.views import ops, warps


def share_that_differs(ours: Tensor, theirs: list[Tensor]) -> float:
    return float((ours != torch.stack(theirs)).float().mean())


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("fill", [0, 128])
def test_rotation_equals_pillow(name: str, fill: int) -> None:
    images = images_of(name)
    background = fill if images.shape[1] == 1 else (fill,) * 3
    for turn in range(4):
        degrees = spread(len(images), -180.0 if turn == 3 else -30.0, 180.0 if turn == 3 else 30.0, turn)
        ours = ops.rotate(images, degrees, fill)
        pil = against_pil(images, ours, lambda x, i, d=degrees: x.rotate(float(d[i]) + 360, fillcolor=background))
        assert pil == 0


@pytest.mark.parametrize("name", SETS)
def test_shear_equals_pillow(name: str) -> None:
    images = images_of(name)
    for turn in range(4):
        amount = spread(len(images), -0.3, 0.3, turn).double()

        def sheared(image: Image.Image, i: int, along: str, amount: Tensor = amount) -> Image.Image:
            v = float(amount[i])
            data = (1, v, 0, 0, 1, 0) if along == "x" else (1, 0, 0, v, 1, 0)
            return image.transform(image.size, Image.Transform.AFFINE, data)

        assert against_pil(images, ops.shear_x(images, amount), lambda x, i, f=sheared: f(x, i, "x")) == 0
        assert against_pil(images, ops.shear_y(images, amount), lambda x, i, f=sheared: f(x, i, "y")) == 0


@pytest.mark.parametrize("name", SETS)
def test_translation_equals_pillow(name: str) -> None:
    images = images_of(name)
    for turn in range(3):
        share = spread(len(images), -0.3, 0.3, turn).double()
        right, down = share * images.shape[3], (share * images.shape[2]).trunc()

        def moved(image: Image.Image, dx: float, dy: float) -> Image.Image:
            return image.transform(image.size, Image.Transform.AFFINE, (1, 0, -dx, 0, 1, -dy))

        ours_x, ours_y = ops.translate_x(images, right), ops.translate_y(images, down)
        assert against_pil(images, ours_x, lambda x, i, r=right, f=moved: f(x, float(r[i]), 0)) == 0
        assert against_pil(images, ours_y, lambda x, i, d=down, f=moved: f(x, 0, float(d[i]))) == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_affine_steps_together_equal_them_one_by_one(dtype: torch.dtype) -> None:
    images = photos(32, 16)
    images = images if dtype == torch.uint8 else images.float() / 255
    degrees, shear, right = spread(16, -30, 30, 0), spread(16, -0.3, 0.3, 1), spread(16, -9.6, 9.6, 2)
    steps = [
        warps.rotation(degrees, 32, 32),
        warps.affine_matrix(shear, shear_x=shear),
        warps.affine_matrix(right, right=right, down=-right),
        warps.affine_matrix(shear, shear_y=shear),
    ]
    one_by_one = images
    for step in steps:
        one_by_one = warps.affine(one_by_one, [step], fill=0.25)
    assert torch.equal(warps.affine(images, steps, fill=0.25), one_by_one)


@pytest.mark.parametrize("name", SETS)
def test_shift_and_flip_equal_reflect_padding_and_crop(name: str) -> None:
    images = images_of(name)
    b, _, h, w = images.shape
    most = max(1, int(0.125 * min(h, w)))
    flip = torch.arange(b) % 2 == 0
    for turn in range(4):
        down = torch.arange(b).roll(turn) % (2 * most + 1) - most
        right = torch.arange(b).roll(3 * turn + 1) % (2 * most + 1) - most
        ours = ops.shift_and_flip(images, down, right, flip)

        def theirs(image: Image.Image, i: int, down: Tensor = down, right: Tensor = right) -> Image.Image:
            image = tv.hflip(image) if flip[i] else image
            padded = tv.pad(image, most, padding_mode="reflect")
            return tv.crop(padded, most - int(down[i]), most - int(right[i]), h, w)

        assert against_pil(images, ours, theirs) == 0
    assert torch.equal(ops.horizontal_flip(images, flip)[0], images[0].flip(-1))


@settings(max_examples=60, deadline=None)
@given(
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    down=st.integers(-30, 30),
    right=st.integers(-30, 30),
    flip=st.booleans(),
)
def test_reflection_of_any_distance(h: int, w: int, down: int, right: int, flip: bool) -> None:
    image = torch.arange(h * w, dtype=torch.uint8).view(1, 1, h, w)
    ours = ops.shift_and_flip(image, torch.tensor([down]), torch.tensor([right]), torch.tensor([flip]))

    def mirrored(place: int, size: int) -> int:
        while not 0 <= place < size:
            place = -place if place < 0 else 2 * (size - 1) - place
            place = 0 if size == 1 else place
        return place

    source = image.flip(-1) if flip else image
    expected = torch.tensor(
        [[int(source[0, 0, mirrored(y - down, h), mirrored(x - right, w)]) for x in range(w)] for y in range(h)]
    )
    assert torch.equal(ours[0, 0].long(), expected)


@pytest.mark.parametrize("name", SETS)
def test_resized_crop_equals_torchvision_on_pillow(name: str) -> None:
    images = images_of(name)
    b, _, h, w = images.shape
    draw = torch.Generator().manual_seed(0)
    for size in ((h, w), (5, 6), (40, 37)):
        height, width = (torch.randint(1, whole + 1, (b,), generator=draw) for whole in (h, w))
        top = (torch.rand(b, generator=draw) * (h - height + 1)).long()
        left = (torch.rand(b, generator=draw) * (w - width + 1)).long()
        flip = torch.rand(b, generator=draw) < 0.5
        ours = ops.resized_crop(images, top, left, height, width, size, flip)

        def theirs(image: Image.Image, i: int, boxes=(top, left, height, width), size=size, flip=flip) -> Image.Image:
            image = tv.resized_crop(image, *(int(edge[i]) for edge in boxes), list(size), antialias=True)
            return tv.hflip(image) if flip[i] else image

        assert against_pil(images, ours, theirs) <= (2 if name == "noise" else 1)


def test_resized_crop_of_floats_equals_torchvision() -> None:
    images = photos(32, 4).float() / 255
    boxes = [torch.tensor(edge) for edge in ([0, 3, 10, 31], [0, 8, 2, 5], [32, 20, 9, 1], [32, 11, 30, 27])]
    ours = ops.resized_crop(images, *boxes, (24, 28))
    theirs = torch.stack(
        [tv.resized_crop(images[i], *(int(edge[i]) for edge in boxes), [24, 28], antialias=True) for i in range(4)]
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["photos", "large photos", "digits", "fashion"])
def test_resize_equals_torchvision_on_pillow(name: str) -> None:
    images = images_of(name)
    for size in ((7, 9), (32, 32), (50, 41)):
        assert against_pil(images, ops.resize(images, size), lambda x, i, s=size: tv.resize(x, list(s))) <= 1


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_resampling_is_exact_whatever_the_matmul_precision(precision: str) -> None:
    images = photos(32, 8)
    box = [torch.full((8,), edge) for edge in (3, 5, 20, 24)]
    expected = ops.resized_crop(images, *box, (32, 32))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(ops.resized_crop(images, *box, (32, 32)), expected)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kernel", [3, 7])
def test_blur_equals_torchvision(name: str, kernel: int) -> None:
    images = images_of(name)
    for turn in range(3):
        sigma = spread(len(images), 0.1, 2.0, turn)
        theirs = [tv.gaussian_blur(x, [kernel, kernel], [float(s)] * 2) for x, s in zip(images, sigma, strict=True)]
        assert worst(ops.gaussian_blur(images, sigma, kernel), torch.stack(theirs)) <= 1
        floats = images.float() / 255
        theirs = [tv.gaussian_blur(x, [kernel, kernel], [float(s)] * 2) for x, s in zip(floats, sigma, strict=True)]
        torch.testing.assert_close(ops.gaussian_blur(floats, sigma, kernel), torch.stack(theirs), atol=1e-5, rtol=0)


def test_blur_refuses_a_kernel_that_cannot_be() -> None:
    for kernel in (4, 17):
        with pytest.raises(ValueError, match="odd number of taps, at most 15"):
            ops.gaussian_blur(photos(8, 2), torch.ones(2), kernel)


def test_cutout_paints_the_box_and_nothing_else() -> None:
    images = photos(32, 16)
    draw = torch.Generator().manual_seed(0)
    center = torch.rand(16, 2, generator=draw) * 32
    top, bottom = warps.half_open_box(center[:, 0], torch.full((16,), 16.0), 32)
    left, right = warps.half_open_box(center[:, 1], torch.full((16,), 16.0), 32)
    for fill in ((127.0,), (125.0, 123.0, 114.0)):
        ours = ops.cutout(images, top, left, bottom, right, fill)

        def theirs(image: Image.Image, i: int, fill: tuple[float, ...] = fill) -> Image.Image:
            color = tuple(int(value) for value in fill) * (3 // len(fill))
            box = (int(left[i]), int(top[i]), int(right[i]) - 1, int(bottom[i]) - 1)
            ImageDraw.Draw(image).rectangle(box, color)
            return image

        assert against_pil(images, ours, theirs) == 0
        floats = ops.cutout(images.float() / 255, top, left, bottom, right, fill)
        torch.testing.assert_close(floats, ours.float() / 255)


def test_cutout_box_is_the_published_one() -> None:
    for center in (0.0, 3.7, 8.0, 12.4, 31.9):
        first, last = warps.half_open_box(torch.tensor([center]), torch.tensor([16.0]), 32)
        expected = int(max(0, center - 8))
        assert (int(first), int(last)) == (expected, min(32, expected + 16))


def test_a_fully_cut_image_and_a_box_of_nothing() -> None:
    images = photos(8, 2)
    zero, eight = torch.zeros(2, dtype=torch.long), torch.full((2,), 8)
    assert torch.equal(ops.cutout(images, zero, zero, zero, eight), images)
    assert ops.cutout(images, zero, zero, eight, eight).unique().tolist() == [127]


def test_odd_kernel_of_a_tenth() -> None:
    assert [warps.odd_kernel(0.1, side) for side in (8, 32, 50, 96, 224)] == [3, 3, 5, 9, 23]
    assert math.isclose(float(warps.blur_matrix(torch.tensor([1.0]), 5, 9).sum()), 9, rel_tol=1e-6)


@pytest.mark.parametrize("degrees", [-20.0, 0.0, 13.0])
def test_turns_scales_and_moves_are_torchvisions(degrees: float) -> None:
    """Where no pixel comes from beyond the edges; those of the other images of the batch change nothing."""
    images = photos(33, 4)
    scale, down, right = torch.tensor([2.0, 2.5, 2.2, 3.0]), 2 / 33, -3 / 33
    fixed = [torch.full((4,), value) for value in (degrees, down, right)]
    found = warps.turn_scale_move(images, fixed[0], scale, fixed[1], fixed[2])
    for i in range(4):
        expected = tv.affine(
            images[i].float(), -degrees, [-3, 2], float(scale[i]), [0.0], interpolation=tv.InterpolationMode.BILINEAR
        )
        assert float((found[i].float() - expected).abs().max()) <= 0.51
    alone = warps.turn_scale_move(images[2:3], fixed[0][:1], scale[2:3], fixed[1][:1], fixed[2][:1])
    assert torch.equal(alone, found[2:3])


def test_what_is_beyond_the_edges_is_mirrored() -> None:
    images = photos(8, 2)
    zero, one = torch.zeros(2), torch.ones(2)
    assert torch.equal(warps.turn_scale_move(images, zero, one, zero, zero), images)
    found = warps.turn_scale_move(images, zero, one, zero + 0.25, zero)
    assert torch.equal(found[:, :, 2:], images[:, :, :6])
    assert torch.equal(found[:, :, :2], images[:, :, :2].flip(2))

"""Views: the contract, the published pipelines step by step, and the distributions of what is drawn."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from real_images import digits, from_pil, photos, to_pil
from scipy import stats
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import functional as tv

from usl_lightning.base.errors import UslError
from usl_lightning.data.keys import Key
from usl_lightning.data.views import (
    CoMatchStrong,
    Evaluation,
    ExemplarView,
    FixMatchStrong,
    MoCoV2View,
    Recipe,
    SeLaView,
    SimCLRView,
    SimSiamView,
    SmallGreyView,
    USLTView,
    Weak,
    pixels,
    steps,
)
from usl_lightning.data.views.randaugment import POOL, Dialect, RandAugment
from usl_lightning.data.views.steps import Edges

VIEWS: dict[str, Callable[[], Recipe]] = {
    "weak": Weak,
    "weak without flip": lambda: Weak(flip=False),
    "strong": FixMatchStrong,
    "strong fixmatch": lambda: FixMatchStrong("fixmatch"),
    "strong torchssl": lambda: FixMatchStrong("torchssl"),
    "strong comatch": lambda: FixMatchStrong("comatch"),
    "strong fixmatch with the paper's square": lambda: FixMatchStrong("fixmatch", edges="clipped"),
    "simclr": SimCLRView,
    "simclr with blur": lambda: SimCLRView(strength=1.0, blur=0.5),
    "simclr larger": lambda: SimCLRView(size=40),
    "moco": MoCoV2View,
    "simsiam": lambda: SimSiamView(blur=0),
    "sela": SeLaView,
    "exemplar": ExemplarView,
    "usl-t": USLTView,
    "comatch": CoMatchStrong,
    "small grey": SmallGreyView,
    "evaluation": Evaluation,
    "evaluation of 24": lambda: Evaluation(24),
}


def keys(count: int, *parts: int | str) -> Key:
    return Key.of(0, "test", *parts, slots=torch.arange(count))


def images_with(channels: int, count: int = 64) -> Tensor:
    return photos(32, count) if channels == 3 else digits(count)


# --- the contract


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", VIEWS)
def test_a_view_depends_on_its_image_and_slot_alone(name: str, channels: int) -> None:
    view, images, key = VIEWS[name](), images_with(channels), keys(64)
    together = view(images, key)
    assert together.dtype == torch.float32
    assert together.is_contiguous()
    assert float(together.min()) >= 0
    assert float(together.max()) <= 1
    assert torch.equal(view(images, key), together)
    alone = torch.cat([view(images[i : i + 1], key[i : i + 1]) for i in range(64)])
    assert torch.equal(alone, together)
    for processes in (2, 4):
        shares = [view(images[i::processes], key[torch.arange(i, 64, processes)]) for i in range(processes)]
        assert torch.equal(torch.stack(shares, dim=1).flatten(0, 1), together)


@pytest.mark.parametrize("name", VIEWS)
def test_autocast_and_memory_layout_change_nothing(name: str) -> None:
    view, images, key = VIEWS[name](), photos(32, 16).contiguous(), keys(16)
    expected = view(images, key)
    assert torch.equal(view(images.contiguous(memory_format=torch.channels_last), key), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(view(images, key), expected)


@pytest.mark.parametrize("name", VIEWS)
def test_the_way_for_accelerators_gives_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    view, images, key = VIEWS[name](), photos(32, 32), keys(32)
    expected = view(images, key)
    monkeypatch.setattr(pixels, "_switch_sorted", pixels._switch_where)
    assert torch.equal(view(images, key), expected)


def test_many_at_once_are_worked_on_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    images, key = photos(32, 32), keys(32)
    expected = [view()(images, key) for view in (FixMatchStrong, SimCLRView)]
    monkeypatch.setattr(pixels, "_PIECE", 5 * images[0].numel())
    assert all(
        torch.equal(view()(images, key), e) for view, e in zip((FixMatchStrong, SimCLRView), expected, strict=True)
    )


@pytest.mark.parametrize("name", sorted(set(VIEWS) - {"evaluation", "evaluation of 24"}))
def test_other_keys_give_other_views(name: str) -> None:
    view, images = VIEWS[name](), photos(32, 64)
    first, second = view(images, keys(64, 0)), view(images, keys(64, 1))
    same = (first == second).flatten(1).all(1).float().mean()
    assert same < 0.2


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(VIEWS)),
    b=st.integers(1, 6),
    channels=st.sampled_from([1, 3]),
    h=st.integers(2, 20),
    w=st.integers(2, 20),
)
def test_any_shape(name: str, b: int, channels: int, h: int, w: int) -> None:
    images = torch.randint(0, 256, (b, channels, h, w), dtype=torch.uint8)
    side = {"simclr larger": 40, "evaluation of 24": 24}.get(name)
    out = VIEWS[name]()(images, keys(b, name))
    assert out.shape == (b, channels, *((h, w) if side is None else (side, side)))


def test_the_same_step_twice_draws_twice() -> None:
    recipe = Recipe([steps.FlipTranslate(flip=False), steps.FlipTranslate(flip=False)])
    once = Recipe([steps.FlipTranslate(flip=False)])
    images, key = photos(32, 64), keys(64)
    twice = (once(images, key) * 255).round().to(torch.uint8)
    assert not torch.equal(recipe(images, key), once(twice, key))


@pytest.mark.parametrize(
    ("images", "slots", "message"),
    [
        (torch.zeros(2, 3, 8, 8), 2, "float32 images of shape"),
        (torch.zeros(2, 4, 8, 8, dtype=torch.uint8), 2, "expected uint8"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), 3, "expected uint8"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 3, "2 images and 3 keys"),
    ],
)
def test_wrong_input_is_refused(images: Tensor, slots: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Weak()(images, keys(slots))


def test_recipes_can_be_written_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "views.yaml"
    file.write_text(
        """
weak: {class_path: usl_lightning.data.views.Weak, init_args: {flip: false}}
own:
  class_path: usl_lightning.data.views.Recipe
  init_args:
    steps:
      - {class_path: usl_lightning.data.views.steps.RandomResizedCrop, init_args: {scale: [0.5, 1.0], flip: false}}
      - {class_path: usl_lightning.data.views.randaugment.RandAugment, init_args: {num_ops: 1, dialect: torchssl}}
      - {class_path: usl_lightning.data.views.steps.Greyscale, init_args: {p: 0.3}}
"""
    )
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--weak", type=nn.Module)
    parser.add_argument("--own", type=nn.Module)
    built = parser.instantiate_classes(parser.parse_args([f"--config={file}"]))
    assert built.weak.steps[0].flip is False
    images, key = photos(32, 8), keys(8)
    same = Recipe(
        [
            steps.RandomResizedCrop(scale=(0.5, 1.0), flip=False),
            RandAugment(1, dialect="torchssl"),
            steps.Greyscale(0.3),
        ]
    )
    assert torch.equal(built.own(images, key), same(images, key))


# --- the published pipelines, with the parameters that were drawn


def pil_operation(name: str, image: Image.Image, s: float, g: float, dialect: str) -> Image.Image:
    """One operation of FixMatch's pool as its codes write it; s in [0, 1], g in [-1, 1]."""
    w, h = image.size

    def moved(*data: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, data)

    enhance = {
        "brightness": ImageEnhance.Brightness,
        "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name in enhance:
        return enhance[name](image).enhance(1.9 if dialect == "comatch" else 0.05 + 0.9 * s)
    whole = int if dialect == "fixmatch" else float
    bits = 4 if dialect == "comatch" else 4 + int(s * (5 if dialect == "default" else 4))
    return {
        "identity": lambda: image,
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "posterize": lambda: ImageOps.posterize(image, bits),
        "solarize": lambda: ImageOps.solarize(image, 256 - int(256 * s) if dialect == "fixmatch" else 256 * s),
        "rotate": lambda: image.rotate(30 * g),
        "shear_x": lambda: moved(1, 0.3 * g, 0, 0, 1, 0),
        "shear_y": lambda: moved(1, 0, 0, 0.3 * g, 1, 0),
        "translate_x": lambda: moved(1, 0, -whole(0.3 * w * g), 0, 1, 0),
        "translate_y": lambda: moved(1, 0, 0, 0, 1, -whole(0.3 * h * g)),
    }[name]()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("dialect", "num_ops"), [("default", 2), ("fixmatch", 2), ("torchssl", 3), ("comatch", 2), ("default", 5)]
)
def test_randaugment_equals_pillow_one_operation_after_another(dialect: Dialect, num_ops: int, channels: int) -> None:
    images = images_with(channels, 64).repeat(6, 1, 1, 1)
    step, key = RandAugment(num_ops, 0.5 if dialect == "fixmatch" else 1.0, dialect), keys(len(images))
    ours = step(images, key)
    operations, (unsigned, signed) = step.operations(key), step.magnitudes(key)
    different = 0.0
    for i, image in enumerate(images):
        expected = to_pil(image)
        for turn in range(num_ops):
            name = POOL[int(operations[i, turn])]
            expected = pil_operation(name, expected, float(unsigned[i, turn]), float(signed[i, turn]), dialect)
        different += float((ours[i] != from_pil(expected)).float().mean()) / len(images)
    assert different == 0


def test_simclr_equals_torchvision_on_pillow() -> None:
    images, key = photos(32, 64), keys(64)
    view = SimCLRView()
    crop, jitter, grey = view.steps
    at = [key.fold(i, type(step).__name__) for i, step in enumerate(view.steps)]
    boxes = torch.stack(crop.box(at[0], 32, 32), dim=1).tolist()
    flips = at[0].fold("flip").chance(0.5).tolist()
    factors = [jitter.factor(at[1].fold(name), 0.4) for name in ("brightness", "contrast", "saturation")]
    factors.append(at[1].fold("hue").uniform(1, -0.1, 0.1)[:, 0])
    orders, applied = at[1].fold("order").order(4).tolist(), at[1].fold("apply").chance(0.8).tolist()
    greys = at[2].chance(grey.p).tolist()
    adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    expected = []
    for i, image in enumerate(images):
        x = tv.resized_crop(to_pil(image), *boxes[i], [32, 32])
        x = tv.hflip(x) if flips[i] else x
        for which in orders[i] if applied[i] else []:
            x = adjust[which](x, float(factors[which][i]))
        expected.append(from_pil(tv.to_grayscale(x, 3) if greys[i] else x))
    difference = ((view(images, key) * 255).round() - torch.stack(expected)).abs()
    # The crop may differ by one level in a few pixels; a step after it can turn that into a few levels.
    assert float((difference > 0).float().mean()) < 0.01
    assert float(difference.mean()) < 0.01


def test_evaluation_equals_torchvision() -> None:
    images = photos(96, 4)
    assert torch.equal(Evaluation()(images, keys(4))[0], tv.to_tensor(to_pil(images[0])))
    for size, resize in ((24, None), (64, 70), (112, 128)):
        pipeline = transforms.Compose(
            [
                transforms.Resize(round(size / 0.875) if resize is None else resize),
                transforms.CenterCrop(size),
            ]
        )
        wide = images[:, :, :61]
        expected = torch.stack([from_pil(pipeline(to_pil(image))) for image in wide])
        ours = Evaluation(size, resize)(wide, keys(4))
        assert float((ours * 255 - expected).abs().max()) < 1.01


def test_one_channel_gets_no_hue_or_saturation() -> None:
    images, key = digits(32), keys(32)
    assert torch.equal(steps.Greyscale(1.0)(images, key), images)
    assert torch.equal(steps.ColorJitter(0, 0, 0.9, 0.5, p=1)(images, key), images)
    assert not torch.equal(steps.ColorJitter(0.9, 0, 0, 0, p=1)(images, key), images)


# --- distributions of what is drawn (fixed keys, so these never flicker)

MANY = 20_000
LIKELY = 1e-3


def uniform_over(values: list[object], outcomes: int) -> float:
    """p-value of all outcomes being equally likely."""
    counts = Counter(values)
    assert len(counts) <= outcomes
    return float(stats.chisquare([*counts.values(), *[0] * (outcomes - len(counts))]).pvalue)


def marked(side: int = 33) -> Tensor:
    """uint8 [MANY, 1, side, side]: black but for the centre: shows where a step moved it."""
    image = torch.zeros(1, 1, side, side, dtype=torch.uint8)
    image[..., side // 2, side // 2] = 255
    return image.expand(MANY, 1, side, side)


def test_weak_shifts_are_uniform_and_flips_even() -> None:
    moved = steps.FlipTranslate()(marked(), keys(MANY))
    places = moved.flatten(1).argmax(1)
    shifts = [(int(p) // 33 - 16, int(p) % 33 - 16) for p in places]
    assert set(shifts) == {(y, x) for y in range(-4, 5) for x in range(-4, 5)}
    assert uniform_over(shifts, 81) > LIKELY
    arrow = torch.tensor([0, 255], dtype=torch.uint8).expand(MANY, 1, 1, 2)
    flips = int((steps.FlipTranslate(translate=0)(arrow, keys(MANY))[:, 0, 0, 0] == 255).sum())
    assert stats.binomtest(flips, MANY, 0.5).pvalue > LIKELY
    assert torch.equal(steps.FlipTranslate(flip=False, translate=0)(arrow, keys(MANY)), arrow)


@pytest.mark.parametrize("dialect", ["default", "fixmatch", "torchssl"])
def test_randaugment_draws_operations_and_magnitudes_evenly(dialect: Dialect) -> None:
    step, key = RandAugment(2, dialect=dialect), keys(MANY)
    pairs = [tuple(pair) for pair in step.operations(key).tolist()]
    assert uniform_over(pairs, 14 * 14) > LIKELY
    unsigned, signed = step.magnitudes(key)
    if dialect == "fixmatch":
        assert uniform_over([round(v, 1) for v in unsigned[:, 0].tolist()], 9) > LIKELY
        assert uniform_over([round(v, 1) for v in signed[:, 1].tolist()], 18) > LIKELY
    else:
        assert stats.kstest(unsigned.flatten().numpy(), "uniform").pvalue > LIKELY
        assert stats.kstest(signed[:, 0].numpy(), stats.uniform(-1, 2).cdf).pvalue > LIKELY
    bits = step.value_parameters(unsigned[:, 0])[1].tolist()
    if dialect != "fixmatch":
        assert uniform_over(bits, 5 if dialect == "default" else 4) > LIKELY
    assert (min(bits), max(bits)) == (4, 8 if dialect == "default" else 7)


def test_comatchs_first_view_is_always_the_strongest() -> None:
    view = FixMatchStrong("comatch")
    _, augment, cutout = view.steps
    unsigned, signed = augment.magnitudes(keys(MANY))
    assert (unsigned == 1).all()
    assert uniform_over(signed.flatten().tolist(), 2) > LIKELY
    factor, bits, threshold = augment.value_parameters(unsigned[:, 0])
    assert factor.tolist() == [pytest.approx(1.9)] * MANY
    assert (set(bits.tolist()), set(threshold.tolist())) == ({4}, {256})
    right = augment.matrix(torch.tensor([POOL.index("translate_x")] * MANY), signed[:, 0], 32, 32)[:, 2]
    assert set(right.abs().tolist()) == {10}
    assert (augment.num_ops, augment.p, cutout.size, cutout.fill) == (2, 0.5, 0.5, (128.0,))


def test_randaugment_applies_each_operation_with_its_probability() -> None:
    drawn = RandAugment(2, p=0.5).operations(keys(MANY))
    moved = int((drawn != 0).sum())
    assert stats.binomtest(moved, 2 * MANY, 0.5 * 13 / 14).pvalue > LIKELY


@pytest.mark.parametrize(("h", "w", "scale"), [(32, 32, (0.08, 1.0)), (30, 60, (0.2, 1.0)), (8, 40, (0.5, 1.0))])
def test_crop_boxes_are_distributed_as_torchvisions(h: int, w: int, scale: tuple[float, float]) -> None:
    count = 6000
    ours = torch.stack(steps.RandomResizedCrop(scale=scale).box(keys(count, h, w), h, w), dim=1)
    torch.manual_seed(0)
    image = torch.zeros(1, h, w)
    theirs = torch.tensor(
        [transforms.RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(count)]
    )
    top, left, height, width = ours.unbind(1)
    assert int(top.min()) >= 0
    assert int(left.min()) >= 0
    assert int((top + height).max()) <= h
    assert int((left + width).max()) <= w
    for column in range(4):
        assert stats.ks_2samp(ours[:, column].numpy(), theirs[:, column].numpy()).pvalue > LIKELY
    area_ours, area_theirs = (boxes[:, 2] * boxes[:, 3] for boxes in (ours, theirs))
    assert stats.ks_2samp(area_ours.numpy(), area_theirs.numpy()).pvalue > LIKELY
    assert stats.ks_2samp((width / height).numpy(), (theirs[:, 3] / theirs[:, 2]).numpy()).pvalue > LIKELY


def test_jitter_factors_orders_and_probability() -> None:
    seen: dict[str, Tensor] = {}

    def record(images: Tensor, *drawn: Tensor) -> Tensor:
        seen.update(zip(("brightness", "contrast", "saturation", "hue", "order"), drawn, strict=True))
        return images

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps.ops, "color_jitter", record)
        steps.ColorJitter(0.8, 0.4, 1.5, 0.1, p=0.8)(torch.zeros(MANY, 3, 1, 1, dtype=torch.uint8), keys(MANY))
    for name, low, high in (
        ("brightness", 0.2, 1.8),
        ("contrast", 0.6, 1.4),
        ("saturation", 0, 2.5),
        ("hue", -0.1, 0.1),
    ):
        assert stats.kstest(seen[name].double().numpy(), stats.uniform(low, high - low).cdf).pvalue > LIKELY
    jittered = seen["order"][seen["order"][:, 0] >= 0]
    assert stats.binomtest(len(jittered), MANY, 0.8).pvalue > LIKELY
    assert uniform_over([tuple(order) for order in jittered.tolist()], 24) > LIKELY
    assert abs(float(torch.corrcoef(torch.stack([seen["brightness"], seen["contrast"]]))[0, 1])) < 0.03


def test_grey_and_blur_probabilities_and_independence() -> None:
    color = torch.tensor([10, 100, 200], dtype=torch.uint8).view(1, 3, 1, 1).expand(MANY, 3, 1, 1)
    grey = (steps.Greyscale(0.2)(color, keys(MANY)).flatten(1).diff(dim=1) == 0).all(1)
    assert stats.binomtest(int(grey.sum()), MANY, 0.2).pvalue > LIKELY
    center = steps.GaussianBlur(0.5, kernel=3)(marked(5), keys(MANY))[:, 0, 2, 2].double()
    blurred = center[center < 254]  # below σ ≈ 0.25 a blur cannot be seen in bytes
    # One axis keeps 1 / (1 + 2e) of the centre, e = exp(−1/2σ²): invert to find σ.
    e = (1 / (blurred / 255).sqrt() - 1) / 2
    sigma = (-1 / (2 * e.log())).sqrt()
    visible = sigma[sigma > 0.5]
    assert stats.binomtest(len(visible), MANY, 0.5 * 1.5 / 1.9).pvalue > LIKELY
    assert float(visible.max()) < 2.1
    assert abs(float(visible.mean()) - 1.25) < 0.03
    both = int((grey & (center < 254)).sum())
    assert stats.binomtest(both, MANY, float(grey.float().mean() * (center < 254).float().mean())).pvalue > LIKELY


def test_cutout_is_half_the_side_with_a_uniform_center() -> None:
    white = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8).expand(MANY, 1, 16, 16)
    cut = steps.Cutout()(white, keys(MANY))[:, 0] == 127
    heights, widths = cut.any(2).sum(1), cut.any(1).sum(1)
    tops = cut.any(2).float().argmax(1)
    assert torch.equal(cut.flatten(1).sum(1), heights * widths)
    assert int(heights.max()) == int(widths.max()) == 8
    assert uniform_over((tops[tops > 0]).tolist(), 11) > LIKELY  # a center in [5, 16) gives tops of 1 to 11
    assert stats.binomtest(int((tops == 0).sum()), MANY, 5 / 16).pvalue > LIKELY
    sides = (steps.Cutout(random_size=True)(white, keys(MANY))[:, 0] == 127).flatten(1).any(1)
    assert stats.binomtest(int((~sides).sum()), MANY, 1 / 8).pvalue > LIKELY  # a side of one pixel: nothing
    assert torch.equal(steps.Cutout(0)(white, keys(MANY)), white)
    assert torch.equal(steps.Cutout(0, edges="pillow")(white, keys(MANY)), white)


def painted_by_pillow(center: tuple[float, float], side: float, size: int) -> np.ndarray:
    """What `CutoutAbs` of the PyTorch re-implementations paints, bool [size, size]: the drawing is Pillow's own."""
    x0, y0 = (int(max(0, at * size - side / 2.0)) for at in center)
    x1, y1 = min(size, x0 + side), min(size, y0 + side)
    image = Image.new("L", (size, size))
    ImageDraw.Draw(image).rectangle((x0, y0, x1, y1), 255)
    return np.asarray(image) > 0


def painted_by_slices(center: tuple[float, float], side: int, size: int) -> np.ndarray:
    """What FixMatch's authors, CoMatch and SCAN paint: half of the side to each side of a pixel."""
    painted = np.zeros((size, size), dtype=bool)
    row, column = (int(at * size) for at in reversed(center))
    rows, columns = (np.clip([at - side // 2, at + side // 2], 0, size) for at in (row, column))
    painted[rows[0] : rows[1], columns[0] : columns[1]] = True
    return painted


@pytest.mark.parametrize("random_size", [False, True])
@pytest.mark.parametrize("edges", ["clipped", "pillow"])
@pytest.mark.parametrize("size", [8, 31, 32])
def test_cutout_paints_what_was_published(edges: Edges, size: int, random_size: bool) -> None:
    white, key = torch.full((64, 1, size, size), 255, dtype=torch.uint8), keys(64)
    cut = (steps.Cutout(0.5, random_size, edges=edges)(white, key)[:, 0] == 127).numpy()
    centers, drawn = key.fold("center").uniform(2).tolist(), key.fold("size").uniform()[:, 0].tolist()
    most = size // 2
    for painted, (row, column), share in zip(cut, centers, drawn, strict=True):
        if edges == "pillow":
            side = share * size / 2 if random_size else most
            expected = painted_by_pillow((column, row), side, size)
        else:
            expected = painted_by_slices((column, row), 1 + int(share * most) if random_size else most, size)
        assert np.array_equal(painted, expected)
    if not random_size:
        widest = max(int(painted.any(0).sum()) for painted in cut)
        assert widest == (most + 1 if edges == "pillow" else 2 * (most // 2))


def test_the_dialects_draw_their_own_squares() -> None:
    """Of 32 pixels: 17 where the re-implementations name 16, 16 in the code of FixMatch's authors and of CoMatch's."""
    white = torch.full((MANY, 3, 32, 32), 255, dtype=torch.uint8)
    widths = {}
    for dialect in ("default", "fixmatch", "torchssl", "comatch"):
        square = FixMatchStrong(dialect).steps[-1](white, keys(MANY))[:, 0] != 255
        widths[dialect] = int(square.any(1).sum(1).max())
    assert widths == {"default": 16, "fixmatch": 17, "torchssl": 16, "comatch": 16}
    assert FixMatchStrong("torchssl").steps[-1].edges == "pillow", "of a random size below 16"
    own = FixMatchStrong("fixmatch", edges="clipped").steps[-1](white, keys(MANY))[:, 0] != 255
    assert int(own.any(1).sum(1).max()) == 16


def test_uslts_view_moves_nothing_before_its_operations() -> None:
    """Its code's random crop of 32 pixels out of 32 has no padding: an image is mirrored or as it is."""
    view, images = USLTView(), torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(MANY, 3, 8, 8)
    first, operations, square = view.steps
    moved = first(images, keys(MANY))
    mirrored = (moved == images.flip(3)).flatten(1).all(1)
    assert bool((mirrored | (moved == images).flatten(1).all(1)).all())
    assert stats.binomtest(int(mirrored.sum()), MANY, 0.5).pvalue > LIKELY
    assert (operations.num_ops, operations.max_shear, operations.max_translate) == (4, 0.1, 0.1)
    assert (square.size, square.random_size, square.edges) == (0.5, True, "clipped")


@pytest.mark.parametrize(("side", "most"), [(4, 7), (8, 15)])
def test_a_blur_wider_than_the_image_mirrored_is_refused(side: int, most: int) -> None:
    images = torch.zeros(2, 3, side, 2 * side, dtype=torch.uint8)
    steps.GaussianBlur(1.0, kernel=most)(images, keys(2))
    with pytest.raises(UslError, match=f"kernel: {most + 2} taps for .* {side} pixels; use at most {most}"):
        steps.GaussianBlur(1.0, kernel=most + 2)(images, keys(2))

"""Operations that move pixels, each sample with its own parameters.

Two families, each of which reads every pixel of the result from the image once, however many operations were
put together:

- nearest neighbour: `Coordinates` say where each pixel of the result comes from; every operation pulls them back
  by one step (the last operation first), and `sample` reads the pixels. The result equals that of resampling
  after every operation, to the bit. Rotation and shear use Pillow's 16.16 fixed-point arithmetic.
- linear: crop, resize, flip and blur are one matrix for the rows and one for the columns (`resample`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from usl_lightning.data.views.pixels import pieces, to_uint8

_ONE = 65536  # 1.0 in fixed point with 16 binary places


@dataclass(frozen=True)
class Coordinates:
    """Where the pixels of a result come from.

    Attributes:
        y, x: int32, broadcast to [b, h, w]: row and column in the source.
        inside: bool [b, h, w], false where the source has no such pixel; None when all are there.
    """

    y: Tensor
    x: Tensor
    inside: Tensor | None = None


def identity(images: Tensor) -> Coordinates:
    """Every pixel comes from its own place. y [1, h, 1], x [1, 1, w]."""
    h, w = images.shape[-2:]
    y = torch.arange(h, dtype=torch.int32, device=images.device).view(1, h, 1)
    x = torch.arange(w, dtype=torch.int32, device=images.device).view(1, 1, w)
    return Coordinates(y, x)


def sample(images: Tensor, at: Coordinates, fill: float = 0) -> Tensor:
    """Read the pixels at the given coordinates; `fill` (on the images' scale) where there is none."""
    b, c, h, w = images.shape
    index = (at.y.clamp(0, h - 1) * w + at.x.clamp(0, w - 1)).long().expand(b, h, w)
    out = images.reshape(b, c, h * w).gather(2, index.reshape(b, 1, h * w).expand(b, c, h * w)).view(b, c, h, w)
    if at.inside is None:
        return out
    return out.masked_fill_(~at.inside[:, None], fill)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Positions beyond the edge, mirrored at the centre of the edge pixel (the edge pixel is not repeated)."""
    if size == 1:
        return torch.zeros_like(position)
    return size - 1 - (position.remainder(2 * size - 2) - (size - 1)).abs()


def shift_and_flip(images: Tensor, down: Tensor, right: Tensor, flip: Tensor | None = None) -> Tensor:
    """Mirror left to right where `flip` (bool [b]), then move by whole pixels with reflection at the edges.

    down, right: int [b], in pixels, negative for up and left. The same as padding by reflection and cropping
    (torchvision's `RandomCrop(padding_mode="reflect")`).
    """
    h, w = images.shape[-2:]
    at = identity(images)
    y = _reflect(at.y - down.to(torch.int32).view(-1, 1, 1), h)
    x = _reflect(at.x - right.to(torch.int32).view(-1, 1, 1), w)
    if flip is not None:
        x = torch.where(flip.view(-1, 1, 1), w - 1 - x, x)
    return sample(images, Coordinates(y, x))


def horizontal_flip(images: Tensor, flip: Tensor) -> Tensor:
    """Mirror left to right the samples where `flip` (bool [b]) is true."""
    still = torch.zeros_like(flip, dtype=torch.int32)
    return shift_and_flip(images, still, still, flip)


def rotation(degrees: Tensor, height: int, width: int) -> Tensor:
    """Matrix, float64 [b, 6], of Pillow's `rotate`: counter-clockwise about the centre. degrees: float [b]."""
    angle = -torch.deg2rad(degrees.double())
    cos, sin = angle.cos(), angle.sin()
    cx, cy = width / 2, height / 2
    rows = (cos, sin, cx - cx * cos - cy * sin, -sin, cos, cy + cx * sin - cy * cos)
    return torch.stack(rows, dim=1)


def affine_matrix(
    like: Tensor,
    *,
    shear_x: Tensor | float = 0.0,
    shear_y: Tensor | float = 0.0,
    right: Tensor | float = 0.0,
    down: Tensor | float = 0.0,
) -> Tensor:
    """Matrix, float64 [b, 6], of Pillow's `Image.transform(AFFINE)`: result (x, y) comes from source
    (x + shear_x·y − right, shear_y·x + y − down). Parameters are [b] or numbers; `like` gives b and the device.
    """
    matrix = torch.zeros(len(like), 6, dtype=torch.float64, device=like.device)
    matrix[:, 0] = 1
    matrix[:, 1] = shear_x
    matrix[:, 2] = -right
    matrix[:, 3] = shear_y
    matrix[:, 4] = 1
    matrix[:, 5] = -down
    return matrix


def pull_back(at: Coordinates, matrix: Tensor, height: int, width: int) -> Coordinates:
    """The coordinates before an affine step, as Pillow finds them: nearest pixel, 16.16 fixed point.

    matrix: float64 [b, 6]: pixel centre (x, y) of the result comes from (m0·x + m1·y + m2, m3·x + m4·y + m5).
    """
    m = matrix.double()
    offset_x, offset_y = m[:, 2] + (m[:, 0] + m[:, 1]) / 2, m[:, 5] + (m[:, 3] + m[:, 4]) / 2
    columns = (m[:, 0], m[:, 1], offset_x, m[:, 3], m[:, 4], offset_y)
    fixed = (torch.stack(columns) * _ONE + 0.5).floor().to(torch.int32).view(6, -1, 1, 1)
    x = (at.x * fixed[0] + at.y * fixed[1] + fixed[2]) >> 16
    y = (at.x * fixed[3] + at.y * fixed[4] + fixed[5]) >> 16
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    inside = inside if at.inside is None else inside & at.inside
    # Coordinates off the image stay bounded, so that a further step cannot overflow.
    return Coordinates(y.clamp_(-1, height), x.clamp_(-1, width), inside)


def affine(images: Tensor, matrices: Sequence[Tensor], fill: float = 0) -> Tensor:
    """Affine steps one after another (first step first), pixels read once, nearest neighbour.

    matrices: float64 [b, 6] each, from `rotation` or `affine_matrix`. fill: on the images' scale. A part that
    one step moves out of the image is lost to the next, as if each step had made an image.
    """
    h, w = images.shape[-2:]
    at = identity(images)
    for matrix in reversed(matrices):
        at = pull_back(at, matrix, h, w)
    return sample(images, at, fill)


def rotate(images: Tensor, degrees: Tensor, fill: float = 0) -> Tensor:
    """Counter-clockwise about the centre, nearest neighbour, same size. degrees: float [b]."""
    return affine(images, [rotation(degrees, *images.shape[-2:])], fill)


def turn_scale_move(images: Tensor, degrees: Tensor, scale: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Turn counter-clockwise and enlarge about the centre, then move, bilinear; what is beyond the edges is mirrored.

    Args:
        images: uint8.
        degrees, scale: float [b]; the scale is above 0.
        down, right: float [b], as shares of the side.
    """
    h, w = images.shape[-2:]
    angle = torch.deg2rad(degrees)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    y, x = (torch.linspace(1 - n, n - 1, n, device=images.device) / 2 for n in (h, w))  # pixels from the centre
    down, right, cos, sin = (each.view(-1, 1, 1) for each in (down * h, right * w, cos, sin))
    rows, columns = y[:, None] - down, x - right
    at = torch.stack(((cos * columns - sin * rows) * (2 / w), (sin * columns + cos * rows) * (2 / h)), dim=3)
    pixels = images.to(torch.float32)
    with torch.autocast(images.device.type, enabled=False):
        out = F.grid_sample(pixels, at, mode="bilinear", padding_mode="reflection", align_corners=False)
    return to_uint8(out.add_(0.5).clamp_(0, 255))


def shear_x(images: Tensor, amount: Tensor, fill: float = 0) -> Tensor:
    """Row y moves left by amount·y pixels about the top-left corner. amount: float [b]."""
    return affine(images, [affine_matrix(amount, shear_x=amount)], fill)


def shear_y(images: Tensor, amount: Tensor, fill: float = 0) -> Tensor:
    """Column x moves up by amount·x pixels about the top-left corner. amount: float [b]."""
    return affine(images, [affine_matrix(amount, shear_y=amount)], fill)


def translate_x(images: Tensor, right: Tensor, fill: float = 0) -> Tensor:
    """Move right by `right` pixels, [b], rounded to whole ones."""
    return affine(images, [affine_matrix(right, right=right)], fill)


def translate_y(images: Tensor, down: Tensor, fill: float = 0) -> Tensor:
    """Move down by `down` pixels, [b], rounded to whole ones."""
    return affine(images, [affine_matrix(down, down=down)], fill)


def resize_matrix(start: Tensor, length: Tensor, size: int, out: int, flip: Tensor | None = None) -> Tensor:
    """Weights, float32 [b, out, size], of Pillow's antialiased bilinear resize of a crop along one axis.

    Args:
        start, length: int [b], the crop in pixels: [start, start + length) of `size`.
        size: pixels along the axis.
        out: pixels of the result along the axis.
        flip: bool [b], whether the result is mirrored.
    """
    scale = length.double() / out
    place = torch.arange(out, dtype=torch.float64, device=start.device).expand(len(start), out)
    if flip is not None:
        place = torch.where(flip[:, None], out - 1 - place, place)
    center = ((place + 0.5) * scale[:, None] + (start - 0.5)[:, None]).to(torch.float32)
    width = scale.clamp(min=1).to(torch.float32).view(-1, 1, 1)
    pixel = torch.arange(size, dtype=torch.float32, device=start.device)
    weight = (pixel - center[:, :, None]).abs_().div_(-width).add_(1).clamp_(min=0)
    cropped = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])
    weight.mul_(cropped[:, None, :])
    return weight.div_(weight.sum(2, keepdim=True))


def blur_matrix(sigma: Tensor, kernel: int, size: int) -> Tensor:
    """Weights, float32 [b, size, size], of a Gaussian blur along one axis, reflected at the edges.

    sigma: float [b], standard deviation in pixels, > 0. kernel: taps, odd, at most 2·size − 1.
    """
    radius = kernel // 2
    tap = torch.arange(-radius, radius + 1, device=sigma.device)
    weight = torch.exp(-0.5 * (tap / sigma.double()[:, None]) ** 2)
    weight = (weight / weight.sum(1, keepdim=True)).to(torch.float32)
    place = torch.arange(size, device=sigma.device)
    matrix = torch.zeros(len(sigma), size, size, device=sigma.device)
    for number in range(kernel):  # of the taps, not of the samples
        source = _reflect(place + number - radius, size)
        matrix += weight[:, number].view(-1, 1, 1) * (source[:, None] == place)
    return matrix


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Result = rows · image · columnsᵀ for every channel: [b, c, out_h, out_w].

    Args:
        rows: weights [b or 1, out_h, h]; columns: weights [b or 1, out_w, w]; each row of them sums to 1.

    uint8 follows Pillow: columns first, bytes in between. The weights are rounded to 16 binary places, so that
    all sums have at most 24 bits and are exact in float32 in whatever order a library adds them: the result
    does not depend on the batch or the machine. Matrix products are kept out of autocast.
    """
    b, c = images.shape[:2]
    with torch.autocast(images.device.type, enabled=False):
        if images.dtype != torch.uint8:
            across, down = columns.to(images.dtype).transpose(1, 2), rows.to(images.dtype)
            return down[:, None] @ (images @ across[:, None])
        every = slice(0, 1)
        out = images.new_empty(b, c, rows.shape[1], columns.shape[1])
        for start in range(0, b, pieces(images)):
            part = slice(start, start + pieces(images))
            out[part] = _resample_bytes(
                images[part],
                rows[part if len(rows) > 1 else every],
                columns[part if len(columns) > 1 else every],
            )
        return out


def _resample_bytes(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`resample` of uint8 images, in float32 and bytes [b, c, out_h, out_w]."""
    b, c, h, w = images.shape
    # [b, out_w, c·h], then [b, out_w·c, out_h]: both products are large, and nothing is copied between them.
    pixels = images.to(torch.float32).reshape(b, c * h, w).transpose(1, 2)
    wide = _exact_sums(columns.expand(b, -1, w), lambda weights: weights @ pixels)
    wide = wide.add_(0.5).floor_().clamp_(0, 255).view(b, -1, h)
    tall = _exact_sums(rows.expand(b, -1, h), lambda weights: wide @ weights.transpose(1, 2))
    bytes_ = to_uint8(tall.add_(0.5).clamp_(0, 255))
    return bytes_.view(b, -1, c, rows.shape[1]).permute(0, 2, 3, 1)


def _exact_sums(weights: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    """`product(weights)` of weights rounded to 16 binary places.

    Where the library may compute float32 products with fewer bits (TF32, bfloat16), the weights go in as two
    bytes, which keeps every product and sum exact.
    """
    weights = (weights * _ONE).round_()
    if weights.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest":
        return product(weights.mul_(1 / _ONE))
    high = (weights / 256).floor_()
    return product(high).mul_(256 / _ONE).add_(product(weights - 256 * high), alpha=1 / _ONE)


def resized_crop(
    images: Tensor,
    top: Tensor,
    left: Tensor,
    height: Tensor,
    width: Tensor,
    size: tuple[int, int],
    flip: Tensor | None = None,
) -> Tensor:
    """Cut out a box, resize it to `size` = (out_h, out_w) (bilinear, antialiased), mirror where `flip`.

    top, left, height, width: int [b], in pixels, the box within the image. Equal to torchvision's
    `resized_crop` and `hflip` on Pillow images, in one resampling.
    """
    rows = resize_matrix(top, height, images.shape[2], size[0])
    columns = resize_matrix(left, width, images.shape[3], size[1], flip)
    return resample(images, rows, columns)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize all images to `size` = (out_h, out_w), bilinear, antialiased."""
    h, w = images.shape[-2:]
    zero = torch.zeros(1, dtype=torch.int64, device=images.device)
    return resample(images, resize_matrix(zero, zero + h, h, size[0]), resize_matrix(zero, zero + w, w, size[1]))


def gaussian_blur(images: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Gaussian blur, reflected at the edges. sigma: float [b], in pixels; kernel: odd number of taps."""
    h, w = images.shape[-2:]
    largest = 2 * min(h, w) - 1
    if kernel % 2 == 0 or kernel > largest:
        raise ValueError(f"kernel is {kernel}; expected an odd number of taps, at most {largest} for {h}×{w} images")
    return resample(images, blur_matrix(sigma, kernel, h), blur_matrix(sigma, kernel, w))


def half_open_box(center: Tensor, side: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First pixel and one past the last, int64 [b], of a box of `side` pixels about `center` (real, [b])."""
    first = (center - side / 2).clamp(min=0).floor().long()
    return first, (first + side.long()).clamp(max=size)


def odd_kernel(fraction: float, side: int) -> int:
    """Taps of a blur that spans `fraction` of `side` pixels: an even number becomes the next odd one; at least 3."""
    return max(3, 2 * (math.floor(fraction * side) // 2) + 1)

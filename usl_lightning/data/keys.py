"""Randomness as a function.

Every random number of a training run is `hash(seed, names, step, micro-batch, global slot, draw)`: nothing
is drawn from a running generator. So a resumed run, any number of workers and any number of processes see
the same images with the same augmentations.
"""

import hashlib

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MUL1 = 0xBF58476D1CE4E5B9
_MUL2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


_GOLDEN_S, _MUL1_S, _MUL2_S = _signed(_GOLDEN), _signed(_MUL1), _signed(_MUL2)


def _mix(x: int) -> int:
    """SplitMix64's finaliser (Steele, Lea, Flood, 2014) on a Python integer."""
    x &= _MASK
    x = ((x ^ (x >> 30)) * _MUL1) & _MASK
    x = ((x ^ (x >> 27)) * _MUL2) & _MASK
    return x ^ (x >> 31)


def _mix_tensor(x: Tensor) -> Tensor:
    """The same on int64 tensors, which wrap around alike everywhere; `>>` keeps the sign, hence the masks."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MUL1_S
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MUL2_S
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def _number(part: int | str) -> int:
    if isinstance(part, str):
        return int.from_bytes(hashlib.blake2b(part.encode(), digest_size=8).digest(), "little")
    return part


def _fold(base: int, parts: tuple[int | str, ...]) -> int:
    for part in parts:
        base = _mix((base + _GOLDEN) ^ _mix(_number(part) + _GOLDEN))
    return base


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) for libraries that want one (k-means, scikit-learn), a function of `parts`."""
    return _fold(0, parts) >> 1


def permutation(n: int, *parts: int | str) -> Tensor:
    """A random order of `range(n)` as LongTensor [n], a function of `parts`; the same on every machine."""
    return torch.argsort(Key(_fold(0, parts), torch.arange(n)).bits(1)[:, 0], stable=True)


class Key:
    """A batch of random keys, one for each slot of the global batch.

    Args:
        base: what all slots share, made by folding names and numbers.
        slots: int64 [b], the positions of these samples in the *global* batch of the step.

    `fold` gives an independent key for another purpose; the draws below return one row a slot, on the
    slots' device. Drawing twice from the same key gives the same numbers: fold first.
    """

    __slots__ = ("base", "slots")

    def __init__(self, base: int, slots: Tensor) -> None:
        self.base = base
        self.slots = slots

    @classmethod
    def of(cls, *parts: int | str, slots: Tensor) -> "Key":
        """The key of (seed, stage, step, …) for the given global slots, int64 [b]."""
        return cls(_fold(0, parts), slots)

    def __len__(self) -> int:
        return len(self.slots)

    def __getitem__(self, rows: slice | Tensor) -> "Key":
        """The keys of some of the slots."""
        return Key(self.base, self.slots[rows])

    def fold(self, *parts: int | str) -> "Key":
        """An independent key for the same slots, for the purpose named by `parts`."""
        return Key(_fold(self.base, parts), self.slots)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Key":
        """The same key with its slots on `device`."""
        return Key(self.base, self.slots.to(device, non_blocking=non_blocking))

    def bits(self, n: int) -> Tensor:
        """int64 [b, n], each uniform in [0, 2^63)."""
        state = _mix_tensor(self.slots * _GOLDEN_S + _signed(self.base))
        draws = torch.arange(1, n + 1, device=self.slots.device) * _MUL2_S
        return _mix_tensor(state[:, None] + draws) & 0x7FFFFFFFFFFFFFFF

    def uniform(self, n: int = 1, low: float = 0.0, high: float = 1.0) -> Tensor:
        """float32 [b, n], uniform in [low, high), a multiple of (high - low)·2^-24 above low."""
        return (self.bits(n) >> 39).to(torch.float32).mul_(2.0**-24 * (high - low)).add_(low)

    def integers(self, n: int, high: int) -> Tensor:
        """int64 [b, n], uniform in {0, …, high - 1} (to within high·2^-63)."""
        return self.bits(n) % high

    def chance(self, p: float) -> Tensor:
        """bool [b], true with probability p."""
        return self.uniform()[:, 0] < p

    def order(self, n: int) -> Tensor:
        """int64 [b, n], a uniformly random order of {0, …, n - 1} for each slot."""
        return torch.argsort(self.bits(n), dim=1)

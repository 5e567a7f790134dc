"""Which values a parameter may have: declared once, beside the parameters, and checked wherever they are given.

A class says `ranges = {"temperature": above(0), "momentum": at_least(0, below=1)}`; what its bases say holds too. The
command line reads that from the source, before anything is imported (`usl_lightning.base.parameters`). Who constructs
the class is told by the class itself: a dataclass calls `check` in its `__post_init__`, all others are `Ranged`.
Imports nothing heavy.
"""

import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, ClassVar, Self, Unpack, cast, get_origin

from usl_lightning.base.errors import UslError

LARGEST = 2**63 - 1
"""Whole numbers above do not fit the 64 bits in which tensors count."""


@dataclass(frozen=True)
class Range:
    """Numbers from one end to another; of a list or tuple, what each of its entries may be.

    None is in every range, as a parameter's type says whether it may be None. So is what is no number: that is the
    type's too. NaN, true and false are in none, infinities only where that is said.

    Attributes:
        low, high: the ends.
        includes_low, includes_high: whether they belong to it.
        whole: whole numbers alone.
        odd: odd ones alone.
        infinite: infinity belongs to it.
        rising: no entry is below the one before.
        only: these numbers and no others.
        of: another parameter of the class, a whole number, which is the low end in truth; `low` holds where that is not
            known. "" is none.
        more: the high end is then a part in so many above it.
        unset: a number that says there is none, as a library writes it; in the range whatever the ends are.
    """

    low: float = -math.inf
    high: float = math.inf
    includes_low: bool = True
    includes_high: bool = True
    whole: bool = False
    odd: bool = False
    infinite: bool = False
    rising: bool = False
    only: tuple[float, ...] = ()
    of: str = ""
    more: int = 1
    unset: float | None = None

    def beside(self, values: Mapping[str, Any]) -> "Range":
        """The range once the class's other parameters are known.

        Args:
            values: parameter -> value.
        """
        base = values.get(self.of)
        if not isinstance(base, int) or isinstance(base, bool):
            return self
        return replace(self, low=max(self.low, base), high=base + base // self.more)

    def problem(self, value: object) -> str | None:
        """What is wrong with a value, in words that follow its name and a colon; None: nothing.

        Args:
            value: a number, or a list or tuple of some.
        """
        if isinstance(value, list | tuple):
            return next((text for item in value if (text := self.problem(item))), self._falls(value))
        if not isinstance(value, Real) or self._holds(number := cast(float, value)):
            return None
        kind = ""
        if self._is_too_large(number) and self.high == math.inf:
            kind = "a whole number of 64 bits, " if self.whole else "a finite number, "
        elif self.whole and not self.odd and number % 1:
            kind = "a whole number, "
        return f"{_short(value)} is out of range; expected {kind}{self}"

    def _falls(self, values: Sequence[object]) -> str | None:
        numbers = [cast(float, value) for value in values if isinstance(value, Real)]
        if not self.rising or numbers == sorted(numbers):
            return None
        return f"[{', '.join(map(_short, values))}] is out of range; expected the smaller number first"

    def _holds(self, number: float) -> bool:
        if isinstance(number, bool):
            return False
        if self.only or number == self.unset:
            return number in (*self.only, self.unset)
        low = number >= self.low if self.includes_low else number > self.low
        high = number <= self.high if self.includes_high else number < self.high
        fits = low and high and (self.infinite or not self._is_too_large(number))
        return fits and not (self.whole and number % 1) and not (self.odd and number % 2 != 1)

    def _is_too_large(self, number: float) -> bool:
        return number > (LARGEST if self.whole else sys.float_info.max)

    def __str__(self) -> str:
        """The range in words, such as `0 to 1`, `above 0`, `1 or more`."""
        if self.only:
            return " or ".join(map(str, self.only))
        if self.of:
            words = f"{self.of} to {100 / self.more:g}% more"
            ends = dict.fromkeys(map(_short, (self.low, self.high)))
            return words if self.high == math.inf else f"{' to '.join(ends)} ({words})"
        low, high = _short(self.low), _short(self.high)
        below = f"at most {high}" if self.includes_high else f"below {high}"
        if self.high == math.inf:
            text = f"{low} or more" if self.includes_low else f"above {low}"
        elif self.includes_low and self.includes_high:
            text = f"{low} to {high}"
        else:
            text = f"{low} or more, {below}" if self.includes_low else f"above {low}, {below}"
        return f"an odd number, {text}" if self.odd else text


Ranges = Mapping[str, Range]
"""Parameter -> what it may be."""


def above(low: float, *, up_to: float = math.inf) -> Range:
    """Numbers greater than `low`, `up_to` being the last."""
    return Range(low, up_to, includes_low=False)


def at_least(low: float, *, below: float = math.inf, infinite: bool = False) -> Range:
    """Numbers from `low` on, less than `below`; infinity too, where it means "no limit"."""
    return Range(low, below, includes_high=below == math.inf, infinite=infinite)


def within(low: float, high: float) -> Range:
    """Numbers from `low` to `high`, both included."""
    return Range(low, high)


def whole(low: int, *, up_to: float = math.inf, odd: bool = False, unset: int | None = None) -> Range:
    """Whole numbers from `low` on, `up_to` being the last; and the one that says there is none."""
    return Range(low, up_to, whole=True, odd=odd, unset=unset)


def whole_from(of: str, *, more: int) -> Range:
    """Whole numbers from another parameter of the class on, a part in `more` above it being the last."""
    return Range(1, whole=True, of=of, more=more)


def one_of(*numbers: float) -> Range:
    """These numbers and no others."""
    return Range(only=numbers)


def rising(each: Range) -> Range:
    """Numbers of a range, none of which is below the one before."""
    return replace(each, rising=True)


SEED = whole(0, up_to=2**32 - 1)
"""What NumPy and Lightning can be seeded with."""


def ranges_of(owner: type) -> dict[str, Range]:
    """What a class and its bases declare; where two do, what the class nearer to it says."""
    found: dict[str, Range] = {}
    for base in reversed(owner.__mro__):
        found |= vars(base).get("ranges", {})
    return found


def check(owner: type, values: Mapping[str, Any]) -> None:
    """Refuse values that a class is not to be constructed with.

    Args:
        owner: the class.
        values: parameter -> value, of those that are given.

    Raises:
        UslError: names class, parameter, value and range.
    """
    for name, allowed in ranges_of(owner).items():
        problem = allowed.beside(values).problem(values.get(name))
        if problem is not None:
            raise UslError(f"{owner.__name__}.{name}: {problem}")


class _Signature:
    """A class's own, which up to Python 3.12 its `__new__` would hide from `help`."""

    def __get__(self, instance: object, owner: type) -> inspect.Signature | None:
        if instance is not None:
            return None
        signature = inspect.signature(owner.__init__)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])


class Ranged:
    """A class that declares ranges and refuses to be constructed with other values; to be named first of its bases.

    It looks at what a constructor is called with, before that runs: constructors check nothing of it themselves.
    """

    ranges: ClassVar[Ranges] = {}
    __signature__ = _Signature()

    def __init_subclass__(cls) -> None:
        """Let the command line follow a group of options, `**group: Unpack[…]`, to the constructor it is handed to.

        There are its defaults and texts; jsonargparse would take the group's names alone.
        """
        super().__init_subclass__()
        hints = getattr(vars(cls).get("__init__"), "__annotations__", {})
        hints |= {name: Any for name, hint in hints.items() if get_origin(hint) is Unpack}

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """An instance that is yet to be initialised.

        Raises:
            UslError: an argument is out of range.
        """
        names = list(inspect.signature(cls.__init__).parameters)[1:]
        check(cls, dict(zip(names, args, strict=False)) | kwargs)
        return super().__new__(cls)


def _short(value: object) -> str:
    """A value as one would type it; of long numbers, which Python may refuse to write, the beginning."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return f"a number of {math.floor(math.log10(abs(value))) + 1} digits"
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)

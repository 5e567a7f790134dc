"""Keys: every number is a function of names, numbers and the global slot; their bits look random."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from usl_lightning.data.keys import Key, _mix, _mix_tensor, _signed, derive_seed, permutation

INT64 = st.integers(-(2**63), 2**63 - 1)
PARTS = st.lists(st.integers(0, 2**40) | st.text(max_size=8), min_size=1, max_size=4)
LEVEL = 1e-4  # keys are fixed, so a test that passes does so for ever; this is the level it passed at


def uniform_enough(counts: np.ndarray) -> bool:
    return stats.chisquare(counts).pvalue > LEVEL


def test_mixing_is_splitmix64() -> None:
    # The first outputs of SplitMix64 seeded with 0 and with 1234567 (Vigna's reference implementation).
    golden = 0x9E3779B97F4A7C15
    assert _mix(golden) == 0xE220A8397B1DCDAF
    assert _mix(1234567 + golden) == 6457827717110365317


@given(st.lists(INT64, min_size=1, max_size=20))
def test_python_and_tensors_mix_alike(values: list[int]) -> None:
    mixed = _mix_tensor(torch.tensor(values, dtype=torch.int64)).tolist()
    assert mixed == [_signed(_mix(value)) for value in values]


@given(PARTS, INT64, st.integers(1, 5))
def test_bits_are_the_written_formula(parts: list[int | str], slot: int, n: int) -> None:
    key = Key.of(*parts, slots=torch.tensor([slot]))
    mask, golden, mul2 = (1 << 64) - 1, 0x9E3779B97F4A7C15, 0x94D049BB133111EB
    state = _mix(slot * golden + key.base)
    expected = [_mix(state + draw * mul2 & mask) & (mask >> 1) for draw in range(1, n + 1)]
    assert key.bits(n)[0].tolist() == expected


@given(PARTS, st.lists(st.integers(0, 10**6), min_size=1, max_size=12, unique=True), st.data())
def test_a_slot_draws_the_same_in_any_batch(parts: list[int | str], slots: list[int], data: st.DataObject) -> None:
    some = data.draw(st.lists(st.sampled_from(range(len(slots))), min_size=1))
    whole, part = Key.of(*parts, slots=torch.tensor(slots)), torch.tensor(some)
    for draw in (lambda k: k.bits(3), lambda k: k.uniform(2, -1.0, 4.0), lambda k: k.chance(0.4), lambda k: k.order(7)):
        assert torch.equal(draw(whole[part]), draw(whole)[part])
        alone = Key.of(*parts, slots=torch.tensor([slots[some[0]]]))
        assert torch.equal(draw(alone)[0], draw(whole)[some[0]])


@given(PARTS, PARTS)
def test_folding_is_naming(first: list[int | str], second: list[int | str]) -> None:
    slots = torch.arange(3)
    together, apart = Key.of(*first, *second, slots=slots), Key.of(*first, slots=slots).fold(*second)
    assert together.base == apart.base
    assert derive_seed(*first, *second) != derive_seed(*first)
    assert derive_seed(*first) == derive_seed(*first)
    assert 0 <= derive_seed(*first) < 2**63


def test_names_and_their_order_matter() -> None:
    seeds = [
        derive_seed(*parts) for parts in ([0], [0, 0], ["0"], [1], ["a", "b"], ["b", "a"], ["ab"], [0, "a"], ["a"])
    ]
    assert len(set(seeds)) == len(seeds)


def test_values_are_the_same_in_another_process() -> None:
    """Python's own hashing of strings is salted anew in every process; ours must not be."""
    code = (
        "import torch; from usl_lightning.data.keys import Key, derive_seed, permutation;"
        "k = Key.of(3, 'view', slots=torch.arange(4));"
        "print(derive_seed('a', 1), permutation(5, 'p').tolist(), k.bits(2).tolist())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    key = Key.of(3, "view", slots=torch.arange(4))
    assert out.split() == f"{derive_seed('a', 1)} {permutation(5, 'p').tolist()} {key.bits(2).tolist()}".split()


def test_values_are_pinned() -> None:
    """A change here changes every run ever made: checkpoints would resume with other images and views."""
    assert derive_seed(0, "images") == 6064609117197895152
    assert permutation(8, 0, "images", "epoch", 0).tolist() == [1, 7, 5, 4, 2, 3, 0, 6]
    bits = Key.of(0, "images", 5, slots=torch.arange(2)).bits(1)
    assert bits[:, 0].tolist() == [784662809671247761, 6259568908835580300]


@pytest.mark.parametrize("low_bits", [False, True])
def test_draws_are_uniform(low_bits: bool) -> None:
    bits = Key.of(0, "uniform", slots=torch.arange(20_000)).bits(4)
    cells = (bits & 31) if low_bits else (bits >> 58)
    assert uniform_enough(np.bincount(cells.flatten(), minlength=32))


def test_uniform_covers_its_range() -> None:
    draws = Key.of(0, slots=torch.arange(50_000)).uniform(2, -2.0, 6.0)
    assert draws.shape == (50_000, 2)
    assert draws.dtype == torch.float32
    assert draws.min() >= -2
    assert draws.max() < 6
    assert stats.kstest(draws.flatten().numpy(), "uniform", (-2, 8)).pvalue > LEVEL


@given(st.integers(1, 2**20), st.integers(-(2**20), 2**20))
def test_the_largest_draw_stays_in_the_range(width: int, low: int) -> None:
    """`floor(uniform(high=n))` is an index into n things, so n itself must not come."""

    class Largest(Key):
        def bits(self, n: int) -> torch.Tensor:
            return torch.full((len(self), n), 2**63 - 1)

    key = Largest(0, torch.arange(1))
    assert key.uniform(1, 0.0, width) < width
    assert key.uniform(1, low, low + width) <= low + width  # the sum may round to the end itself


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
def test_chance_has_its_probability(p: float) -> None:
    count = int(Key.of(1, "chance", slots=torch.arange(20_000)).chance(p).sum())
    assert stats.binomtest(count, 20_000, p).pvalue > LEVEL


def pairs(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """How often each pair of the top three bits occurs: uniform over 64 cells if a and b are independent."""
    return np.bincount(((a >> 60) * 8 + (b >> 60)).flatten(), minlength=64)


def test_independent_over_slots_folds_and_draws() -> None:
    key = Key.of(0, "step", 7, slots=torch.arange(20_001))
    bits = key.bits(3)
    assert uniform_enough(pairs(bits[:-1, 0], bits[1:, 0])), "neighbouring slots"
    assert uniform_enough(pairs(bits[:, 0], bits[:, 1])), "successive draws"
    # A draw's increment and a slot's are fixed numbers: a slot's next draw must not be another slot's draw.
    assert uniform_enough(pairs(bits[:-1, 1], bits[1:, 0])), "draw against slot"
    assert uniform_enough(pairs(key.fold(0).bits(1), key.fold(1).bits(1))), "folds by number"
    assert uniform_enough(pairs(key.fold("weak").bits(1), key.fold("strong").bits(1))), "folds by name"
    assert uniform_enough(pairs(key.bits(1), key.fold("weak").bits(1))), "a fold and its origin"
    other = Key.of(0, "step", 8, slots=key.slots)
    assert uniform_enough(pairs(key.bits(1), other.bits(1))), "successive steps"
    assert uniform_enough(pairs(key.bits(1), Key.of(1, "step", 7, slots=key.slots).bits(1))), "successive seeds"


def test_no_number_comes_twice() -> None:
    """Among 10^6 draws of 63 bits a coincidence has probability 5e-8."""
    keys = [Key.of(seed, "x", step, slots=torch.arange(1000)) for seed in range(5) for step in range(20)]
    drawn = torch.cat([key.bits(10).flatten() for key in keys])
    assert len(drawn.unique()) == len(drawn)


def test_steps_of_one_slot_are_uniform() -> None:
    slot = torch.tensor([3])
    draws = torch.cat([Key.of(0, "images", step, slots=slot).bits(1) for step in range(5000)])[:, 0]
    assert uniform_enough(np.bincount(draws >> 59, minlength=16))
    assert uniform_enough(pairs(draws[:-1], draws[1:]))


@given(st.integers(0, 300), PARTS)
@settings(max_examples=50)
def test_permutations_are_permutations(n: int, parts: list[int | str]) -> None:
    order = permutation(n, *parts)
    assert order.dtype == torch.long
    assert sorted(order.tolist()) == list(range(n))
    assert torch.equal(order, permutation(n, *parts))


def test_every_permutation_is_as_likely() -> None:
    orders = torch.stack([permutation(4, "likely", i) for i in range(4800)])
    numbers = (orders * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = numbers.unique(return_counts=True)[1]
    assert len(counts) == 24
    assert uniform_enough(counts.numpy())


def test_orders_of_slots_are_uniform_and_complete() -> None:
    orders = Key.of(0, slots=torch.arange(6000)).order(3)
    assert bool((orders.sort(1).values == torch.arange(3)).all())
    assert uniform_enough(np.bincount((orders * torch.tensor([9, 3, 1])).sum(1).unique(return_inverse=True)[1]))


def test_length_and_device_travel_with_the_slots() -> None:
    key = Key.of(0, slots=torch.arange(5)).to("cpu", non_blocking=True)
    assert len(key) == 5
    assert len(key[1:3]) == 2
    assert key.to("meta").bits(2).device.type == "meta"

"""Which images make up a step, over epochs, processes and workers."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from usl_lightning.base.errors import UslError
from usl_lightning.cli import _mistake
from usl_lightning.data import sampling
from usl_lightning.data.sampling import StepLoader, StepSampler, process_range, process_slots

pytestmark = pytest.mark.filterwarnings("ignore:.*worker processes in total")

SIZES = st.integers(1, 60)
NEAR = st.tuples(st.integers(3, 30), st.integers(-2, 2)).map(lambda pair: (pair[0], pair[0] + pair[1]))
SHAPES = st.tuples(SIZES, SIZES) | NEAR  # images, places in the batch; also nearly as many


def stream(size: int, batch_size: int, steps: int, *parts: int | str) -> list[int]:
    sampler = StepSampler(size, batch_size, *parts)
    return torch.cat([sampler(step) for step in range(steps)]).tolist()


@given(SHAPES, st.integers(0, 10**7), st.integers(0, 99))
def test_a_batch_is_full_in_range_and_without_needless_twins(shape: tuple[int, int], step: int, seed: int) -> None:
    size, batch = shape
    positions = StepSampler(size, batch, seed, "x")(step)
    assert positions.shape == (batch,)
    assert positions.dtype == torch.long
    counts = torch.bincount(positions, minlength=size)
    assert len(counts) == size
    if batch <= size:
        assert counts.max() == 1
    elif batch % size == 0:
        assert counts.unique().tolist() == [batch // size]


@given(SHAPES, st.integers(0, 99), st.integers(1, 5))
def test_epochs_are_random_orders(shape: tuple[int, int], seed: int, epochs: int) -> None:
    size, batch = shape
    sampler = StepSampler(size, batch, seed)
    if batch <= size:  # each epoch alone is an order without its incomplete last batch
        per_epoch = sampler.steps_per_epoch
        assert per_epoch == size // batch
        drawn = stream(size, batch, epochs * per_epoch, seed)
        share = per_epoch * batch
        for epoch in range(epochs):
            assert len(set(drawn[epoch * share : (epoch + 1) * share])) == share
    else:  # orders are strung together
        assert sampler.steps_per_epoch == 1
        drawn = stream(size, batch, epochs, seed)
        for start in range(0, len(drawn) - size + 1, size):
            assert sorted(drawn[start : start + size]) == list(range(size))


@given(SIZES, st.integers(1, 200), st.integers(0, 9), st.integers(1, 12))
def test_repeated_images_appear_equally_often(size: int, batch: int, seed: int, steps: int) -> None:
    batch = max(batch, size)
    counts = torch.bincount(torch.tensor(stream(size, batch, steps, seed)), minlength=size)
    assert counts.max() - counts.min() <= 1


def test_epochs_and_names_and_seeds_differ() -> None:
    sampler = StepSampler(50, 50, 0, "images")
    assert not torch.equal(sampler(0), sampler(1))
    assert not torch.equal(sampler(0), StepSampler(50, 50, 0, "labelled")(0))
    assert not torch.equal(sampler(0), StepSampler(50, 50, 1, "images")(0))


def test_the_rest_of_an_epoch_is_another_one_each_time() -> None:
    """Images left out by one epoch must not be left out by all."""
    seen = set(stream(10, 8, 12, 0))
    assert seen == set(range(10))


@given(st.permutations(range(12)), st.sampled_from([(7, 3), (3, 7), (5, 5), (1, 4), (9, 1)]))
def test_a_step_does_not_depend_on_the_steps_before(order: list[int], sizes: tuple[int, int]) -> None:
    used = StepSampler(*sizes, 0)
    for step in order:
        assert torch.equal(used(step), StepSampler(*sizes, 0)(step))


@given(st.integers(1, 16), st.integers(1, 20))
def test_process_slots_are_the_global_batch(world: int, share: int) -> None:
    parts = [process_slots(world * share, rank, world) for rank in range(world)]
    assert torch.cat(parts).tolist() == list(range(world * share))
    assert {len(part) for part in parts} == {share}


@given(st.integers(1, 64), st.integers(2, 9))
def test_a_batch_that_cannot_be_divided_names_sizes_that_can(batch: int, world: int) -> None:
    if batch % world == 0:
        return
    with pytest.raises(UslError, match=f"data.batch_size: {batch} images") as error:
        process_slots(batch, 0, world)
    sizes = [int(word) for word in str(error.value).partition("; use ")[2].split() if word.isdigit()]
    assert sizes
    for size in sizes:
        assert size > 0
        assert abs(size - batch) < world
        process_slots(size, world - 1, world)


@given(st.integers(0, 1000), st.integers(1, 17))
def test_process_ranges_are_the_set(size: int, world: int) -> None:
    ranges = [process_range(size, rank, world) for rank in range(world)]
    assert [i for part in ranges for i in part] == list(range(size))
    lengths = [len(part) for part in ranges]
    assert max(lengths) - min(lengths) <= 1


def square(step: int) -> int:
    return step * step


def first(steps: StepLoader[int], n: int) -> list[int]:
    iterator = iter(steps)
    return [next(iterator) for _ in range(n)]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_change_neither_order_nor_beginning(workers: int) -> None:
    begin = 0
    endless = StepLoader(square, first=lambda: begin, workers=workers)
    assert first(endless, 8) == [step**2 for step in range(8)]
    begin = 5  # a resumed trainer knows its step only when the iteration begins
    assert first(endless, 8) == [step**2 for step in range(5, 13)]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("stop", [0, 1, 2, 7])
def test_a_pass_ends(workers: int, stop: int) -> None:
    loader = StepLoader(square, stop=stop, workers=workers)
    assert len(loader) == stop
    assert list(loader) == list(loader) == [step**2 for step in range(stop)]


def test_an_endless_loader_has_no_length() -> None:
    with pytest.raises(TypeError, match="endless"):
        len(StepLoader(square))


class Batch:
    """A batch that cannot be handed over, as where shared memory is full."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[type["Batch"], tuple[int]]:
        if self.number == 4:
            raise OSError(28, "No space left on device")
        return Batch, (self.number,)


@pytest.mark.parametrize("stop", [9, None])
def test_a_batch_that_does_not_come_is_neither_waited_for_nor_left_out(stop: int | None) -> None:
    seen: list[int] = []
    with pytest.raises(RuntimeError, match="DataLoader worker") as error:
        seen.extend(batch.number for batch in StepLoader(Batch, stop=stop, workers=2))
    assert len(seen) <= 4
    assert seen == list(range(len(seen)))
    told = str(_mistake(error.value))
    assert told.startswith("a process that reads images has ended: DataLoader worker")
    assert "--data.workers 0" in told


def test_processes_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "DataLoader", lambda *given, **options: Full())
    with pytest.raises(UslError, match=r"cannot be started \(No space left on device\); make room in memory"):
        iter(StepLoader(Batch, workers=2))


class Full:
    """A loader whose processes cannot be started."""

    def __iter__(self) -> Iterator[object]:
        raise OSError(28, "No space left on device")

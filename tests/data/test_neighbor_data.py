"""The neighbour of a sample: drawn from its row, a function of the step, the same on any number of processes."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from usl_lightning.data.keys import Key
from usl_lightning.data.modules import NeighborData
from usl_lightning.data.sampling import drawn_neighbors
from usl_lightning.errors import UslError


def data(table: np.ndarray, folder: Path, *, rank: int = 0, world: int = 1, step: int = 0) -> NeighborData:
    np.save(folder / "neighbors.npy", table)
    module = NeighborData(str(folder / "neighbors.npy"), batch_size=8, dataset="digits", seed=3)
    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_step=step,
        accumulate_grad_batches=1,
        global_rank=rank,
        world_size=world,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        state=SimpleNamespace(fn="test"),
    )
    module.setup("fit")
    return module


def table() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1437, (1437, 5))


def test_each_neighbor_is_of_its_image(tmp_path: Path) -> None:
    module = data(table(), tmp_path)
    batch = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    for image, neighbor in zip(batch.anchor.indices.tolist(), batch.neighbor.indices.tolist(), strict=True):
        assert neighbor in table()[image]
    assert torch.equal(batch.neighbor.images, module.train_source.read(batch.neighbor.indices))
    assert not torch.equal(batch.anchor.key.bits(1), batch.neighbor.key.bits(1))


def test_two_processes_see_what_one_sees(tmp_path: Path) -> None:
    whole = next(iter(data(table(), tmp_path, step=7).train_dataloader()))
    parts = [next(iter(data(table(), tmp_path, rank=rank, world=2, step=7).train_dataloader())) for rank in (0, 1)]
    for side in ("anchor", "neighbor"):
        together = torch.cat([getattr(part, side).indices for part in parts])
        assert torch.equal(together, getattr(whole, side).indices)


def test_every_column_is_drawn_equally_often() -> None:
    columns = torch.arange(4).expand(20_000, 4)
    drawn = drawn_neighbors(columns, torch.arange(20_000), Key.of(0, slots=torch.arange(20_000)))
    counts = torch.bincount(drawn, minlength=4).double()
    assert float(((counts - 5000).square() / 5000).sum()) < 16.3  # chi-square, 3 degrees of freedom, p = 0.001


@pytest.mark.parametrize(
    "bad", [np.zeros((10, 5), int), np.full((1437, 2), 1437), np.zeros((1437, 2)), np.zeros(1437, int)]
)
def test_a_wrong_table_is_refused(bad: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(UslError, match=r"neighbors\.npy holds .*expected one row"):
        data(bad, tmp_path).train_dataloader()

"""The neighbour of a sample: drawn from its row, a function of the step, the same on any number of processes."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from training import digits, train

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.keys import Key
from usl_lightning.data.modules import ImageData
from usl_lightning.data.sampling import drawn_neighbors
from usl_lightning.data.views import Weak
from usl_lightning.features.neighbor_data import NeighborData
from usl_lightning.features.neighbors import encoder_neighbors
from usl_lightning.models.encoder import load_encoder
from usl_lightning.pretrain.simclr import SimCLR


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
    "bad",
    [
        np.zeros((10, 5), int), np.full((1437, 2), 1437), np.full((1437, 2), -1), np.zeros((1437, 2)),
        np.zeros(1437, int), np.zeros((1437, 2), bool), np.zeros((1437, 2), complex), np.zeros((1437, 0), int),
        np.full((1437, 2), 2**64 - 1, np.uint64),
    ],
)  # fmt: skip
def test_a_wrong_table_is_refused(bad: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(UslError, match=r"neighbors\.npy holds .*one row"):
        data(bad, tmp_path).train_dataloader()


def test_a_row_of_one_value_is_refused(tmp_path: Path) -> None:
    bad = np.tile(np.arange(5), (1437, 1))
    data(bad.astype(np.uint16), tmp_path).train_dataloader()
    bad[[7, 30]] = 4
    with pytest.raises(UslError, match=r"neighbors\.npy: row 7 is 4 throughout \(2 such rows\); expected 5 different"):
        data(bad, tmp_path).train_dataloader()
    data(bad[:, :1], tmp_path).train_dataloader()


# Neighbours by a checkpoint ------------------------------------------------------------------------------


def simclr(data: ImageData) -> SimCLR:
    return SimCLR(data.spec, Weak(), Optimization(), backbone="small_w16", hidden_dim=16, projection_dim=8, knn_k=5)


@pytest.fixture
def pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint of stage 1."""
    monkeypatch.setenv("USL_CACHE", str(tmp_path / "cache"))
    train(simclr, digits, tmp_path / "pretrain", 1)
    return str(tmp_path / "pretrain" / "checkpoints" / "last.ckpt")


def test_an_encoder_tells_the_image_itself_and_the_k_nearest(pretrained: str) -> None:
    module = NeighborData(neighbors_from=pretrained, k=4, dataset="digits")
    module.setup("fit")
    found = encoder_neighbors(pretrained, module, 4)
    with torch.no_grad():
        features = load_encoder(pretrained)(module.train_source.read(torch.arange(1437)))
    cosine = torch.nn.functional.normalize(features.double(), dim=1)
    cosine = cosine @ cosine.T
    assert found.shape == (1437, 5)
    assert torch.equal(found[:, 0], torch.arange(1437))
    expected = cosine.fill_diagonal_(2.0).topk(5, dim=1).values
    torch.testing.assert_close(cosine.gather(1, found), expected, rtol=0, atol=1e-5)
    batch = next(iter(module.train_dataloader()))
    assert all(n in found[i] for i, n in zip(batch.anchor.indices, batch.neighbor.indices, strict=True))


def test_a_table_is_kept_and_read_back_but_not_for_other_features(pretrained: str, tmp_path: Path) -> None:
    module = NeighborData(neighbors_from=pretrained, k=4, dataset="digits")
    module.setup("fit")
    first = encoder_neighbors(pretrained, module, 4)
    [path] = (tmp_path / "cache").glob("neighbors-*.npz")
    arrays = dict(np.load(path))
    arrays["neighbors"] = arrays["neighbors"][:, ::-1].copy()
    np.savez(path, **arrays)
    assert torch.equal(encoder_neighbors(pretrained, module, 4), first.flip(1)), "it is the kept one"
    assert encoder_neighbors(pretrained, module, 3).shape == (1437, 4), "another k is another table"
    given = NeighborData(str(path), dataset="digits")
    given.setup("fit")
    assert torch.equal(given._table(), first.flip(1))
    about = json.loads(str(arrays["about"]))
    for key, value in (("weights", "other"), ("dataset", "sha256:" + "0" * 64)):
        np.savez(path, **{**arrays, "about": np.array(json.dumps({**about, key: value}))})
        if key == "dataset":
            with pytest.raises(UslError, match=r"data\.neighbors: .*: these neighbours are of other images than"):
                given._table()
        assert torch.equal(encoder_neighbors(pretrained, module, 4), first), "of other features: made again"


def test_a_file_without_a_table(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", features=np.zeros((1437, 2)))
    module = NeighborData(str(tmp_path / "x.npz"), dataset="digits")
    with pytest.raises(UslError, match=r"x\.npz holds features; expected an array 'neighbors'"):
        module.train_dataloader()


def test_a_small_set_has_fewer_neighbors(pretrained: str) -> None:
    module = NeighborData(neighbors_from=pretrained, dataset="digits")
    module.setup("fit")
    assert encoder_neighbors(pretrained, module, 5000).shape == (1437, 1437)


@pytest.mark.parametrize("both", [True, False])
def test_one_source_of_neighbors_is_expected(both: bool, tmp_path: Path) -> None:
    given = {"neighbors": "a.npy", "neighbors_from": "b.ckpt"} if both else {}
    module = NeighborData(**given, dataset="digits")
    with pytest.raises(UslError, match=r"data\.neighbors_from: expected the checkpoint of stage 1 .* one of the two"):
        module.train_dataloader()


def test_mistakes_with_a_checkpoint_are_one_line(pretrained: str) -> None:
    module = NeighborData(neighbors_from=pretrained, dataset="digits", image_size=16)
    with pytest.raises(UslError, match=r"data\.neighbors_from: .* was trained on 1×8×8 images, these are 1×16×16"):
        encoder_neighbors(pretrained, module, 3)
    with pytest.raises(UslError, match=r"data\.k: 0 neighbours; expected at least 1"):
        encoder_neighbors(pretrained, module, 0)

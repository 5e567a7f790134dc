"""Features that are spread over processes: what is chosen is what one process chooses, the same bits."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from real_features import real_features
from torch import Tensor
from training import CHILDREN

from usl_lightning.selection.kmeans_nearest import select_kmeans_nearest
from usl_lightning.selection.usl import select_usl
from usl_lightning.vectors import kmeans as module
from usl_lightning.vectors.kmeans import kmeans

SAMPLE = 60
"""Points of the first sample of k-means, so that there are two of them before all points."""


def doubled() -> Tensor:
    """Digits, each of which is there twice: ties everywhere, and clusters that stay empty."""
    x = real_features("digits", 40)
    return torch.cat([x, x])


SETS = {
    "digits": (lambda: real_features("digits"), 40),
    "patches": (lambda: real_features("patches", 1100), 60),
    "doubled": (doubled, 50),
}


def answers(x: Tensor, budget: int, distributed: bool) -> dict[str, Tensor]:
    """All that is found in features, of which this process has a share if they are distributed."""
    module.SAMPLE = SAMPLE
    labels, centroids = kmeans(x, 3, seed=1, iterations=30, restarts=5, distributed=distributed)
    many = kmeans(x, budget, iterations=30, distributed=distributed)[1]
    clusters: list[Tensor] = []
    found = {
        "labels": labels, "centroids": centroids, "many centroids": many,
        "nearest": select_kmeans_nearest(x, budget, distributed=distributed, on_clusters=clusters.append),
        "clusters": clusters[0],
        "usl": select_usl(x, budget, k=9, distributed=distributed),
        "imagenet": select_usl(x, budget, k=5, preset="imagenet", include_self=False, distributed=distributed),
    }  # fmt: skip
    return found


OF_POINTS = ("labels", "clusters")


def _work(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1 + rank % 2)
    store = f"file://{folder / f'store {world}'}"
    dist.init_process_group("gloo", store, timedelta(seconds=300), world_size=world, rank=rank)
    for name, (make, budget) in SETS.items():
        x = make()
        ends = [len(x) * part**2 // world**2 for part in range(world + 1)]  # uneven shares
        torch.save(answers(x[ends[rank] : ends[rank + 1]], budget, True), folder / f"{name} {world} {rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the processes found, of two and of four of them."""
    folder = tmp_path_factory.mktemp("spread")
    for world in (2, 4):
        processes: list[Any] = [CHILDREN.Process(target=_work, args=(rank, world, folder)) for rank in range(world)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(600)
        assert [process.exitcode for process in processes] == [0] * world
    return folder


@pytest.mark.parametrize("name", SETS)
def test_any_number_of_processes_finds_the_same(name: str, spread: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE", SAMPLE)
    make, budget = SETS[name]
    alone = answers(make(), budget, True)
    for world in (2, 4):
        shares = [torch.load(spread / f"{name} {world} {rank}.pt") for rank in range(world)]
        for key, value in alone.items():
            if key in OF_POINTS:
                assert torch.equal(torch.cat([share[key] for share in shares]), value), key
            else:
                assert all(torch.equal(share[key], value) for share in shares), key
    ordinary = answers(make(), budget, False)
    for key, value in ordinary.items():
        assert torch.equal(alone[key], value), key

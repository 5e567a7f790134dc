"""Features that are spread over processes: what is chosen is what one process chooses, the same bits."""

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from methods import usl
from pair import Pair
from real_features import real_features
from torch import Tensor
from training import CHILDREN

from usl_lightning.base.errors import UslError
from usl_lightning.cli import main
from usl_lightning.features.kept import _read_share, kept_or_made_share
from usl_lightning.features.parts import PartFile, Place
from usl_lightning.features.source import check_share
from usl_lightning.labels import LabelIndex
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


def copied() -> Tensor:
    """Digits of which five are there twenty times more, so that labels move to them."""
    x = real_features("digits", 300)
    return torch.cat([x, x[:5].repeat(20, 1)])


SETS = {
    "digits": (lambda: real_features("digits"), 40),
    "patches": (lambda: real_features("patches", 1100), 60),
    "doubled": (doubled, 50),
    "copied": (copied, 12),
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
        "moved": select_kmeans_nearest(x, budget, move=1.0, distributed=distributed),
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


# the command ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    found = Pair()
    yield found
    found.end()


def picks(run: Path) -> tuple[int, ...]:
    return LabelIndex.read(run / "labels.json").indices


def test_processes_of_a_command_have_their_shares_and_choose_as_one(tmp_path: Path, pair: Pair) -> None:
    cache = tmp_path / "cache"
    words = ["select", "--config=digits_kmeans_nearest.yaml", "--model.budget=30", f"--model.cache={cache}"]
    words += ["--model.backbone=small_w16", "--model.pretrained=false"]
    usl(*words, f"--run_dir={tmp_path}/whole")
    pair.usl(*words, "--model.sharded=true", f"--run_dir={tmp_path}/shares")
    assert picks(tmp_path / "shares") == picks(tmp_path / "whole")
    (folder,), (whole,) = cache.glob("*.shards"), cache.glob("features-*.npz")
    parts = sorted(folder.glob("*.f32"), key=lambda part: int(part.stem.partition("-")[0]))
    features = np.load(whole)["features"]
    assert np.array_equal(np.concatenate([np.fromfile(part, np.float32) for part in parts]), features.ravel())
    kept = {part: part.stat().st_mtime_ns for part in folder.iterdir()}
    usl(*words, "--model.sharded=true", f"--run_dir={tmp_path}/alone")  # takes the parts of two processes
    assert picks(tmp_path / "alone") == picks(tmp_path / "whole")
    assert len(parts) == 2
    assert {part: part.stat().st_mtime_ns for part in folder.iterdir()} == kept
    np.save(tmp_path / "features.npy", features.astype(np.float16))
    for config in ("digits_kmeans_nearest", "digits_usl"):
        file = ["select", f"--config={config}.yaml", "--model.budget=30", f"--model.features={tmp_path}/features.npy"]
        usl(*file, f"--run_dir={tmp_path}/{config}/whole")
        pair.usl(*file, "--model.sharded=true", f"--run_dir={tmp_path}/{config}/shares")
        assert picks(tmp_path / config / "shares") == picks(tmp_path / config / "whole")
        told = json.loads((tmp_path / config / "shares" / "result.json").read_text())
        assert 1 <= told["classes_covered"] <= 10


def test_a_damaged_or_half_written_part_is_made_again(tmp_path: Path) -> None:
    rows = torch.randn(50, 3)
    asked: list[int] = []

    def make(folder: Path) -> Tensor:
        with PartFile(folder / "0-50.f32", 3, 8, 50) as part:
            asked.append(part.done)
            for block in rows[part.done :].split(8):
                part.append(block)
            return part.read()

    def found() -> Tensor:
        return kept_or_made_share("features", {"of": "these"}, (50, 3), make, Place(), cache=tmp_path)

    assert torch.equal(found(), rows)
    assert torch.equal(found(), rows)
    (path,) = tmp_path.glob("*/0-50.f32")
    content = bytearray(path.read_bytes())
    content[3 * 4 * 20] ^= 1
    path.write_bytes(content)
    assert torch.equal(found(), rows)
    path.with_suffix(".sums").write_bytes(path.with_suffix(".sums").read_bytes()[:-3])
    assert torch.equal(found(), rows)
    path.with_suffix(".sums").unlink()
    assert torch.equal(found(), rows)
    assert asked == [0, 16, 48, 0]
    rows[7, 1] = torch.inf
    path.with_suffix(".sums").unlink()
    for _ in range(2):  # given back, to be refused, and not kept
        assert torch.equal(found(), rows)
        assert not path.parent.exists()
    rows[7, 1] = 7.0
    assert torch.equal(found(), rows)
    assert asked == [0, 16, 48, 0, 0, 0, 0]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 4), st.data())
def test_a_share_is_read_from_parts_of_any_number_of_processes(
    sizes: list[int], block: int, data: st.DataObject
) -> None:
    n = sum(sizes)
    rows = torch.arange(2.0 * n).view(n, 2)
    with TemporaryDirectory() as name:
        start = 0
        for size in sizes:
            with PartFile(Path(name, f"{start}-{start + size}.f32"), 2, block, n) as part:
                for each in rows[start : start + size].split(block):
                    part.append(each)
            start += size
        first, last = sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))
        found = _read_share(Path(name), range(first, last), 2)
        assert found is not None
        assert torch.equal(found, rows[first:last])
        assert _read_share(Path(name), range(first, n + 1), 2) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_row_that_has_no_direction_is_named(value: float) -> None:
    features = torch.ones(5, 2)
    features[3] = value
    with pytest.raises(UslError, match="in row 3"):
        check_share(features, Place())


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--model.features=f.npz"], r"expected a \.npy file"),
        (["--model.features=none.npy"], "no such file"),
        (
            ["--model.features=short.npy"],
            r"holds float32 \[3, 2\]; expected floating-point numbers \[1437, dimensions\]",
        ),
        (["--model.features=text.npy"], "cannot be read"),
        (["--model.features=short.npy", "--keep=l.json"], "cannot be with images to keep"),
    ],
)
def test_what_cannot_be_sharded_is_refused(
    words: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("short.npy", np.ones((3, 2), np.float32))
    Path("text.npy").write_text("no array")
    Path("l.json").write_text("[1]")
    Path("f.npz").write_bytes(b"")
    with pytest.raises(SystemExit):
        main(["select", "--config=digits_kmeans_nearest.yaml", "--model.sharded=true", *words])
    assert re.search(problem, capsys.readouterr().err)

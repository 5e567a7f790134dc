"""The decoded cache: the same pixels, made once, whole or not there, never of other images."""

import multiprocessing
import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from usl_lightning.base.errors import UslError
from usl_lightning.data.images import cache as cache_module
from usl_lightning.data.images.cache import CachedSource
from usl_lightning.data.images.folder_source import FolderSource
from usl_lightning.data.images.opening import open_source

fork = multiprocessing.get_context("fork")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> str:
    """A folder of 20 small pictures in two classes."""
    monkeypatch.setenv("USL_CACHE", str(tmp_path / "small"))
    rng = np.random.default_rng(0)
    for i in range(20):
        path = tmp_path / "d" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 9 + i % 3, 3), dtype=np.uint8)).save(path)
    return str(tmp_path / "d")


def opened(folder: str, tmp_path: Path, **options: object) -> CachedSource:
    options = {"image_size": 8, "cache": str(tmp_path / "cache"), **options}
    source = open_source("folder", "train", dir=folder, **options)
    assert isinstance(source, CachedSource)
    return source


def builds(monkeypatch) -> list[int]:
    """Counts the reads of the folder from here on."""
    made: list[int] = []
    read = FolderSource.read
    monkeypatch.setattr(FolderSource, "read", lambda self, i: (made.append(1), read(self, i))[1])
    return made


def files_in(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache").iterdir() if not p.name.endswith(".lock"))


def test_a_cache_is_the_folder(folder, tmp_path):
    plain = open_source("folder", "train", dir=folder, image_size=8)
    cached = opened(folder, tmp_path)
    everything = plain.read(torch.arange(20))
    assert torch.equal(cached.read(torch.arange(20)), everything)
    picks = torch.tensor([3, 19, 3, 0])
    assert torch.equal(cached.read(picks), everything[picks])
    assert cached.read(picks[:0]).shape == (0, 3, 8, 8)
    for attribute in ("files", "classes", "fingerprint", "nbytes", "name", "split", "channels", "height", "width"):
        assert getattr(cached, attribute) == getattr(plain, attribute)
    assert torch.equal(cached.labels, plain.labels)
    assert cached.statistics() == plain.statistics()
    assert len(files_in(tmp_path)) == 1


def test_it_is_made_once_and_can_be_pickled(folder, tmp_path, monkeypatch):
    first = opened(folder, tmp_path).read(torch.arange(20))
    made = builds(monkeypatch)
    again = opened(folder, tmp_path)
    again.read(torch.tensor([0]))
    content = pickle.dumps(again)
    assert again.read(torch.arange(20)).numpy().tobytes()[:64] not in content  # the pixels do not travel
    assert torch.equal(pickle.loads(content).read(torch.arange(20)), first)
    assert not made


def test_what_is_read_may_be_written_to(folder, tmp_path):
    source = opened(folder, tmp_path)
    before = source.read(torch.tensor([0])).clone()
    source.read(torch.tensor([0])).zero_()
    assert torch.equal(source.read(torch.tensor([0])), before)


def test_sizes_and_channels_have_their_own_files(folder, tmp_path):
    opened(folder, tmp_path)
    assert opened(folder, tmp_path, image_size=6).read(torch.tensor([0])).shape == (1, 3, 6, 6)
    assert opened(folder, tmp_path, channels=1).read(torch.tensor([0])).shape == (1, 1, 8, 8)
    assert len(files_in(tmp_path)) == 3


def test_a_cache_of_other_files_is_made_again_in_its_place(folder, tmp_path):
    opened(folder, tmp_path)
    Image.new("RGB", (9, 9), (7, 8, 9)).save(Path(folder) / "a" / "99.png")
    source = opened(folder, tmp_path)
    assert len(source) == 21
    last = source.files.index("a/99.png")
    assert source.read(torch.tensor([last]))[0, :, 0, 0].tolist() == [7, 8, 9]
    assert len(files_in(tmp_path)) == 1


def test_a_cache_that_was_decoded_otherwise_is_made_again_in_its_place(folder, tmp_path, monkeypatch):
    opened(folder, tmp_path)
    monkeypatch.setattr("usl_lightning.data.images.rendering.VERSION", 1)
    made = builds(monkeypatch)
    opened(folder, tmp_path)
    assert made
    assert len(files_in(tmp_path)) == 1


def test_as_many_files_of_the_same_size_are_still_other_files(folder, tmp_path):
    before = opened(folder, tmp_path).read(torch.tensor([0]))
    (Path(folder) / "a" / "00.png").rename(Path(folder) / "b" / "99.png")
    source = opened(folder, tmp_path)
    assert torch.equal(source.read(torch.tensor([19])), before)
    assert not torch.equal(source.read(torch.tensor([0])), before)


@pytest.mark.parametrize("damage", ["cut", "header", "empty"])
def test_a_damaged_cache_is_made_again(folder, tmp_path, damage):
    first = opened(folder, tmp_path)
    pixels = first.read(torch.arange(20))
    content = first.path.read_bytes()
    changed = {"cut": content[:-1], "header": b"x" + content[1:], "empty": b""}[damage]
    first.path.write_bytes(changed)
    assert torch.equal(opened(folder, tmp_path).read(torch.arange(20)), pixels)


def test_an_unreadable_image_is_named_and_nothing_is_left(folder, tmp_path):
    (Path(folder) / "a" / "04.png").write_bytes(b"no image")
    with pytest.raises(UslError, match=r"a/04\.png: not an image file"):
        opened(folder, tmp_path, channels=3)
    assert files_in(tmp_path) == []
    assert len(opened(folder, tmp_path, on_error="skip")) == 19


def test_a_full_disk_is_an_error_before_it_is_full(folder, tmp_path, monkeypatch):
    class Usage:
        free = 4096 + 20 * 3 * 64 - 1

    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(UslError, match="GB are needed") as error:
        opened(folder, tmp_path)
    assert "\n" not in str(error.value)
    assert files_in(tmp_path) == []


def test_a_folder_that_cannot_be_written(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UslError, match="cannot be used"):
        opened(folder, tmp_path, cache=str(tmp_path / "file" / "x"))


def _slowly(folder: str, tmp_path: Path, pids: "multiprocessing.SimpleQueue[int]") -> None:
    read = FolderSource.read

    def slow(self: FolderSource, indices: torch.Tensor) -> torch.Tensor:
        pids.put(os.getpid())
        time.sleep(0.3)
        return read(self, indices)

    FolderSource.read = slow  # type: ignore[method-assign]
    opened(folder, tmp_path).read(torch.arange(20))


def test_one_process_builds_and_the_others_wait(folder, tmp_path):
    pids = fork.SimpleQueue()
    workers = [fork.Process(target=_slowly, args=(folder, tmp_path, pids)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [w.exitcode for w in workers] == [0, 0, 0]
    built = set()
    while not pids.empty():
        built.add(pids.get())
    assert len(built) == 1
    assert len(files_in(tmp_path)) == 1


def test_a_killed_build_leaves_no_cache_and_the_next_one_cleans_up(folder, tmp_path):
    pids = fork.SimpleQueue()
    worker = fork.Process(target=_slowly, args=(folder, tmp_path, pids))
    worker.start()
    pids.get()  # it is decoding
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(60)
    assert all(name.endswith(".tmp") for name in files_in(tmp_path))
    assert files_in(tmp_path)  # the file it was writing
    source = opened(folder, tmp_path)
    assert torch.equal(
        source.read(torch.arange(20)),
        open_source("folder", "train", dir=folder, image_size=8).read(torch.arange(20)),
    )
    assert files_in(tmp_path) == [source.path.name]


def test_without_locks_it_is_built_all_the_same(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "_lock", lambda _: False)
    assert len(opened(folder, tmp_path).read(torch.arange(20))) == 20

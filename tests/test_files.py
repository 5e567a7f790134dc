"""Files are whole or not there."""

import hashlib
import json
import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch

from usl_lightning.base.atomic import atomic_path
from usl_lightning.base.errors import UslError
from usl_lightning.base.files import sha256_of_file, write_json, write_text
from usl_lightning.engine.checkpoint_files import AtomicCheckpointIO


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.txt"
    write_text(path, "one")
    write_text(path, "zwei ü")
    assert path.read_text(encoding="utf-8") == "zwei ü"
    assert names(path.parent) == ["a.txt"]


def test_json_is_readable_and_ends_with_a_newline(tmp_path: Path) -> None:
    value = {"a": [1, None, 2.5], "ü": "é"}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert text.endswith("}\n")
    assert "ü" in text


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of the ne")
            raise failure

    with pytest.raises(type(failure)):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_nobody_sees_a_part(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent, "a rename within one file system"
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UslError, match=r"file/a\.txt: cannot be written") as error:
        write_text(tmp_path / "file" / "a.txt", "x")
    assert "\n" not in str(error.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UslError, match="folder: cannot be written"):
        write_text(tmp_path / "folder", "x")
    assert names(tmp_path) == ["file", "folder"]


@pytest.fixture
def small_files() -> object:
    """A file of more than 64 KiB cannot be written, as on a disk with that much left."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_spoils_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UslError, match="cannot be written"):
        write_text(path, "x" * (1 << 17))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_spoils_no_checkpoint(tmp_path: Path) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "step=00000001.ckpt"
    io.save_checkpoint({"w": torch.ones(10)}, path)
    with pytest.raises(UslError, match=r"ckpt: .*cannot be written") as error:
        io.save_checkpoint({"w": torch.zeros(1 << 16)}, path)
    assert "\n" not in str(error.value)
    assert torch.equal(torch.load(path)["w"], torch.ones(10))
    assert names(tmp_path) == [path.name]


def keep_writing(path: Path) -> None:
    while True:
        for letter in "abc":
            write_text(path, letter * 100_000)


def test_a_kill_spoils_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "a" * 100_000)
    for wait in (0.05, 0.08, 0.11):
        writer = multiprocessing.get_context("fork").Process(target=keep_writing, args=(path,))
        writer.start()
        time.sleep(wait)
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
        content = path.read_text()
        assert len(content) == 100_000
        assert len(set(content)) == 1


def test_a_power_cut_spoils_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is on the disk before it has its name, and the name before anything goes on."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flush(handle: int) -> None:
        done.append(f"flush {os.readlink(f'/proc/self/fd/{handle}')}")
        fsync(handle)

    def rename(source: Path, target: Path) -> None:
        done.append(f"rename {source} {target}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", rename)
    AtomicCheckpointIO().save_checkpoint({"w": torch.zeros(3)}, tmp_path / "a.ckpt")
    temporary = tmp_path / f".a.ckpt.{os.getpid()}.tmp"
    assert done == [f"flush {temporary}", f"rename {temporary} {tmp_path / 'a.ckpt'}", f"flush {tmp_path}"]


def test_sha256_of_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256_of_file(tmp_path / "a") == "sha256:" + hashlib.sha256(b"abc" * 100_000).hexdigest()

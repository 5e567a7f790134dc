"""Files are whole or not there."""

import fcntl
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

from usl_lightning.base import atomic
from usl_lightning.base.atomic import atomic_path, open_lock, temporary_folder
from usl_lightning.base.errors import UslError
from usl_lightning.base.files import sha256_of_file, write_json, write_text
from usl_lightning.engine.checkpoint_files import AtomicCheckpointIO
from usl_lightning.stage import weights_in


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
def test_a_full_disk_is_one_line_of_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"encoder": {"spec": {}}, "state_dict": {"net.weight": torch.zeros(1 << 16)}}
    monkeypatch.setattr(weights_in, "import_checkpoint", lambda *given: weights)
    with pytest.raises(UslError, match=r"x\.ckpt: the checkpoint cannot be written .*; free some space, then repeat"):
        weights_in.write_imported(Path("moco.pth"), "moco", tmp_path / "x.ckpt")
    assert names(tmp_path) == []


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


def test_a_link_stays_one_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    real, near, far = tmp_path / "real", tmp_path / "near", tmp_path / "far"
    for folder in (real, near, far):
        folder.mkdir()
    (near / "a.txt").symlink_to("../real/a.txt")
    (far / "a.txt").symlink_to(near / "a.txt")
    for content in ("made through links", "replaced through links"):
        write_text(far / "a.txt", content)
        assert (real / "a.txt").read_text() == content
    assert [names(folder) for folder in (real, near, far)] == [["a.txt"]] * 3
    assert (near / "a.txt").is_symlink()
    assert (far / "a.txt").is_symlink()
    (near / "b").symlink_to("c")
    (near / "c").symlink_to("b")
    with pytest.raises(UslError, match="b: cannot be written"):
        write_text(near / "b", "")


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o444])
def test_what_is_replaced_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(mode)
    write_text(path, "new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser gives files away")
def test_what_is_replaced_keeps_its_owner_and_group(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(0o640)
    os.chown(path, 12, 34)
    write_text(path, "new")
    assert (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o777) == (12, 34, 0o640)


def test_no_other_group_gets_the_rights_of_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is not of the group cannot give a file to it."""
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(0o660)
    before = path.stat()
    other = os.stat_result([*before[:5], before.st_gid + 1, *before[6:10]])
    (tmp_path / "new").write_text("")

    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "chown", refused)
    atomic._keep_rights(tmp_path / "new", other)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


def test_only_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(UslError, match=r"cannot be written \(it is no file\)"):
            write_text(path, "x")
    assert (tmp_path / "pipe").is_fifo()
    assert names(tmp_path) == ["pipe"]


def test_the_next_writer_sweeps_what_killed_ones_left(tmp_path: Path) -> None:
    """But not the file of one that lives, nor one of another name."""
    path = tmp_path / "a.txt"
    for name in (".a.txt.1.tmp", ".a.txt.22.tmp", ".a.txt.33.tmp", ".b.txt.1.tmp", ".a.txt.mine.tmp"):
        (tmp_path / name).write_text("half")
    with open(tmp_path / ".a.txt.22.tmp") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        write_text(path, "new")
    assert names(tmp_path) == [".a.txt.22.tmp", ".a.txt.mine.tmp", ".b.txt.1.tmp", "a.txt"]


def test_the_next_process_sweeps_the_folder_that_a_killed_one_left(tmp_path: Path) -> None:
    """But not that of one that lives, nor what else has such a name."""
    target = tmp_path / "sorted"
    for name in (".sorted.1.tmp", ".sorted.22.tmp", ".other.1.tmp", ".sorted.mine.tmp"):
        (tmp_path / name / "cat").mkdir(parents=True)
    (tmp_path / ".sorted.3.tmp").symlink_to(tmp_path / ".other.1.tmp")
    held = os.open(tmp_path / ".sorted.22.tmp", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)

    def kill() -> None:
        with temporary_folder(target) as folder:
            (folder / "cat").mkdir()
            os.kill(os.getpid(), signal.SIGKILL)

    killed = multiprocessing.get_context("fork").Process(target=kill)
    killed.start()
    killed.join()
    assert f".sorted.{killed.pid}.tmp" in names(tmp_path)
    with temporary_folder(target) as folder:
        (folder / "dog").mkdir()
        folder.replace(target)
    os.close(held)
    assert names(tmp_path) == [".other.1.tmp", ".sorted.22.tmp", ".sorted.3.tmp", ".sorted.mine.tmp", "sorted"]
    assert names(target) == ["dog"]
    assert names(tmp_path / ".other.1.tmp") == ["cat"]


def test_writers_of_one_file_do_not_sweep_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        writer = multiprocessing.get_context("fork").Process(target=write_text, args=(path, "meanwhile"))
        writer.start()
        writer.join()
        assert path.read_text() == "meanwhile"
        assert temporary.read_text() == "half"
    assert path.read_text() == "half"


def test_names_as_long_as_they_may_be(tmp_path: Path) -> None:
    for letter in ("a", "ü"):
        path = tmp_path / (letter * (255 // len(letter.encode())))
        write_text(path, "x")
        assert path.read_text() == "x"
    assert len(names(tmp_path)) == 2


def test_a_lock_of_a_group_folder_is_for_all_who_write_there(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    path = tmp_path / ".lock"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    open_lock(path).close()
    assert path.stat().st_mode & 0o777 == 0o660
    tmp_path.chmod(0o755)
    path.chmod(0o644)
    open_lock(path).close()
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser becomes another user")
def test_a_lock_that_another_user_made_holds(tmp_path: Path) -> None:
    """Also one that this user may only read: of a file system with an own mind, or of an earlier version."""
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    tmp_path.chmod(0o777)
    path = tmp_path / ".lock"
    with open(path, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        path.chmod(0o644)

        def look() -> None:
            os.setuid(12345)
            with open_lock(path) as lock, pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

        other = multiprocessing.get_context("fork").Process(target=look)
        other.start()
        other.join()
    assert other.exitcode == 0


def test_a_lock_in_a_folder_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    for folder in tmp_path.parents[:3]:
        folder.chmod(0o755)
    tmp_path.chmod(0o555)

    def look() -> None:
        if os.geteuid() == 0:  # who may write everywhere
            os.setuid(12345)
        with pytest.raises(PermissionError):
            open_lock(tmp_path / ".lock")

    other = multiprocessing.get_context("fork").Process(target=look)
    other.start()
    other.join()
    assert other.exitcode == 0

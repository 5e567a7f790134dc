"""Files that are written whole or not at all, where they really are, and locks beside them."""

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from usl_lightning.base.errors import UslError

HEAD = 1 << 13
"""Bytes by which a file is recognised."""

LONGEST_NAME = 200
"""Bytes of a file's name that are kept in the name of its temporary file: a file system takes 255."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path; on success it is flushed to disk and renamed to `path`.

    A link stays one: what it leads to is written. What is replaced keeps its mode and its group. On any failure (a
    full disk, a kill) `path` is untouched and the temporary file is removed, that of a killed writer by the next one.

    Raises:
        UslError: it cannot be written, or something that is no file is there.
    """
    path = Path(path)
    temporary = None
    try:
        target = real_path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        before = _status(target)
        sweep(target)
        temporary, handle = _held(target)
        with handle:
            yield temporary
            if before is not None:
                _keep_rights(temporary, before)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
            flush_folder(target.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UslError(
            f"{path}: cannot be written ({reason}); choose a folder with write access and free space"
        ) from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # a folder that cannot be written has said so above
                temporary.unlink()


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder beside `target`, for this user alone; at the end it is gone, if nobody moved it.

    That of a killed process is removed by the next one with the same `target`.

    Raises:
        OSError: it cannot be made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in _left_over(target):
        if left.is_dir() and not left.is_symlink():
            _remove_unheld(left, shutil.rmtree)
    folder = target.with_name(f"{_prefix(target)}{os.getpid()}.tmp")
    folder.mkdir(0o700)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: nobody sweeps there
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def check_replaceable(path: Path, is_own: Callable[[bytes], bool], option: str) -> None:
    """Let a command write over nothing but what it has written itself.

    Args:
        path: of the file to be written.
        is_own: tells by the first `HEAD` bytes of a file whether the same command wrote it.
        option: that names the path, for the message.

    Raises:
        UslError: something else is there; a link to nothing is, as what it leads to is anybody's.
    """
    if not os.path.lexists(path):
        return
    try:
        check_file(path)
        with open(path, "rb") as file:
            own = is_own(file.read(HEAD))
    except OSError:
        own = False
    if not own:
        raise UslError(f"{option}: {path} is there already, and not by this command; choose another name or move it")


def read_file(path: str | Path) -> bytes:
    """What a file holds.

    Raises:
        OSError: it cannot be read, or is none: a device or a pipe, of which some never end.
    """
    check_file(path)
    with open(path, "rb") as file:
        return file.read()


def check_file(path: str | Path) -> None:
    """Make sure that what is opened next ends.

    Raises:
        OSError: there is no such file, or it is none: a device or a pipe, which may be waited for without end.
    """
    _check_file(os.stat(path))


def real_path(path: Path) -> Path:
    """Where a file is, or is to be, behind all links.

    Raises:
        OSError: the links lead in a circle.
    """
    if path.is_symlink():
        with suppress(FileNotFoundError):  # it leads to a file that is yet to be made
            path.stat()
    return Path(os.path.realpath(path))


def _status(path: Path) -> os.stat_result | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    _check_file(found)  # a device, a pipe: it would be replaced by a file
    return found


def _check_file(found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no file")


def _held(target: Path) -> tuple[Path, FileIO]:
    """A new temporary file beside `target`, with a lock that tells others that its writer lives."""
    temporary = target.with_name(f"{_prefix(target)}{os.getpid()}.tmp")
    while True:
        handle = open(temporary, "ab", buffering=0)  # noqa: SIM115 - closed by the caller
        with suppress(OSError):  # a file system without locks: nobody sweeps there
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(temporary), os.fstat(handle.fileno())):
                return temporary, handle
        handle.close()  # swept between the two


def _prefix(target: Path) -> str:
    name = os.fsencode(target.name)[:LONGEST_NAME]
    return f".{os.fsdecode(name)}."


def _keep_rights(temporary: Path, before: os.stat_result) -> None:
    """Give a file the mode and the group of the one it is to replace; no other group gets the rights of that one."""
    mode = stat.S_IMODE(before.st_mode) & 0o777
    now = os.stat(temporary)
    if now.st_gid != before.st_gid:
        try:
            os.chown(temporary, -1, before.st_gid)
        except OSError:
            mode &= 0o707 | (mode & 0o007) << 3
    if os.geteuid() == 0 and now.st_uid != before.st_uid:
        os.chown(temporary, before.st_uid, -1)
    os.chmod(temporary, mode)


def sweep(target: Path) -> None:
    """Remove the temporary files of `target` whose writers were killed: nobody holds them.

    Args:
        target: behind all links; it may not be there.
    """
    for left in _left_over(target):
        with suppress(OSError):
            check_file(left)
            _remove_unheld(left, os.unlink)


def _left_over(target: Path) -> list[Path]:
    """What bears the name of a temporary file or folder of `target`, whether its process lives or not."""
    prefix, found = _prefix(target), list[str]()
    with suppress(OSError):
        found = os.listdir(target.parent)
    return [
        target.with_name(name)
        for name in found
        if name.startswith(prefix) and name.removeprefix(prefix).removesuffix(".tmp").isdecimal()
    ]


def _remove_unheld(left: Path, remove: Callable[[Path], object]) -> None:
    with suppress(OSError):
        handle = os.open(left, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(left)
        finally:
            os.close(handle)


def flush_folder(folder: Path) -> None:
    """Have the names in a folder survive a power cut, before anything is done that relies on them."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems cannot
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def open_lock(path: Path) -> FileIO:
    """A file to lock, made if need be; whoever may write to its folder may lock it, whoever made it.

    Raises:
        OSError: it cannot be made, or not be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # another user's, from before it was shared
        return FileIO(descriptor, "r")
    found, folder = os.fstat(descriptor), os.stat(path.parent)
    if found.st_uid == os.geteuid() and found.st_gid == folder.st_gid:
        with suppress(OSError):
            os.fchmod(descriptor, stat.S_IMODE(found.st_mode) | folder.st_mode & 0o066)
    return FileIO(descriptor, "r+")

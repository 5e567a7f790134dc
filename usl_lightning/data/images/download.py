"""Fetching a file from a public address, checked before it gets its name. Standard library only."""

import hashlib
import shutil
import tarfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from usl_lightning.base.atomic import atomic_path, temporary_folder
from usl_lightning.base.errors import UslError

_TIMEOUT = 60.0  # seconds without a byte


@dataclass(frozen=True)
class Download:
    """A file at a public address.

    Attributes:
        url: where it is. A `.tar.gz` is unpacked beside itself and then removed.
        md5: the checksum its publisher gives, hexadecimal. It guards against a broken or changed file.
        splits: the splits it is needed for; empty: all.
    """

    url: str
    md5: str
    splits: tuple[str, ...] = ()


def fetch(item: Download, folder: Path) -> None:
    """Fetch `item` into `folder`, unless it is there already.

    Raises:
        UslError: the address does not answer, or what came has another checksum; nothing is left behind.
    """
    target = folder / item.url.rsplit("/", 1)[-1]
    archive = target.name.endswith((".tar.gz", ".tgz"))
    if target.exists() and not archive:
        return
    with atomic_path(target) as temporary:
        _transfer(item.url, temporary)
        _check(item, temporary)
    if archive:
        try:
            _unpack(target, folder)
        finally:
            target.unlink()


def _transfer(url: str, target: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response, open(target, "wb") as file:
            shutil.copyfileobj(response, file, 1 << 20)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise UslError(f"{url}: cannot be downloaded ({error}); fetch it by other means") from error


def _check(item: Download, path: Path) -> None:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if digest != item.md5:
        raise UslError(
            f"{item.url}: what was downloaded has MD5 {digest}, expected {item.md5}; try again, or fetch it"
            " by other means"
        )


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack beside the archive; what is in it appears in `folder` only when all of it is written."""
    try:
        with temporary_folder(archive) as temporary:
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, _harmless(tar, temporary))
            for path in temporary.iterdir():
                if not (folder / path.name).exists():
                    path.rename(folder / path.name)
    except (tarfile.TarError, OSError) as error:
        raise UslError(f"{archive}: cannot be unpacked ({error}); is the disk full?") from error


def _harmless(tar: tarfile.TarFile, folder: Path) -> list[tarfile.TarInfo]:
    """All that an archive holds, if that is files and folders that stay in `folder`; Python 3.11.4 has a filter."""
    members = tar.getmembers()
    for member in members:
        inside = (folder / member.name).resolve().is_relative_to(folder.resolve())
        if not inside or not (member.isfile() or member.isdir()):
            raise tarfile.TarError(f"'{member.name}' in it is no file or folder that stays where it is unpacked")
    return members

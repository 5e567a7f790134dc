"""Tar files as shards: images, and in WebDataset's way their labels beside them.

Standard library only. A file is named by its path in the archive; of one that is there several times, as `tar --update`
makes it, the last counts. What belongs to one sample has one path up to the first dot of the name: the label of
`a/17.jpg` is what `a/17.cls` says, else `label` of `a/17.json`.
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from usl_lightning.base.errors import UslError
from usl_lightning.base.files import parse_json
from usl_lightning.data.images.shard import Shard
from usl_lightning.data.images.walk import LARGEST, is_hidden, is_image

LARGEST_LABEL = 1 << 20
"""Bytes of a file beside an image that are read for its label."""

_CHUNK = 1 << 20


def look_into(path: Path) -> Shard:
    """What is in a tar file, which is read from one header to the next.

    Raises:
        OSError: it cannot be read.
        UslError: what stands where a label is expected is none.
    """
    found, label_of = Shard(), dict[str, str]()
    with open(path, "rb") as file:
        try:
            for member in _members(file):
                _take(found, label_of, member, file, path)
        except (UslError, OSError):
            raise
        except Exception as error:  # of damaged headers tarfile raises ValueError, OverflowError, … beside its own
            what = " ".join(str(error).split()) or type(error).__name__
            found.odd.append(("", f"a damaged tar file, or none ({what}); what follows in it cannot be read"))
    code: dict[str, int] = {}
    for name in found.names:
        text = label_of.get(_sample(name))
        found.labels.append(-1 if text is None else code.setdefault(text, len(code)))
    found.texts, found.labelled = tuple(code), bool(code)
    return found


def _members(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Every member of an archive whose end is there; `tarfile` itself takes a damaged header for the end."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # a million of them take a gigabyte
            yield member
        file.seek(tar.offset)  # type: ignore[attr-defined]
        if len(end := file.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it has no end: was it written whole?")
        while end:
            if end.strip(b"\0"):
                raise tarfile.ReadError(f"no header at byte {file.tell() - len(end)} or after it")
            end = file.read(_CHUNK)


def _take(found: Shard, label_of: dict[str, str], member: tarfile.TarInfo, file: IO[bytes], path: Path) -> None:
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if not parts or any(part != ".." and is_hidden(part) for part in parts):
        return
    name, kind = "/".join(parts), parts[-1].rpartition(".")[2].lower()
    if is_image(name):
        if problem := _problem(member, parts):
            found.odd.append((name, problem))
            return
        found.names.append(name)
        found.offsets.append(member.offset_data)
        found.sizes.append(member.size)
    elif kind in ("cls", "json") and member.isreg() and not member.issparse():
        text = _label(member, file, kind, f"{path}: {name}")
        if text is not None and (kind == "cls" or _sample(name) not in label_of):
            label_of[_sample(name)] = text


def _problem(member: tarfile.TarInfo, parts: list[str]) -> str:
    """Why a member that is called like an image is none that is read; "" if it is."""
    if member.name.startswith("/") or ".." in parts:
        return "a path out of the archive, expected one within it"
    if any(map(is_image, parts[:-1])) or member.isdir():
        return "a folder, expected an image file"
    if member.issym() or member.islnk():
        return "a link, expected an image file"
    if not member.isreg() or member.issparse():
        return "no regular file, expected an image file"
    if member.size > LARGEST:
        return f"{member.size / 1e9:.1f} GB, more than an image has; remove it"
    return ""


def _sample(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _label(member: tarfile.TarInfo, file: IO[bytes], kind: str, where: str) -> str | None:
    """What a file beside an image says: a number or a text; None if a JSON file has no `label`."""
    if member.size > LARGEST_LABEL:
        if kind == "json":
            return None
        raise UslError(f"{where}: {member.size} bytes, expected the label of an image")
    place = file.tell()
    file.seek(member.offset_data)
    content = file.read(member.size)
    file.seek(place)
    try:
        if kind == "cls":
            return content.decode().strip()
        value: Any = parse_json(content)
    except ValueError as error:
        if kind == "json":  # of another program, for another purpose
            return None
        raise UslError(f"{where}: its letters are not in UTF-8; expected the label of an image") from error
    label = value.get("label") if isinstance(value, dict) else None
    if label is None or isinstance(label, str | int):
        return None if label is None else str(label)
    raise UslError(f"{where}: label is {json.dumps(label)[:40]}, expected a number or the name of one class")

"""Files of numbers, archives, images and checkpoints made wrong by what they are made of."""

import io
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

from fuzzing.mutations import BYTES, Change, another_value

# .npy ----------------------------------------------------------------------------------------------------

DESCRIPTIONS = (
    "'<f4'", "'>f8'", "'<f2'", "'<i8'", "'|u1'", "'|b1'", "'<c8'", "'<U3'", "'|S4'", "'|O'", "'<M8[ns]'", "'|V8'",
    "'x'", "''", "None", "[('a', '<f4')]", "[('a', '|O')]", "'<U0'", "'|V0'", "('<f4', (2,))",
    "'<U999999999'", "{}", "'f' * 9",
)  # fmt: skip
SHAPES = (
    "()", "(0,)", "(1,)", "(3, 4)", "(-1,)", "(10**9,)", "(2**62, 4)", "(2**31, 2**31, 2**31)",
    "(99999999999999999999,)", "(1.5,)", "(True,)", "'x'", "5", "None", "(1,) * 70", "(0, 99999999999)",
    "(4, 0)", "(1, 1, 1, 1)",
)  # fmt: skip


def npy_header(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """Another type, shape, order, key or version in the header of an array, whose length is right."""
    if content[:6] != b"\x93NUMPY" or len(content) < 10:
        return content
    (length,) = struct.unpack_from("<H", content, 8)
    header = content[10 : 10 + length].decode("latin1")
    done = rng.randrange(5)
    if done == 0:
        header = re.sub(r"'descr': [^,]+,", lambda _: f"'descr': {rng.choice(DESCRIPTIONS)},", header)
    elif done == 1:
        header = re.sub(r"'shape': \([^)]*\)", lambda _: f"'shape': {rng.choice(SHAPES)}", header)
    elif done == 2:
        header = header.replace(
            "'fortran_order': False", rng.choice(("'fortran_order': True", "'fortran_order': 2", ""))
        )
    elif done == 3:
        header = rng.choice(("{", "[" * 200, "1", "{'descr': 1}", "\0", "lambda: 0", "{**{}}", "(" * 9000, "'" * 3))
    else:
        return content[:6] + bytes((rng.choice((0, 1, 2, 3, 9)), rng.choice((0, 1)))) + content[8:]
    packed = header.rstrip().encode("latin1")[:65000] + b"\n"
    return content[:8] + struct.pack("<H", len(packed)) + packed + content[10 + length :]


ARRAY: tuple[Change, ...] = (*BYTES, npy_header, npy_header, npy_header, npy_header)


# archives ------------------------------------------------------------------------------------------------


def members(content: bytes) -> list[tuple[str, bytes]]:
    """Name and content of what is in an archive; nothing if it is none."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:
        return []


def packed(parts: Sequence[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, part in parts:
            archive.writestr(zipfile.ZipInfo(name), part, compression)
    return file.getvalue()


def member(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """An archive with one of its members changed, renamed, left out or there twice; its checksums are right."""
    parts = members(content)
    if not parts:
        return content
    number = rng.choice(range(len(parts)))
    name, part = parts[number]
    done = rng.randrange(6)
    if done == 0:
        del parts[number]
    elif done == 1:
        parts[number] = (rng.choice((name[:-1], name.upper(), f"../{name}", "x.npy", rng.choice(parts)[0])), part)
    elif done == 2:
        parts.insert(rng.randrange(len(parts) + 1), (name, rng.choice(parts)[1]))
    else:
        changes = ARRAY if part[:6] == b"\x93NUMPY" else BYTES
        parts[number] = (name, rng.choice(changes)(part, [part], rng))
    try:
        return packed(parts, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    except ValueError:  # a name that none can have
        return content


def integer(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """A whole number of two or four bytes, more often near the beginning than not, that is another one."""
    size, value = rng.choice((("H", 2), ("I", 4)))
    if len(content) < 8:
        return content
    start = min(len(content) - value, rng.choice((rng.randrange(64), rng.randrange(len(content)))))
    most = 256**value - 1
    other = rng.choice((0, 1, 2, 3, 7, 8, 255, 256, 4096, 65500, most // 2, most // 2 + 1, most))
    return content[:start] + struct.pack(rng.choice("<>") + size, other) + content[start + value :]


ARCHIVE: tuple[Change, ...] = (*BYTES, integer, member, member, member, member, member)


# images --------------------------------------------------------------------------------------------------


def chunk(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """A PNG with one of its chunks changed, left out, moved or there twice; its checksums are right."""
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        return content
    chunks, place = [], 8
    while place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    if not chunks:
        return content
    number = rng.randrange(len(chunks))
    kind, data = chunks[number]
    done = rng.randrange(6)
    if done == 0:
        del chunks[number]
    elif done == 1:
        chunks.insert(rng.randrange(len(chunks) + 1), (kind, data))
    elif kind == b"IDAT" and done == 2:
        try:
            raw = zlib.decompress(data)
        except zlib.error:
            return content
        chunks[number] = (kind, zlib.compress(rng.choice((*BYTES, integer))(raw, [raw], rng)))
    else:
        chunks[number] = (kind, rng.choice((*BYTES, integer, integer))(data, [data], rng))
    out = [content[:8]]
    for kind, data in chunks:
        out += [struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(kind + data))]
    return b"".join(out)


IMAGE: tuple[Change, ...] = (*BYTES, integer, integer, integer, integer, chunk, chunk)


# checkpoints ---------------------------------------------------------------------------------------------


def stored_value(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """A checkpoint with another value, or none, in the place of one."""
    import torch

    try:
        top = torch.load(io.BytesIO(content), weights_only=True)
        file = io.BytesIO()
        torch.save(_other(top, rng), file)
    except Exception:
        return content
    return file.getvalue()


def _other(top: Any, rng: random.Random) -> Any:
    """`another_value`, or another tensor in the place of one."""
    import torch

    tensors = [(holder, key) for holder in _holders(top) for key, value in holder.items() if torch.is_tensor(value)]
    if rng.random() < 0.6 or not tensors:
        return another_value(top, rng)
    holder, key = rng.choice(tensors)
    value = holder[key]
    others = (
        value[..., None], value.flatten(), value[:0] if value.dim() else value, value.double(), value.long(),
        torch.zeros(()), torch.zeros(3, 3), value.bool(), torch.full_like(value, -1), value.to_sparse(), None, "x", 1.5,
    )  # fmt: skip
    holder[key] = rng.choice(others)
    return top


def _holders(value: Any) -> list[dict[Any, Any]]:
    if isinstance(value, dict):
        return [value, *(inner for item in value.values() for inner in _holders(item))]
    return []


CHECKPOINT: tuple[Change, ...] = (*ARCHIVE, *[stored_value] * 10)

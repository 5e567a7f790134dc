"""Valid files made wrong: the same input for the same seed and number, whatever is read with it."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

TOKENS = (
    b"", b"\0", b"\n", b"\r\n", b",", b";", b"\t", b'"', b"'", b"{", b"}", b"[", b"]", b":", b"\\", b"=1", b"-1", b"0",
    b"-0", b"1e999", b"1e-999", b"NaN", b"nan", b"-Infinity", b"null", b"None", b"true", b"1.0", b"9" * 19, b"9" * 5000,
    b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", "\u200d".encode(), "e\u0301".encode(), "\u202e".encode(), b"\\ud800",
    b"../", b"/etc/passwd", b"not sure", b"\x1b[2J", b"%s", b"{}" * 50, b"[" * 200, b"sha256:",
)  # fmt: skip
"""What readers stumble over, put in anywhere."""

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, "", "0", "-1", "nan", "x" * 300, "\U0001f600",
    "e\u0301", "a\0b", "../x", "not sure", [], {}, [[]], [None], {"": None}, ["a", "b"], {"choices": ["cat", "dog"]},
)  # fmt: skip
"""What a JSON value can be instead of what it should be."""

LARGEST = 1 << 20
"""Bytes of an input, at most."""


def mutated(seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """One of the valid files with one to eight things wrong; now and then none."""
    content = rng.choice(seeds)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 5, 8))):
        content = rng.choice(CHANGES)(content, seeds, rng)[:LARGEST]
    return content


def _span(content: bytes, rng: random.Random, longest: int = 64) -> tuple[int, int]:
    start = rng.randrange(len(content) + 1)
    return start, min(len(content), start + rng.randrange(longest + 1))


def _flip(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 20))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    start, end = _span(content, rng, 8)
    return content[:start] + rng.randbytes(end - start) + content[end:]


def _insert(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    start, end = _span(content, rng, rng.choice((0, 0, 4)))
    return content[:start] + rng.choice(TOKENS) + content[end:]


def _delete(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    start, end = _span(content, rng)
    return content[:start] + content[end:]


def _cut(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _repeat(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    start, end = _span(content, rng)
    return content[:start] + content[start:end] * rng.choice((2, 2, 3, 10, 1000)) + content[end:]


def _splice(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    other = rng.choice(seeds)
    return content[: _span(content, rng)[0]] + other[_span(other, rng)[0] :]


def _swap_lines(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    if len(lines) > 1:
        a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
        lines[a], lines[b] = lines[b], rng.choice((lines[a], lines[b], b"\n"))
    return b"".join(lines)


def _number(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """Another number in the place of one."""
    places = [i for i, byte in enumerate(content) if 48 <= byte <= 57]
    if not places:
        return content
    start = rng.choice(places)
    end = start
    while end < len(content) and 48 <= content[end] <= 57:
        end += 1
    other = rng.choice((b"0", b"-1", b"1", b"60", b"255", b"65536", b"4294967295", b"9" * 20, b"1.5", b"01"))
    return content[:start] + other + content[end:]


def _value(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """Another value, or none, in the place of one of a JSON text; a text of another kind stays."""
    try:
        top = json.loads(content)
    except (ValueError, RecursionError):
        return content
    holder: Any = [top]
    while True:  # a way down
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return content
        key = rng.choice(keys)
        if not isinstance(holder[key], (dict, list)) or not holder[key] or rng.random() < 0.2:
            break
        holder = holder[key]
    if holder == [top] and rng.random() < 0.9:
        return content
    done = rng.randrange(4)
    if done == 0 and holder != [top]:
        del holder[key]
    elif done == 1 and isinstance(holder, dict):
        holder[rng.choice(("x", "", key + "s", "data", "label"))] = holder.pop(key)
    else:
        holder[key] = rng.choice(VALUES)
    text = json.dumps(top if holder != [top] else holder[0])
    if rng.random() < 0.1:  # a key twice
        text = text.replace('": ', '": 0, "x": 1, "x": ', 1)
    return text.encode()


CHANGES: tuple[Callable[[bytes, Sequence[bytes], random.Random], bytes], ...] = (
    _flip, _overwrite, _insert, _insert, _delete, _cut, _repeat, _splice, _swap_lines, _number, _value, _value, _value,
)  # fmt: skip

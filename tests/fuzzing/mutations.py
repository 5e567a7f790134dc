"""Valid files made wrong: bytes of any kind; JSON, YAML and CSV by what they are made of."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import yaml

Change = Callable[[bytes, Sequence[bytes], random.Random], bytes]
"""One thing that is wrong: the content, all valid files, and what decides."""

TOKENS = (
    b"", b"\0", b"\n", b"\r\n", b",", b";", b"\t", b'"', b"'", b"{", b"}", b"[", b"]", b":", b"\\", b"=1", b"-1", b"0",
    b"-0", b"1e999", b"1e-999", b"NaN", b"nan", b"-Infinity", b"null", b"None", b"true", b"1.0", b"9" * 19, b"9" * 5000,
    b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", "\u200d".encode(), "e\u0301".encode(), "\u202e".encode(), b"\\ud800",
    b"../", b"/etc/passwd", b"not sure", b"\x1b[2J", b"%s", b"{}" * 50, b"[" * 200, b"sha256:",
)  # fmt: skip
"""What readers stumble over, put in anywhere."""

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 10**290, 10**310, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", "0", "-1", "nan", "x" * 300, "\U0001f600",
    "e\u0301", "a\0b", "\ud800", "a\nb", "../x", "not sure", [], {}, [[]], [None], {"": None},
    ["a", "b"], {"choices": ["cat", "dog"]},
)  # fmt: skip
"""What a value can be instead of what it should be."""

LARGEST = 1 << 20
"""Bytes of an input, at most."""


def mutated(seeds: Sequence[bytes], rng: random.Random, changes: Sequence[Change]) -> bytes:
    """One of the valid files with one to eight things wrong; now and then none."""
    content = rng.choice(seeds)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 5, 8))):
        content = rng.choice(changes)(content, seeds, rng)[:LARGEST]
    return content


# bytes ---------------------------------------------------------------------------------------------------


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


# JSON and YAML -------------------------------------------------------------------------------------------


def _deep(levels: int) -> Any:
    value: Any = 1
    for number in range(levels):
        value = [value] if number % 2 else {"a": value}
    return value


def another_value(top: Any, rng: random.Random) -> Any:
    """A nested value with another one, or none, in the place of one in it."""
    holder: Any = [top]
    while True:  # a way down
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return top
        key = rng.choice(keys)
        if not isinstance(holder[key], (dict, list)) or not holder[key] or rng.random() < 0.2:
            break
        holder = holder[key]
    if holder == [top] and rng.random() < 0.9:
        return top
    done = rng.randrange(4)
    if done == 0 and holder != [top]:
        del holder[key]
    elif done == 1 and isinstance(holder, dict):
        holder[rng.choice(("x", "", f"{key}s", "data", "label"))] = holder.pop(key)
    else:
        holder[key] = rng.choice(VALUES) if rng.random() < 0.97 else _deep(rng.choice((20, 99, 101, 300)))
    return top if holder != [top] else holder[0]


def _value(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """Another value, or none, in the place of one of a JSON text; a text of another kind stays."""
    try:
        top = json.loads(content)
        text = json.dumps(another_value(top, rng))
    except (ValueError, RecursionError):
        return content
    if rng.random() < 0.1:  # a key twice
        text = text.replace('": ', '": 0, "x": 1, "x": ', 1)
    return text.encode()


def _yaml_value(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """The same of a YAML document, written in another style."""
    try:
        top = another_value(yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader)), rng)
        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        text = yaml.dump(top, Dumper=dumper, default_flow_style=rng.choice((None, True, False)), sort_keys=False)
    except Exception:  # PyYAML raises what it meets
        return content
    return text.encode("utf-8", "surrogatepass")


MARKS = (
    b"&a ", b"*a", b"<<: *a\n", b"<<: 1\n", b"!!python/object:os.system ", b"!!binary ", b"!!float ", b"!x ", b"? ",
    b"- ", b": ", b"|\n", b">-\n", b"---\n", b"...\n", b"%YAML 3.0\n", b"%TAG ! x\n", b"# ", b"@", b"`", b"012",
    b"0x1F", b"1_000", b"12:30", b"2024-01-01", b".inf", b".nan", b"~", b"yes", b"9" * 401, b"\t", b"  ", b"{a: b}",
    b"${x.labels}", b"${pretrain.checkpoint}", b"a: &b [*b]\n", b"x: &x [1]\ny: [*x, *x]\n",
    b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    b"d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n",
)  # fmt: skip
"""What means something in YAML."""


def _mark(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """A mark at the beginning of a line, before or instead of a value."""
    lines = content.split(b"\n")
    number, mark = rng.randrange(len(lines)), rng.choice(MARKS)
    key, colon, value = lines[number].partition(b": ")
    if rng.random() < 0.3 or not colon:
        lines[number] = mark + lines[number]
    else:
        lines[number] = key + colon + mark + (b"" if rng.random() < 0.5 else value)
    return b"\n".join(lines)


# tables --------------------------------------------------------------------------------------------------


def _cell(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """Another cell, one more or one less, in a row."""
    lines = content.split(b"\n")
    number = rng.randrange(len(lines))
    cells = lines[number].split(b",")
    place, others = rng.randrange(len(cells)), [cell for line in lines for cell in line.split(b",")]
    done = rng.randrange(4)
    if done == 0:
        del cells[place]
    elif done == 1:
        cells.insert(place, rng.choice(others))
    else:
        cells[place] = rng.choice(TOKENS if done == 2 else others)
    lines[number] = b",".join(cells)
    return b"\n".join(lines)


BYTES: tuple[Change, ...] = (_flip, _overwrite, _insert, _insert, _delete, _cut, _repeat, _splice, _number)
TEXT: tuple[Change, ...] = (*BYTES, _swap_lines)
JSON: tuple[Change, ...] = (*TEXT, _value, _value, _value, _value)
YAML: tuple[Change, ...] = (*TEXT, _yaml_value, _yaml_value, _yaml_value, _mark, _mark, _mark)
TABLE: tuple[Change, ...] = (*TEXT, _cell, _cell, _cell, _cell)

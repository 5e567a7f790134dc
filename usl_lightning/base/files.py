"""Files: written whole or not at all, JSON without ambiguity, and each hashed once a stage."""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from usl_lightning.base.atomic import atomic_path, check_file, read_file
from usl_lightning.base.errors import UslError

DEEPEST = 100
"""Levels of lists and objects in each other."""

LONGEST_NUMBER = 300
"""Digits of a whole number; a longer one is none that any key means, and no float holds it."""

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[][{}]|[^][{}",:\s]+', re.S)
_COLON = re.compile(r"\s*:")
_PLAIN = frozenset({str, int, float, bool, type(None)})


def not_a_folder(path: str | os.PathLike[str]) -> str:
    """What to say of a path where a folder was expected."""
    return "a file, not a folder" if os.path.exists(path) else "no such folder"


def parse_json(content: bytes | str) -> Any:
    """The value of a JSON text (bytes: UTF-8, with or without a byte order mark, or UTF-16 and UTF-32).

    Refused beside what is no JSON: a key given twice, of which one would be lost; `NaN` and `Infinity`, and numbers
    too large for a float; lists more than `DEEPEST` deep; texts that are no Unicode.

    Raises:
        ValueError: in one line, what is wrong and in which line of the text.
    """
    text = content if isinstance(content, str) else _decoded(content)
    try:
        value = json.loads(
            text.removeprefix("\ufeff"),
            object_pairs_hook=lambda pairs: _object(pairs, text),
            parse_constant=lambda constant: _refuse(text, constant.__eq__, f"{constant} is no number"),
            parse_float=lambda number: _float(number, text),
            parse_int=lambda number: _int(number, text),
        )
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} deep") from None
    if text.count("[") + text.count("{") > DEEPEST and _is_deep(value):
        raise ValueError(f"nested more than {DEEPEST} deep")
    if "\\u" in text or isinstance(content, str):
        _check_surrogates(value, text)
    return value


def _decoded(content: bytes) -> str:
    try:
        return content.decode(json.detect_encoding(content))
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is no {error.encoding.upper()}") from None


def _object(pairs: list[tuple[str, Any]], text: str) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        _refuse_repeated(text)
    return value


def _float(number: str, text: str) -> float:
    value = float(number)
    if math.isinf(value):
        _refuse(text, number.__eq__, f"{_cut(number)} is too large")
    return value


def _int(number: str, text: str) -> int:
    if len(number) > LONGEST_NUMBER:
        _refuse(text, number.__eq__, f"a number of {len(number)} digits")
    return int(number)


def _is_deep(value: Any) -> bool:
    level: list[Any] = [[value]]
    for _ in range(DEEPEST + 1):
        inside = (inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer))
        level = [inner for inner in inside if isinstance(inner, (dict, list))]
    return bool(level)


def _check_surrogates(value: Any, text: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        _refuse(text, _has_surrogate, "half of a character (a lone surrogate)")


def _has_surrogate(token: str) -> bool:
    try:
        (json.loads(token, strict=False) if token[0] == '"' else token).encode()
    except UnicodeEncodeError:
        return True
    return False


# where ---------------------------------------------------------------------------------------------------


def _refuse(text: str, is_it: Callable[[str], bool], problem: str) -> NoReturn:
    """Raise about the first token that is it."""
    place = next((match.start() for match in _TOKEN.finditer(text) if is_it(match[0])), 0)
    raise ValueError(f"line {_line(text, place)}: {problem}")


def _refuse_repeated(text: str) -> NoReturn:
    """Raise about the first key that its object has already."""
    open_objects: list[set[str]] = []
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in ("{", "["):
            open_objects.append(set())
        elif token in ("}", "]"):
            open_objects.pop()
        elif _COLON.match(text, match.end()):
            key = json.loads(token)
            if key in open_objects[-1]:
                raise ValueError(f"line {_line(text, match.start())}: key {_cut(token)} is there twice; keep one")
            open_objects[-1].add(key)
    raise ValueError("a key is there twice; keep one")


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _cut(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file atomically, indented, ending with a newline; floats that are not finite become null."""
    try:
        text = indented(value)
    except ValueError:
        text = indented(_finite(value))
    write_text(path, text + "\n")


def indented(value: Any) -> str:
    """What `json.dumps` makes of a value with `indent=1`; long lists by its encoder in C, which knows no indent.

    Raises:
        ValueError: a float that is not finite.
    """
    dumps = partial(json.dumps, ensure_ascii=False, allow_nan=False)
    if not isinstance(value, dict) or not value or not all(isinstance(key, str) for key in value):
        return dumps(value, indent=1)
    lines = []
    for key, inner in value.items():
        if inner and isinstance(inner, list | tuple) and _PLAIN.issuperset(map(type, inner)):
            text = "[\n  " + dumps(inner, separators=(",\n  ", ": "))[1:-1] + "\n ]"
        else:
            text = dumps(inner, indent=1).replace("\n", "\n ")
        lines.append(f"\n {dumps(key)}: {text}")
    return "{" + ",".join(lines) + "\n}"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: str | Path, advice: str) -> Any:
    """The value of a JSON file, read strictly; see `parse_json`.

    Args:
        path: the file.
        advice: what to do if it is damaged, the end of the message.

    Raises:
        FileNotFoundError: there is no such file.
        UslError: it cannot be read, or is not JSON as it is meant; the line says where.
    """
    try:
        return parse_json(read_file(path))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UslError(f"{path}: cannot be read ({reason}); {advice}") from error


def sha256_of(content: bytes) -> str:
    """`sha256:<hex>` of bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def sha256_of_file(path: str | Path) -> str:
    """`sha256:<hex>` of a file's bytes."""
    check_file(path)
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


T = TypeVar("T")
Stamp = tuple[int, int, int]
"""Modification time in ns, size and inode of a file: another one, another content."""

_kept: dict[Hashable, Any] | None = None


@contextmanager
def noting() -> Iterator[None]:
    """Within it what is read is kept."""
    global _kept
    _kept = {}
    try:
        yield
    finally:
        _kept = None


def once(question: Hashable, answer: Callable[[], T], current: Callable[[T], bool] = lambda _: True) -> T:
    """What `answer` gives; within `noting`, what it gave to the same question before, if that is still `current`."""
    if _kept is None:
        return answer()
    if question not in _kept or not current(_kept[question]):
        _kept[question] = answer()
    known: T = _kept[question]
    return known


def read_once(what: str, path: str | Path, read: Callable[[], T]) -> T:
    """What `read` makes of a file that is taken for `what`; within `noting` read again only if it has changed.

    Raises:
        UslError: it has changed since its content was noted.
    """
    question = (what, os.path.abspath(path))
    found = once(question, lambda: (stamp_of(path), read()), lambda known: known[0] == stamp_of(path))
    as_noted(path)
    return found[1]


def note(*paths: str | Path) -> None:
    """The content of these files, as it is now, tells what the stage is: `as_noted` refuses another."""
    for path in paths:
        once(("noted", os.path.abspath(path)), partial(stamp_of, path))


def noted_hash(path: str | Path) -> str:
    """`sha256:…` of a file, noted; computed once.

    Raises:
        OSError: it cannot be read.
    """
    note(path)
    as_noted(path)
    return once(("sha256", os.path.abspath(path)), partial(sha256_of_file, path))


def as_noted(*paths: str | Path) -> None:
    """Called by whoever has read files: they still are what was noted, if they were.

    Raises:
        UslError: one has changed since.
    """
    for path in paths:
        noted = (_kept or {}).get(("noted", os.path.abspath(path)))
        if noted is not None and noted != stamp_of(path):
            raise changed(path)


def changed(path: str | Path) -> UslError:
    """Says that a file or folder is not what it was when the stage began."""
    return UslError(f"{path}: was changed while this run was starting; start it again")


def stamp_of(path: str | Path) -> Stamp | None:
    """The stamp of a file; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino

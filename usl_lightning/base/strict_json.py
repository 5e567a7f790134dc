"""JSON as it is meant: what other readers take in silence is refused here. No heavy imports."""

import json
import math
import re
from collections.abc import Callable
from typing import Any, NoReturn

DEEPEST = 100
"""Levels of lists and objects in each other."""

LONGEST_NUMBER = 300
"""Digits of a whole number; a longer one is none that any key means, and no float holds it."""

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[][{}]|[^][{}",:\s]+', re.S)
_COLON = re.compile(r"\s*:")


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

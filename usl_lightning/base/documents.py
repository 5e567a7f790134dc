"""YAML documents, read strictly: nothing vanishes, nothing changes its meaning, nothing expands without end.

The scalars are those of YAML 1.2's core schema: `010` is ten; `12:30`, `2024-01-01` and `yes` are texts. A plain scalar
stays a `Plain` until it is known whether a text is wanted there: a folder may be called `1.10` or `null`.
"""

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from usl_lightning.base.atomic import read_file
from usl_lightning.base.classes import moved_text
from usl_lightning.base.errors import UslError
from usl_lightning.base.files import once

_FORMULA = re.compile("'*[=+\\-@\t\r]")


def guarded(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula: with an apostrophe before what would begin one."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def unguarded(cell: str) -> str:
    """What `guarded` was given."""
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell) else cell


def composed(text: str) -> str:
    """Unicode's composed form (NFC): what is written in two ways is one text. macOS decomposes names of files."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


LARGEST = 100_000
"""Values in a document, those that aliases repeat included."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[-+]?[0-9]{1,400}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_QUOTED = ("'", '"', "|", ">")
_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
NULLS = ("null", "Null", "NULL")
"""What unsets a parameter, without quotes: one may be a text, and so may `~` be, which is a folder there."""

_SPECIAL = {"inf": "inf", "nan": "nan"}
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("null", "Null", "NULL", "~", "")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


class Plain(str):
    """A scalar without quotes, as typed."""

    __slots__ = ()


class Listed(list[Any]):
    """A list in brackets, with its text."""

    text: str = ""


class Mapped(dict[str, Any]):
    """A mapping in braces, with its text."""

    text: str = ""


def plain_value(text: str) -> Any:
    """What a plain scalar means by YAML 1.2's core schema: null, a truth value, a number or the text itself."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    special = text.lower().lstrip("+-").removeprefix(".")
    if special in _SPECIAL and text.lstrip("+-").startswith("."):
        return float(("-" if text.startswith("-") else "") + special)
    return float(text) if _FLOAT.fullmatch(text) else str(text)


def is_nothing(text: str) -> bool:
    """Whether a YAML parser that is given a text, which perhaps was quoted, takes it for null: `null`, `# 1`."""
    try:
        return yaml.load(text, Loader=_LOADER) is None
    except (yaml.YAMLError, ValueError, RecursionError):
        return False


class _Dumper(yaml.SafeDumper):
    """Quotes each text that `plain_value` takes for something else: PyYAML goes by YAML 1.1."""


def _text_node(dumper: Any, text: str) -> yaml.Node:
    style = None if isinstance(plain_value(text), str) else "'"
    odd = not text.replace("\n", "").isprintable()  # other line breaks would come back as spaces
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if odd else style)  # type: ignore[no-any-return]


_Dumper.add_representer(str, _text_node)


def document_text(value: Any) -> str:
    """The YAML of a value that has no `Plain` in it: `parse_document` gives it back."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


class _FlowDumper(_Dumper):
    """Leaves each `Plain` without quotes if it may mean something else than a text, and repeats what stands twice."""

    def ignore_aliases(self, data: Any) -> bool:
        """No anchors."""
        return True


def _plain_node(dumper: Any, scalar: Plain) -> yaml.Node:
    text = scalar or "null"
    tag = dumper.resolve(yaml.ScalarNode, text, (True, False))
    if isinstance(plain_value(text), str):
        return _text_node(dumper, str(text))
    return dumper.represent_scalar(tag, text)  # type: ignore[no-any-return]


_FlowDumper.add_representer(Plain, _plain_node)
_FlowDumper.add_multi_representer(list, _FlowDumper.represent_list)
_FlowDumper.add_multi_representer(dict, _FlowDumper.represent_dict)


def typed_text(value: Any) -> str:
    """What one would type for a value of a document: it means the same there, whatever type is wanted."""
    if isinstance(value, str):
        return str(value)
    return _flow_text(value)


def _flow_text(value: Any) -> str:
    """A value within brackets or braces: what was typed in some stays as it was, for it may be a text: `{x}`."""
    if isinstance(value, Mapped | Listed) and value.text and not {"&", "*"} & set(value.text):
        return value.text
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_flow_text(key)}: {_flow_text(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flow_text, value))}]"
    text = yaml.dump(
        [value], Dumper=_FlowDumper, default_flow_style=True, sort_keys=False, width=10**9, allow_unicode=True
    )
    return str(text).strip()[1:-1]


def settled(value: Any) -> Any:
    """A value with each `Plain` in it as what it means by itself."""
    if isinstance(value, Plain):
        return plain_value(value)
    if isinstance(value, dict):
        return {key: settled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [settled(item) for item in value]
    return value


def parse_document(text: str, where: str) -> Any:
    """The value of a YAML document, its plain scalars as `Plain`.

    Args:
        text: the document.
        where: what it is called in messages, a file or an option.

    Raises:
        UslError: not YAML, a key twice, aliases that contain themselves or expand beyond `LARGEST` values, a tag.
    """
    try:
        node = yaml.compose(text, Loader=_LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: characters that no text can hold
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        line = f" line {mark.line + 1}" if mark else ""
        raise UslError(f"{where}:{line} is not valid YAML: {' '.join(problem.split())}") from error
    return None if node is None else _Reading(text, where).value(node)


def read_document(path: Path) -> Any:
    """`parse_document` of a file, classes by their present names; a stage goes on with what it held at first.

    Raises:
        UslError: as there, or it cannot be read.
    """
    try:
        text = once(("document", str(path)), lambda: read_file(path).decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UslError(f"{path}: cannot be read ({reason})") from error
    return parse_document(moved_text(text), str(path))


class _Reading:
    """One pass over the nodes of a document."""

    def __init__(self, text: str, where: str) -> None:
        self._text, self._where = text, where
        self._open: set[int] = set()
        self._count = 0

    def _refuse(self, node: yaml.Node, problem: str) -> UslError:
        return UslError(f"{self._where}: line {node.start_mark.line + 1}: {problem}")

    def value(self, node: yaml.Node) -> Any:
        """What a node says, its texts as they were typed; refuses what has no end."""
        self._count += 1
        if self._count > LARGEST:
            raise self._refuse(node, f"more than {LARGEST:,} values, aliases (*) repeat each other; write them out")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if node.tag not in _COLLECTIONS:
            raise self._refuse(node, f"the tag {node.tag} means nothing here; leave it out")
        if id(node) in self._open or len(self._open) > 100:
            problem = "an alias (*) contains itself" if id(node) in self._open else "nested too deeply"
            raise self._refuse(node, f"{problem}; write it out")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                items = Listed(self.value(item) for item in node.value)
                items.text = self._source(node)
                return items
            entries = Mapped(self._entries(node))
            entries.text = self._source(node)
            return entries
        finally:
            self._open.discard(id(node))

    def _source(self, node: yaml.Node) -> str:
        return self._text[node.start_mark.index : node.end_mark.index] if getattr(node, "flow_style", False) else ""

    def _scalar(self, node: yaml.ScalarNode) -> str:
        text = str(node.value)
        tagged = self._text[node.start_mark.index : node.start_mark.index + 1] == "!"
        if tagged and node.tag != "tag:yaml.org,2002:str":
            raise self._refuse(node, f"the tag {node.tag} means nothing here; leave it out")
        if tagged or node.style in _QUOTED:
            return text
        if text.isascii() and text.lstrip("+-").isdecimal() and not _INT.fullmatch(text):
            raise self._refuse(node, f"a number of {len(text):,} digits; expected fewer than 400")
        return Plain(text)  # whatever YAML 1.1 took it for

    def _entries(self, node: yaml.Node) -> Iterator[tuple[str, Any]]:
        """Keys and values; of a key that `<<` brings, the mapping's own value counts."""
        lines: dict[str, int] = {}
        merged: dict[str, Any] = {}
        own: list[tuple[str, Any]] = []
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._refuse(key_node, "a key that is no text")
            key = str(key_node.value)
            if key in lines:
                raise self._refuse(key_node, f"the key '{key}' is there twice, first in line {lines[key]}; keep one")
            lines[key] = key_node.start_mark.line + 1
            if key == "<<" and key_node.style not in _QUOTED:
                parts = self.value(value_node)
                for part in parts if isinstance(parts, list) else [parts]:
                    if not isinstance(part, dict):
                        raise self._refuse(value_node, "<< takes a mapping, or a list of them")
                    merged = {**part, **merged}
            else:
                own.append((key, self.value(value_node)))
        yield from (item for item in merged.items() if item[0] not in lines)
        yield from own

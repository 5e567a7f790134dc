"""What the site's build adds to mkdocs: equations as MathML, and code quoted from the repository.

Both happen when the site is built, so that its pages need neither scripts nor a network, and cannot quote old code.
"""

import ast
import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parent.parent
MATH = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
QUOTE = re.compile(r"^@@ (\S+\.py) (\S+)( brief)?$", re.M)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the source of what a line `@@ path/to/file.py Class.method` names in its place.

    With ` brief` at its end, docstrings are cut to their first lines.
    """
    return QUOTE.sub(lambda match: f"```python\n{source_of(match[1], match[2], brief=bool(match[3]))}\n```", markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Turn the TeX that arithmatex has found into MathML, which browsers show by themselves."""
    return MATH.sub(lambda match: _mathml(match[2], block=match[1] == "div"), content)


def source_of(file: str, name: str, *, brief: bool = False) -> str:
    """The lines of a function, a class or a method, without its indentation.

    Args:
        file: path from the root of the repository.
        name: `function`, `Class` or `Class.method`; `Class.` is the head of a class: docstring and `__init__`.
        brief: only the first line of its docstring.

    Raises:
        PluginError: there is nothing of that name.
    """
    text = (ROOT / file).read_text(encoding="utf-8")
    body: list[ast.stmt] = ast.parse(text).body
    for part in filter(None, name.split(".")):
        found = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == part]
        if not found:
            raise PluginError(f"docs: {file} has no {name}")
        node, body = found[0], found[0].body
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    last = node.end_lineno
    if name.endswith("."):
        last = next(item.end_lineno for item in body if isinstance(item, ast.FunctionDef) and item.name == "__init__")
    lines = text.splitlines()[first - 1 : last]
    docstring = body[0]
    if brief and isinstance(docstring, ast.Expr) and docstring.end_lineno and docstring.end_lineno > docstring.lineno:
        lines[docstring.lineno - first] += '"""'
        del lines[docstring.lineno - first + 1 : docstring.end_lineno - first + 1]
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[indent:] for line in lines)


def _mathml(tex: str, *, block: bool) -> str:
    found = convert(html.unescape(tex).strip(), display="block" if block else "inline")
    unknown = re.search(r">(\\\w+)<", found)
    if unknown:
        raise PluginError(f"docs: {unknown[1]} in an equation is not known to latex2mathml")
    return found

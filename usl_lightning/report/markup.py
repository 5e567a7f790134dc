"""HTML from Python: everything that is not markup already is escaped."""

import itertools
from collections.abc import Iterable, Sequence
from html import escape

VOID = frozenset({"br", "img", "link", "meta"})
"""Elements without an end tag."""


class Html(str):
    """Markup, which is not escaped again."""

    __slots__ = ()


Child = Html | str | int | None | Iterable["Child"]
"""What goes into an element: markup, text, or several; None is nothing."""


def render(*children: Child) -> Html:
    """Children in a row as markup; texts are escaped."""
    return Html("".join(_text(child) for child in children))


def _text(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, (str, int)):
        return escape(str(child))
    return "".join(_text(each) for each in child)


def tag(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Html:
    """An element.

    Args:
        name: of the element.
        children: what is in it.
        attributes: by name, with `_` for `-` (a trailing one, as in `class_`, is dropped). True: without a value;
            None or False: left out. Values are escaped.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is not None and value is not False:
            word = key.rstrip("_").replace("_", "-")
            parts.append(word if value is True else f'{word}="{escape(_number(value))}"')
    start = f"<{' '.join(parts)}>"
    return Html(start if name in VOID else f"{start}{render(*children)}</{name}>")


def _number(value: str | float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def section(identity: str, title: str, *children: Child) -> Html:
    """A section with its heading, which is its name for screen readers and its place in the contents."""
    heading = tag("h2", title, id=f"{identity}-heading")
    return tag("section", heading, *children, id=identity, aria_labelledby=f"{identity}-heading")


def table(caption: str, header: Sequence[Child], rows: Iterable[Sequence[Child]], *, class_: str | None = None) -> Html:
    """A table that scrolls in itself on a narrow screen; the first column names the rows.

    Args:
        caption: above it.
        header: a name for each column.
        rows: cells; each as many as the header has.
        class_: for the style.
    """
    head = tag("tr", [tag("th", cell, scope="col") for cell in header])
    body = [
        tag("tr", [tag("th", cell, scope="row") if i == 0 else cell_of(cell) for i, cell in enumerate(row)])
        for row in rows
    ]
    content = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", body), class_=class_)
    return tag("div", content, class_="scroll", role="group", aria_label=caption, tabindex="0")


def cell_of(cell: Child) -> Html:
    """A cell of a table; one that is made already stays."""
    return cell if isinstance(cell, Html) and cell.startswith("<td") else tag("td", cell)


def code(text: str) -> Html:
    """Commands to copy, on lines of their own."""
    return tag("pre", tag("code", text), tabindex="0")


class Names:
    """Identities that occur once in a page."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def new(self, prefix: str) -> str:
        """`prefix-1`, `prefix-2`, …"""
        return f"{prefix}-{next(self._numbers)}"

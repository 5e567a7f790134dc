"""Which networks there are, read from the sources: a chain asks before torch and timm are imported."""

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from usl_lightning.base.classes import syntax_of
from usl_lightning.base.errors import did_you_mean, printable

_REGISTERED = re.compile(r"@register_model\s*\ndef (\w+)\(")
_RENAMED = re.compile(r"register_model_deprecations\(__name__, \{(.*?)\n?\}\)", re.DOTALL)
_KEY = re.compile(r"""["'](\w+)["']:""")


def unknown_network(name: str) -> str:
    """What to say of a name that no network has; nothing of one that some network may have.

    Args:
        name: of this package's networks or of timm's, such as `resnet50` or `resnet50.a1_in1k`.
    """
    own = own_networks()
    if name in own:
        return ""
    text, registered, renamed = _timm()
    architecture, dot, tag = name.partition(".")
    there = architecture in {*registered, *renamed} and (tag in text if tag else not dot)  # some tags are put together
    if there or not text:
        return ""
    expected = f"expected one of {', '.join(own)} or a model of timm"
    return f"unknown '{printable(name, 100)}'{did_you_mean(name, [*own, *registered])}; {expected}"


@cache
def own_networks() -> tuple[str, ...]:
    """The names in `backbones.OURS`."""
    tree = syntax_of("usl_lightning.models.backbones")
    for node in tree.body if tree else ():
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "OURS" and isinstance(node.value, ast.Dict):
            return tuple(ast.literal_eval(key) for key in node.value.keys if key is not None)
    return ()


@cache
def _timm() -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """The text of timm's files that describe networks, their names, and earlier names of some; nothing without timm."""
    package = find_spec("timm")
    folder = Path(package.origin).parent / "models" if package is not None and package.origin else None
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))) if folder else ""
    renamed = (name for names in _RENAMED.findall(text) for name in _KEY.findall(names))
    return text, tuple(_REGISTERED.findall(text)), tuple(renamed)

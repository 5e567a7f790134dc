"""Which networks there are, read from the sources: a chain asks before torch and timm are imported."""

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from usl_lightning.base.classes import syntax_of
from usl_lightning.base.errors import did_you_mean, printable

_REGISTERED = re.compile(r"@register_model\s*\ndef (\w+)\(")
_RENAMED = re.compile(r"register_model_deprecations\(__name__, \{(.*?)\n?\}\)", re.DOTALL)
_KEY = re.compile(r"""["'](\w+)["']:""")

NETWORKS = ("model.backbone", "model.teacher")
"""Parameters that name networks."""

TRAINED_FOR = "@"
"""Parts the name of a network that was trained here from the images that it is for, see `backbones.own_name`."""

_REDUCTIONS = {
    r"small(_w16|_w64|_nf)?|wrn_28_[28](_raw)?": 4,
    r"small_s2(_w64)?|wrn_37_2|resnet\d+_cifar": 8,
    r"wrn_37_2(_raw)?_s2": 16,
    r"alexnet(_small)?": 63,
    r"(levit|selecsls).*": 64,
    r"(ecaresnet|resnet|resnext|resnest|res2net|seresnet|seresnext|skresnet|wide_resnet|csp|darknet|densenet|dla|dpn"
    r"|(tf_)?efficientnet|(tf_)?mixnet|mobilenet|mobilevit|convnext|(dm_)?nf|vgg|mnasnet|ghostnet|hrnet|xception|rexnet"
    r"|repv|lcnet|tinynet|fbnet|spnasnet|semnasnet|inception|regnet|maxvit|coat|edgenext|poolformer|pvt_v2|hardcorenas"
    r"|efficientformer|fastvit|visformer|twins).*": 32,
}  # fmt: skip
"""The shortest side of the images that networks can look at, by name; of most it is what they reduce them by."""

_OF_ONE_SIZE = re.compile(
    r"(?:vit|deit3?|beit|beitv2|swin|swinv2|cait)_(?:tiny|small|base|large|xs|xxs|m|s)\d*_?(?:distilled_)?"
    r"(?:(?:patch|window).*_)?(\d{3})"
)
"""Networks that are made for images of the size in their name."""


def named_networks(flat: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(parameter, name) of the networks that a configuration, as dotted keys, names."""
    for key in NETWORKS:
        given = flat.get(key)
        for name in given.split(",") if isinstance(given, str) else given if isinstance(given, list) else []:
            yield key, str(name).strip()


def too_small(name: str, side: int) -> str:
    """What to say of a network that cannot look at images of this side; nothing of one that can, or may be able to.

    Args:
        name: of a network.
        side: in pixels.
    """
    architecture = name.partition(".")[0]
    known = (shortest for pattern, shortest in _REDUCTIONS.items() if re.fullmatch(pattern, architecture))
    if side < (shortest := next(known, 1)):
        return (
            f"'{name}' looks at images of {shortest} pixels a side or more, these have {side}; enlarge them with "
            "--data.image_size, or take small or resnet18_cifar"
        )
    made_for = _OF_ONE_SIZE.fullmatch(architecture)
    if made_for and int(made_for[1]) != side:
        return (
            f"'{name}' is made for images of {made_for[1]} pixels a side, these have {side}; resize them with "
            f"--data.image_size {made_for[1]}"
        )
    return ""


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

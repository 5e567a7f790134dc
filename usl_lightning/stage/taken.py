"""Whether a network that a stage is to take, from an earlier stage or a file, is one that it can take."""

from collections.abc import Mapping
from typing import Any

from usl_lightning.base.classes import ROOT
from usl_lightning.base.defaults import defaults
from usl_lightning.base.errors import UslError
from usl_lightning.base.parameters import parameters
from usl_lightning.base.peek import peek
from usl_lightning.data.images.catalog import known_image

LEARN_FEATURES = f"{ROOT.name}.pretrain."
"""Where the methods are that learn without labels, and compare the images of a batch with each other."""

_CLASSIFIERS = ("model.classifier_from", "model.earlier_from", "model.teacher_from")
_SELECTS_CLUSTERS = f"{ROOT.name}.selection.uslt_selection.USLT"
_LEARNS_CLUSTERS = f"{ROOT.name}.selection.uslt.USLTTraining"

HEADS = ("votes.", "ema.module.head.")
"""What the names of a classifier's weights begin with, in a checkpoint."""

_OURS = "expected a checkpoint written by `usl fit`"


def check_network_of(key: str, source: str, own: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Refuse a network of an earlier stage that lacks what is to be taken of it, or is another than a stage's own.

    Args:
        key: the parameter that names it.
        source: the earlier stage's name.
        own: the configuration of the stage that takes it, as dotted keys.
        theirs: that of the earlier one.

    Raises:
        UslError: names the key.
    """
    where = f"{key}: ${{{source}.checkpoint}}"
    mine, other = (str(flat.get("model.class_path")) for flat in (own, theirs))
    if key in _CLASSIFIERS and other.startswith(LEARN_FEATURES) and not mine.startswith(LEARN_FEATURES):
        raise UslError(f"{where}: '{source}' learns without labels and leaves no classifier")
    is_ours = other.startswith(f"{ROOT.name}.")
    if key != "model.init_from" or not is_ours:
        return
    if mine == _SELECTS_CLUSTERS and other != _LEARNS_CLUSTERS:
        raise UslError(f"{where}: '{source}' learns no clusters; expected a stage that trains USL-T")
    same = ["data.channels", "data.image_size" if _looks_only(mine) else "model.backbone"]
    of_one_set = all(own.get(name) == theirs.get(name) for name in ("data.dataset", "data.dir"))
    for name in same:
        if None not in (own.get(name), theirs.get(name)) and of_one_set and own.get(name) != theirs.get(name):
            raise UslError(
                f"{where}: '{source}' has {name} {theirs.get(name)}, this stage {own.get(name)}; expected the same"
            )


def check_network_in(key: str, path: str, own: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that lacks what is to be taken of it, or holds another network than a stage's own.

    Args:
        key: the parameter that names it.
        path: of the file, whole.
        own: the configuration of the stage, as dotted keys.

    Raises:
        UslError: names the key and the file.
    """
    mine, content = str(own.get("model.class_path")), peek(path)
    if not content or not mine.startswith(f"{ROOT.name}."):
        return
    if key in _CLASSIFIERS and not mine.startswith(LEARN_FEATURES):
        if not any(str(name).startswith(HEADS) for name in _mapping(content, "state_dict")):
            raise UslError(
                f"{key}: {path}: holds no classifier; expected a checkpoint of a stage that trains with labels"
            )
        return
    entry = _mapping(content, "encoder")
    spec, prefixes = _mapping(entry, "spec"), _mapping(entry, "prefixes")
    if not spec:
        raise UslError(f"{key}: {path}: holds no encoder; {_OURS}")
    if not prefixes:
        raise UslError(f"{key}: {path}: holds no network, its features came from a file; {_OURS} of a network")
    if key == "model.init_from":
        _check_encoder(f"{key}: {path}", mine, own, spec, prefixes)
        if mine == _SELECTS_CLUSTERS and not _mapping(content, "cluster_heads"):
            raise UslError(f"{key}: {path}: holds no clusters; expected a checkpoint of USL-T's training")


def _check_encoder(
    where: str, mine: str, own: Mapping[str, Any], spec: Mapping[str, Any], prefixes: Mapping[str, Any]
) -> None:
    """What `init_encoder` and those who look at images by a checkpoint would refuse."""
    channels, side = known_image(own)
    weights = str(own.get("model.weights", "online")) if _looks_only(mine) else "online"
    if weights not in prefixes:
        raise UslError(f"{where}: holds no {weights} weights; it has {', '.join(map(str, prefixes))}")
    if channels is not None and spec.get("channels") != channels:
        raise UslError(f"{where}: is for images of {spec.get('channels')} channels, these have {channels}")
    if _looks_only(mine):
        if side is not None and (spec.get("height"), spec.get("width")) != (side, side):
            size = f"{spec.get('height')}×{spec.get('width')}"
            raise UslError(
                f"{where}: was trained on images of {size} pixels, these have {side}×{side}; use the checkpoint of "
                "this data set, or the same --data.image_size"
            )
        return
    backbone = own.get("model.backbone", defaults(mine).get("backbone"))
    theirs = str(spec.get("backbone"))
    if isinstance(backbone, str) and backbone.partition(".")[0] != theirs.partition(".")[0]:
        raise UslError(
            f"{where}: holds the network '{theirs}', this stage has model.backbone {backbone}; take the same"
        )


def _looks_only(mine: str) -> bool:
    """Whether a method has no network of its own: one beside the checkpoint's is another one there."""
    return "features" in parameters(mine)


def _mapping(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = content.get(key)
    return found if isinstance(found, Mapping) else {}

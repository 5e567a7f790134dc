"""What Lightning's Trainer takes, from its source and from tables: importing it takes seconds."""

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from usl_lightning.base.errors import did_you_mean

TYPES = {"accelerator": "str", "default_root_dir": "str", "max_steps": "int", "gradient_clip_val": "float"}
"""Parameters whose type counts here; all others mean what YAML says."""

TAKES = {
    "gradient_clip_algorithm": "Literal['norm', 'value']",
    "num_nodes": "int",
}
"""What is taken of them where Lightning takes more, or says less."""

NAMES: Mapping[str, tuple[str, ...]] = {
    "accelerator": ("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "precision": (
        "16-mixed", "16-true", "32-true", "64-true", "bf16-mixed", "bf16-true", "transformer-engine",
        "transformer-engine-float16", "16", "32", "64", "bf16",
    ),
    "profiler": ("simple", "advanced", "pytorch", "xla"),
    "strategy": (
        "auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true", "deepspeed",
        "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_2_offload", "deepspeed_stage_3",
        "deepspeed_stage_3_offload", "deepspeed_stage_3_offload_nvme", "fsdp", "fsdp_cpu_offload", "single_device",
        "single_tpu", "single_xla", "xla", "xla_debug",
    ),
}  # fmt: skip
"""Names that parameters take; those of strategies and profilers in any case."""

CLASSES = {
    "callbacks": ("callbacks",),
    "logger": ("loggers",),
    "plugins": ("plugins", "../lightning_fabric/plugins/environments"),
    "profiler": ("profilers",),
    "strategy": ("strategies",),
}
"""Parameters that take classes, and the folders of Lightning that have some."""

_LAYERS = "pytorch_lightning.plugins.layer_sync.LayerSync"
KINDS = {
    "callbacks": ("pytorch_lightning.callbacks.Callback",),
    "logger": ("pytorch_lightning.loggers.Logger",),
    "plugins": (
        "pytorch_lightning.plugins.Precision", "pytorch_lightning.plugins.CheckpointIO", _LAYERS,
        "lightning_fabric.plugins.ClusterEnvironment",
    ),
    "profiler": ("pytorch_lightning.profilers.Profiler",),
    "strategy": ("pytorch_lightning.strategies.Strategy",),
}  # fmt: skip
"""Parameters that take classes, and what these descend from."""

NEEDS = {
    "bitsandbytes": ("bitsandbytes",), "comet": ("comet_ml",), "deepspeed": ("deepspeed",),
    "litlogger": ("litlogger",), "mlflow": ("mlflow", "mlflow_skinny"), "tensorboard": ("tensorboard", "tensorboardX"),
    "tpu": ("torch_xla",), "transformerengine": ("transformer_engine",), "wandb": ("wandb",), "xla": ("torch_xla",),
}  # fmt: skip
"""Parts of names -> the packages one of which is needed by what they name."""

TRIALS = {
    "fast_dev_run": False, "overfit_batches": 0, "limit_train_batches": None, "limit_test_batches": None,
    "limit_predict_batches": None, "barebones": False,
}  # fmt: skip
"""Parameters that make a run a trial of itself, and what they are in a real one."""

ALTERING = (
    "BackboneFinetuning", "BaseFinetuning", "BatchSizeFinder", "EMAWeightAveraging", "GradientAccumulationScheduler",
    "LearningRateFinder", "ModelPruning", "SpikeDetection", "StochasticWeightAveraging", "WeightAveraging",
)  # fmt: skip
"""Callbacks that change what is learned, so that a run with one would pass for a run without."""


_DDP = {
    "broadcast_buffers": bool, "bucket_cap_mb": int, "find_unused_parameters": bool, "gradient_as_bucket_view": bool,
    "static_graph": bool,
}  # fmt: skip
"""What DDPStrategy hands on to torch's DistributedDataParallel and a configuration can say, and the types."""

_OURS = "would replace this package's own, by which a run survives a kill; leave it out"
_NEVER_NULL = ("accelerator", "devices", "strategy")
_NO_START = "would start processes that cannot take the run over; use ddp"


def _names_classes(value: Any) -> bool:
    each = value if isinstance(value, list) else [value]
    return all("class_path" in item if isinstance(item, Mapping) else isinstance(item, str) and item for item in each)


def _counts_devices(value: Any) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"auto|-1|[0-9]{1,4}(,[0-9]{0,4})*", value) is not None
    each = value if isinstance(value, list) else [value]
    return bool(each) and all(type(item) is int for item in each)


def seconds(longest: Any) -> float | None:
    """How long `max_time` is, at least 0; None if it is no duration, or not given."""
    if isinstance(longest, str) and re.fullmatch(r"[0-9]+:[0-9]{2}:[0-9]{2}:[0-9]{2}", longest):
        longest = dict(zip(("days", "hours", "minutes", "seconds"), map(int, longest.split(":")), strict=True))
    if not isinstance(longest, Mapping) or not all(type(item) in (int, float) for item in longest.values()):
        return None
    try:
        return max(0.0, timedelta(**longest).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return None


def _is_duration(value: Any) -> bool:
    return seconds(value) is not None


def _is_name_or_class(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, Mapping) and "class_path" in value)


_CLASSES = "classes, as in [{class_path: package.module.Class}]"

_SHAPES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "val_check_interval": (
        lambda value: type(value) in (int, float),
        "a number of batches; a run that is continued would not repeat validations by the clock",
    ),
    "deterministic": (lambda value: value in (True, False, "warn"), "true, false or warn"),
    "limit_val_batches": (
        lambda value: (type(value), value) in ((int, 0), (float, 0.0), (float, 1.0)),  # the number 1 is a batch
        "0, for no validation; a part of the images would pass for all of them",
    ),
    "devices": (_counts_devices, "a number of devices, auto, or a list of their numbers"),
    "max_time": (_is_duration, "DD:HH:MM:SS, or keys and values such as {hours: 1}"),
    "callbacks": (_names_classes, _CLASSES),
    "plugins": (_names_classes, _CLASSES),
    "logger": (lambda value: isinstance(value, bool) or _names_classes(value), f"true, false or {_CLASSES}"),
    "strategy": (_is_name_or_class, "its name, or a class"),
    "profiler": (_is_name_or_class, "its name, or a class"),
}
"""Parameters that take several types: whether a value is of one of them, and what they are."""


def problems(key: str, value: Any) -> Iterator[tuple[str, list[str]]]:
    """What is wrong with a parameter, as far as can be told without importing anything.

    Args:
        key: of the group `trainer`.
        value: what it is given.

    Yields:
        What is wrong, and the names that are known if the key itself is none.
    """
    known = list(annotations())
    if known and key not in known:
        yield f"unknown key '{key}'", known
    if value is None:
        yield from [("expected a value, found null; auto is the default", [])] if key in _NEVER_NULL else ()
        return
    if key in _SHAPES and not _SHAPES[key][0](value):
        yield f"expected {_SHAPES[key][1]}, found {value}", []
    elif key in NAMES and not (key in CLASSES and isinstance(value, Mapping)):
        yield from ((problem, []) for problem in _about_a_name(key, str(value)))
    for class_path, given in classes(key, value):
        yield from ((problem, []) for problem in _about_a_class(key, class_path, given))
    if key in TRIALS and value != TRIALS[key]:
        yield f"{value} is a trial with some of the images; leave it out and try with a small trainer.max_steps", []


def _about_a_name(key: str, name: str) -> Iterator[str]:
    takes = NAMES[key]
    meant = name.lower() if key in ("strategy", "profiler") else name
    if meant in takes or (key == "profiler" and any(classes(key, name))):
        return
    if key == "strategy" and meant.startswith(("ddp_spawn", "ddp_fork", "ddp_notebook")):
        yield f"{name} {_NO_START}"
    else:
        yield f"unknown '{name}'{did_you_mean(name.lower(), takes)}; expected {', '.join(takes)}"


def _about_a_class(key: str, class_path: str, given: Mapping[str, Any]) -> Iterator[str]:
    if not is_lightnings(class_path):
        return
    name = class_path.rpartition(".")[2]
    known = _classes(key)
    if key == "callbacks" and name in ALTERING:
        yield f"{name} changes what is learned, and no run records it; leave it out"
    elif key == "strategy" and given.get("start_method") not in (None, "popen"):
        yield f"{name}: start_method {given['start_method']} {_NO_START}"
    elif name == "ModelCheckpoint" and given.get("monitor") is None and given.get("save_top_k", 1) not in (-1, 0, 1):
        yield f"{name}: save_top_k={given['save_top_k']} is not a valid configuration without a monitor; give it one"
    elif key == "plugins" and name.endswith("CheckpointIO") and name in known:
        yield f"{name} {_OURS}"
    elif key == "strategy" and given.get("checkpoint_io") is not None:
        yield f"{name}: checkpoint_io {_OURS}"
    elif known and name not in known:
        yield f"unknown '{name}'{did_you_mean(name, known)}"
    elif (own := known.get(name)) is not None:
        takes, required = _names_of(own)
        takes += [*_DDP] if name == "DDPStrategy" else _of_wandb() if name == "WandbLogger" else []
        known_whole = name == "DDPStrategy" or own.kwarg is None or (name == "WandbLogger" and _of_wandb())
        unknown = [each for each in given if each not in takes and known_whole]
        odd = [each for each in given if each in _DDP and name == "DDPStrategy" and type(given[each]) is not _DDP[each]]
        missing = [each for each in required if each not in given]
        if unknown:
            yield f"{name} takes no '{unknown[0]}'{did_you_mean(unknown[0], takes)}; expected {', '.join(takes)}"
        elif missing:
            yield f"{name} needs {', '.join(missing)}"
        elif odd:
            yield f"{name}: {odd[0]}: expected {_DDP[odd[0]].__name__}, found {given[odd[0]]}"


@cache
def _of_wandb() -> list[str]:
    """What WandbLogger hands on to `wandb.init`, from its source; none if that is not found."""
    package = find_spec("wandb")
    path = Path(package.origin or "").parent / "sdk/wandb_init.py" if package else Path()
    for node in ast.parse(path.read_text(encoding="utf-8") if path.is_file() else "").body:
        if isinstance(node, ast.FunctionDef) and node.name == "init":
            return [each.arg for each in [*node.args.args, *node.args.kwonlyargs]]
    return []


def _names_of(given: ast.arguments) -> tuple[list[str], list[str]]:
    """The parameters of a method, and those of them without a default."""
    places = [each.arg for each in [*given.posonlyargs, *given.args]]
    words = dict(zip([each.arg for each in given.kwonlyargs], given.kw_defaults, strict=True))
    needed = places[1 : len(places) - len(given.defaults)]
    return [*places[1:], *words], needed + [name for name, default in words.items() if default is None]


def is_lightnings(class_path: str) -> bool:
    """Whether a dotted path, or a name by itself, means a class of Lightning."""
    return class_path.rpartition(".")[0].partition(".")[0] in ("", "pytorch_lightning", "lightning")


def classes(key: str, value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The dotted paths, and the arguments, of the classes that a parameter is given; names are not all classes."""
    for each in (value if isinstance(value, list) else [value]) if key in CLASSES else ():
        if isinstance(each, Mapping) and "class_path" in each:
            given = each.get("init_args")
            yield str(each["class_path"]), given if isinstance(given, Mapping) else {}
        elif isinstance(each, str) and (key not in NAMES or each[:1].isupper() or "." in each):
            yield each, {}


def missing_package(key: str, value: Any) -> tuple[str, str] | None:
    """A name that a parameter is given which needs a package that is not installed, and that package.

    Args:
        key: of the group `trainer`.
        value: what it is given.
    """
    names = [class_path for class_path, _ in classes(key, value)] or ([str(value)] if key in NAMES else [])
    for name in names:
        word = name.rpartition(".")[2].lower().replace("-", "")
        for part, packages in NEEDS.items() if is_lightnings(name) else ():
            if part in word and not any(map(find_spec, packages)):
                return name, packages[0]
    return None


def _file(name: str) -> Path:
    package = find_spec("pytorch_lightning")
    return Path(package.origin or "").parent / name if package else Path()


@cache
def annotations() -> dict[str, ast.expr | None]:
    """Parameter -> what its type is said to be in the source; none if that is not found."""
    path = _file("trainer/trainer.py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8") if path.is_file() else "")):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return {each.arg: each.annotation for each in [*node.args.args, *node.args.kwonlyargs][1:]}
    return {}


@cache
def _classes(key: str) -> dict[str, ast.arguments | None]:
    """Lightning's own classes of a kind, from its source, and what they take, where they say it themselves."""
    files = [file for folder in CLASSES[key] for file in sorted(_file(folder).rglob("*.py"))]
    nodes = [node for file in files for node in ast.parse(file.read_text(encoding="utf-8")).body]
    return {node.name: _constructor(node) for node in nodes if isinstance(node, ast.ClassDef) and node.name[0] != "_"}


def _constructor(node: ast.ClassDef) -> ast.arguments | None:
    own = (line for line in node.body if isinstance(line, ast.FunctionDef) and line.name == "__init__")
    return next((line.args for line in own), None)

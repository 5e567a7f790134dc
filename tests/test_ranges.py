"""Ranges of parameters: declared for every number, kept by defaults and configurations, and refused when left.

Classes are found by looking: those that a shipped configuration names, and all that declare ranges.
"""

import copy
import inspect
import math
import pickle
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import docstring_parser
import numpy as np
import pytest
import yaml
from torch import nn

from usl_lightning.base.configs import config_parts, find_config, names_of_all, shipped_folder
from usl_lightning.base.errors import UslError
from usl_lightning.base.parameters import parameters, verbs_of
from usl_lightning.base.problems import FROM_ELSEWHERE, GROUPS, wrong_options
from usl_lightning.base.ranges import (
    LARGEST,
    SEED,
    Range,
    Ranged,
    Ranges,
    above,
    at_least,
    one_of,
    ranges_of,
    rising,
    whole,
    whole_from,
    within,
)
from usl_lightning.base.typed import as_count
from usl_lightning.chain.options import RunOptions
from usl_lightning.chain.pipeline import run_chain
from usl_lightning.cli import _mistake, main
from usl_lightning.compare.spec import Comparison
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.views import Recipe, SimCLRView, Weak
from usl_lightning.data.views.steps import Step
from usl_lightning.models.ema import EMA
from usl_lightning.pretrain.simclr import SimCLR
from usl_lightning.selection.usl import USL
from usl_lightning.semisup.fixmatch import FixMatch
from usl_lightning.stage.complaints import check_parameters
from usl_lightning.stage.parser import StageCLI
from usl_lightning.stage.words import StageCommand

SIMCLR = "digits_simclr.yaml"


# Discovery -----------------------------------------------------------------------------------------------


def named(value: Any) -> Iterator[str]:
    """The class paths in a configuration, however deep."""
    if isinstance(value, dict):
        if isinstance(value.get("class_path"), str):
            yield value["class_path"]
        for item in value.values():
            yield from named(item)
    elif isinstance(value, list):
        for item in value:
            yield from named(item)


def load(path: str) -> type:
    module, _, name = path.rpartition(".")
    found: type = getattr(import_module(module), name)
    return found


def below(found: type) -> Iterator[type]:
    for each in found.__subclasses__():
        yield each
        yield from below(each)


def discovered() -> dict[str, type]:
    """Class path -> class: named by a configuration, part of such a class, a group's, or a `Ranged` of ours."""
    configs = [part for name in names_of_all() for _, part in config_parts(shipped_folder() / name)]
    paths = {path for config in configs for path in named(config) if "." in path} | set(GROUPS.values())
    for path in list(paths):
        paths |= {kind.group for name, kind in parameters(path).items() if kind.group and name not in FROM_ELSEWHERE}
    classes = {f"{found.__module__}.{found.__name__}": found for found in map(load, sorted(paths))}
    for found in below(Ranged):
        if found.__module__.startswith("usl_lightning."):
            classes[f"{found.__module__}.{found.__name__}"] = found
    return dict(sorted(classes.items()))


CLASSES = discovered()
DECLARED = [(path, name) for path, found in CLASSES.items() for name in ranges_of(found)]


def ids(pairs: list[tuple[str, str]]) -> list[str]:
    return [f"{path.rpartition('.')[2]}.{name}" for path, name in pairs]


def outside(allowed: Range) -> list[float]:
    """Values that a range does not hold: NaN, infinities, and what lies just beyond its ends."""
    values = [math.nan, -math.inf] + [math.inf] * (not allowed.infinite)
    if allowed.only:
        return [*values, min(allowed.only) - 1, max(allowed.only) + 1, min(allowed.only) + 0.5]
    values.append(allowed.low - 1 if allowed.includes_low else allowed.low)
    if allowed.high < math.inf:
        values.append(allowed.high + 1 if allowed.includes_high else allowed.high)
    return values + [allowed.low + 0.5, LARGEST + 1] * allowed.whole + [allowed.low + 1] * allowed.odd


def inside(allowed: Range) -> list[float]:
    """Values at its ends, or near them."""
    if allowed.only:
        return list(allowed.only)
    near = 1 if allowed.whole else min(1.0, allowed.high - allowed.low) / 4
    values = [allowed.low if allowed.includes_low else allowed.low + near]
    values += [allowed.high if allowed.includes_high else allowed.high - near] if allowed.high < math.inf else []
    return values + [math.inf] * allowed.infinite


def test_what_is_discovered() -> None:
    names = {path.rpartition(".")[2] for path in CLASSES}
    assert names >= {"FixMatch", "MoCo", "USL", "USLT", "Selector", "ImageData", "SemiSupervisedData", "Optimization"}
    assert names >= {"EMA", "ClusterHeads", "Reassignment", "Weak", "ColorJitter", "RandAugment", "Trainer"}
    assert len(DECLARED) > 150


# Declarations --------------------------------------------------------------------------------------------

NOT_OURS = {"Trainer"}
"""Lightning's own parameters are checked by it; ours says those that it lets pass."""


def constructed(found: type) -> dict[str, Any]:
    """Parameter -> type, of the constructors of a class and its bases in the package, all of which it may get."""
    types: dict[str, Any] = {}
    for base in reversed(inspect.getmro(found)):
        if base.__module__.startswith("usl_lightning") and "__init__" in vars(base):
            types |= typing.get_type_hints(vars(base)["__init__"])
    return types


def numeric(kind: Any) -> bool:
    return kind in (int, float) or any(numeric(each) for each in typing.get_args(kind))


@pytest.mark.parametrize("path", CLASSES)
def test_every_number_has_a_range(path: str) -> None:
    found = CLASSES[path]
    if found.__name__ in NOT_OURS:
        return
    numbers = {name for name, kind in constructed(found).items() if numeric(kind)}
    assert numbers <= ranges_of(found).keys()
    own = {name for base in inspect.getmro(found) for name in vars(base).get("ranges", {}) if base is found}
    assert own <= numbers | {"timeout_minutes"}, "ranges of parameters that are there"


@pytest.mark.parametrize("path", CLASSES)
def test_the_source_says_what_the_class_says(path: str) -> None:
    said = {name: kind.range for name, kind in parameters(path).items() if kind.range is not None}
    assert said == {name: allowed for name, allowed in ranges_of(CLASSES[path]).items() if name in parameters(path)}


@pytest.mark.parametrize("path", CLASSES)
def test_defaults_are_in_range(path: str) -> None:
    for base in inspect.getmro(CLASSES[path]):
        if base.__module__.startswith("usl_lightning") and "__init__" in vars(base):
            for name, parameter in inspect.signature(vars(base)["__init__"]).parameters.items():
                if name in ranges_of(base) and parameter.default is not inspect.Parameter.empty:
                    assert ranges_of(base)[name].problem(parameter.default) is None, name


def test_shipped_configurations_are_in_range() -> None:
    for path in (shipped_folder() / name for name in names_of_all()):
        own = config_parts(path)[-1][1]
        if "selectors" in own:
            Comparison.read(path, {"features.backbone": "resnet18"})
        elif not {"stages", "rounds", "columns"} & own.keys():
            model = str(StageCommand("fit", [path]).flat()["model.class_path"])
            check_parameters(StageCommand(verbs_of(model)[0], [path]))


NUMBER = r"(-?\d+(?:\.\d+)?)"
PROMISES: dict[str, Callable[[re.Match[str]], Range]] = {
    rf"in ([\[(]){NUMBER}, {NUMBER}([\])])": lambda m: Range(float(m[2]), float(m[3]), m[1] == "[", m[4] == "]"),
    rf"(?:above|greater than|more than|>) {NUMBER}": lambda m: above(float(m[1])),
    rf"(?:at least|≥|not below) {NUMBER}": lambda m: at_least(float(m[1])),
    rf"{NUMBER} or more": lambda m: at_least(float(m[1])),
    rf"(?:at most|≤) {NUMBER}": lambda m: Range(high=float(m[1])),
    rf"(?:^|between ){NUMBER} (?:to|and|…|-|–) {NUMBER}": lambda m: within(float(m[1]), float(m[2])),
    r"\bpositive\b": lambda m: above(0),
    r"\bnot negative\b|\bnon-negative\b": lambda m: at_least(0),
    rf"^{NUMBER} or {NUMBER}\b": lambda m: one_of(float(m[1]), float(m[2])),
    r"\bodd\b": lambda m: Range(odd=True),
}
"""How docstrings promise ranges, and which."""


def promised(text: str) -> list[Range]:
    return [read(found) for pattern, read in PROMISES.items() for found in re.finditer(pattern, text)]


def keeps(allowed: Range, promise: Range) -> bool:
    """Whether a declared range says at each end that a promise names just what that promises."""
    if promise.odd or promise.only:
        return allowed.odd == promise.odd and allowed.only == promise.only
    low = (allowed.low, allowed.includes_low) == (promise.low, promise.includes_low)
    high = (allowed.high, allowed.includes_high) == (promise.high, promise.includes_high)
    return (low or promise.low == -math.inf) and (high or promise.high == math.inf)


def test_promises_are_read() -> None:
    assert promised("of the average, in [0, 1); 0.999 in FixMatch.") == [Range(0, 1, True, False)]
    assert promised("t, above 0; 0.5 as published.") == [above(0)]
    assert promised("clusters, at least 2.") == [at_least(2)]
    assert promised("1 or 3; default: as they are.") == [one_of(1, 3)]
    assert promised("0 to 255, one number for every channel.") == [within(0, 255)]
    assert promised("a positive number, 0 or more") == [at_least(0), above(0)]
    assert promised("of the images, 8 at most; published: 0.5.") == []
    assert not keeps(within(0, 1), promised("in [0, 1)")[0])
    assert keeps(at_least(0, below=1), promised("in [0, 1)")[0])


@pytest.mark.parametrize("path", CLASSES)
def test_no_docstring_promises_what_nothing_checks(path: str) -> None:
    found = CLASSES[path]
    for base in inspect.getmro(found):
        if base.__module__.startswith("usl_lightning"):
            for parameter in docstring_parser.parse(base.__doc__ or "").params:
                for name in parameter.arg_name.split(", "):
                    for promise in promised(" ".join((parameter.description or "").split())):
                        assert name in ranges_of(base), f"{name}: {promise} is promised"
                        assert keeps(ranges_of(base)[name], promise), f"{name}: {ranges_of(base)[name]}, not {promise}"


# The command line ----------------------------------------------------------------------------------------


def told(path: str, name: str, value: Any) -> str | None:
    """What the command line says of one parameter of a class, before anything is imported."""
    group = {class_path: group for group, class_path in GROUPS.items()}.get(path, "model")
    overrides = {f"{group}.{name}": yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()}
    verb = "fit"
    if group == "model" and not verbs_of(path):  # no method, but what may be below one
        return next((f"--model.{key}: {problem}" for key, problem in wrong_options(path, {name: value})), None)
    if group == "model":
        overrides, verb = {"model.class_path": path, **overrides}, next(iter(verbs_of(path)), "fit")
    try:
        check_parameters(StageCommand(verb, [], overrides))
    except UslError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("path", "name"), DECLARED, ids=ids(DECLARED))
def test_the_command_line_refuses_what_is_out_of_range(path: str, name: str) -> None:
    allowed, kind = ranges_of(CLASSES[path])[name], parameters(path).get(name)
    if kind is None and path not in GROUPS.values():
        return  # a base's, whose parameter this class does not take
    length = kind.length or 1 if kind is not None and kind.numbers else 0
    type_ = r"expected (int|float|a number of batches; .*|a list of .*), found .+"
    said = rf"\S+ is out of range; expected .*{re.escape(str(allowed))}|{type_}"
    for value in outside(allowed):
        for given in (
            (value,) if kind is not None and kind.number else ([value] * length,) if length else (value, [value])
        ):
            line = told(path, name, given)
            assert line is not None, given
            assert re.fullmatch(rf"--\w+\.{name}: ({said})", line), line
    for value in inside(allowed):
        assert told(path, name, [value] * length if length else value) is None, value


@pytest.mark.parametrize(("path", "name"), DECLARED, ids=ids(DECLARED))
def test_a_constructor_refuses_what_is_out_of_range(path: str, name: str) -> None:
    found = CLASSES[path]
    if name not in constructed(found) or found.__name__ in NOT_OURS:
        return
    for value in outside(ranges_of(found)[name]):
        with pytest.raises(UslError, match=rf"^{found.__name__}\.{name}: \S+ is out of range; expected "):
            found(**{name: value})


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(words)
    printed = capsys.readouterr()
    assert (stop.value.code, printed.out, printed.err.count("\n")) == (2, "", 1), printed
    assert not Path("runs").exists()
    return printed.err.strip()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--model.temperature", "-0.5"], "--model.temperature: -0.5 is out of range; expected above 0"),
        (["--model.temperature", "1e-400"], "--model.temperature: 0 is out of range; expected above 0"),
        (["--model.temperature", "1e400"], "--model.temperature: inf is out of range; expected a finite number, above"),
        (["--model.temperature", ".nan"], "--model.temperature: nan is out of range; expected above 0"),
        (["--model.init_args.temperature=0"], "--model.init_args.temperature: 0 is out of range; expected above 0"),
        (["--model.knn_k", "0"], "--model.knn_k: 0 is out of range; expected 1 or more"),
        (
            ["--model.knn_k", "9" * 20],
            f"--model.knn_k: {'9' * 20} is out of range; expected a whole number of 64",
        ),
        (["--model.optimizer.lr", "-1e-3"], "--model.optimizer.lr: -0.001 is out of range; expected 0 or more"),
        (["--model.optimizer", "{momentum: 1}"], "--model.optimizer.momentum: 1 is out of range; expected 0 or more, "),
        (["--model.view.scale", "[0.5, 2]"], "--model.view.scale: 2 is out of range; expected above 0, at most 1"),
        (
            ["--model.view.scale", "[0.9, 0.2]"],
            "--model.view.scale: [0.9, 0.2] is out of range; expected the smaller",
        ),
        (["--data.channels", "2"], "--data.channels: 2 is out of range; expected 1 or 3"),
        (
            ["--trainer.accumulate_grad_batches", "0"],
            "--trainer.accumulate_grad_batches: 0 is out of range; expected",
        ),
        (["--checkpoint.every_minutes", "-1"], "--checkpoint.every_minutes: -1 is out of range; expected 0 or more"),
        (["--processes.timeout_minutes", ".inf"], "--processes.timeout_minutes: inf is out of range; expected above 0"),
    ],
)
def test_lines(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "fit", "--config", SIMCLR, *words).startswith(f"usl: {line}")


@pytest.mark.parametrize(("word", "told"), [
    ("max_steps=null", "trainer.max_steps: expected a value, found null"),
    ("log_every_n_steps=0", "trainer.log_every_n_steps: 0 is out of range"),
    ("check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch: 0 is out of range"),
    ("limit_test_batches=0.5", "trainer.limit_test_batches: 0.5 is a trial"),
    ("callbacks=[{class_path: pytorch_lightning.callbacks.StochasticWeightAveraging}]", "changes what is learned"),
    ("callbacks={class_path: lightning.pytorch.callbacks.GradientAccumulationScheduler}", "changes what is learned"),
    ("callbacks=LearningRateFinder", "trainer.callbacks: LearningRateFinder changes what is learned, and no run rec"),
])  # fmt: skip
def test_options_of_the_trainer(word: str, told: str) -> None:
    with pytest.raises(UslError, match=re.escape(told)):
        check_parameters(StageCommand.parse("fit", [f"--config={SIMCLR}", f"--trainer.{word}"]))


STRATEGY = "trainer.strategy={{class_path: DDPStrategy, init_args: {{{}}}}}"
RECIPE = "model.view={{class_path: usl_lightning.data.views.Recipe, init_args: {{steps: {}}}}}"


@pytest.mark.parametrize(("word", "told"), [
    ("model.optimizer.lr={a: b}", "model.optimizer.lr: expected float, found {'a': 'b'}"),
    ("model.view.flip={a: b}", "model.view.flip: expected bool"),
    ("model.view.scale=0.2", "model.view.scale: expected a list of 2 numbers (float), found 0.2"),
    ("model.view.scale=[0.2, 0.5, 1]", "model.view.scale: expected a list of 2 numbers (float), found [0.2, 0.5, 1]"),
    ("model.view.scale=[a, b]", "model.view.scale: expected a list of 2 numbers (float), found ['a', 'b']"),
    ("model.optimizer.milestones=0.5", "model.optimizer.milestones: expected a list of numbers (float), found 0.5"),
    ("model.optimizer=5", "model.optimizer: expected parameters of Optimization, found 5"),
    ("model.optimizer=null", "model.optimizer: expected a value, found null"),
    ("model.view=5", "model.view: there is no class 5; expected package.module.Class"),
    ("model.view=[1]", "model.view: expected keys and values, found [1]"),
    ("model.class_path=os.system", "model.class_path: os.system is no Method; expected package.module.Class of one"),
    ("model.class_path=collections.OrderedDict", "model.class_path: collections.OrderedDict is no Method; expected"),
    ("model.class_path=usl_lightning.data.modules.ImageData", "ImageData is no Method; expected package.module.Class"),
    ("data.class_path=usl_lightning.pretrain.simclr.SimCLR", "SimCLR is no ImageData; expected package.module.Class"),
    ("model.view=os.system", "model.view: os.system is no Module; expected package.module.Class of one"),
    ("model.view.class_path=subprocess.Popen", "model.view.class_path: subprocess.Popen is no Module; expected"),
    ("model.view=torch.optim.SGD", "model.view: torch.optim.SGD is no Module; expected package.module.Class of one"),
    ("model.view=torch.nn.functional.relu", "model.view: torch.nn.functional.relu is no Module; expected"),
    ("model.view=torch.nn.Dropuot", "model.view: torch.nn.Dropuot is no Module; expected package.module.Class of one"),
    ("model.view=MoCoV2View", "model.view: there is no class MoCoV2View; expected package.module.Class"),
    ("model.view={class_path: torch.nn.Dropout, init_args: {pp: 1}}", "unknown key 'pp' (did you mean 'p'?)"),
    ("model.view={class_path: torch.nn.Dropout, init_args: {p: x}}", "model.view.p: expected float, found x"),
    ("model.view={class_path: usl_lightning.data.views.Weak, init_args: 5}", "expected keys and values, found 5"),
    ("model.view={class_path: usl_lightning.data.views.Recipe}", "model.view: Recipe needs steps; give it"),
    (RECIPE.format("5"), "model.view.steps: expected a list of classes, as in [{class_path: package.module.Class}]"),
    (RECIPE.format("[5]"), "model.view.steps[0]: expected keys and values, found 5"),
    (RECIPE.format("[os.system]"), "model.view.steps[0].class_path: os.system is no Step; expected package"),
    (RECIPE.format("[{class_path: os.system, init_args: {command: ls}}]"), "os.system is no Step; expected package"),
    (RECIPE.format("[{class_path: torch.nn.Dropout}]"), "torch.nn.Dropout is no Step; expected package.module.Class"),
    (RECIPE.format("[{class_path: usl_lightning.data.views.steps.Cutout, init_args: {a: 1}}]"), "unknown key 'a'; exp"),
    ("model.optimizer.class_path=torch.optim.SGD", "torch.optim.SGD is no Optimization; expected package.module"),
    ("trainer.callbacks=[{class_path: os.system, init_args: {command: ls}}]", "os.system is no Callback; expected"),
    ("trainer.callbacks=torch.nn.ReLU", "trainer.callbacks: torch.nn.ReLU is no Callback; expected package.module"),
    ("trainer.callbacks={class_path: LearningRateMonitor, init_args: {log_momentum: 5}}", "expected bool, found 5"),
    ("trainer.logger=os.system", "trainer.logger: os.system is no Logger; expected package.module.Class of one"),
    ("trainer.strategy={class_path: os.system}", "trainer.strategy: os.system is no Strategy; expected package"),
    ("data.batch_size={a: b}", "data.batch_size: expected int"),
    ("seed_everything={a: b}", "seed_everything: {'a': 'b'} is no seed"),
    ("compile=x", "compile: expected bool, found x"),
    ("activation_checkpointing=2", "activation_checkpointing: expected bool, found 2"),
    ("checkpoint.every_steps=x", "checkpoint.every_steps: expected int, found x"),
    ("processes.timeout_minutes=[1]", "processes.timeout_minutes: expected float, found [1]"),
    ("trainer.max_epochs=x", "trainer.max_epochs: expected int, found x"),
    ("trainer.enable_progress_bar=2", "trainer.enable_progress_bar: expected bool, found 2"),
    ("trainer.limit_val_batches=x", "trainer.limit_val_batches: expected 0, for no validation; a part of the"),
    ("trainer.limit_val_batches=1", "trainer.limit_val_batches: expected 0, for no validation; a part of the"),
    ("trainer.limit_val_batches=0.5", "trainer.limit_val_batches: expected 0, for no validation; a part of the"),
    ("trainer.val_check_interval=00:01", "trainer.val_check_interval: expected a number of batches; a run that is"),
    ("trainer.gradient_clip_algorithm=x", "trainer.gradient_clip_algorithm: expected one of 'norm', 'value', found x"),
    ("trainer.devices=x", "trainer.devices: expected a number of devices, auto, or a list of their numbers, found x"),
    ("trainer.max_time=1", "trainer.max_time: expected DD:HH:MM:SS, or keys and values such as {hours: 1}, found 1"),
    ("trainer.callbacks=5", "trainer.callbacks: expected classes, as in [{class_path: package.module.Class}], found 5"),
    ("trainer.logger=[[]]", "trainer.logger: expected true, false or classes"),
    ("trainer.strategy=5", "trainer.strategy: expected its name, or a class, found 5"),
    ("trainer.strategy=ddpp", "trainer.strategy: unknown 'ddpp' (did you mean 'ddp'?)"),
    ("trainer.strategy=null", "trainer.strategy: expected a value, found null; auto is the default"),
    ("trainer.strategy=DDP_spawn", "trainer.strategy: DDP_spawn would start processes that cannot take the run over"),
    ("trainer.strategy={class_path: DDPStrategi}", "trainer.strategy: unknown 'DDPStrategi' (did you mean 'DDPStra"),
    ("trainer.strategy={class_path: DDPStrategy, init_args: {start_method: fork}}", "DDPStrategy: start_method fork"),
    (STRATEGY.format("cluster_environment: os.system"), "cluster_environment.class_path: os.system is no ClusterEnvir"),
    (STRATEGY.format("cluster_environment: {class_path: torch.nn.ReLU}"), "torch.nn.ReLU is no ClusterEnvironment; ex"),
    (STRATEGY.format("precision_plugin: {class_path: subprocess.Popen, init_args: {args: ls}}"), "Popen is no Precisi"),
    (STRATEGY.format("checkpoint_io: os.system"), "DDPStrategy: checkpoint_io would replace this package's own"),
    (STRATEGY.format("find_unused_parametrs: true"), "DDPStrategy takes no 'find_unused_parametrs' (did you mean 'fi"),
    (STRATEGY.format("static_graph: 2"), "trainer.strategy: DDPStrategy: static_graph: expected bool, found 2"),
    ("trainer.strategy={class_path: FSDPStrategy, init_args: {precision_plugin: os.system}}", "os.system is no Precis"),
    ("trainer.plugins=[{class_path: AsyncCheckpointIO}]", "AsyncCheckpointIO would replace this package's own, by"),
    ("trainer.plugins={class_path: MixedPrecision, init_args: {precision: bf16-mixed, device: cpu, scaler: os.system}}",
     "trainer.plugins.scaler.class_path: os.system is no GradScaler; expected package.module.Class of one"),
    ("trainer.callbacks={class_path: RichProgressBar, init_args: {theme: {class_path: os.system}}}", "is no RichProgr"),
    ("trainer.devices=", "trainer.devices: expected a value, found null"),
    ("trainer.accelerator=cpuu", "trainer.accelerator: unknown 'cpuu' (did you mean 'cpu'?); expected auto, cpu, g"),
    ("trainer.profiler=simpel", "trainer.profiler: unknown 'simpel' (did you mean 'simple'?)"),
    ("trainer.profiler=SimpleProfilr", "trainer.profiler: unknown 'SimpleProfilr' (did you mean 'SimpleProfiler'?)"),
    ("trainer.precision=BF16", "trainer.precision: unknown 'BF16' (did you mean 'bf16'?); expected 16-mi"),
    ("trainer.logger=CSVLoger", "trainer.logger: unknown 'CSVLoger' (did you mean 'CSVLogger'?)"),
    ("trainer.logger=csv", "trainer.logger: unknown 'csv'"),
    ("trainer.logger=[csv]", "trainer.logger: unknown 'csv'"),
    ("trainer.logger=CSVLogger", "trainer.logger: CSVLogger needs save_dir"),
    ("trainer.logger={class_path: CSVLogger, init_args: {save_dirr: x}}", "CSVLogger takes no 'save_dirr' (did you m"),
    ("trainer.logger={class_path: nowhere.Logger}", "trainer.logger: there is no class nowhere.Logger"),
    ("trainer.plugins=MixedPrecison", "trainer.plugins: unknown 'MixedPrecison' (did you mean 'MixedPrecision'?)"),
    ("trainer.callbacks=[{class_path: pytorch_lightning.callbacks.LearningRateMonitor, init_args: {x: 1}}]",
     "trainer.callbacks: LearningRateMonitor takes no 'x'; expected logging_interval, log_momentum, log_weight_decay"),
])  # fmt: skip
def test_values_of_another_type_stop_a_chain_before_its_first_stage(word: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        f"stages: [{{name: a, command: fit, config: {SIMCLR}}}, {{name: b, command: fit, config: {SIMCLR}}}]\n"
    )
    run = RunOptions.parse([str(tmp_path / "c.yaml"), f"--out={tmp_path}", "--dry-run", f"--b.{word}"])
    with pytest.raises(UslError) as error:
        run_chain(run)
    assert str(error.value).startswith("stage b: ")
    assert told in str(error.value)


@pytest.mark.parametrize(("command", "config"), [("fit", "digits_usl.yaml"), ("select", SIMCLR)])
def test_a_command_that_is_not_the_methods_stops_a_chain(command: str, config: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"stages: [{{name: a, command: {command}, config: {config}}}]\n")
    run = RunOptions.parse([str(tmp_path / "c.yaml"), f"--out={tmp_path}", "--dry-run"])
    with pytest.raises(UslError, match=rf"stage a: usl {command}: .*{config} is for usl "):
        run_chain(run)


def test_verbs_are_the_classes() -> None:
    methods = {path: found for path, found in CLASSES.items() if hasattr(found, "verbs")}
    assert len(methods) > 40
    assert {path: verbs_of(path) for path in methods} == {path: found.verbs for path, found in methods.items()}


def test_the_file_is_named_where_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("model: {init_args: {optimizer: {lr: -1}}}")
    line = refused(capsys, "fit", "--config", SIMCLR, "--config", "mine.yaml")
    assert line == "usl: mine.yaml: model.optimizer.lr: -1 is out of range; expected 0 or more"
    step = "{class_path: usl_lightning.data.views.steps.GaussianBlur, init_args: {kernel: 4}}"
    view = f"{{class_path: usl_lightning.data.views.Recipe, init_args: {{steps: [{step}]}}}}"
    Path("mine.yaml").write_text(f"model: {{init_args: {{view: {view}}}}}")
    line = refused(capsys, "fit", "--config", SIMCLR, "--config", "mine.yaml")
    assert line == "usl: mine.yaml: model.view.steps[0].kernel: 4 is out of range; expected an odd number, 1 or more"
    line = refused(capsys, "views", "--config", SIMCLR, "--model.view", view)
    assert line == "usl: --model.view.steps[0].kernel: 4 is out of range; expected an odd number, 1 or more"


def test_nothing_heavy_is_imported_to_say_so(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom usl_lightning.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as stop:\n"
        "    print(stop.code, 'torch' in sys.modules, 'jsonargparse' in sys.modules)\n"
    )
    for words in (["fit", "--config", SIMCLR], ["run", "digits_quickstart.yaml", "--dry-run"]):
        prefix = "--" if words[0] == "fit" else "--pretrain."
        done = subprocess.run(
            [sys.executable, "-c", code, *words, f"{prefix}model.temperature=0"], capture_output=True, text=True
        )
        assert done.stdout == "2 False False\n", done.stderr


CHAIN = {
    "stages": [
        {"name": "pretrain", "command": "fit", "config": SIMCLR},
        {
            "name": "train", "command": "fit", "config": "digits_fixmatch.yaml",
            "set": {"model.init_from": "${pretrain.checkpoint}", "model.threshold": 0.9},
        },
    ]
}  # fmt: skip


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--slurm"]])
def test_a_chain_is_checked_whole_before_its_first_stage(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("chain.yaml").write_text(yaml.safe_dump(CHAIN))
    words = ["run", "chain.yaml", *more]
    line = refused(capsys, *words, "--train.model.ema_decay", "1.5")
    assert line == "usl: stage train: model.ema_decay: 1.5 is out of range; expected 0 or more, below 1"
    Path("chain.yaml").write_text(yaml.safe_dump(CHAIN).replace("0.9", ".nan"))
    assert refused(capsys, *words) == "usl: stage train: model.threshold: nan is out of range; expected 0 to 1"


@pytest.mark.parametrize(("clusters", "right"), [(39, False), (40, True), (42, True), (43, False), (177, False)])
def test_a_range_may_begin_at_another_parameter(clusters: int, right: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Clusters of USL from the budget to a twentieth more: known before anything is computed."""
    given = {"model.features": "here.npy", "model.budget": 40, "model.clusters": clusters}
    np.save("here.npy", np.zeros((2, 2)))
    stages = [{"name": "select", "command": "select", "config": "digits_usl.yaml", "set": given}]
    Path("chain.yaml").write_text(yaml.safe_dump({"stages": stages}))
    line = f"model.clusters: {clusters} is out of range; expected 40 to 42 (budget to 5% more)"
    words = ["select", "--config", "digits_usl.yaml", *(f"--{key}={value}" for key, value in given.items())]
    if right:
        check_parameters(StageCommand.parse("select", words[1:]))
        main(["run", "chain.yaml", "--dry-run"])
        return
    assert refused(capsys, *words) == f"usl: --{line}"
    for more in ([], ["--dry-run"]):
        assert refused(capsys, "run", "chain.yaml", *more) == f"usl: stage select: {line}"
    spec = ImageSpec(1, 8, 8, (0.5,), (0.5,))
    with pytest.raises(UslError, match=rf"^USL\.clusters: {clusters} is out of range; expected 40 to 42 \("):
        USL(image=spec, budget=40, clusters=clusters)


@pytest.mark.parametrize("text", ["9" * 5000, "\u00b2", "\u0663", "-1", "+1", "1_0", " 1", "1.0", ""])
def test_texts_that_are_no_count(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert as_count(text) is None
    Path("l.json").write_text('{"indices": [0]}')
    expected = "expected how many, or names: 2 or more, each once, as in cat,dog"
    for words, said in [
        (["label", "l.json", f"--port={text}"], "expected a number from 1 to 65535"),
        (["init", ".", f"--classes={text}"], expected),
        (["more", "runs/x", f"--budget={text}"], "expected the images of the round, 1 or more"),
        (["report", "runs/x", f"--contrast={text}"], "expected a number of images, from 0 to 9999"),
    ]:
        assert refused(capsys, *words).endswith(said)


@pytest.mark.parametrize("seed", ["-1", "4294967296", "9" * 5000, "1.5", ".nan", "²", "true", "x"])
def test_seeds(seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = "is no seed; expected a whole number from 0 to 4294967295"
    assert refused(capsys, "fit", "--config", SIMCLR, "--seed_everything", seed).endswith(expected)
    assert refused(capsys, "run", "digits_quickstart.yaml", "--seed", seed).endswith(expected)
    Path("chain.yaml").write_text(f"seed: {seed}\n{yaml.safe_dump(CHAIN)}")
    line = refused(capsys, "run", "chain.yaml")
    assert line.endswith((expected, "a number of 5,000 digits; expected fewer than 400"))


def test_a_comparison_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "digits_compare.yaml", "--features.backbone", "resnet18"]
    assert "seeds: -1 is out of range; expected 0 to 4294967295" in refused(capsys, *words, "--seeds", "[-1]")
    assert "data: image_size: 0 is out of range" in refused(capsys, *words, "--data.image_size", "0")
    entry = {"class_path": "typiclust", "init_args": {"k": 0}}
    Path("mine.yaml").write_text(yaml.safe_dump({"data": {"dataset": "digits"}, "selectors": [entry], "budgets": [3]}))
    line = refused(capsys, "compare", "mine.yaml", "--features.backbone", "resnet18")
    assert line == "usl: mine.yaml: selectors: typiclust: k: 0 is out of range; expected 1 or more"
    entry = {"class_path": "usl", "init_args": {"clusters": 20}}
    given = {"data": {"dataset": "digits"}, "selectors": [entry], "budgets": [20, 10]}
    Path("mine.yaml").write_text(yaml.safe_dump(given))
    np.save("here.npy", np.ones((1437, 2), np.float32))
    with pytest.raises(SystemExit):
        main(["compare", "mine.yaml", "--features.features", "here.npy"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith("USL.clusters: 20 is out of range; expected 10 (budget to 5% more)"), line


# Classes of others ---------------------------------------------------------------------------------------

THEIRS = """
from usl_lightning.base.ranges import above, within
from usl_lightning.semisup.fixmatch import FixMatch

class Bolder(FixMatch):
    ranges = {"threshold": within(0.5, 1), "boldness": above(0)}

    def __init__(self, boldness: float = 1.0, **kwargs):
        super().__init__(**kwargs)
"""


def test_a_class_of_others_is_checked_when_it_is_built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "theirs.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(folder)
    config = StageCommand("fit", [find_config("digits_fixmatch")]).tree()
    config["model"]["class_path"] = "theirs.Bolder"
    (folder / "theirs.yaml").write_text(yaml.safe_dump(config))
    (folder / "labels.json").write_text("[0, 1, 2]")

    def build(option: str, value: float) -> StageCLI:
        words = ["--config=theirs.yaml", "--data.labels=labels.json", f"--{option}={value}"]
        return StageCLI(StageCommand.parse("fit", words))

    assert build("model.threshold", 0.6).model.threshold == 0.6
    for name, value, expected in (
        ("boldness", 0, "above 0"),
        ("threshold", 0.3, "0.5 to 1"),
        ("ema_decay", 1, "below 1"),
    ):
        with pytest.raises(ValueError, match="Bolder") as error:
            build(f"model.{name}", value)
        line = str(_mistake(error.value))  # as it is printed
        assert re.fullmatch(rf"Bolder\.{name}: {value} is out of range; expected .*{expected}", line)


class Shaken(Step):
    """A step that narrows nothing and adds one range."""

    ranges: ClassVar[Ranges] = {"amount": within(0, 0.1)}

    def __init__(self, amount: float, *more: float, **others: float) -> None:
        super().__init__()

    def forward(self, images: Any, key: Any) -> Any:
        return images


def test_arguments_by_place_and_by_name() -> None:
    Shaken(0.1, 7, other=7)
    for make in (lambda: Shaken(0.2), lambda: Shaken(amount=0.2)):
        with pytest.raises(UslError, match=r"^Shaken\.amount: 0\.2 is out of range; expected 0 to 0\.1$"):
            make()
    with pytest.raises(TypeError):
        Shaken()  # type: ignore[call-arg]


def test_parts_are_checked_by_themselves() -> None:
    with pytest.raises(UslError, match=r"^Optimization\.lr: -1 is out of range"):
        Optimization(lr=-1)
    with pytest.raises(UslError, match=r"^SimCLRView\.scale: \[1, 0\.2\] is out of range; expected the smaller number"):
        SimCLRView(scale=(1, 0.2))
    with pytest.raises(UslError, match="nesterov: it needs a momentum"):
        Optimization(momentum=0, nesterov=True)
    Optimization("adam", momentum=0, nesterov=True)


def test_a_class_with_ranges_is_like_any_other() -> None:
    assert list(inspect.signature(FixMatch).parameters)[:3] == ["image", "weak", "strong"]
    assert "temperature: float = 0.5" in str(inspect.signature(SimCLR))
    assert inspect.signature(Optimization).parameters["lr"].default == 0.03
    average = EMA(nn.Linear(2, 2), 0.5)
    assert copy.deepcopy(average).decay == pickle.loads(pickle.dumps(average)).decay == 0.5
    assert isinstance(pickle.loads(pickle.dumps(Weak())), Recipe)
    assert pickle.loads(pickle.dumps(Optimization(lr=0.2))) == Optimization(lr=0.2)


# The ranges themselves -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "text", "good", "bad"),
    [
        (above(0), "above 0", [1e-300, 1, 1e300], [0, -1, math.inf, math.nan, True, 10**400]),
        (above(0, up_to=1), "above 0, at most 1", [0.1, 1], [0, 1.1]),
        (at_least(0), "0 or more", [0, 3], [-1e-9, math.inf]),
        (at_least(0, below=1), "0 or more, below 1", [0, 0.999], [1, -1]),
        (at_least(0, infinite=True), "0 or more", [math.inf, 10**400], [-1, -math.inf, math.nan]),
        (within(0, 0.5), "0 to 0.5", [0, 0.5], [0.51, -0.1, False]),
        (whole(1), "1 or more", [1, 2.0, LARGEST], [0, 1.5, LARGEST + 1, True]),
        (whole(1, odd=True), "an odd number, 1 or more", [1, 3], [2, 0, 1.5]),
        (one_of(1, 3), "1 or 3", [1, 3], [2, 0, math.nan, math.inf]),
        (whole_from("budget", more=20), "budget to 5% more", [1, 40], [0, 1.5, LARGEST + 1]),
        (whole_from("n", more=20).beside({"n": 40}), "40 to 42 (n to 5% more)", [40, 42], [39, 43, 40.5, True]),
        (whole_from("n", more=2).beside({"n": 3}), "3 to 4 (n to 50% more)", [3, 4], [2, 5]),
        (whole_from("n", more=20).beside({"n": None, "m": 3}), "n to 5% more", [1, 40], [0]),
        (SEED, "0 to 4294967295", [0, 2**32 - 1], [-1, 2**32, 10**5000]),
        (rising(above(0)), "above 0", [(0.1, 0.1), [1, 2]], [(2, 1), (0, 1), [3, 2.5]]),
    ],
)
def test_a_range(allowed: Range, text: str, good: list[Any], bad: list[Any]) -> None:
    assert str(allowed) == text
    for value in (*good, good, None, "a text", [], {"a": 1}):
        assert allowed.rising or allowed.problem(value) is None, value
    for value in good:
        assert allowed.problem(value) is None, value
    for value in bad:
        problem = allowed.problem(value)
        assert problem is not None, value
        assert re.fullmatch(r"[^\n]{1,120} is out of range; expected [^\n]+", problem)

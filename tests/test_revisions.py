"""The revision of a class's mathematics: found without an import, and a run of an earlier one is not continued."""

import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from runs import HERE, SIMCLR, Outcome, usl

import usl_lightning
from usl_lightning.base import classes
from usl_lightning.base.configs import find_config
from usl_lightning.base.errors import UslError
from usl_lightning.engine.checkpoint_files import IDENTITY
from usl_lightning.stage.identity import _own, class_at, differences, revision_of, revisions, stage_identity
from usl_lightning.stage.resume import check_resume
from usl_lightning.stage.words import StageCommand

PACKAGE = {
    "__init__.py": "",
    "base.py": "class Base:\n    revision: int = 1\n",
    "method.py": """
from usl_lightning.base import Base
from usl_lightning.views import Blur as Soft, View

class Plain(Base):
    def __init__(self): self.view = lower(Base)
class Raised(Base):
    '''Its own.'''
    revision = 3
class Later(Raised): pass
class Both(Raised):
    revision: int = 2
class Made(Base):
    def __init__(self): self.view = View([Soft(2)])
class Loop(Base):
    def __init__(self): self.other = Loop()
""",
    "views/__init__.py": "from usl_lightning.views.recipes import View\nfrom usl_lightning.views.steps import Blur\n",
    "views/recipes.py": "class View:\n    revision = 1\n",
    "views/steps.py": "class Blur:\n    revision: int = 2\n",
}
"""A package of this name, with classes past their first revision."""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, text in PACKAGE.items():
        path = tmp_path / "usl_lightning" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(classes, "ROOT", tmp_path / "usl_lightning")
    for function in (classes.find_class, classes.syntax_of):
        function.cache_clear()
    yield
    for function in (classes.find_class, classes.syntax_of):
        function.cache_clear()


@pytest.mark.parametrize(
    ("name", "revision"),
    {
        "method.Plain": 1,
        "method.Raised": 3,
        "method.Later": 3,  # its base's
        "method.Both": 4,  # its own, and its base's: raising either is seen
        "method.Made": 2,  # that of a step it calls, by another name
        "method.Loop": 1,
        "views.Blur": 2,
        "views.steps.Blur": 2,
        "views.recipes.View": 1,
        "views.Missing": 1,
        "nowhere.Raised": 1,
    }.items(),
)
def test_a_revision_is_that_of_all_a_class_is_made_of(package: None, name: str, revision: int) -> None:
    assert revision_of(f"usl_lightning.{name}") == revision


def test_a_class_of_another_package_has_none(package: None) -> None:
    assert revision_of("others.method.Raised") == revision_of("Raised") == 1


FLAT = {
    "model.class_path": "usl_lightning.method.Raised",
    "model.view.class_path": "usl_lightning.views.View",
    "model.view.steps": [
        {
            "class_path": "usl_lightning.views.View",
            "init_args": {"inner": [{"class_path": "usl_lightning.views.Blur"}]},
        },
        "usl_lightning.views.Blur",
    ],
    "model.other": "usl_lightning.views.Blur",
    "data.class_path": "usl_lightning.method.Plain",
    "trainer.callbacks": [{"class_path": "usl_lightning.method.Raised"}],
    "seed_everything": 0,
}


def test_only_later_revisions_are_in_an_identity(package: None) -> None:
    later = {
        "model.revision": 3,
        "model.view.steps.0.inner.0.revision": 2,
        "model.view.steps.1.revision": 2,
        "model.other.revision": 2,
    }
    assert revisions(FLAT) == later
    without = {key: value for key, value in FLAT.items() if key != "trainer.callbacks"}
    assert stage_identity("fit", FLAT) == {**stage_identity("fit", {}), **without, **later}
    first = {"model.class_path": "usl_lightning.method.Plain", "model.k": 3}
    assert stage_identity("fit", first) == {**stage_identity("fit", {}), **first}


def test_the_class_is_named_wherever_it_is(package: None) -> None:
    assert class_at(FLAT, "model.view.steps.0.inner.0") == "usl_lightning.views.Blur"
    lines = differences({**FLAT, "model.revision": 2}, stage_identity("fit", FLAT))
    named = [line.partition(" (")[0] for line in lines if "revision" in line]
    assert named == [
        "usl_lightning.views.Blur was revision 1, now 2",
        "usl_lightning.method.Raised was revision 2, now 3",
        "usl_lightning.views.Blur was revision 1, now 2",
        "usl_lightning.views.Blur was revision 1, now 2",
    ]
    (back,) = differences({"model.class_path": "x.Y", "model.revision": 2}, {"model.class_path": "x.Y"})
    assert back.startswith("model was revision 2, now 1")
    assert "the newer version of the package continues the run" in back


def test_every_class_of_the_package_says_in_its_source_what_it_says_in_python() -> None:
    """Whoever raises a number by other means than a plain line in the class would not be heard."""
    names = ("pretrain.simclr.SimCLR", "semisup.fixmatch.FixMatch", "data.views.Recipe", "data.views.steps.Cutout")
    for name in (*names, "data.modules.SemiSupervisedData", "features.neighbor_data.NeighborData"):
        home, _, attribute = f"usl_lightning.{name}".rpartition(".")
        found = getattr(importlib.import_module(home), attribute)
        bases = [base for base in found.__mro__ if "revision" in vars(base)]
        assert bases, f"{name} has no revision"
        assert revision_of(f"usl_lightning.{name}") >= found.revision
        for base in bases:
            source = classes.find_class(f"{base.__module__}.{base.__name__}")
            assert source is not None
            assert _own(source.node) == base.revision


@pytest.mark.parametrize(
    ("name", "revision"),
    {
        "models.heads.Classifier": 2,
        "semisup.fixmatch.FixMatch": 2,  # its classifier's
        "semisup.flexmatch.FlexMatch": 2,
        "semisup.supervised.Supervised": 2,
        "semisup.mixmatch.MixMatch": 3,  # its classifier's, and its own
        "semisup.comatch.CoMatch": 3,
        "pretrain.sela.SeLa": 2,
        "data.views.steps.Cutout": 2,
        "data.views.FixMatchStrong": 2,
        "data.views.USLTView": 3,
        "data.views.Weak": 1,
        "selection.uslt.USLTTraining": 1,
    }.items(),
)
def test_what_was_corrected_since_is_past_its_first_revision(name: str, revision: int) -> None:
    """A number that falls again would let runs of other mathematics go on."""
    assert revision_of(f"usl_lightning.{name}") >= revision
    assert revision > 1 or revision_of(f"usl_lightning.{name}") == 1


def test_a_look_at_a_checkpoint_of_an_earlier_revision_is_no_continuation(tmp_path: Path) -> None:
    fields = {"model.class_path": "usl_lightning.pretrain.simclr.SimCLR", "model.temperature": 0.5}
    torch.save({IDENTITY: fields}, tmp_path / "a.ckpt")
    torch.save({IDENTITY: {**fields, "model.revision": 2}}, tmp_path / "b.ckpt")
    check_resume(tmp_path / "a.ckpt", fields)
    with pytest.raises(UslError, match=r"a\.ckpt: cannot be continued.*SimCLR was revision 1, now 2"):
        check_resume(tmp_path / "a.ckpt", {**fields, "model.revision": 2})
    for name in "ab":
        check_resume(tmp_path / f"{name}.ckpt", fields, training=False)


# the commands --------------------------------------------------------------------------------------------

CHAIN = "stages:\n  - {name: pretrain, command: fit, config: stage.yaml}\n"
RAISED = {
    "pretrain/simclr.py": ("class SimCLR(PretrainModule):", "pretrain.simclr.SimCLR"),
    "models/method.py": ("class Method(Ranged, LightningModule):", "pretrain.simclr.SimCLR"),
    "data/views/steps.py": ("class Rotate(Step):", "data.views.SmallGreyView"),
    "data/sampling.py": ("class StepSampler:", "data.modules.ImageData"),
}
"""Where a number is raised, in which class -> the class of the configuration that is named."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain of one stage that was run with this package, and a copy of the package."""
    folder = tmp_path_factory.mktemp("ran")
    shipped = Path(usl_lightning.__file__).parent
    shutil.copytree(shipped, folder / "lib/usl_lightning", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "chain.yaml").write_text(CHAIN)
    options = [word.removeprefix("--") for word in SIMCLR[3:]]
    pairs = zip(options[::2], options[1::2], strict=True)
    overrides = [f"--pretrain.{key}={value}" for key, value in (*pairs, ("trainer.max_steps", "2"))]
    (folder / "overrides").write_text("\n".join(overrides))
    whole = StageCommand("fit", [find_config("digits_simclr.yaml")]).tree()
    (folder / "stage.yaml").write_text(yaml.safe_dump(whole))
    usl(folder, "run", "chain.yaml", *overrides).done()
    return folder


@pytest.mark.parametrize("file", RAISED)
def test_a_raised_revision_refuses_to_go_on(ran: Path, file: str) -> None:
    header, named = RAISED[file]
    source = ran / "lib/usl_lightning" / file
    text = source.read_text()
    overrides = (ran / "overrides").read_text().split("\n")
    stage = [word.replace("pretrain.", "", 1) for word in overrides]

    def now(*words: str) -> Outcome:
        return usl(ran, *words, PYTHONPATH=f"{ran / 'lib'}:{HERE}")

    assert "complete, skipped" in now("run", "chain.yaml", *overrides).done().out
    assert header in text
    source.write_text(text.replace("    revision: int = 1\n", "").replace(header, f"{header}\n    revision = 2\n"))
    try:
        chain = now("run", "chain.yaml", *overrides).mistake
        fit = now("fit", "--config=stage.yaml", *stage, "--run_dir=runs/chain/pretrain", "--ckpt_path=last").mistake
    finally:
        source.write_text(text)
    for line in (chain, fit):
        assert f"usl_lightning.{named} was revision 1, now 2" in line
        assert "the older version of the package continues the run" in line
    assert "--redo pretrain" in chain
    assert "another --name" in chain
    assert "another --run_dir" in fit

"""What every method that ships must show: each class that a configuration names is found, and tried by its verbs.

The runs are those of the real command, on a few digits; see `methods.py`. The loss of a method is its own test's.
"""

import json
import math
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from methods import STEADY, Bench, Shipped, callbacks, class_of, dies_after, methods, model_options, options, usl
from pair import Pair
from runs import assert_same_run, differing, last_checkpoint
from torch import Tensor
from training import TOGETHER, StopError

from usl_lightning.base.configs import names_of_all
from usl_lightning.base.parameters import parameters
from usl_lightning.base.ranges import ranges_of
from usl_lightning.selection.next_selector import NextSelector
from usl_lightning.selection.selector import Selector


def class_path(method: Shipped) -> str:
    """Of its class."""
    return f"{method.method.__module__}.{method.method.__name__}"


TRAINED, CHOOSING = [method for method in methods("fit") if method.method.by_steps], methods("select")
SELECTING = [method for method in CHOOSING if not issubclass(method.method, NextSelector)]
NEXT = [method for method in CHOOSING if issubclass(method.method, NextSelector)]
AT_ONCE = [method for method in methods("fit") if not method.method.by_steps]
each_trained = pytest.mark.parametrize("method", TRAINED, ids=str)
GUIDED = [method for method in TRAINED if "prior_file" in parameters(class_path(method)) and not method.variant]
each_guided = pytest.mark.parametrize("method", GUIDED, ids=str)
each_at_once = pytest.mark.parametrize("method", AT_ONCE, ids=str)
each_selecting = pytest.mark.parametrize("method", SELECTING, ids=str)
each_next = pytest.mark.parametrize("method", NEXT, ids=str)

OF_A_PROCESS = {"embedding_std", "uniformity", "alignment", "feature_std", "knn_accuracy", "rankme"}
"""Metrics of stage 1 that are of one process's images, or of images that depend on their number."""

KILLS = ((2, "batch", 1), (4, "batch", 0), (5, "write", 0), (8, "batch", None), (9, "batch", None))
"""When, at which moment, and which process; None: both."""

LOGGED = options(trainer__log_every_n_steps=1)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Small data, and what the methods start from."""
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """One pair of processes for all."""
    started = Pair()
    yield started
    started.end()


def test_every_class_that_a_configuration_names_is_here() -> None:
    """By a configuration of digits for each of its verbs that makes something."""
    found = {(m.method, m.command) for m in (*TRAINED, *AT_ONCE, *CHOOSING)}
    named = {method for config in names_of_all() if (method := class_of(config)) is not None}
    assert {(method, verb) for method in named for verb in {"fit", "select"} & set(method.verbs)} == found


# Training ------------------------------------------------------------------------------------------------


def series(run_dir: Path) -> dict[str, list[float]]:
    """The values of each metric, in the order of the steps."""
    found: dict[str, list[float]] = {}
    for _, name, value in (row.split(",") for row in (run_dir / "metrics.csv").read_text().splitlines()[1:]):
        found.setdefault(name, []).append(float(value))
    return found


def assert_close(own: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    """In norm, relative; integers alike."""
    assert own.keys() == other.keys()
    for name, value in other.items():
        if value.is_floating_point():
            assert float((own[name] - value).norm()) <= tolerance * float(value.norm()) + 1e-7, name
        else:
            assert torch.equal(own[name], value), name


@each_trained
def test_a_resume_is_exact(method: Shipped, bench: Bench, tmp_path: Path) -> None:
    """Stopped after a step that is saved and after one that is not, each step of two micro-batches: the same bits."""
    words = [*bench.words(method), *LOGGED, *options(trainer__accumulate_grad_batches=2, trainer__max_steps=6)]
    words += options(trainer__val_check_interval=6, checkpoint__every_steps=2)  # saved with a validation and without
    usl(*words, "--run_dir", tmp_path / "straight")
    stopped = [*words, "--run_dir", tmp_path / "stopped"]
    for step, more in ((3, []), (4, ["--ckpt_path", "last"])):
        with pytest.raises(StopError):
            usl(*stopped, *more, callbacks(("training.Stop", {"step": step})))
        assert last_checkpoint(tmp_path / "stopped")["global_step"] == step // 2 * 2
    usl(*stopped, "--ckpt_path", "last")
    assert_same_run(tmp_path / "stopped", tmp_path / "straight")
    assert len(series(tmp_path / "straight")["loss"]) == 6


@each_trained
def test_two_processes_train_as_one(method: Shipped, bench: Bench, pair: Pair, tmp_path: Path) -> None:
    """The losses and the final state of one; the two hold the same bits after every step.

    In 64 bits, so that rounding cannot grow into a difference; what is logged has 32.
    """
    words = [*bench.words(method), *LOGGED, *options(trainer__max_steps=8, trainer__val_check_interval=4)]
    words += options(trainer__accelerator=TOGETHER, trainer__precision="64-true", processes__check_every=1)
    one, two = tmp_path / "one", tmp_path / "two"
    for run_dir, run in ((one, usl), (two, pair.usl)):
        run_dir.mkdir()
        gradients = ("training.Gradients", {"folder": str(run_dir)})
        run(*words, "--run_dir", run_dir, callbacks(("training.AloneInTheBatch", {}), gradients))
    assert_close(*(torch.load(run_dir / "gradient-0.pt") for run_dir in (two, one)), 1e-6)
    assert_close(last_checkpoint(two)["state_dict"], last_checkpoint(one)["state_dict"], 1e-6)
    own, other = series(two), series(one)
    assert own.keys() == other.keys()
    for name in own.keys() - OF_A_PROCESS:
        assert own[name] == pytest.approx(other[name], rel=1e-6, abs=1e-6), name
        assert any(other[name]) or not name.endswith("loss"), f"{name} is not at work; see SETTINGS"
    results = [json.loads((run_dir / "result.json").read_text()) for run_dir in (two, one)]
    assert results[0] == pytest.approx(results[1], rel=1e-4)


@pytest.mark.parametrize("method", [m for m in TRAINED if str(m) in ("CoMatch", "SeLa")], ids=str)
def test_kills_of_either_process_or_of_both_change_nothing(
    method: Shipped, bench: Bench, pair: Pair, tmp_path: Path
) -> None:
    """Five `kill -9`: of one, which ends the other; of the main one amid a checkpoint; of both. The same bits.

    For the methods with the most state: a bank and a history; labels that are assigned anew from time to time.
    """
    words = [*bench.words(method), *LOGGED, *options(trainer__max_steps=12, checkpoint__every_steps=1)]
    words += options(trainer__val_check_interval=4, trainer__accelerator=TOGETHER)
    pair.usl(*words, "--run_dir", tmp_path / "straight")
    killed, more = [*words, "--run_dir", tmp_path / "killed"], []
    for step, moment, rank in KILLS:
        kill = callbacks(("kill.Kill", {"step": step, "moment": moment, "rank": rank}))
        with pytest.raises(AssertionError, match="has ended" if rank is None else f"process {rank}: has ended"):
            pair.usl(*killed, *more, kill)
        more = ["--ckpt_path", "last"]
        assert last_checkpoint(tmp_path / "killed")["global_step"] == step - (moment == "write")
    pair.usl(*killed, *more)
    assert_same_run(tmp_path / "killed", tmp_path / "straight")


@each_trained
def test_micro_batches_are_accumulated(method: Shipped, bench: Bench, tmp_path: Path) -> None:
    """A step of two: the gradient is the mean of those of two steps between which no weight moves; so is the state."""
    words = [*bench.words(method), *options(trainer__max_steps=1000, checkpoint__every_steps=1)]
    words += model_options(STEADY.get(method.method.__name__, {}))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for run_dir, pieces in ((whole, 1), (parts, 2)):
        run_dir.mkdir()
        still = ("training.Gradients", {"folder": str(run_dir), "still": True})
        calls = [("training.AloneInTheBatch", {}), still, ("training.Stop", {"step": 2 // pieces})]
        more = options(trainer__accumulate_grad_batches=pieces, trainer__val_check_interval=1000)
        with pytest.raises(StopError):
            usl(*words, *more, "--run_dir", run_dir, callbacks(*calls))
    first, second = (torch.load(whole / f"gradient-{step}.pt") for step in range(2))
    assert any(not torch.allclose(first[name], second[name], rtol=0.1) for name in first)
    mean = {name: (first[name] + second[name]) / 2 for name in first}
    assert_close(torch.load(parts / "gradient-0.pt"), mean, 1e-5)
    assert_close(last_checkpoint(parts)["state_dict"], last_checkpoint(whole)["state_dict"], 1e-5)


@each_trained
def test_a_step_of_half_precision_is_finite_and_its_verbs_take_it(
    method: Shipped, bench: Bench, tmp_path: Path
) -> None:
    words = [*bench.words(method)[1:], "--run_dir", str(tmp_path)]
    words += options(trainer__precision="bf16-mixed")
    usl("fit", *words, *LOGGED, *options(trainer__max_steps=2))
    assert all(math.isfinite(value) for values in series(tmp_path).values() for value in values)
    for name, value in last_checkpoint(tmp_path)["state_dict"].items():
        assert bool(value.isfinite().all()), name
    for verb in set(method.method.verbs) - {"fit", "select"}:
        usl(verb, *words, "--ckpt_path", "last")


@each_guided
def test_a_prior_of_zeros_changes_nothing_and_another_does(method: Shipped, bench: Bench, tmp_path: Path) -> None:
    """Bit for bit; and what the first steps follow is gone when they are over."""
    np.save(tmp_path / "zeros.npy", np.zeros((160, 10), np.float32))
    words = [*bench.words(method), *LOGGED, *options(trainer__max_steps=4)]
    states, losses = {}, {}
    for name, prior in (("none", None), ("zeros", tmp_path / "zeros.npy"), ("prior", bench.prior())):
        more = [] if prior is None else model_options({"prior_file": str(prior), "prior_steps": 0.5})
        usl(*words, *more, "--run_dir", tmp_path / name)
        state = last_checkpoint(tmp_path / name)["state_dict"]
        states[name] = {key: value for key, value in state.items() if not key.startswith("guidance.")}
        losses[name] = series(tmp_path / name)["loss"]
    assert differing(states["zeros"], states["none"]) == []
    assert losses["zeros"] == losses["none"] != losses["prior"]


# At once -------------------------------------------------------------------------------------------------


def assert_same_learned(own: Path, other: Path) -> None:
    """Bit for bit."""
    assert differing(*(last_checkpoint(run_dir)["state_dict"] for run_dir in (own, other))) == []
    assert (own / "result.json").read_text() == (other / "result.json").read_text()


@each_at_once
def test_what_is_learned_at_once_repeats_after_a_kill_too(method: Shipped, bench: Bench, tmp_path: Path) -> None:
    usl(*bench.words(method), "--run_dir", tmp_path / "straight")
    killed = [*bench.words(method), "--run_dir", str(tmp_path / "killed")]
    assert dies_after("learn", method, killed) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "checkpoints").exists()
    usl(*killed)
    assert_same_learned(tmp_path / "killed", tmp_path / "straight")
    usl(*killed, "--ckpt_path", "last")
    assert_same_learned(tmp_path / "killed", tmp_path / "straight")


@each_at_once
def test_two_processes_learn_what_one_does_and_its_verbs_take_it(
    method: Shipped, bench: Bench, pair: Pair, tmp_path: Path
) -> None:
    """From features that each has computed anew, its share of them."""
    one, two = tmp_path / "one", tmp_path / "two"
    for run_dir, run in ((one, usl), (two, pair.usl)):
        more = options(model__cache=str(run_dir / "cache"), trainer__accelerator=TOGETHER)
        run(*bench.words(method), *more, "--run_dir", run_dir)
    assert_close(last_checkpoint(two)["state_dict"], last_checkpoint(one)["state_dict"], 1e-3)
    results = [json.loads((run_dir / "result.json").read_text()) for run_dir in (two, one)]
    for result in results:
        result["estimated_interval"] = sum(result["estimated_interval"])
    assert results[0] == pytest.approx(results[1], rel=1e-3)
    for verb in set(method.method.verbs) - {"fit", "select"}:
        usl(verb, *bench.words(method)[1:], "--run_dir", one, "--ckpt_path", "last")


# Selection -----------------------------------------------------------------------------------------------


def select(bench: Bench, method: Shipped, run_dir: Path, *more: Any) -> dict[str, Any]:
    """The label index that `usl select` writes, of the bench's digits unless told otherwise."""
    usl(*bench.words(method), "--run_dir", run_dir, *more)
    index = json.loads((run_dir / "labels.json").read_text())
    assert len(set(index["indices"])) == len(index["indices"]) == index["method"]["params"]["budget"]
    return index


def chosen(bench: Bench, method: Shipped, run_dir: Path, *more: Any) -> list[int]:
    """The images of that index."""
    return select(bench, method, run_dir, *more)["indices"]


@each_selecting
def test_a_choice_is_of_the_budget_and_repeats(method: Shipped, bench: Bench, tmp_path: Path) -> None:
    budget = options(model__budget=12)
    first = select(bench, method, tmp_path / "first", *budget)
    assert len(first["indices"]) == 12
    assert 0 <= min(first["indices"]) <= max(first["indices"]) < 160
    assert select(bench, method, tmp_path / "again", *budget) == first


@each_selecting
def test_a_killed_choice_is_made_again(method: Shipped, bench: Bench, tmp_path: Path) -> None:
    expected = select(bench, method, tmp_path / "straight")
    killed = tmp_path / "killed"
    assert dies_after("choose", method, [*bench.words(method), "--run_dir", str(killed)]) == -signal.SIGKILL
    assert not (killed / "labels.json").exists()
    assert select(bench, method, killed) == expected


@each_selecting
def test_kept_images_come_first_and_no_other_label_is_seen(method: Shipped, bench: Bench, tmp_path: Path) -> None:
    """The others are the picks that kept their places, where that is the rule."""
    alone = chosen(bench, method, tmp_path / "alone")
    kept = [alone[4], *[i for i in (159, 1, 0) if i not in alone][:2]]
    (tmp_path / "keep.json").write_text(json.dumps(kept))
    beside = chosen(bench, method, tmp_path / "beside", "--keep", tmp_path / "keep.json")
    assert beside[:3] == kept
    if method.method.choose_beside is Selector.choose_beside:
        assert beside[3:] == [i for i in alone if i in beside[3:]]
    if "--model.allow_oracle=true" in bench.words(method):
        return
    made = np.load(bench.folder / "data" / "train.npz")
    wrong = bench.write(f"wrong {method}", made["images"], np.roll(made["labels"], 7))
    assert chosen(bench, method, tmp_path / "wrong", *options(data__dir=str(wrong))) == alone


@each_selecting
def test_any_images_will_do(method: Shipped, bench: Bench, tmp_path: Path) -> None:
    """Pairs of equal ones, of which the lower comes first where nothing is drawn; all equal; no more than the budget.

    Ties of distances that are equal in all but rounding are not tried.
    """
    digits = np.load(bench.folder / "data" / "train.npz")
    images, labels = digits["images"][:20], digits["labels"][:20]
    twice = bench.write(f"twice {method}", np.concatenate([images, images]), np.concatenate([labels, labels]))
    indices = chosen(bench, method, tmp_path / "twice", *options(data__dir=str(twice), model__budget=15))
    if not getattr(method.method, "seeded", True):
        place = {image: number for number, image in enumerate(indices)}
        assert all(place.get(image - 20, 99) < place[image] for image in indices if image >= 20)
    equal = bench.write(f"equal {method}", images[[3] * 9], labels[[3] * 9])
    chosen(bench, method, tmp_path / "equal", *options(data__dir=str(equal), model__budget=4))
    ten = bench.write(f"ten {method}", images[:10], labels[:10])
    assert sorted(chosen(bench, method, tmp_path / "ten", *options(data__dir=str(ten)))) == list(range(10))


# Selection of the next images ----------------------------------------------------------------------------


@each_next
def test_the_kept_stand_the_budget_is_met_and_it_repeats(method: Shipped, bench: Bench, tmp_path: Path) -> None:
    budget = options(model__budget=32)
    first = select(bench, method, tmp_path / "first", *budget)
    assert first["indices"][:20] == list(range(20))
    assert 20 <= min(first["indices"][20:]) <= max(first["indices"]) < 160
    assert select(bench, method, tmp_path / "again", *budget) == first
    killed = tmp_path / "killed"
    words = [*bench.words(method), *budget, "--run_dir", str(killed)]
    assert dies_after("choose_beside", method, words) == -signal.SIGKILL
    assert not (killed / "labels.json").exists()
    assert select(bench, method, killed, *budget) == first


@each_next
def test_no_label_but_the_answers_is_seen(method: Shipped, bench: Bench, tmp_path: Path) -> None:
    """All others are wrong, and those of the kept images without an answer too."""
    made = np.load(bench.folder / "data" / "train.npz")
    wrong = (made["labels"] + 1 + np.arange(160) % 9) % 10
    wrong[:12] = made["labels"][:12]
    others = bench.write(f"others {method}", made["images"], wrong)
    budget, choices = options(model__budget=32), []
    for name, data in (("right", bench.folder / "data"), ("wrong", others)):
        first = bench.words(method), options(data__dir=str(data)), options(model__budget=20)
        (tmp_path / f"{name}.json").write_text(json.dumps(list(range(20))))
        usl(*first[0], *first[1], *first[2], "--run_dir", tmp_path / f"{name} kept")
        kept = json.loads((tmp_path / f"{name} kept" / "labels.json").read_text())
        kept["labels"][12:] = [None] * 8
        (tmp_path / f"{name}.json").write_text(json.dumps(kept))
        keep = ("--keep", tmp_path / f"{name}.json")
        choices.append(chosen(bench, method, tmp_path / name, *first[1], *budget, *keep))
    assert choices[0] == choices[1]


@each_next
def test_any_further_images_will_do(method: Shipped, bench: Bench, tmp_path: Path) -> None:
    """Pairs of equal ones, of which the lower comes first where nothing is drawn; all equal; as many as the budget."""
    digits = np.load(bench.folder / "data" / "train.npz")
    images, labels = digits["images"][:40], digits["labels"][:40]
    twice = bench.write(f"twice {method}", images[[*range(40), *range(20, 40)]], labels[[*range(40), *range(20, 40)]])
    indices = chosen(bench, method, tmp_path / "twice", *options(data__dir=str(twice), model__budget=50))
    if not method.method.seeded:  # type: ignore[attr-defined]
        place = {image: number for number, image in enumerate(indices)}
        assert all(place.get(image - 20, 99) < place[image] for image in indices if image >= 40)
    equal = bench.write(f"equal {method}", images[[3] * 30], labels[[3] * 30])
    chosen(bench, method, tmp_path / "equal", *options(data__dir=str(equal), model__budget=26))
    all_of_them = bench.write(f"all {method}", images[:30], labels[:30])
    found = chosen(bench, method, tmp_path / "all", *options(data__dir=str(all_of_them), model__budget=30))
    assert sorted(found) == list(range(30))


@each_next
def test_it_comes_after_others(
    method: Shipped, bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without labels, or with a checkpoint that is no classifier of these features: one line."""
    features = tmp_path / "two.npy"
    np.save(features, np.random.default_rng(0).normal(size=(160, 2)).astype(np.float32))
    words = bench.words(method)
    without = [word for word in words if "init_from" not in word]
    for more, message in (
        (options(model__classifier_from="null"), "give model.keep_from --keep LABELS and model.classifier_from"),
        (options(model__classifier_from=str(bench.checkpoint("digits_simclr.yaml"))), "holds no classifier"),
        (
            [*options(model__features=str(features)), "--model.budget=30"],
            "these are 2; give the selec|a file has no features",
        ),
    ):
        given = without if "--model.budget=30" in more else words
        with pytest.raises(AssertionError, match="exit code 2"):
            usl(*given, *more, "--run_dir", tmp_path / "refused")
        (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("usl: ")]
        assert re.search(message, line.replace("(", "").replace(")", ""))


# Both ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*TRAINED, *AT_ONCE, *CHOOSING], ids=str)
def test_what_is_no_number_is_refused(
    method: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For each parameter with a range, in one line that names it; `test_ranges.py` tries the ends of the ranges."""
    monkeypatch.chdir(tmp_path)
    taken = parameters(class_path(method))
    numbers = [name for name in ranges_of(method.method) if name in taken]
    assert numbers
    for name in numbers:
        with pytest.raises(AssertionError, match="exit code 2"):
            usl(method.command, "--config", method.config, f"--model.{name}=.nan")
        assert re.fullmatch(rf"usl: --model\.{name}: .+\n", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


# Pages ---------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parent.parent


def page_of(method: Shipped) -> tuple[str, str]:
    """The page that shows a method's class or its function, and under which name: its own heading, or the page's."""
    module = re.escape(method.method.__module__)
    for page in sorted((ROOT / "docs" / "methods").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        shown = re.search(rf"^::: {module}\.\w+$", text, re.MULTILINE)
        if shown:
            title, *headings = re.findall(r"^#+ (.+)$", text[: shown.start()], re.MULTILINE)
            own = [heading for heading in headings[-1:] if not heading.startswith("Parameters")]
            return page.name, (own or [title])[0]
    raise AssertionError(f"no page of docs/methods/ shows {method.method.__module__}; put it under ::: there")


@pytest.mark.parametrize("method", [*TRAINED, *AT_ONCE, *CHOOSING], ids=str)
def test_it_has_a_page_and_its_name_is_in_the_readme(method: Shipped) -> None:
    page, name = page_of(method)
    index = (ROOT / "docs" / "methods" / "index.md").read_text(encoding="utf-8")
    assert f"]({page})" in index, "the table of methods leads to the page"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [123], .+$", readme, re.MULTILINE)
    assert len(rows) == 3
    assert any(re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", row, re.IGNORECASE) for row in rows), name

"""Rounds of labelling in a chain, and `usl more`: real stages, on digits' pixels as features."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.datasets import load_digits

from usl_lightning.chain.file import Chain
from usl_lightning.chain.naming import classifier_in, label_file_in
from usl_lightning.chain.options import RunOptions
from usl_lightning.cli import main
from usl_lightning.report.page import write_report
from usl_lightning.report.run import read_run

PIXELS, TRUTH = load_digits(return_X_y=True)
IMAGES = 120
ROUNDS: dict[str, Any] = {
    "budget": [8, 4],
    "first": {"config": "digits_kmeans_nearest.yaml", "set": {"model.restarts": 2}},
    "next": "digits_uherding.yaml",
    "classifier": "digits_probe.yaml",
    "set": {"model.features": "features.npy"},
}
CHAIN: dict[str, Any] = {"seed": 3, "set": {"data.dataset": "arrays", "data.dir": "data"}, "rounds": ROUNDS}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with images, their features and a chain."""
    monkeypatch.chdir(tmp_path)
    data(TRUTH[:IMAGES])
    np.save("features.npy", PIXELS[:IMAGES].astype(np.float32))
    write(CHAIN)
    return tmp_path


def data(labels: np.ndarray | None) -> None:
    """The images, with these labels or none."""
    Path("data").mkdir(exist_ok=True)
    images = np.rint(PIXELS[:IMAGES] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    np.savez("data/train.npz", images=images, **({} if labels is None else {"labels": labels}))


def write(chain: dict[str, Any]) -> Path:
    path = Path("chain.yaml")
    path.write_text(yaml.safe_dump(chain))
    return path


def run(*words: str) -> int:
    """`usl WORDS`, `run chain.yaml` if there are none; its exit code."""
    try:
        main(list(words) or ["run", "chain.yaml"])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def chosen(number: int, name: str = "chain") -> dict[str, Any]:
    return json.loads(Path(f"runs/{name}/select_{number}/labels.json").read_text())


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a refusal."""
    capsys.readouterr()
    assert run(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_they_are_written_out_as_stages() -> None:
    chain = Chain.read(write({**CHAIN, "stages": [{"name": "a", "command": "fit", "config": "digits_simclr"}]}), [5])
    shared = {"data.dataset": "arrays", "data.dir": "data", "model.features": "features.npy"}
    labels = [f"${{select_{number}.labels}}" for number in (1, 2, 3)]
    told = [(stage.name, stage.command, stage.config.name, stage.set) for stage in chain.stages]
    assert told[1:] == [
        ("select_1", "select", "digits_kmeans_nearest.yaml", {**shared, "model.restarts": "2", "model.budget": "8"}),
        ("train_1", "fit", "digits_probe.yaml", {**shared, "data.labels": labels[0]}),
        ("select_2", "select", "digits_uherding.yaml", {**shared, "model.budget": "12", "model.keep_from": labels[0],
                                                        "model.classifier_from": "${train_1.checkpoint}"}),
        ("train_2", "fit", "digits_probe.yaml", {**shared, "data.labels": labels[1]}),
        ("select_3", "select", "digits_uherding.yaml", {**shared, "model.budget": "17", "model.keep_from": labels[1],
                                                        "model.classifier_from": "${train_2.checkpoint}"}),
        ("train_3", "fit", "digits_probe.yaml", {**shared, "data.labels": labels[2]}),
    ]  # fmt: skip


def test_a_selector_that_looks_at_no_classifier_is_given_none() -> None:
    chain = Chain.read(write({**CHAIN, "rounds": {**ROUNDS, "next": "digits_coreset.yaml"}}))
    assert chain.stages[2].needs() == ["select_1"]


def test_a_selector_that_looks_at_two_is_given_the_last_two() -> None:
    chain = Chain.read(write({**CHAIN, "rounds": {**ROUNDS, "next": "digits_tod.yaml"}}), [3])
    assert chain.stages[2].needs() == ["select_1", "train_1"]
    assert chain.stages[4].needs() == ["select_2", "train_2", "train_1"]
    assert chain.stages[4].set["model.earlier_from"] == "${train_1.checkpoint}"


def test_two_rounds_then_one_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    first, second = chosen(1), chosen(2)
    assert second["indices"][:8] == first["indices"]
    assert second["labels"] == TRUTH[second["indices"]].tolist()
    told = [each.get("added") for each in json.loads(Path("runs/chain/summary.json").read_text())["results"]]
    assert told == [None, 4]
    capsys.readouterr()
    assert run() == 0
    assert capsys.readouterr().out.count("complete, skipped") == 4

    assert run("more", "runs/chain", "--budget", "5", "--dry-run") == 0
    assert "[6/6] train_3: would run" in capsys.readouterr().out
    assert not Path("runs/chain/select_3").exists()
    assert run("more", "runs/chain", "--budget", "5") == 0
    third = chosen(3)
    assert (third["indices"][:12], len(third["indices"])) == (second["indices"], 17)
    result = json.loads(Path("runs/chain/summary.json").read_text())["results"][2]
    assert (result["budget"], result["added"]) == (17, 5)
    assert result["added_class_counts"] == np.bincount(TRUTH[third["indices"][12:]], minlength=10).tolist()
    classes = sum(count > 0 for count in result["added_class_counts"])
    assert re.search(rf"^uherding .* 5 of {classes} class", capsys.readouterr().out, re.MULTILINE)

    assert run() == 0  # the run remembers its third round
    assert capsys.readouterr().out.count("complete, skipped") == 6
    assert run("more", "runs/chain", "--budget=3") == 0
    assert json.loads(Path("runs/chain/run.json").read_text())["arguments"] == ["chain.yaml", "--more=5,3"]
    assert len(chosen(4)["indices"]) == 20
    page = write_report(Path("runs/chain")).read_text()
    section = page.partition('<section id="rounds"')[2].partition("</section>")[0]
    assert "Accuracy against labels" in section
    assert "at label 17 to" in section
    rows = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in section.split("<tr>")[2:]]
    assert [row[:4] for row in rows] == [
        ["1", "KMeansNearest", "8", "8"], ["2", "UHerding", "4", "12"],
        ["3", "UHerding", "5", "17"], ["4", "UHerding", "3", "20"],
    ]  # fmt: skip
    counts = dict(map(str.split, rows[2][6].split(", ")))
    assert counts == {str(c): str(n) for c, n in enumerate(result["added_class_counts"]) if n}


def test_a_run_of_another_name_and_place_is_added_to_where_it_is() -> None:
    assert run("run", "chain.yaml", "--name=mine", "--out=there", "--seed=5") == 0
    Path("there/mine").rename("there/yours")
    assert run("more", "there/yours/", "--budget=2") == 0
    assert len(json.loads(Path("there/yours/select_3/labels.json").read_text())["indices"]) == 14
    assert not Path("runs").exists()


def answer(number: int, positions: range | None = None) -> dict[str, Any]:
    """Label the images of a selection, or some of them, as a person does, by their truth."""
    path = Path(f"runs/chain/select_{number}/labels.json")
    index = json.loads(path.read_text())
    for i in range(len(index["indices"])) if positions is None else positions:
        index["labels"][i] = int(TRUTH[index["indices"][i]])
    index["classes"] = [str(name) for name in range(10)]
    path.write_text(json.dumps(index))
    return index


def test_each_round_waits_for_its_own_labels_and_keeps_those_before(capsys: pytest.CaptureFixture[str]) -> None:
    data(None)
    assert run() == 3
    assert "8 images to label: usl label runs/chain/select_1/labels.json" in capsys.readouterr().out
    assert run("more", "runs/chain", "--budget=3") == 2
    assert not Path("runs/chain/select_2").exists()
    first = answer(1)
    assert run() == 3
    second = chosen(2)
    assert (second["indices"][:8], second["labels"]) == (first["indices"], [*first["labels"], *[None] * 4])
    assert "4 images to label: usl label runs/chain/select_2/labels.json" in capsys.readouterr().out
    second = answer(2)
    assert run() == 0
    capsys.readouterr()
    assert run("more", "runs/chain", "--budget=3") == 3
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "then usl run chain.yaml --more=3: it goes on from here"
    assert chosen(3)["labels"] == [*second["labels"], None, None, None]
    answer(3)
    assert run(*shlex.split(last.removeprefix("then usl ").partition(":")[0])) == 0


def test_who_stops_early_goes_on_with_what_is_answered() -> None:
    """If told so; the images without an answer stay in the index, to be answered or not."""
    data(None)
    classifier = {"config": "digits_probe.yaml", "set": {"data.unanswered": "leave_out"}}
    write({**CHAIN, "rounds": {**ROUNDS, "classifier": classifier}})
    assert run() == 3
    first = answer(1, range(5))
    assert len(set(first["labels"]) - {None}) > 1
    assert run() == 3  # the labels of the first round are none of the second
    assert label_file_in(Path("runs/chain")) == Path("runs/chain/select_2/labels.json")
    second = chosen(2)
    assert second["labels"] == [*first["labels"][:5], *[None] * 7]
    assert second["indices"][:8] == first["indices"]
    assert (second["method"]["kept"], "kept" in first["method"]) == (8, False)  # the page asks for the others first
    answer(2, range(9))
    assert run() == 0
    assert run("more", "runs/chain", "--budget=3") == 3
    waiting = read_run(Path("runs/chain")).waiting
    assert [stage.name for stage in waiting] == ["select_3"]
    assert label_file_in(Path("runs/chain")) == Path("runs/chain/select_3/labels.json")
    assert classifier_in(Path("runs/chain"), "predict").path.name == "train_2"
    answer(3, range(12, 13))
    assert run() == 0
    assert label_file_in(Path("runs/chain")) == Path("runs/chain/select_3/labels.json")
    assert classifier_in(Path("runs/chain"), "predict").path.name == "train_3"
    assert read_run(Path("runs/chain")).waiting == []


def test_no_label_but_the_answers_is_read() -> None:
    """All images that are not chosen have wrong labels in the other run, which chooses and learns the same."""
    assert run("run", "chain.yaml", "--name=honest") == 0
    honest = chosen(2, "honest")
    wrong = (TRUTH[:IMAGES] + 1 + np.arange(IMAGES) % 9) % 10
    wrong[honest["indices"]] = TRUTH[honest["indices"]]
    data(wrong)
    assert run("run", "chain.yaml", "--name=other") == 0
    assert chosen(2, "other")["indices"] == honest["indices"]
    results = [json.loads(Path(f"runs/{name}/train_2/result.json").read_text()) for name in ("honest", "other")]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": [8, 0]}, "rounds: budget: 0 is out of range; expected 1 or more"),
        ({"budget": []}, "rounds: budget: there is no round; expected the images of each, such as [40, 40, 40]"),
        ({"budget": "many"}, "rounds: budget: found 'many'; expected the images of each round, such as [40, 40, 40]"),
        ({"budget": [2.5]}, "rounds: budget: 2.5 is out of range; expected a whole number, 1 or more"),
        ({"budgets": [2]}, "rounds: unknown key 'budgets' (did you mean 'budget'?)"),
        ({"first": "digits_margin.yaml"}, "rounds: first: digits_margin.yaml looks at a classifier, and before"),
        ({"next": None}, "rounds: next: expected the name of a configuration, or config and set"),
        ({"next": "digits_uherdin.yaml"}, "digits_uherdin.yaml: no such configuration here or among the shipped ones"),
        ({"next": {"config": "digits_uherding.yaml", "sets": {}}}, "rounds: next: unknown key 'sets'"),
        ({"next": {"config": "digits_uherding.yaml", "set": {"model.sigma": -1}}}, "stage select_2: model.sigma: -1"),
        ({"set": [1]}, "rounds: set: expected a mapping of keys to values"),
    ],
)
def test_mistakes_in_rounds(change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    write({**CHAIN, "rounds": {**ROUNDS, **change}})
    for more in ([], ["--dry-run"]):
        assert message in refused(capsys, "run", "chain.yaml", *more)
    assert not Path("runs").exists()


def test_rounds_of_more_images_than_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Told after the first choice, before anybody labels it."""
    write({**CHAIN, "rounds": {**ROUNDS, "budget": [8, 113]}})
    assert run() == 2
    message = "usl: stage select_2: model.budget: 121 images cannot be picked from 120"
    assert message in capsys.readouterr().err.splitlines()
    assert not Path("runs/chain/train_1").exists()


def test_mistakes_of_more(capsys: pytest.CaptureFixture[str]) -> None:
    plain = {"stages": [{"name": "choose", "command": "select", "config": "digits_random.yaml"}], "set": CHAIN["set"]}
    Path("plain.yaml").write_text(yaml.safe_dump(plain))
    assert run("run", "plain.yaml") == 0
    assert run() == 0
    before = Path("runs/chain/run.json").read_text()
    for words, message in (
        ([], "usl more: expected a run and how many images"),
        (["runs/chain"], "usl more: --budget is missing: expected the images of the round, 1 or more"),
        (["runs/chain", "--budget=0"], "usl more: --budget 0: expected the images of the round, 1 or more"),
        (["runs/chain", "--budget=x"], "usl more: --budget x: expected the images of the round, 1 or more"),
        (["runs/chain", "--budget=120"], "usl: stage select_3: model.budget: 132 images cannot be picked from 120"),
        (["runs/chain", "--number=4"], "usl more: unknown option --number; expected --budget, --dry-run"),
        (["runs/chian", "--budget=4"], "usl more: runs/chian: no run of `usl run`"),
        (["runs/plain", "--budget=4"], "usl: no round can be added: the chain has no 'rounds:', and no stage learns"),
    ):
        assert refused(capsys, "more", *words).startswith(message)
    assert Path("runs/chain/run.json").read_text() == before
    assert "usl run: --more 0: expected the images" in refused(capsys, "run", "chain.yaml", "--more=0")
    Path("runs/chain/train_2/stage.json").unlink()
    line = refused(capsys, "more", "runs/chain", "--budget=4")
    assert re.match(
        r"usl more: runs/chain is not finished, train_2 to come; it goes on with: usl run chain.yaml$", line
    )


def test_a_round_that_is_refused_leaves_the_run_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run() == 0
    before = Path("runs/chain/run.json").read_text()
    Path("features.npy").unlink()
    assert run("more", "runs/chain", "--budget=4") == 2
    assert Path("runs/chain/run.json").read_text() == before


PLAIN = [
    {"name": "random", "command": "select", "config": "digits_random.yaml"},
    {
        "name": "choose",
        "command": "select",
        "config": "digits_kmeans_nearest.yaml",
        "set": {"model.restarts": 2, "model.budget": 9, "model.features": "features.npy"},
    },
    {
        "name": "learn",
        "command": "fit",
        "config": "digits_blend.yaml",
        "set": {"data.labels": "${choose.labels}", "model.features": "features.npy", "model.folds": 5},
    },
]


def test_a_chain_of_a_selection_and_a_classifier_takes_rounds_too() -> None:
    """As `usl init` writes them: chosen by what its classifier makes of all images, with the options as given."""
    Path("plain.yaml").write_text(yaml.safe_dump({"set": CHAIN["set"], "stages": PLAIN}))
    assert run("run", "plain.yaml", "--choose.model.budget=10") == 0
    assert run("more", "runs/plain", "--budget=4") == 0
    assert run("more", "runs/plain", "--budget=3") == 0
    first, second, third = (
        json.loads(Path(f"runs/plain/{name}/labels.json").read_text()) for name in ("choose", "choose_2", "choose_3")
    )
    assert second["method"]["name"] == third["method"]["name"] == "uherding"
    assert (second["indices"][:10], third["indices"][:14]) == (first["indices"], second["indices"])
    assert len(third["indices"]) == 17
    config = yaml.safe_load(Path("runs/plain/learn_3/config.yaml").read_text())
    assert config["model"]["init_args"]["folds"] == 5
    results = json.loads(Path("runs/plain/summary.json").read_text())["results"]
    assert [(each["budget"], each.get("added")) for each in results] == [(10, None), (14, 4), (17, 3)]
    options = RunOptions.parse(["plain.yaml", "--choose_2.model.sigma=0.5"])  # the run's rounds are known
    assert options.chain.stages[3].set["model.sigma"] == "0.5"

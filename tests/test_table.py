"""`usl table`: what is read and refused, what is shared, and what comes out, on selections that take no training."""

import csv
import json
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import assert_same_run, kill, usl

from usl_lightning.base.errors import UslError
from usl_lightning.chain import slurm, table_keys
from usl_lightning.chain.file import Chain
from usl_lightning.chain.table import TableRun
from usl_lightning.chain.table_results import Figure, Figures, write_results
from usl_lightning.chain.table_spec import Published, Table
from usl_lightning.cli import main
from usl_lightning.pictures.curves import Panel
from usl_lightning.stage.words import StageCommand

SMALL: dict[str, Any] = {
    "seeds": [0, 1],
    "metric": "classes_covered",
    "stages": [
        {"name": "first", "command": "select", "config": "digits_random.yaml", "set": {"model.budget": 5}},
        {"name": "unused", "command": "fit", "config": "digits_simclr.yaml"},
        {
            "name": "choose",
            "command": "select",
            "config": "digits_random.yaml",
            "set": {"model.keep_from": "${first.labels}"},
        },
    ],
    "rows": {
        "Random": None,
        "Stratified": {"choose": {"config": "digits_stratified.yaml", "set": {"model.allow_oracle": True}}},
    },
    "columns": {"10 labels": {}, "20 labels": {"choose": {"set": {"model.budget": 20}}}},
    "source": "Nobody, 2022",
    "published": {"Random": [6.0, None], "Stratified": ["10 ± 0.5", 10]},
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str = "small.yaml", **changes: Any) -> Path:
    path = Path(name)
    if changes.keys() & {"rows", "columns"}:
        changes.setdefault("published", None)
    path.write_text(yaml.safe_dump({**SMALL, **changes}, sort_keys=False, allow_unicode=True))
    return path


def read(**changes: Any) -> Table:
    return Table.read(write(**changes), {})


def times(folder: Path) -> dict[str, int]:
    """When each file was written, but those of the table as a whole."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent != folder)
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


# What is read ----------------------------------------------------------------------------------------------


def test_cells_are_chains_of_what_their_figure_needs() -> None:
    cells = read().cells()
    assert [(cell.seed, cell.row, cell.column) for cell in cells] == [
        (seed, row, column)
        for seed in (0, 1)
        for row in ("Random", "Stratified")
        for column in ("10 labels", "20 labels")
    ]
    assert all([stage.name for stage in cell.stages] == ["first", "choose"] for cell in cells)
    assert cells[3].stages[1].config.name == "digits_stratified.yaml"
    assert cells[3].stages[1].set["model.budget"] == "20"
    assert cells[3].name == "Stratified_20-labels_seed0"


def test_what_computes_the_same_is_one_stage() -> None:
    table = read(rows={"A": None, "B": {"choose": {"set": {"data.dir": "elsewhere", "trainer.devices": 1}}}})
    a, _, b, *_ = table.cells()
    assert a.pool["first"] == b.pool["first"]
    assert a.pool["choose"] == b.pool["choose"], "where data lie, and how it is run, change nothing"
    names = [{cell.pool["first"] for cell in table.cells() if cell.seed == seed} for seed in (0, 1)]
    assert [len(found) for found in names] == [1, 1]
    assert not names[0] & names[1]
    other = read(rows={"A": {"first": {"set": {"model.budget": 6}}}}).cells()[0]
    assert other.pool["first"] != a.pool["first"]
    assert other.pool["choose"] != a.pool["choose"], "it takes from another"


def test_the_content_of_a_file_counts(tmp_path: Path) -> None:
    kept = {"A": {"choose": {"set": {"model.keep_from": str(tmp_path / "kept.json")}}}}
    names = []
    for content in ("[1, 2]", "[1, 3]"):
        (tmp_path / "kept.json").write_text(content)
        table_keys._content.cache_clear()
        names.append(read(rows=kept).cells()[0].pool["choose"])
    assert names[0] != names[1]


def test_what_was_typed_beats_the_file() -> None:
    given = {
        "choose.model.budget": "7",
        "data.workers": "0",
        "seeds": "[4]",
        "rows": "Random",
        "columns": '["20 labels"]',
    }
    (cell,) = Table.read(write(), given).cells()
    assert (cell.seed, cell.row, cell.column) == (4, "Random", "20 labels")
    assert [stage.set["model.budget"] for stage in cell.stages] == ["5", "7"]
    assert all(stage.set["data.workers"] == "0" for stage in cell.stages)


def test_another_metric_may_be_shown() -> None:
    """The median of the late evaluations stands beside the published figure too, in percent; other figures do not."""
    path = write(metric="test_accuracy", columns={"10 labels": {}, "Classes": {"metric": "classes_covered"}},
                 published={"Random": [6.0, 8], "Stratified": ["10 ± 0.5", 10]})  # fmt: skip
    own, late, other = (Table.read(path, given) for given in (
        {}, {"metric": "test_accuracy_median"}, {"metric": "first.balance"}))  # fmt: skip
    assert own.published == late.published
    assert set(other.published) == {("Random", "Classes"), ("Stratified", "Classes")}
    assert [table.unit("10 labels") for table in (own, late, other)] == [100, 100, 1]
    assert [table.unit("Classes") for table in (own, late, other)] == [1, 1, 1]
    assert [table.cells()[0].metric for table in (own, late, other)] == [
        ("choose", "test_accuracy"), ("choose", "test_accuracy_median"), ("first", "balance"),
    ]  # fmt: skip
    assert {table.cells()[1].metric for table in (own, late, other)} == {("choose", "classes_covered")}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"seeds": []}, "seeds: expected at least one seed"),
        ({"seeds": [1, 1]}, "none of them twice"),
        ({"seeds": [-1]}, "-1 is no seed"),
        ({"seeds": [True]}, "True is no seed"),
        ({"rows": {}}, "rows: there is none"),
        ({"rows": {"A": {"chose": {}}}}, r"rows: A: there is no stage 'chose' \(did you mean 'choose'"),
        ({"rows": {"A": {"choose": {"sett": {}}}}}, "rows: A: choose: unknown key 'sett'"),
        ({"rows": {"a b": None, "a/b": None}}, "would share the folder a-b_10-labels_seed0; rename one"),
        ({"rows": {"/": None}}, "is no name"),
        ({"rows": ["A"]}, "rows: expected keys and values"),
        ({"colums": {}}, r"unknown key 'colums' \(did you mean 'columns'"),
        ({"stages": []}, "stages: expected a list"),
        ({"metric": "chose.budget"}, r"there is no stage 'chose' \(did you mean 'choose'.*row 'Random'"),
        ({"rows": {"A": {"choose": {"config": "digit_random"}}}}, "digit_random: no such configuration.*row 'A'"),
        ({"published": {"Randon": [1, 2]}}, r"published: there is no row 'Randon' \(did you mean 'Random'"),
        ({"published": {"Random": [1]}}, "Random: expected a list of 2 figures"),
        ({"published": {"Random": ["a lot", None]}}, "'a lot' is no figure; expected 76.6, or 76.6 ± 1.2"),
        ({"published": {"Random": [0.9, 0.8]}, "metric": "propagated_accuracy"}, "in percent"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_refused_in_a_line(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UslError, match=problem) as refused:
        read(**changes).cells()
    assert "small.yaml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_same_name_twice_is_refused() -> None:
    text = write().read_text().replace("  20 labels:", "  10 labels:")
    Path("twice.yaml").write_text(text)
    with pytest.raises(UslError, match="the key '10 labels' is there twice"):
        Table.read(Path("twice.yaml"), {})


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "expected a table"),
        (["small.yaml", "--rows", "Randm"], r"there is no 'Randm' \(did you mean 'Random'"),
        (["small.yaml", "--columns", "[]"], "--columns: none is given; expected some of 10 labels"),
        (["small.yaml", "--seeds", "[]"], "--seeds: expected at least one seed"),
        (["small.yaml", "--chose.model.budget", "3"], r"unknown option --chose.model.budget"),
        (["small.yaml", "--slurm", "now"], "expected print or submit"),
        (["small.yaml", "--name"], "--name: its value is missing"),
        (["small.yaml", "--metric"], "--metric: its value is missing"),
        (["small.yaml", "--metric", "chose.balance"], r"there is no stage 'chose' \(did you mean 'choose'"),
        (["small.yaml", "--choose.model.budgt", "3"], "stage choose .row 'Random'.*unknown key 'budgt'"),
        (["small.yaml", "--only", "x-1"], "--only x-1: no cell of the table has it"),
        (["digits_quickstart.yaml"], "not a table, it has no 'rows:' and 'columns:'; usl run"),
    ],
)  # fmt: skip
def test_wrong_words_are_refused_in_a_line(words: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    write()
    with pytest.raises(SystemExit) as end:
        main(["table", *words])
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert re.search(problem, line), line
    assert line.count("\n") == 1
    assert not Path("runs").exists()


def test_the_folder_of_something_else_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    write()
    Path("runs/small").mkdir(parents=True)
    for name, content, problem in (
        ("table.csv", "mine", "table.csv: is there already, and of no table"),
        ("run.json", '{"arguments": ["a.yaml"], "seed": 0, "stages": [{"name": "a", "command": "fit", "needs": []}]}',
         "runs/small: is the folder of a run; give the table another --name"),
    ):  # fmt: skip
        file = Path("runs/small") / name
        file.write_text(content)
        with pytest.raises(SystemExit):
            main(["table", "small.yaml"])
        assert problem in capsys.readouterr().err
        assert file.read_text() == content
        file.unlink()


def test_a_table_is_no_chain_and_no_stage() -> None:
    with pytest.raises(UslError, match=r"a table of chains; run it with usl table small\.yaml"):
        Chain.read(write())
    with pytest.raises(UslError, match=r"a table of chains; run it with usl table small\.yaml"):
        StageCommand.parse("fit", ["--config", "small.yaml"]).check()


# What comes out --------------------------------------------------------------------------------------------


def figure(values: dict[int, float], published: Published | None = None, **missing: str) -> Figure:
    return Figure("A & B", "10_x", values, {int(k[1:]): v for k, v in missing.items()}, True, published)


def test_figures_are_those_of_the_textbook() -> None:
    values = [89.0, 91.0, 96.0]
    told = figure(dict(enumerate(values)), Published(90.0))
    assert told.mean == pytest.approx(92)
    assert told.deviation == pytest.approx(((9 + 1 + 16) / 2) ** 0.5)
    assert told.deviation == pytest.approx(statistics.stdev(values))
    assert told.apart == pytest.approx((92 - 90) / told.deviation)
    both = figure(dict(enumerate(values)), Published(90.0, 1.0))
    assert both.apart == pytest.approx(2 / ((told.deviation**2 + 1) / 2) ** 0.5)
    assert (told.told("±", 3), told.told("±", 4)) == ("92.0 ± 3.6", "92.0 ± 3.6 (n=3)")
    assert told.told_published("±") == "90.0, +0.6 sd"
    alone = figure({0: 50.0}, Published(60.0))
    assert (alone.deviation, alone.apart, alone.told("±", 1)) == (None, None, "50.0")
    assert figure({0: 50.0, 1: 50.0}, Published(60.0)).apart is None
    assert figure({}).told("±", 3) == "-"


def test_texts_of_a_table(tmp_path: Path) -> None:
    figures = Figures(
        "x", "Nobody, 2022", [0, 1], ["A & B"], ["10_x"],
        {("A & B", "10_x"): figure({0: 50.0}, Published(60.0, 2.0), s1="stage train failed with exit code 2")},
        [{"processor": "a fast one"}],
    )  # fmt: skip
    assert "missing, stage train failed with exit code 2: A & B, 10_x, seed 1" in figures.text()
    assert "| A & B | 50.0 (n=1) (60.0 ± 2.0) |" in figures.markdown()
    assert r"A \& B & 50.0 (n=1) (60.0 $\pm$ 2.0) \\" in figures.latex()
    assert r" & 10\_x \\" in figures.latex()
    (line,) = csv.DictReader(figures.csv().splitlines())
    assert (line["n"], line["mean"], line["sd"], line["published_sd"]) == ("1", "50.0", "", "2.0")
    assert write_results(figures, tmp_path, again=True) == [
        "table.csv",
        "table.json",
        "table.md",
        "table.tex",
        "table.png",
    ]
    assert json.loads((tmp_path / "table.json").read_text())["machines"] == [{"processor": "a fast one"}]


@pytest.mark.parametrize(
    ("columns", "panels"),
    [
        (["A, 10 labels", "A, 40 labels", "B, 10", "B, 40"], [("A", (10, 40)), ("B", (10, 40))]),
        (["10 labels", "40 labels"], [("x", (10, 40))]),
        (["FixMatch", "CoMatch"], [("x", (0, 1))]),
        (["10 labels", "40 labels", "all"], [("x", (0, 1, 2))]),
        (["CIFAR-10", "CIFAR-100"], [("x", (0, 1))]),
    ],
)  # fmt: skip
def test_the_plot_has_a_panel_for_each_kind_of_column(
    columns: list[str], panels: list[tuple[str, tuple[float, ...]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Panel] = []
    monkeypatch.setattr("usl_lightning.pictures.curves.draw_curves", lambda panels, path: drawn.extend(panels))
    cells = {("A", name): Figure("A", name, {0: 50.0, 1: 52.0}, {}, True, None) for name in columns}
    write_results(Figures("x", "", [0, 1], ["A"], columns, cells, []), tmp_path, again=True)
    assert [(panel.title, tuple(x for x, *_ in panel.curves[0].points)) for panel in drawn] == panels
    assert all(bool(panel.names) == (panel.title == "x" and not panel.x_label) for panel in drawn)
    _, mean, least, most = drawn[0].curves[0].points[0]
    assert (mean, most - mean) == (51.0, pytest.approx(2**0.5))
    assert mean - least == pytest.approx(most - mean)


@pytest.mark.parametrize("value", [50.0, 0.0, -3.0])
def test_a_column_of_none_has_its_place_in_the_plot(value: float, tmp_path: Path) -> None:
    columns = ["0% wrong labels", "20% wrong labels"]
    cells = {("A", name): Figure("A", name, {0: value, 1: value}, {}, False, None) for name in columns}
    write_results(Figures("x", "", [0, 1], ["A"], columns, cells, []), tmp_path, again=True)
    assert (tmp_path / "table.png").exists()


@pytest.mark.slow
def test_run_continue_and_add_a_seed(capfd: pytest.CaptureFixture[str]) -> None:
    write()
    main(["table", "small.yaml", "--seeds", "[0]"])
    out = capfd.readouterr().out
    assert "cell 4 of 4: Stratified, 20 labels, seed 0" in out
    assert "first: complete, skipped" not in out
    assert re.search(r"Stratified +9\.00 +10\.00\n  published +10\.00 ± 0\.50 +10\.00\n", out), out
    table = Path("runs/small")
    assert len(list((table / "stages").iterdir())) == 5, "the first choice is one for all"
    before = times(table)
    main(["table", "small.yaml", "--seeds", "[0]"])
    assert "cell" not in capfd.readouterr().out
    assert times(table) == before
    main(["table", "small.yaml"])
    after = times(table)
    assert {name: after[name] for name in before} == before, "another seed recomputes nothing"
    content = json.loads((table / "table.json").read_text())
    records = [json.loads(path.read_text()) for path in table.glob("stages/*/stage.json")]
    assert content["machines"] == [records[0]["machine"]]
    told = content["cells"]
    for cell in told:
        name = f"{cell['row']}_{cell['column'].replace(' ', '-')}_seed"
        results = [json.loads((table / f"{name}{seed}/choose/result.json").read_text()) for seed in (0, 1)]
        assert cell["mean"] == statistics.fmean(result["classes_covered"] for result in results)
        assert (cell["n"], cell["missing"]) == (2, {})
    cell = table / "Random_20-labels_seed1"
    capfd.readouterr()
    main(["run", str(cell / "chain.yaml"), "--name", cell.name, "--out", str(table)])
    assert "[2/2] choose: complete, skipped" in capfd.readouterr().out, "a cell is a run like any other"
    main(["report", str(cell)])
    assert (cell / "report.html").exists()


@pytest.mark.slow
def test_a_failing_cell_stops_no_other(capfd: pytest.CaptureFixture[str]) -> None:
    Path("odd.json").write_text("[0, 99999]")
    write(
        seeds=[0],
        rows={
            "Bad": {"choose": {"set": {"model.budget": 1}}},
            "Worse": {"first": {"set": {"model.keep_from": "odd.json", "model.budget": 2}}},
            "Good": None,
        },
    )
    with pytest.raises(SystemExit) as end:
        main(["table", "small.yaml", "--columns", "10 labels"])
    assert end.value.code == 1
    told = capfd.readouterr()
    assert re.search(r"^Bad +-\nWorse +-\nGood +\d", told.out, re.M), told.out
    assert "missing, stage choose failed with exit code 2: Bad, 10 labels, seed 0" in told.out
    assert "missing, stage first failed with exit code 2: Worse, 10 labels, seed 0" in told.out
    assert "usl table: Bad, 10 labels, seed 0: stage choose failed with exit code 2" in told.err
    names = [path.name.partition("-")[0] for path in Path("runs/small/stages").iterdir()]
    assert sorted(names) == ["choose", "first"], "what was refused leaves nothing"


@pytest.mark.slow
def test_a_failed_stage_is_not_tried_for_every_cell(capfd: pytest.CaptureFixture[str]) -> None:
    Path("odd.json").write_text("[0, 99999]")
    write(seeds=[0], rows={"A": None, "B": {"choose": {"set": {"model.budget": 9}}}})
    with pytest.raises(SystemExit):
        main(["table", "small.yaml", "--first.model.keep_from", "odd.json", "--first.model.budget", "2"])
    told = capfd.readouterr()
    assert told.err.count("99999") == 1, told.err
    assert "missing, needs first, which failed: A, 20 labels, seed 0; B, 10 labels, seed 0" in told.out


@pytest.mark.slow
def test_a_stage_of_another_run_is_taken_over(capfd: pytest.CaptureFixture[str]) -> None:
    Path("one.yaml").write_text(yaml.safe_dump({"stages": [{**SMALL["stages"][0], "name": "mine"}]}))
    main(["run", "one.yaml"])
    write(seeds=[0])
    main(["table", "small.yaml", "--rows", "Random", "--columns", "10 labels"])
    assert "first: taken from runs/one/mine" in capfd.readouterr().out
    cell = Path("runs/small/Random_10-labels_seed0")
    assert (cell / "first").resolve() == Path("runs/one/mine").resolve()
    shutil.rmtree("runs/one")
    main(["table", "small.yaml", "--rows", "Random", "--columns", "10 labels"])
    assert "first: select digits_random.yaml" in capfd.readouterr().out, "what was deleted is made again"
    assert not (cell / "first").resolve().is_symlink()


@pytest.mark.slow
def test_a_stage_of_another_version_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    write(seeds=[0])
    main(["table", "small.yaml", "--rows", "Random", "--columns", "10 labels"])
    record = Path("runs/small/Random_10-labels_seed0/first/stage.json")
    record.write_text(record.read_text().replace('"version": "', '"version": "0.0.'))
    with pytest.raises(SystemExit):
        main(["table", "small.yaml", "--rows", "Random", "--columns", "10 labels"])
    assert "was run by another version: version was 0.0." in capfd.readouterr().err


@pytest.mark.slow
def test_slurm_runs_each_stage_once(capfd: pytest.CaptureFixture[str]) -> None:
    write()
    main(["table", "small.yaml", "--slurm"])
    scripts = capfd.readouterr().out
    assert [line for line in scripts.splitlines() if line.startswith("# ----")] == [
        "# ---- step_1", "# ---- step_2, after step_1", "# ---- table, after step_1, step_2",
    ]  # fmt: skip
    assert "#SBATCH --array=0-1\n" in scripts
    assert "#SBATCH --array=0-7\n" in scripts
    run = TableRun.parse(["small.yaml", "--slurm"])
    assert not Path("runs").exists()
    levels = [[name for name in run.work() if name.startswith(step)] for step in ("first", "choose")]
    first, second, last = slurm.arrays("small", levels, run.folder, run.typed, "")
    assert (first.needs, second.needs, last.needs) == ((), ("step_1",), ("step_1", "step_2"))
    assert {first.after, second.after, last.after} == {"afterany"}, "one that fails takes no other with it"
    for job, names in ((first, levels[0]), (second, levels[1][:2])):
        listed = re.search(r"^stages=\((.*)\)$", job.script, re.M)
        assert listed
        assert listed[1].split()[: len(names)] == names
        (words,) = re.findall(r"^exec .+ -m usl_lightning\.cli table small\.yaml (.+)$", job.script, re.M)
        assert words.endswith(' "--only=${stages[$SLURM_ARRAY_TASK_ID]}"')
        for name in names:
            main(["table", "small.yaml", f"--only={name}"])
    results = {path.parent.name for path in (run.folder / "stages").glob("*/result.json")}
    assert results == {*levels[0], *levels[1][:2]}


@pytest.mark.slow
def test_a_killed_table_ends_like_another(here: Path) -> None:
    small = {
        "model.backbone": "small_w16",
        "trainer.max_steps": 4,
        "trainer.log_every_n_steps": 1,
        "data.batch_size": 64,
        "checkpoint.every_steps": 2,
    }
    write(
        seeds=[0],
        metric="knn_accuracy",
        stages=[{"name": "pretrain", "command": "fit", "config": "digits_simclr.yaml", "set": small}],
        rows={"A": None},
        columns={"x": None},
    )
    usl(here, "table", "small.yaml", "--name", "whole").done()
    ended = usl(here, "table", "small.yaml", "--name", "killed", "--out", "other", kill(3, stage="pretrain"))
    assert ended.code == 1
    assert "stage pretrain was killed by signal 9" in ended.out
    done = usl(here, "table", "small.yaml", "--name", "killed", "--out", "other").done()
    assert "pretrain: resuming digits_simclr.yaml" in done.out
    assert_same_run(here / "other/killed/A_x_seed0/pretrain", here / "runs/whole/A_x_seed0/pretrain")

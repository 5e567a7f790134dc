"""The site: it builds without a warning, asks the network for nothing, and its commands and facts are the code's."""

import ast
import csv
import dataclasses
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import sync_playwright

from usl_lightning.base.configs import find_config, names_of_all, shipped_folder
from usl_lightning.base.errors import UslError
from usl_lightning.base.typed import options
from usl_lightning.chain.file import Chain
from usl_lightning.chain.options import RunOptions
from usl_lightning.chain.table_spec import Table
from usl_lightning.cli import COMMANDS
from usl_lightning.compare.comparison import FIGURES
from usl_lightning.compare.spec import Comparison
from usl_lightning.engine.checkpoint_files import IDENTITY
from usl_lightning.labels import formats as label_files
from usl_lightning.models.encoder import ENTRY
from usl_lightning.selection.usl import PRESETS
from usl_lightning.stage.folder import StageFolder
from usl_lightning.stage.identity import TRAINER_FIELDS, flatten
from usl_lightning.stage.overview import Overview
from usl_lightning.stage.parser import StageCLI
from usl_lightning.stage.words import OPTIONS, StageCommand

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
MADE = {
    "photos.yaml": "folder_quickstart.yaml", "photos_2.yaml": "folder_quickstart.yaml",
    "CHAIN.yaml": "digits_quickstart.yaml",
    "digits_METHOD.yaml": "digits_simsiam.yaml",
}  # fmt: skip
"""Configurations that the pages let the reader write, and shipped ones like them."""

STAGES = ("fit", "validate", "test", "predict", "select", "propagate", "export", "views")


def commands() -> dict[str, str]:
    """Every command of a page that can be typed, and the page."""
    found = {}
    for page, text in PAGES.items():
        blocks = [line for block in re.findall(r"```bash[^\n]*\n(.*?)```", text, re.S) for line in block.splitlines()]
        inline = re.findall(r"`(usl [^`]+)`", text.replace("\n", " "))
        found |= {line.strip(): page for line in [*blocks, *inline] if line.strip().startswith("usl ")}
    return {line: page for line, page in found.items() if "…" not in line and _is_whole(line)}


def _is_whole(line: str) -> bool:
    """Not the mere mention of a command or of an option."""
    command, *rest = line.split()[1:]
    if command == "labels":
        return len(rest) > 2
    return "--config" in rest if command in STAGES else bool(rest) or command in ("doctor", "configs")


def config_of(name: str) -> str:
    """A shipped configuration in place of one that only a run or the reader makes."""
    resolved = re.fullmatch(r"runs/(\w+)/(\w+)/config\.yaml", name)
    if not resolved:
        return MADE.get(name, name)
    chain = MADE.get(f"{resolved[1]}.yaml", resolved[1])
    stages = {stage.name: stage for stage in Chain.read(find_config(chain)).stages}
    return stages[resolved[2]].config.name


def words_of(line: str) -> list[str]:
    """The words after `usl`, with configurations that exist."""
    return [config_of(word) for word in shlex.split(line, comments=True)[1:]]


def key_sets() -> dict[tuple[str, str], dict[str, str]]:
    """(command, configuration) -> every parameter that some page gives to that stage."""
    found: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for line in commands():
        command, *words = words_of(line)
        if command in STAGES:
            stage = StageCommand.parse("fit" if command == "views" else command, words)
            given = {k: v for k, v in stage.overrides.items() if k != "help" and (command, k) != ("views", "out")}
            found[stage.command, stage.configs[0].name] |= given
        elif command == "run":
            for each in RunOptions.parse(words).chain.stages:
                typed = {k: v if isinstance(v, str) else json.dumps(v) for k, v in each.set.items()}
                found[each.command, each.config.name] |= typed
    return found


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning fails."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


class Requests(HTMLParser):
    """What a browser fetches by itself when it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "link"):
            self.addresses += [str(given[name]) for name in ("src", "href") if given.get(name)]


def test_no_page_asks_the_network_for_anything(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) >= len(PAGES)
    for page in pages:
        parser = Requests()
        parser.feed(page.read_text(encoding="utf-8"))
        outside = [address for address in parser.addresses if re.match(r"(https?:)?//", address)]
        assert parser.addresses
        assert outside == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_the_search_works_on_pages_from_the_disk(site: Path) -> None:
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name in ("index.html", "how-to/own-images.html"):
            page = browser.new_page()
            page.set_default_timeout(120_000)
            page.goto((site / name).as_uri())
            page.locator(".md-search__input").first.click()
            page.keyboard.type("label propagation")
            found = page.locator(".md-search-result__link").first
            found.wait_for()
            assert Path(unquote(urlsplit(found.evaluate("link => link.href")).path)).is_file()
        browser.close()


def test_equations_are_mathml(site: Path) -> None:
    for name, text in PAGES.items():
        page = (site / name).with_suffix(".html").read_text(encoding="utf-8")
        prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S)
        blocks = prose.count("$$") // 2
        assert page.count('display="block"') == blocks, name
        assert "arithmatex" not in page, name
        if name.startswith("methods/") and "index" not in name:
            assert blocks or name == "methods/supervised.md"


def test_quoted_code_is_there(site: Path) -> None:
    page = (site / "how-to" / "add-a-method.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>", "", page)
    assert "@@" not in text
    assert "def negative_cosine(p: Tensor, z: Tensor)" in text
    assert "stop_gradient: bool = True," in text, "the head of the class"
    assert "usl_lightning.pretrain.simsiam.SimSiam" in text, "the configuration"


def test_pages_quote_commands() -> None:
    names = {shlex.split(line)[1] for line in commands()}
    assert set(COMMANDS) - {"validate", "views"} <= names
    assert names <= set(COMMANDS)


@pytest.mark.parametrize("line", [line for line in commands() if shlex.split(line)[1] not in (*STAGES, "run")])
def test_other_commands_parse(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, *words = words_of(line)
    for word in words:  # files that a command looks for at once
        if word.endswith((".ckpt", ".json")):
            (tmp_path / word).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / word).write_text("")
    monkeypatch.chdir(tmp_path)
    if command == "compare":
        assert Comparison.read(find_config(words[0]), dict(options(words[1:]))).selectors
    elif command == "table":
        given = [(key, value) for key, value in options(words[1:]) if not key.startswith(("slurm", "name"))]
        assert Table.read(find_config(words[0]), dict(given)).rows
    elif command == "labels" and words[0] in ("draw", "corrupt"):
        from usl_lightning.labelling.draw import OPTIONS as DRAWN

        assert {key for key, _ in options(words[2:])} <= set(DRAWN[words[0]])
    elif command == "labels" and words[0] in ("export", "import"):
        from usl_lightning.labelling.interchange import OPTIONS as KNOWN

        assert {key for key, _ in options(words[2 if words[0] == "export" else 3 :])} <= set(KNOWN[words[0]])
    elif command == "labels":
        from usl_lightning.labelling.sets import _parse

        assert _parse(words)
    elif command == "report":
        from usl_lightning.report.page import _parse as parse_report

        assert parse_report(words)
    elif command == "init":
        from usl_lightning.init.init import InitOptions

        assert InitOptions.parse(words).folder
    elif command == "label":
        from usl_lightning.labelling.label import LabelOptions

        monkeypatch.setattr("usl_lightning.labelling.label.label_file_in", lambda run: run / "labels.json")
        assert LabelOptions.parse(words).labels.suffix == ".json"
    elif command == "import":
        from usl_lightning.models.foreign import KINDS
        from usl_lightning.stage.weights_in import ImportOptions

        assert ImportOptions.parse(words).kind in KINDS
    elif command == "more":
        assert {key for key, _ in options(words[1:])} == {"budget"}
    elif command == "doctor":
        assert {key for key, _ in options(words)} <= {"data.dir", "out"}
    else:
        assert command == "configs", "a command that nothing here checks"


@pytest.mark.parametrize(("command", "config"), sorted(key_sets()))
def test_stages_take_the_parameters_that_pages_give(command: str, config: str) -> None:
    stage = StageCommand("fit" if command == "export" else command, [find_config(config)])
    stage.overrides = key_sets()[command, config]
    resolved = flatten(StageCLI(stage, build=False).resolved())
    for key in stage.overrides:
        assert any(f"{known}.".startswith(f"{key}.") for known in resolved), key


def test_a_misspelt_parameter_would_be_found() -> None:
    stage = StageCommand("fit", [find_config("digits_fixmatch.yaml")], {"model.treshold": "0.9"})
    with pytest.raises(UslError, match="treshold"):
        StageCLI(stage, build=False).resolved()


def test_configurations_that_pages_name_exist() -> None:
    own = {*MADE, "config.yaml", "FOLDER.yaml", "FILE.yaml", "METHOD.yaml"}
    own |= {path.name for path in (shipped_folder() / "parts").glob("*.yaml")}
    for page, text in PAGES.items():
        named = set(re.findall(r"\b(\w+\.yaml)\b", text)) - own
        assert named <= set(names_of_all()), page


def test_python_of_the_pages_is_valid_and_imports_what_there_is() -> None:
    blocks = [(page, block) for page, text in PAGES.items() for block in re.findall(r"```python\n(.*?)```", text, re.S)]
    assert blocks
    for page, block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                assert [name.name for name in node.names if not hasattr(module, name.name)] == [], page


def column(table: str) -> set[str]:
    """What stands as code in the first column of a Markdown table."""
    first = [row.split("|")[1] for row in table.splitlines() if row.startswith("|")]
    return {name for cell in first for name in re.findall(r"`([^`]+)`", cell)}


def section(page: str, heading: str) -> str:
    """The text below a heading, up to the next of its kind."""
    return PAGES[page].split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def test_formats_are_those_of_the_code(tmp_path: Path) -> None:
    assert column(section("formats.md", "Label index")) == set(label_files._KEYS)
    folder = StageFolder(tmp_path)
    folder.begin({"command": "fit"})
    folder.finish({"command": "fit"}, 1.0, {})
    assert column(section("formats.md", "stage.json")) == set(json.loads(folder.record_path.read_text()))
    text = section("formats.md", "stage.json")
    assert "`max_steps`" in text
    assert {"max_steps", "precision", "accumulate_grad_batches"} <= set(TRAINER_FIELDS)
    assert {IDENTITY, ENTRY} <= column(section("formats.md", "Checkpoints"))
    assert column(section("how-to/compare-selectors.md", "What the figures mean")) == set(FIGURES)
    assert set(OPTIONS["predict"]) == {"folder", "split", "out", "sort-into", "all-probabilities"}
    arrays = {field.name for field in dataclasses.fields(Overview)}
    assert arrays <= set(re.findall(r"`(\w+)`", section("formats.md", "overview.npz")))


def test_summary_is_described(tmp_path: Path) -> None:
    from usl_lightning.chain.summary import summarise

    run = RunOptions.parse(["digits_quickstart.yaml", "--out", str(tmp_path)])
    for stage in run.chain.stages:
        stage.set.pop("data.labels", None)
    named = column(section("formats.md", "summary.json"))
    assert set(summarise(run)) <= named
    written = ast.parse((ROOT / "usl_lightning" / "chain" / "summary.py").read_text())
    branch = next(node for node in written.body if isinstance(node, ast.FunctionDef) and node.name == "_branch")
    keys = next(node for node in ast.walk(branch) if isinstance(node, ast.Dict) and len(node.keys) > 3).keys
    assert {key.value for key in keys if isinstance(key, ast.Constant)} <= named


def test_presets_of_usl_are_those_of_the_code() -> None:
    rows = [row.split("|")[1:-1] for row in section("methods/usl.md", "Presets").splitlines() if row.startswith("| `")]
    assert len(rows) == len(PRESETS)
    for name, *cells in rows:
        preset = PRESETS[re.findall("`(.+)`", name)[0]]
        k, weight, alpha, momentum, iterations, horizon, nearest, own, kmeans = (cell.strip() for cell in cells)
        assert (int(k), float(weight), float(alpha), float(momentum)) == (
            preset.k, preset.weight, preset.alpha, preset.momentum,
        )  # fmt: skip
        assert (int(iterations), int(kmeans)) == (preset.iterations, preset.kmeans_iterations)
        assert (None if horizon == "none" else float(horizon)) == preset.horizon
        assert (None if nearest == "all" else int(nearest)) == preset.nearest
        assert (own == "excluded") == preset.exclude_same_cluster


@pytest.mark.parametrize(("dataset", "place"), [("digits", 0), ("fashion_mnist", 1)])
def test_figures_of_selectors_are_those_that_were_measured(dataset: str, place: int) -> None:
    measured: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    with open(ROOT / "tests/benchmarks/results" / f"selectors_{dataset}_table.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            figures = float(row["propagated_accuracy"]), float(row["classes_covered"])
            measured[row["selector"], row["budget"]].append(figures)
    text = PAGES["how-to/compare-selectors.md"].split("| labels |")[place + 1]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    budgets = text.splitlines()[0].replace(" ", "").strip("|").split("|")
    names = list(dict.fromkeys(selector for selector, _ in measured))
    assert len(cells) == len(names)
    for name, row in zip(names, cells, strict=True):
        for budget, cell in zip(budgets, row[1:], strict=True):
            accuracy, *covered = (float(number) for number in re.findall(r"[\d.]+", cell))
            means = [sum(column) / len(column) for column in zip(*measured[name, budget], strict=True)]
            assert accuracy == pytest.approx(means[0], abs=0.0051), name
            assert covered in ([], [pytest.approx(means[1], abs=0.051)]), name


def test_figures_are_those_that_were_measured() -> None:
    results = ROOT / "tests" / "benchmarks" / "results"
    told = {name: json.loads((results / f"digits_{name}.json").read_text()) for name in ("quickstart", "usl_fixmatch")}
    quick, paper = (told[name]["test_accuracy"] for name in told)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for text in (PAGES["tutorial.md"], readme):
        for figure in (quick["kmeansnearest"]["mean"], quick["kmeansnearest"]["sd"], quick["random"]["mean"]):
            assert f"{figure:.3f}" in text
        for branch in ("usl", "random"):
            assert f"{paper[branch]['mean']:.3f}" in text, branch
    assert told["quickstart"]["seed_and_threads"][0] == [0, 1], "the run that is shown"
    for branch in ("kmeansnearest", "random"):
        assert f"  {quick[branch]['seeds'][0]:.3f}  " in PAGES["tutorial.md"], branch


def test_ten_labels_of_digits_are_enough() -> None:
    """Whatever the seed and the number of threads."""
    measured = json.loads((ROOT / "tests/benchmarks/results/digits_quickstart.json").read_text())
    assert len(measured["seed_and_threads"]) == 10
    assert measured["test_accuracy"]["kmeansnearest"]["mean"] >= 0.945
    assert measured["test_accuracy"]["kmeansnearest"]["sd"] <= 0.012


FEATURES = {
    "SimCLR": "simclr", "MoCo v2": "moco", "SimSiam": "simsiam", "SeLa": "sela", "DeepCluster v2": "deepcluster",
    "DeepCluster v1": "deepcluster_v1", "CLD on NPID": "npid_cld", "CLD on MoCo": "moco_cld", "NPID": "npid",
    "BYOL": "byol", "MSF": "msf", "CMSF-2Q": "cmsf", "CMSF-KM": "cmsf_km", "SwAV": "swav", "VICReg": "vicreg",
    "DINO": "dino", "RotNet": "rotnet", "Relative patches": "relative_patch", "Jigsaw": "jigsaw", "PIRL": "pirl",
    "EfficientNet-Lite0's student": "taught", "Exemplar-CNN": "exemplar", "Counting": "counting", "CPC": "cpc",
    "OBoW": "obow", "Multi-task": "multi_task",
}  # fmt: skip
CLASSIFIERS = {
    "SimCLRv2's fine-tuning": "simclrv2", "Pseudo-label": "pseudo_label", "Π-model": "pi_model",
    "Mean Teacher": "mean_teacher", "EMAN-FixMatch": "eman", "CMSF-semi": "cmsf_semi", "Self-training": "self_training",
    "SimCLRv2's self-distillation": "simclrv2_distill",
}  # fmt: skip


def rows_of(text: str) -> dict[str, list[str]]:
    """First cell of each row of a table -> the others."""
    return {row.split("|")[1].strip(): row.split("|")[2:-1] for row in text.splitlines() if re.match(r"\| [^|\s]", row)}


def results_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "tests" / "benchmarks" / "results" / f"{name}.json").read_text())
    return found


def test_figures_of_stage_1_are_those_that_were_measured() -> None:
    features = results_of("pretrain_digits")
    table = rows_of(section("methods/index.md", "Measured on digits").partition("Stage 3 from")[0])
    known = {name: features["methods"][key][0] for name, key in FEATURES.items() if key in features["methods"]}
    known |= {"raw pixels": features["raw_pixels"], "a random network": features["random_network"]}
    assert table.keys() == known.keys()
    for name, figures in known.items():
        expected = [figures[key] for key in ("knn_accuracy", "probe_accuracy", "probe_1000_accuracy", "nmi")]
        assert [float(cell) for cell in table[name]] == pytest.approx(expected, abs=0.00051), name


@pytest.mark.parametrize(
    ("heading", "file"), [("digits", "semisup_digits"), ("Fashion-MNIST", "semisup_fashion_mnist")]
)
def test_figures_of_stage_3_are_those_that_were_measured(heading: str, file: str) -> None:
    methods = results_of(file)["methods"]
    table = rows_of(section("methods/index.md", f"Measured on {heading}").partition("Stage 3 from")[2])
    assert len(table) == len(methods)
    for name, (accuracy, error, seconds) in table.items():
        figures = methods[CLASSIFIERS.get(name, name.lower())]
        mean, deviation = (float(figure) for figure in accuracy.split("±"))
        told = [mean, deviation, float(error)]
        expected = [figures["mean"], stdev(figures["test_accuracy"]), fmean(figures["calibration_error"])]
        assert told == pytest.approx(expected, abs=0.00051), name
        assert float(seconds) == pytest.approx(fmean(figures["seconds"]), abs=0.51), name


def test_costs_of_methods_are_those_that_were_measured() -> None:
    measured = json.loads((ROOT / "tests/benchmarks/results/methods_throughput_b8.json").read_text())["rows"]
    heads, _, cells = (
        line for line in section("methods/index.md", "What a step costs").splitlines() if line.startswith("|")
    )
    names, costs = ([cell.strip() for cell in line.split("|")[1:-1]] for line in (heads, cells))
    assert set(names) == set(measured) - {"FixMatch"}
    assert [float(cost) for cost in costs] == pytest.approx([measured[n]["relative_cost"] for n in names], abs=0.0051)


def test_figures_of_own_images_are_those_that_were_measured() -> None:
    measured = json.loads((ROOT / "tests/benchmarks/results/own_images_emoji.json").read_text())
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{measured['images']:,} emoji" in text
    assert f"on {measured['new_images']} others" in text
    columns = ("init_and_run", "same_labels_logistic", "kmeans_labels_logistic", "random_labels_logistic")
    for budget, figures in measured["budgets"].items():
        cells = " | ".join(f"{figures[name]['mean']:.3f}" for name in columns)
        assert f"| {budget} | {cells} |" in text, budget
    accuracy, low, high = measured["budgets"]["32"]["estimated"][0]
    truth = measured["budgets"]["32"]["init_and_run"]["each"][0]
    said = " ".join(text.split())
    assert f"it says {accuracy:.2f} ({low:.2f} to {high:.2f}), and is right {truth:.2f} of the time" in said
    seconds = [run["processor_seconds"] for each in measured["budgets"].values() for run in each["by_usl_run"]]
    assert f"A run takes {min(seconds):.0f} to {max(seconds):.0f} seconds of one core" in said
    speeds = json.loads((ROOT / "tests/benchmarks/results/published_throughput.json").read_text())["networks"]
    assert f"a core computes {speeds['tf_efficientnet_lite0']['images_a_second']:.0f} a second" in said


def test_regret_of_selectors_is_what_was_measured() -> None:
    measured = json.loads((ROOT / "tests/benchmarks/results/selector_regret.json").read_text())["selectors"]
    text = section("how-to/compare-selectors.md", "Which one to trust")
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines() if row.startswith("| ")]
    by_budget = [f"mean_regret_{number}_a_class" for number in (1, 2, 4, 10)]
    assert {row[0] for row in rows[1:]} == set(measured)
    for name, *cells in rows[1:]:
        expected = [measured[name][key] for key in ("mean_regret", "worst_regret", *by_budget, "mean_gain_over_random")]
        assert [float(cell) for cell in cells] == pytest.approx(expected, abs=0.051), name
    best = min(measured, key=lambda name: measured[name]["mean_regret"])
    assert best == "k-means, moved", "the one that the chains of `usl init` take"
    assert measured[best]["mean_regret"] <= 1
    assert measured[best]["worst_regret"] <= 3
    assert measured[best]["least_gain_over_random"] > 0


def test_files_that_pages_name_are_there() -> None:
    """Of the repository, by their paths in it, in the package or in the benchmarks; `test_x.py` is the reader's own."""
    pattern = r"\b(?:tests|results|usl_lightning|pretrain|semisup|selection)/[\w/]+\.(?:py|json|png|csv)\b"
    named = {path for text in PAGES.values() for path in re.findall(pattern, text)} - {"tests/test_x.py"}
    places = (ROOT, ROOT / "usl_lightning", ROOT / "tests" / "benchmarks", ROOT / "docs" / "pictures")
    assert len(named) > 40
    assert [path for path in sorted(named) if not any((place / path).exists() for place in places)] == []


def test_tables_of_chains_are_as_measured() -> None:
    """The table that follows the name of a result of `usl table` has its rows and columns in order, and its figures."""
    checked = set()
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        for name in re.finditer(r"`tests/benchmarks/results/(\w+)\.json`", text):
            cells = json.loads((ROOT / f"tests/benchmarks/results/{name[1]}.json").read_text()).get("cells")
            if not isinstance(cells, list) or "column" not in cells[0]:
                continue
            table = re.search(r"(?:^\|.+\n)+", text[name.end() :], re.M)
            assert table, name[1]
            lines = [line.strip("| ").split(" | ")[1:] for line in table[0].splitlines()[2:]]
            rows = list(dict.fromkeys(cell["row"] for cell in cells))
            columns = list(dict.fromkeys(cell["column"] for cell in cells))
            assert [len(line) for line in lines] == [len(columns)] * len(rows), name[1]
            for cell in cells:
                shown = lines[rows.index(cell["row"])][columns.index(cell["column"])]
                known = [[f"{cell['mean']:.{n}f}", f"{cell['sd']:.{n}f}"] for n in (0, 1, 2)]
                found = shown.split(" ± ")
                assert any(found == each[: len(found)] for each in known), (name[1], cell["row"], cell["column"], shown)
            checked.add(name[1])
    assert {"digits_table", "fashion_mnist_table", "emoji_table"} < checked

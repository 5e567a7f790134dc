"""Every configuration that ships: found by looking, read, built, and described by its own header."""

import re
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from methods import command_of
from small_sets import small_sets

from usl_lightning.base.configs import HEADLINE, find_config, load_yaml, pairs, shipped, shipped_folder
from usl_lightning.base.errors import UslError
from usl_lightning.chain.file import REFERENCE, Chain
from usl_lightning.cli import main
from usl_lightning.compare.comparison import build_selector
from usl_lightning.compare.spec import Comparison
from usl_lightning.data.batch import ImageSpec
from usl_lightning.selection.kmeans_nearest import KMeansNearest
from usl_lightning.selection.selector import Selector
from usl_lightning.stage.parser import StageCLI
from usl_lightning.stage.words import StageCommand

ALL = sorted(shipped())
TABLES = [name for name in ALL if "columns" in load_yaml(shipped_folder() / name)]
CHAINS = [
    name for name in ALL if {"stages", "rounds"} & load_yaml(shipped_folder() / name).keys() and name not in TABLES
]
COMPARISONS = [name for name in ALL if "selectors" in load_yaml(shipped_folder() / name)]
STAGES = [name for name in ALL if name not in CHAINS + COMPARISONS + TABLES]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_sets(tmp_path_factory.mktemp("data"))


def build(command: str, config: str, data: Path, **overrides: str) -> StageCLI:
    """The stage with everything instantiated, on the small data."""
    flat = StageCommand(command, [find_config(config)]).flat()
    overrides.setdefault("data.dir", str(data))
    if flat["data.class_path"].endswith(("SemiSupervisedData", "LabelledData")):
        overrides.setdefault("data.labels", str(data / "labels.json"))
    if flat["data.dataset"] == "folder":
        overrides["data.dir"] = str(data / "photos")
    elif flat["data.dataset"] == "imagenet100":
        overrides.setdefault("data.class_list", str(data / "imagenet100.txt"))
    elif flat["data.dataset"] == "digits":
        del overrides["data.dir"]
    options = [f"--{key}={value}" for key, value in overrides.items()]
    return StageCLI(StageCommand.parse(command, ["--config", config, *options]))


def test_there_are_configurations() -> None:
    assert {"digits_quickstart.yaml", "fashion_mnist_quickstart.yaml"} <= set(CHAINS)
    assert {"cifar10_fixmatch.yaml", "cifar10_simclr.yaml", "digits_usl.yaml"} <= set(STAGES)


@pytest.mark.parametrize("name", ALL)
def test_header_says_what_it_is_and_its_command(name: str) -> None:
    first = (shipped_folder() / name).read_text().splitlines()[0]
    headline = HEADLINE.fullmatch(first[2:])
    assert headline, f"{name}: its first line must look like `# Stage 1 on CIFAR-10: what it is.`"
    assert len(first) <= 120
    assert (headline[1] == "Chain") == (name in CHAINS)
    assert shipped()[name] == first[2:]
    words = command_of(name)
    assert (headline[1] == "Table") == (name in TABLES)
    if name in TABLES:
        assert words[:3] == ["usl", "table", name]
    elif name in CHAINS:
        assert words[:3] == ["usl", "run", name]
    elif name in COMPARISONS:
        assert words[:3] == ["usl", "compare", name]
    else:
        stage = StageCommand.parse(words[1], words[2:])
        assert [path.name for path in stage.configs] == [name]
        assert stage.command in ("fit", "select")


@pytest.mark.parametrize("name", STAGES)
def test_stages_can_be_built(name: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USL_CACHE", str(data / "cache"))
    command = command_of(name)[1]
    cli = build(command, name, data)
    config = cli.resolved()
    assert isinstance(cli.model, Selector) == (command == "select")
    steps = config["trainer"]["max_steps"]
    assert not cli.model.by_steps or command == "select" or steps > 0, "how long it trains is part of the configuration"


@pytest.mark.parametrize("name", STAGES)
def test_needed_parameters_are_in_the_headers_command(name: str) -> None:
    """What a file leaves open, and its model or data cannot do without, its command shows."""
    words = command_of(name)
    flat = StageCommand.parse(words[1], words[2:]).flat()
    needs_labels = flat["data.class_path"].endswith(("SemiSupervisedData", "LabelledData"))
    assert not needs_labels or "data.labels" in flat
    needs_features = words[1] == "select" and not flat["model.class_path"].endswith(("Random", "Stratified"))
    assert not needs_features or "model.init_from" in flat


@pytest.mark.parametrize("name", CHAINS)
def test_every_stage_of_a_chain_can_be_built(name: str, data: Path) -> None:
    chain = Chain.read(shipped_folder() / name)
    assert chain.name == Path(name).stem
    built: set[str] = set()
    for stage in chain.stages:
        assert stage.config.name in (*STAGES, *pairs())
        overrides: dict[str, Any] = {
            key: REFERENCE.sub(str(data / "labels.json"), str(value)) for key, value in stage.set.items()
        }
        key = f"{stage.config}{overrides}"
        if key not in built:
            build(stage.command, stage.config.name, data, **overrides).resolved()
            built.add(key)


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_selector_of_a_comparison_can_be_built(name: str) -> None:
    comparison = Comparison.read(shipped_folder() / name, {"features.backbone": "resnet18"})
    for entry in comparison.selectors:
        (budget, *_) = comparison.budgets
        assert build_selector(entry, ImageSpec(1, 8, 8, (0.5,), (0.5,)), budget, name).budget == budget


def test_a_listing_of_one_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["configs", "digits_usl.yaml"])
    assert capsys.readouterr().err == "usl configs: takes nothing, got digits_usl.yaml\n"


def test_listing_names_every_file_under_its_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs"])
    *groups, where = capsys.readouterr().out.strip().split("\n\n")
    listed: dict[str, list[tuple[str, str]]] = {}
    for group in groups:
        dataset, *lines = group.partition("\n  without a file")[0].split("\n")
        assert dataset not in listed
        listed[dataset] = [(re.split(" {2,}", line)[2], re.split(" {2,}", line)[1]) for line in lines]
        for (kind, name), line in zip(listed[dataset], lines, strict=True):
            what = shipped()[name].removeprefix(f"{kind} on {dataset}: ")
            assert what != shipped()[name]
            assert line.endswith(f"  {what}")
        assert listed[dataset] == sorted(listed[dataset]), "chains first, then the stages in their order"
    assert sorted(name for group in listed.values() for _, name in group) == ALL
    assert all(name.removesuffix(".yaml") in "\n".join(groups) for name in pairs())
    assert str(shipped_folder()) in where


def test_headers_name_no_figure_without_its_source() -> None:
    """Published figures come with their paper; what was not measured says so."""
    for name in ALL:
        text = (shipped_folder() / name).read_text()
        header = " ".join(line[1:].strip() for line in text.splitlines() if line.startswith("#"))
        published = re.search(r"Published: (.+?\.) Measured here: ", header)
        assert published or "Published" not in header, name
        if published and re.search(r"\d%", published[1]):
            assert re.search(r"\(.*(\d{4}|notebook|torchvision).*\)", published[1]), name
        assert "Measured here: " in header or name.startswith("folder_"), name


def set_by(name: str, stage: str | None = None) -> dict[str, Any]:
    """What a configuration sets, or a chain for one of its stages: dotted keys."""
    path = find_config(name)
    if stage is None:
        return StageCommand("fit", [path]).flat()
    found = next(one for one in Chain.read(path).stages if one.name == stage)
    plain = {key: str(value) for key, value in found.set.items() if not REFERENCE.search(str(value))}
    return StageCommand(found.command, [found.config], plain).flat()


@pytest.mark.parametrize(
    ("name", "stage", "width"),
    [
        ("cifar10_usl_fixmatch.yaml", "train", 2),
        ("cifar10_uslt_fixmatch.yaml", "train", 2),
        ("cifar100_fixmatch.yaml", None, 8),
        ("bloodmnist_fixmatch.yaml", None, 2),
    ],
)
def test_the_usl_papers_fixmatch_is_the_implementation_that_it_ran(name: str, stage: str | None, width: int) -> None:
    """Its strong views, its network and its weight decay (appendix 6.12); FixMatch's own are in `cifar10_fixmatch`."""
    flat = set_by(name, stage)
    assert flat["model.strong.dialect"] == "fixmatch"
    assert flat["model.backbone"] == f"wrn_28_{width}_raw"
    assert flat["model.optimizer.weight_decay"] == 1e-3
    own = set_by("cifar10_fixmatch.yaml")
    assert own["model.backbone"] == "wrn_28_2"
    assert own.get("model.strong.dialect", "default") == "default"


def test_the_usl_papers_fixmatch_on_imagenet_is_that_of_eman() -> None:
    """A rate of 0.03, decay of 1e-4, 5 epochs of warm-up and drops at 30 and 40 of 50 (appendix 6.12.2)."""
    flat, epoch = set_by("imagenet_eman.yaml"), (1_281_167 - 12_820) // 320
    assert flat["model.class_path"].endswith(".EMANFixMatch")
    assert (flat["model.optimizer.lr"], flat["model.optimizer.weight_decay"]) == (0.03, 1e-4)
    assert (flat["trainer.max_steps"], flat["model.optimizer.warmup_steps"]) == (50 * epoch, 5 * epoch)
    assert (flat["model.optimizer.schedule"], flat["model.optimizer.milestones"]) == ("milestones", [30 / 50, 40 / 50])
    assert (flat["model.threshold"], flat["model.unlabelled_weight"], flat["data.unlabelled_ratio"]) == (0.7, 10.0, 5)
    assert not flat["model.optimizer.nesterov"]


def test_every_k_means_has_20_starts_but_that_of_a_papers_method() -> None:
    assert signature(KMeansNearest).parameters["restarts"].default == 20
    assert "model.restarts" not in {*set_by("folder_kmeans_nearest.yaml"), *set_by("cifar10_kmeans_nearest.yaml")}
    assert set_by("folder_usl.yaml")["model.kmeans_restarts"] == set_by("folder_typiclust.yaml")["model.restarts"] == 20
    for name in ("cifar10_usl.yaml", "digits_usl.yaml", "cifar10_typiclust.yaml"):
        assert not [key for key in set_by(name) if key.endswith("restarts")]


@pytest.mark.parametrize("method", ["fixmatch", "flexmatch"])
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "stl10", "svhn"])
def test_matching_has_its_authors_momentum(dataset: str, method: str) -> None:
    flat = set_by(f"{dataset}_{method}.yaml")
    assert flat["model.optimizer.nesterov"] is True
    assert method == "fixmatch" or flat["model.strong.dialect"] == "torchssl"


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "bloodmnist", "stl10"])
def test_the_usl_papers_fine_tuning_has_its_codes_view_and_mode(dataset: str) -> None:
    flat = set_by(f"{dataset}_simclrv2.yaml")
    assert flat["model.tuned"] == "linear"
    assert flat["model.train_mode_frozen"] is True
    assert flat["model.view.class_path"] == "usl_lightning.data.views.MoCoV2View"
    assert flat.get("model.view.blur", 0.5) == 0.5


def test_imagenets_self_labels_are_reassigned_as_in_the_published_code() -> None:
    for name in ("imagenet_sela.yaml", "imagenet100_sela.yaml"):
        assert set_by(name)["model.schedule"] == "quadratic"
    assert set_by("cifar10_sela.yaml")["model.schedule"] == "linear"


def test_files_are_found_here_then_beside_then_among_the_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "chain").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    name = STAGES[0]
    assert find_config(name) == find_config(Path(name).stem) == shipped_folder() / name
    Path(name).write_text("here")
    assert find_config(name).read_text() == "here"
    (tmp_path / "chain" / name).write_text("beside")
    assert find_config(name, beside=tmp_path / "chain").read_text() == "beside", "a chain's own files come first"
    with pytest.raises(UslError, match="no such configuration"):
        find_config(f"./sub/{name}")

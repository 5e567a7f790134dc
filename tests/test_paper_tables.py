"""The tables that ship: every cell means chains that can be run, and those of the papers are run, for two steps."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_sets import small_sets

from usl_lightning.base.configs import load_yaml, shipped, shipped_folder
from usl_lightning.chain.table import TableRun
from usl_lightning.cli import main

TABLES = [name for name in shipped() if "columns" in load_yaml(shipped_folder() / name)]
OURS = ("digits_", "fashion_mnist_", "folder_")
"""What the names of those begin with that are not as a paper has them."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_sets(tmp_path_factory.mktemp("data"))


def words(name: str, data: Path) -> list[str]:
    folder = data / "photos" if name.startswith("folder_") else data
    found = [name] if name.startswith("digits_") else [name, f"--data.dir={folder}"]
    return [*found, *([f"--data.class_list={data / 'imagenet100.txt'}"] if name.startswith("imagenet100") else [])]


def test_there_are_tables_of_the_papers_and_ours() -> None:
    assert {"digits_table.yaml", "fashion_mnist_table.yaml", "folder_table.yaml"} <= set(TABLES)
    assert {"cifar10_usl_table4.yaml", "cifar10_as3l_table1.yaml", "cifar10_usb_table.yaml"} <= set(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_every_cell_is_a_chain_that_can_be_run(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usl_lightning.stage.given.check_weights", lambda name: None)  # that they are here
    monkeypatch.setattr("usl_lightning.stage.possible.check_counts", lambda flat: None)  # sets of ten images
    given = [*words(name, data), "--seeds=[0]", f"--out={tmp_path}"]
    main(["table", *given, "--dry-run"])
    run = TableRun.parse(given)
    told = {(cell.pool[cell.metric[0]], cell.metric) for cell in run.cells}
    assert len(told) == len(run.cells), "no two cells are the same figure"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all tables are, so that they share their stages."""
    return tmp_path_factory.mktemp("runs")


def for_ten_images(name: str, stages: list[dict[str, Any]], row: str) -> list[str]:
    """Words that make every stage of a row two steps on ten images."""
    batch = 8 * (1 + name.startswith("imagenet"))  # MoCo's groups
    found = ["--trainer.max_steps=2", "--trainer.precision=32-true", f"--data.batch_size={batch}"]
    for stage in stages:
        of = f"--{stage['name']}.model"
        if stage["command"] == "fit" and (stage["name"] != "train" or not row.endswith("linear evaluation")):
            found.append(f"{of}.backbone=small_w16")
        elif stage["command"] == "fit":
            continue  # of the features that are there
        elif stage["command"] == "propagate":
            found.append(f"{of}.clusters=[8,10]")
        else:
            found.append(f"{of}.budget={2 if stage['name'] == 'first' else 4}")
        if stage["name"] == "cluster" or ("sela" in stage["config"] and row != "Instance"):
            found.append(f"{of}.clusters=4")
        if "cld" in stage["config"]:
            found.append(f"{of}.cld_clusters=4")
    found += ["--pretrain.model.clusters=4"] if row == "CMSF-KM" else []
    found += ["--pretrain.model.prototypes=4"] if row == "SwAV" else []
    found += ["--select.model.head=encoder", "--select.model.backbone=tf_efficientnet_lite0"] * (row == "USL-CLIP")
    return found + (["--select.model.followers=0"] if (name, row) == ("imagenet_usl_table7.yaml", "USL-T") else [])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TABLES if not name.startswith(OURS)])
def test_every_cell_runs(name: str, data: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps a stage, on a few images in each set's own format."""
    table = TableRun.parse([*words(name, data), "--seeds=[0]"]).table
    for row in (row.name for row in table.rows):
        given = [*words(name, data), *for_ten_images(name, table.stages, row), "--seeds=[0]", f"--rows=[{row!r}]"]
        main(["table", *given, f"--out={runs}"])
        written = json.loads((runs / name.removesuffix(".yaml") / "table.json").read_text(encoding="utf-8"))
        values = [cell["values"] for cell in written["cells"]]
        assert [len(each) for each in values] == [1] * len(table.columns), (name, row, written)

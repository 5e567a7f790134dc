"""The tables that ship: every cell means chains that can be run, and first and last are run, for two steps."""

from pathlib import Path

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


@pytest.mark.slow
def test_first_and_last_cells_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps a stage, on a few images in each set's own format; stages are shared by all tables."""
    monkeypatch.chdir(tmp_path)
    for name in TABLES:
        if name.startswith(OURS):
            continue
        table = TableRun.parse([*words(name, data), "--seeds=[0]"]).table
        small = [
            "--trainer.max_steps=2",
            "--trainer.precision=32-true",
            f"--data.batch_size={8 * (1 + name.startswith('imagenet'))}",
        ]  # MoCo's groups
        for stage in table.stages:
            if stage["command"] == "fit":
                small.append(f"--{stage['name']}.model.backbone=small_w16")
            elif stage["command"] == "propagate":
                small.append(f"--{stage['name']}.model.clusters=[8,10]")
            else:
                small.append(f"--{stage['name']}.model.budget={2 if stage['name'] == 'first' else 4}")
            if stage["name"] == "cluster":
                small.append("--cluster.model.clusters=4")
            if "cld" in stage["config"]:
                small.append(f"--{stage['name']}.model.cld_clusters=4")
        for place in (0, -1):
            row, column = table.rows[place].name, table.columns[place].name
            few = [f"--{each['name']}.model.clusters=4" for each in table.stages if "sela" in each["config"]]
            few = [] if row == "Instance" else few  # of ten images
            few += ["--pretrain.model.clusters=4"] if row == "CMSF-KM" else []
            few += ["--select.model.followers=0"] if (name, row) == ("imagenet_usl_table7.yaml", "USL-T") else []
            main(
                [
                    "table",
                    *words(name, data),
                    *small,
                    *few,
                    "--seeds=[0]",
                    f"--rows=[{row!r}]",
                    f"--columns=[{column!r}]",
                ]
            )
            written = Path("runs", name.removesuffix(".yaml"), "table.csv").read_text(encoding="utf-8")
            assert row in written, (name, row, column)

"""Faults that were reported or found by attack, each of which stands for its kind, and the test that has it since.

| kind | test |
|---|---|
| a stage of a chain whose `config:` is empty or a number | here, `ONE_LINERS` |
| a class list with a byte order mark | data/test_walk.py `test_class_lists` |
| a link to nothing, with `data.on_error: skip` | data/test_walk.py `test_it_is_refused_or_left_out` |
| Label Studio's choices under another name | labelling/test_interchange.py `test_one_choice_under_any_name` |
| two choices in one cell | labelling/test_interchange.py `test_what_could_be_taken_wrongly_changes_nothing` |
| marks of a missing label | test_label_tables.py `test_a_mark_of_no_label_is_no_class` |
| a `Pseudolabel` column | test_label_tables.py `test_pseudolabels_are_what_is_trained_with` |
| a k above the images there are | here, `test_k_is_told_as_used` |
| a text that looks like YAML | test_composition.py `test_a_text_is_taken_as_typed` |
| one number, spelled in two ways | test_composition.py `test_numbers_are_compared_as_numbers` |
| PostScript under the name of a picture | data/test_decode.py `test_nothing_starts_another_program` |
| hidden colours of transparent pixels | data/test_decode.py `test_transparency_is_laid_on_the_background` |
| splits called `valid`, `Train`, … | data/test_walk.py `test_splits_are_no_classes_whatever_they_are_called` |
| seeds out of range | test_ranges.py `test_seeds` |
| values that no method can mean | test_ranges.py `test_the_command_line_refuses_what_is_out_of_range` |
| names in two forms of Unicode | data/test_walk.py `test_names_meet_in_all_forms` |
| two classes that look the same | test_label_tables.py `test_what_looks_the_same_is_no_second_class` |
| a refusal after something was changed | here, `test_a_refused_label_command_changes_nothing` |
| a terminal that is not UTF-8 | here, `test_init_on_a_terminal_of_ascii` |
| a damaged line in metrics.csv | test_faults.py `test_damaged_metrics_block_no_resume_and_are_said` |
| pipes and mazes of links | test_init.py `test_pipes_mazes_and_links_to_nothing_are_survived` |
| a typo for a later stage | here, `test_a_typo_for_a_later_stage` |
| a key twice in YAML | here, `test_a_stage_that_is_set_twice` |
| links and modes of label files | here, `test_an_import_through_a_link` |
| a log that cannot be written | test_streams.py `test_finished_work_ends_well_though_nothing_can_be_said` |
| checkpoints of others | test_foreign_files.py `test_checkpoints_of_others_are_refused` |
| a report of the folder one is in | report/test_page.py `test_of_the_folder_one_is_in` |
| SLURM's variables without srun | test_slurm.py `test_without_srun_a_process_of_a_job_is_one` |
| `~` in any path | here, `test_home_is_home_in_every_path` |
| aliases without end | test_composition.py `test_aliases_end` |
| tracebacks of what a person can type | here, `ONE_LINERS` and `test_files_that_are_wrong` |
| a closed output | test_streams.py `test_no_file_takes_the_number_of_a_closed_output` |
"""

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import environment

from usl_lightning.base.errors import UslError
from usl_lightning.cli import main
from usl_lightning.data.images import catalog
from usl_lightning.pretrain.pretrain_module import PretrainModule

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("USL_CACHE", str(tmp_path / "cache"))
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a refusal; nothing is left behind."""
    before = sorted(os.listdir())
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    line = capsys.readouterr().err
    assert (stop.value.code, line.count("\n")) == (2, 1)
    assert sorted(os.listdir()) == before
    return line


def pictures(folder: Path, count: int) -> Path:
    """A folder of noise."""
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (10, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def labels(path: Path, **other: object) -> Path:
    """A label index of the digits without a label."""
    source = {"name": "digits", "split": "train", "size": 1437, "fingerprint": "sha256:" + "0" * 64}
    index = {"format": "usl-label-index", "version": 1, "dataset": source, "method": {"name": "random", "params": {}}}
    index |= {"indices": [5, 9], "labels": [None, None], "classes": [str(i) for i in range(10)], **other}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(index))
    return path


def test_every_kind_has_its_test() -> None:
    rows = re.findall(r"^\| (?!kind|--)(.+?) \| (?:here|(\S+\.py)),?(?: `(.+?)`)?", __doc__ or "", re.MULTILINE)
    assert len(rows) == 32
    for _, file, name in rows:
        tree = ast.parse((HERE / file if file else Path(__file__)).read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in (names | {"ONE_LINERS"}), f"{file}: {name}"


STAGE = "stages: [{name: a, command: fit, config: digits_simclr.yaml, set: "
ONE_LINERS = {
    "1: 2\nstages: []": "c.yaml",
    "on: 2\nstages: []": "c.yaml",
    "stages:\n  - name: select\n    command: select\n    config:\n": "'config' is",
    "stages: [{name: a, command: fit, config: }]": "'config' is",
    "stages: [{name: a, command: fit, config: 5}]": "5: no such configuration",
    STAGE + "{model.temperature: 2024-01-01}}]": "model.temperature: expected float, found 2024-01-01",
    STAGE + "{model.temperature: 2024-13-45}}]": "model.temperature: expected float, found 2024-13-45",
    STAGE
    + "{model.temperature: 1, model: {temperature: 2}}}]": "'set.model.temperature' is there twice, written in two",
    STAGE + "{model: {temperature: 1, init_args: {temperature: 2}}}}]": "'set.model.temperature' is there twice",
    STAGE + "&s {model.x: *s}}]": "contains itself",
}


@pytest.mark.parametrize("text", ONE_LINERS)
def test_chains_that_are_wrong(text: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "c.yaml").write_text(text)
    assert ONE_LINERS[text] in refused(capsys, "run", "c.yaml", "--dry-run")


CHAIN = "run digits_quickstart.yaml --dry-run"


@pytest.mark.parametrize(("words", "said"), [
    ([*CHAIN.split(), "--seed", "²"], "--seed: ² is no seed"),
    ([*CHAIN.split(), "--seed=--5"], "--seed: --5 is no seed"),
    ([*CHAIN.split(), "--launcher", "srun 'x"], "--launcher srun 'x: No closing quotation"),
    (["fit", "--config", "digits_simclr.yaml", "--model.temperature", "2024-13-45"], "expected float, found 2024-13-4"),
    (["run", "x" * 300], "xxx"),
    (["init", "~nosuchuser/x"], "~nosuchuser/x: no such folder"),
])  # fmt: skip
def test_words_that_are_wrong(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, *words)


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a.json", b'[{"data": null, "annotations": []}]', "labels import l.json a.json"),
    ("a.csv", b"index,label\n" + b"9" * 5000 + b",cat\n", "labels import l.json a.csv"),
    ("l.npy", b"PK\3\4x", "labels convert l.npy --out o.json"),
    ("e.npy", b"", "fit --config digits_sela.yaml --model.labels_file e.npy"),
    ("m.json", b'{"method": {"name": "\\ud800"}}', "labels union m.json m.json --out o.json"),
])  # fmt: skip
def test_files_that_are_wrong(
    name: str, content: bytes, words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels(here / "l.json")
    (here / name).write_bytes(content)
    assert name in refused(capsys, *words.split())


def test_a_typo_for_a_later_stage(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = "{name: pretrain, command: fit, config: digits_simclr.yaml}"
    second = "{name: train, command: fit, config: digits_supervised.yaml, set: {data.oracle_labels: true}}"
    (here / "c.yaml").write_text(f"stages: [{first}, {second}]\n")
    main(["run", "c.yaml", "--dry-run"])
    line = refused(capsys, "run", "c.yaml", "--dry-run", "--train.model.treshold", "0.9")
    assert line.startswith("usl: stage train: model.treshold: unknown key 'treshold'")


def test_a_stage_that_is_set_twice(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "c.yaml").write_text(
        "stages:\n  - name: train\n    command: fit\n    config: digits_supervised.yaml\n"
        "    set:\n      data.oracle_labels: true\n    set:\n      trainer.max_steps: 50\n"
    )
    assert "line 7: the key 'set' is there twice, first in line 5" in refused(capsys, "run", "c.yaml", "--dry-run")


def test_a_refused_label_command_changes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = labels(here / "l.json")
    before = path.read_bytes()
    refused(capsys, "label", "l.json", "--no-browser", "--classes", "tpyo", "--dir", "/no/such")
    assert path.read_bytes() == before


def test_an_import_through_a_link(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real, link = labels(here / "real" / "l.json"), here / "link" / "l.json"
    real.chmod(0o600)
    link.parent.mkdir()
    link.symlink_to("../real/l.json")
    (here / "a.csv").write_text("index,label\n5,3\n")
    main(["labels", "import", "link/l.json", "a.csv"])
    assert link.is_symlink()
    assert json.loads(real.read_text())["labels"] == [3, None]
    assert real.stat().st_mode & 0o777 == 0o600


def test_home_is_home_in_every_path(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here / "home"))
    labels(here / "home" / "l.json")
    main(["labels", "convert", "~/l.json", "--out", "~/o.csv"])
    words = ["select", "--config", "folder_random.yaml", "--data.dir=~/d", "--data.image_size=10", "--model.budget=3"]
    pictures(here / "home" / "d", 4)
    main([*words, "--run_dir=~/x"])
    assert sorted(os.listdir(here / "home")) == ["d", "l.json", "o.csv", "x"]
    assert not (here / "~").exists()


@pytest.mark.slow
def test_init_on_a_terminal_of_ascii(here: Path) -> None:
    pictures(here / "d", 12)
    words = [sys.executable, "-m", "usl_lightning.cli", "init", "d", "--classes", "3", "--minutes", "1"]
    done = subprocess.run(words, env=environment(PYTHONIOENCODING="ascii"), capture_output=True, check=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert done.stdout.isascii()
    assert (here / "d.yaml").exists()


def test_k_is_told_as_used() -> None:
    main([
        "fit", "--config=digits_simclr.yaml", "--model.knn_k=5000", "--model.backbone=small_w16", "--run_dir=r",
        "--trainer.max_steps=1", "--data.batch_size=8",
    ])  # fmt: skip
    assert json.loads(Path("r/result.json").read_text())["knn_k"] == 1437
    assert PretrainModule.ranges["knn_k"].problem(5000) is None


SMALL = ["--model.backbone=small_w16", "--trainer.max_steps=2", "--data.batch_size=8"]


def test_other_numbers_are_told_as_used(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def used(*words: str) -> tuple[dict[str, object], str]:
        main(["fit", *words])
        run_dir = next(word.partition("=")[2] for word in words if word.startswith("--run_dir="))
        return json.loads(Path(run_dir, "result.json").read_text()), capsys.readouterr().err

    result, said = used("--config=digits_sela.yaml", "--model.reassignments=80", *SMALL, "--run_dir=sela")
    assert result["reassignments"] == 2
    assert "SeLa: 2 reassignments instead of 80, of as many steps" in said
    checkpoint = "sela/checkpoints/last.ckpt"
    source = f"--data.neighbors_from={checkpoint}"
    result, said = used("--config=digits_uslt.yaml", source, "--data.k=5000", *SMALL, "--run_dir=uslt")
    assert result["k"] == 1436
    assert "neighbours: k = 1436 instead of 5000, for 1437 images" in said
    (here / "labels.json").write_text("[3, 50, 99, 200, 300]")
    source = f"--model.init_from={checkpoint}"
    result, said = used("--config=digits_probe.yaml", source, "--data.labels=labels.json", "--run_dir=probe")
    assert result["folds"] == 5
    assert "cross-validation: folds = 5 instead of 10, of as many labels" in said


def test_nearest_picks_are_told_as_used(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(here / "f.npy", np.random.default_rng(0).normal(size=(1437, 4)).astype(np.float32))
    words = ["select", "--config=digits_usl.yaml", "--model.features=f.npy", "--model.budget=20", "--run_dir=s"]
    main([*words, "--model.nearest=5000"])
    assert "USL: nearest = 20 instead of 5000, all picks that there are" in capsys.readouterr().err
    assert json.loads(Path("s/labels.json").read_text())["method"]["params"]["nearest"] == 20


def test_a_copy_elsewhere_is_not_taken_for_a_folder_that_is_not_there(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "system").mkdir()
    for name in catalog.ARRAY_SETS["fashion_mnist"].files["train"]:
        (here / "system" / name).write_bytes(b"")
    known = replace(catalog.ARRAY_SETS["fashion_mnist"], system=(str(here / "system"),))
    monkeypatch.setitem(catalog.ARRAY_SETS, "fashion_mnist", known)
    assert len(catalog.locate("fashion_mnist", "train")) == 1
    with pytest.raises(UslError, match=r"--data.dir no: no such folder; give that which holds the data sets"):
        catalog.locate("fashion_mnist", "train", "no")


@pytest.mark.parametrize(("words", "said"), [
    (["fit", "--config=digits_cmsf.yaml", "--model.bank_size=16", "--model.related=50", "--data.batch_size=16"],
     "model.related: 50 of a bank of 16 embeddings"),
    (["select", "--config=digits_probcover.yaml", "--model.features=f.npy", "--model.clusters=5000"],
     "model.clusters: 5000 for 1437 images; use at most 1437"),
])  # fmt: skip
def test_more_than_there_are_is_refused(
    words: list[str], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(here / "f.npy", np.random.default_rng(0).normal(size=(1437, 4)).astype(np.float32))
    assert said in refused(capsys, *words, "--model.backbone=small_w16" if words[0] == "fit" else "--run_dir=s")

"""Runs on shards are those on the folder of the same images, bit for bit, whoever reads them, also if killed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import assert_same_run, differing, kill, last_checkpoint, together, usl
from sharded import write_parquet, write_tar

from usl_lightning.stage.launch import run_stage
from usl_lightning.stage.words import StageCommand

DATA = "--data.dataset folder --data.image_size 8 --data.channels 1"
TINY = f"{DATA} --model.backbone small_w16 --trainer.accelerator cpu --data.batch_size 8 --trainer.log_every_n_steps 1"
SIMCLR = f"fit --config digits_simclr.yaml --model.hidden_dim 8 --trainer.max_steps 4 --checkpoint.every_steps 2 {TINY}"
FIXMATCH = f"fit --config digits_fixmatch.yaml --data.unlabelled_ratio 1 --trainer.max_steps 2 {TINY}"
SELECT = f"select --config digits_usl.yaml --model.budget 6 --model.k 3 --trainer.accelerator cpu {DATA}"
STREAM = "--data.residence stream --data.workers"

HERE = {"USL_CACHE": "cache"}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos`, and the same in `tars` and in `rows`; runs of four steps on each, those on shards killed after two."""
    folder = tmp_path_factory.mktemp("sharded")
    noise = np.random.default_rng(0)
    for file in (f"{split}/{name}/{i:02}.png" for split in ("train", "test") for name in "ab" for i in range(12)):
        (folder / "photos" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (12, 12), dtype=np.uint8)).save(folder / "photos" / file)
    for split in ("train", "test"):
        files = sorted((folder / "photos" / split).rglob("*.png"))
        content = {file.relative_to(folder / "photos" / split).as_posix(): file.read_bytes() for file in files}
        for number in range(3):
            write_tar(folder / "tars" / f"{split}-{number}.tar", dict([*content.items()][number::3]))
        labels = ["ab".index(name[0]) for name in content]
        write_parquet(folder / "rows" / f"{split}.parquet", [*content.values()], labels, names="ab", rows=5)

    def interrupted(name: str) -> None:
        words = (*SIMCLR.split(), "--data.dir", name, "--run_dir", f"{name}_simclr", *STREAM.split())
        usl(folder, *words, "2", kill(3), **HERE).killed()
        usl(folder, *words, "1", "--ckpt_path", "last", **HERE).done()

    straight = (*SIMCLR.split(), "--data.dir", "photos", "--run_dir", "photos_simclr", "--data.residence", "device")
    together(lambda: usl(folder, *straight, **HERE).done(), lambda: interrupted("tars"), lambda: interrupted("rows"))
    return folder


@pytest.fixture(autouse=True)
def inside(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own for every test, with the same in it."""
    monkeypatch.setenv("USL_CACHE", "cache")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(here, ".", symlinks=True, dirs_exist_ok=True)


def run(words: str) -> None:
    command, *rest = words.split()
    run_stage(StageCommand.parse(command, rest))


def test_a_killed_run_on_tars_is_the_one_on_the_folder() -> None:
    assert_same_run(Path("tars_simclr"), Path("photos_simclr"))


def test_a_killed_run_on_parquet_files_has_the_same_weights() -> None:
    """What the images are called is another thing, and so the data set is."""
    one, other = (last_checkpoint(Path(f"{name}_simclr")) for name in ("rows", "photos"))
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert differing(one[key], other[key]) == []


def test_a_run_on_the_folder_goes_on_with_its_tars_but_not_with_others() -> None:
    more = (*SIMCLR.replace("max_steps 4", "max_steps 6").split(), "--extend", "--ckpt_path", "last")
    usl(Path(), *more, "--data.dir", "tars", "--run_dir", "photos_simclr").done()
    Path("tars/train-1.tar").unlink()
    assert "data.files was other images" in usl(Path(), *more, "--data.dir", "tars", "--run_dir", "tars_simclr").mistake


def test_what_is_chosen_trained_and_predicted_is_the_same() -> None:
    for name in ("photos", "tars"):
        run(f"{SELECT} --data.dir {name} --model.init_from photos_simclr/checkpoints/last.ckpt --run_dir {name}_select")
        run(f"{FIXMATCH} --data.dir {name} --data.labels photos_select/labels.json --run_dir {name}_fixmatch")
        words = f"--folder {name} --out {name}.csv --sort-into {name}_sorted --ckpt_path last"
        run(f"predict --config {name}_fixmatch/config.yaml {words}")
    index = json.loads(Path("tars_select/labels.json").read_text())
    assert index == json.loads(Path("photos_select/labels.json").read_text())
    assert index["files"][0].startswith(("a/", "b/"))
    assert_same_run(Path("tars_fixmatch"), Path("photos_fixmatch"))
    assert Path("tars.csv").read_text() == Path("photos.csv").read_text()
    roots = Path("tars_sorted"), Path("photos_sorted")
    copies = [{file.relative_to(root): file.read_bytes() for file in root.rglob("*.png")} for root in roots]
    assert copies[0] == copies[1]
    assert len(copies[0]) == 48

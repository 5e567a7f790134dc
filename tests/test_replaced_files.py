"""A command writes over nothing but what it has written itself: not over a person's file, nor another command's."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from usl_lightning.base.atomic import check_replaceable
from usl_lightning.base.errors import UslError
from usl_lightning.cli import main
from usl_lightning.pictures.png import is_png_of, save_png
from usl_lightning.stage.export import export_classifier
from usl_lightning.stage.predict import predict

PRECIOUS = b"label,image,probability\n<title>of a person</title>\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(action: Callable[[], Any], path: Path) -> str:
    """What is said; the file is as it was."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(PRECIOUS)
    before = path.stat()
    with pytest.raises((UslError, SystemExit)) as stop:
        action()
    assert path.read_bytes() == PRECIOUS
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    path.unlink()
    return str(stop.value)


def predicted(out: str) -> None:
    cli = SimpleNamespace(
        datamodule=None, model=SimpleNamespace(image=None), stage=SimpleNamespace(options={"out": out}, run_dir=Path())
    )
    predict(cli, None, None, lambda: None, {})  # type: ignore[arg-type]


def test_what_looks_at_a_checkpoint(here: Path) -> None:
    for name in ("p.csv", "p_left_out.csv"):
        line = refused(lambda: predicted("p.csv"), here / name)
        assert (
            line
            == f"usl predict: --out: {name} is there already, and not by this command; choose another name or move it"
        )
    for name in ("m.pt2", "m.pt2.json"):
        assert name in refused(lambda: export_classifier(Path("none.ckpt"), Path("m.pt2")), here / name)


def test_its_own_predictions_are_replaced(here: Path) -> None:
    (here / "p.csv").write_text("image,label,probability\n1,a,0.5\n")
    (here / "p_left_out.csv").write_text("image,problem\n")
    with pytest.raises(AttributeError):  # gone on with
        predicted("p.csv")


COMMANDS = [
    ("compare digits_compare.yaml --features.backbone small_w16 --out d", "d/table.csv"),
    ("compare digits_compare.yaml --features.backbone small_w16 --out d", "d/comparison.png"),
    ("views --config digits_simclr.yaml --out v.png", "v.png"),
    ("labels union a.json a.json --out u.json", "u.json"),
    ("labels convert a.json --out u.csv", "u.csv"),
    ("init photos --output c.yaml", "c.yaml"),
    ("init photos --output c.yaml", "c_seen.png"),
    ("labels draw digits --share 0.1 --out s.json", "s.json"),
    ("labels export b.json --out e.csv", "e.csv"),
    ("labels export b.json --out e.json", "e.xml"),
    ("import a.pth --as moco --out i.ckpt", "i.ckpt"),
]


@pytest.mark.parametrize(("words", "name"), COMMANDS)
def test_commands(words: str, name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index_files(here)
    assert refused(lambda: main(words.split()), here / name) == "2"
    err = capsys.readouterr().err
    assert f"{name} is there already" in err or f"{name}: exists already" in err
    assert {path.name for path in here.iterdir()} <= {"a.json", "b.json", "d"}


@pytest.mark.parametrize(("words", "name"), COMMANDS)
def test_a_link_to_nothing_is_not_written_through(
    words: str, name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index_files(here)
    (here / name).parent.mkdir(exist_ok=True)
    (here / name).symlink_to(here / "others")
    with pytest.raises(SystemExit):
        main(words.split())
    err = capsys.readouterr().err
    assert f"{name} is there already" in err or f"{name}: exists already" in err
    assert (here / name).is_symlink()
    assert not (here / "others").exists()


def index_files(folder: Path) -> None:
    """One without and one with room for labels."""
    (folder / "a.json").write_text("[3]")
    data = {"name": "digits", "split": "train", "size": 1437, "fingerprint": f"sha256:{0:064}"}
    method = {"name": "usl", "seed": 0, "params": {}}
    index = {"format": "usl-label-index", "version": 1, "dataset": data, "method": method, "indices": [3]}
    (folder / "b.json").write_text(json.dumps({**index, "labels": [None], "classes": []}))


def test_a_picture_knows_its_command(here: Path) -> None:
    picture = Image.new("RGB", (8, 8))
    save_png(picture, "a.png", "usl views")
    save_png(picture, "b.png")
    for name, command, own in (("a", "usl views", True), ("a", "usl init", False), ("b", "usl views", False)):
        assert is_png_of(command, (here / f"{name}.png").read_bytes()) is own


def test_what_is_no_file_is_nobodys(here: Path) -> None:
    with pytest.raises(UslError, match=r"--out: \. is there already"):
        check_replaceable(Path("."), lambda _: True, "--out")
    with pytest.raises(UslError, match="--out: /dev/null is there already"):
        check_replaceable(Path("/dev/null"), lambda _: True, "--out")

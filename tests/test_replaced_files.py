"""A command writes over nothing but what it has written itself: not over a person's file, nor another command's."""

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


@pytest.mark.parametrize(("words", "name"), [
    ("compare digits_compare.yaml --features.backbone small_w16 --out d", "d/table.csv"),
    ("compare digits_compare.yaml --features.backbone small_w16 --out d", "d/comparison.png"),
    ("views --config digits_simclr.yaml --out v.png", "v.png"),
    ("labels union a.json a.json --out u.json", "u.json"),
    ("labels convert a.json --out u.csv", "u.csv"),
    ("init photos --output c.yaml", "c.yaml"),
    ("init photos --output c.yaml", "c_seen.png"),
])  # fmt: skip
def test_commands(words: str, name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "a.json").write_text("[3]")
    assert refused(lambda: main(words.split()), here / name) == "2"
    err = capsys.readouterr().err
    assert f"{name} is there already" in err or f"{name}: exists already" in err
    assert sorted(path.name for path in here.iterdir()) in (["a.json"], ["a.json", "d"])


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

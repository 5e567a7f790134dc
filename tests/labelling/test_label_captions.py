"""The picture of a selection says what people have answered, not what was known when it was drawn."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from own_images import Labelling, make_selection
from PIL import EpsImagePlugin, Image

from usl_lightning.chain.summary import draw_summary
from usl_lightning.cli import main
from usl_lightning.labelling.store import LabelStore
from usl_lightning.labels import LabelIndex
from usl_lightning.pictures.gallery import caption_strip, chosen_strip, summary_picture
from usl_lightning.stage.captions import captions, redraw_captions

IMAGES = torch.randint(0, 256, (12, 3, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
WORDS = ["cat", "a very long class name", "jpg", "?"] * 3


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """A selection of twelve, with its picture, and two answers given since."""
    labels = make_selection(tmp_path, 12)
    chosen_strip(IMAGES, captions(LabelIndex.read(labels)), labels.with_name("chosen.png"))
    store = LabelStore(labels)
    for name in ("cat", "dog"):
        store.add_class(name)
    first, second = store.read().indices[:2]
    store.answer(first, 1, None)
    store.answer(second, "unsure", None)
    return labels


def expected(folder: Path, labels: Path) -> bytes:
    """The picture as it would be drawn now."""
    words = captions(LabelIndex.read(labels))
    assert words[:3] == ["dog", "not sure", "?"]
    chosen_strip(IMAGES, words, folder / "expected.png")
    return (folder / "expected.png").read_bytes()


def test_what_was_added_is_in_no_picture(labels: Path, tmp_path: Path) -> None:
    store = LabelStore(labels)
    others = [image for image in range(60) if image not in store.read().indices]
    store.answer_row(others, 0, None, lambda image: (f"{image}.png", f"sha256:{image:064}"))
    redraw_captions(labels, store.read())
    assert labels.with_name("chosen.png").read_bytes() == expected(tmp_path, labels)


@pytest.mark.parametrize(("before", "after"), [(["?"] * 12, WORDS), (WORDS, ["?"] * 12), (WORDS, WORDS)])
def test_other_captions_are_as_if_drawn_anew(tmp_path: Path, before: list[str], after: list[str]) -> None:
    for columns in (5, 10, 20):
        chosen_strip(IMAGES, before, tmp_path / "a.png", columns=columns)
        chosen_strip(IMAGES, after, tmp_path / "b.png", columns=columns)
        caption_strip(tmp_path / "a.png", after, columns=columns)
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_picture_of_another_making_is_left_alone(labels: Path) -> None:
    picture = labels.with_name("chosen.png")
    size = Image.open(picture).size
    Image.new("RGB", size).save(picture)
    for content in (picture.read_bytes(), b"\x89PNG no picture", b""):
        picture.write_bytes(content)
        redraw_captions(labels, LabelIndex.read(labels))
        assert picture.read_bytes() == content
    picture.unlink()
    redraw_captions(labels, LabelIndex.read(labels))
    assert not picture.exists()


@pytest.mark.parametrize("kind", ["PostScript", "pipe", "damaged", "missing"])
def test_what_is_called_like_a_picture_is_opened_as_nothing_else(
    kind: str, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostScript would start Ghostscript, and a pipe be waited for."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("it was started"))
    picture = labels.with_name("chosen.png")
    content = picture.read_bytes()[:900]
    picture.unlink()
    if kind == "pipe":
        os.mkfifo(picture)
    elif kind != "missing":
        picture.write_bytes(POSTSCRIPT if kind == "PostScript" else content)
    redraw_captions(labels, LabelIndex.read(labels))
    summary_picture([{}], [picture], tmp_path / "summary.png")
    assert not (tmp_path / "summary.png").exists()


def test_the_server_leaves_the_picture_up_to_date(labels: Path, tmp_path: Path) -> None:
    running = Labelling(labels)
    running.process.send_signal(signal.SIGTERM)
    running.process.communicate(timeout=60)
    assert labels.with_name("chosen.png").read_bytes() == expected(tmp_path, labels)


def test_an_import_does(labels: Path, tmp_path: Path) -> None:
    index = LabelIndex.read(labels)
    (tmp_path / "a.csv").write_text(f"index,label\n{index.indices[3]},cat\n")
    main(["labels", "import", str(labels), str(tmp_path / "a.csv")])
    assert captions(LabelIndex.read(labels))[3] == "cat"
    assert labels.with_name("chosen.png").read_bytes() == expected(tmp_path, labels)


def test_the_summary_of_a_chain_shows_the_answers(labels: Path, tmp_path: Path) -> None:
    """Also if the server was killed, and the picture is the one that the selection drew."""
    result = {"labels": str(labels), "test_accuracy": 0.5, "budget": 12, "selection": "usl", "method": "fixmatch"}
    summary = {"results": [{**result, "classes_covered": 1, "class_counts": [0, 1]}]}
    run = SimpleNamespace(out=tmp_path, name="run")
    (tmp_path / "run").mkdir()
    draw_summary(run, summary)  # type: ignore[arg-type]
    assert labels.with_name("chosen.png").read_bytes() == expected(tmp_path, labels)
    sheet, strip = Image.open(tmp_path / "run/summary.png"), Image.open(tmp_path / "expected.png").convert("RGB")
    assert sheet.crop((6, 62, 6 + strip.width, 62 + strip.height)).tobytes() == strip.tobytes()

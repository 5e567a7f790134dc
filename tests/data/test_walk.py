"""Folders as people have them: pipes and links among the images, names of all kinds, splits called as they like."""

import logging
import os
import re
import socket
import tempfile
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from usl_lightning.base.errors import UslError
from usl_lightning.data.images import folders, splits, walk
from usl_lightning.data.images.folder_source import open_images
from usl_lightning.data.images.opening import has_split, open_source, read_labels
from usl_lightning.data.images.signature import data_signature
from usl_lightning.data.images.source import dataset_id
from usl_lightning.data.images.walk import UnreadableImageError, check_path, read_file
from usl_lightning.init.folder import inspect_folder
from usl_lightning.labels import LabelIndex

rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two good pictures."""
    return tree(tmp_path / "d", "1.png", "2.png")


def tree(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path, "PNG")
    return root


def refusal(root: Path, **options: object) -> str:
    """The one line of a refusal."""
    with pytest.raises(UslError) as error:
        open_source("folder", "train", dir=str(root), **options)
    assert str(error.value).isprintable()
    return str(error.value)


# what is called like an image and is none ----------------------------------------------------------------


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # its path may be too long
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


ODD = {
    "a link to nothing": lambda path: path.symlink_to("/nowhere/3.png"),
    "cannot be read (Too many levels": lambda path: path.symlink_to(path.name),
    "a named pipe": make_pipe,
    "a socket": make_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
    "a folder ": lambda path: tree(path, "inside.png"),
    "GB, more than an image has": lambda path: (path.touch(), os.truncate(path, 3 << 30)),
    "empty file": Path.touch,
}


@pytest.mark.parametrize("name", ["3.png", "a/b/3.JPG"])
@pytest.mark.parametrize("kind", ODD)
def test_it_is_refused_or_left_out(kind: str, name: str, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    tree(root, "a/b/4.png")
    good = tuple(sorted(["1.png", "2.png", "a/b/4.png"]))
    ODD[kind](root / name)
    line = refusal(root)
    assert line.startswith(f"{root}/{name}: ")
    assert kind.strip() in line
    assert "--data.on_error skip" in line
    source = open_source("folder", "train", dir=str(root), on_error="skip")
    assert (source.files, source.skipped) == (good, (name,))
    assert kind.strip() in source.problems[name]
    assert f"1 of 4 images cannot be read and are left out: {name}" in caplog.text
    assert open_images(str(root), image_size=8, channels=3, on_error="skip").files == good
    data_signature("folder", str(root))


def test_a_table_may_name_what_is_left_out(tmp_path: Path, root: Path, forbidden: set[str]) -> None:
    (root / "3.png").write_bytes(b"no image")
    (root / "4.png").symlink_to("nowhere")
    tree(root, "a/5.png")
    forbidden.add("a")
    table = tmp_path / "l.csv"
    table.write_text("file,label\n1.png,x\n3.png,y\n4.png,x\na/5.png,x\n")
    source = open_source("folder", "train", dir=str(root), on_error="skip", labels_file=str(table))
    assert (source.files, source.labels.tolist(), source.classes) == (("1.png", "2.png"), [0, -1], ("x", "y"))
    table.write_text("file,label\n6.png,x\n")
    assert "there is no image 6.png" in refusal(root, on_error="skip", labels_file=str(table))


def test_of_several_the_first_is_named_and_all_are_counted(root: Path) -> None:
    for i in range(3, 6):
        (root / f"{i}.png").symlink_to("/nowhere")
    assert refusal(root) == (
        f"{root}/3.png: a link to nothing, expected an image file (and 2 more like it); remove it or give"
        " --data.on_error skip"
    )


def test_nothing_that_can_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    make_pipe(tmp_path / "d" / "1.png")
    for on_error in ("fail", "skip"):
        line = refusal(tmp_path / "d", on_error=on_error)
        assert "no image in it" in line
        assert "1.png: a named pipe" in line


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Names that the system does not let be opened, also for who runs the tests as root."""
    names: set[str] = set()
    opened, scanned = os.open, os.scandir

    def refuse(path: str | Path) -> None:
        if os.path.basename(os.path.normpath(path)) in names:
            raise PermissionError(13, "Permission denied", os.fspath(path))

    monkeypatch.setattr(walk.os, "open", lambda path, *rest, **more: (refuse(path), opened(path, *rest, **more))[1])
    monkeypatch.setattr(walk.os, "scandir", lambda path=".": (refuse(path), scanned(path))[1])
    yield names
    names.clear()


def test_what_may_not_be_read_is_left_out_until_it_may(root: Path, forbidden: set[str]) -> None:
    tree(root, "a/3.png", "b/4.png")
    forbidden |= {"1.png", "a"}
    assert f"{root}/a: cannot be read (Permission denied)" in refusal(root)
    for _ in range(2):
        source = open_source("folder", "train", dir=str(root), on_error="skip")
        assert source.skipped == ("1.png", "a/")
    assert source.problems["1.png"] == "cannot be read (Permission denied)"
    forbidden -= {"1.png"}
    assert open_source("folder", "train", dir=str(root), on_error="skip").skipped == ("a/",)
    forbidden.clear()
    assert open_source("folder", "train", dir=str(root), on_error="skip").skipped == ()
    forbidden |= {"d"}
    assert "d: cannot be read (Permission denied)" in refusal(root, on_error="skip")


def test_damage_is_looked_for_once_beside_what_is_odd(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "3.png").write_bytes(b"no image")
    (root / "4.png").symlink_to(root / "5.png")
    options = {"dir": str(root), "on_error": "skip", "image_size": 8, "channels": 3}
    first = open_source("folder", "train", **options)
    assert first.problems == {
        "3.png": "not an image file, or damaged at its beginning",
        "4.png": "a link to nothing, expected an image file",
    }
    monkeypatch.setattr("usl_lightning.data.images.unreadable.decode", lambda *_: pytest.fail("decoded again"))
    assert open_source("folder", "train", **options).problems == first.problems


def test_a_kept_list_is_not_trusted_where_something_was_odd(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link may lead somewhere again, which no folder's time tells."""
    monkeypatch.setattr(folders, "_INDEXED", 1)
    (root / "3.png").symlink_to(root.parent / "3.png")
    os.utime(root, (1e9, 1e9))
    assert folders.scan(root).odd == (("3.png", "a link to nothing, expected an image file"),)
    tree(root.parent, "3.png")
    assert folders.scan(root).files == ("1.png", "2.png", "3.png")


def test_what_becomes_a_pipe_is_not_waited_for(root: Path) -> None:
    path = root / "1.png"
    assert read_file(path)[:4] == b"\x89PNG"
    path.unlink()
    make_pipe(path)
    with ThreadPoolExecutor(1) as pool, pytest.raises(UnreadableImageError, match=r"1\.png: a named pipe, expected an"):
        pool.submit(read_file, path).result(timeout=20)
    with pytest.raises(UnreadableImageError, match=r"none\.png: cannot be read \(No such file"):
        read_file(root / "none.png")
    assert read_file("/proc/self/maps") == b"", "of no size: it is not opened"


# links ---------------------------------------------------------------------------------------------------


def test_a_maze_of_links_ends_and_each_image_is_there_once(root: Path) -> None:
    for i in range(12):
        tree(root, f"s{i}/{i}.png")
    for i in range(12):
        for j in range(12):
            (root / f"s{i}" / f"l{j}").symlink_to(f"../s{j}")
    (root / "s0" / "up").symlink_to(root.parent)
    (root / "s0" / "top").symlink_to("/")
    expected = sorted(["1.png", "2.png", *(f"s{i}/{i}.png" for i in range(12))])
    assert list(folders.scan(root).files) == expected


def test_a_folder_is_in_its_own_place_before_links_to_it(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "z/1.png", "z/y/2.png")
    tree(tmp_path / "elsewhere", "3.png")
    (root / "a").symlink_to("z")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "z" / "again").symlink_to(tmp_path / "elsewhere")
    assert folders.scan(root).files == ("link/3.png", "z/1.png", "z/y/2.png")
    assert open_source("folder", "train", dir=str(root)).classes == ("link", "z")


def test_classes_of_the_test_images_are_those_of_training_whatever_links_there_are(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "train/a/1.png", "train/b/1.png", "test/b/1.png")
    (root / "train" / "0").symlink_to("..")
    (root / "train" / "c").symlink_to("a")
    (root / "train" / "d.png").symlink_to("a")
    for split in ("train", "test"):
        assert open_source("folder", split, dir=str(root), on_error="skip").classes == ("a", "b")


# names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a\nb.png", "a\tb.png", "\x1b[31m.png", "a\u2028b.png", "a\x85b.png", "x\ny/1.png"])
def test_a_name_that_cannot_be_shown_is_refused_when_the_folder_is_opened(name: str, root: Path) -> None:
    tree(root, name)
    assert "has the control character" in refusal(root)
    assert "has the control character" in refusal(root, on_error="skip")


def test_an_empty_folder_of_such_a_name_is_refused_too(root: Path) -> None:
    (root / "a\nb").mkdir()
    assert "has the control character" in refusal(root)


@pytest.mark.parametrize("name", ["a\\b.png", "C:.png", "c:x/1.png"])
def test_a_name_that_a_label_index_cannot_hold_is_refused_when_the_folder_is_opened(name: str, root: Path) -> None:
    tree(root, name)
    assert "rename it" in refusal(root)


@pytest.mark.parametrize("place", ["{}.png", "{}/1.png"])
def test_a_name_that_is_no_utf8(place: str, root: Path) -> None:
    path = os.fsencode(root) + b"/" + place.encode().replace(b"{}", b"\xff\xfe")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(b"x")
    assert "is not UTF-8; rename it" in refusal(root)


@given(st.lists(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=6), min_size=1, max_size=3))
def test_whatever_is_not_refused_a_label_index_can_hold(parts: list[str]) -> None:
    path = "/".join(parts)
    if {".", ".."} & set(parts):
        return
    line = ""
    try:
        check_path(path)
    except UslError as error:
        line = str(error)
    assert line.isprintable()
    if not line:
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", path)
        with tempfile.TemporaryDirectory() as folder:
            LabelIndex(None, {}, (0,), (None,), (), (path,)).write(f"{folder}/labels.csv")


def test_ordinary_names_of_all_scripts_are_taken(root: Path) -> None:
    names = [
        "Screenshot 3.04.05\u202fPM.png",
        "猫.png",
        "كلب.png",
        'a\'b "c" #1 & 2.png',
        "🐈\u200d⬛.png",
        "é.png",
        "=1.png",
    ]
    tree(root, *names)
    source = open_source("folder", "train", dir=str(root))
    assert set(names) < set(source.files)
    positions = tuple(range(len(source)))
    index = LabelIndex(dataset_id(source), {}, positions, (None,) * len(source), (), source.files)
    index.write(root.parent / "labels.json")
    read_labels(str(root.parent / "labels.json"), source)


# Unicode's forms -----------------------------------------------------------------------------------------


def forms(text: str) -> list[str]:
    return [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]


NAMES = ("été.png", "z.png", "ö/ä.png", "e.png")


def test_a_set_is_the_same_however_its_names_are_written(tmp_path: Path) -> None:
    sources = []
    for number, form in enumerate(("NFC", "NFD")):
        for i, name in enumerate(NAMES):
            path = tmp_path / str(number) / unicodedata.normalize(form, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (i, i, i)).save(path)
        sources.append(open_source("folder", "train", dir=str(tmp_path / str(number))))
    first, second = sources
    assert first.files != second.files
    assert (first.fingerprint, first.classes) == (second.fingerprint, second.classes)
    assert [unicodedata.normalize("NFC", file) for file in second.files] == list(first.files)
    assert torch.equal(first.read(torch.arange(4)), second.read(torch.arange(4)))
    assert data_signature("folder", str(tmp_path / "0")) == data_signature("folder", str(tmp_path / "1"))


@pytest.mark.parametrize("on_disk", [0, 1])
@pytest.mark.parametrize("typed", [0, 1])
def test_names_meet_in_all_forms(on_disk: int, typed: int, tmp_path: Path) -> None:
    file, folder = forms("été.png"), forms("café")
    root = tree(tmp_path / "d", file[on_disk], f"{folder[on_disk]}/1.png", "other/2.png")
    (tmp_path / "l.csv").write_text(f"file,label\n{file[typed]},a\n{folder[typed]}/1.png,{folder[typed]}\n")
    source = open_source("folder", "train", dir=str(root), labels_file=str(tmp_path / "l.csv"))
    assert source.classes == ("a", folder[0])
    assert sorted(source.labels.tolist()) == [-1, 0, 1]
    (tmp_path / "classes.txt").write_text(f"other\n{folder[typed]}\n")
    options = {"dir": str(root), "class_list": str(tmp_path / "classes.txt")}
    listed = open_source("folder", "train", **options)
    assert listed.classes == ("other", folder[0])
    assert [listed.labels[i] for i, name in enumerate(listed.files) if name.endswith("1.png")] == [1]
    assert open_source("folder", "train", dir=str(root)).classes == (folder[0], "other")


def test_splits_may_write_their_classes_in_two_forms(tmp_path: Path) -> None:
    composed, apart = forms("café")
    root = tree(tmp_path / "d", f"train/{composed}/1.png", "train/z/1.png", f"test/{apart}/1.png")
    test = open_source("folder", "test", dir=str(root))
    assert (test.classes, test.labels.tolist()) == ((composed, "z"), [0])


def test_two_class_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    composed, apart = forms("café")
    root = tree(tmp_path / "d", f"{composed}/1.png", f"{apart}/2.png")
    line = refusal(root)
    assert "are one name, written in two ways" in line
    assert "\\xe9" in line, "who reads it sees how they differ"
    tree(root, f"{apart}/1.png")
    assert "differ only by how their accents are written" in refusal(root, classes=["a"])


# class lists ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "known", "names"),
    [
        (b"\xef\xbb\xbfcat\r\ndog\r\n", (), ("cat", "dog")),
        (b"golden retriever\ncat\n", (), ("golden retriever", "cat")),
        (b"  golden retriever\t\r\n\r\n# old\n   # too\ncat", (), ("golden retriever", "cat")),
        (b"n01440764 tench\nn02119789 kit fox\n", (), ("n01440764", "n02119789")),
        (b"n01440764\ttench, Tinca tinca\n", ("n01440764",), ("n01440764",)),
        (b"cat Felis catus\ngolden retriever\n", ("cat", "golden retriever", "golden"), ("cat", "golden retriever")),
        ("cafe\u0301\n".encode(), (), ("caf\u00e9",)),
        (b"10\n8\n", (), ("10", "8")),
    ],
)
def test_class_lists(content: bytes, known: tuple[str, ...], names: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    assert splits.read_class_list(path, known) == names


@pytest.mark.parametrize(
    ("content", "part"),
    [(b"", "no class in it"), (b"# x\n", "no class in it"), (b"a b\nc\na b\r\n", "class a b is there twice"),
     ("caf\u00e9\ncafe\u0301".encode(), "is there twice"), ("a".encode("utf-16"), "cannot be read")],
)  # fmt: skip
def test_class_lists_that_are_refused(content: bytes, part: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    with pytest.raises(UslError, match=part):
        splits.read_class_list(path)


def test_classes_with_blanks_by_list(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "golden retriever/1.png", "golden/2.png", "cat/3.png")
    (tmp_path / "l.txt").write_bytes(b"\xef\xbb\xbfgolden retriever\r\ncat\r\n")
    source = open_source("folder", "train", dir=str(root), class_list=str(tmp_path / "l.txt"))
    assert source.classes == ("golden retriever", "cat")
    assert dict(zip(source.files, source.labels.tolist(), strict=True)) == {"cat/3.png": 1, "golden retriever/1.png": 0}
    (tmp_path / "l.csv").write_text("file,label\ncat/3.png,golden retriever\n")
    options = {"labels_file": str(tmp_path / "l.csv"), "class_list": str(tmp_path / "l.txt")}
    assert open_source("folder", "train", dir=str(root), **options).classes == ("golden retriever", "cat")


@pytest.mark.parametrize(("listed", "part"), [
    ("cat\nnot sure\n", "class 1: 'not sure' cannot be the name of a class"),
    ("cat\nc\u0430t\n", "the classes 'cat' and 'c\\u0430t' look the same"),
    ("cat\nd\u200bog\n", "class 1: a class needs a name that can be seen"),
])  # fmt: skip
def test_a_list_beside_a_table_names_what_can_be_classes(listed: str, part: str, tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "1.png")
    (tmp_path / "l.txt").write_text(listed, encoding="utf-8")
    (tmp_path / "l.csv").write_text("file,label\n1.png,cat\n")
    with pytest.raises(UslError, match=re.escape(part)):
        open_source(
            "folder", "train", dir=str(root), labels_file=str(tmp_path / "l.csv"), class_list=str(tmp_path / "l.txt")
        )


# splits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("above", ["", "export/", "a/b/"])
@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "valid"), ("train", "val"), ("train", "validation"), ("Train", "Test"), ("TRAIN", "VALID"),
     ("Training", "Testing"), ("train ", "test "), ("ｔrain", "Ｔest"), ("train", "test")],
)  # fmt: skip
def test_splits_are_no_classes_whatever_they_are_called(train: str, test: str, above: str, tmp_path: Path) -> None:
    root = tree(tmp_path / "d", f"{above}{train}/cat/1.png", f"{above}{train}/dog/2.png", f"{above}{test}/dog/3.png")
    (root / "README.txt").write_text("x")
    (root / "__MACOSX").mkdir()
    assert has_split("folder", "test", dir=str(root))
    training, measured = (open_source("folder", split, dir=str(root)) for split in ("train", "test"))
    assert training.classes == measured.classes == ("cat", "dog")
    assert (training.files, measured.files) == (("cat/1.png", "dog/2.png"), ("dog/3.png",))
    assert (training.labels.tolist(), measured.labels.tolist()) == ([0, 1], [1])
    (tmp_path / "l.csv").write_text(f"file,label\n{above}{train}/cat/1.png,x\n{above}{test}/dog/3.png,y\n")
    by_table = [open_source("folder", s, dir=str(root), labels_file=str(tmp_path / "l.csv")) for s in ("train", "test")]
    assert [source.labels.tolist() for source in by_table] == [[0, -1], [1]]


def test_a_test_folder_goes_before_a_validation_folder(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "train/1.png", "valid/2.png", "test/3.png")
    assert open_source("folder", "test", dir=str(root)).files == ("3.png",)
    assert open_source("folder", "val", dir=str(root)).files == ("2.png",)


def test_a_class_that_a_link_leads_to_in_vain_is_told(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "cat/1.png", "dog/2.png")
    (root / "owl").symlink_to("/nowhere/owl")
    assert "owl: a link to nothing, expected a folder of images; remove it or give" in refusal(root)
    assert open_source("folder", "train", dir=str(root), on_error="skip").classes == ("cat", "dog")


def test_a_folder_for_training_alone_is_no_class(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "Train/cat/1.png", "Train/dog/2.png")
    assert open_source("folder", "train", dir=str(root)).classes == ("cat", "dog")
    tree(root, "boat/3.png")
    assert open_source("folder", "train", dir=str(root)).classes == ("Train", "boat"), "vehicles"


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "train/1.png", "val/2.png", "valid/3.png")
    assert refusal(root) == f"{root}: val and valid are both the split 'val'; rename one"


def test_splits_below_a_class_are_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "images/train/1.png", "images/val/2.png", "more/3.png")
    line = refusal(root)
    assert "images is no class: it has the splits train, val" in line
    assert f"--data.dir ({root / 'images'})" in line
    assert open_source("folder", "train", dir=str(root), classes=["a"]).files[0] == "images/train/1.png"


@pytest.mark.parametrize("names", [
    ("train", "dev"), ("Train_set", "test_set"), ("training-data", "holdout"), ("my train", "my test"),
    ("images_train", "images_val"), ("trn", "tst"),
])  # fmt: skip
def test_splits_of_other_names_are_refused(names: tuple[str, str], tmp_path: Path) -> None:
    root = tree(tmp_path / "d", *(f"{name}/{kind}/1.png" for name in names for kind in ("cat", "dog")))
    assert f"{names[0]} and {names[1]} hold folders of the same names and are no classes" in refusal(root)


@pytest.mark.parametrize("files", [
    ("valid/cat/1.png", "valid/dog/1.png", "test/cat/1.png"),
    ("test/cat/1.png", "test/dog/1.png"),
    ("cat/1.png", "dog/1.png", "test/cat/1.png", "test/dog/1.png"),
    ("cat/1.png", "dog/1.png", "Train/dog/1.png"),
])  # fmt: skip
def test_a_split_without_the_one_to_train_on_is_refused(files: tuple[str, ...], tmp_path: Path) -> None:
    assert "is no class: it holds folders as a split does" in refusal(tree(tmp_path / "d", *files))


def test_strains_are_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [f"{strain}/{day}/1.png" for strain in ("strain a", "strain b") for day in ("1", "2")]
    assert open_source("folder", "train", dir=str(tree(tmp_path / "d", *files))).classes == ("strain a", "strain b")
    assert "its classes are strain a, strain b, and each holds folders of the same names (1, 2)" in caplog.text
    caplog.clear()
    tree(tmp_path / "d", "strain c/3/1.png")
    assert len(open_source("folder", "train", dir=str(tmp_path / "d")).classes) == 3
    assert caplog.text == ""


@pytest.mark.parametrize("name", walk.OF_SYSTEMS)
def test_what_a_system_keeps_for_itself_is_no_class(name: str, tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "cat/1.png", "dog/2.png", f"{name}/cat/1.png", f"cat/{name}/2.png")
    (root / name / "notes.txt").write_text("x")
    source = open_source("folder", "train", dir=str(root))
    assert (source.classes, source.files) == (("cat", "dog"), ("cat/1.png", "dog/2.png"))
    assert inspect_folder(root).others == {}


def test_a_class_may_be_called_train_and_hold_folders(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "bus/a/1.png", "bus/b/1.png", "train/a/1.png", "train/c/1.png", "van/images/1.png")
    assert open_source("folder", "train", dir=str(root)).classes == ("bus", "train", "van")


def test_images_beside_a_single_folder_keep_it_a_class(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "cat/1.png", "2.png")
    assert open_source("folder", "train", dir=str(root)).classes == ("cat",)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "only").symlink_to(".")
    with pytest.raises(UslError, match="no image in it"):
        open_source("folder", "train", dir=str(tmp_path / "e"))


def test_nothing_of_this_is_logged_for_a_good_folder(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    open_source("folder", "train", dir=str(root), on_error="skip")
    assert caplog.text == ""

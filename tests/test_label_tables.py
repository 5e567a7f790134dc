"""Tables of labels and names of classes: what is written in several ways is one class, what is none is no class."""

import json
import logging
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from usl_lightning.base.documents import guarded, unguarded
from usl_lightning.base.errors import UslError
from usl_lightning.data.images.folder_source import FolderSource
from usl_lightning.data.images.folders import FileList
from usl_lightning.data.images.opening import open_source, read_labels
from usl_lightning.data.images.source import ImageSource
from usl_lightning.labels import LabelIndex
from usl_lightning.labels.names import check_name, check_new, clean
from usl_lightning.labels.tables import label_cells, labels_in
from usl_lightning.stage.predict import Predictions, predictions_csv

E_ACUTE, DECOMPOSED = "\u00e9", "e\u0301"


def table(folder: Path, *rows: str, header: str = "file,label") -> Path:
    path = folder / "l.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def read(path: Path, known: tuple[str, ...] = ()) -> dict[str, str | None]:
    return labels_in(path, label_cells(path), known)


def pictures(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), number, np.uint8)).save(folder / name)
    return folder


def refused(path: Path, known: tuple[str, ...] = ()) -> str:
    with pytest.raises(UslError) as error:
        open_source("folder", "train", dir=str(path.parent / "d"), labels_file=str(path))
    text = str(error.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text


# marks of a missing label ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["-1", "-1.0", "nan", "NaN", "None", "null", "<NA>", "", "not sure", "Not Sure"])
def test_a_mark_of_no_label_is_no_class(tmp_path: Path, mark: str, caplog: pytest.LogCaptureFixture) -> None:
    path = table(tmp_path, "1.png,0", "2.png,1", f"3.png,{mark}")
    pictures(tmp_path / "d", "1.png", "2.png", "3.png")
    with caplog.at_level(logging.WARNING, "usl_lightning"):
        source = open_source("folder", "train", dir=str(tmp_path / "d"), labels_file=str(path))
    assert (source.classes, source.labels.tolist()) == (("0", "1"), [0, 1, -1])
    told = f"taken for no label: 1 × {mark}" in caplog.text
    assert told == (mark != "" and mark.casefold() != "not sure")


@pytest.mark.parametrize("mark", [
    "none", "NA", "n/a", "#N/A", "Nan", "NONE", "-2", "-1.5", "-10", "?", "-", "\\N", "unlabeled", "#NAME?",
    "\u22121", "\u2013", "\u2014", "\u2026", "...", "_", "/", "no_label", "No-Label", "not labelled", "unsure",
    "not_sure", "Notsure", "TODO", "(null)", "()", "[none]", "<not_sure>", "Skipped", "Not_Available",
    "#NV", "#WERT!", "#\u00a1VALOR!", "#N/D", "#SPILL!",
])  # fmt: skip
def test_what_may_be_a_mark_or_a_class_is_refused(tmp_path: Path, mark: str) -> None:
    path = table(tmp_path, "1.png,0", f"2.png,{mark}")
    pictures(tmp_path / "d", "1.png", "2.png")
    assert f"line 3: '{mark}' may mean 'no label', or be a class; leave the cell empty" in refused(path)


def test_a_class_list_says_that_it_is_a_class(tmp_path: Path) -> None:
    assert read(table(tmp_path, "1.png,none", "2.png,nan"), ("none", "nan")) == {
        "1.png": "none", "2.png": "nan",
    }  # fmt: skip


def test_whole_numbers_that_pandas_wrote_as_fractions(tmp_path: Path) -> None:
    assert set(read(table(tmp_path, "1.png,1.0", "2.png,10.0", "3.png,")).values()) == {"1", "10", None}
    assert set(read(table(tmp_path, "1.png,1.0", "2.png,1.5")).values()) == {"1.0", "1.5"}


# rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "part"), [
    (["1.png,a,b"], "line 2 has 3 cells, the first line 2"),
    (["1.png,a", "2.png,b,,c"], "line 3 has 4 cells"),
    (["1.png"], "line 2 has 1 values"),
    ([f"caf{E_ACUTE}.png,a", f"caf{DECOMPOSED}.png,a"], "line 3 names"),
    (["1.png,a\x1bb"], "line 2: a class needs a name that can be seen; 'a\\x1bb' has the control character '\\x1b'"),
    (["1.png,\u200b"], "line 2: a class needs a name"),
    (["1.png,a\u202eb"], "has the control character '\\u202e'"),
    (["1.png,cat", "2.png,Cat"], "would be two classes; settle on one, or name the classes with --data.class_list"),
    (["1.png,red fox", "2.png,red_fox"], "'red fox' and 'red_fox' would be two classes; settle on one"),
    (["1.png,T-shirt", "2.png,t shirt"], "'T-shirt' and 't shirt' would be two classes; settle on one"),
    (["1.png,cat", "2.png,'cat'"], "would be two classes; settle on one"),
    (["1.png,cat", "2.png,c\ufb01t", "3.png,cfit"], "would be two classes"),
    (["1.png,1", "2.png,01"], "would be two classes"),
    (["1.png,\uff43at", "2.png,cat"], "would be two classes"),
    (["1.png,\u2800cat", "2.png,cat"], "would be two classes"),
    (["1.png,c\u0430t", "2.png,cat"], "'c\\u0430t' and 'cat' would be two classes"),
    (["1.png,\u041d\u039f", "2.png,ho"], "would be two classes"),
    (["1.png,cat", "2.png,dog", "3.png,cat;dog"], "line 4: 'cat;dog' names several classes, expected one"),
    (["1.png,cat", "2.png,cat|"], "line 3: 'cat|' names several classes"),
    (["1.png,\"['cat']\""], "line 2: '['cat']' is a list, expected the name of one class"),
    (["1.png," + 5000 * "9"], "no image"),
])  # fmt: skip
def test_rows_that_mean_two_things_are_refused(tmp_path: Path, rows: list[str], part: str) -> None:
    pictures(tmp_path / "d", "0.png")
    assert part in refused(table(tmp_path, *rows))


@pytest.mark.parametrize("cell", [
    "a/b", "a & b", "a+b", "a and b", "a or b", "a:b", "a > b", "c;d", "c|d", '"a\nb"', "[a]", "{a}", '"(a,)"',
    "a\uff0cb", "a\u3001b", "c\uff1bd", "a\uff5cc", "a\u00b7b", "a\u2022b", "a - b", "a \u2013 b", "a -> b", "a vs b",
    "a\tb", "a and/or b", "a // b",
])  # fmt: skip
def test_several_classes_in_one_cell(tmp_path: Path, cell: str) -> None:
    path = table(tmp_path, "1.png,a", "2.png,b", f"3.png,{cell}")
    with pytest.raises(UslError, match=r"l\.csv: line [45]: .* expected (one|the name of one class)$"):
        read(path)


def test_a_name_with_a_stroke_is_a_name(tmp_path: Path) -> None:
    assert read(table(tmp_path, "1.png,salt/pepper", "2.png,salt", "3.png,R&B")) == {
        "1.png": "salt/pepper", "2.png": "salt", "3.png": "R&B",
    }  # fmt: skip


@pytest.mark.parametrize("told", ["sep=,\r\n", '"sep=,"\r\n', "\ufeffSEP=,\n", "Sep=,\r"])
def test_the_line_that_tells_excel_the_separator(tmp_path: Path, told: str) -> None:
    content = f"{told}file,label\r\n1.png,a\r\n2.png,none\r\n"
    (tmp_path / "l.csv").write_text(content, encoding="utf-8", newline="")
    with pytest.raises(UslError, match=r"line 4: 'none' may mean"):
        read(tmp_path / "l.csv")


def test_cells_that_a_spreadsheet_adds_are_left_out(tmp_path: Path) -> None:
    assert read(table(tmp_path, "1.png,a,,", ",,,", header="file,label,,")) == {"1.png": "a"}


def test_names_of_files_and_classes_in_any_form_of_unicode(tmp_path: Path) -> None:
    name = f"{E_ACUTE}t{E_ACUTE}.png"
    pictures(tmp_path / "d", unicodedata.normalize("NFD", name), f"x/caf{DECOMPOSED}.png")
    path = table(tmp_path, f"{name},caf{E_ACUTE}", f"x/caf{E_ACUTE}.png,caf{DECOMPOSED}")
    source = open_source("folder", "train", dir=str(tmp_path / "d"), labels_file=str(path))
    assert (source.classes, source.labels.tolist()) == ((f"caf{E_ACUTE}",), [0, 0])


def test_class_folders_in_decomposed_form_are_the_classes_of_a_composed_list(tmp_path: Path) -> None:
    pictures(tmp_path / "d", f"caf{DECOMPOSED}/1.png", "tea/1.png")
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + f"tea\r\ncaf{E_ACUTE}\r\n".encode())
    folders = open_source("folder", "train", dir=str(tmp_path / "d"))
    assert folders.classes == (f"caf{E_ACUTE}", "tea")
    listed = open_source("folder", "train", dir=str(tmp_path / "d"), class_list=str(tmp_path / "list.txt"))
    assert (listed.classes, listed.labels.tolist()) == (("tea", f"caf{E_ACUTE}"), [1, 0])


@pytest.mark.parametrize(("names", "part"), [
    ((f"caf{E_ACUTE}", f"caf{DECOMPOSED}"), "names a class twice"), (("a\x07b",), "control character"),
    (("not sure",), "class 0: 'not sure' cannot be the name of a class"),
    (("dog", "cat", "c\u0430t"), r"'cat' and 'c\u0430t' look the same; rename one"),
    (("ab", "a\u200db"), r"'ab' and 'a\u200db' look the same; rename one"),
])  # fmt: skip
def test_folders_that_no_class_can_be_called_by(tmp_path: Path, names: tuple[str, ...], part: str) -> None:
    pictures(tmp_path / "d", *[f"{name}/{i}.png" for i, name in enumerate(names)])
    with pytest.raises(UslError, match=f"{re.escape(part)}|written in two ways"):
        open_source("folder", "train", dir=str(tmp_path / "d"))
    pictures(tmp_path / "e", "1.png")
    with pytest.raises(UslError, match=re.escape(part)):
        open_source("folder", "train", dir=str(tmp_path / "e"), classes=list(names))


@pytest.mark.parametrize("name", ["no_label", "Unlabeled", "-1", "N.A.", "None", "[null]", "unsup"])
def test_a_folder_of_what_has_no_label_is_no_class_by_accident(tmp_path: Path, name: str) -> None:
    pictures(tmp_path / "d/train", "cat/1.png", "dog/2.png", f"{name}/3.png", "0.png")
    pictures(tmp_path / "d/test", "cat/4.png")
    for split in ("train", "test"):
        with pytest.raises(UslError, match="may hold images without a label, or be a class; put them beside the class"):
            open_source("folder", split, dir=str(tmp_path / "d"))
    (tmp_path / "list.txt").write_text(f"cat\ndog\n{name}\n")
    listed = open_source("folder", "train", dir=str(tmp_path / "d"), class_list=str(tmp_path / "list.txt"))
    assert listed.classes == ("cat", "dog", name)
    assert open_source("folder", "train", dir=str(tmp_path / "d"), classes=[]).labels.tolist() == [-1] * 4


@pytest.mark.parametrize("name", ["unknown", "other", "background", "nothing", "0"])
def test_a_folder_that_only_sounds_like_it_is_a_class(tmp_path: Path, name: str) -> None:
    pictures(tmp_path / "d", "cat/1.png", f"{name}/2.png")
    assert name in open_source("folder", "train", dir=str(tmp_path / "d")).classes


def test_classes_of_an_index_are_told_apart_by_eye(tmp_path: Path) -> None:
    source = {"name": "x", "split": "train", "size": 1, "fingerprint": "sha256:" + "0" * 64}
    index = {"format": "usl-label-index", "version": 1, "dataset": source, "method": {"name": "x"}, "indices": [0]}
    index |= {"labels": [0], "classes": ["p", "\u0440"]}
    (tmp_path / "l.json").write_text(json.dumps(index))
    with pytest.raises(UslError, match=r"'p' and '\\u0440' look the same; rename one"):
        LabelIndex.read(tmp_path / "l.json")


def test_blanks_around_a_class_folder_are_not_of_its_name(tmp_path: Path) -> None:
    pictures(tmp_path / "d", "cat /1.png", "golden  retriever/1.png")
    assert open_source("folder", "train", dir=str(tmp_path / "d")).classes == ("cat", "golden retriever")


def test_letters_of_both_cases_are_classes(tmp_path: Path) -> None:
    pictures(tmp_path / "d", "upper/1.png", "lower/1.png")
    names = ["p", "P", "\u03c6", "\u03a6"]
    assert open_source("folder", "train", dir=str(tmp_path / "d"), classes=names).classes == tuple(names)


# names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0915\u094d\u200d\u0937", "\U0001f469\u200d\U0001f52c",
    "a.b-c (d)", "\u732b", "A", "x'y",
])  # fmt: skip
def test_names_of_any_language(name: str) -> None:
    check_name(name)
    assert clean(name) == name


@pytest.mark.parametrize("other", [
    "Cat", "c\u200dat", "cat\u200c", "\uff23\uff21\uff34", "ca\u034ft", "cat\ufe0f", "\u3164cat",
    '"cat"', "'Cat'", "\u201ccat\u201d", "[cat]", "cat.", "cat ;",
])  # fmt: skip
def test_what_looks_the_same_is_no_second_class(other: str) -> None:
    with pytest.raises(UslError, match=r"(its case only|looks like the class 'cat').*; use that one"):
        check_new(clean(other), ["dog", "cat"])


# formulas --------------------------------------------------------------------------------------------------


@given(st.text(alphabet="'=+-@\t\ra1 ") | st.text())
def test_a_guarded_cell_is_no_formula_and_comes_back_exactly(cell: str) -> None:
    assert guarded(cell)[:1] not in tuple("=+-@\t\r")
    assert unguarded(guarded(cell)) == cell
    assert guarded(cell) in (cell, f"'{cell}")


def test_an_index_in_csv_has_no_formula_either(tmp_path: Path) -> None:
    files = ("=1+1.png", "-a.png", "'b.png", "'=c.png")
    index = LabelIndex(None, {}, (0, 1, 2, 3), (None,) * 4, (), files)
    index.write(tmp_path / "x.csv")
    assert "'=1+1.png" in (tmp_path / "x.csv").read_text()
    assert LabelIndex.read(tmp_path / "x.csv").files == files


def test_predictions_hold_no_formula() -> None:
    files = FileList(Path("d"), ("=1.png", "b.png"), (1, 1), {})
    source = FolderSource(files, torch.tensor([-1, -1]), name="folder", split="all", image_size=4, channels=1)
    text = predictions_csv(source, Predictions(torch.tensor([0, 1]), torch.tensor([0.5, 1.0])), ["@x", "-cat"])
    assert text == "image,label,probability\n'=1.png,'@x,0.500000\nb.png,'-cat,1.000000\n"


# Index,ImageID,Pseudolabel ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> ImageSource:
    return open_source("digits", "train")


@pytest.mark.parametrize("header", ["Index,ImageID,Pseudolabel", " Index, ImageID , Pseudolabel,", "Index,Pseudolabel"])
def test_pseudolabels_are_what_is_trained_with(tmp_path: Path, header: str, digits: ImageSource) -> None:
    bought = [(int(digits.labels[i]) + 1) % 10 for i in (5, 0, 7)]
    middle = "{i}," if "ImageID" in header else ""
    rows = [f"{i},{middle.format(i=i)}{label}" for i, label in zip((5, 0, 7), bought, strict=True)]
    path = table(tmp_path, *rows, header=header)
    index = read_labels(str(path), digits)
    assert index.for_training() == ([5, 0, 7], bought)
    assert index.classes == digits.classes
    assert not index.plain
    LabelIndex.read(path).write(tmp_path / "again.csv")
    assert read_labels(str(tmp_path / "again.csv"), digits).labels == index.labels


@pytest.mark.parametrize(("row", "part"), [
    ("1,1,", "entry 0: Pseudolabel \"\" is no class number; leave out rows without one"),
    ("1,1,-1", 'Pseudolabel "-1"'), ("1,1,nan", 'Pseudolabel "nan"'), ("1,1,cat", 'Pseudolabel "cat"'),
    ("1,1,1.5", 'Pseudolabel "1.5"'), ("1,1", "is not Index,ImageID,Pseudolabel"), ("1,1,1,1", "has 4 cells"),
    ("1,1,10", "label 10 is out of range"), ("1,1," + 30 * "9", "is no class number"), (5000 * "9" + ",1,1", "entry 0"),
])  # fmt: skip
def test_wrong_pseudolabels(tmp_path: Path, row: str, part: str, digits: ImageSource) -> None:
    path = table(tmp_path, row, header="Index,ImageID,Pseudolabel")
    with pytest.raises(UslError, match=re.escape(part)) as error:
        read_labels(str(path), digits)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("header", ["Index,ImageID,Label", "Index,ImageID,Pseudolabel,Score", "Index,Image", "ImageID"])
def test_columns_that_mean_nothing_are_refused(tmp_path: Path, header: str) -> None:
    with pytest.raises(UslError, match="expected Index,ImageID, and perhaps Pseudolabel"):
        LabelIndex.read(table(tmp_path, ",".join("1" for _ in header.split(",")), header=header))


def test_pseudolabels_of_images_whose_classes_nobody_named(tmp_path: Path) -> None:
    source = open_source("folder", "train", dir=str(pictures(tmp_path / "d", "1.png", "2.png")), classes=[])
    index = read_labels(str(table(tmp_path, "1,2.png,2", header="Index,ImageID,Pseudolabel")), source)
    assert (index.for_training(), index.classes) == (([1], [2]), ("0", "1", "2"))


def test_pseudolabels_are_not_written_where_they_would_be_lost(tmp_path: Path) -> None:
    index = LabelIndex.read(table(tmp_path, "1,1,3", header="Index,ImageID,Pseudolabel"))
    with pytest.raises(UslError, match="labels cannot be written without a data set"):
        index.write(tmp_path / "x.json")

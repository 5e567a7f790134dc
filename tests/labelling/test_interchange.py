"""Labels for and from Label Studio and spreadsheets, there and back."""

import csv
import json
import logging
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from own_images import make_selection, quarter

from usl_lightning.cli import main
from usl_lightning.labelling import interchange
from usl_lightning.labelling.answers import read_answers
from usl_lightning.labelling.interchange import label_studio_setup
from usl_lightning.labelling.store import LabelStore, answers_of

ANSWERS = [0, 1, "unsure", None, 1]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LabelStore:
    """Five images, four of them answered; the current folder is empty but for them."""
    store = LabelStore(make_selection(tmp_path, 5))
    for name in ("cat", 'a "<dog>", or so'):
        store.add_class(name)
    for image, answer in zip(store.read().indices, ANSWERS, strict=True):
        store.answer(image, answer, None)
    monkeypatch.chdir(tmp_path)
    return store


def forget(store: LabelStore) -> None:
    store.merge(dict.fromkeys(store.read().indices), store.read().classes)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["labels", *words])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("name", ["out.csv", "out.json"])
def test_there_and_back(store: LabelStore, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["labels", "export", str(store.path), "--out", name])
    forget(store)
    assert store.read().unlabelled == 5
    main(["labels", "import", str(store.path), name])
    assert list(answers_of(store.read()).values()) == ANSWERS
    assert capsys.readouterr().out.endswith("labels.json: 4 answers; 1 image to label\n")


def test_the_tasks_are_label_studios(store: LabelStore) -> None:
    main(["labels", "export", str(store.path), "--out", "t.json", "--prefix", "https://images.example/"])
    tasks, index = json.loads(Path("t.json").read_text()), store.read()
    assert [task["data"]["index"] for task in tasks] == list(index.indices)
    assert tasks[0]["data"]["image"] == f"https://images.example/{(index.files or ())[0]}"
    assert tasks[0]["annotations"][0]["result"] == [
        {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}}
    ]
    assert "annotations" not in tasks[3]
    setup = ElementTree.fromstring(Path("t.xml").read_text())
    choices = setup.find("Choices")
    assert choices is not None
    assert [choice.get("value") for choice in choices] == ["cat", 'a "<dog>", or so', "not sure"]
    assert (
        label_studio_setup(["x"])
        == ElementTree.tostring(ElementTree.fromstring(label_studio_setup(["x"])), encoding="unicode").replace(
            " />", "/>"
        )
        + "\n"
    )


def annotated(task: dict[str, Any], *names: str, **more: Any) -> dict[str, Any]:
    """A task as Label Studio exports it."""
    result = [{"id": "x", "from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": [*names]}}]
    return {"id": 7, "data": task, "annotations": [{"id": 3, "result": result, "was_cancelled": False, **more}]}


def test_drafts_that_nobody_submitted_are_told(store: LabelStore, caplog: pytest.LogCaptureFixture) -> None:
    forget(store)
    result = [{"type": "choices", "from_name": "label", "value": {"choices": ["cat"]}}]
    tasks: list[Any] = [{"data": {"index": image}, "drafts": [{"result": result}]} for image in store.read().indices]
    tasks[0]["annotations"] = [{"result": result}]
    Path("a.json").write_text(json.dumps(tasks))
    assert len(read_answers(Path("a.json"), store.read())) == 1
    assert "a.json: passed over 4 drafts, which nobody has submitted" in caplog.text


def test_an_export_that_was_killed_is_repeated(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its two files, too; a set-up that is another's is left alone."""
    written = interchange.write_text

    def interrupt(path: Path, text: str) -> None:
        written(path, text)
        raise KeyboardInterrupt

    monkeypatch.setattr(interchange, "write_text", interrupt)
    words = ["labels", "export", str(store.path), "--out", "t.json"]
    with pytest.raises(SystemExit):
        main(words)
    monkeypatch.setattr(interchange, "write_text", written)
    main(words)
    assert len(json.loads(Path("t.json").read_text())) == 5
    Path("t.json").unlink()
    Path("t.xml").write_text("<View/>")
    with pytest.raises(SystemExit):
        main(words)
    assert Path("t.xml").read_text() == "<View/>"


def test_label_studios_exports_are_read(store: LabelStore, capsys: pytest.CaptureFixture[str]) -> None:
    forget(store)
    images, files = store.read().indices, store.read().files or ()
    full = [
        annotated({"image": "x", "index": images[0]}, "cat"),
        annotated({"image": "x", "file": files[1]}, "bird"),
        annotated({"image": "x", "index": images[2]}, "cat", was_cancelled=True),
        {"id": 9, "data": {"index": images[3]}, "annotations": []},
        annotated({"image": "x", "index": images[4]}, "Not sure"),
    ]
    Path("full.json").write_text(json.dumps(full))
    main(["labels", "import", str(store.path), "full.json"])
    assert list(answers_of(store.read()).values()) == [0, 2, None, None, "unsure"]
    assert "3 answers; new classes: bird; 2 images to label" in capsys.readouterr().out

    small = [{"id": 1, "index": images[0], "label": "bird"}, {"id": 2, "file": files[2], "label": {"choices": ["cat"]}}]
    Path("min.json").write_text(json.dumps(small))
    main(["labels", "import", str(store.path), "min.json"])
    assert list(answers_of(store.read()).values()) == [2, 2, 0, None, "unsure"]
    assert "2 answers, 1 other than before; 1 image to label" in capsys.readouterr().out

    Path("ls.csv").write_text(f"annotation_id,annotator,file,label\n1,1,{files[3]},cat\n")
    main(["labels", "import", str(store.path), "ls.csv"])
    assert store.read().unlabelled == 0


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_spreadsheet_may_write_other_separators(store: LabelStore, separator: str) -> None:
    main(["labels", "export", str(store.path), "--out", "out.csv"])
    forget(store)
    lines = Path("out.csv").read_text().splitlines()
    rows = [separator.join(row) for row in csv.reader(lines) if "or so" not in row[2]]
    Path("out.csv").write_text("\r\n".join(rows), encoding="utf-8-sig")
    main(["labels", "import", str(store.path), "out.csv"])
    assert list(answers_of(store.read()).values()) == [0, None, "unsure", None, None]


@pytest.mark.parametrize(("name", "content", "part"), [
    ("a.txt", "", "a.txt: expected Label Studio's export"),
    ("a.json", "{", "a.json: not JSON"),
    ("a.json", "{}", "a.json: not Label Studio's export; expected a list of tasks"),
    ("a.json", '[{"data": {"index": FIRST}, "annotations": [{"result": [{"type": "choices"}]}]}]', "entry 0: "),
    ("a.json", '[{"index": FIRST, "label": {"choices": ["a", "b"]}}]', "entry 0: "),
    ("a.json", '[{"index": 1000, "label": "a"}]', "entry 0: index 1000, file null: not one of the images to label"),
    ("a.json", '[{"image": "x.png", "label": "a"}]', "not one of the images to label"),
    ("a.json", '[{"index": FIRST, "file": "other.png", "label": "a"}]', 'index FIRST is "other.png" there, but'),
    ("a.csv", "index,class\n1,cat\n", 'a.csv: its columns are "index,class"; expected index, file, label'),
    ("a.csv", "", "a.csv: its columns are"),
    ("a.csv", "index,label\nFIRST,K\udce4fer\n", "a.csv: its letters are not in UTF-8; save it so"),
    ("a.csv", "index,label\nFIRST," + 200_000 * "x", "a.csv: line 2: not CSV"),
    ("a.csv", "index,label\nFIRST,cat\nFIRST,dog\n", 'image FIRST is "cat" and "dog"; settle on one'),
    ("a.csv", "index,label\nFIRST,CAT\n", "differs from the class 'cat' by its case"),
])  # fmt: skip
def test_wrong_answers_change_nothing(
    store: LabelStore, name: str, content: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, before = str(store.read().indices[0]), store.path.read_text()
    Path(name).write_text(content.replace("FIRST", first), errors="surrogateescape")
    assert part.replace("FIRST", first) in refusal(capsys, "import", str(store.path), name)
    assert store.path.read_text() == before


@pytest.mark.parametrize(("words", "part"), [
    (["export"], "usl labels export: a file is missing; use usl labels export LABELS.json --out"),
    (["export", "LABELS"], "usl labels export: a file is missing"),
    (["export", "LABELS", "--out", "x.npy"], "--out x.npy: expected .json"),
    (["export", "LABELS", "--out", "there.csv"], "there.csv: exists already"),
    (["export", "LABELS", "--out", "x.csv", "--prefx", "y"], "unknown option --prefx"),
    (["export", "LABELS", "--out", "x.csv", "--dir", "no"], "--dir no: is for images that go into the tasks"),
    (["export", "LABELS", "--out", "x.json", "--dir", "."], "--dir .: is for images that go into the tasks"),
    (["import", "LABELS"], "usl labels import: a file is missing; use usl labels import LABELS.json"),
    (["import", "LABELS", "none.csv"], "none.csv: cannot be read"),
    (["imprt", "LABELS", "none.csv"], "unknown operation 'imprt' (did you mean 'import'?)"),
])  # fmt: skip
def test_mistakes(store: LabelStore, words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("there.csv").write_text("mine")
    assert part in refusal(capsys, *[word.replace("LABELS", str(store.path)) for word in words])
    assert Path("there.csv").read_text() == "mine"


# exports of other projects, and what no export means -------------------------------------------------------


def imported(store: LabelStore, name: str, content: str, capsys: pytest.CaptureFixture[str]) -> list[object]:
    """The answers after an import into the file without any; `I0` … stand for the images' numbers, `F0` … files."""
    forget(store)
    Path(name).write_text(filled(store, content), encoding="utf-8")
    main(["labels", "import", str(store.path), name])
    return list(answers_of(store.read()).values())


def filled(store: LabelStore, content: str) -> str:
    index = store.read()
    for number, (image, file) in enumerate(zip(index.indices, index.files or (), strict=True)):
        content = content.replace(f"I{number}", str(image)).replace(f"F{number}", file)
    return content


EXPORTED = "annotation_id,annotator,created_at,id,image,index,file,choice\n1,1,2026,7,/x,I0,F0,"


@pytest.mark.parametrize(("name", "content"), [
    ("a.json", '[{"id": 1, "image": "/x", "index": I0, "choice": "cat"}]'),
    ("a.json", '[{"id": 1, "file": "F0", "sentiment": "cat"}, {"id": 2, "file": "F1", "sentiment": ""}]'),
    ("a.json", '[{"file": "F0", "choice": {"choices": ["cat"]}}, {"file": "F1"}]'),
    ("a.json", '[{"index": I0, "label": ["cat"], "choice": "dog"}]'),
    ("a.json", '[{"index": I0, "label": null, "choice": "cat", "annotator": 1, "lead_time": 2.5}]'),
    ("a.json", '[{"data": {"index": I0}, "completions": [{"result": [{"type": "choices", "value": {"choices": '
               '["cat"]}}]}]}]'),
    ("a.json", '[{"data": {"index": I0}, "annotations": [{"result": [{"type": "textarea", "value": {"text": ["x"]}}, '
               '{"type": "choices", "value": {"choices": ["cat"]}}]}]}]'),
    ("a.csv", EXPORTED + "cat\n"),
    ("a.csv", EXPORTED + '"{""choices"": [""cat""]}"\n'),
    ("a.csv", EXPORTED + '"[""cat""]"\n'),
    ("a.csv", "index,label,note\nI0,cat,\nI1,,why\n"),
    ("a.csv", "index,label\nI0.0,cat\nI1,-1\nI2,nan\nI3,None\nI4,NaN\n"),
    ("a.csv", "index,label,,\nI0,cat,,\nI1,,,\n"),
    ("a.csv", "index,label,class\nI0,,cat\n"),
])  # fmt: skip
def test_one_choice_under_any_name(
    store: LabelStore, name: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert imported(store, name, content, capsys) == [0, None, None, None, None]
    assert len(store.read().classes) == 2


def said(who: int | None, *names: str) -> dict[str, Any]:
    result = [{"type": "choices", "value": {"choices": [name]}} for name in names]
    return {"result": result, **({} if who is None else {"completed_by": who})}


def test_of_several_annotators_the_majority_counts(store: LabelStore, capsys: pytest.CaptureFixture[str]) -> None:
    forget(store)
    images = store.read().indices
    store.answer(images[1], 0, None)
    votes = [["cat", "dog", "cat"], ["bird", "dog"], ["cat", "cat"], ["not sure", "Not  sure", "cat"], ["bird"]]
    tasks = [
        {"data": {"index": image}, "annotations": [said(who, name) for who, name in enumerate(names)]}
        for image, names in zip(images, votes, strict=True)
    ]
    tasks[2]["annotations"][0]["completed_by"] = {"id": 7, "email": "a@b.example"}
    Path("several.json").write_text(json.dumps(tasks))
    main(["labels", "import", str(store.path), "several.json"])
    assert list(answers_of(store.read()).values()) == [0, 0, 0, "unsure", 2]
    told = capsys.readouterr().out
    assert "4 answers; new classes: bird; 0 images to label" in told
    assert f"1 image is left without a new answer, as annotators do not agree: image {images[1]} (bird, dog), …" in told

    header = "annotation_id,annotator,index,label\n"
    rows = [
        f"{n},{who},{images[0]},{name}\n" for n, (who, name) in enumerate([("x", "bird"), ("y", "cat"), ("z", "bird")])
    ]
    Path("several.csv").write_text(header + "".join(rows))
    main(["labels", "import", str(store.path), "several.csv"])
    assert answers_of(store.read())[images[0]] == 2
    flat = [
        {"index": images[0], "annotator": who, "label": name} for who, name in ((1, "cat"), (2, "cat"), (3, "bird"))
    ]
    Path("several_min.json").write_text(json.dumps(flat))
    main(["labels", "import", str(store.path), "several_min.json"])
    assert answers_of(store.read())[images[0]] == 0


@pytest.mark.parametrize("annotations", [
    [said(1, "cat"), said(1, "bird")], [said(None, "cat"), said(1, "bird")], [said(1, "cat"), said(None, "bird")],
    [said(None, "cat"), said(None, "bird")], [said(1, "cat", "bird"), said(2, "cat")],
])  # fmt: skip
def test_one_annotator_has_one_vote(
    store: LabelStore, annotations: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    image, before = store.read().indices[0], store.path.read_bytes()
    Path("a.json").write_text(json.dumps([{"data": {"index": image}, "annotations": annotations}]))
    assert f'image {image} is "cat" and "bird"; settle on one' in refusal(capsys, "import", str(store.path), "a.json")
    assert store.path.read_bytes() == before


def test_guesses_go_along_as_predictions_and_come_back_as_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    store = LabelStore(make_selection(tmp_path))
    for name in ("cat", "dog", "bird", "fish"):
        store.add_class(name)
    main(["labels", "export", str(store.path), "--out", "none.json"])
    assert not any("predictions" in task for task in json.loads(Path("none.json").read_text()))
    index = store.read()
    for image, file in list(zip(index.indices, index.files or (), strict=True))[:12]:
        store.answer(image, quarter(file), None)
    before = store.path.read_bytes()
    main(["labels", "export", str(store.path), "--out", "t.json"])
    assert "t.json: 40 tasks, 28 with a guess; t.xml: the set-up" in capsys.readouterr().out
    tasks = json.loads(Path("t.json").read_text())
    for task, file in zip(tasks, index.files or (), strict=True):
        assert ("predictions" in task) != ("annotations" in task)
        for guess in task.get("predictions", []):
            assert guess["result"][0]["value"] == {"choices": [index.classes[quarter(file)]]}
            assert guess["result"][0]["from_name"] == "label"
            assert guess["model_version"] == "usl-lightning"
            assert 0.25 < guess["score"] <= 1
    main(["labels", "import", str(store.path), "t.json"])
    assert store.path.read_bytes() == before


@pytest.mark.parametrize(("name", "content", "part"), [
    ("a.json", '[{"index": I0, "patient": "p7"}]', "'label' is empty; if the answers are in \"patient\", call that l"),
    ("a.json", '[{"index": I0, "choice": "cat", "patient": "p7"}]', 'in "choice, patient", call that label'),
    ("a.json", '[{"index": I0, "choice": 3}]', "entry 0: "),
    ("a.json", '[{"index": I0, "label": {"choices": ["cat", "dog"]}}]', "not a task of one choice each"),
    ("a.json", '[{"data": null, "annotations": []}]', "not a task of one choice each"),
    ("a.json", '[{"data": {"index": I0}, "annotations": [{"result": [{"type": "rectanglelabels", "value": {}}]}]}]',
     "not a task of one choice each"),
    ("a.json", '[{"data": {"index": I0}, "annotations": [{"result": [{"type": "choices", "value": {"choices": ["cat"]}'
               '}, {"type": "choices", "value": {"choices": ["dog"]}}]}]}]', "settle on one"),
    ("a.json", '[{"index": I0, "label": "cat", "label": "dog"}]', 'key "label" is there twice'),
    ("a.json", '[{"index": I0, "label": "none"}]', "'none' may mean 'no label', or be a class"),
    ("a.csv", EXPORTED + '"{""choices"": [""cat"", ""dog""]}"\n', "is not one choice; settle on one"),
    ("a.csv", EXPORTED + '"[""cat"", ""dog""]"\n', "is not one choice; settle on one"),
    ("a.csv", EXPORTED.replace("choice", "patient") + "p7\n", "call that label"),
    ("a.csv", "index,label,note\nI0,,blurred\n", "'label' is empty; if the answers are in \"note\", call that label"),
    ("a.csv", "index,label,label\nI0,cat,dog\n", "expected each once"),
    ("a.csv", "index,label\nI0,cat,dog\n", "line 2 has 3 cells, the first line 2"),
    ("a.csv", "index,label\nI0,2\n", "2 is a number, but the classes have names"),
    ("a.csv", "index,label\nI0,-2\n", "'-2' may mean 'no label'"),
    ("a.csv", "index,label\n" + 5000 * "9" + ",cat\n", "not one of the images to label"),
    ("a.csv", "index,label\nI0,c\u200dat\n", "looks like the class 'cat'"),
    ("a.csv", "index,label\nI0,a\x00b\n", "control character"),
    ("a.csv", "index,label\nI0,c\u0430t\n", "(line 2): 'c\u0430t' ('c\\u0430t') looks like the class 'cat'"),
    ("a.csv", "index,label\nI0,cow\nI1,c\u043ew\n", "(line 3): 'c\u043ew' ('c\\u043ew') looks like the class 'cow'"),
    ("a.csv", 'index,label\nI0,"cat, dog"\n', "(line 2): 'cat, dog' names several classes"),
    ("a.csv", "index,label\nI0,cow\nI1,cow|pig\nI2,pig\n", "(line 3): 'cow|pig' names several classes"),
    ("a.csv", "index,label\nI0,cow;pig\n", "(line 2): 'cow;pig' names several classes"),
    ("a.csv", "index,label\nI0,\"['cat', 'dog']\"\n", "is a list, expected the name of one class"),
    ("a.csv", 'index,label\nI0,"[""cat"","\n', "is a list, expected the name of one class"),
    ("a.csv", "index,label\nI0,?\n", "'?' may mean 'no label'"),
    ("a.csv", "index,label\nI0,\u22121\n", "'\u22121' may mean 'no label'"),
    ("a.csv", "index;label\nI0;-1,0\n", "'-1,0' may mean 'no label'"),
    ("a.csv", "index,label\nI0,not_sure\n", "'not_sure' may mean 'no label'"),
    ("a.csv", "index,label\nI0,50%\n", "50% is a number, but the classes have names"),
    ("a.csv", "index,label\nI0,1.5\n", "1.5 is a number, but the classes have names"),
    ("a.csv", 'index,label\nI0,"cat\ndog"\n', "'cat dog' is of several lines"),
    ("a.csv", "index,label\nI0,[cat]\n", "is a list, expected the name of one class"),
    ("a.csv", "index,label\nI0,cow\nI1,pig\nI2,cow/pig\n", "(line 4): 'cow/pig' names several classes"),
    ("a.csv", "index,label\nI0," + 81 * "x" + "\n", "(line 2): a class needs a name of 1 to 80 characters"),
    ("a.json", '[{"index": I0, "label": "cat\\ndog"}]', "'cat dog' is of several lines"),
    ("a.csv", "index,label\nI0,unlabeled\n", "'unlabeled' may mean 'no label'"),
    ("a.json", '[{"data": {"index": I0}, "annotations": [{"result": [{"type": "choices", "from_name": "a", "value": '
               '{"choices": ["cat"]}}, {"type": "choices", "from_name": "b", "value": {"choices": ["x"]}}]}]}]',
     'its choices are of several questions, "a, b"; call that of the class label'),
    ("a.json", '[{"data": {"index": I0}, "annotations": [{"result": [{"type": "choices", "from_name": "a", "value": '
               '{"choices": ["cat"]}}]}]}, {"data": {"index": I1}, "annotations": [{"result": [{"type": "choices", '
               '"from_name": "b", "value": {"choices": ["x"]}}]}]}]',
     'its choices are of several questions, "a, b"; call that of the class label'),
    ("a.json", '[{"index": I0, "label": "cat"}, {"index": I1, "choice": "cow"}]',
     "entry 1: 'label' is empty, but 'choice' is \"cow\"; put all answers into label, or leave choice out"),
    ("a.json", '[{"index": I0, "label": "cat"}, {"index": I1, "kind": "cat", "label": null}]',
     "entry 1: 'label' is empty, but 'kind' is \"cat\""),
    ("a.json", '[{"index": I0, "label": "nan", "patient": "p7"}]', "'label' is empty; if the answers are in"),
    ("a.csv", "index,label,class\nI0,cat,\nI1,,dog\n", "entry 1: 'label' is empty, but 'class' is \"dog\""),
    ("a.csv", "annotation_id,index,label,kind\n1,I0,cat,\n1,I1,,cat\n", "entry 1: 'label' is empty, but"),
    ("a.csv", "index,label,Label\nI0,cat,\nI1,,dog\n", "entry 1: 'label' is empty, but 'Label' is \"dog\""),
    ("a.json", '[{"data": {"index": I0}, "annotations": [{"result": [{"type": "choices", "from_name": "label", '
               '"value": {"choices": ["cat"]}}]}]}, {"data": {"index": I1}, "annotations": [{"result": [{"type": '
               '"choices", "from_name": "kind", "value": {"choices": ["cat"]}}]}]}]',
     "entry 1: 'label' is empty, but 'kind' is"),
])  # fmt: skip
def test_what_could_be_taken_wrongly_changes_nothing(
    store: LabelStore, name: str, content: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(name).write_text(filled(store, content), encoding="utf-8")
    before = store.path.read_bytes()
    assert part in refusal(capsys, "import", str(store.path), name)
    assert store.path.read_bytes() == before


@pytest.mark.parametrize("cell", ["1e0", "+1", "1.5", "100%", "1 000", "\u0661"])
def test_among_numbered_classes_a_number_in_another_spelling_is_no_class(
    store: LabelStore, cell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    index = store.read()
    store.path.write_text(json.dumps({**json.loads(store.path.read_text()), "classes": ["0", "1"]}))
    Path("a.csv").write_text(f"index;label\n{index.indices[0]};{cell}\n", encoding="utf-8")
    assert f"{cell} is no whole number, as the classes are (0, 1, …)" in refusal(
        capsys, "import", str(store.path), "a.csv"
    )


def test_the_line_that_tells_excel_the_separator(store: LabelStore) -> None:
    image = store.read().indices[0]
    Path("a.csv").write_text(f"sep=;\r\nindex;label\r\n{image};cat\r\n")
    main(["labels", "import", str(store.path), "a.csv"])
    assert answers_of(store.read())[image] == 0


def test_of_several_questions_ours_is_taken(store: LabelStore) -> None:
    image = store.read().indices[0]
    given = [{"type": "choices", "from_name": field, "value": {"choices": [name]}}
             for field, name in (("quality", "blurred"), ("label", "cat"))]  # fmt: skip
    Path("a.json").write_text(json.dumps([{"data": {"index": image}, "annotations": [{"result": given}]}]))
    assert read_answers(Path("a.json"), store.read()) == {image: "cat"}


def test_what_a_field_of_nearly_the_same_name_says_is_told(store: LabelStore, caplog: pytest.LogCaptureFixture) -> None:
    Path("a.csv").write_text(f"index,label,Label\n{store.read().indices[0]},cat,cow\n")
    with caplog.at_level(logging.WARNING, "usl_lightning"):
        assert list(read_answers(Path("a.csv"), store.read()).values()) == ["cat"]
    assert "passed over what 'Label' says in 1 entries" in caplog.text


def test_what_is_passed_over_is_told(store: LabelStore, caplog: pytest.LogCaptureFixture) -> None:
    first, second = store.read().indices[:2]
    rows = [{"index": first, "label": "cat", "kind": {"choices": ["not sure"]}, "fold": 3, "note": "near"},
            {"index": second, "note": "dark", "fold": 4}]  # fmt: skip
    Path("a.json").write_text(json.dumps(rows))
    assert read_answers(Path("a.json"), store.read()) == {first: "cat"}
    told = [record.getMessage().removeprefix("a.json: passed over what ") for record in caplog.records]
    assert told == [
        "'fold' says in 2 entries, of which 'label' says nothing in 1",
        "'kind' says in 1 entries, of which 'label' says nothing in 0",
        "'note' says in 2 entries, of which 'label' says nothing in 1",
    ]
    other = {"type": "choices", "from_name": "quality", "value": {"choices": ["blurred"]}}
    ours = {**other, "from_name": "label", "value": {"choices": ["cat"]}}
    tasks = [{"data": {"index": i}, "annotations": [{"result": [e]}]} for i, e in ((first, ours), (second, other))]
    Path("b.json").write_text(json.dumps(tasks))
    assert read_answers(Path("b.json"), store.read()) == {first: "cat"}  # and no class 'blurred'
    assert caplog.records[-1].getMessage() == "b.json: choices of label, quality; those of label alone are taken"


def test_marks_of_nothing_in_another_field_are_told(store: LabelStore, caplog: pytest.LogCaptureFixture) -> None:
    Path("a.json").write_text(json.dumps([{"index": store.read().indices[0], "choice": "nan"}]))
    assert read_answers(Path("a.json"), store.read()) == {}
    assert caplog.records[-1].getMessage() == "a.json: taken for no label: 1 × nan"


def test_whole_numbers_that_pandas_wrote_become_classes_as_such(store: LabelStore) -> None:
    index = replace(store.read(), classes=())
    Path("a.csv").write_text("index,label\n" + "".join(f"{i},{n}.0\n" for n, i in enumerate(index.indices[:3])))
    assert list(read_answers(Path("a.csv"), index).values()) == ["0", "1", "2"]


NAMES = ("=1+1", "+x", "-dog", "@sum", "'=y", "'quoted", '["a"]', "None", "01")


def test_any_class_comes_back_from_a_spreadsheet(store: LabelStore) -> None:
    index = store.read()
    store.merge(dict.fromkeys(index.indices), index.classes)
    for name in NAMES:
        store.add_class(name)
    for start in (0, 5):
        answers = {image: 2 + number for number, image in enumerate(index.indices, start) if number < len(NAMES)}
        store.merge(answers, store.read().classes)
        main(["labels", "export", str(store.path), "--out", f"{start}.csv"])
        cells = [cell for row in csv.reader(Path(f"{start}.csv").read_text("utf-8-sig").splitlines()) for cell in row]
        assert not [cell for cell in cells if cell[:1] in tuple("=+-@\t\r")]
        forget(store)
        main(["labels", "import", str(store.path), f"{start}.csv"])
        assert {image: answers_of(store.read())[image] for image in answers} == answers
    assert store.read().classes[2:] == NAMES

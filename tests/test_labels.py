"""The label index: every format there and back, and every wrong file refused in one line."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usl_lightning.base.errors import UslError
from usl_lightning.labels import LabelIndex
from usl_lightning.labels.entries import DatasetId

DATA = DatasetId("flowers", "train", 50, "sha256:" + "0123456789abcdef" * 4)
OTHER = DatasetId("flowers", "train", 50, "sha256:" + "f" * 64)
CLASSES = ("rose", "tulip", "daisy")
GOOD = {
    "format": "usl-label-index",
    "version": 1,
    "dataset": {"name": "flowers", "split": "train", "size": 50, "fingerprint": DATA.fingerprint},
    "method": {"name": "usl", "seed": 0, "params": {"k": 5}},
    "indices": [17, 4, 9],
    "labels": [2, None, 0],
    "classes": list(CLASSES),
    "files": ["a/17.png", "4.png", "b/c/9.png"],
}


def written(tmp_path, content, name="labels.json"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def index(indices, labels=None, dataset=DATA, **options):
    labels = [None] * len(indices) if labels is None else labels
    return LabelIndex(dataset, {"name": "x"}, tuple(indices), tuple(labels), CLASSES, **options)


def refused(action, *expected):
    with pytest.raises(UslError) as error:
        action()
    text = str(error.value)
    assert "\n" not in text
    for part in expected:
        assert part in text
    return text


# there and back ------------------------------------------------------------------------------------------


def test_reads_the_documented_form(tmp_path):
    read = LabelIndex.read(written(tmp_path, json.dumps(GOOD)))
    assert read == LabelIndex(
        DATA, GOOD["method"], (17, 4, 9), (2, None, 0), CLASSES, ("a/17.png", "4.png", "b/c/9.png")
    )
    assert (len(read), read.unlabelled, read.plain) == (3, 1, False)
    assert read.path == str(tmp_path / "labels.json")


def test_writes_the_documented_form(tmp_path):
    LabelIndex.read(written(tmp_path, json.dumps(GOOD))).write(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == GOOD
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


@st.composite
def indexes(draw):
    indices = draw(st.lists(st.integers(0, 49), unique=True, max_size=12))
    labels = [draw(st.none() | st.integers(0, 2)) for _ in indices]
    files = draw(st.none() | st.just(tuple(f"{i}/ü.png" for i in indices)))
    unsure = tuple(i for i, label in zip(indices, labels, strict=True) if label is None and draw(st.booleans()))
    labelled = [i for i, label in zip(indices, labels, strict=True) if label is not None]
    bulk, added = (tuple(i for i in labelled if draw(st.booleans())) for _ in range(2))
    return index(indices, labels, files=files, unsure=unsure, bulk=bulk, added=added)


@given(indexes())
@settings(max_examples=40, deadline=None)
def test_json_there_and_back(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("x") / "x.json"
    value.write(path)
    assert LabelIndex.read(path) == value


@given(indexes(), st.sampled_from([".npy", ".csv"]))
@settings(max_examples=40, deadline=None)
def test_formats_without_labels_there_and_back(tmp_path_factory, value, suffix):
    path = tmp_path_factory.mktemp("x") / f"x{suffix}"
    value.write(path)
    read = LabelIndex.read(path)
    assert read.indices == value.indices
    assert read.plain
    assert read.dataset is None
    if suffix == ".csv":
        assert read.files == (value.files or tuple(str(i) for i in value.indices))


def test_plain_formats(tmp_path):
    np.save(tmp_path / "a.npy", np.array([3, 1], dtype=np.uint16))
    assert LabelIndex.read(tmp_path / "a.npy").indices == (3, 1)
    assert LabelIndex.read(written(tmp_path, "[3, 1]", "a.json")).indices == (3, 1)
    csv = "\ufeffIndex,ImageID\r\n3,n01_3.JPEG\r\n\r\n1,n02_1.JPEG\r\n"
    read = LabelIndex.read(written(tmp_path, csv, "a.csv"))
    assert (read.indices, read.files) == ((3, 1), ("n01_3.JPEG", "n02_1.JPEG"))
    read = LabelIndex.read(written(tmp_path, "Index\n3\n", "a.csv"))
    assert (read.indices, read.files) == ((3,), None)
    read.write(tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_text()) == [3]


# labels for training -------------------------------------------------------------------------------------


def test_for_training(tmp_path):
    assert index([5, 3], [0, 2]).for_training() == ([5, 3], [0, 2])
    path = written(tmp_path, json.dumps(GOOD))
    refused(LabelIndex.read(path).for_training, f"{path}: 1 of 3 images have no label yet")
    refused(index([]).for_training, "no entry")


def test_followers_take_the_label_of_their_entry(tmp_path):
    given = index([5, 3, 8], [0, None, 2], unsure=(3,), followers=((1, 2), (4,), ()))
    given.write(tmp_path / "a.json")
    read = LabelIndex.read(tmp_path / "a.json")
    assert read == given
    assert read.for_training() == ([5, 8, 1, 2], [0, 2, 0, 0])
    assert read.unlabelled == 0
    other = index([1, 3], [1, 1], followers=((2, 6), (9,)))
    both = read.union(other)
    assert (both.indices, both.followers) == ((5, 3, 8, 1), ((2,), (4, 9), (), (6,)))
    assert read.difference(index([3, 2], [1, 1])).followers == ((1,), ())
    assert index([5], [0]).union(index([3], [1])).followers == ()


@pytest.mark.parametrize(
    ("followers", "line"),
    [
        ([[1], []], "3 indices but 2 followers"),
        ([[1], 4, []], "entry 1 of 'followers' is 4, expected a list of indices"),
        ([[1], [-1], []], "entry 1: follower -1 is no image of the data set"),
        ([[1], [10**6], []], "entry 1: follower 1000000 is no image of the data set"),
        ([[1], [1], []], "entry 1: follower 1 is among the indices or follows twice"),
        ([[17], [], []], "entry 0: follower 17 is among the indices or follows twice"),
    ],
)
def test_wrong_followers_are_named(tmp_path, followers, line):
    path = written(tmp_path, json.dumps({**GOOD, "followers": followers}))
    refused(lambda: LabelIndex.read(path), line)


def test_images_that_a_person_was_not_sure_of_are_left_out_of_training(tmp_path):
    read = LabelIndex.read(written(tmp_path, json.dumps({**GOOD, "unsure": [4]})))
    assert (read.unsure, read.unlabelled) == ((4,), 0)
    assert read.for_training() == ([17, 9], [2, 0])
    refused(
        index([5, 3], [None, None], unsure=(3,)).for_training, "1 of 2 images have no label yet; give them", "usl l"
    )
    refused(index([5, 3], unsure=(3, 5)).for_training, "all 2 images are marked not sure")
    assert read.union(index([4], [1])).unsure == ()
    assert read.union(index([8], unsure=(8,))).unsure == (4, 8)
    assert read.difference(index([4])).unsure == ()


def test_answers_of_a_row_are_told_apart(tmp_path):
    read = LabelIndex.read(written(tmp_path, json.dumps({**GOOD, "bulk": [17]})))
    assert read.bulk == (17,)
    assert read.union(index([4, 9], [1, 0], bulk=(4, 9))).bulk == (17, 4)  # somebody looked at 9 alone
    assert read.union(index([17], read.labels[:1])).bulk == ()
    assert read.difference(index([17])).bulk == ()


def test_images_that_were_added_are_told_apart(tmp_path):
    read = LabelIndex.read(written(tmp_path, json.dumps({**GOOD, "added": [17]})))
    assert (read.added, read.chosen, read.picks.indices) == ((17,), len(read) - 1, read.indices[1:])
    assert read.answered.for_training() == ([17, 9], [2, 0])
    assert read.union(index([19], [1], added=(19,))).added == (17, 19)
    assert read.union(index([17])).added == ()  # another has chosen it
    assert index([17]).union(read).added == ()
    assert read.difference(index([17])).added == ()


def test_more_images_are_added_and_those_without_a_label_go_again(tmp_path):
    with_files = {**GOOD, "files": ["a.png", "b.png", "c.png"], "hashes": [f"sha256:{i:064}" for i in range(3)]}
    with_files["followers"] = [[1], [19], []]
    before = LabelIndex.read(written(tmp_path, json.dumps(with_files)))
    more = before.with_added([19, 7], ["19.png", "7.png"], [f"sha256:{i:064}" for i in (19, 7)])
    assert (more.indices[3:], more.labels[3:], more.added) == ((19, 7), (None, None), (19, 7))
    assert more.followers == ((1,), (), (), (), ())
    assert more.settled.indices == before.indices
    labelled = replace(more, labels=(*before.labels, None, 1)).settled
    labelled.write(tmp_path / "more.json")
    assert LabelIndex.read(tmp_path / "more.json") == labelled
    assert (labelled.indices[3:], labelled.files[3:], labelled.hashes[3:]) == ((7,), ("7.png",), (f"sha256:{7:064}",))
    assert index([4]).with_added([19]).followers == ()


@pytest.mark.parametrize("images", [[99], [17, 17], ["17"], [None]])
@pytest.mark.parametrize("key", ["bulk", "added"])
def test_only_images_with_a_label_can_be_bulk_or_added(tmp_path, key, images):
    wrong = written(tmp_path, json.dumps({**GOOD, key: images}))
    refused(lambda: LabelIndex.read(wrong), f"{wrong}: '{key}' names")


@pytest.mark.parametrize("unsure", [[17], [5], [4, 4], ["4"], [None], [4.0]])
def test_only_images_without_a_label_can_be_unsure(tmp_path, unsure):
    wrong = written(tmp_path, json.dumps({**GOOD, "unsure": unsure}))
    refused(lambda: LabelIndex.read(wrong), f"{wrong}: 'unsure' names")


def test_labels_of_the_data_set(tmp_path):
    plain = LabelIndex.read(written(tmp_path, "[3, 1]"))
    labelled = plain.with_labels([2, 0], CLASSES)
    assert labelled.for_training() == ([3, 1], [2, 0])
    assert labelled.classes == CLASSES
    refused(lambda: plain.with_labels([2, -1], CLASSES), "labels.json", "none for 1 of its 2")
    refused(lambda: plain.with_labels([], ()), "labels.json")


# belonging -----------------------------------------------------------------------------------------------


def test_check_accepts_its_own_data_set():
    index([0, 49], [0, 1]).check(DATA, CLASSES)
    index([0, 49], [0, 1]).check(DatasetId("moved", "train", 50, DATA.fingerprint))
    index([0, 49], [0, 1]).check(DATA, CLASSES, None)
    index([1, 0], files=("b", "a")).check(DATA, CLASSES, ["a", "b"])


def test_check_refuses_another(tmp_path):
    path = written(tmp_path, json.dumps(GOOD))
    read = LabelIndex.read(path)
    same = "but the data is other images of that name and number;"
    refused(lambda: read.check(OTHER), str(path), "chosen from flowers/train (50 images), ", same)
    smaller = DatasetId("flowers", "train", 49, DATA.fingerprint)
    refused(lambda: read.check(smaller), str(path), "49 images")
    refused(lambda: read.check(DATA, ("a", "b")), str(path), "rose, tulip, daisy", "a, b")
    plain = index([50], dataset=None)
    refused(lambda: plain.check(DATA), "entry 0: index 50 is out of range")
    nameless = replace(index([3, 4], [2, 2]), labels=(2, 3), classes=())
    nameless.check(DATA)
    refused(lambda: nameless.check(DATA, CLASSES), "entry 1: label 3 is out of range", "has 3 classes")
    swapped = index([1, 0], files=("a", "b"))
    refused(lambda: swapped.check(DATA, CLASSES, ["a", "b"]), "entry 0", "index 1")


# combining -----------------------------------------------------------------------------------------------


@given(indexes(), indexes())
@settings(max_examples=60, deadline=None)
def test_union_and_difference_are_those_of_sets(a, b):
    b = index(b.indices, [None] * len(b), files=b.files)
    union, difference = a.union(b), a.difference(b)
    assert list(union.indices) == list(dict.fromkeys(a.indices + b.indices))
    assert list(difference.indices) == [i for i in a.indices if i not in set(b.indices)]
    label_of = dict(zip(a.indices, a.labels, strict=True))
    assert all(label_of.get(i) == label for i, label in zip(union.indices, union.labels, strict=True))
    assert all(label_of[i] == label for i, label in zip(difference.indices, difference.labels, strict=True))
    if a.files is not None and b.files is not None:
        assert union.files == tuple(f"{i}/ü.png" for i in union.indices)
        assert difference.files == tuple(f"{i}/ü.png" for i in difference.indices)


def test_union_fills_in_labels_and_refuses_a_contradiction():
    assert index([1, 2], [0, None]).union(index([2, 1], [2, 0])).labels == (0, 2)
    refused(lambda: index([1], [0]).union(index([1], [2])), "entry 0", "label 2", "0 in the first")
    refused(lambda: index([1]).union(index([1], dataset=OTHER)), "chosen from")
    refused(lambda: index([1]).difference(index([1], dataset=OTHER)), "chosen from")


# wrong files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": "other"}, "not a label index"),
        ({"version": 2}, "version 2; this program reads 1"),
        ({"indexes": []}, "unknown key 'indexes' (did you mean 'indices'?)"),
        ({"indices": None}, "'indices' is null, expected a list"),
        ({"indices": [17, 4, 4]}, "entry 2: index 4 is there twice (entry 1 is the first)"),
        ({"indices": [17, 4, 50]}, "entry 2: index 50 is out of range"),
        ({"indices": [17, 4, -1]}, "entry 2: index -1 is not"),
        ({"indices": [17, 4, 9.0]}, "entry 2: index 9.0 is not"),
        ({"indices": [17, True, 9]}, "entry 1: index true is not"),
        ({"indices": [17, "4", 9]}, 'entry 1: index "4" is not'),
        ({"indices": [17, 10**30, 9]}, "entry 1: index 10000"),
        ({"indices": [17, 4]}, "2 indices but 3 labels"),
        ({"labels": [2, 1]}, "3 indices but 2 labels"),
        ({"labels": [2, 1, 3]}, "entry 2: label 3 is out of range, there are 3 classes"),
        ({"labels": [2, 1, -1]}, "entry 2: label -1 is neither"),
        ({"labels": [2, 1, "rose"]}, 'entry 2: label "rose" is neither'),
        ({"classes": ["a", "b", "a"]}, "a class twice"),
        ({"classes": ["a", "b", 3]}, "entry 2 of 'classes'"),
        ({"dataset": None}, "'dataset' is null"),
        ({"dataset": {**GOOD["dataset"], "size": "50"}}, "'size' is \"50\""),
        ({"dataset": {**GOOD["dataset"], "fingerprint": "sha256:1"}}, "damaged"),
        ({"dataset": {"size": 50, "fingerprint": DATA.fingerprint}}, "key 'name' is missing"),
        ({"method": "usl"}, "'method' is \"usl\", expected an object"),
        ({"files": ["a", "b"]}, "3 indices but 2 files"),
        ({"files": ["a", "b", "../c"]}, 'entry 2: file "../c" is not a path inside'),
        ({"files": ["a", "b", "c/../../d"]}, "entry 2"),
        ({"files": ["/etc/passwd", "b", "c"]}, "entry 0"),
        ({"files": ["a", "C:/x", "c"]}, "entry 1"),
        ({"files": ["a", "b\\..\\c", "c"]}, "entry 1"),
        ({"files": ["a", "", "c"]}, "entry 1"),
        ({"files": ["a", 3, "c"]}, "entry 1"),
        ({"files": "abc"}, "'files' is \"abc\""),
    ],
)
def test_wrong_json(tmp_path, change, expected):
    path = written(tmp_path, json.dumps({**GOOD, **change}))
    refused(lambda: LabelIndex.read(path), str(path), expected)


@pytest.mark.parametrize("change", [
    {"indices": (17, 4, 50)}, {"dataset": replace(DATA, size=10)}, {"labels": (2, 1, 3)}, {"classes": ("a",)},
    {"files": ("a", "b", "../c")}, {"hashes": ("sha256:1",) * 3}, {"files": None}, {"followers": ((17,), (), ())},
    {"bulk": (1,)}, {"added": (1,)}, {"unsure": (17,)},
])  # fmt: skip
def test_what_is_no_more_as_it_was_is_looked_at_again(tmp_path, change):
    known = replace(LabelIndex.read(written(tmp_path, json.dumps(GOOD))), hashes=(f"sha256:{0:064x}",) * 3)
    known.write(tmp_path / "x.json", known)
    with pytest.raises(UslError):
        replace(known, **change).write(tmp_path / "x.json", known)
    assert LabelIndex.read(tmp_path / "x.json").hashes == known.hashes


@pytest.mark.parametrize("key", [k for k in GOOD if k != "files"])
def test_missing_keys(tmp_path, key):
    path = written(tmp_path, json.dumps({k: v for k, v in GOOD.items() if k != key}))
    refused(lambda: LabelIndex.read(path), str(path))


@pytest.mark.parametrize("content", [b"", b"{", b"17, 4", b"\xff\xfe\x00", b"[" * 100_000, b'"text"', b"7"])
def test_not_json(tmp_path, content):
    path = written(tmp_path, content)
    refused(lambda: LabelIndex.read(path), str(path), "expected")


@pytest.mark.parametrize(
    "array", [np.array([1.0, 2.0]), np.array([[1]]), np.array(["1"]), np.array([{}], dtype=object)]
)
def test_wrong_npy(tmp_path, array):
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    refused(lambda: LabelIndex.read(tmp_path / "x.npy"), "x.npy")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("code_was_run",)


def test_an_npy_file_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "x.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    refused(lambda: LabelIndex.read(tmp_path / "x.npy"), "x.npy")
    assert not (tmp_path / "code_was_run").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "expected Index,ImageID"),
        ("1,2\n", "expected Index,ImageID"),
        ("Index,ImageID\n1\n", "entry 0"),
        ("Index,ImageID\n1,a\nx,b\n", "entry 1"),
        ("Index,ImageID\n1,a\n-2,b\n", "entry 1"),
        ("Index,ImageID\n1,a\n1,b\n", "entry 1: index 1 is there twice"),
        ("Index,ImageID\n1,../a\n", "entry 0"),
        (b"\xff\xfe", "not a CSV"),
    ],
)
def test_wrong_csv(tmp_path, content, expected):
    path = written(tmp_path, content, "x.csv")
    refused(lambda: LabelIndex.read(path), str(path), expected)


def test_wrong_places(tmp_path):
    refused(lambda: LabelIndex.read(tmp_path / "no.json"), "no.json", "cannot be read")
    refused(lambda: LabelIndex.read(tmp_path / "no.txt"), "no.txt", ".json, .npy or .csv")
    refused(lambda: index([1]).write(tmp_path / "no.txt"), "no.txt", ".json, .npy or .csv")
    refused(lambda: LabelIndex.read(tmp_path), ".json, .npy or .csv")


def test_a_wrong_index_is_not_written(tmp_path):
    refused(lambda: index([1, 1]).write(tmp_path / "x.json"), "x.json", "entry 1")
    labelled = index([1], [0], dataset=None)
    refused(lambda: labelled.write(tmp_path / "x.json"), "without a data set")
    assert not list(tmp_path.iterdir())

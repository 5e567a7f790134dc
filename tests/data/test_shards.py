"""Tar and Parquet files as folders: what is in them, in which order and with which labels, and what can be wrong."""

import json
import os
import pickle
import sys
import tarfile
import tracemalloc
from pathlib import Path

import pytest
import torch
from sharded import LONG_AGO, png, write_folder, write_parquet, write_tar

from usl_lightning.base.errors import UslError
from usl_lightning.base.files import noting
from usl_lightning.data.images import folders, shards, tar_shard
from usl_lightning.data.images.folder_source import FolderSource, open_images
from usl_lightning.data.images.opening import open_source, read_labels
from usl_lightning.data.images.signature import data_signature
from usl_lightning.data.images.source import dataset_id
from usl_lightning.init.folder import inspect_folder
from usl_lightning.labelling.pictures import open_pictures
from usl_lightning.labels import LabelIndex
from usl_lightning.stage.sorting import sort_into

FILES = {
    f"{split}/{name}/{i}.png": png(hash((split == "test", name == "dog", i)) % 1000)
    for split in ("train", "test")
    for name in ("cat", "dog", "é")
    for i in range(4)
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of this test alone, and not beside its shards."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("USL_CACHE", str(folder))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "folder", FILES)


def of(split: str) -> dict[str, bytes]:
    """The files of a split, without its name, not in their order."""
    return {f.removeprefix(f"{split}/"): c for f, c in reversed(FILES.items()) if f.startswith(split)}


def several_tars(root: Path) -> None:
    for number in range(3):
        write_tar(root / f"{number}.tar", dict([*FILES.items()][number::3]))


def a_tar_a_split_with_its_name_within(root: Path) -> None:
    for split in ("train", "test"):
        write_tar(root / f"{split}.tar", {f: c for f, c in FILES.items() if f.startswith(split)})


def splits_by_the_names_of_tars(root: Path) -> None:
    for split in ("train", "test"):
        for number in range(2):
            write_tar(root / f"photos-{split}-{number:06}.tar", dict([*of(split).items()][number::2]))


LAYOUTS = (several_tars, a_tar_a_split_with_its_name_within, splits_by_the_names_of_tars)


def read_all(root: Path, split: str, **options: object) -> None:
    source = open_source("folder", split, dir=str(root), **options)  # type: ignore[arg-type]
    source.read(torch.arange(len(source)))


def refusal(root: Path, split: str = "train", **options: object) -> str:
    """The one line of a refusal."""
    with pytest.raises(UslError) as error:
        read_all(root, split, **options)
    assert str(error.value).isprintable()
    return str(error.value)


def assert_same(one: FolderSource, other: FolderSource) -> None:
    """The same images in the same order with the same labels."""
    every = torch.arange(len(one))
    assert one.files == other.files
    assert one.classes == other.classes
    assert one.labels.tolist() == other.labels.tolist()
    assert dataset_id(one) == dataset_id(other)
    assert torch.equal(one.read(every), other.read(every))
    assert [*one.content_hashes(range(len(one)))] == [*other.content_hashes(range(len(one)))]
    assert torch.equal(one.resized(5, "bicubic").read(every), other.resized(5, "bicubic").read(every))
    assert one.statistics() == other.statistics()


# tar files are the folder that they unpack to ------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_they_are_the_folder_that_they_were_made_of(root, tmp_path, layout):
    layout(tmp_path / "shards")
    packed = tmp_path / "shards"
    for split in ("train", "test"):
        folder, tars = (open_source("folder", split, dir=str(place)) for place in (root, packed))
        assert_same(folder, tars)
        assert_same(folder, pickle.loads(pickle.dumps(tars)))  # as worker processes get it
    assert data_signature("folder", str(root)) == data_signature("folder", str(packed))
    known, found = inspect_folder(root), inspect_folder(packed)
    assert [(s.name, s.count, s.looked, s.class_counts) for s in (known.train, known.test)] == [
        (s.name, s.count, s.looked, s.class_counts) for s in (found.train, found.test)
    ]
    assert found.others == {}
    assert open_images(str(packed), image_size=4, channels=3, on_error="fail").files == tuple(sorted(FILES))
    assert open_images(str(packed / "train"), image_size=4, channels=3, on_error="fail").files == tuple(
        sorted(of("train"))
    )


def test_tars_in_folders_of_splits(root, tmp_path):
    for split in ("train", "test"):
        write_tar(tmp_path / "s" / split / "0.tar", {f"./{file}": content for file, content in of(split).items()})
    for split in ("train", "test"):
        assert_same(*(open_source("folder", split, dir=str(place)) for place in (root, tmp_path / "s")))
    assert inspect_folder(tmp_path / "s").others == {}


def test_a_label_index_of_the_folder_is_one_of_the_tars(root, tmp_path):
    several_tars(tmp_path / "shards")
    folder, tars = (open_source("folder", "train", dir=str(place)) for place in (root, tmp_path / "shards"))
    chosen = (7, 2, 5)
    index = LabelIndex(
        dataset_id(folder), {}, chosen, (0, None, 1), folder.classes,
        files=tuple(folder.files[i] for i in chosen), hashes=tuple(folder.content_hashes(chosen)),
    )  # fmt: skip
    index.write(tmp_path / "labels.json")
    assert read_labels(str(tmp_path / "labels.json"), tars).indices == chosen
    write_tar(tmp_path / "shards" / "3.tar", {"train/cat/00.png": png(77)})  # grown: all places move by one
    grown = open_source("folder", "train", dir=str(tmp_path / "shards"))
    assert read_labels(str(tmp_path / "labels.json"), grown).indices == (8, 3, 6)
    write_tar(tmp_path / "shards" / "1.tar", {file: png(78) for file in [*FILES][1::3]})
    with pytest.raises(UslError, match="another content"):
        read_labels(str(tmp_path / "labels.json"), open_source("folder", "train", dir=str(tmp_path / "shards")))


def test_what_is_a_folder_and_what_is_one_of_shards(tmp_path):
    """Shards beside images, or beside a folder, are no part of the set: they are a copy, as a rule."""
    write_tar(write_folder(tmp_path / "a", {"1.png": png(1)}) / "2.tar", {"2.png": png(2)})
    write_tar(write_folder(tmp_path / "b", {"x/1.png": png(1)}) / "2.tar", {"2.png": png(2)})
    assert open_source("folder", "train", dir=str(tmp_path / "a")).files == ("1.png",)
    assert open_source("folder", "train", dir=str(tmp_path / "b")).files == ("x/1.png",)
    write_tar(tmp_path / "c" / "2.tar", {"2.png": png(2)})
    write_folder(tmp_path / "c", {"README.md": b"", ".hidden/1.png": png(1), ".DS_Store": b""})
    assert open_source("folder", "train", dir=str(tmp_path / "c")).files == ("2.png",)


def test_a_folder_within_may_be_named(tmp_path):
    """`tar -cf photos.tar photos` has one more."""
    write_tar(tmp_path / "photos.tar", {f"photos/{file}": content for file, content in FILES.items()})
    found = inspect_folder(tmp_path)
    assert found.data == tmp_path / "photos"
    assert (found.train.count, found.test.count) == (12, 12)
    assert open_source("folder", "test", dir=str(found.data)).files == tuple(sorted(of("test")))
    assert open_source("folder", "train", dir=str(tmp_path)).classes == ("cat", "dog", "é")
    assert "no such folder" in refusal(tmp_path / "nothing")


def test_shards_beside_those_of_splits_are_told(tmp_path, caplog):
    splits_by_the_names_of_tars(tmp_path)
    write_tar(tmp_path / "photos-unlabeled.tar", {"1.png": png(1)})
    assert len(open_source("folder", "train", dir=str(tmp_path))) == 12
    assert "passed over beside test, train: photos-unlabeled.tar, of 1 images" in caplog.text


def test_classes_of_folders_within_can_be_listed(root, tmp_path):
    several_tars(tmp_path / "shards")
    (tmp_path / "list.txt").write_text("dog\ncat\n")
    options = {"class_list": str(tmp_path / "list.txt")}
    assert_same(*(open_source("folder", "train", dir=str(place), **options) for place in (root, tmp_path / "shards")))
    (tmp_path / "list.txt").write_text("cow\n")
    assert "no folder cow in" in refusal(tmp_path / "shards", **options)
    csv = tmp_path / "l.csv"
    csv.write_text("file,label\ntrain/dog/1.png,x\ntest/dog/1.png,y\n")
    assert_same(
        *(open_source("folder", "test", dir=str(place), labels_file=str(csv)) for place in (root, tmp_path / "shards"))
    )


# labels in tar files -------------------------------------------------------------------------------------


def labelled(root: Path, **options: object) -> tuple[tuple[str, ...], dict[str, int]]:
    source = open_source("folder", "train", dir=str(root), **options)  # type: ignore[arg-type]
    return source.classes, dict(zip(source.files, source.labels.tolist(), strict=True))


def test_labels_of_webdataset(tmp_path):
    write_tar(tmp_path / "0.tar", {
        "a/10.png": png(1), "a/10.cls": b"10", "a/2.left.png": png(2), "a/2.right.jpg": png(3), "a/2.cls": b"2\n",
        "b/3.png": png(4), "b/3.json": b'{"label": 7, "text": "x"}', "b/4.png": png(5), "b/4.json": b'{"text": "x"}',
        "b/5.cls": b"1", "b/5.json": b'{"label": 2}', "b/5.png": png(6), "b/6.png": png(7), "b/6.json": b"no JSON",
    })  # fmt: skip
    expected = {
        "a/10.png": 3,
        "a/2.left.png": 1,
        "a/2.right.jpg": 1,
        "b/3.png": 2,
        "b/4.png": -1,
        "b/5.png": 0,
        "b/6.png": -1,
    }
    assert labelled(tmp_path) == (("1", "2", "7", "10"), expected)
    assert inspect_folder(tmp_path).train.class_counts == {"1": 1, "2": 2, "7": 1, "10": 1}
    assert inspect_folder(tmp_path).data == tmp_path
    assert labelled(tmp_path, classes=[])[0] == ()


def test_labels_of_the_test_split_are_numbered_as_those_of_training(tmp_path):
    write_tar(tmp_path / "train-0.tar", {"1.png": png(1), "1.cls": b"ant", "2.png": png(2), "2.cls": b"bee"})
    write_tar(tmp_path / "test-0.tar", {"1.png": png(3), "1.cls": b"bee"})
    source = open_source("folder", "test", dir=str(tmp_path))
    assert (source.classes, source.labels.tolist()) == (("ant", "bee"), [1])
    write_tar(tmp_path / "test-0.tar", {"1.png": png(3), "1.cls": b"cow"})
    assert "label cow is not among those of" in refusal(tmp_path, "test")


def test_a_class_list_names_numbers(tmp_path):
    write_tar(tmp_path / "s" / "0.tar", {"1.png": png(1), "1.cls": b"1", "2.png": png(2), "2.cls": b"0"})
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncow\n")
    assert labelled(tmp_path / "s", class_list=str(names)) == (("ant", "bee", "cow"), {"1.png": 1, "2.png": 0})
    names.write_text("ant\n")
    assert "label 1 is not among those of" in refusal(tmp_path / "s", class_list=str(names))


def test_other_labels_are_another_run(tmp_path):
    signatures = set()
    for label in (b"0", b"1", b""):
        write_tar(tmp_path / "0.tar", {"1.png": png(1), "1.cls": label, "2.png": png(2), "2.cls": b"1"})
        signatures.add(data_signature("folder", str(tmp_path)))
    assert len(signatures) == 3
    assert labelled(tmp_path) == (("1",), {"1.png": -1, "2.png": 0})


@pytest.mark.parametrize(
    ("file", "content", "part"),
    [
        ("1.cls", b"\xff", "0.tar: 1.cls: its letters are not in UTF-8"),
        ("1.cls", b"9" * (1 << 21), "bytes, expected the label of an image"),
        ("1.json", b'{"label": [1, 2]}', "0.tar: 1.json: label is [1, 2], expected a number or the name of one class"),
        ("1.cls", b"cat;dog", "label 'cat;dog' names several classes"),
        ("1.cls", b"N/A", "label 'N/A' may mean 'no label'"),
    ],
)
def test_labels_that_are_none(tmp_path, file, content, part):
    write_tar(tmp_path / "0.tar", {"1.png": png(1), file: content, "2.png": png(2), "2.cls": b"x"})
    assert part in refusal(tmp_path)


# what is odd in tar files --------------------------------------------------------------------------------


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, target
    return found


ODD = {
    "a link": (member("b.png", tarfile.SYMTYPE, "a.png"), "b.png"),
    "a link, expected": (member("b.png", tarfile.LNKTYPE, "a.png"), "b.png"),
    "a folder": (member("b.png", tarfile.DIRTYPE), "b.png"),
    "no regular file": (member("b.png", tarfile.FIFOTYPE), "b.png"),
    "a path out of the archive": (member("../b.png", tarfile.REGTYPE), "../b.png"),
    "a path out of the archive, expected": (member("/b.png", tarfile.REGTYPE), "b.png"),
}


@pytest.mark.parametrize("what", ODD)
def test_members_that_are_no_images_are_refused_or_left_out(tmp_path, what):
    odd, name = ODD[what]
    write_tar(
        tmp_path / "0.tar", {"a.png": png(1)}, odd, member(".b.png", tarfile.SYMTYPE), member("x", tarfile.DIRTYPE)
    )
    assert refusal(tmp_path).startswith(f"{tmp_path}/0.tar/{name}: {what}")
    source = open_source("folder", "train", dir=str(tmp_path), on_error="skip")
    assert (source.files, source.skipped) == (("a.png",), (f"0.tar/{name}",))


def test_what_is_odd_in_a_split_is_told_with_the_shard_that_it_is_in(tmp_path):
    write_tar(tmp_path / "train-0.tar", {"a.png": png(1)}, ODD["a link"][0])
    write_tar(tmp_path / "test-0.tar", {"a.png": png(1), "b.png": b""})
    assert refusal(tmp_path).startswith(f"{tmp_path}/train-0.tar/b.png: a link")
    assert refusal(tmp_path, "test").startswith(f"{tmp_path}/test-0.tar/b.png: empty file")
    assert [one.file for one in inspect_folder(tmp_path).unreadable] == ["train-0.tar/b.png", "test/b.png"]


def test_hidden_members_and_other_files_are_left_out(tmp_path):
    files = dict.fromkeys(("._a.png", "__MACOSX/a.png", ".git/x.png", "b.txt", "b.heic", "x.png.txt"), b"x")
    write_tar(tmp_path / "0.tar", {"./a.png": png(1), **files})
    assert open_source("folder", "train", dir=str(tmp_path)).files == ("a.png",)


def test_of_a_member_that_is_there_twice_the_last_counts(tmp_path):
    write_tar(tmp_path / "0.tar", {"a.png": png(1, 7), "./a.png": png(2, 8), "b.png": png(3, 8)})
    source = open_source("folder", "train", dir=str(tmp_path))
    assert source.files == ("a.png", "b.png")
    assert source.height == 8
    write_tar(tmp_path / "1.tar", {"a.png": png(4)})
    assert "0.tar: a.png is in 1.tar too; give each file a path of its own" in refusal(tmp_path)


def test_keys_that_begin_anew_in_each_shard_are_told_apart_by_it(tmp_path):
    for number in range(3):
        files = {"0.png": png(number), "0.cls": b"%d" % (number % 2), "1.png": png(9 + number), "1.cls": b"1"}
        write_tar(tmp_path / f"{number:03}.tar", files)
    source = open_source("folder", "train", dir=str(tmp_path))
    assert source.files == ("000/0.png", "000/1.png", "001/0.png", "001/1.png", "002/0.png", "002/1.png")
    assert source.labels.tolist() == [0, 1, 1, 1, 0, 1]
    seeds = (0, 9, 1, 10, 2, 11)
    write_folder(tmp_path / "f", {f"{place}.png": png(seed) for place, seed in enumerate(seeds)})
    assert torch.equal(
        source.read(torch.arange(6)), open_source("folder", "train", dir=str(tmp_path / "f")).read(torch.arange(6))
    )


@pytest.mark.parametrize("names", [("a.png", "A.png"), ("é.png", "e\u0301.png"), ("a\n.png",), ("a\\b.png",)])
def test_names_are_those_that_a_folder_may_have(tmp_path, names):
    files = {name: png(1) for name in names}
    write_tar(tmp_path / "s" / "0.tar", files)
    write_folder(tmp_path / "f", files)
    told = [refusal(tmp_path / place).partition(f"/{place}: ")[2] for place in ("f", "s")]
    assert told[0] == told[1] != ""


def test_names_that_are_no_utf8_and_long_ones(tmp_path):
    long = "/".join(["n" * 90] * 3) + ".png"
    write_tar(tmp_path / "0.tar", {long: png(1)})
    assert open_source("folder", "train", dir=str(tmp_path)).files == (long,)
    write_tar(tmp_path / "0.tar", {"\udcff.png": png(1)})
    assert "is not UTF-8; rename it" in refusal(tmp_path)


def test_damaged_images_are_refused_or_left_out_as_in_a_folder(tmp_path):
    files = {"a.png": png(1), "b.png": png(2)[:60], "c.png": b"", "d.png": b"text"}
    write_tar(tmp_path / "s" / "0.tar", files)
    write_folder(tmp_path / "f", files)
    told = [refusal(tmp_path / place, image_size=4, channels=3) for place in ("f", "s")]
    assert told[0].replace("/f/", "/s/0.tar/") == told[1]
    del files["c.png"]
    write_tar(tmp_path / "s" / "0.tar", files)
    assert "s/0.tar/b.png: damaged image" in refusal(tmp_path / "s", image_size=4, channels=3)
    left = [open_source("folder", "train", dir=str(tmp_path / place), on_error="skip") for place in ("f", "s")]
    assert left[0].problems.items() - left[1].problems.items() == {("c.png", "empty file, expected an image")}
    assert left[1].files == ("a.png",)


def test_a_tar_file_of_which_something_is_missing_is_damaged(tmp_path):
    """Wherever it ends: nothing is left out in silence."""
    path = write_tar(tmp_path / "0.tar", {"a.png": png(1), "b.png": png(2), "c.png": png(3)})
    whole = path.read_bytes()
    end = 3 * 1024  # header and content of each
    assert not whole[end:].strip(b"\0")
    for length in (0, 100, 512, 700, 1024, 1536, 1700, 2 * 1024, 2900, end, end + 100):
        path.write_bytes(whole[:length])
        assert "0.tar: a damaged tar file, or none (" in refusal(tmp_path), length
    for place in (1024, 2 * 1024 + 10):  # a header that is none, amid the others
        path.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        assert "0.tar: a damaged tar file, or none (" in refusal(tmp_path), place
    source = open_source("folder", "train", dir=str(tmp_path), on_error="skip")
    assert (source.files, source.skipped) == (("a.png", "b.png"), ("0.tar",))
    path.write_bytes(whole + whole)  # two in one, of which programs read the first
    assert "no header at byte" in refusal(tmp_path)
    path.write_bytes(whole[: end + 512])  # one block of zeros is an end
    assert len(open_source("folder", "train", dir=str(tmp_path))) == 3


def test_a_member_that_ends_after_its_archive_is_left_out(tmp_path):
    path = write_tar(tmp_path / "0.tar", {"a.png": png(1), "b.png": png(2)})
    path.write_bytes(path.read_bytes()[: 1024 + 600])
    source = open_source("folder", "train", dir=str(tmp_path), on_error="skip")
    assert source.files == ("a.png",)
    assert [*source.problems] == ["0.tar", "b.png"]


def test_archives_of_which_no_file_can_be_read_alone(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(b"x")
    assert "no image in it" in (told := refusal(tmp_path))
    assert "a.tar.gz: an archive that cannot be read file by file; unpack it" in told
    write_tar(tmp_path / "b.tar", {"1.png": png(1)})
    assert "a.tar.gz: an archive that cannot be read file by file; unpack it" in refusal(tmp_path)
    (tmp_path / "a.tar.gz").rename(tmp_path / "a.tar")
    assert "a.tar: a damaged tar file, or none" in refusal(tmp_path)
    write_tar(tmp_path / "d" / "x" / "b.tar", {"1.png": png(1)})
    write_tar(tmp_path / "d" / "y" / "b.tar", {"1.png": png(1)})
    assert "x/b.tar is a shard: give a folder that holds shards alone, directly" in refusal(tmp_path / "d")


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda path: path.symlink_to("/nowhere/1.tar"), "cannot be read (No such file or directory)"),
        (os.mkfifo, "cannot be read (it is no file)"),
    ],
)
def test_what_is_called_like_a_shard_and_is_none(tmp_path, make, part):
    write_tar(tmp_path / "0.tar", {"1.png": png(1)})
    make(tmp_path / "1.tar")
    assert f"1.tar: {part}" in refusal(tmp_path)


# the index of a shard ------------------------------------------------------------------------------------


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tar files that were looked into from here on."""
    monkeypatch.setattr(shards, "RACY", -(10**12))
    made: list[str] = []
    look = tar_shard.look_into
    monkeypatch.setattr(tar_shard, "look_into", lambda path: (made.append(path.name), look(path))[1])
    return made


def test_the_index_is_kept_as_long_as_the_shard_stays(root, tmp_path, cache, looks):
    several_tars(tmp_path / "s")
    folder = folders.scan(root / "train").files
    for _ in range(2):
        assert folders.scan(tmp_path / "s" / "train", trust_index=False).files == folder
    assert looks == ["0.tar", "1.tar", "2.tar"]
    del looks[:]
    (kept, *_) = sorted((cache / "shards").iterdir())
    for damage in (
        "",
        "{",
        "[]",
        '{"format": "usl-shard-index-1"}',
        kept.read_text().replace('"sizes": [', '"sizes": [1, '),
    ):
        kept.write_text(damage)
        assert folders.scan(tmp_path / "s" / "train").files == folder
    assert len(looks) == 5
    del looks[:]
    write_tar(tmp_path / "s" / "1.tar", {"train/cat/new.png": png(1)})
    assert "cat/new.png" in folders.scan(tmp_path / "s" / "train").files
    assert looks == ["1.tar"]


def test_a_shard_that_was_changed_just_now_is_looked_into_again(tmp_path, looks, monkeypatch):
    write_tar(tmp_path / "0.tar", {"1.png": png(1)})
    monkeypatch.setattr(shards, "RACY", 10**12)
    for _ in range(2):
        folders.scan(tmp_path)
    assert len(looks) == 2


def test_no_place_for_the_index_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("USL_CACHE", str(write_tar(tmp_path / "0.tar", {"1.png": png(1)})))
    assert len(folders.scan(tmp_path).files) == 1


@pytest.mark.parametrize("parquet", [False, True])
def test_a_shard_that_changes_while_it_is_used_is_refused(tmp_path, parquet):
    path = tmp_path / ("0.parquet" if parquet else "0.tar")

    def write(seed: int) -> None:
        image = png(seed)
        if parquet:
            write_parquet(path, [image])
        else:
            write_tar(path, {"1.png": image})

    write(1)
    source = open_source("folder", "train", dir=str(tmp_path), image_size=4, channels=3)
    source.read(torch.tensor([0]))
    content = path.read_bytes()
    path.write_bytes(content)  # the same, at another time
    with pytest.raises(UslError, match=rf"{path.name}: changed since the folder was listed; start again"):
        source.read(torch.tensor([0]))
    with noting():
        data_signature("folder", str(tmp_path))
        write(2)
        os.utime(path, (2e9, 2e9))
        with pytest.raises(UslError, match="was changed while this run was starting; start it again"):
            open_source("folder", "train", dir=str(tmp_path))
    path.unlink()
    with pytest.raises(UslError, match="cannot be read"):
        source.read(torch.tensor([0]))


def test_listing_shards_takes_little_memory_for_a_file(tmp_path):
    each, count = 1000, 20
    for shard in range(count):
        write_tar(tmp_path / f"{shard:03}.tar", {f"IMG_{shard:03}_{i:016}.JPG": b"" for i in range(each)})
    for _ in range(2):
        tracemalloc.start()
        found = folders.scan(tmp_path)
        kept, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(found.files) == each * count
        assert kept < 120 * each * count
        assert most < 240 * each * count


# what is done with them ----------------------------------------------------------------------------------


def test_the_labelling_page_shows_them(root, tmp_path):
    splits_by_the_names_of_tars(tmp_path / "shards")
    source, chosen = open_source("folder", "train", dir=str(root)), (3, 11, 0)
    for hashes in ((), tuple(source.content_hashes(chosen))):
        index = LabelIndex(
            dataset_id(source), {}, chosen, (None,) * 3, (),
            files=tuple(source.files[i] for i in chosen), hashes=hashes,
        )  # fmt: skip
        index.write(tmp_path / "labels.json")
        index = LabelIndex.read(tmp_path / "labels.json")
        folder, tars = (open_pictures(index, str(place)) for place in (root, tmp_path / "shards"))
        assert folder.classes == tars.classes == {"cat", "dog", "é"}
        for image in range(12):
            assert (folder.pixels(image) == tars.pixels(image)).all()
            assert folder.entry(image) == tars.entry(image)
            assert folder.place(folder.name(image)) == tars.place(folder.name(image)) == image
        assert not tars.has(12)
    write_tar(tmp_path / "shards" / "photos-train-000000.tar", {"cat/0.png": png(1)})
    with pytest.raises(UslError):
        tars.pixels(3)


def test_copies_by_class_are_the_files(root, tmp_path):
    several_tars(tmp_path / "shards")
    source = open_source("folder", "train", dir=str(tmp_path / "shards"))
    sort_into(source, range(12), [0, 1] * 6, ["a", "b"], tmp_path / "sorted")
    assert (tmp_path / "sorted" / "a" / "cat" / "0.png").read_bytes() == FILES["train/cat/0.png"]
    assert len([*(tmp_path / "sorted").rglob("*.png")]) == 12


# Parquet files -------------------------------------------------------------------------------------------


def as_parquet(root: Path, **options: object) -> Path:
    """Both splits, in the order of the folder, with the labels that its folders say."""
    for split in ("train", "test"):
        files = {f: c for f, c in sorted(FILES.items()) if f.startswith(split)}
        names = ("cat", "dog", "é")
        labels = [names.index(f.split("/")[1]) for f in files]
        for number in range(2):
            half = slice(6 * number, 6 * number + 6)
            write_parquet(
                root / f"{split}-{number:05}-of-00002.parquet", [*files.values()][half], labels[half], names=names,
                **options,
            )  # fmt: skip
    return root


@pytest.mark.parametrize("options", [{}, {"plain": True}, {"rows": 5}])
def test_parquet_files_are_a_folder_of_the_same_images(tmp_path, root, options):
    packed = as_parquet(tmp_path / "shards", **options)
    ending = "" if options.get("plain") else ".png"
    for split in ("train", "test"):
        folder, rows = (open_source("folder", split, dir=str(place)) for place in (root, packed))
        every = torch.arange(12)
        assert rows.files == tuple(f"{split}-{i // 6:05}-of-00002/{i % 6:08}{ending}" for i in range(12))
        assert rows.classes == folder.classes
        assert rows.labels.tolist() == folder.labels.tolist()
        for source in (rows, pickle.loads(pickle.dumps(rows))):
            assert torch.equal(source.read(every), folder.read(every))
            assert torch.equal(source.read(every.flip(0)), folder.read(every.flip(0)))
        assert [*rows.content_hashes(range(12))] == [*folder.content_hashes(range(12))]
        named = write_folder(
            tmp_path / "named" / split,
            dict(zip(rows.files, (c for f, c in sorted(FILES.items()) if split in f), strict=True)),
        )
        if ending:
            assert folders.fingerprint_of(*_listed(named)) == rows.fingerprint
    assert inspect_folder(packed).data == packed
    assert inspect_folder(packed).train.class_counts == {"cat": 4, "dog": 4, "é": 4}


def _listed(root: Path) -> tuple[tuple[str, ...], list[int]]:
    found = folders.scan(root)
    return found.files, list(found.sizes)


def test_labels_of_parquet_files(tmp_path):
    path, images = tmp_path / "p" / "x.parquet", [png(i) for i in range(3)]
    for labels, names, expected in (
        ([1, -1, 0], ["ant, bee", "N/A ltd", "cow"], (("ant, bee", "N/A ltd", "cow"), [1, -1, 0])),
        ([10, None, 2], None, (("2", "10"), [1, -1, 0])),
        (["dog", "cat", None], None, (("cat", "dog"), [1, 0, -1])),
        (None, None, ((), [-1, -1, -1])),
    ):
        write_parquet(path, images, labels, names=names)
        source = open_source("folder", "train", dir=str(path.parent))
        assert (source.classes, source.labels.tolist()) == expected
    write_parquet(path, images, [0, 1, 2], names=["a", "b"])
    assert "x.parquet: label of row 2 is 2, but there are 2 classes" in refusal(path.parent)
    write_parquet(path, images, [0.5, 1, 2])
    assert "x.parquet: label of row 0 is 0.5, expected a number or the name of one class" in refusal(path.parent)
    write_parquet(path, images, [0, 1, 0], names=["a", "b"])
    write_parquet(path.parent / "y.parquet", images, [0, 1, 0], names=["b", "a"])
    assert "y.parquet: its classes are others than those of" in refusal(path.parent)


def test_rows_without_an_image(tmp_path):
    write_parquet(tmp_path / "x.parquet", [png(1), None, b"", png(2)[:60]], [0, 1, 0, 1])
    assert "x.parquet/00000001.png: no image in this row" in refusal(tmp_path)
    source = open_source("folder", "train", dir=str(tmp_path), on_error="skip")
    assert source.files == ("x/00000000.png",)
    assert [*source.problems] == ["x.parquet/00000001.png", "x/00000002.png", "x/00000003.png"]


def test_parquet_files_that_are_none(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "x.parquet"
    write_parquet(path, [png(i) for i in range(4)])
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[:-20], whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert "x.parquet: a damaged Parquet file, or none (" in refusal(tmp_path)
    path.write_bytes(whole[:100] + bytes(200) + whole[300:])
    assert "x.parquet" in refusal(tmp_path)
    for table, part in (
        (pa.table({"text": ["a"]}), "no column image or img; it has text"),
        (pa.table({"image": ["a.png"]}), "column image is string, expected the bytes of image files"),
        (pa.table({"image": [{"path": "a.png"}]}), "column image is struct<path: string>, expected the bytes"),
    ):
        pq.write_table(table, path)
        assert part in refusal(tmp_path)


def test_without_pyarrow_a_line_says_what_to_install(tmp_path, monkeypatch):
    write_parquet(tmp_path / "x.parquet", [png(1)])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "Parquet files are read with pyarrow; pip install 'usl-lightning[parquet]'" in refusal(tmp_path)


def test_names_of_classes_are_read_from_the_metadata_alone_that_has_them(tmp_path):
    import pyarrow.parquet as pq

    path = write_parquet(tmp_path / "x.parquet", [png(1)], [0])
    for about in (b"{", b"[]", json.dumps({"info": {"features": {"label": 3}}}).encode()):
        pq.write_table(pq.read_table(path).replace_schema_metadata({b"huggingface": about}), path)
        os.utime(path, LONG_AGO)
        assert open_source("folder", "train", dir=str(tmp_path)).classes == ("0",)

"""Image folders: which files, which order, which classes, which pixels, and everything that can be wrong."""

import errno
import hashlib
import io
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from usl_lightning.base.errors import UslError
from usl_lightning.data.images import folders
from usl_lightning.data.images.decode import UnreadableImageError, decode, probe
from usl_lightning.data.images.opening import has_split, open_source, read_labels
from usl_lightning.data.images.signature import data_signature

rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("USL_CACHE", str(tmp_path / "cache"))


def picture(path: Path, size: tuple[int, int] = (12, 12), mode: str = "RGB", value: int | None = None) -> Path:
    """A picture of noise or of one value; `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) + ((len(mode),) if len(mode) > 1 else ())
    pixels = rng.integers(0, 256, shape) if value is None else np.full(shape, value)
    Image.fromarray(pixels.astype(np.uint8), mode).save(path)
    return path


def tree(root: Path, *names: str) -> str:
    for name in names:
        picture(root / name)
    return str(root)


def message(error: pytest.ExceptionInfo[UslError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# which files ---------------------------------------------------------------------------------------------


def test_pictures_of_kinds_that_are_not_read_are_told_once(tmp_path, caplog):
    root = tree(tmp_path / "d", "a/1.png", "b/1.png")
    for name in ("b/IMG_2.HEIC", "a/IMG_1.heic", "a/notes.txt", "a/.hidden.heic"):
        (tmp_path / "d" / name).write_bytes(b"x")
    for _ in range(2):
        assert len(open_source("folder", "train", dir=root)) == 2
    (line,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert line.startswith(f"{root}: a/IMG_1.heic is left out, of 2 pictures of kinds that are not read; convert them")


def test_files_are_in_code_point_order_and_classes_are_the_first_folder(tmp_path):
    names = [
        "b/2.png",
        "b/10.png",
        "a/x/deep/1.PNG",
        "a-b/1.png",
        "a/z.png",
        "é/1.png",
        "top.png",
        "B/1.jpg",
        "B/2.JFIF",
    ]
    source = open_source("folder", "train", dir=tree(tmp_path / "d", *names))
    assert list(source.files) == sorted(names)
    assert source.classes == ("B", "a", "a-b", "b", "é")
    expected = [-1 if "/" not in n else source.classes.index(n.split("/")[0]) for n in sorted(names)]
    assert source.labels.tolist() == expected


def test_the_images_and_classes_are_those_of_torchvision(tmp_path):
    from torchvision.datasets import ImageFolder

    root = tree(tmp_path / "d", *(f"{c}/{i}.png" for c in ("cat", "dog", "cow") for i in range(3)))
    ours, theirs = open_source("folder", "train", dir=root), ImageFolder(root)
    assert list(ours.classes) == theirs.classes
    assert ours.labels.tolist() == theirs.targets
    assert [os.path.join(root, f) for f in ours.files] == [path for path, _ in theirs.samples]
    pixels = np.stack([np.asarray(theirs[i][0]).transpose(2, 0, 1) for i in range(9)])
    assert np.array_equal(ours.read(torch.arange(9)), pixels)


def test_a_flat_folder_has_no_labels_and_other_files_are_left_out(tmp_path):
    root = tree(tmp_path / "d", "b.png", "a.png", ".hidden.png", ".git/c.png")
    (tmp_path / "d" / "notes.txt").write_text("x")
    source = open_source("folder", "train", dir=root)
    assert source.files == ("a.png", "b.png")
    assert source.labels.tolist() == [-1, -1]
    assert source.classes == ()


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-cé]{1,2}(/[a-c]{1,2}){0,2}", fullmatch=True), st.integers(0, 99)))
def test_fingerprint_rule(sizes):
    files = sorted(sizes)
    expected = hashlib.sha256()
    for file in files:
        expected.update(file.encode("utf-8") + b"\0" + str(sizes[file]).encode("ascii") + b"\0")
    assert folders.fingerprint_of(files, [sizes[f] for f in files]) == "sha256:" + expected.hexdigest()


def test_fingerprint_is_of_names_and_sizes_alone(tmp_path):
    root = tree(tmp_path / "d", "a/1.png", "b/2.png")
    first = open_source("folder", "train", dir=root)
    assert first.fingerprint == open_source("folder", "train", dir=root, image_size=5, channels=1).fingerprint
    os.rename(tmp_path / "d", tmp_path / "moved")
    assert open_source("folder", "train", dir=str(tmp_path / "moved")).fingerprint == first.fingerprint
    os.rename(tmp_path / "moved/a/1.png", tmp_path / "moved/a/3.png")
    assert open_source("folder", "train", dir=str(tmp_path / "moved")).fingerprint != first.fingerprint


def test_links_are_followed_but_not_in_circles(tmp_path):
    root = tree(tmp_path / "d", "a/1.png")
    tree(tmp_path / "elsewhere", "2.png")
    (tmp_path / "d" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "d" / "a" / "loop").symlink_to(tmp_path / "d")
    found = folders.scan(Path(root))
    assert found.files == ("a/1.png", "b/2.png")


def test_splits(tmp_path):
    root = tree(tmp_path / "d", "train/a/1.png", "train/b/1.png", "test/b/1.png")
    train, test = (open_source("folder", s, dir=root) for s in ("train", "test"))
    assert train.classes == test.classes == ("a", "b")
    assert test.labels.tolist() == [1]
    assert has_split("folder", "test", dir=root)
    assert not has_split("folder", "val", dir=root)
    os.rename(tmp_path / "d/test", tmp_path / "d/val")
    assert open_source("folder", "test", dir=root).files == ("b/1.png",)
    os.rename(tmp_path / "d/val", tmp_path / "d/other")
    assert not has_split("folder", "test", dir=root)
    assert open_source("folder", "train", dir=root).classes == ("other", "train")
    with pytest.raises(UslError) as error:
        open_source("folder", "test", dir=root)
    assert "no split 'test'" in message(error)


def test_imagenet_and_its_subset(tmp_path):
    ids = ["n01440764", "n01443537", "n02119789"]
    for wnid in ids:
        tree(tmp_path / "imagenet", f"train/{wnid}/{wnid}_1.JPEG", f"val/{wnid}/ILSVRC2012_val_1.JPEG")
    source = open_source("imagenet", "train", dir=str(tmp_path))
    assert source.classes == tuple(ids)
    assert open_source("imagenet", "test", dir=str(tmp_path)).labels.tolist() == [0, 1, 2]
    (tmp_path / "list.txt").write_text(f"# two\n{ids[2]} kit fox\n\n{ids[0]} tench\n")
    options = {"dir": str(tmp_path), "class_list": str(tmp_path / "list.txt")}
    subset = open_source("imagenet100", "train", **options)
    assert subset.classes == (ids[2], ids[0])
    assert subset.files == (f"{ids[0]}/{ids[0]}_1.JPEG", f"{ids[2]}/{ids[2]}_1.JPEG")
    assert subset.labels.tolist() == [1, 0]
    assert open_source("imagenet100", "test", **options).labels.tolist() == [1, 0]
    with pytest.raises(UslError, match=r"--data\.class_list"):
        open_source("imagenet100", "train", dir=str(tmp_path))
    (tmp_path / "list.txt").write_text("n01440765\n")
    with pytest.raises(UslError, match="did you mean 'n01440764'"):
        open_source("imagenet100", "train", **options)
    with pytest.raises(UslError, match="looked in"):
        open_source("imagenet", "train", dir=str(tmp_path / "list.txt"))


def test_labels_of_a_csv(tmp_path):
    root = tree(tmp_path / "d", "1.png", "2.png", "sub/3.png", "4.png")
    csv = tmp_path / "labels.csv"
    csv.write_text("file,label\n1.png,10\nsub/3.png,9\n4.png,\n")
    source = open_source("folder", "train", dir=root, labels_file=str(csv))
    assert source.classes == ("9", "10")
    assert dict(zip(source.files, source.labels.tolist(), strict=True)) == {
        "1.png": 1, "2.png": -1, "4.png": -1, "sub/3.png": 0,
    }  # fmt: skip
    (tmp_path / "order.txt").write_text("10\n8\n9\n")
    options = {"dir": root, "labels_file": str(csv), "class_list": str(tmp_path / "order.txt")}
    assert open_source("folder", "train", **options).classes == ("10", "8", "9")


def test_what_is_beside_splits_is_told(tmp_path, caplog):
    folder = tree(tmp_path, "train/a/1.png", "train/b/2.png", "test/a/3.png")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "read.txt").write_text("none")
    open_source("folder", "train", dir=folder, image_size=8)
    assert "passed over" not in caplog.text
    other = tree(tmp_path / "other", "Train/a/1.png", "val/a/3.png", "x.png", "y.png", "extra/deeper/4.png")
    open_source("folder", "train", dir=other, image_size=8)
    assert f"{other}: passed over beside Train, val: extra, of 3 images and folders of images" in caplog.text


def test_only_class_with_folders_of_its_own_is_told(tmp_path, caplog):
    one = tree(tmp_path / "one", "all/1.png", "all/part/2.png")
    assert open_source("folder", "train", dir=one, image_size=8).classes == ("all",)
    assert "only class" not in caplog.text
    lone = tree(tmp_path / "lone", "all/cat/1.png", "all/dog/2.png")
    assert open_source("folder", "train", dir=lone, image_size=8).classes == ("all",)
    assert (
        f"all is its only class, with all images of cat, dog; if those are the classes, give --data.dir {lone}/all"
        in (caplog.text)
    )


def test_one_csv_for_both_splits(tmp_path):
    root = tree(tmp_path / "d", "train/1.png", "train/2.png", "test/1.png")
    csv = tmp_path / "labels.csv"
    csv.write_text("file,label\ntrain/1.png,cat\ntest/1.png,dog\n")
    train, test = (open_source("folder", s, dir=root, labels_file=str(csv)) for s in ("train", "test"))
    assert train.classes == test.classes == ("cat", "dog")
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, -1], [1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected file,label"),
        ("name,class\n", "expected file,label"),
        ("file,label\n1.png\n", "line 2 has 1 values"),
        ("file,label\n1.png,a\n1.png,b\n", "line 3 names 1.png a second time"),
        ("file,label\nnone.png,a\n", "no image none.png"),
        ("file,label\n../1.png,a\n", "no image ../1.png"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_bad_csv(tmp_path, text, expected):
    root = tree(tmp_path / "d", "1.png")
    (tmp_path / "l.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UslError) as error:
        open_source("folder", "train", dir=root, labels_file=str(tmp_path / "l.csv"))
    assert expected in message(error)
    assert "l.csv" in str(error.value)


def test_bad_folders(tmp_path):
    def refused(expected: str, **options: object) -> None:
        with pytest.raises(UslError) as error:
            open_source("folder", "train", **{"dir": str(tmp_path / "d"), **options})
        assert expected in message(error)

    refused("no such folder")
    refused("--data.dir", dir=None)
    (tmp_path / "d").mkdir()
    refused("no image in it; expected files that end in .jpg")
    tree(tmp_path / "d", "a/1.png")
    (tmp_path / "d" / "b").mkdir()
    refused("b: class folder without an image")
    os.rmdir(tmp_path / "d" / "b")
    picture(tmp_path / "d" / "a" / "1.PNG")
    refused("a/1.PNG and a/1.png differ only by case")
    os.remove(tmp_path / "d" / "a" / "1.PNG")
    (tmp_path / "d" / "gone.png").symlink_to(tmp_path / "nothing")
    refused("gone.png")


def test_a_test_class_that_training_lacks(tmp_path):
    root = tree(tmp_path / "d", "train/a/1.png", "test/b/1.png")
    with pytest.raises(UslError, match="class b is not among those of"):
        open_source("folder", "test", dir=root)


def test_a_name_that_is_not_utf8(tmp_path):
    root = tree(tmp_path / "d", "1.png")
    with open(os.fsencode(root) + b"/\xff.png", "wb") as file:
        file.write(b"x")
    with pytest.raises(UslError, match="not UTF-8"):
        open_source("folder", "train", dir=root)


# the kept list -------------------------------------------------------------------------------------------


def kept_folder(tmp_path, monkeypatch, past: bool = True) -> Path:
    """A folder whose list is kept, last changed long ago."""
    monkeypatch.setattr(folders, "_INDEXED", 1)
    root = Path(tree(tmp_path / "d", "a/1.png", "b/2.png"))
    if past:
        for folder in (root, root / "a", root / "b"):
            os.utime(folder, (1e9, 1e9))
    return root


def scans(monkeypatch) -> list[int]:
    """Counts the scans made from here on."""
    made: list[int] = []
    walk = folders._walk
    monkeypatch.setattr(folders, "_walk", lambda *a: (made.append(1), walk(*a))[1])
    return made


def test_the_list_is_kept_and_equal(tmp_path, monkeypatch):
    root = kept_folder(tmp_path, monkeypatch)
    made = scans(monkeypatch)
    first = folders.scan(root)
    assert folders.scan(root) == first
    assert len(made) == 1
    assert folders.scan(root, trust_index=False) == first
    assert len(made) == 2
    assert folders.scan(root, ("a",)).files == ("a/1.png",)


def test_the_list_is_made_again_when_the_folder_changes(tmp_path, monkeypatch):
    root = kept_folder(tmp_path, monkeypatch)
    folders.scan(root)
    picture(root / "b" / "3.png")
    assert folders.scan(root).files == ("a/1.png", "b/2.png", "b/3.png")
    os.remove(root / "a" / "1.png")
    assert folders.scan(root).files == ("b/2.png", "b/3.png")


def test_the_list_is_not_trusted_when_the_folder_changed_just_before(tmp_path, monkeypatch):
    root = kept_folder(tmp_path, monkeypatch, past=False)
    made = scans(monkeypatch)
    folders.scan(root)
    folders.scan(root)
    assert len(made) == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": "usl-folder-index-1"}'])
def test_a_damaged_list_is_made_again(tmp_path, monkeypatch, damage):
    root = kept_folder(tmp_path, monkeypatch)
    first = folders.scan(root)
    (kept,) = (tmp_path / "cache" / "folders").iterdir()
    kept.write_text(damage)
    assert folders.scan(root) == first


def test_listing_takes_little_memory_for_a_file(tmp_path, monkeypatch):
    """Ten million files in one folder are some two gigabytes at most, kept list or not."""
    count, root = 10_000, tmp_path / "d"
    root.mkdir()
    for i in range(count):
        (root / f"IMG_2024_{i:016}.JPG").touch()
    os.utime(root, (1e9, 1e9))
    made = scans(monkeypatch)
    for _ in range(2):
        tracemalloc.start()
        found = folders.scan(root)
        kept, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(found.files) == count
        assert kept < 110 * count
        assert most < 200 * count
    assert len(made) == 1


def test_no_place_for_the_list_is_no_error(tmp_path, monkeypatch):
    root = kept_folder(tmp_path, monkeypatch)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("USL_CACHE", str(tmp_path / "file"))
    assert folders.scan(root).files == ("a/1.png", "b/2.png")


def test_a_file_rewritten_in_place_is_found_when_read(tmp_path, monkeypatch):
    root = kept_folder(tmp_path, monkeypatch)
    options = {"dir": str(root), "image_size": 8, "channels": 3}
    open_source("folder", "train", **options)
    picture(root / "a" / "1.png", (40, 40))
    os.utime(root / "a", (1e9, 1e9))
    source = open_source("folder", "train", **options)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", forbidden)
        with pytest.raises(UslError, match=r"1\.png: changed since the folder was listed"):
            source.read(torch.tensor([0]))
    with pytest.raises(UslError, match="changed since"):
        source.read(torch.tensor([0]))
    open_source("folder", "train", **options).read(torch.tensor([0]))  # the list was dropped


def forbidden(*_args, **_options):
    """Of another user's file in another user's folder."""
    raise PermissionError(errno.EACCES, "Permission denied")


# pixels --------------------------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
@pytest.mark.parametrize("channels", [1, 3])
def test_kinds_of_files_are_converted_as_pil_does(mode, channels):
    colour = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    image = colour.convert(mode)
    kind = {"CMYK": "TIFF", "YCbCr": "TIFF", "HSV": "TIFF"}.get(mode, "PNG")
    if mode == "HSV":  # no format holds it; it comes from TIFF plug-ins only
        kind, image = "PNG", colour
    content = encoded(image, kind)
    theirs = np.asarray(Image.open(io.BytesIO(content)).convert("L" if channels == 1 else "RGB"))
    assert np.array_equal(decode(content, "x", channels, None), theirs.reshape(9, 9, channels))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(kind):
    values = np.array([[0, 1, 128, 129], [257, 32768, 65534, 65535]], dtype=np.uint16)
    content = encoded(Image.fromarray(values), kind)
    expected = np.rint(values.astype(np.float64) * 255 / 65535)
    assert np.array_equal(decode(content, "x", 1, None)[:, :, 0], expected)
    assert np.array_equal(decode(content, "x", 3, None), np.repeat(expected[:, :, None], 3, 2))
    assert probe(content, "x").grey


@pytest.mark.parametrize(
    ("values", "expected"),
    [(np.full((2, 2), 0.5, np.float32), "mode F"), (np.full((2, 2), 70000, np.int32), "32-bit")],
)
def test_kinds_that_are_refused_by_name(values, expected):
    with pytest.raises(UnreadableImageError, match=r"folder/x\.tif") as error:
        decode(encoded(Image.fromarray(values), "TIFF"), "folder/x.tif", 3, None)
    assert expected in message(error)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 32), st.sampled_from([1, 3]))
def test_resized_to_the_centre_square_as_pil(width, height, size, channels):
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    ours = decode(encoded(image), "x", channels, size)
    assert ours.shape == (size, size, channels)
    side, left, top = min(width, height), (width - min(width, height)) // 2, (height - min(width, height)) // 2
    square = image.convert("L" if channels == 1 else "RGB").crop((left, top, left + side, top + side))
    theirs = np.asarray(square.resize((size, size), Image.Resampling.BILINEAR)).reshape(ours.shape)
    assert np.array_equal(ours, theirs)


def test_a_big_jpeg_is_close_to_the_whole_decoded():
    from sklearn.datasets import load_sample_image

    photo = Image.fromarray(load_sample_image("china.jpg"))
    content = encoded(photo, "JPEG", quality=95)
    ours = decode(content, "x", 3, 64).astype(int)
    side = min(photo.size)
    left = (photo.size[0] - side) // 2
    whole = Image.open(io.BytesIO(content)).crop((left, 0, left + side, side))
    theirs = np.asarray(whole.resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(ours - theirs).mean() < 2
    assert np.abs(ours - theirs).max() < 32


def test_channels_and_size_come_from_the_files(tmp_path):
    for i in range(3):
        picture(tmp_path / "grey" / f"{i}.png", (8, 6), "L")
    source = open_source("folder", "train", dir=str(tmp_path / "grey"))
    assert (source.channels, source.height, source.width) == (1, 6, 8)
    assert source.nbytes == 3 * 48
    picture(tmp_path / "grey" / "3.png", (8, 6))
    assert open_source("folder", "train", dir=str(tmp_path / "grey")).channels == 3
    picture(tmp_path / "grey" / "4.png", (9, 6))
    with pytest.raises(UslError) as error:
        open_source("folder", "train", dir=str(tmp_path / "grey"))
    text = message(error)
    for part in ("4.png is 9×6", "0.png is 8×6", "--data.image_size"):
        assert part in text


def test_another_size_found_only_when_read(tmp_path, monkeypatch):
    root = tree(tmp_path / "d", *(f"{i}.png" for i in range(5)))
    monkeypatch.setattr("usl_lightning.data.images.sizes._PROBED", 1)
    picture(tmp_path / "d" / "3.png", (9, 6))
    source = open_source("folder", "train", dir=root)
    with pytest.raises(UslError, match=r"3\.png is 9×6, but .*0\.png is 12×12"):
        source.read(torch.tensor([2, 3]))


def test_read_statistics_and_pickle(tmp_path):
    root = tree(tmp_path / "d", *(f"{i % 3}/{i}.png" for i in range(20)))
    source = open_source("folder", "train", dir=root, image_size=10)
    everything = source.read(torch.arange(20))
    assert everything.shape == (20, 3, 10, 10)
    assert everything.is_contiguous()
    picks = torch.tensor([7, 0, 7, 19])
    assert torch.equal(source.read(picks), everything[picks])
    assert torch.equal(pickle.loads(pickle.dumps(source)).read(picks), everything[picks])
    assert torch.equal(torch.cat(list(source.read_batches(torch.arange(20).split(3)))), everything)
    mean, std = source.statistics()
    scaled = everything.double() / 255
    assert mean == pytest.approx(scaled.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert std == pytest.approx(scaled.var((0, 2, 3), correction=0).sqrt().tolist(), abs=1e-9)


def test_a_label_index_of_a_folder_names_its_files(tmp_path):
    root = tree(tmp_path / "d", "a/1.png", "b/2.png")
    source = open_source("folder", "train", dir=root)
    (tmp_path / "l.csv").write_text("Index,ImageID\n1,2\n0,1.png\n")
    assert read_labels(str(tmp_path / "l.csv"), source).labels == (1, 0)
    (tmp_path / "l.csv").write_text("Index,ImageID\n1,a/1.png\n")
    with pytest.raises(UslError, match=r"entry 0: index 1 is \"a/1\.png\" there, but b/2\.png in the data"):
        read_labels(str(tmp_path / "l.csv"), source)


# files that cannot be read -------------------------------------------------------------------------------


def damaged_folder(tmp_path: Path) -> str:
    root = tree(tmp_path / "d", *(f"a/{i}.png" for i in range(6)))
    whole = (tmp_path / "d/a/1.png").read_bytes()
    (tmp_path / "d/a/1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "d/a/4.png").write_bytes(b"this is text")
    return root


def test_a_damaged_image_is_named(tmp_path):
    source = open_source("folder", "train", dir=damaged_folder(tmp_path), image_size=8, channels=3)
    source.read(torch.tensor([0, 2]))
    for i, expected in ((1, "damaged image"), (4, "not an image file")):
        with pytest.raises(UslError, match=f"a/{i}\\.png: {expected}") as error:
            source.read(torch.tensor([0, i]))
        message(error)


def test_an_empty_image_stops_at_once(tmp_path):
    root = damaged_folder(tmp_path)
    (tmp_path / "d/a/2.png").write_bytes(b"")
    with pytest.raises(UslError, match=r"a/2\.png: empty file, expected an image"):
        open_source("folder", "train", dir=root, image_size=8, channels=3)


def test_skipping_counts_and_lists(tmp_path, caplog):
    root = damaged_folder(tmp_path)
    (tmp_path / "d/a/2.png").write_bytes(b"")
    source = open_source("folder", "train", dir=root, image_size=8, on_error="skip")
    assert source.skipped == ("a/1.png", "a/2.png", "a/4.png")
    assert source.files == ("a/0.png", "a/3.png", "a/5.png")
    assert "3 of 6 images cannot be read and are left out: a/1.png, a/2.png, a/4.png" in caplog.text
    assert source.read(torch.arange(3)).shape == (3, 3, 8, 8)
    sizes = [os.path.getsize(os.path.join(root, f)) for f in source.files]
    assert source.fingerprint == folders.fingerprint_of(source.files, sizes)


def test_skipping_looks_once(tmp_path, monkeypatch):
    root = damaged_folder(tmp_path)
    first = open_source("folder", "train", dir=root, image_size=8, on_error="skip", channels=3)
    monkeypatch.setattr("usl_lightning.data.images.unreadable.decode", lambda *_: pytest.fail("decoded again"))
    again = open_source("folder", "train", dir=root, image_size=8, on_error="skip", channels=3)
    assert again.skipped == first.skipped


def test_skipping_everything_is_an_error(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/1.png").write_bytes(b"")
    with pytest.raises(UslError, match="none of its 1 images can be read"):
        open_source("folder", "train", dir=str(tmp_path / "d"), on_error="skip")


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    content = encoded(Image.new("RGB", (11, 11)))
    with pytest.raises(UnreadableImageError, match="limit of 100 pixels"):
        decode(content, "x", 3, None)


# the chain's question ------------------------------------------------------------------------------------


def test_data_signature_of_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_INDEXED", 1)
    root = tree(tmp_path / "d", "train/a/1.png", "test/a/1.png")
    first = data_signature("folder", root)
    assert data_signature("folder", root) == first
    os.rename(tmp_path / "d", tmp_path / "e")
    root = str(tmp_path / "e")
    assert data_signature("folder", root) == first
    for place in ("e/test/a", "e/test"):
        os.utime(tmp_path / place, (1e9, 1e9))
    assert data_signature("folder", root) == first  # keeps the list
    picture(tmp_path / "e/test/a/1.png", (50, 50))  # rewritten in place: found, the list is not trusted
    assert "a/1.png" in folders.scan(tmp_path / "e" / "test").files
    second = data_signature("folder", root)
    assert second != first
    csv = tmp_path / "l.csv"
    csv.write_text("file,label\ntrain/a/1.png,x\n")
    third = data_signature("folder", root, labels_file=str(csv))
    csv.write_text("file,label\ntrain/a/1.png,y\n")
    assert len({second, third, data_signature("folder", root, labels_file=str(csv))}) == 3


def test_data_signature_of_arrays(tmp_path, caplog):
    np.save(tmp_path / "train.npy", np.zeros((3, 4, 4), np.uint8))
    first = data_signature("arrays", str(tmp_path))
    np.save(tmp_path / "train.npy", np.zeros((4, 4, 4), np.uint8))
    assert data_signature("arrays", str(tmp_path)) != first
    assert data_signature("digits") == data_signature("digits", str(tmp_path))
    assert "not looked at, data set digits is built in" in caplog.text
    with pytest.raises(UslError, match="was not found"):
        data_signature("cifar10", str(tmp_path))


def test_data_signature_imports_nothing_heavy():
    import subprocess
    import sys

    code = (
        "import sys, usl_lightning.data.images.signature as s, usl_lightning.labels, usl_lightning.labels.formats;"
        "s.data_signature('digits');"
        "sys.exit(','.join({'torch', 'numpy', 'PIL', 'lightning', 'sklearn'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_named_classes_take_the_place_of_the_folders(tmp_path):
    root = tree(tmp_path / "photos", "may/1.png", "may/2.png", "june/3.png", "4.png")
    source = open_source("folder", "train", dir=root, classes=["cat", "golden retriever"])
    assert source.classes == ("cat", "golden retriever")
    assert source.labels.tolist() == [-1] * 4
    assert source.fingerprint == open_source("folder", "train", dir=root).fingerprint
    assert open_source("folder", "train", dir=root, classes=[]).classes == ()
    with pytest.raises(UslError, match=r"--data\.classes is for images without labels"):
        open_source("folder", "train", dir=root, classes=["cat"], class_list="list.txt")
    with pytest.raises(UslError, match=r"--data\.classes is for image folders"):
        open_source("digits", "train", classes=["cat"])

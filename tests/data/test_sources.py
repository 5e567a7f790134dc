"""Named data sets: small files of the real formats, read by us and by torchvision."""

import gzip
import hashlib
import io
import os
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from usl_lightning.base.errors import UslError
from usl_lightning.data.images import catalog
from usl_lightning.data.images.arrays import read_idx, unpickle_arrays
from usl_lightning.data.images.download import Download, fetch
from usl_lightning.data.images.opening import has_split, open_source, read_labels
from usl_lightning.data.images.source import ArraySource, convert_images, dataset_id
from usl_lightning.labels import LabelIndex
from usl_lightning.labels.entries import DatasetId

rng = np.random.default_rng(0)
FASHION = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")


def one_line(error: pytest.ExceptionInfo[UslError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# files of the real formats -------------------------------------------------------------------------------


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wb") as file:
        file.write(header + array.tobytes())


def make_fashion(root: Path, suffix: str = "") -> None:
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for stem, n in (("train", 30), ("t10k", 12)):
        write_idx(raw / f"{stem}-images-idx3-ubyte{suffix}", rng.integers(0, 256, (n, 28, 28), dtype=np.uint8))
        write_idx(raw / f"{stem}-labels-idx1-ubyte{suffix}", (np.arange(n) % 10).astype(np.uint8))


def make_cifar(root: Path, name: str, text_keys: bool) -> None:
    """Batches as in the original archives (text keys there; bytes when Python 3 rewrote them)."""
    if name == "cifar10":
        folder, files, key = root / "cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], "labels"
        files.append("test_batch")
        meta = ("batches.meta", {"label_names": list(catalog.ARRAY_SETS["cifar10"].classes)})
    else:
        folder, files, key = root / "cifar-100-python", ["train", "test"], "fine_labels"
        meta = ("meta", {"fine_label_names": list(catalog.ARRAY_SETS["cifar100"].classes)})
    folder.mkdir(parents=True)
    convert = (lambda k: k) if text_keys else str.encode
    for file in files:
        content = {
            "batch_label": file,
            "data": rng.integers(0, 256, (7, 3072), dtype=np.uint8),
            key: rng.integers(0, 10, 7).tolist(),
            "filenames": ["a.png"] * 7,
        }
        with open(folder / file, "wb") as out:
            pickle.dump({convert(k): v for k, v in content.items()}, out, protocol=2)
    with open(folder / meta[0], "wb") as out:
        pickle.dump(meta[1], out, protocol=2)


def make_svhn(root: Path) -> None:
    from scipy.io import savemat

    for split in ("train", "test", "extra"):
        images = rng.integers(0, 256, (32, 32, 3, 11), dtype=np.uint8)
        labels = np.array([10, *range(1, 11)], dtype=np.uint8)[:, None]
        savemat(root / f"{split}_32x32.mat", {"X": images, "y": labels})


def make_stl10(root: Path) -> None:
    folder = root / "stl10_binary"
    folder.mkdir()
    for split in ("train", "test", "unlabeled"):
        rng.integers(0, 256, (4, 3, 96, 96), dtype=np.uint8).tofile(folder / f"{split}_X.bin")
        if split != "unlabeled":
            np.array([1, 10, 3, 4], dtype=np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(catalog.ARRAY_SETS["stl10"].classes))
    (folder / "fold_indices.txt").write_text("0 1\n")


def pixels_of(dataset) -> np.ndarray:
    """A torchvision data set's images as [n, c, h, w]."""
    images = np.stack([np.asarray(dataset[i][0]) for i in range(len(dataset))])
    return images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)


# against torchvision -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_as_torchvision(tmp_path, suffix):
    from torchvision.datasets import FashionMNIST

    make_fashion(tmp_path, suffix)
    for split in ("train", "test"):
        ours = open_source("fashion_mnist", split, dir=str(tmp_path))
        if suffix:  # torchvision wants the files unpacked beside
            for path in (tmp_path / "FashionMNIST" / "raw").glob("*.gz"):
                path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        theirs = FashionMNIST(str(tmp_path), train=split == "train")
        assert np.array_equal(ours.read(torch.arange(len(ours))), pixels_of(theirs))
        assert ours.labels.tolist() == theirs.targets.tolist()
        assert list(ours.classes) == theirs.classes
        assert (ours.channels, ours.height, ours.width) == (1, 28, 28)


@pytest.mark.parametrize("text_keys", [True, False])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_as_torchvision(tmp_path, monkeypatch, name, text_keys):
    from torchvision.datasets import CIFAR10, CIFAR100, cifar

    make_cifar(tmp_path, name, text_keys)
    ours = {s: open_source(name, s, dir=str(tmp_path)) for s in ("train", "test")}
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)
    if not text_keys:  # torchvision reads the original keys only
        folder = next(tmp_path.iterdir())
        for path in folder.iterdir():
            content = pickle.loads(path.read_bytes())
            content = {k.decode() if isinstance(k, bytes) else k: v for k, v in content.items()}
            path.write_bytes(pickle.dumps(content, protocol=2))
    for split, source in ours.items():
        theirs = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name](str(tmp_path), train=split == "train")
        assert np.array_equal(source.images, pixels_of(theirs))
        assert source.labels.tolist() == theirs.targets
        assert list(source.classes) == theirs.classes
    assert len(ours["train"]) == (35 if name == "cifar10" else 7)


@pytest.mark.parametrize("split", ["train", "test", "extra"])
def test_svhn_as_torchvision(tmp_path, monkeypatch, split):
    from torchvision.datasets import SVHN

    make_svhn(tmp_path)
    monkeypatch.setattr(SVHN, "_check_integrity", lambda _: True)
    ours, theirs = open_source("svhn", split, dir=str(tmp_path)), SVHN(str(tmp_path), split)
    assert np.array_equal(ours.images, theirs.data)
    assert ours.labels.tolist() == theirs.labels.tolist()
    assert ours.labels[0] == 0  # written as 10


@pytest.mark.parametrize("split", ["train", "test", "unlabeled", "train+unlabeled"])
def test_stl10_as_torchvision(tmp_path, monkeypatch, split):
    from torchvision.datasets import STL10

    make_stl10(tmp_path)
    monkeypatch.setattr(STL10, "_check_integrity", lambda _: True)
    ours, theirs = open_source("stl10", split, dir=str(tmp_path)), STL10(str(tmp_path), split)
    assert np.array_equal(ours.images, pixels_of(theirs))
    assert ours.labels.tolist() == [int(theirs[i][1]) for i in range(len(theirs))]
    assert list(ours.classes) == theirs.classes


@pytest.mark.parametrize("options", [{}, {"image_size": 32}, {"channels": 1}])
def test_labels_of_the_first_split_are_labels_of_the_sum(tmp_path, options):
    """As FixMatch's STL-10 needs: chosen from the images of known class, learned beside all others."""
    make_stl10(tmp_path)
    part = open_source("stl10", "train", dir=str(tmp_path))
    index = LabelIndex(dataset_id(part), {}, (3, 0), (3, 0), part.classes)
    index.write(tmp_path / "chosen.json")
    whole = open_source("stl10", "train+unlabeled", dir=str(tmp_path), **options)
    index = read_labels(str(tmp_path / "chosen.json"), whole)
    assert (index.indices, index.labels, index.dataset) == ((3, 0), (3, 0), dataset_id(whole))
    with pytest.raises(UslError, match="chosen from stl10/train"):
        read_labels(str(tmp_path / "chosen.json"), open_source("stl10", "unlabeled+train", dir=str(tmp_path)))
    make_other = (tmp_path / "stl10_binary" / "train_X.bin").read_bytes()
    (tmp_path / "stl10_binary" / "train_X.bin").write_bytes(bytes([make_other[0] ^ 1]) + make_other[1:])
    with pytest.raises(UslError, match="chosen from stl10/train"):
        read_labels(str(tmp_path / "chosen.json"), open_source("stl10", "train+unlabeled", dir=str(tmp_path)))


def test_cifar100_has_the_hundred_names_in_order():
    names = catalog.ARRAY_SETS["cifar100"].classes
    assert len(names) == 100
    assert list(names) == sorted(names)


# the others ----------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_in_the_documented_order():
    from sklearn.datasets import load_digits

    data, labels = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(1797)
    train, test = open_source("digits", "train"), open_source("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert np.array_equal(torch.cat([train.labels, test.labels]), labels[order])
    back = torch.cat([train.images, test.images]).reshape(1797, 64).double() * 16 / 255
    assert np.array_equal(back.round(), data[order])
    assert train.images.max() == 255
    # Label indices are worth nothing if this changes.
    assert train.fingerprint == "sha256:de6d7d5cd347264ec40839423f43bc4df987fbe263a43e6059157c57f11de7c7"


@pytest.mark.skipif(not FASHION.exists(), reason="Fashion-MNIST is not here: apt-get install dataset-fashion-mnist")
def test_the_real_fashion_mnist_is_found_by_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("USL_DATA", str(tmp_path))
    train, test = open_source("fashion_mnist", "train"), open_source("fashion_mnist", "test")
    assert (len(train), len(test)) == (60000, 10000)
    assert train.labels.bincount().tolist() == [6000] * 10
    mean, std = train.statistics()  # the published figures are 0.2860 and 0.3530
    assert mean == pytest.approx((0.2860,), abs=2e-4)
    assert std == pytest.approx((0.3530,), abs=2e-4)


@pytest.mark.parametrize("name", ["bloodmnist", "medmnist:bloodmnist"])
@pytest.mark.parametrize("size", [None, 64])
def test_medmnist(tmp_path, name, size):
    content = {}
    for split, n in (("train", 9), ("val", 8), ("test", 5)):
        content[f"{split}_images"] = rng.integers(0, 256, (n, size or 28, size or 28, 3), dtype=np.uint8)
        content[f"{split}_labels"] = (np.arange(n) % 8).astype(np.uint8)[:, None]
    np.savez_compressed(tmp_path / ("bloodmnist_64.npz" if size else "bloodmnist.npz"), **content)
    for split in ("train", "val", "test"):
        source = open_source(name, split, dir=str(tmp_path), image_size=size)
        assert np.array_equal(source.images, content[f"{split}_images"].transpose(0, 3, 1, 2))
        assert np.array_equal(source.labels, content[f"{split}_labels"][:, 0])
    assert source.name == "bloodmnist"
    assert source.classes[7] == "platelet"


def test_several_labels_an_image_are_no_label(tmp_path):
    np.savez(
        tmp_path / "chestmnist.npz",
        train_images=np.zeros((3, 28, 28), np.uint8),
        train_labels=np.ones((3, 14), np.uint8),
    )
    source = open_source("chestmnist", "train", dir=str(tmp_path))
    assert source.labels.tolist() == [-1] * 3
    assert source.classes == ()


def test_own_arrays(tmp_path):
    grey, colour = np.arange(2 * 4 * 5, dtype=np.uint8).reshape(2, 4, 5), np.zeros((3, 4, 4, 3), np.uint8)
    np.save(tmp_path / "x.npy", grey)
    source = open_source("arrays", "train", dir=str(tmp_path / "x.npy"))
    assert np.array_equal(source.images[:, 0], grey)
    assert source.labels.tolist() == [-1, -1]
    assert not has_split("arrays", "test", dir=str(tmp_path / "x.npy"))

    np.savez(tmp_path / "one.npz", images=colour, labels=[2, -1, 0], classes=["a", "b", "c"])
    source = open_source("arrays", "train", dir=str(tmp_path / "one.npz"))
    assert (source.classes, source.labels.tolist()) == (("a", "b", "c"), [2, -1, 0])
    assert source.images.shape == (3, 3, 4, 4)

    np.savez(
        tmp_path / "two.npz",
        train_images=colour,
        train_labels=[[0], [1], [0]],
        test_images=grey,
        test_labels=[3, 1],
    )
    assert has_split("arrays", "test", dir=str(tmp_path / "two.npz"))
    train = open_source("arrays", "train", dir=str(tmp_path / "two.npz"))
    test = open_source("arrays", "test", dir=str(tmp_path / "two.npz"))
    assert train.classes == test.classes == ("0", "1", "2", "3")

    folder = tmp_path / "folder"
    folder.mkdir()
    np.save(folder / "train.npy", grey)
    np.savez(folder / "test.npz", images=grey, labels=[1, 0])
    assert has_split("arrays", "test", dir=str(folder))
    assert open_source("arrays", "test", dir=str(folder)).labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"images": np.zeros((2, 4, 4), np.float32)}, "float32"),
        ({"images": np.zeros((2, 4, 4, 2), np.uint8)}, "2, 4, 4, 2"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": [0]}, "1 labels"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": [0.0, 1.0]}, "whole numbers"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": [0, -2]}, "whole numbers"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": [0, 2], "classes": ["a"]}, "classes"),
        ({"images": np.array([{}, {}], dtype=object)}, "cannot be read"),
        ({"pictures": np.zeros((2, 4, 4), np.uint8)}, "'images'"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, "no image"),
    ],
)
def test_own_arrays_refused(tmp_path, content, expected):
    np.savez(tmp_path / "x.npz", **content)
    with pytest.raises(UslError) as error:
        open_source("arrays", "train", dir=str(tmp_path / "x.npz"))
    assert expected in one_line(error)
    assert "x.npz" in str(error.value)


# what every source does ----------------------------------------------------------------------------------


def test_fingerprint_rule(tmp_path):
    images = torch.from_numpy(rng.integers(0, 256, (1500, 1, 2, 3), dtype=np.uint8))
    source = ArraySource(images, torch.zeros(1500, dtype=torch.int64), name="x", split="train")
    expected = hashlib.sha256(b"1500,1,2,3,uint8" + images.numpy().tobytes()).hexdigest()
    assert source.fingerprint == f"sha256:{expected}"
    assert dataset_id(source) == DatasetId("x", "train", 1500, source.fingerprint)


def test_fingerprint_is_that_of_the_set_as_read_whatever_the_size(tmp_path):
    plain = open_source("digits", "test")
    changed = open_source("digits", "test", image_size=12, channels=3)
    assert changed.images.shape == (360, 3, 12, 12)
    assert changed.fingerprint == plain.fingerprint
    assert changed.nbytes == 360 * 3 * 144


@given(st.integers(1, 40), st.integers(1, 60), st.sampled_from([1, 3]))
@settings(max_examples=25, deadline=None)
def test_statistics_against_float64(n, at_most, channels):
    images = torch.from_numpy(np.random.default_rng(n).integers(0, 256, (n, channels, 3, 4), dtype=np.uint8))
    source = ArraySource(images, torch.zeros(n, dtype=torch.int64), name="x", split="train")
    source.statistics_images = at_most
    count = min(n, at_most)
    chosen = images[[i * n // count for i in range(count)]].double() / 255
    mean, std = source.statistics()
    assert mean == pytest.approx(chosen.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert std == pytest.approx(chosen.var((0, 2, 3), correction=0).sqrt().tolist(), abs=1e-7)


def test_a_source_can_be_pickled():
    source = open_source("digits", "test")
    again = pickle.loads(pickle.dumps(source))
    picks = torch.tensor([5, 0, 5])
    assert torch.equal(again.read(picks), source.images[picks])
    assert again.fingerprint == source.fingerprint


@pytest.mark.parametrize("shape", [(20, 20), (31, 20), (20, 33)])
@pytest.mark.parametrize("size", [8, 20, 27])
def test_resizing_as_pil(shape, size):
    images = torch.from_numpy(rng.integers(0, 256, (3, 3, *shape), dtype=np.uint8))
    ours = convert_images(images, size, None)
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    for ours_one, image in zip(ours, images, strict=True):
        square = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((left, top, left + side, top + side))
        theirs = np.asarray(square.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        assert np.abs(ours_one.numpy().astype(int) - theirs).max() <= 1


def test_recolouring_as_pil():
    images = torch.from_numpy(rng.integers(0, 256, (2000, 3, 5, 5), dtype=np.uint8))
    grey = convert_images(images, None, 1)
    theirs = np.stack([np.asarray(Image.fromarray(i.permute(1, 2, 0).numpy()).convert("L")) for i in images])
    assert np.array_equal(grey[:, 0], theirs)
    assert torch.equal(convert_images(grey, None, 3), grey.repeat(1, 3, 1, 1))
    assert convert_images(images, None, None) is images


def test_has_split():
    assert has_split("digits", "test")
    assert has_split("stl10", "train+unlabeled")
    assert not has_split("cifar10", "unlabeled")
    with pytest.raises(UslError, match="did you mean 'digits'"):
        has_split("digit", "test")


def test_reading_labels_takes_those_of_the_indices_alone(tmp_path):
    source = open_source("digits", "train")
    (tmp_path / "a.json").write_text("[5, 3]")
    index = read_labels(str(tmp_path / "a.json"), source)
    assert index.labels == (int(source.labels[5]), int(source.labels[3]))
    assert index.classes == source.classes
    (tmp_path / "a.json").write_text("[5, 1437]")
    with pytest.raises(UslError, match="entry 1: index 1437 is out of range"):
        read_labels(str(tmp_path / "a.json"), source)
    LabelIndex(dataset_id(source), {}, (2,), (7,), source.classes).write(tmp_path / "b.json")
    assert read_labels(str(tmp_path / "b.json"), source).labels == (7,)  # the file's, not the data set's


# bad input -----------------------------------------------------------------------------------------------


def test_missing_data_says_where_it_looked_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(catalog.ARRAY_SETS, "fashion_mnist", replace(catalog.ARRAY_SETS["fashion_mnist"], system=()))
    with pytest.raises(UslError) as error:
        open_source("fashion_mnist", "train", dir=str(tmp_path))
    text = one_line(error)
    for part in (
        str(tmp_path / "FashionMNIST/raw"),
        "train-images-idx3-ubyte",
        "apt-get install dataset-fashion-mnist",
        "--data.download true",
        "USL_DATA",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"name": "cifar1"}, "did you mean 'cifar10'"),
        ({"split": "validation"}, "it has train, test"),
        ({"split": "train+train"}, "twice"),
        ({"channels": 2}, "expected 1 or 3"),
        ({"image_size": 0}, "1 or more"),
        ({"labels_file": "x.csv"}, "--data.labels_file"),
        ({"class_list": "x.txt"}, "--data.class_list"),
        ({"cache": "x"}, "--data.cache"),
    ],
)
def test_wrong_options(options, expected):
    with pytest.raises(UslError) as error:
        open_source(**{"name": "digits", "split": "train", **options})
    assert expected in one_line(error)


@pytest.mark.parametrize("damage", ["not gzip", "cut", "short", "floats"])
def test_damaged_idx(tmp_path, damage):
    path = tmp_path / ("x.gz" if damage in ("not gzip", "cut") else "x")
    write_idx(path, np.zeros((4, 3, 3), np.uint8))
    content = path.read_bytes()
    changed = {
        "not gzip": b"hello",
        "cut": content[:-9],
        "short": content[:-9],
        "floats": b"\0\0\x0d" + content[3:],
    }
    path.write_bytes(changed[damage])
    with pytest.raises(UslError) as error:
        read_idx(path)
    assert str(path) in one_line(error)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("code_was_run",)


def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    make_cifar(tmp_path, "cifar10", True)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(pickle.dumps({"data": Evil(), "labels": []}, protocol=2))
    with pytest.raises(UslError, match="data_batch_3: not a CIFAR batch") as error:
        open_source("cifar10", "train", dir=str(tmp_path))
    assert "mkdir" in one_line(error)
    assert not Path("code_was_run").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_of_every_protocol_are_unpickled(tmp_path, protocol):
    value = {"a": np.arange(6, dtype=np.uint8).reshape(2, 3), b"b": [1, "x", b"\xff"]}
    (tmp_path / "x").write_bytes(pickle.dumps(value, protocol=protocol))
    with open(tmp_path / "x", "rb") as file:
        back = unpickle_arrays(file)
    assert np.array_equal(back["a"], value["a"])
    assert back[b"b"] == value[b"b"]


@pytest.mark.parametrize(
    "content",
    [
        {"data": np.zeros((2, 3072), np.uint8), "labels": [1]},
        {"data": np.zeros((2, 3072), np.int32), "labels": [1, 2]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [1, 10]},
        {"data": np.zeros((2, 3072), np.uint8)},
        [1, 2],
    ],
)
def test_damaged_cifar(tmp_path, content):
    make_cifar(tmp_path, "cifar10", True)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UslError, match="test_batch") as error:
        open_source("cifar10", "test", dir=str(tmp_path))
    one_line(error)


def test_damaged_stl10_and_svhn(tmp_path):
    make_stl10(tmp_path)
    (tmp_path / "stl10_binary" / "train_X.bin").write_bytes(b"123")
    with pytest.raises(UslError, match=r"train_X\.bin: 3 bytes"):
        open_source("stl10", "train", dir=str(tmp_path))
    (tmp_path / "train_32x32.mat").write_bytes(b"123")
    with pytest.raises(UslError, match=r"train_32x32\.mat: not an SVHN file"):
        open_source("svhn", "train", dir=str(tmp_path))


# downloads -----------------------------------------------------------------------------------------------


def serve(tmp_path: Path, monkeypatch, md5: str | None = None) -> Path:
    """Make cifar10's address a local file; gives an empty data folder."""
    make_cifar(tmp_path / "origin", "cifar10", True)
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "origin" / "cifar-10-batches-py", "cifar-10-batches-py")
    checksum = md5 or hashlib.md5(archive.read_bytes()).hexdigest()
    item = Download(archive.as_uri(), checksum)
    known = replace(catalog.ARRAY_SETS["cifar10"], downloads=(item,))
    monkeypatch.setitem(catalog.ARRAY_SETS, "cifar10", known)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def test_download_only_when_asked(tmp_path, monkeypatch):
    data = serve(tmp_path, monkeypatch)
    with pytest.raises(UslError, match=r"--data\.download true"):
        open_source("cifar10", "train", dir=str(data))
    assert list(data.iterdir()) == []
    source = open_source("cifar10", "train", dir=str(data), download=True)
    assert len(source) == 35
    assert [p.name for p in data.iterdir()] == ["cifar-10-batches-py"]
    Path(tmp_path / "cifar-10-python.tar.gz").unlink()  # not fetched again
    assert open_source("cifar10", "train", dir=str(data), download=True).fingerprint == source.fingerprint


def test_a_wrong_checksum_leaves_nothing(tmp_path, monkeypatch):
    data = serve(tmp_path, monkeypatch, md5="0" * 32)
    with pytest.raises(UslError, match="expected 00000000") as error:
        open_source("cifar10", "train", dir=str(data), download=True)
    one_line(error)
    assert list(data.iterdir()) == []


def test_an_address_that_does_not_answer(tmp_path):
    missing = Download((tmp_path / "no.gz").as_uri(), "0" * 32)
    with pytest.raises(UslError, match="cannot be downloaded") as error:
        fetch(missing, tmp_path / "data")
    one_line(error)
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "{}/outside", "link"])
def test_an_archive_may_not_write_outside(tmp_path, name):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        (tmp_path / "f").write_text("f")
        (tmp_path / "link").symlink_to(tmp_path)
        member = tar.gettarinfo(tmp_path / ("link" if name == "link" else "f"))
        member.name = name.format(tmp_path)
        tar.addfile(member, None if name == "link" else io.BytesIO(b"f"))
    item = Download((tmp_path / "x.tar.gz").as_uri(), hashlib.md5((tmp_path / "x.tar.gz").read_bytes()).hexdigest())
    with pytest.raises(UslError, match="cannot be unpacked"):
        fetch(item, tmp_path / "data")
    assert not (tmp_path / "outside").exists()
    assert not list((tmp_path / "data").iterdir())

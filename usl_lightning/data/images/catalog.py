"""The data sets known by name: their files, where those are looked for, their class names.

Standard library only, because `usl run` asks these questions before torch is imported. How the files are
read is in `arrays.py`.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from usl_lightning.base.errors import UslError, did_you_mean
from usl_lightning.base.files import not_a_folder, once
from usl_lightning.data.images.download import Download, fetch
from usl_lightning.data.images.rendering import WHITE

log = logging.getLogger("usl_lightning")


@dataclass(frozen=True)
class ArraySet:
    """A data set that is read into memory whole.

    Attributes:
        files: for each split, the names of its files; each may also end in one of `suffixes`.
        folders: where below the data folder they are looked for, in this order.
        classes: names in label order.
        system: absolute folders looked in last.
        downloads: everything `download=True` fetches; `home` is the folder below the data folder.
        hint: one more thing to do when the files are missing.
    """

    files: Mapping[str, tuple[str, ...]]
    folders: tuple[str, ...]
    classes: tuple[str, ...]
    suffixes: tuple[str, ...] = ("",)
    system: tuple[str, ...] = ()
    downloads: tuple[Download, ...] = ()
    home: str = ""
    hint: str = ""

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.files)


_DIGITS = tuple("0123456789")
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100 = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl",
    "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair",
    "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin",
    "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp",
    "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain",
    "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck",
    "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road",
    "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider",
    "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television",
    "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
)  # fmt: skip
_STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right",
    "liver", "lung-left", "lung-right", "pancreas", "spleen",
)  # fmt: skip
# ChestMNIST has several labels an image, so here it has none.
_MEDMNIST: dict[str, tuple[str, ...]] = {
    "pathmnist": (
        "adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
        "cancer-associated stroma", "colorectal adenocarcinoma epithelium",
    ),
    "chestmnist": (),
    "dermamnist": (
        "actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma",
        "benign keratosis-like lesions", "dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions",
    ),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "pneumoniamnist": ("normal", "pneumonia"),
    "retinamnist": ("0", "1", "2", "3", "4"),
    "breastmnist": ("malignant", "normal, benign"),
    "bloodmnist": (
        "basophil", "eosinophil", "erythroblast", "immature granulocytes", "lymphocyte", "monocyte",
        "neutrophil", "platelet",
    ),
    "tissuemnist": (
        "Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule", "Glomerular endothelial cells",
        "Interstitial endothelial cells", "Leukocytes", "Podocytes", "Proximal Tubule Segments",
        "Thick Ascending Limb",
    ),
    "organamnist": _ORGANS,
    "organcmnist": _ORGANS,
    "organsmnist": _ORGANS,
}  # fmt: skip

_IDX = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def _idx_downloads(address: str, *md5s: str) -> tuple[Download, ...]:
    names = (*_IDX["train"], *_IDX["test"])
    return tuple(Download(f"{address}{name}.gz", md5) for name, md5 in zip(names, md5s, strict=True))


ARRAY_SETS: dict[str, ArraySet] = {
    "digits": ArraySet({"train": (), "test": ()}, (), _DIGITS),
    "mnist": ArraySet(
        _IDX,
        ("MNIST/raw", "mnist", "MNIST", ""),
        _DIGITS,
        suffixes=("", ".gz"),
        system=("/usr/share/datasets/mnist",),
        home="MNIST/raw",
        downloads=_idx_downloads(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "fashion_mnist": ArraySet(
        _IDX,
        ("FashionMNIST/raw", "fashion-mnist", "fashion_mnist", "FashionMNIST", ""),
        _FASHION,
        suffixes=("", ".gz"),
        system=("/usr/share/datasets/fashion-mnist",),
        home="FashionMNIST/raw",
        downloads=_idx_downloads(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        hint="on Debian: apt-get install dataset-fashion-mnist",
    ),
    "cifar10": ArraySet(
        {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        ("cifar-10-batches-py", "cifar10/cifar-10-batches-py", "cifar10", ""),
        _CIFAR10,
        downloads=(
            Download(
                "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                "c58f30108f718f92721af3b95e74349a",
            ),
        ),
    ),
    "cifar100": ArraySet(
        {"train": ("train",), "test": ("test",)},
        ("cifar-100-python", "cifar100/cifar-100-python", "cifar100", ""),
        _CIFAR100,
        downloads=(
            Download(
                "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
                "eb9058c3a382ffc7106e4002c42a8d85",
            ),
        ),
    ),
    "svhn": ArraySet(
        {"train": ("train_32x32.mat",), "test": ("test_32x32.mat",), "extra": ("extra_32x32.mat",)},
        ("", "svhn", "SVHN"),
        _DIGITS,
        home="svhn",
        downloads=tuple(
            Download(f"http://ufldl.stanford.edu/housenumbers/{split}_32x32.mat", md5, (split,))
            for split, md5 in {
                "train": "e26dedcc434d2e4c54c9b2d4a06d8373",
                "test": "eb5a983be6a315427106f1b164d9cef3",
                "extra": "a93ce644f1a588dc4d68dda5feec44a7",
            }.items()
        ),
    ),
    "stl10": ArraySet(
        {
            "train": ("train_X.bin", "train_y.bin"),
            "test": ("test_X.bin", "test_y.bin"),
            "unlabeled": ("unlabeled_X.bin",),
        },
        ("stl10_binary", "stl10/stl10_binary", "stl10", ""),
        _STL10,
        downloads=(
            Download(
                "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
                "91f7769df0f17e558f3565bffb0c7dfb",
            ),
        ),
    ),
    **{
        name: ArraySet(
            dict.fromkeys(("train", "val", "test"), (f"{name}.npz",)),
            ("", "medmnist", "MedMNIST"),
            classes,
            hint="it is distributed at medmnist.com",
        )
        for name, classes in _MEDMNIST.items()
    },
}
"""Sets read whole into memory, by name."""

FOLDER_SETS = ("folder", "imagenet", "imagenet100")
"""Sets of image files that are decoded when read."""

FILE_SETS = ("arrays",)
"""`.npy` and `.npz` files of the user's own."""

NAMES = (*ARRAY_SETS, *FOLDER_SETS, *FILE_SETS)


IMAGES = {
    "digits": (1, 8), "mnist": (1, 28), "fashion_mnist": (1, 28), "cifar10": (3, 32), "cifar100": (3, 32),
    "svhn": (3, 32), "stl10": (3, 96),
}  # fmt: skip
"""Channels and side of the images of sets that have them alike everywhere."""


def known_image(flat: Mapping[str, object]) -> tuple[int | None, int | None]:
    """Channels and side in pixels of the images of a configuration, as dotted keys; None where the files tell."""
    own = IMAGES.get(str(flat.get("data.dataset")), (None, None))
    given = flat.get("data.channels"), flat.get("data.image_size")
    channels, side = (asked if isinstance(asked, int) else known for asked, known in zip(given, own, strict=True))
    return channels, side


def canonical_name(name: str) -> str:
    """The name a set is known by (`medmnist:bloodmnist` is `bloodmnist`).

    Raises:
        UslError: there is no such set.
    """
    short = name.removeprefix("medmnist:")
    if short in NAMES and (short == name or short in _MEDMNIST):
        return short
    known = ", ".join(n for n in NAMES if n not in _MEDMNIST)
    raise UslError(f"data set '{name}' is not known{did_you_mean(name, NAMES)}; there are {known} and medmnist:<name>")


def check_use(name: str, options: Mapping[str, object]) -> None:
    """Refuse options that are for image folders alone.

    Args:
        name: a canonical one.
        options: name -> value of those of `open_source`; others are left.

    Raises:
        UslError: names one that the set does not use.
    """
    unused = {"labels_file": None, "class_list": None, "cache": None, "classes": None, "background": WHITE}
    for option, usual in unused.items() if name not in FOLDER_SETS else ():
        if options.get(option, usual) not in (usual, None):
            raise UslError(f"--data.{option} is for image folders; data set {name} does not use it")


def data_folder(folder: str | None) -> Path:
    """The folder that holds the data sets: `folder`, else `$USL_DATA`, else `./data`."""
    return Path(os.path.expanduser(folder or os.environ.get("USL_DATA") or "data"))


@dataclass(frozen=True)
class Found:
    """The files of one split, in the order the catalog names them."""

    split: str
    paths: tuple[Path, ...] = field(default=())


def parts_of(name: str, split: str) -> tuple[str, ...]:
    """The splits a name such as `train+unlabeled` joins, in order.

    Raises:
        UslError: the set has no such split.
    """
    known = ARRAY_SETS[name].splits
    parts = tuple(split.split("+"))
    for part in parts:
        if part not in known:
            raise UslError(
                f"data set {name} has no split '{part}'{did_you_mean(part, known)}; it has {', '.join(known)}"
                " and sums of them such as " + "+".join(known[:2])
            )
    if len(set(parts)) < len(parts):
        raise UslError(f"data set {name}: split '{split}' names a part twice")
    return parts


@cache  # told once
def _tell_of_unused(folder: str, name: str) -> None:
    log.warning("--data.dir %s: not looked at, data set %s is built in", folder, name)


def locate(
    name: str, split: str, folder: str | None = None, *, image_size: int | None = None, download: bool = False
) -> list[Found]:
    """The files of an array set's split, in the first of its folders that has all of them; looked for once a stage.

    Args:
        name: a key of `ARRAY_SETS`.
        split: one split or a sum such as `train+unlabeled`.
        folder: the data folder; see `data_folder`.
        image_size: MedMNIST is distributed at several sizes; the file of this one is preferred.
        download: fetch what is missing, where a public address is known.

    Raises:
        UslError: files are missing: says where it looked, for what, and what to do; or the folder that was given is
            none.
    """
    parts = parts_of(name, split)
    built_in = not any(ARRAY_SETS[name].files[part] for part in parts)
    if folder is not None and built_in and os.path.isdir(data_folder(folder)):
        _tell_of_unused(folder, name)

    def look() -> list[Found]:
        """Find the files, or fetch them first if that is asked for."""
        found = _locate(name, parts, folder, image_size)
        if found is None and download:
            _download(name, parts, folder)
            found = _locate(name, parts, folder, image_size)
        if found is None:
            raise UslError(_missing(name, parts, folder, download))
        if (
            folder is not None and not built_in and not os.path.isdir(data_folder(folder))
        ):  # found where systems have it
            problem = not_a_folder(data_folder(folder))
            raise UslError(f"--data.dir {folder}: {problem}; give that which holds the data sets")
        return found

    return once(("files", name, split, folder, image_size), look)


def _locate(name: str, parts: tuple[str, ...], folder: str | None, image_size: int | None) -> list[Found] | None:
    for place in _places(name, folder):
        found = [Found(part, _paths(name, part, place, image_size)) for part in parts]
        if all(len(f.paths) == len(ARRAY_SETS[name].files[f.split]) for f in found):
            return found
    return None


def _places(name: str, folder: str | None) -> list[Path]:
    known = ARRAY_SETS[name]
    root = data_folder(folder)
    return [root / sub for sub in known.folders] + [Path(p) for p in known.system] or [root]


def _paths(name: str, part: str, place: Path, image_size: int | None) -> tuple[Path, ...]:
    known = ARRAY_SETS[name]
    paths = []
    for file in known.files[part]:
        candidates = [file + suffix for suffix in known.suffixes]
        if name in _MEDMNIST and image_size:
            candidates.insert(0, f"{name}_{image_size}.npz")
        paths += [p for p in (place / c for c in candidates) if os.path.isfile(p)][:1]
    return tuple(paths)


def _download(name: str, parts: tuple[str, ...], folder: str | None) -> None:
    known = ARRAY_SETS[name]
    wanted = [d for d in known.downloads if not d.splits or set(d.splits) & set(parts)]
    for item in wanted:
        fetch(item, data_folder(folder) / known.home)


def _missing(name: str, parts: tuple[str, ...], folder: str | None, download: bool) -> str:
    known = ARRAY_SETS[name]
    files = list(dict.fromkeys(file for part in parts for file in known.files[part]))
    either = " (or with " + ", ".join(s for s in known.suffixes if s) + ")" if any(known.suffixes) else ""
    places = ", ".join(str(place) for place in _places(name, folder))
    ways = ["put the files there, or give --data.dir FOLDER or USL_DATA"]
    if known.hint:
        ways.append(known.hint)
    if known.downloads and not download:
        ways.append("--data.download true fetches them")
    return f"data set {name} was not found: looked in {places} for {', '.join(files)}{either}; {'; '.join(ways)}"

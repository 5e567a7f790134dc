"""Folders of pictures as people have them, `train/CLASS/*.png` and `test/CLASS/*.png`, for the benchmarks alone.

    python tests/benchmarks/picture_sets.py FOLDER [emoji] [fashion] [digits] [imbalanced]

emoji: the 64-pixel pictures, transparent around, of the eight largest categories beside Component of the npm package
`emoji-datasource-twitter`, which `npm pack` fetches. The pictures are Twemoji, CC-BY 4.0 (Twitter, Inc. and other
contributors); the package around them is MIT (Cal Henderson). Of the code points in their order every third is a new
image.

fashion: Fashion-MNIST (MIT) as 28-pixel pictures: its first 10,000 training images, and all 10,000 test images.

digits: scikit-learn's digits, enlarged from 8 to 16 pixels, as the data set `digits` parts them.

imbalanced: of the emoji of `train`, 4 in 5 of each category are kept for the first, and always fewer for the others,
down to 1 in 8; the new images are those of emoji.
"""

import argparse
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

from usl_lightning.data.images.opening import open_source
from usl_lightning.data.images.source import ImageSource

PACKAGE = "emoji-datasource-twitter@16.0.0"
CATEGORIES = 8
FASHION = 10_000


def emoji(root: Path) -> None:
    """Fetch the pictures of emoji and lay them out by category."""
    with tempfile.TemporaryDirectory(prefix="usl-emoji-") as temporary:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=temporary, check=True)
        with tarfile.open(next(Path(temporary).glob("*.tgz"))) as archive:
            archive.extractall(temporary, members=_wanted(archive), filter="data")
        package = Path(temporary) / "package"
        known = [one for one in json.loads((package / "emoji.json").read_text()) if one["has_img_twitter"]]
        counts = Counter(one["category"] for one in known if one["category"] != "Component")
        largest = {name for name, _ in counts.most_common(CATEGORIES)}
        chosen = sorted((one for one in known if one["category"] in largest), key=lambda one: one["unified"])
        for number, one in enumerate(chosen):
            folder = root / ("test" if number % 3 == 2 else "train") / one["category"]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(package / "img/twitter/64" / one["image"], folder / one["image"])
        shutil.copyfile(package / "LICENSE", root / "LICENSE.package.txt")
        (root / "LICENSE.txt").write_text(
            "Twemoji graphics, copyright Twitter, Inc. and other contributors: CC-BY 4.0, "
            "https://creativecommons.org/licenses/by/4.0/\n"
        )


def _wanted(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    names = ("package/emoji.json", "package/LICENSE")
    return (one for one in archive if one.name in names or one.name.startswith("package/img/twitter/64/"))


def _write(source: ImageSource, count: int, folder: Path, side: int) -> None:
    """The first `count` grey images of a set as files, in a folder for each class."""
    for name in source.classes:
        (folder / name.replace("/", " or ")).mkdir(parents=True, exist_ok=True)
    images = source.read(torch.arange(count))
    for number, (image, label) in enumerate(zip(images, source.labels[:count].tolist(), strict=True)):
        path = folder / source.classes[label].replace("/", " or ") / f"{number:05}.png"
        Image.fromarray(image[0].numpy()).resize((side, side), Image.Resampling.BICUBIC).save(path)


def fashion(root: Path) -> None:
    """Write Fashion-MNIST."""
    for split in ("train", "test"):
        _write(open_source("fashion_mnist", split), FASHION, root / split, 28)


def digits(root: Path) -> None:
    """Write scikit-learn's digits."""
    for split in ("train", "test"):
        source = open_source("digits", split)
        _write(source, len(source), root / split, 16)


def imbalanced(root: Path) -> None:
    """Write a part of the emoji, of each category another."""
    whole = made("emoji", root.parent)
    shutil.copytree(whole / "test", root / "test")
    for number, folder in enumerate(sorted((whole / "train").iterdir())):
        files = sorted(folder.iterdir())
        (root / "train" / folder.name).mkdir(parents=True)
        for i in range(int(len(files) * 0.8 * 0.76**number)):
            shutil.copy(files[i * len(files) // int(len(files) * 0.8 * 0.76**number)], root / "train" / folder.name)


SETS = {"emoji": emoji, "fashion": fashion, "digits": digits, "imbalanced": imbalanced}


def made(name: str, folder: Path) -> Path:
    """The folder of a set, made if it is not there; half a set is never there."""
    root = folder / name
    if not root.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
        SETS[name](partial)
        partial.chmod(0o755)
        partial.rename(root)
    return root


def main() -> None:
    """Make the sets that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("sets", nargs="*", choices=[*SETS, []])
    arguments = parser.parse_args()
    for name in arguments.sets or SETS:
        root = made(name, arguments.folder)
        counts = {split: sum(1 for _ in (root / split).rglob("*.png")) for split in ("train", "test")}
        print(f"{root}: {counts['train']} images, {counts['test']} new ones")


if __name__ == "__main__":
    main()

"""A folder of 100,000 images: seconds to the first batch, and images a second against torchvision.

The images are crops of scikit-learn's two photographs, 128×96 JPEG, in 100 class folders of a temporary folder that is
removed afterwards. Both sides shuffle, decode and resize to 64×64 in as many worker processes, and hand over uint8
batches; ours through the data module that `usl fit` uses, opened anew for every pass. Files are in the page cache, as
they have just been written.

    python tests/benchmarks/folder.py [--files 100000] [--workers 2] [--out tests/benchmarks/results/folder.json]
"""

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from machine import machine, usable_cores
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from usl_lightning.data.images import folders
from usl_lightning.data.images.signature import data_signature
from usl_lightning.data.images.threads import map_in_order
from usl_lightning.data.modules import ImageData

SIZE, BATCH, CLASSES = 64, 256, 100
WIDTH, HEIGHT = 128, 96


def make_files(root: Path, count: int) -> int:
    """Write `count` crops; gives their bytes in all."""
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    for c in range(CLASSES):
        (root / f"class{c:03}").mkdir(parents=True)

    def write(i: int) -> int:
        photo = photos[i % 2]
        left, top = i * 7919 % (photo.width - WIDTH), i * 104729 % (photo.height - HEIGHT)
        path = root / f"class{i % CLASSES:03}" / f"{i:07}.jpg"
        photo.crop((left, top, left + WIDTH, top + HEIGHT)).save(path, quality=90)
        return path.stat().st_size

    return sum(map_in_order(write, range(count)))


@contextmanager
def seconds(into: dict[str, Any], name: str) -> Iterator[None]:
    """Write the seconds the block takes to `into[name]`."""
    start = time.perf_counter()
    yield
    into[name] = round(time.perf_counter() - start, 3)


def data_module(root: Path, workers: int, cache: Path | None = None) -> ImageData:
    """What `usl fit` reads a folder of this size through."""
    copy = None if cache is None else str(cache)
    return ImageData("folder", BATCH, str(root), image_size=SIZE, workers=workers, cache=copy, residence="stream")


def ours(root: Path, images: int, workers: int, cache: Path | None = None) -> Iterable[Tensor]:
    """Shuffled training batches of the data module."""
    data = data_module(root, workers, cache)
    data.setup("fit")
    return (batch.images for batch in itertools.islice(data.train_dataloader(), images // BATCH))


def theirs(root: Path, order: Tensor, workers: int) -> Iterable[tuple[Tensor, Tensor]]:
    """The same batches by torchvision."""
    steps = [transforms.Resize(SIZE), transforms.CenterCrop(SIZE), transforms.PILToTensor()]
    data = ImageFolder(str(root), transforms.Compose(steps))
    return DataLoader(data, batch_size=BATCH, sampler=order.tolist(), num_workers=workers)


def first_batch(root: Path, workers: int) -> dict[str, float]:
    """Seconds from nothing to the first training batch, in parts."""
    result: dict[str, float] = {}
    start = time.perf_counter()
    data = data_module(root, workers)
    with seconds(result, "open"):
        source = data.train_source
    with seconds(result, "fingerprint"):
        _ = source.fingerprint
    with seconds(result, "statistics"):
        _ = data.spec
    with seconds(result, "loader"):
        data.setup("fit")
        next(iter(data.train_dataloader()))
    result["total"] = round(time.perf_counter() - start, 3)
    return result


def rate(loader: Iterable[Any], images: int) -> float:
    """Images a second over a whole pass, workers' start included."""
    start = time.perf_counter()
    count = sum(len(batch[0]) if isinstance(batch, list | tuple) else len(batch) for batch in loader)
    assert count == images
    return round(images / (time.perf_counter() - start))


def compare(root: Path, images: int, workers: int, cache: Path, repeats: int) -> dict[str, Any]:
    """Images a second of torchvision, the folder and its cache, alternating; the best of each."""
    images -= images % BATCH
    result: dict[str, Any] = {"images": images, "workers": workers, "repeats": repeats}
    with seconds(result, "seconds_to_build_cache"):
        count = len(data_module(root, workers, cache).train_source)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:images]
    sides: dict[str, Callable[[], Iterable[Any]]] = {
        "torchvision": lambda: theirs(root, order, workers),
        "folder": lambda: ours(root, images, workers),
        "cached": lambda: ours(root, images, workers, cache),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, loader in sides.items():
            rates[name].append(rate(loader(), images))
    result["images_per_second"] = {name: max(values) for name, values in rates.items()}
    result["all_runs"] = rates
    for name in ("folder", "cached"):
        best = result["images_per_second"]
        result[f"{name}_over_torchvision"] = round(best[name] / best["torchvision"], 2)
    return result


def main() -> None:
    """Run and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--measured", type=int, default=20_000, help="images of a throughput run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "folder.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="usl-folder-") as temporary:
        os.environ["USL_CACHE"] = str(Path(temporary) / "small")
        root = Path(temporary) / "images"
        result: dict[str, Any] = {"files": args.files, "machine": machine()}
        result["load_average"] = round(os.getloadavg()[0], 1)  # what else the machine was doing
        with seconds(result, "seconds_to_make"):
            result["bytes"] = make_files(root, args.files)
        time.sleep(2.5)  # a list is trusted if the folder rested for two seconds before the scan
        with seconds(result, "seconds_data_signature"):
            data_signature("folder", str(root))
        folders.drop_index(root, None)
        result["seconds_first_batch"] = {
            "index_not_kept": first_batch(root, args.workers),
            "index_kept": first_batch(root, args.workers),
        }
        with seconds(result, "seconds_torchvision_list"):
            ImageFolder(str(root))
        measured = min(args.measured, args.files)
        result["throughput"] = compare(root, measured, args.workers, Path(temporary) / "cache", args.repeats)
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""What is computed from all images once and kept on disk: features, and tables of neighbours."""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from usl_lightning.base.arrays import load_arrays
from usl_lightning.base.atomic import atomic_path, open_lock
from usl_lightning.base.errors import UslError
from usl_lightning.base.files import parse_json
from usl_lightning.compute.distributed import gather
from usl_lightning.data.images.folders import cache_folder
from usl_lightning.features.parts import Place, whole_blocks

log = logging.getLogger(__name__)

PARTS = ".parts"
"""What the folder of a file's unfinished parts ends in."""


def kept_or_made(
    name: str,
    about: Mapping[str, Any],
    make: Callable[[Path], Tensor],
    place: Place,
    *,
    cache: str | Path | None = None,
) -> Tensor:
    """The tensor of a `.npz` file, or made and kept in it; on every process, on its device.

    The file's name has a hash of all that the tensor depends on, which is in the file too and is compared. A file
    that is damaged is noticed (each part has a checksum) and made again. Runs side by side wait for each other.

    Args:
        name: `features` or `neighbors`: of the array, and the beginning of the file's name.
        about: all that the tensor depends on; JSON can hold it.
        make: called on every process at once with the file's path. It may keep unfinished parts in a folder beside it
            that ends in `PARTS`, which is removed when the file is there.
        place: which process this is.
        cache: the folder of the file; None: $USL_CACHE, else ~/.cache/usl-lightning.

    Raises:
        UslError: a folder that cannot be written or is full.
    """
    text = json.dumps(about)
    path = _path(name, text, ".npz", cache)
    with torch.inference_mode(False), torch.no_grad(), _one_run_at_a_time(path, place):
        kept = _read(path, name, text)
        if bool(gather(torch.tensor([kept is not None], device=place.device)).all()) and kept is not None:
            log.info("%s: taken from %s", name, path)
            return kept.to(place.device)
        made = make(path)
        if place.rank == 0:
            arrays: dict[str, Any] = {name: made.cpu().numpy(), "about": np.array(text)}
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **arrays)
            shutil.rmtree(path.with_suffix(PARTS), ignore_errors=True)
            log.info("%s: kept in %s", name, path)
    return made


def kept_or_made_share(
    name: str,
    about: Mapping[str, Any],
    size: tuple[int, int],
    make: Callable[[Path], Tensor],
    place: Place,
    *,
    cache: str | Path | None = None,
) -> Tensor:
    """This process's share of the rows of a matrix that is nowhere whole: of a folder of `PartFile`s, or made in it.

    The parts may be of another number of processes. A part that is damaged is noticed, and made again; what is not
    finite is given back, for the caller to refuse, and not kept.

    Args:
        name, about, cache: see `kept_or_made`.
        size: rows and columns of the matrix.
        make: called on every process at once with the folder, in which it makes `START-STOP.f32` of its share.
        place: which process this is.

    Raises:
        UslError: a folder that cannot be written or is full.
    """
    folder = _path(name, json.dumps(about), ".shards", cache)
    with torch.inference_mode(False), torch.no_grad(), _one_run_at_a_time(folder, place):
        share = place.share(size[0])
        kept = _read_share(folder, share, size[1])
        if bool(gather(torch.tensor([kept is not None], device=place.device)).all()) and kept is not None:
            rows, how = kept, "taken from"
        else:
            rows, how = make(folder), "kept in"
            _forget_other_parts(folder, gather(torch.tensor([[share.start, share.stop]], device=place.device)), place)
        if bool(gather(rows.isfinite().all()[None].to(place.device)).all()):
            log.info("%s: %s %s", name, how, folder)
        elif place.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
    return rows.to(place.device)


def check_dataset(about: Any, fingerprint: str, what: str, where: str) -> None:
    """Refuse a file that says it was made from other images.

    Args:
        about: the entry `about` of a kept file, or None where a file does not say.
        fingerprint: of the images at hand.
        what: what is in the file, in the plural.
        where: the parameter and the file, the beginning of the message.

    Raises:
        UslError: of other images.
    """
    try:
        told = None if about is None else parse_json(str(about)).get("dataset")
    except (ValueError, AttributeError):  # somebody else's entry of that name
        return
    if told is not None and told != fingerprint:
        raise UslError(
            f"{where}: these {what} are of other images than the data's; make them from these, or use the data set "
            "they were made from"
        )


def _read(path: Path, name: str, about: str) -> Tensor | None:
    """The kept tensor, or None if there is none or it is not whole."""
    try:
        kept = load_arrays(path)
        if str(kept["about"]) == about:
            return torch.from_numpy(kept[name])
        reason = "made from something else"
    except FileNotFoundError:
        return None
    except (UslError, KeyError, TypeError) as error:  # TypeError: an array of texts
        reason = f"damaged ({type(error.__cause__ or error).__name__})"
    log.warning("%s: %s; the %s are computed again", path, reason, name)
    return None


def _path(name: str, about: str, suffix: str, cache: str | Path | None) -> Path:
    """Where it is kept: the name has a hash of all that it depends on."""
    folder = cache_folder() if cache is None else Path(os.path.expanduser(cache))
    return folder / f"{name}-{hashlib.sha256(about.encode()).hexdigest()[:20]}{suffix}"


def _read_share(folder: Path, share: range, width: int) -> Tensor | None:
    """Rows of the parts in a folder, or None unless all are there and whole."""
    rows, missing = torch.empty(len(share), width), torch.ones(len(share), dtype=torch.bool)
    for path in sorted(folder.glob("*-*.f32")):
        start, stop = (int(number) if number.isdecimal() else 0 for number in path.stem.split("-", 1))
        wanted = range(max(share.start, start) - start, min(share.stop, stop) - start)
        for first, block in whole_blocks(path, width, wanted) if wanted else ():
            here = range(max(first, wanted.start), min(first + len(block), wanted.stop))
            to = slice(here.start + start - share.start, here.stop + start - share.start)
            rows[to] = torch.from_numpy(block[here.start - first : here.stop - first].copy())
            missing[to] = False
    return None if bool(missing.any()) else rows


def _forget_other_parts(folder: Path, shares: Tensor, place: Place) -> None:
    """Remove the parts of another number of processes, once those of this one are whole."""
    names = {f"{start}-{stop}" for start, stop in shares.tolist()}
    for path in folder.iterdir() if place.rank == 0 else ():
        if path.stem not in names:
            path.unlink()


@contextmanager
def _one_run_at_a_time(path: Path, place: Place) -> Iterator[None]:
    """The first process holds a lock, the others wait until it has it: runs side by side do not mix their parts."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open_lock(path.with_suffix(".lock"))
    except OSError as error:
        raise UslError(f"{path.parent}: cannot be written ({error.strerror}); give another --model.cache") from error
    with lock:
        if place.rank == 0:
            _lock(lock.fileno())
        gather(torch.zeros(1, device=place.device))
        yield


def _lock(descriptor: int) -> None:
    """Wait for the lock; where the file system or the platform has none, go on without."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        log.info("features: this file system has no locks; do not run two selections at once")

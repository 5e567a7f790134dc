"""What is computed from all images once and kept on disk: features, and tables of neighbours."""

import hashlib
import json
import logging
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.files import atomic_path
from usl_lightning.base.strict_json import parse_json
from usl_lightning.compute.distributed import gather
from usl_lightning.data.images.folders import cache_folder
from usl_lightning.data.modules import ImageData

log = logging.getLogger(__name__)


def kept_or_made(
    name: str,
    about: Mapping[str, Any],
    datamodule: ImageData,
    make: Callable[[Path], Tensor],
    *,
    cache: str | Path | None = None,
) -> Tensor:
    """The tensor of a `.npz` file, or made and kept in it; on every process, on its device.

    The file's name has a hash of all that the tensor depends on, which is in the file too and is compared. A file
    that is damaged is noticed (each part has a checksum) and made again. Runs side by side wait for each other.

    Args:
        name: `features` or `neighbors`: of the array, and the beginning of the file's name.
        about: all that the tensor depends on; JSON can hold it.
        datamodule: the images; its trainer, if any, says which process this is.
        make: called on every process at once with the file's path, which it may keep unfinished parts beside.
        cache: the folder of the file; None: $USL_CACHE, else ~/.cache/usl-lightning.

    Raises:
        UslError: a folder that cannot be written or is full.
    """
    text = json.dumps(about)
    folder = cache_folder() if cache is None else Path(cache).expanduser()
    path = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:20]}.npz"
    device = process_device(datamodule)
    with torch.inference_mode(False), torch.no_grad(), _one_run_at_a_time(path, datamodule):
        kept = _read(path, name, text)
        if bool(gather(torch.tensor([kept is not None], device=device)).all()) and kept is not None:
            log.info("%s: taken from %s", name, path)
            return kept.to(device)
        made = make(path)
        if process_rank(datamodule) == 0:
            arrays: dict[str, Any] = {name: made.cpu().numpy(), "about": np.array(text)}
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **arrays)
            log.info("%s: kept in %s", name, path)
    return made


def process_device(datamodule: ImageData) -> torch.device:
    """The device of the data's trainer; the CPU without one."""
    return torch.device("cpu") if datamodule.trainer is None else datamodule.trainer.strategy.root_device


def process_rank(datamodule: ImageData) -> int:
    """Which of the trainer's processes this is; 0 without one."""
    return 0 if datamodule.trainer is None else datamodule.trainer.global_rank


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
            f"{where}: these {what} are of other images ({str(told)[:15]}…, the data is {fingerprint[:15]}…); make "
            "them from these, or use the data set they were made from"
        )


def _read(path: Path, name: str, about: str) -> Tensor | None:
    """The kept tensor, or None if there is none or it is not whole."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["about"]) == about:
                return torch.from_numpy(kept[name])
        reason = "made from something else"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        reason = f"damaged ({type(error).__name__})"
    log.warning("%s: %s; the %s are computed again", path, reason, name)
    return None


@contextmanager
def _one_run_at_a_time(path: Path, datamodule: ImageData) -> Iterator[None]:
    """The first process holds a lock, the others wait until it has it: runs side by side do not mix their parts."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_suffix(".lock"), "wb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UslError(f"{path.parent}: cannot be written ({error.strerror}); give another --model.cache") from error
    with lock:
        if process_rank(datamodule) == 0:
            _lock(lock.fileno())
        gather(torch.zeros(1, device=process_device(datamodule)))
        yield


def _lock(descriptor: int) -> None:
    """Wait for the lock; where the file system or the platform has none, go on without."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except (ImportError, OSError):
        log.info("features: this file system has no locks; do not run two selections at once")

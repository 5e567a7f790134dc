"""`usl doctor`: what this machine has, on one screen; the exit code says whether a run can work here."""

import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path

from usl_lightning.base.commands import known_options
from usl_lightning.base.errors import UslError
from usl_lightning.base.machine import cores
from usl_lightning.base.typed import home
from usl_lightning.base.version import __version__
from usl_lightning.data.images.catalog import ARRAY_SETS, data_folder, locate
from usl_lightning.data.images.folders import cache_folder

NEEDED = ("torch", "torchvision", "pytorch-lightning", "jsonargparse", "timm", "scikit-learn", "wandb")
"""Packages whose versions are shown; one that is missing is a failure."""

SPACE_GB = 1.0
"""Free disk below which a folder is a failure: a few checkpoints of a ResNet-50."""


@dataclass(frozen=True)
class Finding:
    """One line of the screen.

    Attributes:
        what: at most ten letters.
        text: what was found.
        ok: None where nothing depends on it.
        remedy: what to do if it is not.
    """

    what: str
    text: str
    ok: bool | None = True
    remedy: str = ""

    def __str__(self) -> str:
        mark = {True: "ok  ", False: "FAIL", None: "    "}[self.ok]
        return f"{mark} {self.what:10} {self.text}{f'; {self.remedy}' if self.ok is False and self.remedy else ''}"


def main(arguments: Sequence[str]) -> int:
    """`usl doctor [--data.dir DIR] [--out runs]`: print the findings.

    Args:
        arguments: `--data.dir`, where data sets lie; `--out`, where runs will go.

    Returns:
        0 if everything a run needs is there, else 1.

    Raises:
        UslError: an option that means nothing.
    """
    given = known_options("doctor", arguments)
    findings = list(examine(given.get("data.dir"), home(given.get("out", "runs"))))
    print("\n".join(map(str, findings)))
    failed = [finding.what for finding in findings if finding.ok is False]
    print(f"\n{len(failed)} to mend: {', '.join(failed)}" if failed else "\nready")
    return 1 if failed else 0


def examine(data: str | None, out: Path) -> Iterator[Finding]:
    """Everything that is looked at, in the order of the screen.

    Args:
        data: where data sets lie; see `data_folder`.
        out: where runs will go.
    """
    yield Finding("usl", f"usl-lightning {__version__}, Python {platform.python_version()}, {platform.platform()}")
    yield packages(NEEDED)
    for look in (_devices, _precisions, _communication, _faiss):
        yield from _guarded(look)
    yield found_data(data)
    yield folder("runs", out)
    yield folder("cache", cache_folder())


def _guarded(look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What a look finds; a library that cannot even be imported is a finding too."""
    try:
        yield from look()
    except (ImportError, OSError, RuntimeError) as error:
        yield Finding(look.__name__.strip("_")[:10], " ".join(str(error).split())[:200], False)


def packages(names: Sequence[str]) -> Finding:
    """Versions of installed packages; those that are missing are to be installed."""
    versions: dict[str, str] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    missing = [name for name, version in versions.items() if version == "missing"]
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    return Finding("packages", text, not missing, f"pip install {' '.join(missing)}")


def _devices() -> Iterator[Finding]:
    import torch

    yield Finding("cpu", f"{cores()} cores, {torch.get_num_threads()} threads")
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    if gpus:
        text = ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GB)" for gpu in gpus)
        yield Finding("gpu", f"{text}, CUDA {torch.version.cuda}")
    elif torch.backends.mps.is_available():
        yield Finding("gpu", "Apple")
    elif Path("/proc/driver/nvidia/version").exists():
        reason = f"there is an NVIDIA driver, but torch {torch.__version__} sees no device"
        yield Finding("gpu", reason, False, "install a torch built for this driver's CUDA, check CUDA_VISIBLE_DEVICES")
    else:
        yield Finding("gpu", "none: everything runs on the CPU", None)


def _precisions() -> Iterator[Finding]:
    from usl_lightning.engine.trainer import check_precision

    kinds = []
    for kind in ("32-true", "bf16-mixed", "16-mixed"):
        try:
            check_precision(kind, "auto")
        except UslError:
            continue
        kinds.append(kind)
    yield Finding("precision", ", ".join(kinds))


def _communication() -> Iterator[Finding]:
    """Add up a number over one process by gloo; NCCL is only seen to be there, it needs a job of several GPUs."""
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        yield Finding("processes", "torch has no distributed package: one process only", None)
        return
    nccl = f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}" if dist.is_nccl_available() else "no NCCL"  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as place:
        dist.init_process_group("gloo", f"file://{place}/store", timedelta(seconds=10), world_size=1, rank=0)
        dist.all_reduce(torch.ones(1))
        dist.destroy_process_group()
    gpu_without = torch.cuda.is_available() and not dist.is_nccl_available()
    yield Finding("processes", f"gloo works, {nccl}", not gpu_without, "several GPUs need a torch with NCCL")


def _faiss() -> Iterator[Finding]:
    try:
        import faiss
    except ImportError:
        yield Finding("faiss", "not installed: exact search by torch is used, slower", None)
        return
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    mode = f"{gpus} GPUs seen" if gpus else "on the CPU"
    yield Finding("faiss", f"{faiss.__version__}, {mode}, {faiss.omp_get_max_threads()} threads")


def found_data(folder: str | None) -> Finding:
    """Which of the known data sets are there.

    Args:
        folder: where they lie; see `data_folder`.
    """
    found = ["digits (built in)"]
    for name, known in ARRAY_SETS.items():
        try:
            files = locate(name, known.splits[0], folder)
        except UslError:
            continue
        found += [f"{name} ({files[0].paths[0].parent})"] if files[0].paths else []
    hint = "" if folder else "; --data.dir FOLDER or USL_DATA names another place"
    return Finding("data", f"{', '.join(found)}; looked in {data_folder(folder)}{hint}", None)


def folder(what: str, path: Path) -> Finding:
    """Whether files can be written there, and how much more fits; a folder that is not there is not made."""
    nearest = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=nearest) as file:
            file.write(b"x")
        free = shutil.disk_usage(nearest).free / 1e9
    except OSError as error:
        return Finding(
            what, f"{path}: cannot be written ({error.strerror})", False, "choose another, or mend its rights"
        )
    return Finding(what, f"{path}: writable, {free:.0f} GB free", free >= SPACE_GB, "free some space")

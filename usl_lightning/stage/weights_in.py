"""`usl import`: a published checkpoint of another program as one that `--model.init_from` takes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from usl_lightning.base.errors import UslError
from usl_lightning.base.typed import as_count, home, options
from usl_lightning.engine.checkpoint_files import write_checkpoint
from usl_lightning.models.foreign import import_checkpoint

OPTIONS = ("as", "backbone", "image_size", "out")


@dataclass(frozen=True)
class ImportOptions:
    """What was typed.

    Attributes:
        file: the published checkpoint.
        kind: whose it is.
        out: what is written.
        backbone, size: see `import_checkpoint`.
    """

    file: Path
    kind: str
    out: Path
    backbone: str | None
    size: int | None

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> "ImportOptions":
        """Of what follows `usl import`.

        Raises:
            UslError: a mistake in it.
        """
        files = [word for word in arguments[:1] if not word.startswith("-")]
        given = dict(options(arguments[len(files) :]))
        for key in given.keys() - set(OPTIONS):
            raise UslError(f"usl import: unknown option --{key}; expected --{', --'.join(OPTIONS)}")
        if not files or "as" not in given or "out" not in given:
            raise UslError("usl import: expected FILE --as KIND --out FILE.ckpt")
        size = given.get("image_size")
        side = None if size is None else as_count(size) or 0
        if side is not None and not 0 < side < 10_000:
            raise UslError(f"--image_size {size}: expected a whole number of pixels")
        return cls(home(files[0]), given["as"], home(given["out"]), given.get("backbone"), side)


def main(arguments: Sequence[str]) -> None:
    """Write the checkpoint and say how to use it.

    Args:
        arguments: what follows `usl import`.

    Raises:
        UslError: a mistake in the arguments or the file, or the file to write exists.
    """
    typed = ImportOptions.parse(arguments)
    if os.path.lexists(typed.out):
        raise UslError(f"{typed.out}: exists already; choose another --out")
    write_imported(typed.file, typed.kind, typed.out, typed.backbone, typed.size)


def write_imported(path: Path, kind: str, out: Path, backbone: str | None = None, size: int | None = None) -> None:
    """The imported checkpoint as a file; see `import_checkpoint`."""
    checkpoint = import_checkpoint(path, kind, backbone, size)
    write_checkpoint(checkpoint, out, "repeat the command")
    spec = checkpoint["encoder"]["spec"]
    head = any(name.startswith("projector.") for name in checkpoint["state_dict"])
    print(
        f"{out}: {spec['backbone']} for images of {spec['width']} pixels, {'with' if head else 'without'} its head\n"
        f"next: usl select --config folder_usl.yaml --data.dir FOLDER --data.image_size {spec['width']} "
        f"--model.init_from {out}"
    )

"""`usl predict --sort-into DIR`: copies of the images, in a folder for each class."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from usl_lightning.base.atomic import temporary_folder
from usl_lightning.base.errors import UslError
from usl_lightning.base.progress import progress
from usl_lightning.data.images.folder_source import FolderSource
from usl_lightning.data.images.source import ImageSource
from usl_lightning.data.images.walk import UnreadableImageError

log = logging.getLogger("usl_lightning")


def check_sorting(source: ImageSource, target: Path) -> None:
    """Refuse what cannot be sorted, before anything is computed.

    Args:
        source: the images.
        target: the folder that is to be made.

    Raises:
        UslError: it is there already and holds something, is among the images, or these are no files.
    """
    if not isinstance(source, FolderSource):
        raise UslError(f"usl predict: --sort-into {target}: the images are no files; give a folder of images")
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise UslError(
            f"usl predict: --sort-into {target}: it is there already; expected a new folder, or an empty one, so that "
            "nothing is mixed"
        )
    if target.resolve().is_relative_to(source.root.resolve()):
        raise UslError(
            f"usl predict: --sort-into {target}: inside the folder of the images, of which the copies would be some "
            "the next time; expected one outside"
        )


def sort_into(
    source: FolderSource, images: Sequence[int], labels: Sequence[int], classes: Sequence[str], target: Path
) -> int:
    """Copy each image to `target/CLASS/` with its own path below that; all of them, or the folder is not there.

    Args:
        source: the folder.
        images: which of them. One that cannot be read any more is left out, which is said.
        labels: of each, a place in `classes`.
        classes: their names; see `folder_names`.
        target: see `check_sorting`.

    Returns:
        How many were copied.

    Raises:
        UslError: it cannot be written.
    """
    folders, files = folder_names(classes), source.files or ()
    try:
        with temporary_folder(target) as partial, progress(f"copying into {target}", len(labels), "image") as bar:
            gone = 0
            for image, label in zip(images, labels, strict=True):
                bar.update()
                file = files[image]
                try:
                    content = source.content(image)
                except UnreadableImageError as error:
                    log.warning("%s; it was not copied", error)
                    gone += 1
                    continue
                copy = partial / folders[label] / file.lstrip(os.sep)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(content)
            partial.chmod(0o755)
            partial.replace(target)
            return len(images) - gone
    except OSError as error:
        raise UslError(
            f"usl predict: --sort-into {target}: cannot be written ({error.strerror}); choose another folder"
        ) from error


def folder_names(classes: Sequence[str]) -> list[str]:
    """The folder of each class, no two the same to any file system: its name, as far as that can be one."""
    names: list[str] = []
    for name in classes:
        plain = "".join("_" if c in '/\\:*?"<>|' or c < " " else c for c in name).strip(". ") or "_"
        taken = {other.casefold() for other in names}
        numbered = (f"{plain}_{number}" for number in range(2, len(classes) + 2))
        names.append(next(each for each in (plain, *numbered) if each.casefold() not in taken))
    return names

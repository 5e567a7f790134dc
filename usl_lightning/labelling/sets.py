"""`usl labels`: label indices combined, or written in another format. Imports nothing heavy."""

import os
from collections.abc import Sequence
from pathlib import Path

from usl_lightning.base.errors import UslError, did_you_mean
from usl_lightning.base.typed import home
from usl_lightning.labels import LabelIndex

USAGE = (
    "usl labels union A B --out C, usl labels difference A B --out C, usl labels convert A --out C, "
    "usl labels export A --out TASKS.json|FILE.csv, usl labels import A ANSWERS, usl labels draw DATASET --share|"
    "--imbalance X --out C, or usl labels corrupt A --share X --out C"
)

OPERANDS = {"union": 2, "difference": 2, "convert": 1}
"""Operation -> how many files it takes."""


def main(arguments: Sequence[str]) -> None:
    """Read label indices (`.json`, `.npy`, `.csv`) and write one, in the format of its suffix.

    `union`: the entries of A, then those of B that are new; a label beats no label. `difference`: the entries of A
    that are not in B. `convert`: A. Only `.json` keeps labels, and `.csv` those of a `.csv`. `export` and `import`:
    labels for and from other programs, see `labelling.interchange`. `draw` and `corrupt`: see `labelling.draw`.

    Args:
        arguments: what follows `usl labels`.

    Raises:
        UslError: a mistake in the arguments or a file, or the file to write exists.
    """
    if arguments and arguments[0] in ("export", "import"):
        from usl_lightning.labelling.interchange import main as interchange

        interchange(arguments)
        return
    if arguments and arguments[0] in ("draw", "corrupt"):
        from usl_lightning.labelling.draw import main as draw

        draw(arguments)
        return
    operation, files, out = _parse(list(arguments))
    if os.path.lexists(out):
        raise UslError(f"{out}: exists already; choose another --out")
    indices = [LabelIndex.read(home(file)) for file in files]
    if operation == "union":
        result = indices[0].union(indices[1])
    elif operation == "difference":
        result = indices[0].difference(indices[1])
    else:
        result = indices[0]
    result.write(out)
    labelled = len(result) - result.unlabelled
    kept = out.suffix.lower() == ".json" or (out.suffix.lower() == ".csv" and result.dataset is None)
    if labelled and not kept:
        print(f"{out}: {len(result)} images; {out.suffix} has no room for their {labelled} labels, .json keeps them")
    else:
        print(f"{out}: {len(result)} images, {labelled} with a label")


def _parse(words: list[str]) -> tuple[str, list[str], Path]:
    out = None
    if "--out" in words:
        place = words.index("--out")
        out, words = words[place + 1 : place + 2], words[:place] + words[place + 2 :]
    operation, files = (words[0], words[1:]) if words else ("", [])
    if operation not in OPERANDS:
        meant = did_you_mean(operation, (*OPERANDS, "export", "import", "draw", "corrupt"))
        raise UslError(f"usl labels: unknown operation '{operation}'{meant}; use {USAGE}")
    if not out or len(files) != OPERANDS[operation] or any(file.startswith("-") for file in files):
        raise UslError(f"usl labels {operation}: expected {OPERANDS[operation]} label indices and --out; use {USAGE}")
    return operation, files, home(out[0])

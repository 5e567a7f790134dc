"""Run notebooks from top to bottom and write their outputs into them: `python notebooks/execute.py FILE …`.

Each runs in an empty folder, which is removed. It fails on the first error, or if a notebook grows too large to commit.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

LIMIT = 300_000
"""Bytes of a notebook with its outputs."""

CELL_SECONDS = 900


def execute(path: Path) -> None:
    """Run one notebook in place.

    Args:
        path: of the `.ipynb`; it is written only if every cell has run.

    Raises:
        CellExecutionError: a cell raised an error.
        SystemExit: the result is larger than `LIMIT`.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        os.environ["USL_CACHE"] = str(Path(folder) / "cache")
        NotebookClient(
            notebook, timeout=CELL_SECONDS, kernel_name="python3", resources=resources, record_timing=False
        ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = results(cell.outputs, folder)
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    text = nbformat.writes(notebook) + "\n"
    if len(text.encode()) > LIMIT:
        sys.exit(f"{path}: {len(text.encode())} bytes with its outputs; expected at most {LIMIT}: show less")
    path.write_text(text, encoding="utf-8")


def results(outputs: list[Any], folder: str) -> list[Any]:
    """What is worth keeping of a cell's outputs: not the progress on stderr, and no path of this machine.

    Args:
        outputs: as nbformat has them.
        folder: that the notebook ran in.
    """
    kept: list[Any] = []
    for output in outputs:
        if output.output_type != "stream":
            kept.append(output)
        elif output.name == "stdout":
            text = output.text.replace(folder, "…")
            if kept and kept[-1].output_type == "stream":
                kept[-1].text += text
            else:
                kept.append(nbformat.v4.new_output("stream", name="stdout", text=text))
    return kept


if __name__ == "__main__":
    for name in sys.argv[1:]:
        execute(Path(name))
        print(f"{name}: done", flush=True)

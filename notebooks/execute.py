"""Run notebooks from top to bottom and write their outputs into them: `python notebooks/execute.py FILE …`.

Each runs in an empty folder, which is removed; it fails on the first error, and if a notebook grows too large to commit.
"""

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

LIMIT = 300_000
"""Bytes of a notebook with its outputs."""

CELL_SECONDS = 300


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
        NotebookClient(
            notebook, timeout=CELL_SECONDS, kernel_name="python3", resources=resources, record_timing=False
        ).execute()
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    text = nbformat.writes(notebook) + "\n"
    if len(text.encode()) > LIMIT:
        sys.exit(f"{path}: {len(text.encode())} bytes with its outputs; expected at most {LIMIT}: show less")
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        execute(Path(name))
        print(f"{name}: done", flush=True)

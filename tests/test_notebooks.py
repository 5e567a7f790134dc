"""The notebooks as committed, run by `make notebooks`: whole, with pictures, small; and the program that runs them."""

import ast
import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = ("01_quickstart", "02_your_own_images", "03_compare_selectors")


def read(name: str) -> Any:
    """A notebook as it is committed."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_of(name: str) -> list[Any]:
    """Its cells of code."""
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


@pytest.fixture
def execute() -> ModuleType:
    """The program of `make notebooks`."""
    spec = importlib.util.spec_from_file_location("execute_notebooks", FOLDER / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_no_others() -> None:
    assert tuple(sorted(path.stem for path in FOLDER.glob("*.ipynb"))) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_is_whole_small_and_of_no_machine(name: str, execute: ModuleType) -> None:
    nbformat.validate(read(name))
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert len(text.encode()) <= execute.LIMIT
    assert not re.search(r"/tmp/|/home/|/root/", text)
    assert str(FOLDER.parent.resolve()) not in text


@pytest.mark.parametrize("name", NAMES)
def test_was_run_from_top_to_bottom(name: str) -> None:
    cells = code_of(name)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert any("image/png" in output.get("data", {}) for output in outputs), "a picture"


@pytest.mark.parametrize("name", NAMES)
def test_imports_what_there_is(name: str) -> None:
    tree = ast.parse("\n".join(cell.source for cell in code_of(name)))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    assert imports
    for node in imports:
        module = importlib.import_module(str(node.module))
        assert [each.name for each in node.names if not hasattr(module, each.name)] == []


def written(path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_outputs_are_kept_but_not_progress_and_paths(execute: ModuleType, tmp_path: Path) -> None:
    path = written(
        tmp_path / "x.ipynb",
        "import os, sys\nprint('a')\nprint('1 of 2', file=sys.stderr)\nprint(os.getcwd(), os.listdir())",
        "6 * 7",
    )
    execute.execute(path)
    first, second = (cell.outputs for cell in nbformat.read(path, as_version=4).cells)
    assert [(output.output_type, output.text) for output in first] == [("stream", "a\n… []\n")]
    assert second[0].data["text/plain"] == "42"


def test_an_error_fails_and_leaves_the_file(execute: ModuleType, tmp_path: Path) -> None:
    path = written(tmp_path / "x.ipynb", "1 / 0")
    before = path.read_bytes()
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute.execute(path)
    assert path.read_bytes() == before


def test_too_large_a_notebook_fails_and_leaves_the_file(
    execute: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "x.ipynb", "print('x' * 5000)")
    before = path.read_bytes()
    monkeypatch.setattr(execute, "LIMIT", 4000)
    with pytest.raises(SystemExit, match="at most 4000"):
        execute.execute(path)
    assert path.read_bytes() == before

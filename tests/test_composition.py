"""What is typed, and what stands in files, means the same to the front, to identity and to LightningCLI."""

import ast
import inspect
import os
import types
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from usl_lightning.base.classes import find_class
from usl_lightning.base.configs import compose, config_parts, find_config, names_of_all, pairs, shipped, shipped_folder
from usl_lightning.base.documents import (
    LARGEST,
    Listed,
    Mapped,
    Plain,
    document_text,
    parse_document,
    plain_value,
    settled,
    typed_text,
)
from usl_lightning.base.errors import UslError
from usl_lightning.base.parameters import parameters
from usl_lightning.chain.file import Chain
from usl_lightning.chain.options import RunOptions
from usl_lightning.chain.pipeline import stage_command
from usl_lightning.chain.table_spec import Table
from usl_lightning.compare.spec import Comparison
from usl_lightning.data.images.splits import split_folders
from usl_lightning.stage.complaints import check_parameters
from usl_lightning.stage.identity import differences, flatten
from usl_lightning.stage.parser import StageCLI
from usl_lightning.stage.words import StageCommand

ODD = ("010", "01", "3.10", "0x10", "1_0", "12:30", "no", "[old]", "{x}", "a: b", "@home", "photos #1", "'x'", "true",
       "1e3", "2024-01-01", "*", "&a", "!x", "- a", "? b", "%", "…", "a\tb")  # fmt: skip


def whole(name: str) -> dict[str, Any]:
    """A shipped configuration, put together of its parts."""
    return compose([tree for _, tree in config_parts(find_config(name))], {})


OTHERS = {"stages", "rounds", "selectors", "columns"}
"""Keys of what is no stage: chains, comparisons, tables."""

STAGES = [find_config(name) for name in names_of_all() if not OTHERS & set(whole(name))]
TEXT = st.text(st.characters(exclude_categories=("C", "Z")), max_size=5)


def stage(*words: str, config: str = "folder_random.yaml", command: str = "select") -> StageCommand:
    return StageCommand.parse(command, [f"--config={config}", *words])


# Documents -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\nb: 2\na: 3", 3, "the key 'a' is there twice, first in line 1"),
        ("a:\n  b: 1\n  b: 1", 3, "twice"),
        ("m: &m {x: *m}", 1, "contains itself"),
        ("a: !!python/object/apply:os.getcwd []", 1, "tag"),
        ("? [1]\n: 2", 1, "a key that is no text"),
        ("a: " + "9" * 5000, 1, "5,000 digits"),
        ("a: [", 2, "not valid YAML"),
        ("- 1\n---\n- 2", 2, "not valid YAML"),
    ],
)
def test_wrong_documents_are_refused_by_line(text: str, line: int, problem: str) -> None:
    with pytest.raises(UslError) as error:
        parse_document(text, "my.yaml")
    assert str(error.value).startswith("my.yaml: line")
    assert f"line {line}" in str(error.value)
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_aliases_end() -> None:
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(UslError, match=f"more than {LARGEST:,} values"):
        parse_document("\n".join(lines), "bomb")
    assert settled(parse_document("a: &x {k: 1}\nb: *x\nc: {<<: *x, k: 2, l: 3}", "")) == {
        "a": {"k": 1},
        "b": {"k": 1},
        "c": {"k": 2, "l": 3},
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", 10), ("1e-3", 0.001), ("1.", 1.0), ("-.inf", float("-inf")), ("yes", "yes"), ("12:30", "12:30"),
     ("1_0", "1_0"), ("null", None), ("~", None), ("true", True), ("nan", "nan"), ("²", "²")],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    assert plain_value(text) == value
    assert type(plain_value(text)) is type(value)


ODD_TEXT = st.text(
    st.sampled_from("a \t\n\r\x85\u2028\ufeff#:-'\"{}[],&*é") | st.characters(exclude_categories=("Cs",)), max_size=5
)


@given(st.recursive(ODD_TEXT, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    ODD_TEXT, inner, max_size=3), max_leaves=8))  # fmt: skip
def test_what_cannot_be_seen_is_written_too(value: Any) -> None:
    assert settled(parse_document(document_text({"k": value}), "")) == {"k": value}


PLAIN = ("010", "1.10", "1e3", "true", "Null", "~", "", ".inf", "yes", "0x10", "a b", "12:30", "2024-01-01")


@given(st.recursive(st.sampled_from(PLAIN).map(Plain) | ODD_TEXT, lambda inner: st.lists(
    inner, max_size=3).map(Listed) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3).map(Mapped),
    max_leaves=8).filter(lambda value: not isinstance(value, str)))  # fmt: skip
@example(["\u0663"])  # a digit, of no number that YAML has
def test_what_would_be_typed_is_read(value: Any) -> None:
    """Each scalar comes back as the text it was, and with the meaning that it had."""
    again = parse_document(typed_text(value), "")
    assert settled(again) == settled(value)
    assert texts_in(again) == texts_in(value)


@pytest.mark.parametrize("text", ["{x}", "[a,b]", "{a:  b}", "[]", "{ }"])
def test_what_was_typed_in_brackets_stays_so_at_any_depth(text: str) -> None:
    value = parse_document(f"data:\n  dir: {text}\n  more:\n    - {text}\n    - 010\n", "")
    assert typed_text(value) == f"{{data: {{dir: {text}, more: [{text}, 010]}}}}"


def texts_in(value: Any) -> list[str]:
    if isinstance(value, str):
        return [str(value) or "null"] if isinstance(value, Plain) else [str(value)]
    return [text for item in (value.values() if isinstance(value, dict) else value) for text in texts_in(item)]


@given(st.recursive(st.none() | st.booleans() | st.integers(-999, 999) | TEXT, lambda inner: st.lists(
    inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8))  # fmt: skip
@example("0E0")
@example("1e3")
@example("0x1f")
def test_what_is_written_is_read(value: Any) -> None:
    assert settled(parse_document(document_text({"k": value}), "")) == {"k": value}


# Types ---------------------------------------------------------------------------------------------------


def classes() -> list[str]:
    """Every class of this package that a shipped configuration names."""
    found: set[str] = set()

    def walk(value: Any) -> None:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if key == "class_path" and str(item).startswith("usl_lightning."):
                found.add(item)
            elif isinstance(item, dict | list):
                walk(item)

    for path in STAGES:
        walk(whole(path.name))
    return sorted({*found, "usl_lightning.compute.optim.Optimization"})


def group_of(class_path: str) -> str:
    """The `TypedDict` that the constructor of a class takes as `**group: Unpack[…]`; empty if it takes none."""
    found = find_class(class_path)
    for node in found.node.body if found else ():
        if isinstance(node, ast.FunctionDef) and node.name == "__init__" and node.args.kwarg:
            return ast.unparse(node.args.kwarg.annotation or node).removeprefix("Unpack[").removesuffix("]")
    return ""


@pytest.mark.parametrize("class_path", classes())
def test_types_read_from_source_are_the_classes(class_path: str) -> None:
    """jsonargparse, which resolves what is forwarded to a base, is the second opinion."""
    module, _, name = class_path.rpartition(".")
    found = getattr(__import__(module, fromlist=[name]), name)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(found, "x")
    kinds = parameters(class_path)
    real = {action.dest.removeprefix("x."): action for action in parser._actions if action.dest.startswith("x.")}
    hints = typing.get_type_hints(found.__init__)
    assert {name.split(".")[0] for name in real} <= set(kinds), "a parameter is missing"
    for name, parameter in inspect.signature(found.__init__).parameters.items():
        if name in hints and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            members = set(union(hints[name])) - {type(None)}
            assert kinds[name].text == bool(members & {str, Path}), name
            assert kinds[name].texts == (list[str] in members), name
            assert (kinds[name].number == "float") == (members == {float}), name
            assert (kinds[name].number == "int") == (members == {int}), name


@pytest.mark.parametrize("class_path", [path for path in classes() if group_of(path)])
def test_a_group_of_options_is_what_its_base_takes(class_path: str) -> None:
    """mypy reads the group; the command line follows it to the constructors that it is handed to."""
    module, _, name = class_path.rpartition(".")
    found = getattr(__import__(module, fromlist=[name]), name)
    group = typing.get_type_hints(getattr(__import__(module, fromlist=[name]), group_of(class_path)))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(found, "x")
    flags = {action.dest.split(".")[1] for action in parser._actions if action.dest.startswith("x.")}
    assert group.keys() == flags - set(inspect.signature(found.__init__).parameters)
    taken: dict[str, Any] = {}
    for base in found.__mro__[:0:-1]:
        if base.__module__.startswith("usl_lightning") and "__init__" in vars(base):
            taken |= typing.get_type_hints(base.__init__)
    assert group == {option: taken[option] for option in group}


def union(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) is typing.Literal:
        return tuple(type(value) for value in typing.get_args(hint))
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


@pytest.mark.parametrize("text", ODD)
def test_a_text_is_taken_as_typed(text: str, tmp_path: Path) -> None:
    assert stage(f"--data.dir={text}").flat()["data.dir"] == text
    file = tmp_path / "own.yaml"
    own = whole("folder_random.yaml")
    own["data"]["init_args"].pop("dir", None)
    file.write_text(yaml.safe_dump(own))
    if text[0] not in "*&!?%@-" and ": " not in text and " #" not in text and text[0] != "'":  # other YAML, or none
        content = file.read_text().replace("  init_args:\n", f"  init_args:\n    dir: {text}\n", 1)
        file.write_text(content)
        assert stage(config=str(file)).flat()["data.dir"] == text


def test_the_parser_gets_the_same_text(tmp_path: Path) -> None:
    for text in ("1.10", "{x}", "null.", "010", "1e3", "1E-5", "~nosuchuser/x", "Null."):
        words = stage(f"--data.dir={text}", f"--data.classes=['{text}']")
        data = StageCLI(words, build=False).resolved()["data"]["init_args"]
        assert (data["dir"], data["classes"]) == (text, [text])


def test_texts_in_a_list_are_as_typed(tmp_path: Path) -> None:
    typed = ["010", "1.10", "null", "~", "yes", "true", "1e3", "12:30", "-1"]
    assert stage(f"--data.classes=[{', '.join(typed)}]").flat()["data.classes"] == typed
    assert stage("--data.classes=[a]", "--data.classes+=010").flat()["data.classes"] == ["a", "010"]
    with pytest.raises(UslError, match=r"--data.classes\+= is there twice; give both at once"):
        stage("--data.classes+=010", "--data.classes+=null")
    block = "\n".join(f"    - {text}" for text in typed)
    (tmp_path / "own.yaml").write_text(f"data:\n  init_args:\n    classes:\n{block}\n")
    both = StageCommand.parse("select", ["--config=folder_random.yaml", f"--config={tmp_path / 'own.yaml'}"])
    assert both.flat()["data.classes"] == typed
    backbones = [stage(f"--model.backbone=[{text}]", config="folder_probe.yaml") for text in ("a,b", "a, b")]
    assert [each.flat()["model.backbone"] for each in backbones] == [["a", "b"]] * 2
    assert stage("--model.backbone=010", config="folder_probe.yaml").flat()["model.backbone"] == "010"
    with pytest.raises(UslError, match=r"expected a list of texts, as in \[a, b\], found cat"):
        check_parameters(stage("--data.classes=cat"))


def of_a_chain(name: str, content: str, folder: Path) -> dict[str, Any]:
    (folder / name).write_text(content)
    run = RunOptions.parse([str(folder / name)])
    return stage_command(run, run.chain.stages[0]).flat()


@pytest.mark.parametrize("style", ["[{}]", "\n      - {}"])
def test_texts_in_a_list_of_a_chain_are_as_typed(style: str, tmp_path: Path) -> None:
    typed = ["010", "1.10", "Null", "~", "TRUE", "1e3", ".inf", "+1", "1."]
    listed = style.format((", " if "[" in style else "\n      - ").join(typed))
    entry = f"name: a\n    command: select\n    config: folder_random.yaml\n    set:\n     data.classes: {listed}\n"
    assert of_a_chain("c.yaml", f"stages:\n  - {entry}", tmp_path)["data.classes"] == typed
    rounds = "".join(f"  {name}: folder_{config}.yaml\n" for name, config in (
        ("first", "random"), ("next", "random"), ("classifier", "probe")
    ))  # fmt: skip
    content = f"rounds:\n  budget: [4, 4]\n{rounds}  set:\n     data.classes: {listed}\n"
    assert of_a_chain("r.yaml", content, tmp_path)["data.classes"] == typed


@pytest.mark.parametrize("text", ["{x}", "[old]", "{a: b}", "[a, b]", "010", "1e3", "a b"])
def test_a_text_of_a_chain_is_as_typed(text: str, tmp_path: Path) -> None:
    entry = f"{{name: a, command: select, config: folder_random.yaml, set: {{data.dir: {text}}}}}"
    assert of_a_chain("c.yaml", f"stages: [{entry}]\n", tmp_path)["data.dir"] == text


@pytest.mark.parametrize("text", ["010", "1.10", "1e3", "true", "{x}", "[old]", "2024-01-01", "yes"])
def test_a_text_of_a_comparison_is_as_typed(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / text).touch()
    own = f"{{class_path: usl, init_args: {{cache: {text}}}}}"
    content = f"data: {{dataset: folder, dir: {text}}}\nselectors: [random, {own}]\nbudgets: [4]\n"
    (tmp_path / "c.yaml").write_text(content)
    comparison = Comparison.read(tmp_path / "c.yaml", {"features.features": text, "data.cache": text})
    assert (comparison.data["dir"], comparison.data["cache"]) == (text, text)
    assert (comparison.features["features"], comparison.selectors[1].options["cache"]) == (text, text)


@pytest.mark.parametrize("own", ["data: {dir: 010}", "data: {init_args: {dir: 010}}"])
@pytest.mark.parametrize("first", [False, True])
def test_parameters_of_a_class_may_stand_beside_it(own: str, first: bool, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(f"{own}\n")
    configs = ["--config=folder_random.yaml", f"--config={tmp_path / 'own.yaml'}"]
    tree = StageCommand.parse("select", configs[::-1] if first else configs).tree()
    assert tree["data"].keys() == {"class_path", "init_args"}
    assert tree["data"]["init_args"]["dir"] == "010"
    one = stage("--model.init_args={budget: 7}").tree()
    assert one == stage("--model.budget=7").tree()


def test_an_optional_text_can_be_unset_and_home_is_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for text in ("null", "Null", ""):
        assert stage(f"--data.dir={text}").flat()["data.dir"] is None
    assert stage("--data.dir=./null").flat()["data.dir"] == "./null"
    assert stage("--data.dir=~/photos").flat()["data.dir"] == "/home/me/photos"


@pytest.mark.parametrize("text", ["null", "Null", "~x", "# 1", "#1", " ", "---", "!!null x", "&a", "null # 1"])
def test_a_quoted_text_is_no_null(text: str, tmp_path: Path) -> None:
    """Though the parser takes each for null; as a path it means the same with `./` before it."""
    (tmp_path / "own.yaml").write_text(f"data: {{dir: '{text}'}}\n")
    words = StageCommand.parse("select", ["--config=folder_random.yaml", f"--config={tmp_path / 'own.yaml'}"])
    told = StageCLI(words, build=False).resolved()["data"]["init_args"]["dir"]
    assert words.flat()["data.dir"] == text
    assert os.path.normpath(told) == os.path.normpath(text)


def test_a_folder_with_a_tilde_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    with pytest.raises(UslError, match="~nosuchuser/x: no such folder"):
        split_folders("folder", "~nosuchuser/x")
    for name in ("~nosuchuser", "~"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").touch()
        assert split_folders("folder", f"./{name}") == {"train": Path(name)}


def test_numbers_are_compared_as_numbers() -> None:
    def identity(text: str) -> dict[str, Any]:
        word = f"--model.optimizer.weight_decay={text}"
        return stage(word, config="digits_simclr.yaml", command="fit").identity()

    for a, b in (("1e-3", "0.001"), ("0.0010", "1.0e-3"), ("1", "1.0"), ("0", "0.0")):
        assert differences(identity(a), identity(b)) == []
    assert differences(identity("1"), identity("2"))


# Composition ---------------------------------------------------------------------------------------------


def test_parts_and_overrides() -> None:
    parts = [
        {"model": {"class_path": "a.B", "init_args": {"x": 1, "y": {"z": 2}}}, "trainer": {"max_steps": 3}},
        {"model": {"init_args": {"y": {"w": 4}}}},
    ]
    tree = compose(parts, {"model.y.z": "5", "trainer.max_steps": "7", "trainer.callbacks+": "[1]"})
    assert flatten(tree) == {
        "model.class_path": "a.B", "model.x": 1, "model.y.z": 5, "model.y.w": 4, "trainer.max_steps": 7,
        "trainer.callbacks": [1],
    }  # fmt: skip
    assert parts[0]["model"]["init_args"]["y"] == {"z": 2}, "the parts stay as they are"


def test_another_class_takes_no_arguments_over() -> None:
    parts = [{"model": {"class_path": "a.B", "init_args": {"x": 1}}}]
    for overrides in ({"model.class_path": "a.C", "model.k": "2"}, {"model": "a.C", "model.k": "2"}):
        assert flatten(compose(parts, overrides)) == {"model.class_path": "a.C", "model.k": 2}
    assert flatten(compose([*parts, {"model": {"class_path": "a.C"}}], {})) == {"model.class_path": "a.C"}


def test_a_value_without_parts_is_not_reached_into() -> None:
    with pytest.raises(UslError, match=r"--trainer.max_steps.x: trainer.max_steps is 3, which has no 'x'"):
        compose([{"trainer": {"max_steps": 3}}], {"trainer.max_steps.x": "1"})


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.stem)
def test_the_parser_resolves_what_the_front_composed(path: Path) -> None:
    command = stage(config=str(path), command="fit")
    front, parsed = command.flat(), flatten(StageCLI(command, build=False).resolved())
    wrong = {key: (value, parsed.get(key)) for key, value in front.items() if not within(value, parsed.get(key, value))}
    missing = [key for key in front if key not in parsed and not any(k.startswith(f"{key}.") for k in parsed)]
    assert not wrong
    assert not missing


def within(part: Any, whole: Any) -> bool:
    """Whether `whole` says all that `part` says; the parser adds defaults to what stands in lists."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and within(value, whole[key]) for key, value in part.items())
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) == len(whole) and all(map(within, part, whole))
    return bool(part == whole)


# Parts ---------------------------------------------------------------------------------------------------


def test_a_pair_without_a_file_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    alone = sorted(set(pairs()) - set(shipped()))
    assert alone
    flat = stage(config=alone[0]).flat()
    method, of_data = pairs()[alone[0]]
    parts = [stage(config=str(shipped_folder() / "parts" / f"{name}.yaml")).flat() for name in (method, of_data)]
    assert flat["model.class_path"] == parts[0]["model.class_path"]
    assert flat["data.dataset"] == parts[1]["data.dataset"]
    assert stage(config=alone[0].removesuffix(".yaml")).flat() == flat


def test_parts_of_a_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("parts: [simclr, digits_pretrain, more]\ntrainer: {max_steps: 5}\n")
    (tmp_path / "more.yaml").write_text("model: {init_args: {temperature: 0.3}}\n")
    flat = stage(config="mine.yaml", command="fit").flat()
    assert (flat["data.dataset"], flat["model.temperature"], flat["trainer.max_steps"]) == ("digits", 0.3, 5)
    (tmp_path / "more.yaml").write_text("parts: [deeper]\nmodel: {init_args: {temperature: 0.4}}\n")
    (tmp_path / "deeper.yaml").write_text("model: {init_args: {temperature: 0.2, hidden_dim: 64}}\n")
    flat = stage(config="mine.yaml", command="fit").flat()
    assert (flat["model.temperature"], flat["model.hidden_dim"]) == (0.4, 64)
    (tmp_path / "deeper.yaml").write_text("parts: [simclr]\n")
    with pytest.raises(UslError, match=r"deeper\.yaml: a part of a part with parts of its own"):
        stage(config="mine.yaml").flat()
    (tmp_path / "mine.yaml").write_text("parts: [simclrr]\n")
    with pytest.raises(UslError, match=r"no such part: simclrr \(did you mean 'simclr'"):
        stage(config="mine.yaml").flat()


def test_settings_are_written_once() -> None:
    """A setting of a pair that its parts have too is not repeated, and all of them are few."""
    count = 0
    for path in [*shipped_folder().glob("*.yaml"), *(shipped_folder() / "parts").glob("*.yaml")]:
        *before, (_, own) = config_parts(path)
        if OTHERS & set(own):
            continue
        count += len(flatten(settled(own)))
        parts = flatten(compose([tree for _, tree in before], {}))
        again = [key for key, value in flatten(compose([own], {})).items() if parts.get(key, "?") == value]
        assert not [key for key in again if not key.endswith("class_path")], path.name
    assert count <= 1100


def test_arguments_may_come_before_their_class() -> None:
    """What methods share is a part that names no class; another class than the one before drops its arguments."""
    shared, first, other = (
        {"model": {"init_args": {"a": 1}}},
        {"model": {"class_path": "x.X"}},
        {"model": {"class_path": "x.Y"}},
    )
    assert compose([shared, first], {}) == {"model": {"class_path": "x.X", "init_args": {"a": 1}}}
    assert compose([shared, first, other], {}) == {"model": {"class_path": "x.Y"}}


@pytest.mark.parametrize(("written", "meant"), [
    ("null", None), ("Null", None), ("", None), ("''", None), ("'null'", "null"), ('"Null"', "Null"),
    ("NULLS", "NULLS"),
])  # fmt: skip
def test_null_means_the_same_in_stage_files_chains_and_tables(written: str, meant: str | None, tmp_path: Path) -> None:
    """Unquoted it unsets, quoted it is a text; `./` before a path changes nothing."""
    path = tmp_path / "stage.yaml"
    path.write_text(f"data:\n  dir: {written}\n")
    assert StageCommand("select", [find_config("digits_random.yaml"), path]).flat()["data.dir"] == meant

    entry = "{name: a, command: select, config: digits_random.yaml"
    (tmp_path / "chain.yaml").write_text(f"set:\n  data.dir: {written}\nstages: [{entry}}}]\n")
    (stage,) = Chain.read(tmp_path / "chain.yaml").stages
    found = StageCommand("select", [stage.config], stage.set).flat()["data.dir"]
    assert (found and found.removeprefix("./")) == meant

    (tmp_path / "table.yaml").write_text(
        f"rows: {{r: {{a: {{set: {{data.dir: {written or 'null'}}}}}}}}}\ncolumns: {{c: {{}}}}\nseeds: [0]\n"
        f"metric: a.share\nstages: [{entry}}}]\n"
    )
    (cell,) = Table.read(tmp_path / "table.yaml", {}).cells()
    again = Chain.of(parse_document(document_text(cell.content), "cell"), tmp_path / "cell.yaml").stages
    for (stage,) in (cell.stages, again):
        found = StageCommand("select", [stage.config], stage.set).flat()["data.dir"]
        assert (found and found.removeprefix("./")) == meant
    (cell,) = Table.read(tmp_path / "table.yaml", {"a.data.dir": "null"}).cells()
    (stage,) = cell.stages
    assert StageCommand("select", [stage.config], stage.set).flat()["data.dir"] is None


def test_a_quoted_null_where_no_text_may_be_stays_a_text(tmp_path: Path) -> None:
    settings = "{data.split: 'null', trainer.max_time: 'null', model.budget: '12'}"
    entry = f"{{name: a, command: select, config: digits_random.yaml, set: {settings}}}"
    (tmp_path / "chain.yaml").write_text(f"stages: [{entry}]\n")
    (stage,) = Chain.read(tmp_path / "chain.yaml").stages
    flat = StageCommand("select", [stage.config], stage.set).flat()
    assert (flat["data.split"], flat["trainer.max_time"], flat["model.budget"]) == ("null", "null", 12)

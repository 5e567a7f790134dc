"""JSON that means two things, or nothing, is refused wherever it is read."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usl_lightning.base.errors import UslError
from usl_lightning.base.files import DEEPEST, LONGEST_NUMBER, indented, parse_json, read_json, write_json
from usl_lightning.chain.plan import Plan
from usl_lightning.labels import LabelIndex
from usl_lightning.stage.folder import StageFolder

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES, st.booleans(), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))
def test_what_is_json_is_read_as_ever(value: object, escaped: bool, encoding: str) -> None:
    text = json.dumps(value, ensure_ascii=escaped)
    assert parse_json(text) == value
    assert parse_json(text.encode(encoding)) == value


@given(VALUES)
def test_json_is_laid_out_as_the_standard_library_does(value: object) -> None:
    assert indented(value) == json.dumps(value, indent=1, ensure_ascii=False)
    assert indented({"a": value, "b": [value, 1]}) == json.dumps(
        {"a": value, "b": [value, 1]}, indent=1, ensure_ascii=False
    )


@pytest.mark.parametrize(("text", "problem"), [
    ('{"a": 1,\n "b": 2,\n "a": 3}', 'line 3: key "a" is there twice; keep one'),
    ('[{"a": {"x": 1}}, {"b": [{"k": 1, "\\u006b": 2}]}]', 'line 1: key "\\u006b" is there twice'),
    ('{"a": "\\"a\\": {", "b": {"a": 1},\n"b" : 1}', 'line 2: key "b" is there twice'),
    ('[1,\n NaN]', "line 2: NaN is no number"),
    ('{"NaN": "NaN", "x": -Infinity}', "line 1: -Infinity is no number"),
    ("[\n\n1e999]", "line 3: 1e999 is too large"),
    ("[-1" + 400 * "0" + ".0]", "line 1: -1000"),
    ("[1,\n" + (LONGEST_NUMBER + 1) * "9" + "]", f"line 2: a number of {LONGEST_NUMBER + 1} digits"),
    ("[" + 100_000 * "9" + "]", "line 1: a number of 100000 digits"),
    ((DEEPEST + 1) * "[" + (DEEPEST + 1) * "]", f"nested more than {DEEPEST} deep"),
    (200 * '{"a": [' + 200 * "]}", f"nested more than {DEEPEST} deep"),
    (100_000 * "[", f"nested more than {DEEPEST} deep"),
    ('["ok",\n "\\ud800"]', "line 2: half of a character"),
    ('{"x\\uDFFF": 1}', "line 1: half of a character"),
    ("{", "line 1 column 2"),
    ("", "line 1 column 1"),
    (b'["\xff"]', "byte 2 is no UTF-8"),
    (b'["\xed\xa0\x80"]', "byte 2 is no UTF-8"),
    ('["a\tb"]', "control character"),
    ("[1,]", "line 1"),
    ("[1] 2", "Extra data"),
])  # fmt: skip
def test_what_is_not_meant_is_refused_with_its_place(text: str | bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)) as error:
        parse_json(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("text", [
    '["\\ud83d\\ude00"]', DEEPEST * "[" + DEEPEST * "]", "[" + LONGEST_NUMBER * "9" + "]", '{"a": {"a": {"a": 1}}}',
    '{"x": "NaN", "y": "\\\\ud800"}', "[" + ",".join(1000 * ["[[]]"]) + "]",
])  # fmt: skip
def test_what_only_looks_like_it_is_read(text: str) -> None:
    assert parse_json(text) == json.loads(text)


def test_numbers_that_are_not_finite_are_written_as_null(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [math.nan, 1.5, (math.inf,)], "b": {"c": -math.inf}})
    assert read_json(tmp_path / "a.json", "") == {"a": [None, 1.5, [None]], "b": {"c": None}}


TWICE = '{"status": "complete",\n "status": "running"}'


@pytest.mark.parametrize(("name", "read"), [
    ("stage.json", lambda folder: StageFolder(folder).record()),
    ("run.json", lambda folder: Plan.read(folder)),
    ("labels.json", lambda folder: LabelIndex.read(folder / "labels.json")),
])  # fmt: skip
@pytest.mark.parametrize(("content", "problem"), [
    (TWICE, 'line 2: key "status" is there twice; keep one'), ('{"a": NaN}', "line 1: NaN is no number"),
    (200 * "[" + 200 * "]", "deep"), ('{"a": "\\ud800"}', "half of a character"), ("{", "line 1"),
])  # fmt: skip
def test_every_file_of_a_run_is_read_so(
    tmp_path: Path, name: str, read: Callable[[Path], object], content: str, problem: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UslError, match=re.escape(problem)) as error:
        read(tmp_path)
    assert str(error.value).startswith(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_nothing_else_reads_json() -> None:
    package = Path(__file__).parents[1] / "usl_lightning"
    others = [path.name for path in package.rglob("*.py") if re.search(r"json\.loads?\(", path.read_text())]
    assert others == ["files.py"]

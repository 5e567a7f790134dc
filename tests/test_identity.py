"""What makes two runs the same run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from usl_lightning.base.errors import UslError
from usl_lightning.base.version import __version__
from usl_lightning.data.images.rendering import VERSION
from usl_lightning.stage.identity import (
    TRAINER_FIELDS,
    differences,
    digest,
    flatten,
    identity_fields,
    stage_identity,
)

LEAF = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=3)
NAMES = st.text("abcdef", min_size=1, max_size=3)
TREES = st.recursive(LEAF, lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=3), max_leaves=8)


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *path, leaf = key.split(".")
        node = tree
        for name in path:
            node = node.setdefault(name, {})
        node[leaf] = value
    return tree


@given(st.dictionaries(NAMES, TREES, max_size=4))
def test_flatten_loses_nothing(tree: dict[str, Any]) -> None:
    assert unflatten(flatten(tree)) == tree


def test_flatten_reads_as_typed() -> None:
    config = {"model": {"class_path": "M", "init_args": {"view": {"class_path": "V", "init_args": {"flip": False}}}}}
    assert flatten(config) == {"model.class_path": "M", "model.view.class_path": "V", "model.view.flip": False}
    assert flatten({"a": {}}) == {"a": {}}


FIELDS = {"model.threshold": 0.95, "data.batch_size": 64, "seed_everything": 0, "trainer.max_steps": 100}


FREE = """data.dir data.workers data.residence data.cache data.download data.eval_batch_size
    trainer.devices trainer.num_nodes trainer.strategy trainer.logger trainer.enable_progress_bar
    checkpoint.every_steps checkpoint.every_minutes"""


@pytest.mark.parametrize("key", FREE.split())
def test_where_and_how_fast_a_run_goes_is_free(key: str) -> None:
    assert identity_fields({**FIELDS, key: "anything"}) == FIELDS


@pytest.mark.parametrize(
    "key", [*FIELDS, *(f"trainer.{name}" for name in TRAINER_FIELDS), "data.dataset", "model.view.flip"]
)
def test_what_is_computed_is_not_free(key: str) -> None:
    assert identity_fields({**FIELDS, key: "changed"}) == {**FIELDS, key: "changed"}


def test_digest_ignores_order_alone() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    digests = {
        digest(fields) for fields in ({"a": 1}, {"a": 2}, {"a": "1"}, {"a": None}, {}, {"b": 1}, {"a": 1, "b": 1})
    }
    assert len(digests) == 7


@given(st.dictionaries(NAMES, LEAF, max_size=4), st.dictionaries(NAMES, LEAF, max_size=4))
def test_differences_are_there_exactly_if_something_differs(old: dict[str, Any], new: dict[str, Any]) -> None:
    lines = differences(old, new)
    assert bool(lines) == (old != new)
    for line in lines:
        assert "\n" not in line
    assert {line.split(" was ")[0] for line in lines} <= old.keys() | new.keys()
    assert differences(old, old) == []


def test_differences_name_the_key_and_both_values() -> None:
    old = {"model.threshold": 0.95, "data.labels": "sha256:" + "a" * 64, "data.files": "sha256:a", "same": 1}
    new = {
        "model.threshold": 0.9,
        "data.labels": "sha256:" + "b" * 64,
        "data.files": "sha256:b",
        "same": 1,
        "model.k": 5,
    }
    assert differences(old, new) == [
        "data.files was other images (files were added, removed or changed since)",
        "data.labels was a file of other content",
        "model.k was not set, now 5",
        "model.threshold was 0.95, now 0.9",
    ]


def test_differences_are_words() -> None:
    of_file, none = {"model.init_from": "sha256:" + "a" * 64}, {"model.init_from": None}
    assert differences(of_file, {}) == ["model.init_from was a file, now not set"]
    assert differences(none, of_file) == ["model.init_from was null, now a file"]
    usl, other = "usl_lightning.selection.usl.USL", "usl_lightning.selection.random.Random"
    digits = {"data.dataset": "digits", "model.class_path": other}
    folder = {"data.dataset": "folder", "data.decoding.revision": 2, "model.class_path": usl, "model.revision": 3}
    assert differences(digits, folder) == [
        "data.dataset was digits, now folder",
        f"model.class_path was {other}, now {usl}",
    ]
    assert len(differences({**folder, "data.decoding.revision": 1}, {**folder, "model.revision": 4})) == 2


@pytest.fixture
def flat(tmp_path: Path) -> dict[str, Any]:
    np.save(tmp_path / "images.npy", np.zeros((4, 8, 8), np.uint8))
    (tmp_path / "labels.json").write_text("[1]")
    paths = {"data.dir": str(tmp_path / "images.npy"), "data.labels": str(tmp_path / "labels.json")}
    return {**FIELDS, "data.dataset": "arrays", **paths}


def test_files_count_by_content(flat: dict[str, Any], tmp_path: Path) -> None:
    before = stage_identity("fit", flat)
    assert before["version"] == __version__
    (tmp_path / "moved.json").write_text("[1]")
    assert stage_identity("fit", {**flat, "data.labels": str(tmp_path / "moved.json")}) == before
    (tmp_path / "labels.json").write_text("[2]")
    assert [line.split()[0] for line in differences(before, stage_identity("fit", flat))] == ["data.labels"]


def test_data_count_by_what_is_there(flat: dict[str, Any], tmp_path: Path) -> None:
    before = stage_identity("fit", flat)
    np.save(tmp_path / "images.npy", np.zeros((5, 8, 8), np.uint8))
    assert [line.split()[0] for line in differences(before, stage_identity("fit", flat))] == ["data.files"]


def test_commands_differ(flat: dict[str, Any]) -> None:
    assert digest(stage_identity("fit", flat)) != digest(stage_identity("select", flat))


@pytest.mark.parametrize("key", ["data.labels", "data.neighbors", "model.init_from", "model.prior_file"])
def test_a_missing_file_is_named_with_its_key(flat: dict[str, Any], key: str) -> None:
    with pytest.raises(UslError, match=rf"^{key}: no such file: nowhere/a\.json$"):
        stage_identity("fit", {**flat, key: "nowhere/a.json"})


def test_image_folders_tell_how_they_are_decoded(flat: dict[str, Any], tmp_path: Path) -> None:
    """A run of a version that made other pixels of the same files is refused, and not for files that have changed."""
    assert "data.decoding.revision" not in stage_identity("fit", flat)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(b"as many bytes")
    fields = stage_identity("fit", {"data.dataset": "folder", "data.dir": str(tmp_path / "photos")})
    earlier = {key: value for key, value in fields.items() if key != "data.decoding.revision"}
    (line,) = differences(earlier, fields)
    assert line.startswith(
        f"data.decoding was revision 1, now {VERSION} (what it computes has changed; the older version"
    )

"""Files that are not what was written, each as small as it can be: read rightly, made again, or refused in a line."""

import io
import json
import logging
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from usl_lightning.base.arrays import load_arrays
from usl_lightning.base.classes import find_class
from usl_lightning.base.errors import UslError
from usl_lightning.chain.plan import Plan
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.images.opening import open_source
from usl_lightning.data.images.source import ArraySource
from usl_lightning.engine.logs import HEADER, MetricsCSV
from usl_lightning.features.images import read_features
from usl_lightning.features.kept import kept_or_made
from usl_lightning.features.neighbors import read_neighbors
from usl_lightning.features.parts import PartFile, Place
from usl_lightning.labels import LabelIndex
from usl_lightning.models.cluster_heads import ENTRY as HEADS
from usl_lightning.models.cluster_heads import ClusterHeads, heads_entry, load_heads
from usl_lightning.models.encoder import ENTRY, Encoder, encoder_entry, init_encoder, load_encoder, stored_image
from usl_lightning.models.published import read_weights
from usl_lightning.report.evaluations import problem_of
from usl_lightning.report.run import read_curves
from usl_lightning.stage.complaints import check_parameters
from usl_lightning.stage.folder import StageFolder
from usl_lightning.stage.identity import differences
from usl_lightning.stage.overview import Overview, make_overview
from usl_lightning.stage.words import StageCommand

SOURCE = ArraySource(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3).long(), ("a",), name="x", split="train")


# arrays --------------------------------------------------------------------------------------------------


def npy_with(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize("header", [b"{", b"[" * 300, b"\0", b"'", b"{'descr': 1}", b""])
def test_features_whose_header_is_no_header(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(npy_with(header))
    with pytest.raises(UslError, match=r"model\.features: .*x\.npy: not a whole \.npy or \.npz file of numbers"):
        read_features(tmp_path / "x.npy", SOURCE)


def test_an_archive_with_something_else_in_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("neighbors", b"x")
    with pytest.raises(UslError, match="neighbors is no array"):
        read_neighbors(str(tmp_path / "x.npz"), SOURCE)


def test_arrays_of_other_machines(tmp_path: Path) -> None:
    table = np.array([[1], [2], [0]])
    np.save(tmp_path / "x.npy", table.astype(">i8"))
    assert torch.equal(read_neighbors(str(tmp_path / "x.npy"), SOURCE), torch.from_numpy(table))
    assert load_arrays(tmp_path / "x.npy")[""].dtype.isnative


@pytest.mark.parametrize("kept", [np.array(["a"]), np.zeros(2, "S3"), np.zeros(2, "M8[ns]")])
def test_kept_features_that_are_no_numbers_are_made_again(kept: Any, tmp_path: Path) -> None:
    def asked() -> torch.Tensor:
        return kept_or_made("features", {"k": 1}, lambda _: torch.ones(2, 3), Place(), cache=tmp_path)

    asked()
    (path,) = tmp_path.glob("*.npz")
    np.savez(path, features=kept, about=np.array('{"k": 1}'))
    assert torch.equal(asked(), torch.ones(2, 3))
    assert load_arrays(path)["features"].shape == (2, 3)


@pytest.mark.parametrize("count", [b"9" * 30, b"9" * 5000])
def test_parts_that_claim_too_much(count: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.f32").write_bytes(bytes(24))
    (tmp_path / "x.sums").write_bytes(count + b" 00000000\n")
    assert PartFile(tmp_path / "x.f32", 3, 2, 8).done == 0


@pytest.mark.parametrize("arrays", [
    {"images": np.zeros((2, 0, 4), np.uint8)},
    {"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, 10**8])},
])  # fmt: skip
def test_images_that_are_none_and_classes_without_number(arrays: dict[str, Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UslError, match=r"x\.npz: .*expected"):
        open_source("arrays", "train", dir=str(tmp_path / "x.npz"), image_size=4)


def test_a_label_that_is_no_class_number(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(f"Index,ImageID,Pseudolabel\n0,0,{10**8}\n")
    with pytest.raises(UslError, match=r"x\.csv: .*label 100000000 is no class number, expected one below 100,000"):
        LabelIndex.read(tmp_path / "x.csv")


@pytest.mark.parametrize("change", [
    {"density": np.full(12, np.nan, np.float32)}, {"images": np.int64(3)}, {"nearest": np.zeros(2, np.int64)},
    {"chosen": 13}, {"chosen": 0}, {"total": 3}, {"features": np.zeros(12, np.float16)},
    {"images": np.arange(12.0)}, {"clusters": np.zeros(12, np.int64)},
])  # fmt: skip
def test_an_overview_that_is_none(change: dict[str, Any], tmp_path: Path) -> None:
    overview = make_overview(torch.eye(12), torch.tensor([3, 1]))
    assert overview is not None
    overview.write(tmp_path / "x.npz")
    found = Overview.read(tmp_path / "x.npz")
    assert found is not None
    assert np.array_equal(found.images, overview.images)
    np.savez(tmp_path / "x.npz", **{**{k: v for k, v in vars(overview).items() if v is not None}, **change})
    with pytest.raises(UslError, match=r"x\.npz: damaged \(.*\); delete it, the report does without"):
        Overview.read(tmp_path / "x.npz")


# records -------------------------------------------------------------------------------------------------

RECORD = {"status": "complete", "identity_hash": "sha256:0", "identity": {"command": "fit"}, "seconds": 1.5}


@pytest.mark.parametrize(("change", "problem"), [
    ({"status": None}, "status: expected running or complete"), ({"status": []}, "status"),
    ({"identity": []}, "identity"),
    ({"identity_hash": 3}, "identity_hash: expected a text"), ({"seconds": []}, "seconds: expected a number"),
    ({"seconds": 1e308}, "seconds"), ({"seconds": True}, "seconds"), ({"metrics": "x"}, "metrics"),
    ({"metrics": {"test_accuracy": "x"}}, "test_accuracy is no figure"), ({"machine": "x"}, "machine"),
    ({"metrics": {"estimated_interval": [0.5]}}, "estimated_interval is no figure"), ({"outputs": 1}, "outputs"),
])  # fmt: skip
def test_a_record_that_is_none(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    folder = StageFolder(tmp_path)
    metrics = {"test_accuracy": 0.5, "estimated_interval": [0.4, 0.6], "class_counts": [1, 2], "knn_k": None}
    folder.record_path.write_text(json.dumps({**RECORD, "metrics": metrics}))
    assert folder.complete
    folder.record_path.write_text(json.dumps({**RECORD, **change}))
    with pytest.raises(UslError, match=rf"stage\.json: not the record of a stage, .*{problem}.*; was the file edited"):
        folder.record()


@pytest.mark.parametrize("lost", ["status", "identity", "identity_hash"])
def test_a_record_that_lacks_something(lost: str, tmp_path: Path) -> None:
    (tmp_path / "stage.json").write_text(json.dumps({key: value for key, value in RECORD.items() if key != lost}))
    with pytest.raises(UslError, match=f"not the record of a stage, it has no {lost}"):
        StageFolder(tmp_path).record()


def test_a_revision_that_is_no_number() -> None:
    assert differences({"model.revision": "x"}, {"model.revision": 2}) == ["model.revision was x, now 2"]


@pytest.mark.parametrize("change", [
    {"arguments": [1.5]}, {"arguments": []}, {"arguments": "x"}, {"arguments": None}, {"seed": "x"}, {"seed": None},
    {"stages": [{"name": True, "command": "fit", "needs": []}]}, {"stages": [{"name": "a", "command": 1, "needs": []}]},
    {"stages": [{"name": "../a", "command": "fit", "needs": []}]}, {"stages": [{"name": "a\0", "command": "fit"}]},
    {"stages": [{"name": "a", "command": "fit", "needs": "abc"}]}, {"stages": []},
])  # fmt: skip
def test_a_plan_that_is_none(change: dict[str, Any], tmp_path: Path) -> None:
    plan = {"arguments": ["x.yaml"], "seed": 0, "stages": [{"name": "a", "command": "fit", "needs": []}]}
    (tmp_path / "run.json").write_text(json.dumps(plan))
    assert Plan.read(tmp_path) is not None
    (tmp_path / "run.json").write_text(json.dumps({**plan, **change}))
    with pytest.raises(UslError, match=r"run\.json: damaged \(.*\); delete it, `usl run` writes it again"):
        Plan.read(tmp_path)


def test_an_evaluation_that_is_none() -> None:
    scores = {"images": 3, "confusion": [[1, 0], [1, 1]]}
    valid = {"classes": ["a", "b"], "ema": scores, "notes": {"x": "y"}, "metrics": {"x": 1}}
    assert problem_of(valid) is None
    assert problem_of({**valid, "ema": {**scores, "confusion": "confusion_ema.npy"}}) is None
    for confusion in ([[1, 0], [1]], [[1, 0]], None, 3, [[1, 0], [1, "x"]], [[1, 0], "ab"]):
        problem = problem_of({**valid, "ema": {**scores, "confusion": confusion}})
        assert problem == "ema: confusion: expected 2 rows of 2 counts"
    for change in ({"classes": [1, 2]}, {"notes": []}, {"notes": {"x": 1}}, {"metrics": 1}, {"ema": {"images": None}}):
        assert problem_of({**valid, **change}) is not None
    assert problem_of([]) is not None


# metrics.csv ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"x,loss,1", b"2,loss,x", b"1,a,b,c", b"\0", b"9" * 5000 + b",a,1"])
def test_damaged_metrics_are_left_out_and_said(damage: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(HEADER.encode() + b"1,loss,0.5\n" + damage + b"\n2,loss,0.25\n3,loss,1\n")
    metrics = MetricsCSV(path)
    assert metrics.noted(2) == {"loss": 0.25}
    assert read_curves(path)["loss"] == [(2, 0.5), (3, 0.25), (4, 1.0)]
    with caplog.at_level(logging.WARNING, "usl_lightning"):
        metrics.rewind(3)
    assert path.read_text() == f"{HEADER}1,loss,0.5\n2,loss,0.25\n"
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: a damaged line is left out, nothing else is lost"
    ]
    metrics.complete({"loss": 0.25, "accuracy": 1.0}, 2)
    assert metrics.noted(2) == {"loss": 0.25, "accuracy": 1.0}


def test_a_cut_last_row_is_nothing_to_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(f"{HEADER}1,loss,0.5\n2,lo")
    with caplog.at_level(logging.WARNING, "usl_lightning"):
        MetricsCSV(path).complete({"loss": 0.5}, 1)
        MetricsCSV(path).rewind(2)
    assert path.read_text() == f"{HEADER}1,loss,0.5\n"
    assert not caplog.records


def test_line_ends_of_another_system_cost_no_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(f"{HEADER}1,loss,0.5\n2,loss,0.25\n".replace("\n", "\r\n").encode())
    with caplog.at_level(logging.WARNING, "usl_lightning"):
        MetricsCSV(path).rewind(2)
    assert path.read_text() == f"{HEADER}1,loss,0.5\n"
    assert not caplog.records


# configurations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "problem"), [
    ('parts: ["a\\nb"]', r"parts: no such part: a\\nb"), (f"parts: [{'x' * 300}]", "parts: no such part: xxx"),
    ("trainer: 1.5", r"trainer: expected keys and values, found 1\.5"), ("checkpoint: x", "checkpoint: expected keys"),
    ("model: {class_path: usl_lightning.pretrain.simclr.SimCLR, init_args: {temperature: \"a\\nb\"}}",
     r"model.temperature: expected float, found a\\nb"),
    (f"model: {{class_path: usl_lightning.pretrain.simclr.SimCLR, init_args: {{temperature: 1{'0' * 350}}}}}",
     "model.temperature: .* is out of range"),
])  # fmt: skip
def test_a_configuration_that_is_none(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UslError, match=rf"x\.yaml: {problem}") as refused:
        check_parameters(StageCommand("fit", [tmp_path / "x.yaml"]))
    assert len(str(refused.value).splitlines()) == 1


def test_arguments_and_a_seed_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("model: {class_path: x, init_args: 3}")
    with pytest.raises(UslError, match=r"model\.init_args: expected keys and values, found 3"):
        StageCommand("fit", [tmp_path / "x.yaml"]).check()
    (tmp_path / "x.yaml").write_text("seed_everything: {a: 1}")
    with pytest.raises(UslError, match=r"seed_everything: .* is no seed"):
        StageCommand("fit", [tmp_path / "x.yaml"]).check()


def test_names_that_no_file_has(tmp_path: Path) -> None:
    assert find_class(f"usl_lightning.data.{'x' * 300}.Class") is None
    for key, value in (("model.init_from", "x" * 300), ("data.labels_file", "x" * 5000), ("model.init_from", "a\0b")):
        with pytest.raises(UslError, match=f"{key}: no such file"):
            StageCommand("fit", [], {"data.class_path": "x", key: value}).identity()
    for dataset in ("folder", "arrays"):
        with pytest.raises(UslError, match="no such"):
            open_source(dataset, "train", dir="x" * 300)


# checkpoints ---------------------------------------------------------------------------------------------

IMAGE = ImageSpec(1, 8, 8, (0.5,), (0.5,), ("a", "b"))


def stored(tmp_path: Path, **changes: Any) -> Path:
    """A checkpoint; `spec`, `prefixes` and `state` change what is in it."""
    encoder = Encoder("small_nf", IMAGE)
    entry = encoder_entry(encoder, online="encoder.")
    content = {
        ENTRY: {key: {**entry[key], **changes.get(key, {})} for key in ("spec", "prefixes")},
        "state_dict": {**{f"encoder.{k}": v for k, v in encoder.state_dict().items()}, **changes.get("state", {})},
    }
    torch.save({**content, **changes.get("content", {})}, tmp_path / "x.ckpt")
    return tmp_path / "x.ckpt"


@pytest.mark.parametrize("changes", [
    {"state": {"encoder.mean": torch.zeros(3)}}, {"state": {"encoder.mean": "x"}}, {"state": {3: torch.zeros(1)}},
    {"state": {"encoder.mean": torch.eye(3).to_sparse()}}, {"state": {"encoder.more": torch.zeros(1)}},
    {"spec": {"channels": 10**7}}, {"spec": {"height": "x"}}, {"spec": {"mean": None}}, {"spec": {"classes": [1]}},
    {"spec": {"std": [float("nan")]}}, {"spec": {"backbone": None}}, {"spec": {"count": -1}}, {"content": {ENTRY: 1}},
    {"content": {ENTRY: {"spec": 1, "prefixes": {}}}}, {"content": {"state_dict": 3}}, {"prefixes": {"online": 1}},
])  # fmt: skip
def test_a_checkpoint_that_does_not_fit_together(changes: dict[str, Any], tmp_path: Path) -> None:
    assert load_encoder(stored(tmp_path)).image.classes == IMAGE.classes
    path = stored(tmp_path, **changes)
    with pytest.raises(UslError, match=r"x\.ckpt|model\.backbone") as refused:
        load_encoder(path)
    assert len(str(refused.value).splitlines()) == 1
    with suppress(UslError):  # and nothing else
        stored_image(path)
    with suppress(UslError):
        init_encoder(Encoder("small_nf", IMAGE), path)


@pytest.mark.parametrize("spec", [
    {"clusters": 10**9}, {"heads": 10**9}, {"heads": 3}, {"inputs": "x"}, {"more": 1}, {"cosine_scale": "x"},
])  # fmt: skip
def test_heads_that_are_of_another_size(spec: dict[str, Any], tmp_path: Path) -> None:
    heads = ClusterHeads(4, 3, 2)
    entry, state = heads_entry(heads, "h."), {f"h.{name}": value for name, value in heads.state_dict().items()}
    torch.save({HEADS: entry, "state_dict": state}, tmp_path / "x.ckpt")
    assert len(load_heads(tmp_path / "x.ckpt")) == 2
    torch.save({HEADS: {**entry, "spec": {**entry["spec"], **spec}}, "state_dict": state}, tmp_path / "x.ckpt")
    with pytest.raises(UslError, match=r"x\.ckpt: what it holds does not fit together"):
        load_heads(tmp_path / "x.ckpt")
    torch.save({HEADS: {"spec": entry["spec"]}, "state_dict": state}, tmp_path / "x.ckpt")
    with pytest.raises(UslError, match=r"x\.ckpt: what it holds does not fit together"):
        load_heads(tmp_path / "x.ckpt")


def test_weights_that_are_none(tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save({"conv.weight": "x"}, file)
    (tmp_path / "x.pth").write_bytes(file.getvalue())
    with pytest.raises(UslError, match=r"x\.pth is damaged or no file of weights"):
        read_weights(tmp_path / "x.pth", "resnet18")

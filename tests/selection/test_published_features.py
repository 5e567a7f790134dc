"""Features of published networks: of the original images at the network's own size, the same for new images."""

import json
import shutil
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
from usl_lightning.cli import main
from usl_lightning.data import passes
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.images.opening import open_source
from usl_lightning.data.images.source import ArraySource, ImageSource, dataset_id
from usl_lightning.data.modules import ImageData
from usl_lightning.features.parts import Place
from usl_lightning.features.published import (
    beside_published,
    extract_features,
    published_encoder,
    random_encoder,
    seen_by,
    source_features,
)
from usl_lightning.labels import LabelIndex
from usl_lightning.models import backbones
from usl_lightning.models.backbones import backbone_names
from usl_lightning.models.encoder import ENTRY, Encoder, encoder_entry, load_encoder
from usl_lightning.models.heads import load_classifier
from usl_lightning.models.published import read_weights, weights_folder
from usl_lightning.selection.coreset import Coreset

LITE0, OTHER = "tf_efficientnet_lite0", "test_resnet"


@pytest.fixture(scope="module")
def lite0() -> Encoder:
    return published_encoder(LITE0)


def features_of(encoder: Encoder, source: ImageSource, **options: Any) -> Tensor:
    return source_features(encoder, seen_by(encoder.backbone, source), Place(), **options)


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


def counting(monkeypatch: pytest.MonkeyPatch, stop: int | None = None) -> list[int]:
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
    options: dict[str, Any], lite0: Encoder, folder: Path, tmp_path: Path
) -> None:
    if "cache" in options:
        options = {**options, "cache": str(tmp_path / "decoded")}
    source = open_source("folder", "train", dir=str(folder), **options)
    assert source.files is not None
    with torch.no_grad():
        expected = net()(torch.cat([by_hand(folder / file) for file in source.files]))
    features = features_of(lite0, source, cache=tmp_path)
    assert features.shape == (12, lite0.feature_dim)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)


def test_images_in_memory_are_enlarged_from_the_originals(lite0: Encoder, tmp_path: Path) -> None:
    few = torch.arange(6)
    seen = [open_source("digits", "train", image_size=size).resized(224, "bicubic").read(few) for size in (None, 3, 40)]
    assert seen[0].shape == (6, 3, 224, 224)
    assert torch.equal(seen[0], seen[1]), "not from those of three pixels"
    assert torch.equal(seen[0], seen[2])
    digit = open_source("digits", "train").read(few)[5, 0].numpy()
    enlarged = np.array(Image.fromarray(digit).resize((224, 224), Image.Resampling.BICUBIC))
    assert np.abs(seen[0][5].numpy().astype(int) - enlarged).max() <= 1
    assert torch.equal(seen[0][:, 0], seen[0][:, 2])


def test_random_weights_look_at_the_images_as_they_are(tmp_path: Path) -> None:
    data = ImageData("digits", image_size=32)
    sizes: set[torch.Size] = set()
    features = []
    for number in range(2):
        selector = Coreset(data.spec, 2, backbone=OTHER, pretrained=False, cache=str(tmp_path / str(number)))
        selector.setup("predict")
        selector.encoder.register_forward_pre_hook(lambda _, inputs: sizes.add(inputs[0].shape[1:]))
        features.append(selector.evidence(data))
    assert torch.equal(*features)
    assert sizes == {(1, 32, 32)}
    assert torch.equal(random_encoder(OTHER, data.spec).mean.flatten(), torch.tensor(data.spec.mean))


# several networks ----------------------------------------------------------------------------------------


def test_several_count_the_same(digits: ArraySource, lite0: Encoder, other_weights: None) -> None:
    other, both = published_encoder(OTHER), published_encoder(f"{LITE0}, {OTHER}")
    sizes: list[torch.Size] = []
    for part in both.net.nets:
        part.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[1:]))
    features = features_of(both, digits, keep=False)
    assert set(sizes) == {(3, 224, 224), (3, 160, 160)}
    assert features.shape == (20, both.feature_dim) == (20, lite0.feature_dim + other.feature_dim)
    first, second = features.split([lite0.feature_dim, other.feature_dim], dim=1)
    assert torch.equal(first, F.normalize(features_of(lite0, digits, keep=False), dim=1))
    large = digits.resized(224, "bicubic").read(torch.arange(20)) / 255
    smaller = F.interpolate(large, (160, 160), mode="bicubic", antialias=True).clamp(0, 1)
    with torch.no_grad():
        torch.testing.assert_close(second, F.normalize(other(smaller), dim=1), rtol=0, atol=1e-5)


def test_several_are_built_again_from_a_checkpoint(digits: ArraySource, other_weights: None, tmp_path: Path) -> None:
    both = published_encoder([LITE0, OTHER])
    state = {f"encoder.{name}": value for name, value in both.state_dict().items()}
    torch.save({ENTRY: encoder_entry(both, online="encoder."), "state_dict": state}, tmp_path / "a.ckpt")
    again = load_encoder(tmp_path / "a.ckpt")
    assert torch.equal(features_of(again, digits, keep=False), features_of(both, digits, keep=False))


@pytest.mark.parametrize("channels", [1, 3])
def test_one_that_was_trained_here_stands_beside_a_published_one(channels: int, folder: Path, tmp_path: Path) -> None:
    """Selected by both, from a checkpoint; each sees the images as it is used to."""
    image = ImageSpec(channels, 24, 24, (0.4,) * channels, (0.2,) * channels)
    own = Encoder("small_s2", image).eval()
    state = {f"encoder.{name}": value for name, value in own.state_dict().items()}
    torch.save({ENTRY: encoder_entry(own, online="encoder."), "state_dict": state}, tmp_path / "own.ckpt")
    selector = Coreset(image, 3, init_from=str(tmp_path / "own.ckpt"), backbone=LITE0)
    selector.setup("predict")
    data = ImageData("folder", dir=str(folder), image_size=24, channels=channels, batch_size=4)
    features = selector.evidence(data)
    dims = [own.feature_dim, features.shape[1] - own.feature_dim]
    first, second = features.split(dims, dim=1)
    original = seen_by(LITE0, data.train_source).read(torch.arange(len(features))) / 255
    if channels == 1:
        grey = [Image.fromarray(one.permute(1, 2, 0).mul(255).round().byte().numpy()).convert("L") for one in original]
        original = torch.from_numpy(np.stack([np.asarray(one) for one in grey]))[:, None] / 255
    small = F.interpolate(original, (24, 24), mode="bicubic", antialias=True).clamp(0, 1)
    with torch.no_grad():
        torch.testing.assert_close(first, F.normalize(own(small), dim=1), rtol=0, atol=1e-2)
    torch.testing.assert_close(second.norm(dim=1), torch.ones(len(features)))
    torch.save(
        {
            ENTRY: encoder_entry(selector.encoder, online="encoder."),
            "state_dict": {f"encoder.{name}": value for name, value in selector.encoder.state_dict().items()},
        },
        tmp_path / "both.ckpt",
    )
    again = load_encoder(tmp_path / "both.ckpt")
    assert torch.equal(source_features(again, seen_by(LITE0, data.train_source), Place(), keep=False), features)
    with pytest.raises(UslError, match="several networks already"):
        beside_published(again, LITE0)


def test_each_network_is_kept_by_itself(lite0: Encoder, folder: Path, tmp_path: Path) -> None:
    """Another checkpoint beside the published network, or none: of its features there is one file."""
    image = ImageSpec(3, 24, 24, (0.4,) * 3, (0.2,) * 3)
    source = seen_by(LITE0, open_source("folder", "train", dir=str(folder), image_size=24, channels=3))
    seen, found = source.read(torch.arange(len(source))), []
    for seed in range(2):
        torch.manual_seed(seed)
        both = beside_published(Encoder("small_s2", image).eval(), LITE0)
        found.append(source_features(both, source, Place(), cache=tmp_path))
        with torch.no_grad():
            torch.testing.assert_close(found[seed], both(seen), rtol=0, atol=1e-5)
    alone = source_features(lite0, source, Place(), cache=tmp_path)
    assert torch.equal(F.normalize(alone, dim=1), found[0][:, -alone.shape[1] :])
    assert torch.equal(found[0][:, -alone.shape[1] :], found[1][:, -alone.shape[1] :])
    assert not torch.equal(found[0], found[1])
    assert len(list(tmp_path.glob("features-*.npz"))) == 3


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
    killed_at: int, digits: ArraySource, lite0: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "_PER_THREAD", 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    straight = features_of(lite0, digits, cache=tmp_path / "straight")
    with monkeypatch.context() as mortal:
        counting(mortal, stop=killed_at)
        with pytest.raises(KilledError):
            features_of(lite0, digits, cache=tmp_path)
    seen = counting(monkeypatch)
    assert torch.equal(features_of(lite0, digits, cache=tmp_path), straight)
    assert seen == [8, 8, 4][killed_at:]
    assert torch.equal(features_of(lite0, digits, cache=tmp_path), straight)
    assert seen == [8, 8, 4][killed_at:], "kept"
    assert not list(tmp_path.glob("*.parts"))


def test_other_images_of_the_same_names_and_sizes(lite0: Encoder, tmp_path: Path) -> None:
    """Uncompressed files have the same sizes whatever they show."""
    features = []
    for number in range(2):
        place = tmp_path / str(number)
        place.mkdir()
        for name, photo in zip("ab", photos(40, 4)[2 * number :].permute(0, 2, 3, 1).numpy(), strict=False):
            Image.fromarray(photo).save(place / f"{name}.bmp")
        source = open_source("folder", "train", dir=str(place))
        features.append(features_of(lite0, source, cache=tmp_path / "kept"))
    assert (features[0] - features[1]).abs().max() > 0.01
    assert len(list((tmp_path / "kept").glob("*.npz"))) == 2


def test_worker_processes_change_nothing(lite0: Encoder, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_PER_THREAD", 5)
    source = open_source("folder", "train", dir=str(folder))
    alone, helped = (features_of(lite0, source, workers=workers, keep=False) for workers in (0, 2))
    assert torch.equal(alone, helped)


def test_features_that_are_no_numbers(
    digits: ArraySource, lite0: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Encoder.forward
    monkeypatch.setattr(Encoder, "forward", lambda self, images: forward(self, images).log())
    for keep in (True, False):
        with pytest.raises(UslError, match="NaN or infinite values in rows 0, 1"):
            features_of(lite0, digits, keep=keep, cache=tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


# new images ----------------------------------------------------------------------------------------------


def test_new_images_are_seen_as_those_of_a_selection(lite0: Encoder, folder: Path, tmp_path: Path) -> None:
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
    torch.testing.assert_close(by_tensor, chosen_from, rtol=0, atol=0.1)  # PIL and torch round pixels differently
    assert torch.equal(extract_features(files[::-1], lite0, workers=0), chosen_from.flip(0))


def test_new_images_that_are_none(lite0: Encoder, folder: Path) -> None:
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
    assert len(list((tmp_path / "kept").glob("features-*.npz"))) == 2, "one of each network"


def test_a_classifier_sees_new_images_as_those_it_learned_from(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of eight pixels nothing could be told; the network has a size of its own in learning, testing and predicting."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("USL_CACHE", str(tmp_path / "kept"))
    for split in ("train", "test"):
        shutil.copytree(folder, tmp_path / "data" / split)
    source = open_source("folder", "train", dir="data", image_size=8)
    LabelIndex(dataset_id(source), {}, tuple(range(12)), tuple(source.labels.tolist()), source.classes).write("l.json")
    sizes: set[torch.Size] = set()
    forward = Encoder.forward
    monkeypatch.setattr(Encoder, "forward", lambda self, x: (sizes.add(x.shape[1:]), forward(self, x))[1])
    config = ["--config", "folder_probe.yaml", "--data.dir", "data", "--data.labels", "l.json", "--run_dir", "run"]
    config += ["--data.image_size", "8", "--data.workers", "0", "--model.backbone", LITE0, "--model.init_from", "null"]
    main(["fit", *config])
    result = json.loads(Path("run/result.json").read_text())
    assert result["test_accuracy"] == 1, "the very images"
    for words, out in ((["--split", "test"], "a"), (["--folder", "data/train"], "b"), ([], "c")):
        main(["predict", *config, "--ckpt_path", "last", *words, "--out", f"{out}.csv"])
    assert sizes == {(3, 224, 224)}
    tables = [Path(f"{name}.csv").read_text() for name in "abc"]
    assert tables[0] == tables[1] == tables[2]
    features = F.normalize(extract_features(folder, LITE0, workers=0), dim=1)
    learned = load_classifier("run/checkpoints/last.ckpt")
    with torch.no_grad():
        expected = learned.head(features).softmax(1).amax(1)
    told = torch.tensor([float(line.rsplit(",", 1)[1]) for line in tables[0].splitlines()[1:]])
    torch.testing.assert_close(told, expected, rtol=0, atol=1e-5)


def test_a_selection_without_weights_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = ["--config", "digits_coreset.yaml", "--model.backbone", "vit_small_patch14_dinov2", "--run_dir", "run"]
    told = usl(tmp_path, "select", *words)
    assert told.code == 2
    assert "the published weights of 'vit_small_patch14_dinov2' are not on this machine" in told.mistake
    assert not (tmp_path / "run").exists()


CLIP = "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"


def test_clips_embedding_is_what_is_compared_with_texts(
    digits: ArraySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    monkeypatch.setenv("USL_CACHE", str(tmp_path / "kept"))
    weights_folder().mkdir(parents=True)
    torch.manual_seed(0)
    whole = timm.create_model(CLIP.partition(".")[0], num_classes=timm.get_pretrained_cfg(CLIP).num_classes).eval()
    torch.save(whole.state_dict(), weights_folder() / f"{CLIP}.pth")
    encoder = published_encoder(CLIP, projection=True)
    assert encoder.feature_dim == 512
    images = seen_by(CLIP, digits).read(torch.arange(2))
    with torch.inference_mode():
        direct = whole((images / 255 - encoder.mean) / encoder.std)
        torch.testing.assert_close(encoder(images), direct)
    reads: list[str] = []
    monkeypatch.setattr(backbones, "read_weights", lambda path, name: reads.append(name) or read_weights(path, name))
    selector = Coreset(ImageSpec(1, 8, 8, (0.0,), (1.0,)), budget=2, backbone=CLIP, head="projection")
    selector.setup("predict")
    assert selector.encoder.feature_dim == 512
    assert reads == [CLIP], "once"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"backbone": OTHER}, "has no projection"),
        ({}, "a projection is of one network"),
        ({"features": "f.npy"}, "a projection is of one network"),
        ({"backbone": OTHER, "init_from": "a.ckpt"}, "a projection is of one network"),
        ({"backbone": OTHER, "pretrained": False}, "a projection is of one network"),
    ],
)
def test_a_projection_is_of_one_network_that_has_one(given: dict[str, Any], problem: str, other_weights: None) -> None:
    with pytest.raises(UslError, match=problem):
        Coreset(ImageSpec(3, 8, 8, (0.0,) * 3, (1.0,) * 3), budget=2, head="projection", **given).setup("predict")

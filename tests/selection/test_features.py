"""Features of all images: computed once, continued after a kill, kept, and read from files."""

import copy
import dataclasses
import json
import logging
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.images.opening import open_source
from usl_lightning.data.images.source import ArraySource
from usl_lightning.data.modules import ImageData
from usl_lightning.features.images import image_features, read_features
from usl_lightning.features.published import published_encoder, random_encoder
from usl_lightning.models.encoder import Encoder

N, BATCH = 1437, 100


def digits(**options: Any) -> ImageData:
    data = ImageData("digits", **{"eval_batch_size": BATCH, **options})
    data.setup("predict")
    return data


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder("small_w16", digits().spec)


class KilledError(Exception):
    pass


def counting(encoder: Encoder, stop: int | None = None) -> list[int]:
    """The list that every batch the encoder sees adds its size to; it "dies" at batch number `stop`."""
    seen: list[int] = []

    def look(_: Any, inputs: tuple[Tensor]) -> None:
        if len(seen) == stop:
            raise KilledError
        seen.append(len(inputs[0]))

    encoder.register_forward_pre_hook(look)
    return seen


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npz"))


def test_every_image_in_order_in_evaluation_mode(encoder: Encoder, tmp_path: Path) -> None:
    encoder.train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    features = image_features(encoder, digits(), cache=tmp_path)
    assert encoder.training, "the caller's mode is left as it was"
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), "a pass moves no statistics"
    with torch.no_grad():
        expected = encoder.eval()(open_source("digits", "train").read(torch.arange(N)))
    assert features.shape == (N, encoder.feature_dim)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected)
    (features[0].requires_grad_() ** 2).sum().backward()  # an ordinary tensor, though made under inference mode


def test_the_second_time_they_are_taken_from_the_cache(encoder: Encoder, tmp_path: Path) -> None:
    seen = counting(encoder)
    with torch.inference_mode():
        first = image_features(encoder, digits(), cache=tmp_path)
    assert sum(seen) == N
    again = image_features(encoder, digits(eval_batch_size=500), cache=tmp_path)
    assert sum(seen) == N
    assert torch.equal(first, again)
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".lock", ".npz"]


def test_the_default_folder(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USL_CACHE", str(tmp_path / "mine"))
    image_features(encoder, digits())
    assert len(kept(tmp_path / "mine")) == 1


@pytest.mark.parametrize("change", ["weights", "statistics", "image size", "precision"])
def test_what_they_depend_on_is_told_apart(change: str, encoder: Encoder, tmp_path: Path) -> None:
    image_features(encoder, digits(), cache=tmp_path)
    data = digits()
    if change == "weights":
        with torch.no_grad():
            next(encoder.parameters())[0] += 1e-6
    elif change == "statistics":
        encoder.mean += 0.01
    elif change == "image size":
        data = digits(image_size=9)
    else:
        from usl_lightning.engine.trainer import Trainer

        data.trainer = Trainer(accelerator="cpu", precision="bf16-mixed", logger=False)
    features = image_features(encoder, data, cache=tmp_path)
    assert features.dtype == torch.float32
    assert len(kept(tmp_path)) == 2


@pytest.mark.parametrize("done", [0, 1, 7, 14])
@pytest.mark.parametrize("torn", [b"", b"half a row"])
def test_a_killed_pass_is_continued(done: int, torn: bytes, encoder: Encoder, tmp_path: Path) -> None:
    straight = image_features(encoder, digits(), cache=tmp_path / "straight")
    state = encoder.state_dict()
    mortal = Encoder("small_w16", digits().spec)
    mortal.load_state_dict(state)
    counting(mortal, stop=done)
    with pytest.raises(KilledError):
        image_features(mortal, digits(), cache=tmp_path / "cache")
    parts = list((tmp_path / "cache").glob("*.parts/*.f32"))
    assert [part.name for part in parts] == [f"0-{N}.f32"]
    assert parts[0].stat().st_size == done * BATCH * 4 * encoder.feature_dim
    with open(parts[0], "ab") as file:
        file.write(torn)
    seen = counting(encoder)
    features = image_features(encoder, digits(), cache=tmp_path / "cache")
    assert sum(seen) == N - done * BATCH
    assert torch.equal(features, straight)
    assert not list((tmp_path / "cache").glob("*.parts"))


def die(*_: Any, **__: Any) -> None:
    raise KilledError


def test_a_pass_killed_before_the_file_was_written(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows are there; a last, smaller batch is computed again."""
    with monkeypatch.context() as patched:
        patched.setattr("numpy.savez", die)
        with pytest.raises(KilledError):
            image_features(encoder, digits(), cache=tmp_path)
    seen = counting(encoder)
    again = image_features(encoder, digits(), cache=tmp_path)
    assert seen == [N % BATCH]
    assert torch.equal(again, image_features(encoder, digits(), cache=tmp_path / "straight"))
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize("damage", ["a flipped bit", "no line", "a torn line", "no sums", "another batch size"])
def test_damaged_parts_are_computed_again(damage: str, encoder: Encoder, tmp_path: Path) -> None:
    """From the first batch on that is not as it was written; before it nothing is."""
    straight = image_features(encoder, digits(), cache=tmp_path / "straight")
    mortal = copy.deepcopy(encoder)
    counting(mortal, stop=9)
    with pytest.raises(KilledError):
        image_features(mortal, digits(), cache=tmp_path)
    (rows,), (sums,) = (list(tmp_path.glob(f"*.parts/*{suffix}")) for suffix in (".f32", ".sums"))
    content = bytearray(rows.read_bytes())
    lines = sums.read_bytes().splitlines(keepends=True)
    batch = BATCH
    if damage == "a flipped bit":
        content[5 * BATCH * 4 * encoder.feature_dim + 7] ^= 1
        rows.write_bytes(content)
        done = 5
    elif damage == "no line":
        sums.write_bytes(b"".join(lines[:6]))
        done = 6
    elif damage == "a torn line":
        sums.write_bytes(b"".join(lines)[:-1])
        done = 8
    elif damage == "no sums":
        sums.unlink()
        done = 0
    else:
        batch, done = 200, 4
    seen = counting(encoder)
    again = image_features(encoder, digits(eval_batch_size=batch), cache=tmp_path)
    assert sum(seen) == N - done * batch
    torch.testing.assert_close(again, straight, rtol=0, atol=0 if batch == BATCH else 1e-6)


def test_what_is_behind_transparent_images_is_told_apart(tmp_path: Path) -> None:
    """The files are the same, and so is the fingerprint."""
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.fromarray(np.full((8, 8, 4), 60 * i, np.uint8)).save(tmp_path / "images" / f"{i}.png")
    made = []
    for background in ("white", "black", "#FFFFFF"):
        data = ImageData("folder", dir=str(tmp_path / "images"), channels=1, background=background)
        torch.manual_seed(0)
        encoder = Encoder("small_w16", ImageSpec(1, 8, 8, (0.5,), (0.5,)))
        data.setup("predict")
        made.append(image_features(encoder, data, cache=tmp_path / "cache"))
    assert not torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])
    assert len(kept(tmp_path / "cache")) == 2


def test_ids_name_files_in_any_form_of_unicode(tmp_path: Path) -> None:
    rows = np.arange(2, dtype=np.float32)[:, None] + 1
    for form in ("NFC", "NFD"):
        ids = np.array([unicodedata.normalize(form, name) for name in ("z.png", "é.png")])
        np.savez(tmp_path / "f.npz", features=rows, ids=ids)
        for other in ("NFC", "NFD"):
            two = ArraySource(
                torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([-1, -1]), name="folder", split="train"
            )
            two.files = (unicodedata.normalize(other, "é.png"), "z.png")
            assert read_features(tmp_path / "f.npz", two).flatten().tolist() == [2, 1]


@pytest.mark.parametrize("damage", ["a flipped byte", "cut short", "empty", "of something else"])
def test_a_damaged_file_is_made_again(
    damage: str, encoder: Encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = image_features(encoder, digits(), cache=tmp_path)
    path = kept(tmp_path)[0]
    content = bytearray(path.read_bytes())
    if damage == "a flipped byte":
        content[len(content) // 2] ^= 1
    elif damage == "cut short":
        del content[len(content) // 2 :]
    elif damage == "empty":
        content.clear()
    path.write_bytes(content)
    if damage == "of something else":
        np.savez(path, features=good.numpy() + 1, about=np.array(json.dumps({"format": "usl-features"})))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(image_features(encoder, digits(), cache=tmp_path), good)
    assert "the features are computed again" in caplog.text
    seen = counting(encoder)
    assert torch.equal(image_features(encoder, digits(), cache=tmp_path), good)
    assert seen == []


def test_features_that_are_no_numbers_are_refused_and_not_kept(encoder: Encoder, tmp_path: Path) -> None:
    def spoil(_: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output.index_fill(0, torch.tensor([3]), torch.nan)

    encoder.register_forward_hook(spoil)
    with pytest.raises(UslError, match="NaN or infinite values in rows 3, 103, 203, 303, 403 and 10 more"):
        image_features(encoder, digits(), cache=tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_used(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UslError, match=r"file: cannot be written \(.+\); give another --model.cache"):
        image_features(encoder, digits(), cache=tmp_path / "file")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 10_000})())
    with pytest.raises(UslError, match=r"the features need 0.00 GB and 0.00 GB are free"):
        image_features(encoder, digits(), cache=tmp_path)
    assert not kept(tmp_path)


# files of features ---------------------------------------------------------------------------------------


def source(files: tuple[str, ...] | None = None) -> ArraySource:
    made = ArraySource(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.arange(4), name="four", split="train")
    made.files = files
    return made


ROWS = np.arange(12, dtype=np.float32).reshape(4, 3) + 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_matrix(dtype: type, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS.astype(dtype))
    read = read_features(tmp_path / "a.npy", source())
    assert read.dtype == (torch.float64 if dtype is np.float64 else torch.float32)
    assert np.array_equal(read.numpy(), ROWS)


def test_ids_say_which_image_a_row_is_of(tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", features=ROWS)
    np.savez(tmp_path / "numbers.npz", features=ROWS, ids=np.array([2, 0, 3, 1]))
    np.savez(tmp_path / "names.npz", features=ROWS, ids=np.array(["c", "a", "d", "b"]))
    assert np.array_equal(read_features(tmp_path / "plain.npz", source()).numpy(), ROWS)
    for name in ("numbers", "names"):
        read = read_features(tmp_path / f"{name}.npz", source(("a", "b", "c", "d")))
        assert np.array_equal(read.numpy(), ROWS[[1, 3, 0, 2]])


def test_a_kept_file_can_be_given(encoder: Encoder, tmp_path: Path) -> None:
    features = image_features(encoder, digits(), cache=tmp_path)
    assert torch.equal(read_features(kept(tmp_path)[0], open_source("digits", "train")), features)


def test_features_of_other_images_are_refused(tmp_path: Path) -> None:
    about = {"dataset": "sha256:" + "0" * 64}
    np.savez(tmp_path / "a.npz", features=ROWS, about=np.array(json.dumps(about)))
    with pytest.raises(UslError, match=r"a\.npz: these features are of other images than the data's;"):
        read_features(tmp_path / "a.npz", source())
    for mine in ("a note of my own", "[1]", json.dumps({"dataset": source().fingerprint})):
        np.savez(tmp_path / "a.npz", features=ROWS, about=np.array(mine))
        assert np.array_equal(read_features(tmp_path / "a.npz", source()).numpy(), ROWS)


@pytest.mark.parametrize(
    ("name", "arrays", "part"),
    [
        ("a.csv", None, "expected a .npy or .npz file"),
        ("a.npy", None, "no such file"),
        ("text.npy", None, "not a whole .npy or .npz file of numbers (it is none, or holds Python objects)"),
        ("text.npz", None, "not a whole .npy or .npz file of numbers (it is none, or holds Python objects)"),
        ("pickle.npy", None, "not a whole .npy or .npz file of numbers (it is none, or holds Python objects)"),
        ("a.npy", ROWS[:3], "3 rows for the 4 images of four/train; expected one row for each image"),
        ("a.npy", ROWS.astype(int), "holds int64 [4, 3]; expected floating-point numbers [images, dimensions]"),
        ("a.npy", ROWS[0], "holds float32 [3]"),
        ("a.npy", np.where(ROWS == 5, np.nan, ROWS), "NaN or infinite values in row 1"),
        ("a.npy", np.where(ROWS < 7, 0, ROWS), "all zeros in rows 0, 1; such an image has no direction"),
        ("a.npz", {"x": ROWS, "y": ROWS}, "holds x, y; expected an array named 'features'"),
        ("a.npz", {"features": ROWS, "ids": np.array([0, 1, 2, 2])}, "ids name no row for 1 of 4 images, 3 among"),
        ("a.npz", {"features": ROWS, "ids": np.array([0, 1, 2])}, "ids name no row for 4 of 4 images, 0 among"),
        ("a.npz", {"features": ROWS, "ids": np.array(["a", "b", "c", "d"])}, "its ids are texts, but four has no"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(name: str, arrays: Any, part: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.startswith("text"):
        path.write_text("no array")
    elif name.startswith("pickle"):
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    elif isinstance(arrays, dict):
        np.savez(path, **arrays)
    elif arrays is not None:
        np.save(path, arrays)
    with pytest.raises(UslError) as refused:
        read_features(path, source())
    assert part in str(refused.value)
    assert str(refused.value).startswith(f"model.features: {path}: ")
    assert "\n" not in str(refused.value)


# published networks --------------------------------------------------------------------------------------

GREY, COLOUR = ImageSpec(1, 32, 32, (0.1,), (0.2,)), ImageSpec(3, 32, 32, (0.1,) * 3, (0.2,) * 3)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """`test_resnet`'s weights, as timm finds them in a file."""
    torch.manual_seed(1)
    net = timm.create_model("test_resnet")
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    config = dataclasses.replace(
        timm.get_pretrained_cfg("test_resnet"),
        file=str(tmp_path / "weights.pth"), mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.3),
    )  # fmt: skip
    monkeypatch.setitem(timm.models._registry._model_pretrained_cfgs, "test_resnet", config)
    return net.eval()


def test_published_weights_and_their_normalisation(published: torch.nn.Module) -> None:
    encoder = Encoder("test_resnet", COLOUR, pretrained=True).eval()
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.2, 0.4, 0.6), (0.1, 0.2, 0.3)))
    with torch.no_grad():
        maps = published.forward_features((images / 255 - mean) / std)
        expected = published.forward_head(maps, pre_logits=True)
        torch.testing.assert_close(encoder(images), expected, rtol=1e-4, atol=1e-5)


def test_published_weights_see_a_grey_image_as_three_equal_channels(published: torch.nn.Module) -> None:
    encoder = Encoder("test_resnet", GREY, pretrained=True)
    assert encoder.mean.flatten().tolist() == pytest.approx([0.4])
    assert encoder.std.flatten().tolist() == pytest.approx([0.2])


def test_random_weights_are_always_the_same_and_disturb_nothing() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    states = [random_encoder("test_resnet", GREY).state_dict() for _ in range(2)]
    assert torch.equal(torch.rand(3), expected)
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])
    assert states[0]["mean"].item() == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("backbone", "part"),
    [
        ("resnet81", "model.backbone: unknown 'resnet81' (did you mean "),
        ("small_w16", "model.pretrained: 'small_w16' has no published weights"),
        ("vit_tiny_patch16_224", "'vit_tiny_patch16_224' is made for images of 224×224 pixels, these have 32×32"),
        ("resnet18.a1_in2k", "timm has no weights 'resnet18.a1_in2k' (did you mean "),
        ("botnet50ts_256", "model.pretrained: 'botnet50ts_256' has no published weights"),
    ],
)
def test_networks_that_do_not_fit(backbone: str, part: str) -> None:
    with pytest.raises(UslError) as refused:
        Encoder(backbone, COLOUR, pretrained=True)
    assert part in str(refused.value)


def test_weights_that_cannot_be_loaded(published: torch.nn.Module, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").unlink()
    with pytest.raises(UslError, match=r"the weights of 'test_resnet': no such file: .*weights\.pth$"):
        published_encoder("test_resnet")

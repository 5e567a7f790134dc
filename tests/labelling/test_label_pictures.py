"""The images that the page shows: those of the label file, from their folder alone, or from memory."""

import io
import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from own_images import make_selection
from PIL import Image

from usl_lightning.base.errors import UslError
from usl_lightning.base.files import sha256_of_file
from usl_lightning.data.images import folders
from usl_lightning.labelling.pictures import open_pictures
from usl_lightning.labelling.similar import SimilarImages
from usl_lightning.labels import LabelIndex


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return make_selection(tmp_path)


def shown(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_a_folder_is_found_by_the_configuration_beside_the_label_file(labels: Path, tmp_path: Path) -> None:
    index = LabelIndex.read(labels)
    pictures = open_pictures(index)
    for image, file in list(zip(index.indices, index.files or (), strict=True))[:5]:
        content, kind = pictures.encoded(image, 1000)
        assert kind == "image/png"
        assert np.array_equal(shown(content)[..., 0], shown((tmp_path / "images" / file).read_bytes()))
        assert pictures.name(image) == file
    assert max(shown(pictures.encoded(index.indices[0], 6)[0]).shape[:2]) == 6
    rest = next(i for i in range(60) if i not in index.indices)
    assert pictures.has(rest)
    assert not pictures.has(60)


def test_a_moved_label_file_needs_the_folder(labels: Path, tmp_path: Path) -> None:
    shutil.move(labels, tmp_path / "moved.json")
    index = LabelIndex.read(tmp_path / "moved.json")
    with pytest.raises(UslError, match=r"moved\.json: nothing says where its images are; give their folder with --dir"):
        open_pictures(index)
    with pytest.raises(UslError, match="no such folder; give the folder of the images"):
        open_pictures(index, str(tmp_path / "nowhere"))
    with pytest.raises(UslError, match="is not in"):
        open_pictures(index, str(tmp_path / "runs"))
    assert open_pictures(index, str(tmp_path / "images")).has(index.indices[0])


def test_after_a_change_of_the_folder_only_the_chosen_images_are_known(labels: Path, tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "images" / "0.png")  # moves all positions by one
    index = LabelIndex.read(labels)
    pictures = open_pictures(index)
    assert [i for i in range(61) if pictures.has(i)] == sorted(index.indices)
    assert pictures.name(index.indices[0]) == (index.files or ())[0]


def test_beside_files_that_are_left_out_the_others_are_known(labels: Path, tmp_path: Path) -> None:
    (tmp_path / "images" / "0.png").write_bytes(b"cut")
    config = labels.parent / "config.yaml"
    config.write_text(config.read_text().replace("class_list: null", "class_list: null, on_error: skip"))
    index = LabelIndex.read(labels)
    pictures = open_pictures(index)
    assert [i for i in range(61) if pictures.has(i)] == list(range(60))
    assert pictures.name(index.indices[0]) == (index.files or ())[0]


def test_a_link_out_of_the_folder_is_not_followed(labels: Path, tmp_path: Path) -> None:
    index = LabelIndex.read(labels)
    file = tmp_path / "images" / (index.files or ())[3]
    outside = file.rename(tmp_path / "outside.png")
    file.symlink_to(outside)
    with pytest.raises(UslError, match="a link out of"):
        open_pictures(index)
    file.unlink()
    inside = shutil.move(outside, tmp_path / "images" / "moved.png")
    file.symlink_to(inside)
    pictures = open_pictures(index)
    assert pictures.has(index.indices[3])
    shutil.copy(inside, outside)
    file.unlink()
    file.symlink_to(outside)  # while the server runs
    for look in (pictures.pixels, pictures.check):
        with pytest.raises(UslError, match="a link out of"):
            look(index.indices[3])


def chosen_as_it_is(labels: Path, file: Path) -> LabelIndex:
    """The label file as if `file` had been what it is now when it was chosen."""
    index = json.loads(labels.read_text())
    index["hashes"][index["files"].index(file.name)] = sha256_of_file(file)
    labels.write_text(json.dumps(index))
    return LabelIndex.read(labels)


def test_what_is_no_image_is_told(labels: Path, tmp_path: Path) -> None:
    file = tmp_path / "images" / (LabelIndex.read(labels).files or ())[0]
    file.write_text("<script>")
    index = chosen_as_it_is(labels, file)
    with pytest.raises(UslError, match=r"\.png: "):
        open_pictures(index).encoded(index.indices[0], 100)


def test_transparent_pixels_are_shown_on_the_background_of_the_run(labels: Path, tmp_path: Path) -> None:
    index = LabelIndex.read(labels)
    path = tmp_path / "images" / (index.files or ())[0]
    hidden = Image.effect_noise((40, 20), 90).convert("RGBA")
    hidden.putalpha(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    config = labels.parent / "config.yaml"
    for background, colour in (("white", (255, 255, 255)), ("red", (255, 0, 0))):
        hidden.save(path, exif=exif)
        index = refreshed(labels, tmp_path / "images")
        config.write_text(config.read_text().replace("class_list: null", f"class_list: null, background: {background}"))
        image = shown(open_pictures(index).encoded(index.indices[0], 100)[0])
        assert image.shape == (40, 20, 3), "turned"
        assert (image == colour).all()
        config.write_text(config.read_text().replace(f", background: {background}", ""))


@pytest.mark.parametrize("forms", [("NFC", "NFC"), ("NFD", "NFD"), ("NFC", "NFD"), ("NFD", "NFC")])
def test_a_file_is_found_however_its_accents_are_written(forms: tuple[str, str], labels: Path, tmp_path: Path) -> None:
    index = LabelIndex.read(labels)
    folder, name = (unicodedata.normalize(form, "é") for form in forms)
    (tmp_path / "images" / folder).mkdir()
    (tmp_path / "images" / (index.files or ())[0]).rename(tmp_path / "images" / folder / f"{name}.png")
    files = ("é/é.png", *(index.files or ())[1:])
    labels.write_text(json.dumps({**json.loads(labels.read_text()), "files": files}))
    position = folders.scan(tmp_path / "images").files.index(f"{folder}/{name}.png")
    content = json.loads(labels.read_text())
    content["indices"] = [position]
    content |= {key: content[key][:1] for key in ("labels", "files", "hashes") if key in content}
    labels.write_text(json.dumps(content))
    assert shown(open_pictures(refreshed(labels, tmp_path / "images")).encoded(position, 50)[0]).shape[:2] == (12, 12)


def refreshed(labels: Path, images: Path) -> LabelIndex:
    """The label file as if it was written for the images as they are now."""
    from usl_lightning.data.images.folders import fingerprint_of, scan

    content, listed = json.loads(labels.read_text()), scan(images)
    content["dataset"]["fingerprint"] = fingerprint_of(listed.files, listed.sizes)
    content.pop("hashes", None)
    labels.write_text(json.dumps(content))
    return LabelIndex.read(labels)


def test_a_large_image_is_a_small_jpeg(labels: Path, tmp_path: Path) -> None:
    file = tmp_path / "images" / (LabelIndex.read(labels).files or ())[0]
    Image.effect_noise((900, 600), 40).convert("RGB").save(file)
    index = chosen_as_it_is(labels, file)
    content, kind = open_pictures(index).encoded(index.indices[0], 600)
    assert (kind, shown(content).shape) == ("image/jpeg", (400, 600, 3))


# the images that the label file means ----------------------------------------------------------------------


def copied(folder: Path, place: Path, seed: int | None = None) -> Path:
    """The same files elsewhere; with `seed`, of other pixels and the same sizes."""
    for file in folder.rglob("*.png"):
        target = place / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = bytearray(file.read_bytes())
        content[-20] ^= 0 if seed is None else 1  # in a checksum: the length stays
        target.write_bytes(content)
    return place


@pytest.mark.parametrize("hashes", [True, False])
def test_another_folder_with_the_same_names_is_refused(tmp_path: Path, hashes: bool) -> None:
    index = LabelIndex.read(make_selection(tmp_path, hashes=hashes))
    same = copied(tmp_path / "images", tmp_path / "same")
    assert open_pictures(index, str(same)).has(index.indices[0])
    other = make_selection(tmp_path / "other").parents[3] / "images"
    first = other / (index.files or ())[0]
    Image.new("L", (9, 9)).save(first)
    with pytest.raises(UslError, match=r"labels\.json: .*(with --dir|select again)"):
        open_pictures(index, str(other))


def test_files_of_the_same_size_are_told_apart_by_their_content(labels: Path, tmp_path: Path) -> None:
    other = copied(tmp_path / "images", tmp_path / "other", seed=1)
    with pytest.raises(UslError, match="has another content than when it was chosen; give the folder"):
        open_pictures(LabelIndex.read(labels), str(other))


def test_a_relative_folder_read_from_elsewhere(labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = labels.parent / "config.yaml"
    config.write_text(config.read_text().replace(str(tmp_path / "images"), "images"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    index = LabelIndex.read(labels)
    with pytest.raises(UslError, match=f"images: no such folder in {elsewhere}; give the folder"):
        open_pictures(index)
    copied(tmp_path / "images", elsewhere / "images", seed=1)
    with pytest.raises(UslError, match="another content"):
        open_pictures(index)
    monkeypatch.chdir(tmp_path)
    assert open_pictures(index).name(index.indices[0]) == (index.files or ())[0]


def test_a_file_replaced_while_the_server_runs_is_neither_shown_nor_answered(labels: Path, tmp_path: Path) -> None:
    index = LabelIndex.read(labels)
    pictures = open_pictures(index)
    first, second = index.indices[:2]
    pictures.check(first)
    file = tmp_path / "images" / (index.files or ())[0]
    before = file.read_bytes()
    file.write_bytes((tmp_path / "images" / (index.files or ())[1]).read_bytes())
    for action in (lambda: pictures.check(first), lambda: pictures.encoded(first, 100)):
        with pytest.raises(UslError, match=r"was replaced since it was chosen; put that file back, or select again"):
            action()
    pictures.check(second)
    file.write_bytes(before)
    pictures.check(first)
    file.unlink()
    with pytest.raises(UslError, match=r"cannot be read \(No such file"):
        pictures.check(first)


def test_without_hashes_the_folder_stays_as_it_was(tmp_path: Path) -> None:
    index = LabelIndex.read(make_selection(tmp_path, hashes=False))
    pictures = open_pictures(index)
    first = index.indices[0]
    pictures.check(first)
    added = tmp_path / "images" / "sub" / "new.png"
    Image.new("L", (4, 4)).save(added)
    with pytest.raises(UslError, match=r"but the data is folder/train \(61 images"):
        pictures.check(first)
    with pytest.raises(UslError, match="but the data is"):
        open_pictures(index)
    added.unlink()
    pictures.check(first)


def test_names_in_another_form_of_unicode_are_found(tmp_path: Path) -> None:
    labels = make_selection(tmp_path)
    index = json.loads(labels.read_text())
    file = tmp_path / "images" / index["files"][0]
    file.rename(file.with_name("caf\u00e9.png"))
    index["files"][0] = str(Path(index["files"][0]).with_name("cafe\u0301.png"))
    labels.write_text(json.dumps(index))
    assert open_pictures(LabelIndex.read(labels)).encoded(index["indices"][0], 100)


def test_a_set_in_memory_is_shown_too(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    from usl_lightning.data.images.opening import open_source
    from usl_lightning.data.images.source import dataset_id

    source = open_source("digits", "train")
    known = {"name": "digits", "split": "train", "size": len(source), "fingerprint": dataset_id(source).fingerprint}
    index = {"format": "usl-label-index", "version": 1, "dataset": known, "method": {}, "indices": [5, 1000],
             "labels": [None, None], "classes": []}  # fmt: skip
    (tmp_path / "labels.json").write_text(json.dumps(index))
    pictures = open_pictures(LabelIndex.read(tmp_path / "labels.json"))
    image = shown(pictures.encoded(1000, 100)[0])
    every = (load_digits().images * 255 / 16).round().astype(np.uint8)
    assert any(np.array_equal(image, each) for each in every)
    assert pictures.has(1436)
    assert not pictures.has(1437)
    known["fingerprint"] = "sha256:" + "0" * 64
    (tmp_path / "labels.json").write_text(json.dumps(index))
    with pytest.raises(UslError, match="but the data is"):
        open_pictures(LabelIndex.read(tmp_path / "labels.json"))


def test_similar_images_are_the_nearest_by_the_features(labels: Path) -> None:
    index = LabelIndex.read(labels)
    similar = SimilarImages.beside(index, labels.parent / "overview.npz")
    assert similar is not None
    with np.load(labels.parent / "overview.npz") as kept:
        images, features = kept["images"], kept["features"].astype(np.float64)
    for row in (0, 7, 55):
        order = sorted(set(range(60)) - {row}, key=lambda other: np.linalg.norm(features[other] - features[row]))
        assert similar.near(int(images[row]), 8) == [int(images[other]) for other in order[:8]]
    assert similar.near(60, 8) == []


def test_features_of_other_images_or_none_are_left_out(labels: Path) -> None:
    index, overview = LabelIndex.read(labels), labels.parent / "overview.npz"
    with np.load(overview) as kept:
        arrays = dict(kept)
    np.savez(overview, **{**arrays, "total": 61})
    assert SimilarImages.beside(index, overview) is None
    overview.write_bytes(b"PK damaged")
    assert SimilarImages.beside(index, overview) is None
    overview.unlink()
    assert SimilarImages.beside(index, overview) is None

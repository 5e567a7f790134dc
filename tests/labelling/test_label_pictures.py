"""The images that the page shows: those of the label file, from their folder alone, or from memory."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from own_images import make_selection
from PIL import Image

from usl_lightning.base.errors import UslError
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
    file.symlink_to(tmp_path / "images" / (index.files or ())[4])
    assert open_pictures(index).has(index.indices[3])


def test_what_is_no_image_is_told(labels: Path, tmp_path: Path) -> None:
    index = LabelIndex.read(labels)
    (tmp_path / "images" / (index.files or ())[0]).write_text("<script>")
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


def refreshed(labels: Path, images: Path) -> LabelIndex:
    """The label file as if it was written for the images as they are now."""
    from usl_lightning.data.images.folders import fingerprint_of, scan

    content, listed = json.loads(labels.read_text()), scan(images)
    content["dataset"]["fingerprint"] = fingerprint_of(listed.files, listed.sizes)
    labels.write_text(json.dumps(content))
    return LabelIndex.read(labels)


def test_a_large_image_is_a_small_jpeg(labels: Path, tmp_path: Path) -> None:
    index = LabelIndex.read(labels)
    Image.effect_noise((900, 600), 40).convert("RGB").save(tmp_path / "images" / (index.files or ())[0])
    content, kind = open_pictures(index).encoded(index.indices[0], 600)
    assert (kind, shown(content).shape) == ("image/jpeg", (400, 600, 3))


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

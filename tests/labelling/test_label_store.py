"""Answers in the label file: merged, never lost, never half written, whoever writes and whenever killed."""

import json
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_images import IMAGES, make_selection

from usl_lightning.base.errors import UslError
from usl_lightning.labelling.store import AnsweredMeanwhileError, LabelStore, answers_of, with_answers, with_class
from usl_lightning.labels import LabelIndex


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    store = LabelStore(make_selection(tmp_path))
    for name in ("cat", "dog"):
        store.add_class(name)
    return store


def test_an_answer_is_in_the_file_at_once(store: LabelStore) -> None:
    first, second, third = store.read().indices[:3]
    store.answer(first, 1, None)
    store.answer(second, "unsure", None)
    index = LabelIndex.read(store.path)
    assert index.labels[:3] == (1, None, None)
    assert (index.unsure, index.unlabelled) == ((second,), 38)
    assert list(answers_of(index).values())[:3] == [1, "unsure", None]
    store.answer(second, 0, "unsure")
    store.answer(first, None, 1)
    assert LabelIndex.read(store.path).labels[:3] == (None, 0, None)
    assert third in index.indices


def test_nobody_overwrites_what_they_have_not_seen(store: LabelStore) -> None:
    image = store.read().indices[0]
    store.answer(image, 1, None)
    with pytest.raises(AnsweredMeanwhileError, match="dog was answered in another window"):
        store.answer(image, 0, None)
    assert answers_of(store.read())[image] == 1
    store.answer(image, 1, None)  # both said the same
    store.answer(image, 0, 1)
    assert answers_of(store.read())[image] == 0


@pytest.mark.parametrize(("image", "answer", "part"), [
    (-1, 0, "image -1 is not one of the 40"), (1000, 0, "not one of the 40"), ("first", 2, "there is no class 2; expe"),
])  # fmt: skip
def test_wrong_answers(store: LabelStore, image: int | str, answer: int, part: str) -> None:
    before = store.path.read_text()
    with pytest.raises(UslError, match=part):
        store.answer(store.read().indices[0] if isinstance(image, str) else image, answer, None)
    assert store.path.read_text() == before


@pytest.mark.parametrize(("name", "part"), [
    ("  ", "a class needs a name"), ("x" * 81, "a class needs a name"), ("a\x1b[2J", "a class needs a name"),
    ("Not  sure", "cannot be the name"), ("CAT", "differs from the class 'cat' by its case"),
])  # fmt: skip
def test_wrong_classes(store: LabelStore, name: str, part: str) -> None:
    with pytest.raises(UslError, match=part):
        store.add_class(name)
    assert store.add_class(" dog ").classes == ("cat", "dog")
    assert store.add_class("a  <b>").classes == ("cat", "dog", "a <b>")


def known(image: int) -> tuple[str, str]:
    """What there is of an image that was not chosen."""
    if image >= IMAGES:
        raise UslError(f"image {image} is none of them")
    return f"{image}.png", f"sha256:{image:064}"


def test_images_that_were_not_chosen_are_added_and_go_again(store: LabelStore) -> None:
    before = store.path.read_text()
    others = [image for image in range(IMAGES) if image not in store.read().indices]
    one, *some = others[:4]
    with pytest.raises(UslError, match=f"image {one} is not one of the 40 to label"):
        store.answer(one, 1, None)
    with pytest.raises(UslError, match="image 60 is none of them"):
        store.answer_row([*some, IMAGES], 0, None, known)
    assert store.path.read_text() == before

    store.answer(one, 1, None, None, known)
    chosen = store.read().indices[0]
    index = store.answer_row([chosen, *some], 0, None, known)
    assert (index.indices[40:], index.labels[40:]) == (tuple(others[:4]), (1, 0, 0, 0))
    assert (index.added, index.bulk, index.chosen) == (tuple(others[:4]), (chosen, *some), 40)
    assert ((index.files or ())[40], index.hashes[40]) == known(one)
    assert store.answer_row(others[:2], 0, None, known).labels[40:] == (1, 0, 0, 0)
    assert store.answer(some[0], 1, 0).bulk == (chosen, *some[1:])  # it was looked at alone by now
    assert store.answer_row(some, None).indices[40:] == (one, some[0])
    assert store.answer(some[0], "unsure", 1).added == (one,)
    assert store.change_class(1, None).added == ()
    assert store.read().indices == tuple(json.loads(before)["indices"])


def test_files_without_room_for_labels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "plain.json").write_text("[1, 2]")
    with pytest.raises(UslError, match=r"plain\.json: has no room for labels"):
        LabelStore(tmp_path / "plain.json")
    with pytest.raises(UslError, match="cannot be read"):
        LabelStore(tmp_path / "none.json")


def test_the_version_changes_with_every_answer(store: LabelStore) -> None:
    versions = {store.version}
    for image in store.read().indices[:5]:
        store.answer(image, 0, None)
        versions.add(store.version)
    assert len(versions) == 6


def _answer_all(path: Path, images: list[int], answer: int) -> None:
    for image in images:
        LabelStore(path).answer(image, answer, None)


def test_windows_and_servers_side_by_side_lose_nothing(store: LabelStore) -> None:
    images = list(store.read().indices)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda image: store.answer(image, 0, None), images[:20]))
    context = multiprocessing.get_context("fork")
    parts = [context.Process(target=_answer_all, args=(store.path, images[20 + i :: 2], 1)) for i in range(2)]
    for part in parts:
        part.start()
    for part in parts:
        part.join()
        assert part.exitcode == 0
    assert store.read().labels == (0,) * 20 + (1,) * 20


def _answer_for_ever(path: Path, image: int) -> None:
    store, seen = LabelStore(path), None
    while True:
        answer = 1 if seen == 0 else 0
        store.answer(image, answer, seen)
        seen = answer


def test_a_kill_leaves_the_file_whole_and_unlocked(store: LabelStore) -> None:
    image, other = store.read().indices[:2]
    for _ in range(3):
        store.answer(image, None, answers_of(store.read())[image])
        writer = multiprocessing.get_context("fork").Process(target=_answer_for_ever, args=(store.path, image))
        writer.start()
        while answers_of(store.read())[image] is None:
            pass
        writer.kill()
        writer.join()
        assert answers_of(store.read())[image] in (0, 1)
        store.answer(other, 1, answers_of(store.read())[other])


@given(st.lists(st.tuples(st.integers(0, 3), st.none() | st.just("unsure") | st.integers(0, 1)), max_size=12))
def test_the_last_answer_of_each_image_stands(given_answers: list) -> None:
    index = LabelIndex(None, {}, (7, 3, 9, 4), (None,) * 4, ("a", "b"))
    expected: dict = dict.fromkeys(index.indices)
    for place, answer in given_answers:
        index = with_answers(index, {index.indices[place]: answer})
        expected[index.indices[place]] = answer
    assert answers_of(index) == expected
    assert index.unlabelled == sum(answer is None for answer in expected.values())
    assert with_class(index, "c").classes == ("a", "b", "c")


def test_an_import_wins_over_what_is_there_and_can_bring_classes(store: LabelStore) -> None:
    first, second = store.read().indices[:2]
    store.answer(first, 0, None)
    index = store.merge({first: 2, second: "unsure"}, ("cat", "dog", "bird"))
    assert json.loads(store.path.read_text())["labels"][:2] == [2, None]
    assert (index.classes, index.unsure) == (("cat", "dog", "bird"), (second,))
    with pytest.raises(UslError, match="its classes were changed meanwhile"):
        store.merge({}, ("cat", "dog"))


def test_a_row_is_answered_at_once_and_told_apart(store: LabelStore) -> None:
    first, second, third, fourth = store.read().indices[:4]
    assert store.answer_row([first, second, third], 1).bulk == (first, second, third)
    assert LabelIndex.read(store.path).labels[:4] == (1, 1, 1, None)
    store.answer_row([first, second], 1)  # two windows said the same
    assert store.answer(second, 1, 1).bulk == (first, third)  # looked at alone
    assert store.answer_row([first, second], 0).labels[:2] == (1, 1)  # what another window said stays
    before = store.path.read_bytes()
    with pytest.raises(UslError, match="image 1000 is not one of the 40"):
        store.answer_row([fourth, 1000], 1)
    with pytest.raises(UslError, match="there is no class 2"):
        store.answer_row([fourth], 2)
    assert store.path.read_bytes() == before
    index = store.answer_row([first, second, third], None)  # undone, but for what somebody said since
    assert (index.labels[:3], index.bulk) == ((None, 1, None), ())


def test_an_import_that_changes_nothing_leaves_rows_told_apart(store: LabelStore) -> None:
    images = store.read().indices[:3]
    store.answer_row(images, 0)
    assert store.merge(dict.fromkeys(images, 0), ("cat", "dog")).bulk == images
    assert store.merge({images[0]: 1}, ("cat", "dog")).bulk == images[1:]


def test_a_class_is_renamed_merged_and_deleted(store: LabelStore) -> None:
    store.add_class("bird")
    images = store.read().indices[:4]
    for image, answer in zip(images, (0, 1, 2, "unsure"), strict=True):
        store.answer(image, answer, None)
    index = store.change_class(0, "  Cat ")  # the case of its own name may change
    assert (index.classes, index.labels[:4]) == (("Cat", "dog", "bird"), (0, 1, 2, None))
    index = store.change_class(0, "bird", merge=True)
    assert (index.classes, index.labels[:4]) == (("dog", "bird"), (1, 0, 1, None))
    store.answer_row(store.read().indices[4:6], 0)
    index = store.change_class(0, None)
    assert (index.classes, index.labels[:6]) == (("bird",), (0, None, 0, None, None, None))
    assert (index.unsure, index.bulk) == ((images[3],), ())
    assert LabelIndex.read(store.path) == index


@pytest.mark.parametrize(("number", "name", "merge", "part"), [
    (0, "dog", False, "there is a class 'dog'; merge the two"), (0, "DOG", False, "differs from the class 'dog' by"),
    (0, "cat", True, "there is no other class 'cat'"), (0, "cow", True, "there is no other class 'cow' to merge 'cat'"),
    (2, None, False, "there is no class 2; expected 0 to 1"), (0, "not sure", False, "cannot be the name"),
    (0, "x" * 81, False, "1 to 80 characters"),
])  # fmt: skip
def test_wrong_changes_of_classes(store: LabelStore, number: int, name: str | None, merge: bool, part: str) -> None:
    before = store.path.read_bytes()
    with pytest.raises(UslError, match=part):
        store.change_class(number, name, merge=merge)
    assert store.path.read_bytes() == before

"""What the labelling server says of the images from the answers so far, and rows that are answered at once."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asked import Asked
from own_images import IMAGES, make_selection, quarter
from PIL import Image

from usl_lightning.base.files import sha256_of_file
from usl_lightning.data.images.folders import scan
from usl_lightning.labelling import guessing
from usl_lightning.labelling.store import answers_of
from usl_lightning.labels import LabelIndex


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Asked]:
    """Four classes: cat, dog, evil and fish for the images of the quarters 0 to 3."""
    asked = Asked(make_selection(tmp_path))
    asked.store.add_class("fish")
    yield asked
    asked.stop()


def truth(ask: Asked) -> dict[int, int]:
    index = ask.store.read()
    return {image: quarter(file) for image, file in zip(index.indices, index.files or (), strict=True)}


def answer(ask: Asked, *images: int) -> None:
    for image in images:
        assert ask("answers", {"image": image, "answer": truth(ask)[image], "seen": None})[0] == 200


def of_each(ask: Asked, count: int, numbers: tuple[int, ...] = (0, 1, 2, 3)) -> list[int]:
    known = truth(ask)
    return [image for n in numbers for image in [one for one in known if known[one] == n][:count]]


def test_nothing_is_guessed_before_two_classes_have_answers(ask: Asked) -> None:
    status, told, _ = ask("guesses")
    assert (status, told["guess"], told["queue"], told["enough"]) == (200, [None] * 40, [], None)
    answer(ask, *of_each(ask, 2, (1,)))
    assert ask("guesses")[1]["guess"] == [None] * 40
    assert ask("row")[:2] == (204, b"")
    answer(ask, *of_each(ask, 1, (2,)))
    assert {guess[0] for guess in ask("guesses")[1]["guess"]} == {1, 2}


def test_every_image_is_guessed_after_an_answer_of_each_class(ask: Asked) -> None:
    answer(ask, *of_each(ask, 1))
    _, told, _ = ask("guesses")
    assert [guess[0] for guess in told["guess"]] == list(truth(ask).values())
    assert all(25 < guess[1] <= 100 for guess in told["guess"])
    assert told["version"] == ask.store.version
    assert told["classes"] == list(ask.store.read().classes)


def test_the_queue_says_why(ask: Asked) -> None:
    answer(ask, *of_each(ask, 1, (0,)), *of_each(ask, 5, (1,)))
    _, told, _ = ask("guesses")
    first, why = told["queue"][0]
    assert why == "maybe cat, which has 1 answer"
    assert {why.partition(" ")[0] for _, why in told["queue"]} == {"maybe", "unsure:"}
    assert len({image for image, _ in told["queue"]}) == len(told["queue"]) == 34
    answer(ask, first)
    assert first not in {image for image, _ in ask("guesses")[1]["queue"]}


def test_what_a_round_before_left_comes_last(ask: Asked) -> None:
    index = ask.store.read()
    replace(index, method={**index.method, "kept": 30}).write(ask.store.path)
    answer(ask, *[image for image in of_each(ask, 5) if image in index.indices[:30]])
    assert ask("state")[1]["kept"] == 30
    queue = [image for image, _ in ask("guesses")[1]["queue"]]
    assert set(queue[:10]) == set(index.indices[30:])
    assert set(queue[10:]) == {image for image, answer in answers_of(ask.store.read()).items() if answer is None} - set(
        queue[:10]
    )


def test_what_is_known_is_not_said_again_until_there_is_more(ask: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guessing, "GROWN", 1.0)
    answer(ask, *of_each(ask, 4))
    for _ in range(600):  # the judgement comes after the guesses
        _, told, _ = ask("guesses")
        if told["enough"] is not None and told["enough"]["labels"] == 16:
            break
        time.sleep(0.05)
    assert 0 < told["enough"]["low"] <= told["enough"]["accuracy"] <= told["enough"]["high"] <= 1
    assert told["doubts"] == []
    assert ask(f"guesses?known={told['key']}")[:2] == (204, b"")
    answer(ask, of_each(ask, 5)[4])
    assert ask(f"guesses?known={told['key']}")[0] == 200


def test_an_answer_that_the_others_speak_against_is_doubted(ask: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guessing, "GROWN", 1.0)
    images = of_each(ask, 6)
    answer(ask, *images[1:])
    ask("answers", {"image": images[0], "answer": 2, "seen": None})  # it is a cat
    for _ in range(600):
        _, told, _ = ask("guesses")
        if told["doubts"] and told["doubts"][0][0] == images[0]:
            break
        time.sleep(0.05)
    assert told["doubts"][0][1] < 50
    assert [image for image, _ in told["doubts"]] == [images[0]]


def test_the_only_answer_of_a_class_is_not_doubted(ask: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guessing, "GROWN", 1.0)
    answer(ask, *of_each(ask, 1, (0,)), *of_each(ask, 6, (1, 2)))
    for _ in range(600):
        _, told, _ = ask("guesses")
        if told["enough"] is not None and told["enough"]["labels"] >= 12:
            break
        time.sleep(0.05)
    assert told["doubts"] == []


def test_a_row_is_of_one_class_and_nearest_to_an_image(ask: Asked) -> None:
    answer(ask, *of_each(ask, 1))
    known = truth(ask)
    image = of_each(ask, 2, (2,))[1]
    _, row, _ = ask(f"row?image={image}")
    assert (row["class"], row["named"], row["images"][0]) == (2, "<b>evil</b>", image)
    assert 1 < len(row["images"]) <= 12
    assert {known[one] for one in row["images"]} == {2}
    _, told, _ = ask("guesses")
    sure = dict(zip(known, (percent for _, percent in told["guess"]), strict=True))
    assert abs(row["likely"] - sum(sure[one] for one in row["images"]) / 100) < 0.6
    assert [quarter(name) for name in row["names"]] == [2] * len(row["images"])
    for other in ("", "x", "-1", "1000", "9" * 40, "²"):  # of the surest class then
        assert len({known[one] for one in ask(f"row?image={other.replace('²', '%C2%B2')}")[1]["images"]}) == 1


def test_a_row_is_answered_told_apart_and_undone(ask: Asked) -> None:
    answer(ask, *of_each(ask, 1))
    _, row, _ = ask(f"row?image={of_each(ask, 2, (3,))[1]}")
    _, shown, _ = ask("state")
    taken = row["images"][1:]
    body = {"images": taken, "answer": 3, "class": "fish", "selection": shown["selection"]}
    status, told, _ = ask("rows", body)
    assert (status, sorted(told["bulk"])) == (200, sorted(taken))
    assert "images" not in told  # this page knows them
    assert [told["answers"][place] for place, one in enumerate(shown["images"]) if one["image"] in taken] == [3] * len(
        taken
    )
    assert json.loads(ask.store.path.read_text())["bulk"] == told["bulk"]
    assert not set(taken) & set(ask("row")[1]["images"])
    assert ask("rows", {**body, "images": row["images"]})[0] == 200  # those that are answered so are left as they are
    assert sorted(ask("rows", {**body, "answer": 0, "class": "cat"})[1]["bulk"]) == sorted(row["images"])
    assert {ask.store.read().labels[list(ask.store.read().indices).index(one)] for one in row["images"]} == {3}
    assert ask("rows", {**body, "class": "wolf"})[0] == 409
    assert ask("rows", {**body, "selection": "another"})[0] == 409
    _, told, _ = ask("rows", {**body, "images": row["images"], "answer": None, "class": None})
    assert told["bulk"] == []


def images_beside(ask: Asked) -> list[int]:
    return [image for image in range(IMAGES) if image not in ask.store.read().indices]


def test_a_row_holds_images_that_were_not_chosen_if_that_is_wanted(ask: Asked) -> None:
    others = images_beside(ask)
    answer(ask, *of_each(ask, 7))
    image = of_each(ask, 9, (2,))[8]
    row = ask(f"row?image={image}&beside=true")[1]
    assert not set(row["images"]) & set(others)  # too few of the chosen ones have an answer
    answer(ask, *of_each(ask, 8, (0, 1)))
    for address in (f"row?image={image}", f"row?image={image}&beside=false"):
        assert not set(ask(address)[1]["images"]) & set(others)
    row = ask(f"row?image={image}&beside=true")[1]
    beside = [one for one in row["images"] if one in others]
    assert beside
    assert {quarter(name) for name in row["names"]} == {2}

    _, shown, _ = ask("state")
    assert {ask(f"thumbs/{image}")[0] for image in row["images"]} == {200}
    body = {"images": row["images"], "answer": 2, "class": row["named"], "selection": shown["selection"]}
    status, told, _ = ask("rows", body)
    assert (status, told["selection"], len(told["answers"])) == (200, shown["selection"], 40)
    assert [each["image"] for each in told["added"]] == beside
    assert [each["answer"] for each in told["added"]] == [2] * len(beside)
    index = LabelIndex.read(ask.store.path)
    folder = ask.store.path.parents[3] / "images"
    assert index.hashes == tuple(sha256_of_file(folder / file) for file in index.files or ())
    assert [each["image"] for each in ask("state")[1]["images"]] == [each["image"] for each in shown["images"]]
    assert len(ask("guesses")[1]["guess"]) == 40
    assert not set(ask("row?beside=true")[1]["images"]) & set(row["images"])

    again = Asked(ask.store.path)  # a server that begins with them, as another machine's would
    try:
        assert again("state")[1]["added"] == told["added"]
        assert again("answers", {"image": beside[0], "answer": 1, "seen": 2})[0] == 200
        assert again(f"thumbs/{beside[0]}")[0] == 200
        for answer_, seen in ((None, 1), (1, None)):  # it stays on the screen while it is no entry any more
            assert again("answers", {"image": beside[0], "answer": answer_, "seen": seen})[0] == 200
    finally:
        again.stop()
    assert ask("state")[1]["added"][-1]["answer"] == 1
    _, told, _ = ask("rows", {**body, "answer": None, "class": None})
    assert [each["image"] for each in told["added"]] == beside[:1]


@pytest.mark.parametrize("image", [-1, IMAGES, 10**30])
def test_what_is_not_in_the_folder_is_not_answered(ask: Asked, image: int) -> None:
    before = ask.store.path.read_bytes()
    status, told, _ = ask("answers", {"image": image, "answer": 1, "seen": None})
    assert (status, told["problem"].partition(" is none of ")[0]) == (400, f"image {image}")
    others = images_beside(ask)[:2]
    assert {ask(f"thumbs/{other}")[0] for other in others} == {200}
    assert ask("rows", {"images": [*others, image], "answer": 1})[0] == 400
    assert ask.store.path.read_bytes() == before


def test_an_image_that_was_not_chosen_is_answered_as_it_was_shown(ask: Asked) -> None:
    image, other = images_beside(ask)[:2]
    folder, files = ask.store.path.parents[3] / "images", [name["name"] for name in ask("state")[1]["images"]]
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    file, another = folder / names[image], folder / names[other]
    assert names[image] not in files
    before = file.read_bytes()
    status, told, _ = ask("answers", {"image": image, "answer": 1, "seen": None})
    assert (status, told["problem"].partition(": ")[2]) == (400, "was not shown; look at it first")
    assert ask(f"images/{image}")[0] == 200
    file.write_bytes(another.read_bytes())
    for address, body in ((f"thumbs/{image}", None), ("answers", {"image": image, "answer": 1, "seen": None})):
        status, told, _ = ask(address, body)  # another window may have been shown what was there before
        assert (status, told["problem"].partition(": ")[2]) == (
            400,
            "was replaced since it was shown; put that file back",
        )
    file.write_bytes(before)
    assert ask("answers", {"image": image, "answer": 1, "seen": None})[0] == 200
    assert ask.store.read().added == (image,)
    file.write_bytes(another.read_bytes())
    assert "was replaced since it was chosen" in ask(f"images/{image}")[1]["problem"]


def test_images_that_were_not_chosen_are_found_by_name(ask: Asked) -> None:
    here = set(truth(ask))
    files = scan(ask.store.path.parents[3] / "images").files
    others = [{"image": image, "name": file} for image, file in enumerate(files) if image not in here]
    assert ask("named?part=")[:2] == (200, others)
    assert ask("named?part=SUB/0")[1] == [each for each in others if each["name"].startswith("sub/0")] != []
    assert ask("named?part=cat")[1] == []
    ask(f"images/{others[0]['image']}")
    assert ask("answers", {"image": others[0]["image"], "answer": 1, "seen": None})[0] == 200
    assert ask("named?part=")[1] == others[1:]


def test_in_a_folder_that_was_swapped_no_other_image_is_answered(ask: Asked) -> None:
    """Nor shown: its place says nothing of another folder, whose files may have the names, and the sizes, of this."""
    shown, unseen = images_beside(ask)[:2]
    folder, path = ask.store.path.parents[3] / "images", ask.store.path
    assert ask(f"images/{shown}")[0] == 200
    before, kept = path.read_bytes(), folder.with_name("kept")
    folder.rename(kept)
    for file in kept.rglob("*.png"):
        new = folder / file.relative_to(kept)
        new.parent.mkdir(parents=True, exist_ok=True)
        other = Image.open(file).convert("L").transpose(Image.Transpose.ROTATE_90)
        other.save(new)
    names = sorted(str(file.relative_to(kept)) for file in kept.rglob("*.png"))
    shutil.copyfile(kept / names[shown], folder / names[shown])  # as it was shown, in another folder all the same
    assert (kept / names[unseen]).stat().st_size != (folder / names[unseen]).stat().st_size
    status, told, _ = ask(f"images/{unseen}")
    assert (status, told["problem"].partition(": was replaced ")[2].partition(";")[0]) == (
        400,
        "since usl label was started",
    )
    status, told, _ = ask("answers", {"image": shown, "answer": 1, "seen": None})
    assert status == 400
    assert "was replaced since it was chosen" in told["problem"]
    assert path.read_bytes() == before
    shutil.rmtree(folder)
    kept.rename(folder)
    (folder / "new.png").write_bytes((folder / names[0]).read_bytes())  # a folder may grow
    assert {ask(f"images/{image}")[0] for image in (shown, unseen)} == {200}
    assert ask("answers", {"image": shown, "answer": 1, "seen": None})[0] == 200


@pytest.mark.parametrize("images", [[], list(range(13)), [1, 1], ["1"], [True], [1.0], "12", None, [-1], [1000]])
def test_rows_that_the_page_would_not_send(ask: Asked, images: Any) -> None:
    before = ask.store.path.read_bytes()
    for answer_ in (1, "unsure", 99, -1, "cat"):
        assert ask("rows", {"images": images, "answer": answer_})[0] == 400
    assert ask.store.path.read_bytes() == before


def test_a_replaced_file_is_in_no_row(ask: Asked) -> None:
    index = ask.store.read()
    folder = ask.store.path.parents[3] / "images"
    (folder / (index.files or ())[3]).write_bytes((folder / (index.files or ())[4]).read_bytes())
    before = ask.store.path.read_bytes()
    status, told, _ = ask("rows", {"images": list(index.indices[:5]), "answer": 0})
    assert status == 400
    assert "was replaced since it was chosen" in told["problem"]
    assert ask.store.path.read_bytes() == before


def test_classes_are_changed(ask: Asked) -> None:
    answer(ask, *of_each(ask, 1))
    change = {"class": 0, "named": "cat", "name": "kitten", "merge": False}
    assert ask("classes/change", change)[1]["classes"][0] == "kitten"
    status, told, _ = ask("classes/change", change)  # another window knows the old name
    assert (status, told["classes"][0]) == (409, "kitten")
    assert ask("classes/change", {**change, "named": "kitten", "name": "dog", "merge": True})[0] == 200
    status, told, _ = ask("classes/change", {"class": 1, "named": "<b>evil</b>", "name": None, "merge": False})
    assert (status, told["classes"]) == (200, ["dog", "fish"])
    assert sorted(one["answer"] for one in told["images"] if one["answer"] is not None) == [0, 0, 1]


@pytest.mark.parametrize("wrong", [
    {"class": True}, {"class": "0"}, {"named": "wolf"}, {"named": None}, {"name": 3}, {"merge": 1},
    {"merge": True, "name": None}, {"name": "dog"}, {"name": ""}, {"name": "x" * 81}, {"name": "not sure"},
])  # fmt: skip
def test_changes_of_classes_that_the_page_would_not_send(ask: Asked, wrong: dict[str, Any]) -> None:
    before = ask.store.path.read_bytes()
    body = {"class": 0, "named": "cat", "name": "kitten", "merge": False, **wrong}
    assert ask("classes/change", body)[0] in (400, 409)
    assert ask.store.path.read_bytes() == before


def test_an_answer_that_was_seen_under_another_number_is_not_overwritten(ask: Asked) -> None:
    image = ask.first
    ask("answers", {"image": image, "answer": 2, "seen": None})
    ask("classes/change", {"class": 1, "named": "dog", "name": None, "merge": False})
    ask("answers", {"image": image, "answer": 2, "seen": 1})  # another window: it is a fish, which is number 2 now
    body = {"image": image, "answer": 0, "class": "cat", "seen": 2, "seen_class": "<b>evil</b>"}
    assert ask("answers", body)[0] == 409
    assert ask("answers", {**body, "seen_class": "fish"})[0] == 200


def test_classes_of_the_data_set_stay(tmp_path: Path) -> None:
    labels = make_selection(tmp_path)
    config = labels.parent / "config.yaml"
    config.write_text(config.read_text().replace("class_list: null", "classes: [cat, '  big   dog']"))
    ask = Asked(labels)
    try:
        for name in (None, "kitten"):
            status, told, _ = ask("classes/change", {"class": 0, "named": "cat", "name": name, "merge": False})
            assert (status, told["problem"].partition(":")[0]) == (400, "'cat' is a class of the data set itself")
        assert ask("classes/change", {"class": 1, "named": "dog", "name": "hound", "merge": False})[0] == 200
    finally:
        ask.stop()


def test_without_features_nothing_is_guessed(tmp_path: Path) -> None:
    labels = make_selection(tmp_path)
    (labels.parent / "overview.npz").unlink()
    ask = Asked(labels)
    try:
        ask.store.add_class("fish")
        answer(ask, *ask.store.read().indices[:8])
        assert ask("state")[1]["guessing"] is False
        assert [ask(address)[:2] for address in ("guesses", "row", f"row?image={ask.first}")] == [(204, b"")] * 3
    finally:
        ask.stop()

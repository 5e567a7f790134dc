"""The labelling server, asked over a socket: what it gives to the page, and what it refuses to everybody else."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from asked import TOKEN, Asked
from own_images import make_selection

from usl_lightning.labelling.guard import LONGEST_BODY
from usl_lightning.labelling.pictures import open_pictures
from usl_lightning.labelling.server import FILES


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    asked = Asked(make_selection(tmp_path_factory.mktemp("own")))
    (asked.store.path.parents[2] / "secret.png").write_bytes(b"secret")
    yield asked
    asked.stop()


def test_the_page_and_its_state(ask: Asked) -> None:
    status, content, headers = ask("")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"<title>Label images</title>" in content
    assert ask("picture.js")[0] == ask("page.js")[0] == ask("page.css")[0] == ask("icon.svg")[0] == 200
    status, state, _ = ask("state")
    assert (status, state["classes"], state["then"]) == (200, ["cat", "dog", "<b>evil</b>"], "usl run own.yaml")
    assert [each["image"] for each in state["images"]] == [ask.first, *ask.others]
    assert ask(f"state?known={state['version']}")[:2] == (204, b"")


def test_answers_are_merged_and_a_second_one_is_told_of_the_first(ask: Asked) -> None:
    known = ask("state")[1]["version"]
    status, state, _ = ask("answers", {"image": ask.first, "answer": 1, "seen": None})
    assert (status, state["images"][0]["answer"]) == (200, 1)
    assert {"given": 1, **ask(f"state?known={known}")[1]} == state  # what another window is told
    status, state, _ = ask("answers", {"image": ask.first, "answer": 0, "seen": None})
    assert (status, state["problem"]) == (409, "dog was answered in another window, and that stays")
    assert state["images"][0]["answer"] == 1
    assert ask("answers", {"image": ask.first, "answer": None, "seen": 1})[0] == 200


def test_a_label_file_that_is_gone_or_of_other_images_is_told(ask: Asked) -> None:
    path, before = ask.store.path, ask.store.path.read_bytes()
    other = before.replace(b'"size": 60', b'"size": 99').replace(b"%d," % ask.first, b"98,", 1)
    try:
        path.unlink()
        gone = ask("state")
        path.write_bytes(other)
        replaced = ask("state")
    finally:
        path.write_bytes(before)
    assert gone[0] == 400
    assert "labels.json: cannot be read" in gone[1]["problem"]
    assert replaced[:2] == (400, {"problem": "image 98 is not one that this server knows; start usl label again"})
    assert ask("state")[0] == 200


def test_a_change_of_another_selection_is_refused(ask: Asked) -> None:
    path, before = ask.store.path, ask.store.path.read_bytes()
    index = json.loads(before)
    turned = {key: index[key][::-1] for key in ("indices", "files", "hashes")}
    _, shown, _ = ask("state")
    body = {"image": ask.others[4], "answer": 1, "seen": None}
    seen = {"selection": shown["selection"], "class": "dog"}
    of_classes = {"selection": shown["selection"], "class": 1, "named": "dog", "name": "wolf", "merge": False}
    try:
        path.write_text(json.dumps({**index, **turned, "labels": [None] * 40, "unsure": []}))
        chosen_anew = path.read_bytes()
        blind = ask("answers", body)  # of nothing that was shown since
        stale = ask("answers", {**body, **seen})
        others = [ask(address, of_classes) for address in ("classes", "classes/change")]
        assert path.read_bytes() == chosen_anew
        _, state, _ = ask("state")
        assert ask("answers", {**body, **seen})[0] == 409
        assert ask("answers", {**body, **seen, "selection": state["selection"]})[0] == 200
    finally:
        path.write_bytes(before)
    for status, told, _ in (blind, stale, *others):
        assert status == 409
        assert "labels.json holds another selection by now" in told["problem"]
        assert [each["image"] for each in told["images"]] == turned["indices"]
    assert ask("state")[1]["selection"] == shown["selection"]


def test_an_answer_is_the_class_that_was_shown(ask: Asked) -> None:
    path, before = ask.store.path, ask.store.path.read_bytes()
    index = json.loads(before)
    _, shown, _ = ask("state")
    body = {"image": ask.others[5], "answer": 0, "seen": None, "selection": shown["selection"], "class": "cat"}
    again = {**body, "answer": 1, "class": "dog", "seen": 0, "seen_class": "cat"}
    row = {"images": ask.others[6:9], "answer": 0, "selection": shown["selection"], "class": "cat"}

    def answer() -> int | None:
        return ask.store.read().labels[6]

    try:
        path.write_text(json.dumps({**index, "classes": ["dog", "cat", *index["classes"][2:]]}))
        status, told, _ = ask("answers", body)  # by the number that it had
        assert (status, told["classes"][:2], told["given"], answer()) == (200, ["dog", "cat"], 1, 1)
        status, told, _ = ask("rows", row)
        assert (status, told["given"], ask.store.read().labels[7:10]) == (200, 1, (1, 1, 1))
        assert ask("answers", again)[1]["given"] == answer() == 0  # what was seen has another number, too
        path.write_text(json.dumps({**index, "classes": ["sheep", *index["classes"][1:]]}))
        status, told, _ = ask("answers", body)
        assert (status, told["problem"]) == (409, "the class cat is gone by now")
        assert ask("answers", {**again, "seen_class": None})[0] == 200
    finally:
        path.write_bytes(before)


def test_an_answer_follows_its_class(ask: Asked) -> None:
    path, before = ask.store.path, ask.store.path.read_bytes()
    _, shown, _ = ask("state")
    body = {"image": ask.others[5], "answer": 0, "seen": None, "selection": shown["selection"], "class": "cat"}

    def changed(named: str, name: str | None, *, merge: bool = False) -> tuple[str, ...]:
        change = {"class": 9, "named": named, "name": name, "merge": merge, "selection": shown["selection"]}
        assert ask("classes/change", change)[0] == 200
        return ask.store.read().classes

    try:
        assert changed("cat", " puss  cat")[:2] == ("puss cat", "dog")
        assert ask("answers", body)[1]["given"] == 0
        assert ask("answers", {**body, "answer": None, "class": None, "seen": 0, "seen_class": "cat"})[0] == 200
        assert changed("puss cat", "dog", merge=True)[:2] == ("dog", "<b>evil</b>")
        assert ask("answers", body)[1]["given"] == 0
        assert ask("classes", {"name": "cat"})[1]["classes"] == ["dog", "<b>evil</b>", "cat"]
        assert ask("answers", {**body, "seen": 0, "seen_class": "puss cat"})[1]["given"] == 2  # what is called so now
        changed("cat", None)
        status, told, _ = ask("answers", body)
        assert (status, told["problem"]) == (409, "the class cat is gone by now")
        assert told["classes"] == ["dog", "<b>evil</b>"]
        seen_before = {**body, "answer": 0, "class": "dog", "seen": 2, "seen_class": "cat"}
        assert ask("answers", seen_before)[0] == 200  # it had no answer any more
    finally:
        path.write_bytes(before)


def test_images_of_other_windows_are_told(ask: Asked) -> None:
    known = ask("state?window=a")[1]["version"]
    assert ask(f"state?known={known}&window=a&shown=7&elsewhere=&wait")[0] == 204
    assert ask("state?window=b")[1]["elsewhere"] == [7]
    assert ask(f"state?known={known}&window=b&shown=3,5&elsewhere=7&wait")[0] == 204
    status, told, _ = ask(f"state?known={known}&window=a&shown=7&elsewhere=4&wait")
    assert (status, told) == (200, {"version": known, "elsewhere": [3, 5]})
    sent = {"image": ask.first, "answer": None, "seen": None, "window": "b", "shown": "9"}
    assert ask("answers", sent)[1]["elsewhere"] == [7]
    assert ask("state?window=a")[1]["elsewhere"] == [9]


def test_an_answer_for_a_file_that_was_replaced_is_refused(ask: Asked) -> None:
    index = ask.store.read()
    folder = ask.store.path.parents[3] / "images"
    image, file = index.indices[7], folder / (index.files or ())[7]
    before, labels = file.read_bytes(), ask.store.path.read_bytes()
    file.write_bytes((folder / (index.files or ())[8]).read_bytes())
    try:
        answered = ask("answers", {"image": image, "answer": 0, "seen": None})
        shown = ask(f"images/{image}")
    finally:
        file.write_bytes(before)
    for status, told, _ in (answered, shown):
        assert status == 400
        assert "was replaced since it was chosen; put that file back, or select again" in told["problem"]
    assert ask.store.path.read_bytes() == labels
    assert ask("answers", {"image": image, "answer": 0, "seen": None})[0] == 200


def test_a_class_is_added_once(ask: Asked) -> None:
    assert ask("classes", {"name": "bird"})[1]["classes"][-1] == "bird"
    assert ask("classes", {"name": "bird"})[1]["classes"].count("bird") == 1
    assert ask("classes", {"name": "Bird"})[:2] == (
        400, {"problem": "'Bird' differs from the class 'bird' by its case only; use that one"},
    )  # fmt: skip


def test_similar_images_are_of_the_same_kind(ask: Asked) -> None:
    status, near, _ = ask(f"similar/{ask.others[0]}")
    assert status == 200
    assert len(near) == 8
    names = open_pictures(ask.store.read())
    assert [each["name"] for each in near] == [names.name(each["image"]) for each in near]
    assert {int(Path(each["name"]).stem) % 4 for each in near} == {int(Path(names.name(ask.others[0])).stem) % 4}
    for none in ("100000", "9" * 5000, "x"):
        assert ask(f"similar/{none}")[:2] == (200, [])


def test_pictures(ask: Asked) -> None:
    status, content, headers = ask(f"images/{ask.first}")
    assert (status, headers["content-type"], content[:4]) == (200, "image/png", b"\x89PNG")
    assert ask(f"thumbs/{ask.first}")[0] == 200


@pytest.mark.parametrize(
    "path", ["/", "/favicon.ico", "/x/", "/-s3cret/", "/-s3cret_x/state", "/é/", "//-s3cret_/state"]
)
def test_a_wrong_token_is_refused(ask: Asked, path: str) -> None:
    status, content, _ = ask(path.replace("é", "%C3%A9"))
    assert status == 403
    assert TOKEN not in str(content)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "[::1]:{port}"]
)
def test_a_foreign_host_is_refused(ask: Asked, host: str) -> None:
    assert ask("state", Host=host.format(port=ask.port))[0] == 403
    assert ask("state", Host=f"localhost:{ask.port}")[0] == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1:{port}"])
@pytest.mark.parametrize("address", ["answers", "classes", "classes/change", "rows"])
def test_a_post_from_another_origin_is_refused(ask: Asked, origin: str, address: str) -> None:
    before = ask.store.path.read_bytes()
    body = {"image": ask.others[3], "answer": 0, "seen": None, "name": "mouse"}
    assert ask(address, body, Origin=origin.format(port=ask.port))[0] == 403
    assert ask.store.path.read_bytes() == before
    body = {"image": ask.others[3], "images": [ask.others[3]], "answer": None, "seen": None}
    body |= {"name": "cat", "class": 0, "named": "cat", "merge": False} if "change" not in address else {
        "name": "Cat", "class": 0, "named": "cat", "merge": False}  # fmt: skip
    assert ask(address, body, Origin=f"http://127.0.0.1:{ask.port}")[0] == 200
    ask.store.change_class(0, "cat")


@pytest.mark.parametrize("path", [
    "../", "../secret.png", "images/../../secret.png", "images/..%2f..%2fsecret.png", "%2e%2e/secret.png", "images/-1",
    "images/1000", "images/x", "images/", "images//etc/passwd", "page.html", "index.html", "../server.py", "thumbs/1e3",
    "..%5c..%5csecret.png", "images/99999999999999999999999999", f"images/{'9' * 5000}", f"thumbs/{'9' * 5000}",
])  # fmt: skip
def test_nothing_else_can_be_reached(ask: Asked, path: str) -> None:
    status, content, _ = ask(path)
    assert status == 404
    assert b"secret" not in json.dumps(content).encode()


@pytest.mark.parametrize("body", [
    b"", b"[]", b"{", b'{"image": 1}', b'{"image": true, "answer": 0, "seen": null}', b"[" * 3000, b"\xff",
    b'{"image": 1, "answer": "cat", "seen": null}', b'{"image": 1, "answer": 1.0, "seen": null}',
    b" " * (LONGEST_BODY + 1), b'{"image": 1, "answer": -1, "seen": null}', b'{"image": 1, "answer": [], "seen": null}',
])  # fmt: skip
def test_what_the_page_would_not_send_changes_nothing(ask: Asked, body: bytes) -> None:
    before = ask.store.path.read_bytes()
    assert ask("answers", body)[0] == 400
    assert ask("classes", body)[0] == 400
    assert ask("classes/change", body)[0] == 400
    assert ask("rows", body)[0] == 400
    assert ask.store.path.read_bytes() == before


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS"])
def test_other_methods(ask: Asked, method: str) -> None:
    assert ask("answers", {}, method=method)[0] == 405
    assert ask("answers", {}, method=method, Origin="https://evil.example")[0] == 403


def test_every_answer_forbids_requests_elsewhere(ask: Asked) -> None:
    for headers in (ask("")[2], ask("state")[2], ask("/x")[2], ask("nothing")[2], ask(f"images/{ask.first}")[2]):
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
        assert "access-control-allow-origin" not in headers
    page = b"".join(ask(name)[1] for name in FILES)
    assert b"//" not in page.replace(b"http://www.w3.org", b"").replace(b"\n// ", b"").replace(b" // ", b"")

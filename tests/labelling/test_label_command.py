"""`usl label` as typed: what it refuses, the address it prints, how it ends."""

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from own_images import Labelling, make_selection, quarter
from runs import environment

from usl_lightning.chain.plan import Plan, PlannedStage
from usl_lightning.cli import main
from usl_lightning.labelling.label import LabelOptions, _listening, next_command


def test_options() -> None:
    typed = LabelOptions.parse(
        ["--no-browser", "a/labels.json", "--classes", "cat, big dog,", "--port=81", "--dir", "d"]
    )
    assert typed == LabelOptions(Path("a/labels.json"), "d", ["cat", " big dog"], 81, browser=False)


def test_asyncio_sends_at_once_what_it_knows_to_be_tcp() -> None:
    with _listening(None) as listener:
        assert listener.proto == socket.IPPROTO_TCP


@pytest.mark.parametrize(("words", "part"), [
    ([], "usl label: expected the folder of a run or a label file, e.g. usl label runs/photos"),
    (["labels.npy"], "usl label: labels.npy: no such folder"),
    (["none.json"], "none.json: label index cannot be read"),
    (["no\nne\x1b[2J.json"], "no\\nne\\x1b[2J.json: label index cannot be read"),
    (["plain.json"], "plain.json: has no room for labels"),
    (["empty.json"], "empty.json: no image in it to label"),
    (["LABELS", "--port", "x"], "--port x: expected a number from 1 to 65535"),
    (["LABELS", "--classes"], "--classes true: expected names"),
    (["LABELS", "--classes", "cat,Cat"], "'Cat' differs from the class 'cat' by its case"),
    (["LABELS", "--clases", "a"], "unknown option --clases (did you mean 'classes'?)"),
    (["LABELS", "--dir", "nowhere"], "nowhere: no such folder"),
    (["LABELS", "--image"], "--image true: expected its name"),
    (["LABELS", "--image", "nowhere.png"], "usl label: --image nowhere.png: no such image in "),
    (["LABELS", "--image", "nowhere.png", "--classes", "tpyo"], "usl label: --image nowhere.png: no such image in "),
    (["LABELS", "--dir", "nowhere", "--classes", "tpyo"], "nowhere: no such folder"),
])  # fmt: skip
def test_mistakes(
    words: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    labels = make_selection(tmp_path)
    Path("plain.json").write_text("[3]")
    index = json.loads(labels.read_text())
    Path("empty.json").write_text(json.dumps({**index, "indices": [], "labels": [], "files": [], "hashes": []}))
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (labels.parent, *labels.parent.iterdir())}
    with pytest.raises(SystemExit) as stop:
        main(["label", *[word.replace("LABELS", str(labels)) for word in words]])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert part in err
    assert err.count("\n") == 1
    after = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (labels.parent, *labels.parent.iterdir())}
    assert after == before, "a refused command changes nothing"


def test_a_port_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit):
            main(["label", str(make_selection(tmp_path)), "--port", port, "--no-browser"])
    assert f"--port {port}: cannot be listened on" in capsys.readouterr().err


def test_it_prints_its_address_and_ends_with_what_is_left(tmp_path: Path) -> None:
    labels = make_selection(tmp_path)
    running = Labelling(labels, "--classes", "cat,dog")
    assert running.said.startswith("40 images to label: http://127.0.0.1:")
    assert len(running.address.split("/")[3]) >= 32
    state = json.loads(urllib.request.urlopen(f"{running.address}state", timeout=20).read())
    assert state["classes"] == ["cat", "dog"]
    body = json.dumps({"image": state["images"][0]["image"], "answer": 1, "seen": None}).encode()
    urllib.request.urlopen(f"{running.address}answers", body, timeout=20)
    running.process.send_signal(signal.SIGINT)
    out = running.process.communicate(timeout=30)[0]
    assert running.process.returncode == 0
    assert out.splitlines()[-1] == f"39 images to label, 1 of 40 are done: usl label {labels} goes on"
    assert json.loads(labels.read_text())["labels"][0] == 1


def test_it_ends_in_good_order_while_pages_wait_for_news(tmp_path: Path) -> None:
    running = Labelling(make_selection(tmp_path), "--classes", "cat,dog")
    state = json.loads(urllib.request.urlopen(f"{running.address}state", timeout=20).read())
    asked = threading.Semaphore(0)

    def page(address: str) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            while True:
                asked.release()
                urllib.request.urlopen(f"{running.address}{address}", timeout=20).read()

    known = f"state?known={state['version']}&wait"
    pages = [threading.Thread(target=page, args=[address]) for address in (known, known, "guesses", "row")]
    for each in pages:
        each.start()
    for _ in range(len(pages) + 2):  # the first have been answered once
        asked.acquire()
    running.process.send_signal(signal.SIGINT)
    out = running.process.communicate(timeout=60)[0]
    for each in pages:
        each.join()
    assert running.process.returncode == 0
    assert "40 images to label" in out.splitlines()[-1]
    assert len(out.splitlines()) <= 3, out  # no traceback


def test_the_command_that_goes_on_is_the_chains(tmp_path: Path) -> None:
    labels = make_selection(tmp_path)
    assert next_command(labels) == "usl run, as before"
    plan = Plan(("own.yaml", "--data.dir=my images"), 0, (PlannedStage("select", "select"),))
    with plan.written(labels.parents[1], type("Begun", (), {"record": lambda self: {}})()):  # type: ignore[arg-type]
        assert next_command(labels) == "usl run own.yaml '--data.dir=my images'"


def test_the_front_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, usl_lightning.labelling.label as c, usl_lightning.labelling.sets\n"
        "c.LabelStore(c.Path(sys.argv[1])).add_class('x')\n"
        "print([m for m in ('torch', 'numpy', 'starlette', 'uvicorn', 'PIL') if m in sys.modules])"
    )
    words = [sys.executable, "-c", code, str(make_selection(tmp_path))]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("wait", [0.0, 0.5, 1.5])
def test_it_ends_in_good_order_while_it_learns(tmp_path: Path, wait: float) -> None:
    labels = make_selection(tmp_path)
    running = Labelling(labels, "--classes", "cat,dog,bird,fish")
    state = json.loads(urllib.request.urlopen(f"{running.address}state", timeout=20).read())
    for each in state["images"][:30]:
        body = json.dumps({"image": each["image"], "answer": quarter(each["name"]), "seen": None}).encode()
        urllib.request.urlopen(f"{running.address}answers", body, timeout=20)
    time.sleep(wait)
    running.process.send_signal(signal.SIGINT)
    out = running.process.communicate(timeout=60)[0]
    assert running.process.returncode == 0
    assert out.splitlines()[-1] == f"10 images to label, 30 of 40 are done: usl label {labels} goes on"

"""Connections that stay half open are cut; the address is told to nobody; a signal ends the server in good order."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from own_images import Labelling, make_selection, served
from runs import environment

from usl_lightning.labelling import connections
from usl_lightning.labelling.private import leading_to

HALF = [
    b"",
    b"GET /s3cret/ HT",
    b"GET /s3cret/ HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n",
    b"POST /s3cret/answers HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nContent-Length: 50\r\n\r\n",
    b"POST /s3cret/answers HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nContent-Length: 50\r\n\r\n{",
    b"POST /s3cret/answers HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
]


@pytest.mark.parametrize("sent", HALF)
@pytest.mark.parametrize("drip", [False, True])
def test_a_request_that_does_not_end_is_cut(
    tmp_path: Path, sent: bytes, drip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "RECEIVING", 0.4)
    with served(make_selection(tmp_path)) as (address, _):
        port = urlsplit(address).port or 0
        with socket.create_connection(("127.0.0.1", port), timeout=30) as half:
            half.sendall(sent.replace(b"PORT", str(port).encode()))
            while drip:  # a byte now and then keeps nothing open
                time.sleep(0.05)
                try:
                    half.sendall(b" ")
                except OSError:
                    break
            with suppress(ConnectionResetError):
                assert b" 200 " not in b"".join(iter(lambda: half.recv(1000), b""))
        assert json.load(urllib.request.urlopen(f"{address}state", timeout=30))["classes"] == ["cat", "dog", "bird"]


def test_connections_that_are_used_live_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "RECEIVING", 0.4)
    with served(make_selection(tmp_path), lambda: time.sleep(0.6)) as (address, store):
        place = urlsplit(address)
        client = http.client.HTTPConnection("127.0.0.1", place.port or 0, timeout=30)
        for path in ("state", f"images/{store.read().indices[0]}", "state"):  # an answer may take longer
            client.request("GET", f"{place.path}{path}")
            response = client.getresponse()
            assert (response.status, bool(response.read())) == (200, True)
            kept = client.sock
            time.sleep(0.5)
        assert client.sock is kept is not None


def test_an_answer_that_nobody_reads_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "ANSWERING", 0.3)
    with served(make_selection(tmp_path), lambda: time.sleep(1)) as (address, store):
        client = http.client.HTTPConnection("127.0.0.1", urlsplit(address).port or 0, timeout=30)
        client.request("GET", f"{urlsplit(address).path}images/{store.read().indices[0]}")
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            client.getresponse()


BROWSER = """#!{python}
import os, pathlib, shutil, stat, sys, urllib.parse
page = urllib.parse.unquote(urllib.parse.urlsplit(sys.argv[-1]).path)
print(sys.argv[1:], oct(stat.S_IMODE(os.stat(page).st_mode)), open(page).read(), file=open("{out}.new", "w"))
os.rename("{out}.new", "{out}")
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_browsers_arguments_hold_no_secret_and_a_signal_leaves_nothing(
    tmp_path: Path, signum: signal.Signals
) -> None:
    labels, out, browser = make_selection(tmp_path), tmp_path / "out", tmp_path / "browser"
    browser.write_text(BROWSER.format(python=sys.executable, out=out))
    browser.chmod(0o755)
    before = sorted(labels.parent.iterdir())
    process = subprocess.Popen(
        [sys.executable, "-m", "usl_lightning.cli", "label", str(labels), "--classes", "cat,dog"],
        stdout=subprocess.PIPE, text=True, env=environment(BROWSER=f"{browser} %s"),
        preexec_fn=lambda: [signal.signal(one, signal.SIG_DFL) for one in (signal.SIGINT, signal.SIGHUP)],
    )  # fmt: skip
    assert process.stdout is not None
    found = re.search(r"http://127\.0\.0\.1:\d+/([^/]+)/", process.stdout.readline())
    assert found is not None
    for _ in range(600):
        if out.exists():
            break
        time.sleep(0.1)
    arguments, mode, page = out.read_text().split(" ", 2)
    assert "file://" in arguments
    assert found[1] not in arguments
    assert mode == "0o600"
    assert f"url={found[0]}" in page
    assert found[1] not in Path(f"/proc/{process.pid}/cmdline").read_text()

    state = json.load(urllib.request.urlopen(f"{found[0]}state", timeout=30))
    body = json.dumps({"image": state["images"][0]["image"], "answer": 1, "seen": None}).encode()
    urllib.request.urlopen(f"{found[0]}answers", body, timeout=30)
    process.send_signal(signum)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert rest.splitlines()[-1] == f"39 images to label, 1 of 40 are done: usl label {labels} goes on"
    assert json.loads(labels.read_text())["labels"][0] == 1
    assert sorted(labels.parent.iterdir()) == sorted([*before, labels.with_name(".labels.json.lock")])


def test_a_server_that_is_not_to_hear_of_the_terminals_end_goes_on(tmp_path: Path) -> None:
    labels = make_selection(tmp_path)
    running = Labelling(labels, before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))  # as nohup does
    running.process.send_signal(signal.SIGHUP)
    assert urllib.request.urlopen(f"{running.address}state", timeout=30).status == 200
    running.process.send_signal(signal.SIGTERM)
    running.process.communicate(timeout=60)
    assert running.process.returncode == 0


def test_the_page_of_a_killed_server_is_swept(tmp_path: Path) -> None:
    """It holds the secret address; that of one that lives stays."""
    with leading_to("http://a/", tmp_path) as living:
        (tmp_path / ".usl-label-killed.html").write_text("http://b/")
        with leading_to("http://c/", tmp_path):
            names = {path.name for path in tmp_path.iterdir()}
            assert len(names) == 2
            assert ".usl-label-killed.html" not in names
            assert living.rpartition("/")[2] in names
    assert list(tmp_path.iterdir()) == []

"""The labelling server is killed again and again while it is answered: what it has acknowledged is in the file."""

import http.client
import json
import multiprocessing
import random
import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import uvicorn
from own_images import IMAGES, make_selection

from usl_lightning.labelling.pictures import open_pictures
from usl_lightning.labelling.server import LabellingApp
from usl_lightning.labelling.store import LabelStore, answers_of

KILLS = 50

pytestmark = pytest.mark.slow


def _serve(labels: Path, listener: socket.socket) -> None:
    store = LabelStore(labels)
    app = LabellingApp(store, open_pictures(store.read()), None, "").guarded("s3cret", listener.getsockname()[1])
    uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off")).run(sockets=[listener])


def _answer(
    port: int, rng: random.Random, images: list[int], acknowledged: dict[int, int | None], killer: threading.Timer
) -> None:
    """Answer images and rows at random until the server is gone; of what is under way, nothing is known.

    The killer's time begins with the first answer, whenever a busy machine gives that.
    """
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    while True:
        some = rng.sample(images, 1 if rng.random() < 0.7 else 6)
        open_ones = [image for image in some if acknowledged.get(image) is None]
        if len(some) > 1 and open_ones:
            address, body = "rows", {"images": open_ones, "answer": rng.randrange(3)}
        else:
            body = {"image": some[0], "answer": rng.choice([0, 1, 2, None]), "seen": acknowledged.get(some[0])}
            address, open_ones = "answers", some[:1]
        before = {image: acknowledged.pop(image, None) for image in open_ones}
        client.request("POST", f"/s3cret/{address}", json.dumps(body))
        response = client.getresponse()
        response.read()
        right = response.status == 200
        acknowledged |= {image: body["answer"] if right else before[image] for image in open_ones}  # type: ignore[dict-item]
        if killer.ident is None:
            killer.start()


def test_what_is_acknowledged_outlives_fifty_kills(tmp_path: Path) -> None:
    labels, rng = make_selection(tmp_path), random.Random(0)
    store = LabelStore(labels)
    for name in ("cat", "dog", "bird"):
        store.add_class(name)
    images, killed = list(range(IMAGES)), 0  # those that were not chosen, too
    for _ in range(KILLS):
        acknowledged: dict[int, int | None] = answers_of(store.read())  # type: ignore[assignment]
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            server = multiprocessing.get_context("fork").Process(target=_serve, args=(labels, listener))
            server.start()
            port = listener.getsockname()[1]
        killer = threading.Timer(rng.random() / 3, server.kill)
        with suppress(OSError, http.client.HTTPException):
            _answer(port, rng, images, acknowledged, killer)
        server.join()
        killer.join()
        killed += server.exitcode == -9
        now = answers_of(store.read())
        assert {image: now.get(image) for image in acknowledged} == acknowledged
    assert killed == KILLS
    assert any(answer is not None for answer in answers_of(store.read()).values())

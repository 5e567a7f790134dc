"""The labelling server in this process, asked over a socket by a client that sends just what it is told to."""

import http.client
import json
import socket
import threading
from pathlib import Path
from typing import Any

import uvicorn

from usl_lightning.labelling.guessing import Guessing
from usl_lightning.labelling.pictures import open_pictures
from usl_lightning.labelling.server import LabellingApp
from usl_lightning.labelling.similar import SimilarImages
from usl_lightning.labelling.store import LabelStore

TOKEN = "-s3cret_"


class Asked:
    """A running server and a client that sends just what it is told to."""

    def __init__(self, labels: Path) -> None:
        self.store = LabelStore(labels)
        for name in ("cat", "dog", "<b>evil</b>"):
            self.store.add_class(name)
        index = self.store.read()
        self.first, self.others = index.indices[0], index.indices[1:]
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        self.port = listener.getsockname()[1]
        similar = SimilarImages.beside(index, labels.parent / "overview.npz")
        self.guessing = None if similar is None else Guessing(self.store, similar).start()
        pictures, then = open_pictures(index), "usl run own.yaml"
        app = LabellingApp(self.store, pictures, similar, then, self.guessing).guarded(TOKEN, self.port)
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()

    def __call__(self, path: str, body: Any = None, *, method: str = "", **headers: str) -> tuple[int, Any, dict]:
        """Status, content and headers of a request below the token (or, with a first slash, of just this path)."""
        sent = {"Host": f"127.0.0.1:{self.port}", **{k.replace("_", "-"): v for k, v in headers.items()}}
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        address = path if path[:1] == "/" else f"/{TOKEN}/{path}"
        client.putrequest(method or ("GET" if body is None else "POST"), address, skip_host=True)
        for name, value in {**sent, **({} if content is None else {"Content-Length": str(len(content))})}.items():
            client.putheader(name, value)
        client.endheaders(content)
        response = client.getresponse()
        got = response.read()
        told = dict(response.getheaders())
        return response.status, json.loads(got) if told.get("content-type") == "application/json" else got, told

    def stop(self) -> None:
        """End the server."""
        if self.guessing is not None:
            self.guessing.stop()
        self.server.should_exit = True
        self.thread.join()

"""A folder of images without labels, and what a selection from it leaves."""

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from PIL import Image
from runs import environment

from usl_lightning.base.files import sha256_of_file
from usl_lightning.data.images.folders import fingerprint_of, scan
from usl_lightning.labelling.connections import TimedProtocol
from usl_lightning.labelling.guessing import Guessing
from usl_lightning.labelling.pictures import open_pictures
from usl_lightning.labelling.server import LabellingApp
from usl_lightning.labelling.similar import SimilarImages
from usl_lightning.labelling.store import LabelStore

IMAGES = 60


def make_selection(folder: Path, chosen: int = 40, *, hashes: bool = True) -> Path:
    """`labels.json` of a selection of images that are bright in one of four quarters: class i is quarter i.

    Without `hashes`, as selections were written before there were any.
    """
    images = folder / "images"
    (images / "sub").mkdir(parents=True)
    for i in range(IMAGES):
        pixels = np.random.default_rng(i).integers(0, 60, (12, 12), dtype=np.uint8)
        row, column = divmod(i % 4, 2)
        pixels[6 * row : 6 * row + 6, 6 * column : 6 * column + 6] += 180
        Image.fromarray(pixels).save(images / ("sub" if i % 5 == 0 else "") / f"{i:03d}.png")
    listed = scan(images)
    positions = [int(i) for i in np.random.default_rng(0).permutation(IMAGES)[:chosen]]
    stage = folder / "runs" / "own" / "select"
    stage.mkdir(parents=True)
    index: dict[str, Any] = {
        "format": "usl-label-index", "version": 1,
        "dataset": {
            "name": "folder", "split": "train", "size": IMAGES,
            "fingerprint": fingerprint_of(listed.files, listed.sizes),
        },
        "method": {"name": "usl", "seed": 0, "params": {}}, "indices": positions, "labels": [None] * chosen,
        "classes": [], "files": [listed.files[i] for i in positions],
    }  # fmt: skip
    if hashes:
        index["hashes"] = [sha256_of_file(images / file) for file in index["files"]]
    (stage / "labels.json").write_text(json.dumps(index))
    (stage / "config.yaml").write_text(
        f"data: {{class_path: x, init_args: {{dataset: folder, dir: '{images}', class_list: null}}}}\n"
    )
    order = np.array(positions + [i for i in range(IMAGES) if i not in positions])
    quarters = np.array([quarter(listed.files[i]) for i in order])
    features = np.eye(4)[quarters] + 0.01 * np.random.default_rng(1).normal(size=(IMAGES, 4))
    np.savez(stage / "overview.npz", images=order, features=features.astype(np.float16), total=IMAGES, chosen=chosen)
    return stage / "labels.json"


def quarter(file: str) -> int:
    """The class of an image by its name."""
    return int(Path(file).stem) % 4


class Labelling:
    """`usl label` in a process of its own, and the address it printed."""

    def __init__(self, labels: Path, *words: str, before: Callable[[], object] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "usl_lightning.cli", "label", str(labels), "--no-browser", *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(),
            preexec_fn=before,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        found = re.search(r"http://\S+", self.said)
        assert found, self.said + self.process.stdout.read()
        self.address = found[0]

    def kill(self) -> None:
        """SIGKILL: no chance to save anything."""
        self.process.kill()
        self.process.wait()


@contextmanager
def served(
    labels: Path, wait: Callable[[], object] = lambda: None, *, guess: bool = False
) -> Iterator[tuple[str, LabelStore]]:
    """(address, store) of a server, in this process, that waits before it sends an image, and may guess."""
    store = LabelStore(labels)
    for name in ("cat", "dog", "bird"):
        store.add_class(name)
    pictures = open_pictures(store.read())
    encoded = pictures.encoded

    def slowly(image: int, side: int) -> tuple[bytes, str]:
        wait()
        return encoded(image, side)

    pictures.encoded = slowly  # type: ignore[method-assign]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        similar = SimilarImages.beside(store.read(), labels.parent / "overview.npz") if guess else None
        guessing = None if similar is None else Guessing(store, similar).start()
        app = LabellingApp(store, pictures, similar, "usl run own.yaml", guessing).guarded("s3cret", port)
        server = uvicorn.Server(uvicorn.Config(app, http=TimedProtocol, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{port}/s3cret/", store
        if guessing is not None:
            guessing.stop()
        server.should_exit = True
        thread.join()

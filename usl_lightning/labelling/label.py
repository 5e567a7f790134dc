"""`usl label LABELS.json`: serves the labelling page until it is stopped."""

import secrets
import shlex
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from usl_lightning.base.commands import known_options
from usl_lightning.base.errors import UslError
from usl_lightning.base.typed import as_count, home
from usl_lightning.chain.naming import label_file_in
from usl_lightning.chain.plan import Plan
from usl_lightning.labelling.private import leading_to
from usl_lightning.labelling.store import LabelStore, with_class
from usl_lightning.labels import LabelIndex
from usl_lightning.labels.index import answers_so_far, images_to_label
from usl_lightning.stage.captions import redraw_captions
from usl_lightning.stage.given import unwritable
from usl_lightning.stage.label_page import leads_to

if TYPE_CHECKING:
    from usl_lightning.labelling.shown import Pictures
    from usl_lightning.labelling.similar import SimilarImages

PORT = 8642
"""Tried first; if it is taken and was not asked for, any free one."""


TURN = 0.0005
"""Seconds that the classifier's threads keep the interpreter for while an answer waits to be saved; Python: 0.005."""


@dataclass
class LabelOptions:
    """`usl label RUN_DIR|LABELS.json [--dir DIR] [--classes a,b,c] [--image NAME] [--port N] [--no-browser]`.

    Attributes:
        labels: the label file.
        dir: the data folder; None: as the selection's `config.yaml` says.
        classes: names to label by, beside those in the file.
        port: to listen on; None: `PORT` or a free one.
        browser: open one.
        image: the one to begin with; None: the first without an answer.
    """

    labels: Path
    dir: str | None = None
    classes: list[str] = field(default_factory=list)
    port: int | None = None
    browser: bool = True
    image: str | None = None

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> "LabelOptions":
        """Read the arguments after `usl label`.

        Raises:
            UslError: no file, or an option that means nothing.
        """
        words = list(arguments)
        place = next((i for i, word in enumerate(words) if word.endswith(".json") and not word.startswith("-")), None)
        if place is not None:
            typed = cls(home(words.pop(place)))
        elif words and not words[0].startswith("-"):
            typed = cls(label_file_in(home(words.pop(0))))
        else:
            raise UslError(
                "usl label: expected the folder of a run or a label file, e.g. usl label runs/photos, or "
                "runs/photos/select/labels.json"
            )
        for key, value in known_options("label", words).items():
            if key == "no-browser" and value in ("true", "false"):
                typed.browser = value == "false"
            elif key == "port" and 0 < (port := as_count(value) or 0) < 65536:
                typed.port = port
            elif key == "dir" and value != "true":
                typed.dir = value
            elif key == "image" and value != "true":
                typed.image = value
            elif key == "classes" and value != "true":
                typed.classes = [name for name in value.split(",") if name.strip()]
            else:
                expected = {
                    "port": "a number from 1 to 65535",
                    "dir": "a folder",
                    "classes": "names: cat,dog",
                    "image": "its name",
                }
                raise UslError(f"usl label: --{key} {value}: expected {expected.get(key, 'no value')}")
        return typed


def main(arguments: Sequence[str]) -> None:
    """Serve the page, on this machine alone, until Ctrl-C, SIGTERM or the terminal's end; prints its address.

    Raises:
        UslError: a mistake in the arguments, the label file, or where its images are; a port that is taken.
    """
    typed = LabelOptions.parse(arguments)
    store = LabelStore(typed.labels)
    index = store.read()
    named = index
    for name in typed.classes:
        named = with_class(named, name)
    if not len(index):
        raise UslError(f"{typed.labels}: no image in it to label")
    from usl_lightning.labelling.pictures import open_pictures
    from usl_lightning.labelling.similar import SimilarImages

    pictures = open_pictures(index, typed.dir)
    similar = SimilarImages.beside(index, typed.labels.parent / "overview.npz")
    first = "" if typed.image is None else _leading_to_image(pictures, typed.image)
    with _listening(typed.port) as listener:
        for name in typed.classes:  # nothing is refused any more
            store.add_class(name)
        _serve(listener, typed, store, pictures, similar, first)
    index = store.read()
    redraw_captions(typed.labels, index)
    again = f"usl label {shlex.quote(str(typed.labels))} goes on" if index.unlabelled else next_command(typed.labels)
    with suppress(OSError):  # the terminal may be gone
        print(f"\n{_progress(index)}: {again}", flush=True)


def _serve(
    listener: socket.socket,
    typed: LabelOptions,
    store: LabelStore,
    pictures: "Pictures",
    similar: "SimilarImages | None",
    first: str,
) -> None:
    """Say the address, open the browser, and answer it until the server is stopped."""
    import uvicorn

    from usl_lightning.labelling.connections import EndingServer, TimedProtocol
    from usl_lightning.labelling.guessing import Guessing
    from usl_lightning.labelling.server import LabellingApp

    port, token = listener.getsockname()[1], secrets.token_urlsafe(24)
    root = f"http://127.0.0.1:{port}/{token}/"
    address = root + first
    guessing = None if similar is None else Guessing(store, similar)
    app = LabellingApp(store, pictures, similar, next_command(typed.labels), guessing)
    config = uvicorn.Config(
        app.guarded(token, port), http=TimedProtocol, log_level="warning", access_log=False, lifespan="off", ws="none",
        server_header=False, timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = EndingServer(config, app.end)
    with _stopped_by_signals(lambda: setattr(server, "should_exit", True)), ExitStack() as stack:
        print(f"{_progress(store.read())}: {address}", flush=True)
        problem = unwritable(typed.labels.resolve().parent)
        saved = f"no answer can be saved: {problem}" if problem else "every answer is saved at once"
        print(f"{saved}; Ctrl-C stops", flush=True)
        stack.enter_context(leads_to(root, typed.labels))
        if typed.browser:
            page = stack.enter_context(leading_to(address, typed.labels.parent))
            threading.Thread(target=webbrowser.open, args=[page], daemon=True).start()
        if guessing is not None:
            sys.setswitchinterval(TURN)
            stack.callback(guessing.start().stop)
        with suppress(KeyboardInterrupt):  # the way to stop it
            server.run(sockets=[listener])


def _leading_to_image(pictures: "Pictures", name: str) -> str:
    """The end of an address that shows this image first."""
    try:
        place = pictures.place(name)
    except UslError as error:
        raise UslError(f"usl label: --image {error}") from None
    return "#" + urlencode({"image": place, "name": pictures.name(place)})


@contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Have SIGTERM and SIGHUP, which a terminal sends when it is closed, do this instead of killing the process."""
    heeded = (signal.SIGTERM, signal.SIGHUP) if threading.current_thread() is threading.main_thread() else ()
    before = {signum: signal.getsignal(signum) for signum in heeded}
    for signum, handler in before.items():
        if handler != signal.SIG_IGN:  # as `nohup` has it
            signal.signal(signum, lambda *_: stop())
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def next_command(labels: Path) -> str:
    """The command that goes on with labelled images: that of the chain whose selection wrote the file, if one did."""
    plan = Plan.read(labels.absolute().parent.parent)
    return "usl run, as before" if plan is None else shlex.join(["usl", "run", *plan.arguments])


def _progress(index: LabelIndex) -> str:
    if not index.unlabelled:
        return f"all {index.chosen} images have an answer"
    done = answers_so_far(index)
    return images_to_label(index) + (f", {done}" if done else "")


def _listening(port: int | None) -> socket.socket:
    """A socket that this machine's own programs alone can reach.

    Raises:
        UslError: the port that was asked for is taken.
    """
    for attempt in (PORT, 0) if port is None else (port,):
        # named TCP, or asyncio leaves a delay of 40 ms between the head of an answer and its body
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", attempt))
            listener.listen()
        except OSError as error:
            listener.close()
            reason = error.strerror
        else:
            return listener
    raise UslError(f"usl label: --port {port}: cannot be listened on ({reason}); choose another, or leave it out")

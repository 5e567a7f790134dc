"""The labelling page's server: a few addresses below a secret one, for this machine's browsers alone."""

import hashlib
import hmac
import json
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from usl_lightning.base.errors import UslError
from usl_lightning.base.files import parse_json
from usl_lightning.labelling.pictures import Pictures
from usl_lightning.labelling.similar import SimilarImages
from usl_lightning.labelling.store import Answer, ChangedMeanwhileError, LabelStore, answers_of
from usl_lightning.labels import LabelIndex

PAGE = Path(__file__).parent / "page"
FILES = {"": "index.html", **{name: name for name in ("page.css", "page.js", "picture.js", "icon.svg")}}
"""Address below the secret one -> file of the page."""

SIDES = {"images": 1600, "thumbs": 192}
"""Address of a picture -> its longest side, in pixels."""

SHOWN_SIMILAR = 8
LONGEST_BODY = 4096  # bytes of a request

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""Of every response: the page loads and sends nothing elsewhere, and nobody else's page can load or frame it."""


class Guard:
    """Lets through what comes from the page itself, and refuses all else with 403.

    The `Host` must be this machine, so that no foreign name can be pointed here (DNS rebinding); the address must
    begin with the secret token, so that no other user or page can know it; and what changes anything must come from
    the page's own origin.

    Args:
        app: what answers the rest.
        token: the secret.
        port: that is listened on.
    """

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        names = ("127.0.0.1", "localhost")
        self.app, self.token = app, token.encode()
        self.hosts = {f"{name}:{port}" for name in names} | (set(names) if port == 80 else set())
        self.origins = {f"http://{host}" for host in self.hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *own]
            await send(message)

        reason = self._refusal(Request(scope)) if scope["type"] == "http" else "only http"
        await (_problem(403, reason) if reason else self.app)(scope, receive, send_guarded)

    def _refusal(self, request: Request) -> str:
        """Why the request is refused; empty if it is not."""
        if request.headers.getlist("host") not in [[host] for host in self.hosts]:
            return "this page is for the machine it runs on"
        if not hmac.compare_digest(request.url.path.split("/")[1].encode(), self.token):
            return "the address is not that of a running `usl label`; open the one it printed"
        foreign = request.headers.get("origin", next(iter(self.origins))) not in self.origins
        if request.method not in ("GET", "HEAD") and foreign:
            return "only the page itself can change answers"
        return ""


class LabellingApp:
    """What the page asks for.

    Args:
        store: the label file.
        pictures: its images.
        similar: images that look alike; None: not known.
        then: the command that goes on when all images have an answer.
    """

    def __init__(self, store: LabelStore, pictures: Pictures, similar: SimilarImages | None, then: str) -> None:
        self.store, self.pictures, self.similar, self.then = store, pictures, similar, then
        self._matched = ""
        self._matching = threading.Lock()
        self._match(store.read())

    def guarded(self, token: str, port: int) -> ASGIApp:
        """The whole server, whose addresses begin with `/TOKEN/`."""
        pages = [Route(f"/{address}", _page(name)) for address, name in FILES.items()]
        pictures = [Route(f"/{kind}/{{image:int}}", self._picture(side)) for kind, side in SIDES.items()]
        routes = [
            Route("/state", self._state),
            Route("/similar/{image:int}", self._similar),
            Route("/answers", self._answer, methods=["POST"]),
            Route("/classes", self._add_class, methods=["POST"]),
        ]
        below = Mount(f"/{token}", routes=[*pages, *pictures, *routes])
        return Guard(Starlette(routes=[below], exception_handlers={UslError: _refused, 404: _missing}), token, port)

    async def _state(self, request: Request) -> Response:
        version = await run_in_threadpool(lambda: self.store.version)
        if request.query_params.get("known") == version:
            return Response(status_code=204)
        return JSONResponse(await run_in_threadpool(self._described))

    def _described(self) -> dict[str, Any]:
        version = self.store.version  # before it is read: what changes meanwhile is asked for again
        index = self.store.read()
        selection = self._match(index)
        images = [
            {"image": image, "name": self.pictures.name(image), "answer": answer}
            for image, answer in answers_of(index).items()
        ]
        told = {"version": version, "selection": selection, "classes": index.classes}
        return {**told, "images": images, "then": self.then}

    async def _answer(self, request: Request) -> Response:
        body = await _body(request)
        image, answer, seen = (body.get(key, "missing") for key in ("image", "answer", "seen"))
        if type(image) is not int or not _is_answer(answer) or not _is_answer(seen):
            return _problem(400, "expected image, answer and seen")
        check = partial(self._check, image, answer, body)
        try:
            await run_in_threadpool(self.store.answer, image, answer, seen, check)
        except ChangedMeanwhileError as error:
            return JSONResponse({"problem": str(error), **await run_in_threadpool(self._described)}, 409)
        return JSONResponse(await run_in_threadpool(self._described))

    def _match(self, index: LabelIndex) -> str:
        """Which selection it is; the pictures are made sure to be those of it."""
        selection = selection_of(index)
        with self._matching:
            if selection != self._matched:
                self.pictures.match(index)
                self._matched = selection
        return selection

    def _check(self, image: int, answer: Answer, body: dict[str, Any], index: LabelIndex) -> None:
        """Make sure that an answer is for what the page showed: this selection, this image, a class of this name."""
        shown = body.get("selection", self._matched)
        if selection_of(index) != shown or shown != self._matched:
            raise ChangedMeanwhileError(f"{self.store.path} holds another selection by now")
        named = body.get("class")
        if isinstance(answer, int) and named is not None and index.classes[answer : answer + 1] != (named,):
            raise ChangedMeanwhileError(f"{self.store.path} has other classes by now")
        if image in index.indices:
            self.pictures.check(image)

    async def _add_class(self, request: Request) -> Response:
        name = (await _body(request)).get("name")
        if not isinstance(name, str):
            return _problem(400, "expected name")
        await run_in_threadpool(self.store.add_class, name)
        return JSONResponse(await run_in_threadpool(self._described))

    async def _similar(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._alike, request.path_params["image"]))

    def _alike(self, image: int) -> list[int]:
        if self.similar is None:
            return []
        return [other for other in self.similar.near(image, SHOWN_SIMILAR) if self.pictures.has(other)]

    def _picture(self, side: int) -> Callable[[Request], Awaitable[Response]]:
        async def picture(request: Request) -> Response:
            image = request.path_params["image"]
            if not await run_in_threadpool(self.pictures.has, image):
                return _problem(404, "no such image")
            content, kind = await run_in_threadpool(self.pictures.encoded, image, side)
            return Response(content, media_type=kind)

        return picture


def _page(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def page(request: Request) -> Response:
        return FileResponse(PAGE / name)

    return page


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object that was sent.

    Raises:
        UslError: it is none, or too long.
    """
    content = b""
    try:
        async for chunk in request.stream():
            content += chunk
            if len(content) > LONGEST_BODY:
                raise UslError("too long")
        value = parse_json(content)
    except (ValueError, ClientDisconnect) as error:
        raise UslError("not JSON") from error
    if not isinstance(value, dict):
        raise UslError("not an object")
    return value


def selection_of(index: LabelIndex) -> str:
    """A text that is the same for label files that ask for the same images of the same data set in the same order."""
    asked = [index.dataset and vars(index.dataset), index.indices, index.files, index.hashes]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _is_answer(value: Any) -> bool:
    return value is None or value == "unsure" or (type(value) is int and value >= 0)


def _problem(status: int, text: str) -> Response:
    return JSONResponse({"problem": text}, status)


async def _refused(request: Request, error: Exception) -> Response:
    return _problem(400, str(error))


async def _missing(request: Request, error: Exception) -> Response:
    return _problem(404, "no such page")

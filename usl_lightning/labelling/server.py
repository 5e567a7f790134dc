"""The labelling page's server: a few addresses below a secret one, for this machine's browsers alone."""

import asyncio
import hashlib
import json
import threading
from collections.abc import Awaitable, Callable, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from usl_lightning.base.documents import composed
from usl_lightning.base.errors import UslError
from usl_lightning.base.typed import as_count
from usl_lightning.labelling import queue
from usl_lightning.labelling.guard import Guard, body_of, problem
from usl_lightning.labelling.guessing import Guesses, Guessing
from usl_lightning.labelling.shown import Pictures
from usl_lightning.labelling.similar import SimilarImages
from usl_lightning.labelling.store import Answer, ChangedMeanwhileError, LabelStore, answers_of
from usl_lightning.labelling.windows import NAMED, Renamed, Windows
from usl_lightning.labels import LabelIndex
from usl_lightning.labels.names import clean

PAGE = Path(__file__).parent / "page"
FILES = {"": "index.html", **{path.name: path.name for path in PAGE.iterdir() if path.name != "index.html"}}
"""Address below the secret one -> file of the page."""

SIDES = {"images": 1600, "thumbs": 192, "closer": 6400}
"""Address of a picture -> its longest side, in pixels."""

SHOWN_SIMILAR, SHOWN_NAMED = 8, 48

PATIENCE = 5.0
"""Seconds that a request for guesses waits until they know of the newest answer."""


LOOK, LOOKS = 0.1, 20
"""Seconds between two looks at the file while a window waits for news, and how many there are."""


class LabellingApp:
    """What the page asks for.

    Args:
        store: the label file.
        pictures: its images.
        similar: images that look alike; None: not known.
        then: the command that goes on when all images have an answer.
        guessing: the classifier that learns from the answers; None: there is none.
    """

    def __init__(
        self,
        store: LabelStore,
        pictures: Pictures,
        similar: SimilarImages | None,
        then: str,
        guessing: Guessing | None = None,
    ) -> None:
        self.store, self.pictures, self.similar, self.then, self.guessing = store, pictures, similar, then, guessing
        self._matched: tuple[LabelIndex | None, str] = None, ""
        self._matching = threading.Lock()
        self._windows, self._renamed = Windows(), Renamed()
        self._ends = False
        self._match(store.read())

    def guarded(self, token: str, port: int) -> ASGIApp:
        """The whole server, whose addresses begin with `/TOKEN/`."""
        pages = [Route(f"/{address}", _page(name)) for address, name in FILES.items()]
        pictures = [Route(f"/{kind}/{{image}}", self._picture(side)) for kind, side in SIDES.items()]
        routes = [
            Route("/state", self._state),
            Route("/similar/{image}", self._similar),
            Route("/named", self._named),
            Route("/answers", self._answer, methods=["POST"]),
            Route("/classes", self._add_class, methods=["POST"]),
            Route("/classes/change", self._change_class, methods=["POST"]),
            Route("/guesses", self._guesses),
            Route("/row", self._row),
            Route("/rows", self._answer_row, methods=["POST"]),
        ]
        below = Mount(f"/{token}", routes=[*pages, *pictures, *routes])
        return Guard(Starlette(routes=[below], exception_handlers={UslError: _refused, 404: _missing}), token, port)

    def end(self) -> None:
        """Answer those who wait for news: the server ends."""
        self._ends = True
        if self.guessing is not None:
            self.guessing.end()

    async def _state(self, request: Request) -> Response:
        """The label file; if it is known, as soon as it is another one, or nothing if it stays as it is for a while.

        Of a file that stays as it is, where other windows show others, just that.
        """
        asked = request.query_params
        known, waits, window, elsewhere = (asked.get(key) for key in ("known", "wait", "window", "elsewhere"))
        if window is not None:
            self._windows.note(window, _images_in(asked.get("shown", "")))
        for _ in range(1 if waits is None else LOOKS):
            if window is not None:
                self._windows.note(window)  # it may show another image by now, and have said so
            if await run_in_threadpool(lambda: self.store.version) != known:
                break
            others = self._windows.elsewhere(window or "")
            if elsewhere is not None and others != _images_in(elsewhere):
                return JSONResponse({"version": known, "elsewhere": others})
            if waits is not None and not self._ends:
                await asyncio.sleep(LOOK)
        else:
            return Response(status_code=204)
        return JSONResponse(await run_in_threadpool(self._described, asked.get("selection", ""), window))

    def _described(self, known: str = "", window: str | None = None) -> dict[str, Any]:
        """The label file; of a selection that is known, without what stays as it is: its images and their names."""
        version = self.store.version  # before it is read: what changes meanwhile is asked for again
        index = self.store.read()
        selection = self._match(index)
        answers, added = answers_of(index), set(index.added)
        told: dict[str, Any] = {"version": version, "selection": selection, "classes": index.classes}
        told |= {"then": self.then, "bulk": index.bulk, "guessing": self.guessing is not None, "of_each": queue.OF_EACH}
        told |= {"elsewhere": self._windows.elsewhere(window or ""), "fixed": sorted(self.pictures.classes)}
        told["kept"] = sum(image not in added for image in index.indices[: queue.kept_by(index)])
        told["added"] = [self._entry(image, answers[image]) for image in index.added]
        asked = {image: answer for image, answer in answers.items() if image not in added}
        if selection == known:
            return {**told, "answers": list(asked.values())}
        return {**told, "images": [self._entry(image, answer) for image, answer in asked.items()]}

    def _entry(self, image: int, answer: Answer) -> dict[str, Any]:
        return {"image": image, "name": self.pictures.name(image), "answer": answer}

    async def _answer(self, request: Request) -> Response:
        body = await body_of(request)
        image, answer, seen = (body.get(key, "missing") for key in ("image", "answer", "seen"))
        if type(image) is not int or not _is_answer(answer) or not _is_answer(seen):
            return problem(400, "expected image, answer and seen")

        def change(body: dict[str, Any]) -> None:
            check = partial(self._check, (image,), body)
            self.store.answer(image, body["answer"], body["seen"], check, self.pictures.entry)

        return await self._changed(body, change)

    async def _answer_row(self, request: Request) -> Response:
        body = await body_of(request)
        images, answer = body.get("images", []), body.get("answer", "missing")
        if not _is_row(images) or answer == "unsure" or not _is_answer(answer):
            return problem(400, f"expected images, 1 to {queue.ROW} of them, and a class")

        def change(body: dict[str, Any]) -> None:
            self.store.answer_row(images, body["answer"], partial(self._check, images, body), self.pictures.entry)

        return await self._changed(body, change)

    async def _changed(self, body: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> Response:
        """Make a change; what the file is then, or is already. What is guessed from it comes after this is said."""
        told, status = await run_in_threadpool(self._told_of, body, change)
        return JSONResponse(told, status, background=BackgroundTask(self._learn))

    def _told_of(self, body: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> tuple[Any, int]:
        known, window, shown = str(body.get("selection")), body.get("window"), body.get("shown")
        body = self._renamed.by_name(body, self.store.read())
        try:
            change(body)
        except ChangedMeanwhileError as error:
            return {"problem": str(error), **self._described(known, window)}, 409
        if isinstance(window, str) and isinstance(shown, str):  # after the answer, so that nobody hears of it before
            self._windows.note(window, _images_in(shown))
        return {"given": body.get("answer"), **self._described(known, window)}, 200

    async def _learn(self) -> None:
        if self.guessing is not None:
            self.guessing.changed()

    def _match(self, index: LabelIndex) -> str:
        """Which selection it is; the pictures are made sure to be those of it."""
        with self._matching:
            before, selection = self._matched
            if before is None or not _holds_the_same(before, index):
                selection = selection_of(index)
                if selection != self._matched[1]:
                    self.pictures.match(index)
                else:
                    self.pictures.note(index)
            self._matched = index, selection
        return selection

    def _check(self, images: Sequence[int], body: dict[str, Any], index: LabelIndex) -> None:
        """Make sure that a change is of what the page showed: this selection, these images, a class of this name."""
        known, matched = self._matched
        now = matched if known is not None and _holds_the_same(known, index) else selection_of(index)
        shown = body.get("selection", matched)
        if now != shown or shown != matched:
            raise ChangedMeanwhileError(f"{self.store.path} holds another selection by now")
        for number, named in ((body.get(key), body.get(name)) for key, name in NAMED):
            if isinstance(number, int) and named is not None and index.classes[number : number + 1] != (named,):
                raise ChangedMeanwhileError(f"the class {named} is gone by now")
        for image in images:
            if image in index.indices:
                self.pictures.check(image)

    async def _add_class(self, request: Request) -> Response:
        body = await body_of(request)
        if not isinstance(body.get("name"), str):
            return problem(400, "expected name")
        return await self._changed(body, lambda now: self.store.add_class(now["name"], partial(self._check, (), now)))

    async def _change_class(self, request: Request) -> Response:
        body = await body_of(request)
        number, named, name, merge = (body.get(key, 0) for key in ("class", "named", "name", "merge"))
        right = type(number) is int and isinstance(named, str) and (name is None or isinstance(name, str))
        if not right or type(merge) is not bool or (merge and name is None):
            return problem(400, "expected class, named, name and merge")

        def check(number: int, index: LabelIndex) -> None:
            self._check((), {**body, "answer": number, "class": named}, index)
            if named in self.pictures.classes:
                raise UslError(f"'{named}' is a class of the data set itself: it is called so by its folder or file")

        def change(body: dict[str, Any]) -> None:
            classes = self.store.read().classes
            now = classes.index(named) if named in classes else number
            self.store.change_class(now, name, merge=merge, check=partial(check, now))
            self._renamed.note(named, None if name is None else clean(name))

        return await self._changed(body, change)

    async def _guesses(self, request: Request) -> Response:
        told = await run_in_threadpool(self._told, request.query_params.get("known"))
        return Response(status_code=204) if told is None else JSONResponse(told)

    def _told(self, known: str | None) -> dict[str, Any] | None:
        """What the newest guesses say; None if that is known."""
        guesses = self._newest()
        told = None if guesses is None or self.guessing is None else queue.told(guesses, self.guessing.quality)
        return None if told is None or told["key"] == known else told

    async def _row(self, request: Request) -> Response:
        image = as_count(request.query_params.get("image", ""))
        without, beside, window = (request.query_params.get(key, "") for key in ("without", "beside", "window"))
        passed = {*without.split(","), *map(str, self._windows.elsewhere(window))}
        row = await run_in_threadpool(self._row_of, image, passed, beside == "true")
        return Response(status_code=204) if row is None else JSONResponse(row)

    def _row_of(self, image: int | None, without: AbstractSet[str], beside: bool) -> dict[str, Any] | None:
        """A row of one class, of images nearest to this one if it has no answer; None if nothing is left to guess.

        Args:
            image: position in the data set; None: any.
            without: positions of images that were left out before, or that other windows show.
            beside: whether images that were not chosen are taken, too.
        """
        guesses = self._newest()
        if guesses is None or self.similar is None:
            return None
        among = queue.candidates(guesses, without - {str(image)}, self._beside if beside else frozenset())
        found = queue.row(guesses, self.similar, among, image)
        if found is None:
            return None
        number, images, likely = found
        row = {"class": number, "named": guesses.index.classes[number], "likely": round(likely), "images": images}
        return {**row, "names": [self.pictures.name(image) for image in images]}

    @cached_property
    def _beside(self) -> frozenset[int]:
        """Images with features that were not chosen and can be shown."""
        known = () if self.similar is None else self.similar.row_of
        return frozenset(image for image in known if self.pictures.has(image))

    def _newest(self) -> Guesses | None:
        """The guesses that know of all answers there are now, if they are there soon."""
        return None if self.guessing is None else self.guessing.after(self.store.version, PATIENCE)

    async def _similar(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._alike, _image_of(request)))

    def _alike(self, image: int) -> list[dict[str, Any]]:
        if self.similar is None:
            return []
        near = [other for other in self.similar.near(image, SHOWN_SIMILAR) if self.pictures.has(other)]
        return [{"image": other, "name": self.pictures.name(other)} for other in near]

    async def _named(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._called, request.query_params.get("part", "")))

    def _called(self, part: str) -> list[dict[str, Any]]:
        """The first images that are not in the label file and have this part in their names."""
        here, wanted = set(self.store.read().indices), composed(part).lower()
        named = ((image, self.pictures.name(image)) for image in self.pictures.places() if image not in here)
        found = (image for image, name in named if wanted in composed(name).lower() and self.pictures.has(image))
        return [{"image": image, "name": self.pictures.name(image)} for image in islice(found, SHOWN_NAMED)]

    def _picture(self, side: int) -> Callable[[Request], Awaitable[Response]]:
        async def picture(request: Request) -> Response:
            image = _image_of(request)
            if not await run_in_threadpool(self.pictures.has, image):
                return problem(404, "no such image")
            content, kind = await run_in_threadpool(self.pictures.encoded, image, side)
            return Response(content, media_type=kind)

        return picture


def _page(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def page(request: Request) -> Response:
        return FileResponse(PAGE / name)

    return page


def selection_of(index: LabelIndex) -> str:
    """A text that is the same for label files that ask for the same images of the same data set in the same order.

    Nobody asks for those that were added.
    """
    picks = index.picks
    asked = [picks.dataset and vars(picks.dataset), picks.indices, picks.files, picks.hashes]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _holds_the_same(one: LabelIndex, other: LabelIndex) -> bool:
    """Whether two states of a file hold the same images; told at once of what is the same in memory."""
    return all(getattr(one, key) is getattr(other, key) for key in ("dataset", "indices", "files", "hashes"))


def _image_of(request: Request) -> int:
    """The position that an address ends in; -1, where no image is, if that is no number."""
    image = as_count(request.path_params["image"])
    return -1 if image is None else image


def _images_in(text: str) -> list[int]:
    """Positions with commas between them."""
    return [image for image in map(as_count, text.split(",")) if image is not None]


def _is_answer(value: Any) -> bool:
    return value is None or value == "unsure" or (type(value) is int and value >= 0)


def _is_row(value: Any) -> bool:
    whole = isinstance(value, list) and 0 < len(value) <= queue.ROW and all(type(image) is int for image in value)
    return whole and len(set(value)) == len(value)


async def _refused(request: Request, error: Exception) -> Response:
    return problem(400, str(error))


async def _missing(request: Request, error: Exception) -> Response:
    return problem(404, "no such page")

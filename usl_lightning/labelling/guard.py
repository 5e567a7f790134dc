"""Who may ask the labelling page's server, and how much: this machine's browsers, by a secret address."""

import hmac
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from usl_lightning.base.errors import UslError
from usl_lightning.base.files import parse_json

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
        await (problem(403, reason) if reason else self.app)(scope, receive, send_guarded)

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


async def body_of(request: Request) -> dict[str, Any]:
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


def problem(status: int, text: str) -> Response:
    """A refusal that the page can show."""
    return JSONResponse({"problem": text}, status)

"""Connections to the labelling page's server that end: uvicorn itself waits for ever for a request to be whole."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

RECEIVING = 10.0
"""Seconds that a client has to send a whole request."""

ANSWERING = 120.0
"""Seconds that an answer may take until it is sent, so that a client that does not read it is let go."""


class TimedProtocol(H11Protocol):
    """One connection. It is cut if it stays half open, sends its request too slowly, or does not take the answer."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._allow(RECEIVING)

    def data_received(self, data: bytes) -> None:
        """Part of a request, or all of it."""
        begins = self._timer is None
        super().data_received(data)
        if self.conn.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED):
            if self.cycle is not None and not self.cycle.response_complete:
                self._allow(ANSWERING)
        elif begins:
            self._allow(RECEIVING)

    def on_response_complete(self) -> None:
        """Between two requests, uvicorn's own time-out holds."""
        self._cancel()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._cancel()
        super().connection_lost(exc)

    def _allow(self, seconds: float) -> None:
        self._cancel()
        self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class EndingServer(uvicorn.Server):
    """A server that lets go of those who wait for news before it ends; uvicorn itself ends them with a traceback.

    Args:
        config: uvicorn's.
        end: has the requests that wait answered.
    """

    def __init__(self, config: uvicorn.Config, end: Callable[[], object]) -> None:
        super().__init__(config)
        self._end = end

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End in good order."""
        self._end()
        await super().shutdown(sockets)

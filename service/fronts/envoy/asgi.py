"""ASGI's events as pyvoy has them, and the check whether a client is still connected.

Relies on what pyvoy adds to ASGI: `receive` and `send` act when they are called, awaited or not. Once a
request is complete, `receive` returns at once. Does not know gRPC's wire nor what the methods do.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from service.rpc.methods import Call
from service.rpc.statuses import Status

Event = dict[str, Any]
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

START = "http.response.start"
BODY = "http.response.body"
TRAILERS = "http.response.trailers"

_Result = TypeVar("_Result")


class ActiveCall(Protocol):
    """A call from its first byte to its end."""

    @property
    def path(self) -> str:
        """The method's path."""

    @property
    def is_reading(self) -> bool:
        """Whether the call waits for its client's bytes, unless its request is complete."""

    async def serve(self, call: Call) -> None:
        """Serves the call and returns when it is over."""

    def abort(self, status: Status) -> None:
        """Ends the call with a status, whatever it is doing."""

    def check_client(self) -> None:
        """Checks whether the client is still connected, if its request is complete."""


def future_of(result: Awaitable[_Result]) -> "asyncio.Future[_Result]":
    """Returns the future that pyvoy returned; a result that pyvoy had at once is made a future."""
    return result if isinstance(result, asyncio.Future) else asyncio.ensure_future(result)


def uncancelled(result: Awaitable[_Result]) -> Awaitable[_Result]:
    """Returns what a task may wait for that may be cancelled meanwhile: pyvoy's own future stays as it is.

    pyvoy completes its future whatever became of the task. A future that was cancelled with the task cannot
    be completed, and asyncio would log that as an error for every late call.
    """
    return asyncio.shield(result) if isinstance(result, asyncio.Future) else result


class DisconnectCheck:
    """Checks whether the client of a complete request is still connected.

    Args:
        on_disconnect: called when the client is gone.
    """

    def __init__(self, receive: Receive, on_disconnect: Callable[[], None]) -> None:
        self._receive = receive
        self._on_disconnect = on_disconnect
        self._is_running = False

    def run(self) -> None:
        """Begins a check, unless one is running."""
        if not self._is_running:
            self._is_running = True
            future_of(self._receive()).add_done_callback(self._on_event)

    def _on_event(self, future: "asyncio.Future[Event]") -> None:
        self._is_running = False
        if future.result()["type"] == "http.disconnect":
            self._on_disconnect()

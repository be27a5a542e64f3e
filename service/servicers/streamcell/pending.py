"""Requests of a stream that wait for sessions from the store, and those behind them.

A request waits while sessions of its are brought, or while an earlier one of the same sessions waits: the
order of each session's requests stays, and nobody else waits. Does not know what a request asks, nor how
sessions are brought.
"""

import asyncio
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

from service.errors import StreamcellError

Request = TypeVar("Request")


@dataclasses.dataclass(eq=False, slots=True)
class Waiting(Generic[Request]):
    """A request that waits.

    `session_ids`: whose it is, None for one that all others wait for; `bringing`: what brings its sessions,
    None where it waits for an earlier request; `failed`: those that could not be brought, and why.
    """

    session_ids: frozenset[str] | None
    request: Request
    bringing: "asyncio.Task[None] | None" = None
    failed: Mapping[str, StreamcellError] = dataclasses.field(default_factory=dict)


class Held(Generic[Request]):
    """The requests of one stream that wait, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: list[Waiting[Request]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def holds(self, session_ids: Iterable[str] | None) -> bool:
        """Tells whether a request of these sessions has to wait behind another one."""
        if session_ids is None:
            return bool(self._waiting)
        names = frozenset(session_ids)
        return any(each.session_ids is None or names & each.session_ids for each in self._waiting)

    def add(self, session_ids: Iterable[str] | None, request: Request) -> Waiting[Request]:
        """Has a request wait."""
        names = None if session_ids is None else frozenset(session_ids)
        return self.add_again(Waiting(names, request))

    def add_again(self, waiting: Waiting[Request]) -> Waiting[Request]:
        """Has a request that was taken out wait on."""
        self._waiting.append(waiting)
        return waiting

    def take_all(self) -> list[Waiting[Request]]:
        """Takes out every request, in order: each is to be tried, or added again."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def cancel(self) -> None:
        """Gives all of them up."""
        for each in self.take_all():
            if each.bringing is not None:
                each.bringing.cancel()

"""The requests of one stream that wait for sessions from the store, and the requests queued behind them.

A request waits while its sessions are fetched, or while an earlier request of the same sessions waits. So
each session's requests keep their order, and requests of other sessions do not wait. Does not know what a
request asks, nor how sessions are fetched.
"""

import asyncio
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

from service.errors import StreamcellError

Request = TypeVar("Request")

FetchErrors = Mapping[str, StreamcellError]
"""Why sessions could not be fetched from the store, by session id."""
NO_FETCH_ERRORS: FetchErrors = {}


@dataclasses.dataclass(eq=False, slots=True)
class PendingRequest(Generic[Request]):
    """A request that waits.

    `session_ids`: the request's sessions; None for a request that all later ones wait for. `fetching`: the
    task that fetches the sessions; None while the request waits for an earlier one. `fetch_errors`: why that
    task could not fetch sessions.
    """

    session_ids: frozenset[str] | None
    request: Request
    fetching: "asyncio.Task[None] | None" = None
    fetch_errors: FetchErrors = dataclasses.field(default_factory=dict)


class PendingRequests(Generic[Request]):
    """The waiting requests of one stream, in the order in which they came."""

    def __init__(self) -> None:
        self._pending: list[PendingRequest[Request]] = []

    def __len__(self) -> int:
        return len(self._pending)

    def must_wait(self, session_ids: Iterable[str] | None) -> bool:
        """Returns whether a request of these sessions has to wait behind another; None waits behind any."""
        if session_ids is None:
            return bool(self._pending)
        names = frozenset(session_ids)
        return any(each.session_ids is None or names & each.session_ids for each in self._pending)

    def add(self, session_ids: Iterable[str] | None, request: Request) -> PendingRequest[Request]:
        """Adds a request at the end, and returns its entry."""
        names = None if session_ids is None else frozenset(session_ids)
        pending = PendingRequest(names, request)
        self.put_back(pending)
        return pending

    def put_back(self, pending: PendingRequest[Request]) -> None:
        """Adds an entry that `pop_all` returned, at the end."""
        self._pending.append(pending)

    def pop_all(self) -> list[PendingRequest[Request]]:
        """Removes and returns every entry, in order. The caller begins each request or puts it back."""
        pending, self._pending = self._pending, []
        return pending

    def cancel(self) -> None:
        """Removes every entry and cancels the fetches."""
        for each in self.pop_all():
            if each.fetching is not None:
                each.fetching.cancel()

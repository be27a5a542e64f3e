"""The connection as one session uses it: every call names the session to whatever stands before the servers.

A balancer that sends the calls of one `x-session-id` to one server spares the servers from passing the
session on to each other. Knows nothing of what the calls ask for.
"""

import contextlib
from collections.abc import Mapping

from streamcell.connection import Choose, Connection, Metadata, Request, Response, StreamCall
from streamcell.retry import Backoff
from streamcell.values import Limits

_SESSION_ID = "x-session-id"


class SessionConnection:
    """The calls of one session.

    Args:
        connection: makes the calls.
        session_id: the value of `x-session-id`, unless `metadata` has another one.
        metadata: sent with every call, beside the client's.
    """

    def __init__(self, connection: Connection, session_id: str, metadata: Mapping[str, str]) -> None:
        self._connection = connection
        self._metadata: Metadata = tuple({_SESSION_ID: session_id, **metadata}.items())

    @property
    def limits(self) -> Limits:
        """What the client may have in memory or in a message."""
        return self._connection.limits

    def backoff(self, *, gives_up_early: bool = False) -> Backoff:
        """Returns the pace for the attempts of one operation, as `Connection.backoff` does."""
        return self._connection.backoff(gives_up_early=gives_up_early)

    async def unary(self, choose: "Choose[Request, Response]", request: Request) -> Response:
        """Makes one call, as `Connection.unary` does."""
        return await self._connection.unary(choose, request, self._metadata)

    async def unary_reconnecting(self, choose: "Choose[Request, Response]", request: Request) -> Response:
        """Makes a call that also looks for a server, as `Connection.unary_reconnecting` does."""
        return await self._connection.unary_reconnecting(choose, request, self._metadata)

    def stream(self) -> "contextlib.AbstractAsyncContextManager[StreamCall]":
        """Opens a bidirectional stream, as `Connection.stream` does."""
        return self._connection.stream(self._metadata)

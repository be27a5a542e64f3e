"""The calls of one session over one connection: their order, what an unknown outcome means, repetition.

The rule behind all of it: every step that was answered is on the server before the next step is, or the
caller gets an error. A session that cannot be brought back is never started again from zero. Knows nothing
of what the calls ask for.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from streamcell import convert
from streamcell.connection import Choose, Request, Response
from streamcell.errors import StepGap, StreamcellError
from streamcell.position import SessionPosition
from streamcell.recovery import Recovery
from streamcell.retry import Backoff, is_curable
from streamcell.session_connection import SessionConnection
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.values import SessionInfo


class SessionCalls:
    """Orders and repeats the calls of one open session.

    Example:
        async with calls.changing("step()"):
            reply = await calls.unary(lambda stub: stub.Step, request)
    """

    def __init__(self, connection: SessionConnection, position: SessionPosition) -> None:
        self.connection = connection
        self.position = position
        self._recovery = Recovery(connection, position)
        # A call that changes the session began and did not end well: the server may or may not have applied
        # it.
        self._in_doubt = False
        # Calls that change the session take this lock, one after another in the order they were made.
        self._order = asyncio.Lock()
        # Ends the stream that is open on the session, if there is one; takes the name of the call that
        # ends it.
        self.end_stream: Callable[[str], Awaitable[None]] | None = None

    @contextlib.asynccontextmanager
    async def changing(self, call: str, *, locate_first: bool = True) -> AsyncIterator[None]:
        """Reserves the session for a call that changes it.

        Ends a stream that is open and waits for earlier calls. If the outcome of an earlier call is unknown,
        asks the server first where the session stands; a call that does not depend on that passes
        `locate_first=False`. Unless the body ends well, its own outcome counts as unknown.
        """
        if self.end_stream is not None:
            await self.end_stream(call)
        async with self._order:
            if locate_first and self._in_doubt:
                # Before the next step gets its number.
                self._adopt(await self.attempt(self._locate))
            self._in_doubt = True
            yield
            self._in_doubt = False

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Runs a call that changes nothing after the calls before it, or beside a stream that is open."""
        if self.end_stream is not None:
            yield
            return
        async with self._order:
            yield

    async def unary(self, choose: "Choose[Request, Response]", request: Request) -> Response:
        """Makes a call of the chosen method, which is safe to repeat, as `attempt` does."""
        return await self.attempt(lambda: self.connection.unary(choose, request))

    async def attempt(self, call: Callable[[], Awaitable[Response]]) -> Response:
        """Makes a call that is safe to repeat, until it succeeds or the retry policy ends.

        Recovers the session between attempts, so that a repetition never meets another session under the
        same id, nor the same session without steps that were answered.
        """
        backoff = self.connection.backoff()
        while True:
            try:
                return await call()
            except StreamcellError as error:
                await backoff.pause(error, is_curable)
            await self.recover(backoff)

    async def recover(self, backoff: Backoff) -> None:
        """Finds the session again and brings the server up to the last step that was answered.

        Raises:
            StreamcellError: as in `Recovery.recover`.
        """
        await self._recovery.recover(backoff)

    async def refresh(self) -> SessionInfo:
        """Asks where the session stands, and goes on from there unless a stream is open."""
        try:
            info = await self.attempt(self._locate)
        except StepGap:  # the steps that the server lacks cannot be sent again
            info = await self._get()
        if self.end_stream is None:
            self._adopt(info)
        return info

    async def _locate(self) -> SessionInfo:
        """Returns where the session stands; raises StepGap if steps that were answered are missing."""
        info = await self._get()
        self.position.check(info)
        return info

    async def _get(self) -> SessionInfo:
        request = pb.GetSessionRequest(session_id=self.position.session_id)
        reply = await self.connection.unary(lambda stub: stub.GetSession, request)
        return convert.to_session_info(reply.session)

    def _adopt(self, info: SessionInfo) -> None:
        self.position.adopt(info)
        self._in_doubt = False

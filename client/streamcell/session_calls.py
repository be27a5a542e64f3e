"""A session's place on the server, seen over one connection: the order of calls, doubt, and repetition.

Knows one rule above all: every step that was answered is on the server before the next one is, or the caller
gets an error; a session that cannot be brought back is never begun anew.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from streamcell import convert
from streamcell.connection import Connection
from streamcell.errors import StepGap, StreamcellError
from streamcell.position import Place
from streamcell.recovery import Recovery
from streamcell.retry import Backoff, is_curable
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.values import SessionInfo

Reply = TypeVar("Reply")


class Link:
    """One open session, seen over one connection."""

    def __init__(self, connection: Connection, place: Place) -> None:
        self.connection = connection
        self.place = place
        self._recovery = Recovery(connection, place)
        # A call that moves the session was begun and has not ended well: the server may stand elsewhere.
        self._in_doubt = False
        # Calls that move the session hold this, one after another in the order they were made.
        self._order = asyncio.Lock()
        # Ends the stream that is open on the session, if one is; takes the name of the call that does so.
        self.end_stream: Callable[[str], Awaitable[None]] | None = None

    @contextlib.asynccontextmanager
    async def moving(self, call: str, *, settle: bool = True) -> AsyncIterator[None]:
        """Holds the session for a call that moves it.

        Ends a stream that is open, waits for earlier calls, ends doubt. The session is in doubt again
        unless the body ends well.
        """
        if self.end_stream is not None:
            await self.end_stream(call)
        async with self._order:
            if settle and self._in_doubt:
                # Before the next step gets its number.
                self._adopt(await self.attempt(self._locate))
            self._in_doubt = True
            yield
            self._in_doubt = False

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Lets a call that moves nothing wait for the calls before it; a stream is not waited for."""
        if self.end_stream is not None:
            yield
            return
        async with self._order:
            yield

    async def attempt(self, call: Callable[[], Awaitable[Reply]]) -> Reply:
        """Makes a call that is safe to repeat, until it succeeds or the retry policy ends.

        Between attempts the session is recovered, so that a repetition never meets another session
        under the same id, nor the same one without steps that were answered.
        """
        backoff = self.connection.backoff()
        while True:
            try:
                return await call()
            except StreamcellError as error:
                await backoff.pause(error, is_curable)
            await self.recover(backoff)

    async def recover(self, backoff: Backoff) -> None:
        """Finds the session again and brings it to where it was answered.

        Raises:
            StreamcellError: as in `Recovery.recover`.
        """
        await self._recovery.recover(backoff)

    async def refresh(self) -> SessionInfo:
        """Asks where the session stands, and takes the server's word for it unless a stream is open."""
        try:
            info = await self.attempt(self._locate)
        except StepGap:  # beyond recovery
            info = await self._get()
        if self.end_stream is None:
            self._adopt(info)
        return info

    async def _locate(self) -> SessionInfo:
        """Returns where the session stands; StepGap if that is behind what was answered."""
        info = await self._get()
        self.place.check(info)
        return info

    async def _get(self) -> SessionInfo:
        request = pb.GetSessionRequest(session_id=self.place.session_id)
        reply = await self.connection.unary(lambda stub: stub.GetSession, request)
        return convert.to_session_info(reply.session)

    def _adopt(self, info: SessionInfo) -> None:
        self.place.adopt(info)
        self._in_doubt = False

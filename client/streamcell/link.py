"""A session's place on the server: where it stands, whether that is in doubt, and how to find it again.

Owns the count of steps answered and the order of calls. Knows one rule above all: a session that the server
lost, or that stands behind what was already answered, is an error and never begun anew.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from streamcell import convert
from streamcell.channel import Connection
from streamcell.errors import ConnectionLost, DeadlineExceeded, ModelChanged, StepGap, StreamcellError
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.values import Limits, SessionInfo

Reply = TypeVar("Reply")


class Link:
    """One open session, seen over one connection."""

    def __init__(self, connection: Connection, info: SessionInfo, limits: Limits) -> None:
        self.connection = connection
        self.limits = limits
        self.session_id = info.session_id
        self.model_name = info.model_name
        self.model_version = info.model_version
        self.next_step_index = info.next_step_index
        # A call that moves the session was begun and has not ended well: the server may stand elsewhere.
        self.in_doubt = False
        # Calls that move the session hold this, one after another in the order they were made.
        self.order = asyncio.Lock()
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
        async with self.order:
            if settle:
                await self.settle()
            self.in_doubt = True
            yield
            self.in_doubt = False

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Lets a call that moves nothing wait for the calls before it; a stream is not waited for."""
        if self.end_stream is not None:
            yield
            return
        async with self.order:
            yield

    def adopt(self, info: SessionInfo) -> None:
        """Takes the server's word for where the session stands."""
        self.next_step_index = info.next_step_index
        self.in_doubt = False

    async def get(self) -> SessionInfo:
        """Asks where the session stands."""
        request = pb.GetSessionRequest(session_id=self.session_id)
        reply = await self.connection.unary(self.connection.stub.GetSession, request)
        return convert.to_session_info(reply.session)

    async def settle(self) -> None:
        """Ends doubt, if there is any, before the next step gets its number.

        Raises:
            SessionGone, ModelChanged, StepGap: as in `resume`.
        """
        if self.in_doubt:
            info = await self.get()
            self._check_nothing_lost(info)
            self.adopt(info)

    async def resume(self) -> None:
        """Connects again and makes sure that the session is there, as far as it was answered.

        Raises:
            ConnectionLost: no server was reached in time.
            SessionGone: it is no longer there.
            ModelChanged: the id is now that of a session on another model.
            StepGap: the server stands behind what it had answered.
        """
        connection = self.connection
        request = pb.OpenSessionRequest(session_id=self.session_id, mode=pb.OPEN_MODE_RESUME)
        seconds = connection.timeout.connect_seconds
        try:
            reply = await connection.unary(
                connection.stub.OpenSession, request, timeout_seconds=seconds, wait_for_ready=True
            )
        except DeadlineExceeded as error:
            raise ConnectionLost(f"no answer from {connection.target} within {seconds:g} s") from error
        self._check_nothing_lost(convert.to_session_info(reply.session))

    async def attempt(self, call: Callable[[], Awaitable[Reply]]) -> Reply:
        """Makes a call that is safe to repeat, until it succeeds or the retry policy ends.

        Between attempts the session is resumed, so that a repetition never meets another session
        under the same id.
        """
        backoff = self.connection.backoff()
        resuming = False
        while True:
            try:
                if resuming:
                    await self.resume()
                return await call()
            except StreamcellError as error:
                await backoff.pause(error)
                resuming = True

    def _check_nothing_lost(self, info: SessionInfo) -> None:
        if info.model_name != self.model_name:
            raise ModelChanged(
                f"session {self.session_id} ran on model {self.model_name} and now runs on {info.model_name}",
                reason="MODEL_CHANGED",
            )
        if info.next_step_index < self.next_step_index:
            raise StepGap(
                f"session {self.session_id} stands at step {info.next_step_index} on the server, but step"
                f" {self.next_step_index - 1} was answered: its state was lost. refresh() goes on from"
                " where the server stands",
                reason="STEP_GAP",
                metadata={"expected_step_index": str(info.next_step_index)},
            )

"""A stream with many messages outstanding, for loads that do not wait for replies.

Owns which answer belongs to which message: by request id, because a refusal overtakes what waits in the
server's queue. Does not know when messages are due.
"""

import asyncio
import itertools
from typing import Any

from grpc import aio
from streamcell.v1 import streamcell_pb2 as pb

from loadtest.api import OverError, bind, stream_error
from loadtest.errors import reason_of


class PipelinedSender:
    """Sends its messages on one bidirectional stream; `send` may be called again before it has returned."""

    def __init__(self, method: Any, messages: list[bytes], session_ids: list[str]) -> None:
        self._method = method
        self._messages = messages
        self._session_ids = session_ids
        self._call: Any = None
        self._writing = asyncio.Lock()  # gRPC takes one write of a stream at a time
        self._waiting: dict[int, asyncio.Future[str]] = {}
        self._ids = itertools.count(1)
        self._reading: asyncio.Task[None] | None = None
        self._over = ""  # why nothing more can be sent

    async def open(self) -> None:
        """Begins the stream, binds its sessions, and reads from then on."""
        self._call = self._method()
        await bind(self._call, self._session_ids)
        self._reading = asyncio.create_task(self._read())

    async def send(self, k: int) -> str:
        """Sends the k-th message and waits for its answer; returns its error's reason, "" for none.

        Raises:
            OverError: the stream is broken.
        """
        number = next(self._ids)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        # The bytes of two messages one after the other are those of both merged.
        prefix = pb.StreamRequest(request_id=number).SerializeToString()
        async with self._writing:
            if not self._over:
                await self._write(prefix + self._messages[k % len(self._messages)])
        reason = "" if self._over else await answer
        if self._over:
            raise OverError(self._over)
        return reason

    async def close(self) -> None:
        """Ends the stream."""
        if self._reading is not None:
            self._reading.cancel()
        if self._call is not None:
            self._call.cancel()

    async def _write(self, message: bytes) -> None:
        try:
            await self._call.write(message)
        except aio.AioRpcError as error:
            self._end(reason_of(error)[0])
        except asyncio.InvalidStateError:  # it ended while there was nothing to send
            self._end((await self._call.code()).name)

    async def _read(self) -> None:
        try:
            while isinstance(raw := await self._call.read(), bytes):
                response = pb.StreamResponse.FromString(raw)
                answer = self._waiting.pop(response.request_id, None)
                if answer is not None and not answer.done():
                    answer.set_result(stream_error(response))
            self._end("STREAM_ENDED")
        except aio.AioRpcError as error:
            self._end(reason_of(error)[0])

    def _end(self, reason: str) -> None:
        """Lets nobody wait for an answer that will not come."""
        self._over = self._over or reason
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_result(reason)
        self._waiting.clear()

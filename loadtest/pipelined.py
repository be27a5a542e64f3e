"""A sender with many messages outstanding on one stream.

Owns which answer belongs to which message: by request id, because a refusal overtakes what waits in the
server's queue. Does not know when messages are due.
"""

import asyncio
import itertools
from typing import Any

from grpc import aio
from streamcell.v1 import streamcell_pb2 as pb

from loadtest.errors import reason_of
from loadtest.senders import SenderBrokenError, bind, stream_error


class PipelinedSender:
    """Sends its messages on one bidirectional stream; `send` may be called again before it has returned."""

    def __init__(self, method: Any, messages: list[bytes], session_ids: list[str]) -> None:
        self._method = method
        self._messages = itertools.cycle(messages)
        self._session_ids = session_ids
        self._call: Any = None
        self._writing = asyncio.Lock()  # gRPC takes one write of a stream at a time
        self._unanswered: dict[int, asyncio.Future[str]] = {}  # by request id
        self._request_ids = itertools.count(1)
        self._reading: asyncio.Task[None] | None = None
        self._broken = ""  # the reason why nothing more can be sent

    async def open(self) -> None:
        """Begins the stream, binds its sessions, and reads from then on."""
        self._call = self._method()
        await bind(self._call, self._session_ids)
        self._reading = asyncio.create_task(self._read())

    async def send(self) -> str:
        """Sends the next message and awaits its answer; returns its error's reason, "" for none.

        Raises:
            SenderBrokenError: the stream has ended.
        """
        request_id, message = next(self._request_ids), next(self._messages)
        answer = self._unanswered[request_id] = asyncio.get_running_loop().create_future()
        # The bytes of two messages one after the other are those of both merged.
        prefix = pb.StreamRequest(request_id=request_id).SerializeToString()
        async with self._writing:
            if not self._broken:
                await self._write(prefix + message)
        reason = "" if self._broken else await answer
        if self._broken:
            raise SenderBrokenError(self._broken)
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
            self._break(reason_of(error)[0])
        except asyncio.InvalidStateError:  # the stream ended while there was nothing to send
            self._break((await self._call.code()).name)

    async def _read(self) -> None:
        try:
            while isinstance(raw := await self._call.read(), bytes):
                response = pb.StreamResponse.FromString(raw)
                answer = self._unanswered.pop(response.request_id, None)
                if answer is not None and not answer.done():
                    answer.set_result(stream_error(response))
            self._break("STREAM_ENDED")
        except aio.AioRpcError as error:
            self._break(reason_of(error)[0])

    def _break(self, reason: str) -> None:
        """Ends all waiting for answers, because none will come."""
        self._broken = self._broken or reason
        for answer in self._unanswered.values():
            if not answer.done():
                answer.set_result(reason)
        self._unanswered.clear()

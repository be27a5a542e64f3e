"""Senders over gRPC with one message outstanding at a time: by unary calls, or on a stream.

Owns how a message is sent and what its answer means. Does not know when messages are due. For senders with
many messages outstanding, see `pipelined`.
"""

import asyncio
import itertools
from typing import Any, Protocol

from grpc import aio
from streamcell.v1 import streamcell_pb2 as pb

from loadtest.errors import LoadtestError, reason_of

REPLY_SECONDS = 60.0  # timeout of a call: a server that hangs is an error


class SenderBrokenError(Exception):
    """A sender cannot go on: its stream or the connection is broken."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Sender(Protocol):
    """One stream, or caller, with its sessions and its messages."""

    async def open(self) -> None:
        """Prepares to send."""

    async def send(self) -> str:
        """Sends the next message and awaits its answer; returns its error's reason, "" for none.

        Raises:
            SenderBrokenError: the message failed, and so would every later one.
        """

    async def close(self) -> None:
        """Ends what `open` began."""


class CallSender:
    """Sends each message as a unary call."""

    def __init__(self, method: Any, messages: list[bytes]) -> None:
        self._method = method
        self._messages = itertools.cycle(messages)

    async def open(self) -> None:
        """Prepares nothing."""

    async def send(self) -> str:
        """Makes the next call; returns the error's reason, "" for none.

        Raises:
            SenderBrokenError: the error is not the server's own.
        """
        try:
            await self._method(next(self._messages), timeout=REPLY_SECONDS)
        except aio.AioRpcError as error:
            reason, is_servers_own = reason_of(error)
            if is_servers_own:
                return reason
            raise SenderBrokenError(reason) from None
        return ""

    async def close(self) -> None:
        """Ends nothing."""


class StreamSender:
    """Sends its messages on one bidirectional stream, to the sessions bound to it, one at a time."""

    def __init__(self, method: Any, messages: list[bytes], session_ids: list[str]) -> None:
        self._method = method
        self._messages = itertools.cycle(messages)
        self._session_ids = session_ids
        self._call: Any = None

    async def open(self) -> None:
        """Begins the stream and binds its sessions."""
        self._call = self._method()
        await bind(self._call, self._session_ids)

    async def send(self) -> str:
        """Sends the next message and reads its answer; returns its error's reason, "" for none.

        Raises:
            SenderBrokenError: the stream has ended.
        """
        try:
            await self._call.write(next(self._messages))
            raw = await self._call.read()
        except aio.AioRpcError as error:
            raise SenderBrokenError(reason_of(error)[0]) from None
        except asyncio.InvalidStateError:  # the stream ended while there was nothing to send
            raise SenderBrokenError((await self._call.code()).name) from None
        if not isinstance(raw, bytes):
            raise SenderBrokenError("STREAM_ENDED")
        return stream_error(pb.StreamResponse.FromString(raw))

    async def close(self) -> None:
        """Ends the stream."""
        if self._call is not None:
            self._call.cancel()


async def bind(call: Any, session_ids: list[str]) -> None:
    """Binds sessions to a stream that has just begun.

    Raises:
        LoadtestError: the server refuses.
    """
    config = pb.StreamRequest(config=pb.StreamConfig(session_ids=session_ids))
    await call.write(config.SerializeToString())
    raw = await call.read()
    if not isinstance(raw, bytes):
        raise LoadtestError("the server ended a stream as soon as it began")
    response = pb.StreamResponse.FromString(raw)
    if response.WhichOneof("response") != "config":
        raise LoadtestError(f"cannot bind sessions to a stream: {response.error.message}")


def stream_error(response: pb.StreamResponse) -> str:
    """Returns the reason of the error that an answer holds, "" for none."""
    kind = response.WhichOneof("response")
    if kind == "step":
        return ""
    if kind == "frame":
        return response.frame.errors[0].error.reason if response.frame.errors else ""
    return response.error.reason if kind == "error" else "EMPTY_REPLY"

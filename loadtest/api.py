"""The calls of the Streamcell API over bytes: messages are serialised once, before they are sent many times.

Owns connections and the ways to send one message and await its answer. Does not know when, nor how often.
"""

import asyncio
from typing import Any, Protocol

from grpc import aio
from streamcell.v1 import streamcell_pb2 as pb

from loadtest.errors import LoadtestError, reason_of

_SERVICE = f"/{pb.DESCRIPTOR.services_by_name['StreamcellService'].full_name}/"
_CALL_SECONDS = 30.0  # for calls outside the measured load
REPLY_SECONDS = 60.0  # for calls of the load: a server that hangs is an error, not a wait


class Connection:
    """One connection of its own, however many there are to the same server."""

    def __init__(self, target: str) -> None:
        self._channel = aio.insecure_channel(
            target,
            options=[
                ("grpc.use_local_subchannel_pool", 1),  # else all channels would share one connection
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.enable_retries", 0),
            ],
        )
        self.step: Any = self._unary("Step")
        self.prime: Any = self._unary("Prime")
        self.forecast: Any = self._unary("Forecast")
        self.stream: Any = self._channel.stream_stream(_SERVICE + "Stream", None, None)
        self._list_models: Any = self._unary("ListModels")
        self._open_session: Any = self._unary("OpenSession")
        self._close_session: Any = self._unary("CloseSession")

    def _unary(self, name: str) -> Any:
        return self._channel.unary_unary(_SERVICE + name, None, None)

    async def list_models(self) -> pb.ListModelsResponse:
        """Returns the models served. Raises gRPC's error, as all of these do."""
        request = pb.ListModelsRequest().SerializeToString()
        return pb.ListModelsResponse.FromString(await self._list_models(request, timeout=_CALL_SECONDS))

    async def open_session(self, session_id: str, model: str) -> pb.OpenSessionResponse:
        """Opens a new session."""
        request = pb.OpenSessionRequest(session_id=session_id, model=model, mode=pb.OPEN_MODE_CREATE)
        raw = await self._open_session(request.SerializeToString(), timeout=_CALL_SECONDS)
        return pb.OpenSessionResponse.FromString(raw)

    async def close_session(self, session_id: str) -> None:
        """Ends a session, if it is there."""
        request = pb.CloseSessionRequest(session_id=session_id, allow_missing=True)
        await self._close_session(request.SerializeToString(), timeout=_CALL_SECONDS)

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close(None)


class OverError(Exception):
    """A sender cannot go on: its stream or the connection is broken."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Sender(Protocol):
    """One stream, or caller, with its sessions and its messages."""

    async def open(self) -> None:
        """Prepares to send."""

    async def send(self, k: int) -> str:
        """Sends the k-th message and awaits its answer; returns its error's reason, "" for none.

        Raises:
            OverError: it failed, and so would every later message.
        """

    async def close(self) -> None:
        """Sends no more."""


class CallSender:
    """Sends each message as a call of its own."""

    def __init__(self, method: Any, messages: list[bytes]) -> None:
        self._method = method
        self._messages = messages

    async def open(self) -> None:
        """Needs no preparation."""

    async def send(self, k: int) -> str:
        """Makes the k-th call."""
        try:
            await self._method(self._messages[k % len(self._messages)], timeout=REPLY_SECONDS)
        except aio.AioRpcError as error:
            reason, is_servers_own = reason_of(error)
            if is_servers_own:
                return reason
            raise OverError(reason) from None
        return ""

    async def close(self) -> None:
        """Leaves nothing open."""


async def bind(call: Any, session_ids: list[str]) -> None:
    """Binds sessions to a stream that has just begun.

    Raises:
        LoadtestError: the server does not.
    """
    config = pb.StreamRequest(config=pb.StreamConfig(session_ids=session_ids))
    await call.write(config.SerializeToString())
    raw = await call.read()
    if not isinstance(raw, bytes):
        raise LoadtestError("the server ended a stream as soon as it began")
    response = pb.StreamResponse.FromString(raw)
    if response.WhichOneof("response") != "config":
        raise LoadtestError(f"cannot bind sessions to a stream: {response.error.message}")


class StreamSender:
    """Sends its messages on one bidirectional stream, to the sessions bound to it, one at a time."""

    def __init__(self, method: Any, messages: list[bytes], session_ids: list[str]) -> None:
        self._method = method
        self._messages = messages
        self._session_ids = session_ids
        self._call: Any = None

    async def open(self) -> None:
        """Begins the stream and binds its sessions."""
        self._call = self._method()
        await bind(self._call, self._session_ids)

    async def send(self, k: int) -> str:
        """Sends the k-th message and reads its answer."""
        try:
            await self._call.write(self._messages[k % len(self._messages)])
            raw = await self._call.read()
        except aio.AioRpcError as error:
            raise OverError(reason_of(error)[0]) from None
        except asyncio.InvalidStateError:  # it ended while there was nothing to send
            raise OverError((await self._call.code()).name) from None
        if not isinstance(raw, bytes):
            raise OverError("STREAM_ENDED")
        return stream_error(pb.StreamResponse.FromString(raw))

    async def close(self) -> None:
        """Ends the stream."""
        if self._call is not None:
            self._call.cancel()


def stream_error(response: pb.StreamResponse) -> str:
    """Returns the reason of the error that an answer holds, "" for none."""
    kind = response.WhichOneof("response")
    if kind == "step":
        return ""
    if kind == "frame":
        return response.frame.errors[0].error.reason if response.frame.errors else ""
    return response.error.reason if kind == "error" else "EMPTY_REPLY"

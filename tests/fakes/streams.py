"""A front's side of a stream, and refusals as a client decodes them."""

import asyncio
import dataclasses

from google.protobuf.message import Message
from google.rpc import status_pb2
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from streamcell.v1 import streamcell_pb2 as pb

from service.rpc.statuses import Status
from service.rpc.stream import Stream

_HANG_SECONDS = 60.0  # a stream that is silent for so long is stuck, also on a busy machine


@dataclasses.dataclass
class Refusal:
    """An error as a client decodes it from a status."""

    code: int
    reason: str
    message: str
    metadata: dict[str, str]
    retry_delay_seconds: float = 0.0

    @classmethod
    def of(cls, status: Status) -> "Refusal":
        """Decodes the status' details and checks that they agree with it."""
        whole = status_pb2.Status.FromString(status.details)
        assert (whole.code, whole.message) == (status.code, status.message)
        info, delay = ErrorInfo(), RetryInfo()
        assert whole.details[0].Unpack(info)
        assert info.domain == "streamcell"
        found = cls(status.code, info.reason, status.message, dict(info.metadata))
        if len(whole.details) > 1:
            assert whole.details[1].Unpack(delay)
            found.retry_delay_seconds = delay.retry_delay.ToNanoseconds() / 1e9
        return found


async def talk(stream: Stream, *requests: Message) -> list[pb.StreamResponse]:
    """Sends requests on a stream and returns their answers, one each."""
    for request in requests:
        stream.receive(request.SerializeToString())
    return [await answer(stream) for _ in requests]


async def changed(stream: Stream) -> None:
    """Waits until a stream reports a change to its front."""
    reported = asyncio.get_running_loop().create_future()
    stream.on_change = lambda: None if reported.done() else reported.set_result(None)
    await reported


async def next_message(stream: Stream) -> bytes | None:
    """Returns the next message that a front would send, None at the stream's end."""
    while (message := stream.take()) is None and not stream.is_over:
        await changed(stream)
    return message


async def room(stream: Stream) -> None:
    """Waits until a front may go on reading."""
    while stream.is_full:
        await changed(stream)


async def answer(stream: Stream) -> pb.StreamResponse:
    """Returns a stream's next response."""
    raw = await asyncio.wait_for(next_message(stream), _HANG_SECONDS)
    assert raw is not None, f"the stream ended: {stream.status}"
    return pb.StreamResponse.FromString(raw)


async def ending(stream: Stream) -> "Refusal | None":
    """Reads a stream to its end, and returns its error; None for OK."""
    while await asyncio.wait_for(next_message(stream), _HANG_SECONDS) is not None:
        pass
    return None if stream.status is None else Refusal.of(stream.status)


async def turn() -> None:
    """Lets the loop run once what is due."""
    await asyncio.sleep(0)

"""A client of bare HTTP/2 frames, for requests that no gRPC library would send."""

import asyncio
import collections
import contextlib
import dataclasses
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
from google.protobuf.wrappers_pb2 import StringValue

from service.fronts.envoy.wire import Deframer, frame

BOUND_SECONDS = 60.0


def message(text: str) -> bytes:
    """Returns a framed StringValue."""
    return frame(StringValue(value=text).SerializeToString())


@dataclasses.dataclass
class Answer:
    """The answer to a call, as far as it has arrived."""

    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    data: bytes = b""
    reset: int | None = None
    is_ended: bool = False

    @property
    def outcome(self) -> tuple[str, str]:
        """The HTTP status and the gRPC status; "reset" for a stream that the server reset."""
        if "grpc-status" not in self.headers and self.reset:
            return "", "reset"
        return self.headers.get(":status", ""), self.headers.get("grpc-status", "")

    @property
    def texts(self) -> list[str]:
        """The messages."""
        return [StringValue.FromString(one).value for one in Deframer(1 << 30).feed(self.data)]


class RawClient:
    """One HTTP/2 connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._changed = asyncio.Event()
        self.answers: dict[int, Answer] = collections.defaultdict(Answer)
        self.events: list[str] = []
        self.takes = True  # whether the client acknowledges bytes, so that the server may send more
        self._pump: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, address: str, window: int = 65_535) -> "RawClient":
        """Connects; `window` is the number of bytes that the server may send ahead on each stream."""
        host, _, port = address.rpartition(":")
        client = cls(*await asyncio.open_connection(host, int(port)))
        client._h2.initiate_connection()
        client._h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        client._flush()
        client._pump = asyncio.create_task(client._read())
        return client

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await self._reader.read(65_536):
                for event in self._h2.receive_data(data):
                    self._take(event)
                self._flush()
                self._changed.set()
        for answer in self.answers.values():
            answer.is_ended = True
        self.events.append("closed")
        self._changed.set()

    def _take(self, event: Any) -> None:
        if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            self.answers[event.stream_id].headers.update(dict(event.headers))
        elif isinstance(event, h2.events.DataReceived):
            self.answers[event.stream_id].data += event.data
            if self.takes and event.flow_controlled_length:
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.answers[event.stream_id].is_ended = True
        elif isinstance(event, h2.events.StreamReset):
            answer = self.answers[event.stream_id]
            answer.reset, answer.is_ended = event.error_code, True
        else:
            self.events.append(type(event).__name__)

    def _flush(self) -> None:
        self._writer.write(self._h2.data_to_send())

    def open(self, path: str, *, end: bool = False, **changes: str | None) -> int:
        """Begins a call and returns its stream; `changes` are headers, _ for -, None to leave one out."""
        headers: dict[str, str | None] = {
            ":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost",
            "content-type": "application/grpc", "te": "trailers",
        }  # fmt: skip
        for name, value in changes.items():
            headers[{"method": ":method"}.get(name, name.replace("_", "-"))] = value
        stream = self._h2.get_next_available_stream_id()
        given = [(name, value) for name, value in headers.items() if value is not None]
        self._h2.send_headers(stream, given, end_stream=end)
        self.answers[stream] = Answer()
        self._flush()
        return int(stream)

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Sends bytes of a call."""
        self._h2.send_data(stream, data, end_stream=end)
        self._flush()

    def room(self, stream: int) -> int:
        """Returns how many bytes the server takes now."""
        return int(self._h2.local_flow_control_window(stream))

    def reset(self, stream: int) -> None:
        """Resets a call."""
        self._h2.reset_stream(stream, 8)  # CANCEL
        self._flush()

    def reopen(self, stream: int) -> None:
        """Acknowledges the bytes that came while `takes` was false."""
        self._h2.acknowledge_received_data(len(self.answers[stream].data), stream)
        self._flush()

    def widen(self, stream: int, num_bytes: int = 1) -> None:
        """Raises the number of bytes that the server may send on a call."""
        self._h2.increment_flow_control_window(num_bytes, stream)
        self._flush()

    def ping(self) -> None:
        """Sends a ping."""
        self._h2.ping(b"12345678")
        self._flush()

    def write(self, data: bytes) -> None:
        """Sends bytes of any kind."""
        self._writer.write(data)

    def go_away(self) -> None:
        """Sends GOAWAY, and keeps the connection open."""
        self._writer.write(b"\0\0\x08\x07\0\0\0\0\0" + bytes(8))

    async def until(self, holds: Any) -> None:
        """Waits until a condition on the answers or events holds."""
        async with asyncio.timeout(BOUND_SECONDS):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    async def answer(self, stream: int) -> Answer:
        """Returns a call's complete answer."""
        await self.until(lambda: self.answers[stream].is_ended)
        return self.answers[stream]

    async def call(self, path: str, *chunks: bytes, **changes: str | None) -> Answer:
        """Makes a complete call of the given bytes."""
        stream = self.open(path, end=not chunks, **changes)
        for number, chunk in enumerate(chunks, 1):
            self.send(stream, chunk, end=number == len(chunks))
        return await self.answer(stream)

    async def take_events(self) -> list[str]:
        """Returns what the echo service has recorded since the last call."""
        (text,) = (await self.call("/t/Events", message(""))).texts
        return text.split(",") if text else []

    async def close(self) -> None:
        """Closes the connection."""
        if self._pump is not None:
            self._pump.cancel()
        self._writer.close()

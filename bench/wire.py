"""Senders of single steps on bare HTTP/2: what a stream or a caller sends, and which frames answer it.

Owns the connections, and which sender uses which. Does not know when messages are due, and counts nothing.
"""

import dataclasses
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from google.protobuf.message import Message
from streamcell.v1 import streamcell_pb2 as pb

from bench import http2, replies
from bench.cases import NUM_INPUTS
from bench.http2 import Frame
from loadtest.errors import LoadtestError
from loadtest.options import Options

_RECEIVED_BYTES = 1 << 18
_MESSAGE = 5  # where a message begins in a data frame's payload: after gRPC's flag and length
_X = [0.1] * NUM_INPUTS
_CALL = f"/{replies.SERVICE}/Step"


class Connection:
    """A connection to a gRPC server. `owners`: the sender's number of each open HTTP/2 stream.

    Args:
        connected: the socket, with TLS or without.
        authority: the server's name and port.
        metadata: sent with every call.
    """

    def __init__(
        self, connected: socket.socket, authority: str, metadata: Iterable[tuple[str, str]] = ()
    ) -> None:
        self.socket = connected
        self._metadata = dict(metadata)
        self._scheme = "https" if isinstance(connected, ssl.SSLSocket) else "http"
        self.owners: dict[int, int] = {}
        self._authority = authority
        self._reader = http2.Reader()
        self._next_stream = 1
        self._headers: dict[str, bytes] = {}  # a HEADERS frame for stream 0, by path
        self._out = bytearray(http2.opening())

    @classmethod
    def to(cls, options: Options) -> "Connection":
        """Connects to the target of the options, with the TLS and the token that they name.

        Raises:
            OSError: nobody listens there, or TLS cannot be agreed on.
            OptionError: a file for TLS or the token cannot be used.
        """
        host, _, port = options.target.rpartition(":")
        access = options.access()
        connected = socket.create_connection((host, int(port)))
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if access.tls is not None:
            name = options.tls_server_name or host
            connected = _tls_context(options).wrap_socket(connected, server_hostname=name)
        return cls(connected, options.target, access.token.metadata() if access.token is not None else ())

    def begin(self, path: str, owner: int) -> int:
        """Begins a call of the method at a path and returns its HTTP/2 stream."""
        stream = self._next_stream
        self._next_stream += 2  # a client's streams have odd numbers
        self.owners[stream] = owner
        headers = self._headers.get(path) or self._make_headers(path)
        self._out += headers[:5] + stream.to_bytes(4, "big") + headers[9:]
        return stream

    def _make_headers(self, path: str) -> bytes:
        fields = {":method": "POST", ":scheme": self._scheme, ":path": path, ":authority": self._authority}
        fields |= {"te": "trailers", "content-type": "application/grpc", **self._metadata}
        frame = http2.request(fields, 0)
        self._headers[path] = frame
        return frame

    def send(self, stream: int, framed: bytes, *, is_last: bool = False) -> None:
        """Sends a message, framed as gRPC frames it, with the next flush."""
        self._out += http2.frame(http2.DATA, http2.END_STREAM if is_last else 0, stream, framed)

    def flush(self) -> None:
        """Sends what is to be sent."""
        if self._out:
            self.socket.sendall(self._out)
            self._out.clear()

    def receive(self) -> list[Frame]:
        """Returns the frames of calls that have come.

        Raises:
            LoadtestError: the server ended the connection, or a call.
        """
        data = self.socket.recv(_RECEIVED_BYTES)
        if not data:
            raise LoadtestError("the server closed a connection")
        # What TLS has decrypted already makes no socket readable.
        while isinstance(self.socket, ssl.SSLSocket) and (pending := self.socket.pending()):
            data += self.socket.recv(pending)
        frames = self._reader.feed(data)
        return [each for each in frames if each[0] <= http2.HEADERS or self._is_of_call(each)]

    def _is_of_call(self, frame: Frame) -> bool:
        """Deals with a frame that is neither DATA nor HEADERS, and returns False: no sender needs it."""
        kind, flags, stream, payload = frame
        if kind in (http2.SETTINGS, http2.PING) and not flags & http2.ACK:
            answer = payload if kind == http2.PING else b""
            self._out += http2.frame(kind, http2.ACK, 0, answer)
        elif kind == http2.GOAWAY or (kind == http2.RST_STREAM and stream in self.owners):
            raise LoadtestError("the server broke a call off")
        return False


def _tls_context(options: Options) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.tls_ca or None)
    context.set_alpn_protocols(["h2"])
    if options.tls_cert:
        context.load_cert_chain(options.tls_cert, options.tls_key)
    return context


class Senders(Protocol):
    """Streams or callers on some connections, numbered from 0."""

    def open(self, number: int, session_id: str) -> None:
        """Prepares a sender. What it sends for that is answered once."""

    def send(self, number: int) -> None:
        """Sends a sender's next step, with the next flush."""

    def answered(self, connection: Connection, frame: Frame) -> int | None:
        """Returns the number of the sender whose last message a frame answers, None if it answers none.

        Raises:
            LoadtestError: the frame reports an error.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamMethod:
    """A streaming method, and what is sent to it.

    `messages` takes a session's id and returns the first message of its stream, which is answered once, and a
    step. `good_bytes`: the first byte of an answer without an error, which names its field; `response`: an
    answer's type.
    """

    path: str
    messages: Callable[[str], tuple[Message, Message]]
    good_bytes: frozenset[int]
    response: Any


def _steps(session_id: str) -> tuple[Message, Message]:
    first = pb.StreamRequest(config=pb.StreamConfig(session_ids=[session_id]))
    return first, pb.StreamRequest(step=pb.StepRequest(x=_X))


STEPS = StreamMethod(
    path=f"/{replies.SERVICE}/{replies.STREAM}",
    messages=_steps,
    good_bytes=frozenset((replies.CONFIGURED[0], replies.STREAM_STEP[0])),
    response=pb.StreamResponse,
)


class Streams:
    """Bidirectional streams, a session each."""

    def __init__(self, connections: list[Connection], method: StreamMethod) -> None:
        self._connections = connections
        self._method = method
        self._good_bytes = method.good_bytes
        self._streams: dict[int, tuple[Connection, int, bytes]] = {}  # with the framed step, by number

    def open(self, number: int, session_id: str) -> None:
        """Begins a stream with its first message."""
        connection = self._connections[number % len(self._connections)]
        stream = connection.begin(self._method.path, number)
        first, step = (http2.message(each.SerializeToString()) for each in self._method.messages(session_id))
        connection.send(stream, first)
        self._streams[number] = connection, stream, step

    def send(self, number: int) -> None:
        """Sends a step."""
        connection, stream, step = self._streams[number]
        connection.send(stream, step)

    def answered(self, connection: Connection, frame: Frame) -> int | None:
        """Returns the number of the stream that a frame answers: each answer is a frame with one message.

        Raises:
            LoadtestError: a step failed, or the stream has ended.
        """
        kind, flags, stream, payload = frame
        if flags & http2.END_STREAM:
            raise LoadtestError("the server ended a stream")
        if kind == http2.HEADERS or not payload:
            return None
        if payload[_MESSAGE] not in self._good_bytes:
            raise LoadtestError(f"a step failed: {self._method.response.FromString(payload[_MESSAGE:])}")
        return connection.owners[stream]


class Callers:
    """Unary calls, a session and one call at a time each."""

    def __init__(self, connections: list[Connection]) -> None:
        self._connections = connections
        self._requests: dict[int, bytes] = {}
        self._has_answer: set[int] = set()

    def open(self, number: int, session_id: str) -> None:
        """Prepares a caller, which then makes a call."""
        request = pb.StepRequest(session_id=session_id, x=_X)
        self._requests[number] = http2.message(request.SerializeToString())
        self.send(number)

    def send(self, number: int) -> None:
        """Calls for a step."""
        connection = self._connections[number % len(self._connections)]
        connection.send(connection.begin(_CALL, number), self._requests[number], is_last=True)

    def answered(self, connection: Connection, frame: Frame) -> int | None:
        """Returns the number of the caller whose call a frame ends: the trailers do.

        Raises:
            LoadtestError: no message came before the trailers.
        """
        kind, flags, stream, payload = frame
        if kind == http2.DATA and payload:
            self._has_answer.add(connection.owners[stream])
        if not flags & http2.END_STREAM:
            return None
        number = connection.owners.pop(stream)
        if number not in self._has_answer:
            raise LoadtestError("a call failed")
        self._has_answer.remove(number)
        return number

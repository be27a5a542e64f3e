"""Senders of single steps on bare HTTP/2: what a stream or a caller sends, and which frames answer it.

Owns the connections and who sends on which. Does not know when messages are due, nor counts them.
"""

import socket
from typing import Protocol

from streamcell.v1 import streamcell_pb2 as pb

from bench import http2, replies
from bench.cases import NUM_INPUTS
from bench.http2 import Frame
from loadtest.errors import LoadtestError

_RECEIVED_BYTES = 1 << 18
_X = [0.1] * NUM_INPUTS
_STREAM, _CALL = f"/{replies.SERVICE}/{replies.STREAM}", f"/{replies.SERVICE}/Step"
_GOOD = {
    replies.CONFIGURED[0],
    replies.STREAM_STEP[0],
}  # what a stream's answers that tell no error begin with


class Connection:
    """A connection to a gRPC server. `owners`: whose each stream under way is, by number."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.owners: dict[int, int] = {}
        self._authority = target
        self._reader = http2.Reader()
        self._next_stream = 1
        self._heads: dict[str, bytes] = {}
        self._out = bytearray(http2.opening())

    def begin(self, path: str, owner: int) -> int:
        """Begins a call of the method at a path and returns its stream."""
        stream = self._next_stream
        self._next_stream += 2  # a client's are odd
        self.owners[stream] = owner
        headers = self._heads.get(path) or self._head(path)
        self._out += headers[:5] + stream.to_bytes(4, "big") + headers[9:]
        return stream

    def _head(self, path: str) -> bytes:
        fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": self._authority}
        head = http2.request(fields | {"te": "trailers", "content-type": "application/grpc"}, 0)
        self._heads[path] = head
        return head

    def send(self, stream: int, framed: bytes, *, is_last: bool = False) -> None:
        """Sends a message, framed as gRPC has it, with the next flush."""
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
        frames = self._reader.feed(data)
        return [each for each in frames if each[0] <= http2.HEADERS or self._is_of_call(each)]

    def _is_of_call(self, frame: Frame) -> bool:
        kind, flags, stream, payload = frame
        if kind in (http2.SETTINGS, http2.PING) and not flags & http2.ACK:
            answer = payload if kind == http2.PING else b""
            self._out += http2.frame(kind, http2.ACK, 0, answer)
        elif kind == http2.GOAWAY or (kind == http2.RST_STREAM and stream in self.owners):
            raise LoadtestError("the server broke a call off")
        return False


class Senders(Protocol):
    """Streams or callers, by number, on some connections."""

    def open(self, number: int, session_id: str) -> None:
        """Prepares one; what it sends to that end is answered once."""

    def send(self, number: int) -> None:
        """Sends one's next step, with the next flush."""

    def answered(self, connection: Connection, frame: Frame) -> int | None:
        """Returns whose last message a frame answers, if it does.

        Raises:
            LoadtestError: it tells of an error.
        """


class Streams:
    """Bidirectional streams, a session each."""

    _STEP = http2.message(pb.StreamRequest(step=pb.StepRequest(x=_X)).SerializeToString())

    def __init__(self, connections: list[Connection]) -> None:
        self._connections = connections
        self._places: dict[int, tuple[Connection, int]] = {}

    def open(self, number: int, session_id: str) -> None:
        """Begins a stream and binds its session."""
        connection = self._connections[number % len(self._connections)]
        stream = connection.begin(_STREAM, number)
        first = pb.StreamRequest(config=pb.StreamConfig(session_ids=[session_id]))
        connection.send(stream, http2.message(first.SerializeToString()))
        self._places[number] = connection, stream

    def send(self, number: int) -> None:
        """Sends a step."""
        connection, stream = self._places[number]
        connection.send(stream, self._STEP)

    def answered(self, connection: Connection, frame: Frame) -> int | None:
        """Every message of the server's answers one, in a frame of its own.

        Raises:
            LoadtestError: a step failed, or the stream has ended.
        """
        kind, flags, stream, payload = frame
        if flags & http2.END_STREAM:
            raise LoadtestError("the server ended a stream")
        if kind == http2.HEADERS or not payload:
            return None
        if payload[5] not in _GOOD:
            raise LoadtestError(f"a step failed: {pb.StreamResponse.FromString(payload[5:])}")
        return connection.owners[stream]


class Callers:
    """Unary calls, a session and one call at a time each."""

    def __init__(self, connections: list[Connection]) -> None:
        self._connections = connections
        self._requests: dict[int, bytes] = {}
        self._has_answer: set[int] = set()

    def open(self, number: int, session_id: str) -> None:
        """Prepares a caller, who then makes a call."""
        request = pb.StepRequest(session_id=session_id, x=_X)
        self._requests[number] = http2.message(request.SerializeToString())
        self.send(number)

    def send(self, number: int) -> None:
        """Calls for a step."""
        connection = self._connections[number % len(self._connections)]
        connection.send(connection.begin(_CALL, number), self._requests[number], is_last=True)

    def answered(self, connection: Connection, frame: Frame) -> int | None:
        """A call is over with its trailers.

        Raises:
            LoadtestError: there was no message before them.
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

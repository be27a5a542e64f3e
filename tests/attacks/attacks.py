"""The attacks, each on one connection or a stated number of them; none is unbounded in count or time.

An attack gets the server's address and returns what became of it. Once all is sent, it waits for the server
to close the connection, for `hold_seconds` at most. Does not know how the server is doing.
"""

import contextlib
import dataclasses
import socket
import struct
import threading
import time
import zlib

from google.protobuf.internal import encoder

from tests.attacks import frames
from tests.attacks.connection import Connection

STEP = "/streamcell.v1.StreamcellService/Step"
STREAM = "/streamcell.v1.StreamcellService/Stream"
CHECK = "/grpc.health.v1.Health/Check"
_CHUNK = 1000  # calls a write


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of an attack."""

    is_closed: bool  # whether the server closed the connection
    num_sent: int  # bytes that it took
    num_resets: int  # calls that it reset

    def __str__(self):
        end = "closed" if self.is_closed else "open"
        return f"{end} after {self.num_sent / 1e6:.2f} MB, {self.num_resets} resets"


def _outcome(connection, hold_seconds):
    is_closed = connection.is_closed(hold_seconds)
    return Outcome(is_closed, connection.num_sent, connection.received[frames.RST_STREAM])


@contextlib.contextmanager
def connected(address, **options):
    """Gives a connection that has sent its preface."""
    connection = Connection(address, **options)
    try:
        connection.greet()
        yield connection
    finally:
        connection.close()


def _each(count, make):
    """Yields the frames of `count` calls as pieces of bytes."""
    numbers = list(frames.streams(count))
    for at in range(0, count, _CHUNK):
        yield b"".join(map(make, numbers[at : at + _CHUNK]))


def open_and_reset(address, count, path=STREAM, *, hold_seconds):
    """Opens calls and resets each at once."""
    block = frames.call_headers(path)
    with connected(address) as connection:
        for piece in _each(count, lambda number: frames.opened(number, block) + frames.reset(number)):
            if not connection.send(piece):
                break
        return _outcome(connection, hold_seconds)


def open_in_silence(address, count, path=STREAM, *, num_indexed=0, hold_seconds):
    """Opens calls and sends nothing; with `num_indexed` each has that many large headers, of a byte each."""
    block = frames.call_headers(path, frames.indexed(num_indexed))
    with connected(address) as connection:
        if num_indexed:
            first = frames.call_headers(path, frames.table_entry())
            connection.send(frames.opened(1, first) + frames.reset(1))
        numbers = iter(frames.streams(count, first=3))
        for _ in range(0, count, _CHUNK):
            piece = b"".join(
                frames.opened(number, block) for number, _ in zip(numbers, range(_CHUNK), strict=False)
            )
            if not connection.send(piece):
                break
        return _outcome(connection, hold_seconds)


def packed(num_bytes, encoding="gzip"):
    """Returns a small compressed message that inflates to a step with `num_bytes` in a field not known."""
    tag = struct.pack("B", 15 << 3 | 2)
    body = b"\x12\x08\x0a\x06canary" + tag + encoder._VarintBytes(num_bytes) + bytes(num_bytes)
    compressor = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    found = compressor.compress(body) + compressor.flush()
    return b"\1" + len(found).to_bytes(4, "big") + found


def inflate(address, num_messages, num_bytes, *, num_streams=1, path=STREAM, hold_seconds):
    """Sends messages on some streams, all of them together at once; each inflates to `num_bytes`."""
    message = packed(num_bytes) * num_messages
    block = frames.call_headers(path, frames.literal(b"grpc-encoding", b"gzip"))
    with connected(address) as connection:
        size = 16_384
        for number in frames.streams(num_streams):
            cut = [message[at : at + size] for at in range(0, len(message), size)]
            if not connection.send(
                frames.opened(number, block)
                + b"".join(frames.frame(frames.DATA, 0, number, piece) for piece in cut)
            ):
                break
        return _outcome(connection, hold_seconds)


def half_messages(address, num_streams, num_bytes, *, path=STEP, hold_seconds):
    """Sends the first `num_bytes` of a message on each of some calls, within the windows, and no more."""
    block = frames.call_headers(path)
    sent = b"\0" + (num_bytes + 1).to_bytes(4, "big") + bytes(num_bytes - 5)
    with connected(address) as connection:
        size = 16_384
        windows = {}
        for number in frames.streams(num_streams):
            windows[number] = 65_535
            if not connection.send(frames.opened(number, block)):
                break
        taken = min(num_bytes, 65_535)
        budget = 65_535  # of the connection; the server widens it, which the reader does not follow
        for number in list(windows):
            cut = [sent[at : min(at + size, taken)] for at in range(0, taken, size)]
            if budget < taken or not connection.send(
                b"".join(frames.frame(frames.DATA, 0, number, piece) for piece in cut)
            ):
                break
            budget -= taken
        return _outcome(connection, hold_seconds)


def flood(address, piece, num_pieces, *, reads=True, before=b"", hold_seconds):
    """Sends `piece` again and again, after `before`."""
    with connected(address, reads=reads) as connection:
        connection.socket.settimeout(5.0)
        block = piece * _CHUNK
        if connection.send(before):
            for _ in range(0, num_pieces, _CHUNK):
                if not connection.send(block):
                    break
        if not reads:
            return Outcome(_is_reset(connection.socket), connection.num_sent, 0)
        return _outcome(connection, hold_seconds)


def _is_reset(connected_socket):
    """Returns whether the server has closed a connection that nobody read until now."""
    connected_socket.settimeout(5.0)
    try:
        while connected_socket.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def pings():
    """Returns a ping."""
    return frames.frame(frames.PING, 0, 0, b"12345678")


def empty_settings():
    """Returns settings that change nothing, which have to be acknowledged."""
    return frames.frame(frames.SETTINGS, 0, 0)


def window_updates():
    """Returns a window update of one byte for the connection."""
    return frames.frame(frames.WINDOW_UPDATE, 0, 0, struct.pack(">I", 1))


def empty_bodies():
    """Returns a body of no bytes, for the first call."""
    return frames.frame(frames.DATA, 0, 1)


def continuations():
    """Returns a piece of a header block, which never ends."""
    return frames.frame(frames.CONTINUATION, 0, 1, frames.literal(b"x-a", b"b" * 100))


def endless_headers():
    """Returns the beginning of a header block that CONTINUATION frames go on with."""
    return frames.frame(frames.HEADERS, 0, 1, frames.call_headers(STREAM))


class HalfRequests:
    """Connections that each send the beginning of a request, and then nothing.

    Args:
        beginning: what each sends; may be empty.
    """

    def __init__(self, address, count, beginning=b"GET /metrics HTTP/1.1\r\nhost: a\r\n"):
        host, _, port = address.rpartition(":")
        self.sockets = []
        self.connect_seconds = []
        for _ in range(count):
            start = time.monotonic()
            try:
                each = socket.create_connection((host, int(port)), timeout=30)
                each.sendall(beginning)
            except OSError:
                continue
            self.connect_seconds.append(time.monotonic() - start)
            self.sockets.append(each)

    def num_open(self):
        """Returns how many connections the server has not closed."""
        return sum(not _is_ended(each) for each in self.sockets)

    def close(self):
        """Closes all."""
        for each in self.sockets:
            each.close()

    def __str__(self):
        worst = max(self.connect_seconds, default=0.0)
        return f"{len(self.sockets)} connected, worst {1e3 * worst:.0f} ms"


def _is_ended(connected_socket):
    connected_socket.settimeout(0)
    try:
        return not connected_socket.recv(1 << 16)
    except BlockingIOError:
        return False
    except OSError:
        return True


class Relay:
    """A network between clients and a server, which can go: nothing is passed on, and nothing is closed."""

    def __init__(self, address):
        host, _, port = address.rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._is_gone = threading.Event()
        self._sockets = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._sockets += [client, server]
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source, target):
        with contextlib.suppress(OSError):
            while not self._is_gone.is_set() and (data := source.recv(1 << 16)):
                if self._is_gone.is_set():
                    return
                target.sendall(data)

    def go(self):
        """Stops passing anything on; every socket stays open."""
        self._is_gone.set()

    def close(self):
        """Closes every socket."""
        self._is_gone.set()
        self._listener.close()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

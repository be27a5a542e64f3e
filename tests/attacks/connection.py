"""A client's connection for bare frames: sends what it is given, reads and counts what comes."""

import collections
import contextlib
import socket
import struct
import threading

from tests.attacks import frames

_PIECE_BYTES = 1 << 16
_WAIT_SECONDS = 60.0


class Connection:
    """One connection; a thread of its own reads, and answers SETTINGS and PING as a live client does.

    Args:
        reads: whether to read at all.
    """

    def __init__(self, address, *, reads=True):
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=_WAIT_SECONDS)
        self.num_sent = 0
        self.received = collections.Counter()  # frames by kind
        self.last = {}  # the newest payload of each kind
        self.closed = threading.Event()
        self._sending = threading.Lock()  # frames of the two threads must not mix
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reads = reads

    def send(self, data):
        """Sends bytes; returns whether the server took all of them."""
        with self._sending:
            for at in range(0, len(data), _PIECE_BYTES):
                try:
                    self.socket.sendall(data[at : at + _PIECE_BYTES])
                except OSError:  # closed by the server, or it reads no more
                    return False
                self.num_sent += len(data[at : at + _PIECE_BYTES])
        return True

    def greet(self, *settings):
        """Sends the preface, with settings as pairs of number and value, and begins to read."""
        payload = b"".join(struct.pack(">HI", *each) for each in settings)
        is_sent = self.send(frames.PREFACE + frames.frame(frames.SETTINGS, 0, 0, payload))
        if self._reads:
            self._reader.start()
        return is_sent

    def is_closed(self, seconds=_WAIT_SECONDS):
        """Waits until the server has closed the connection; returns whether it did in time."""
        return self.closed.wait(seconds)

    def close(self):
        """Closes the connection at once."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        if self._reader.ident is not None:
            self._reader.join(_WAIT_SECONDS)
        self.socket.close()

    def _read(self):
        buffer = b""
        with contextlib.suppress(OSError):
            while (data := self._receive()) != b"":
                buffer = self._take(buffer + data)
        self.closed.set()

    def _receive(self):
        while True:
            with contextlib.suppress(TimeoutError):
                return self.socket.recv(_PIECE_BYTES)

    def _take(self, buffer):
        at = 0
        while len(buffer) - at >= 9:
            end = at + 9 + int.from_bytes(buffer[at : at + 3], "big")
            if len(buffer) < end:
                break
            kind, flags = buffer[at + 3], buffer[at + 4]
            self.received[kind] += 1
            self.last[kind] = buffer[at + 9 : end]
            if kind in (frames.SETTINGS, frames.PING) and not flags & frames.ACK:
                payload = buffer[at + 9 : end] if kind == frames.PING else b""
                with self._sending:
                    self.socket.sendall(frames.frame(kind, frames.ACK, 0, payload))
            at = end
        return buffer[at:]

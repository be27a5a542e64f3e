"""A connection for senders of steps, without a network."""

from bench import http2
from bench.wire import Connection


class FakeConnection(Connection):
    """A connection of which a test says what comes."""

    def __init__(self):
        self.owners, self._next_stream, self._heads, self._authority = {}, 1, {}, "a:1"
        self._reader, self._out = http2.Reader(), bytearray()

    def feed(self, data):
        """Takes what a server sends, and returns what is left to the senders."""
        self.socket = type("Socket", (), {"recv": lambda *_: data})()
        return self.receive()

"""A connection for senders of steps, without a network."""

from bench.wire import Connection


class FakeSocket:
    """A socket that receives what a test says."""

    def __init__(self):
        self.received = b""

    def recv(self, _):
        """Returns what was received."""
        return self.received


def connection():
    """Returns a connection over a fake socket."""
    return Connection(FakeSocket(), "a:1")


def receive(over, received):
    """Returns the frames that a connection leaves to the senders when it receives some bytes."""
    over.socket.received = received
    return over.receive()

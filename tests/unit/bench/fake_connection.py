"""A connection for senders of steps, without a network."""

from bench.wire import Connection


class FakeSocket:
    """A socket that receives what a test says, and records what is sent."""

    def __init__(self):
        self.received = b""
        self.sent = bytearray()

    def recv(self, _):
        """Returns what the test says."""
        return self.received

    def sendall(self, sent):
        """Records some bytes."""
        self.sent += sent


def connection():
    """Returns a connection over a fake socket."""
    return Connection(FakeSocket(), "a:1")


def receive(over, received):
    """Returns the frames that a connection passes to the senders when it receives some bytes."""
    over.socket.received = received
    return over.receive()

"""The listener of the metrics page, under clients that never end their requests, or end them late."""

import contextlib
import socket
import threading
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Gauge

from service.telemetry.page_server import MAX_CONNECTIONS, PageServer

BOUND_SECONDS = 60.0
HALF = b"GET /metrics HTTP/1.1\r\nhost: a\r\n"


class Clock:
    """A clock that the test turns."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        """Returns the time."""
        return self.now


@pytest.fixture
def clock():
    """The clock of the server."""
    return Clock()


@pytest.fixture
def registry():
    """A registry with one value."""
    registry = CollectorRegistry()
    Gauge("here", "Here.", registry=registry).set(7)
    return registry


@pytest.fixture
def server(clock, registry):
    """A server that serves on a thread."""
    server = PageServer("127.0.0.1", 0, registry, clock=clock)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(BOUND_SECONDS)


@pytest.fixture
def connect(server):
    """Connects, and sends bytes."""
    with contextlib.ExitStack() as connections:

        def one(data):
            connection = socket.create_connection(("127.0.0.1", server.server_port), BOUND_SECONDS)
            connections.enter_context(connection)
            connection.sendall(data)
            return connection

        yield one


def page(server):
    """Returns the page."""
    url = f"http://127.0.0.1:{server.server_port}/metrics"
    with urllib.request.urlopen(url, timeout=BOUND_SECONDS) as response:
        return response.read()


def ends(connection):
    """Waits until the server has closed a connection; returns what it sent before."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(1 << 16):
            found += data
    return found


def test_a_request_that_ends_amid_its_headers_is_not_answered(server, connect, registry):
    """It costs no page."""
    asked = []

    class Counting:
        """A collector that counts."""

        def describe(self):
            """Returns nothing."""
            return []

        def collect(self):
            """Counts, and returns nothing."""
            asked.append(1)
            return []

    registry.register(Counting())
    half = connect(HALF)
    half.shutdown(socket.SHUT_WR)
    assert ends(half) == b""
    assert asked == []
    whole = connect(HALF + b"\r\n")
    whole.shutdown(socket.SHUT_WR)
    assert b"here 7.0" in ends(whole)


def test_the_oldest_half_request_gives_way_and_the_page_is_served(server, connect):
    """Half requests of any number take a bounded number of threads, and keep no reader of the page out."""
    threads = threading.active_count()
    halves = [connect(HALF) for _ in range(3 * MAX_CONNECTIONS)]
    for each in halves[: 2 * MAX_CONNECTIONS - 1]:
        assert ends(each) == b""
    assert b"here 7.0" in page(server)
    assert threading.active_count() - threads <= 2 * MAX_CONNECTIONS
    newest = halves[-1]
    newest.sendall(b"\r\n")
    assert b"here 7.0" in ends(newest)


def test_a_late_request_is_ended(connect, clock):
    """Time from the connection counts, whatever trickles in meanwhile."""
    late = connect(HALF)
    late.sendall(b"x-a: b\r\n")
    clock.now = 10.0
    assert ends(late) == b""


def test_a_request_in_time_is_answered(connect, clock):
    """A request of several pieces arrives before its deadline."""
    slow = connect(HALF)
    clock.now = 9.9
    slow.sendall(b"\r\n")
    assert b"here 7.0" in ends(slow)


def test_a_request_without_an_end_is_cut(connect):
    """Headers of more bytes than the bound end the request."""
    long = connect(HALF)
    with contextlib.suppress(ConnectionError):
        long.sendall(b"x-a: " + b"b" * 1000 + b"\r\n")
        for _ in range(30):
            long.sendall(b"x-a: " + b"b" * 1000 + b"\r\n")
    ends(long)


def test_answers_that_are_made_give_no_way(server, connect, registry):
    """While every connection waits for its answer, a further one is closed."""
    made, asked = threading.Event(), threading.Semaphore(0)

    class Slow:
        """A collector that the test holds."""

        def describe(self):
            """Returns nothing."""
            return []

        def collect(self):
            """Waits, and returns nothing."""
            asked.release()
            assert made.wait(BOUND_SECONDS)
            return []

    registry.register(Slow())
    waiting = [connect(HALF + b"\r\n") for _ in range(MAX_CONNECTIONS)]
    for _ in waiting:
        assert asked.acquire(timeout=BOUND_SECONDS)
    assert ends(connect(HALF)) == b""
    made.set()
    assert all(b"here 7.0" in ends(each) for each in waiting)


def test_a_fault_in_the_page_is_logged_and_a_client_that_left_is_not(server, connect, registry, caplog):
    """The log has the fault; the next page is served."""

    class Broken:
        """A collector with a fault."""

        is_broken = True

        def describe(self):
            """Returns nothing."""
            return []

        def collect(self):
            """Raises."""
            if self.is_broken:
                raise ValueError("a fault")
            return []

    broken = Broken()
    registry.register(broken)
    assert ends(connect(HALF + b"\r\n")) == b""
    assert [record.getMessage() for record in caplog.records] == ["fault"]
    broken.is_broken = False
    assert b"here 7.0" in page(server)

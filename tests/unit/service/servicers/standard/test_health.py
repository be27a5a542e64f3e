"""Health and reflection: the standard services, without a network."""

import asyncio

import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from service.servicers.inference import servicer as inference
from service.servicers.standard import health, reflection
from service.servicers.streamcell import servicer as streamcell
from tests.fakes import Served, ending, next_message

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
CHECK, WATCH = f"/{health.SERVICE}/Check", f"/{health.SERVICE}/Watch"


@pytest.fixture
async def served():
    """A server that is not serving yet."""
    return Served()


def watch(served, service=""):
    """Opens a Watch."""
    stream = served.stream(WATCH)
    stream.receive(health_pb2.HealthCheckRequest(service=service).SerializeToString())
    stream.half_close()
    return stream


async def status(stream):
    """Returns the next status that a Watch sends."""
    raw = await next_message(stream)
    return health_pb2.HealthCheckResponse.FromString(raw).status


async def reflect(served, **question):
    """Returns reflection's answer."""
    stream = served.stream(f"/{reflection.SERVICE}/ServerReflectionInfo")
    stream.receive(reflection_pb2.ServerReflectionRequest(**question).SerializeToString())
    raw = await next_message(stream)
    stream.half_close()
    assert await ending(stream) is None
    return reflection_pb2.ServerReflectionResponse.FromString(raw)


class TestCheck:
    """Check: the status once."""

    @pytest.mark.parametrize("service", ["", streamcell.SERVICE])
    async def test_the_status_follows_what_is_set(self, served, service):
        """The server and each service are NOT_SERVING until they are set, and follow later changes."""
        request = health_pb2.HealthCheckRequest(service=service)
        assert (await served.ask(CHECK, request)).status == NOT_SERVING
        served.health.set_all(is_serving=True)
        assert (await served.ask(CHECK, request)).status == SERVING
        served.health.set_all(is_serving=False)
        assert (await served.ask(CHECK, request)).status == NOT_SERVING

    async def test_an_unknown_service_is_not_found(self, served):
        """The health protocol wants NOT_FOUND."""
        found = await served.refused(CHECK, health_pb2.HealthCheckRequest(service="nobody"))
        assert (found.code, found.reason) == (5, "SERVICE_NOT_FOUND")


class TestWatch:
    """Watch: the status now and at each change."""

    async def test_the_status_is_sent_at_once_and_at_each_change(self, served):
        """A status that is set again is no change; the client's half-close does not end the stream."""
        stream = watch(served)
        assert await status(stream) == NOT_SERVING
        served.health.set_all(is_serving=True)
        assert await status(stream) == SERVING
        served.health.set_all(is_serving=True)
        served.health.set_all(is_serving=False)
        assert await status(stream) == NOT_SERVING

    async def test_an_unknown_service_gets_a_status_and_the_stream_stays(self, served):
        """The health protocol wants SERVICE_UNKNOWN, and a stream that stays open."""
        stream = watch(served, "nobody")
        assert await status(stream) == UNKNOWN
        served.health.set_all(is_serving=True)
        waiting = asyncio.create_task(next_message(stream))
        served.router.close(stream)
        assert await waiting is None

    async def test_nothing_is_sent_before_the_request(self, served):
        """A change before the request is not sent; the request is answered with the current status."""
        stream = served.stream(WATCH)
        served.health.set_all(is_serving=True)
        stream.receive(health_pb2.HealthCheckRequest().SerializeToString())
        assert await status(stream) == SERVING
        assert not stream._outgoing

    async def test_watches_end_with_a_drain(self, served):
        """The stream gets NOT_SERVING, then ends; a closed watch gets nothing, and none is left."""
        stream, gone = watch(served), watch(served)
        served.health.set_all(is_serving=True)
        served.router.close(gone)
        served.health.set_all(is_serving=False)
        served.router.drain()
        assert [await status(stream) for _ in range(3)] == [NOT_SERVING, SERVING, NOT_SERVING]
        assert (await ending(stream)).reason == "DRAINING"
        assert not served.health._watches


class TestDrain:
    """A server that stops."""

    async def test_a_draining_server_answers_not_serving(self, served):
        """Check is answered; a Watch gets NOT_SERVING and ends, even if its request has not come."""
        served.router.drain()
        assert (await served.ask(CHECK, health_pb2.HealthCheckRequest())).status == NOT_SERVING
        stream = served.stream(WATCH)
        assert await status(stream) == NOT_SERVING
        assert (await ending(stream)).reason == "DRAINING"
        assert not served.health._watches


class TestReflection:
    """The API from the server."""

    async def test_every_service_is_listed(self, served):
        """The list has all of the server's services, reflection too."""
        found = await reflect(served, list_services="")
        names = {service.name for service in found.list_services_response.service}
        assert names == {streamcell.SERVICE, inference.SERVICE, health.SERVICE, reflection.SERVICE}

    async def test_the_api_comes_with_every_method(self, served):
        """A client without the proto file gets the file's descriptor."""
        found = await reflect(served, file_containing_symbol=streamcell.SERVICE)
        files = [
            descriptor_pb2.FileDescriptorProto.FromString(raw)
            for raw in found.file_descriptor_response.file_descriptor_proto
        ]
        services = {service.name: service for file in files for service in file.service}
        assert {"Step", "Stream"} <= {method.name for method in services["StreamcellService"].method}

    async def test_an_unknown_symbol_is_answered(self, served):
        """The answer has NOT_FOUND, and the stream goes on."""
        found = await reflect(served, file_containing_symbol="no.such.Service")
        assert found.error_response.error_code == 5

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
    """Returns a Watch's next status."""
    raw = await asyncio.wait_for(next_message(stream), 10)
    return health_pb2.HealthCheckResponse.FromString(raw).status


@pytest.mark.parametrize("service", ["", streamcell.SERVICE])
async def test_check_tells_each_status(served, service):
    """The server as a whole and each service are down until they are set, and follow it both ways."""
    request = health_pb2.HealthCheckRequest(service=service)
    assert (await served.ask(CHECK, request)).status == NOT_SERVING
    served.health.set_all(is_serving=True)
    assert (await served.ask(CHECK, request)).status == SERVING
    served.health.set_all(is_serving=False)
    assert (await served.ask(CHECK, request)).status == NOT_SERVING


async def test_check_of_an_unknown_service_is_not_found(served):
    """As the health protocol wants it."""
    found = await served.refused(CHECK, health_pb2.HealthCheckRequest(service="nobody"))
    assert (found.code, found.reason) == (5, "SERVICE_NOT_FOUND")


async def test_watch_tells_the_status_now_and_every_change(served):
    """A status set again as it was is no change; the client's half-close is no end."""
    stream = watch(served)
    assert await status(stream) == NOT_SERVING
    served.health.set_all(is_serving=True)
    assert await status(stream) == SERVING
    served.health.set_all(is_serving=True)
    served.health.set_all(is_serving=False)
    assert await status(stream) == NOT_SERVING


async def test_watch_of_an_unknown_service_says_so_and_stays(served):
    """As the health protocol wants it."""
    stream = watch(served, "nobody")
    assert await status(stream) == UNKNOWN
    served.health.set_all(is_serving=True)
    waiting = asyncio.create_task(next_message(stream))
    served.router.close(stream)
    assert await asyncio.wait_for(waiting, 10) is None


async def test_a_watch_that_was_not_asked_yet_is_told_nothing(served):
    """A change before the request is no answer to it."""
    stream = served.stream(WATCH)
    served.health.set_all(is_serving=True)
    stream.receive(health_pb2.HealthCheckRequest().SerializeToString())
    assert await status(stream) == SERVING
    assert not stream._outgoing


async def test_watches_end_with_the_server_and_are_forgotten(served):
    """A drain tells NOT_SERVING first and then ends the Watch; closed ones are told nothing."""
    stream, gone = watch(served), watch(served)
    served.health.set_all(is_serving=True)
    served.router.close(gone)
    served.health.set_all(is_serving=False)
    served.router.drain()
    assert [await status(stream) for _ in range(3)] == [NOT_SERVING, SERVING, NOT_SERVING]
    assert (await ending(stream)).reason == "DRAINING"
    assert not served.health._watches


async def test_a_drain_is_told_to_those_who_ask(served):
    """Check is answered; a Watch hears NOT_SERVING and ends, though it has not said yet of what."""
    served.router.drain()
    assert (await served.ask(CHECK, health_pb2.HealthCheckRequest())).status == NOT_SERVING
    stream = served.stream(WATCH)
    assert await status(stream) == NOT_SERVING
    assert (await ending(stream)).reason == "DRAINING"
    assert not served.health._watches


async def reflect(served, **question):
    """Returns reflection's answer."""
    stream = served.stream(f"/{reflection.SERVICE}/ServerReflectionInfo")
    stream.receive(reflection_pb2.ServerReflectionRequest(**question).SerializeToString())
    raw = await asyncio.wait_for(next_message(stream), 10)
    stream.half_close()
    assert await ending(stream) is None
    return reflection_pb2.ServerReflectionResponse.FromString(raw)


async def test_reflection_lists_every_service(served):
    """All that the server has, reflection itself too."""
    found = await reflect(served, list_services="")
    names = {service.name for service in found.list_services_response.service}
    assert names == {streamcell.SERVICE, inference.SERVICE, health.SERVICE, reflection.SERVICE}


async def test_reflection_knows_the_api(served):
    """A client without the proto file gets it, with every method."""
    found = await reflect(served, file_containing_symbol=streamcell.SERVICE)
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(raw)
        for raw in found.file_descriptor_response.file_descriptor_proto
    ]
    services = {service.name: service for file in files for service in file.service}
    assert {"Step", "Stream"} <= {method.name for method in services["StreamcellService"].method}


async def test_reflection_of_an_unknown_symbol_is_an_answer(served):
    """The stream goes on; the answer says NOT_FOUND."""
    found = await reflect(served, file_containing_symbol="no.such.Service")
    assert found.error_response.error_code == 5

"""What gRPC repeats by itself: calls that change nothing, once, and not where the server says no."""

import json

import pytest
import streamcell
from fake_streamcell import FakeServer, broken, draining, once, store_unavailable
from streamcell import Limits, RetryPolicy, Timeout
from streamcell.channel import channel_options
from streamcell.v1 import streamcell_pb2 as pb


def config(policy):
    """Returns the service config's one entry under a retry policy, None where there is no config."""
    options = dict(channel_options(timeout=Timeout(), limits=Limits(), retry=policy, tls=None))
    if "grpc.service_config" not in options:
        return None
    (entry,) = json.loads(options["grpc.service_config"])["methodConfig"]
    return entry


def test_the_config_names_what_changes_nothing():
    """Methods that there are, and none that moves, opens or ends a session."""
    names = config(RetryPolicy())["name"]
    service = pb.DESCRIPTOR.services_by_name["StreamcellService"]
    assert {name["service"] for name in names} == {service.full_name}
    methods = {name["method"] for name in names}
    assert methods <= set(service.methods_by_name)
    assert methods == {"ListModels", "GetSession", "Forecast", "SnapshotSession"}


@pytest.mark.parametrize(("seconds", "backoff"), [(0.2, "0.200s"), (0.001, "0.020s")])
def test_grpc_waits_as_the_policy_has_it(seconds, backoff):
    """But not so shortly that it hangs."""
    policy = config(RetryPolicy(initial_delay_seconds=seconds))["retryPolicy"]
    assert policy["initialBackoff"] == policy["maxBackoff"] == backoff
    assert policy["retryableStatusCodes"] == ["UNAVAILABLE"]


async def call(session, method):
    """Makes a call that changes nothing."""
    if method == "Forecast":
        await session.forecast(3)
    else:
        await session.refresh()


@pytest.mark.parametrize("method", ["GetSession", "Forecast"])
@pytest.mark.parametrize("fault", [broken, lambda: store_unavailable(0.05)])
async def test_a_call_that_changes_nothing_is_repeated_by_grpc(client, server, fake_time, method, fault):
    """UNAVAILABLE once, with or without a delay of the server's: the library does not hear of it."""
    async with client.session() as session:
        server.before_call[method] = once(fault())
        await call(session, method)
    assert len(server.named(method)) == 2
    assert not fake_time.sleeps


async def test_a_server_that_drains_is_not_asked_again_by_grpc(connect, server):
    """Its pushback says so; the library then asks the next one."""
    second = FakeServer()
    await second.start()
    server.drain()
    async with connect(target=f"{server.target},{second.target}") as client:
        assert len(await client.models()) == 1
    assert len(server.named("ListModels")) == len(second.named("ListModels")) == 1
    await second.stop()


async def test_a_call_that_changes_something_is_not_repeated_by_grpc(client, server, fake_time):
    """The library repeats it, as it knows what that means."""
    async with client.session() as session:
        server.before_call["Step"] = once(broken())
        await session.step([1.0])
    assert len(server.named("Step")) == 2
    assert len(fake_time.sleeps) == 1


async def test_both_repetitions_together_are_bounded(connect, server):
    """Twice the policy's attempts at most; an end by DRAINING is one call an attempt."""
    for fault, num_calls in ((broken, 6), (draining, 3)):
        server.calls.clear()
        server.before_call["ListModels"] = once(*(fault() for _ in range(20)))
        policy = RetryPolicy(max_attempts=3, initial_delay_seconds=0.001)
        async with connect(retry=policy) as client:
            with pytest.raises(streamcell.Unavailable):
                await client.models()
        assert len(server.named("ListModels")) == num_calls


async def test_a_policy_of_one_attempt_repeats_nothing(connect, server):
    """Neither gRPC nor the library does."""
    assert config(RetryPolicy(max_attempts=1)) is None
    server.before_call["ListModels"] = once(broken())
    async with connect(retry=RetryPolicy(max_attempts=1)) as client:
        with pytest.raises(streamcell.ConnectionLost):
            await client.models()
    assert len(server.named("ListModels")) == 1

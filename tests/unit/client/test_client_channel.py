"""The channel: its options, its list of targets, and what gRPC itself repeats."""

import json

import pytest
import streamcell
from fake_streamcell import FakeServer, broken, draining, once, store_unavailable
from streamcell import InvalidArgument, Limits, RetryPolicy, Timeout, Tls
from streamcell.channel import channel_options, split_targets
from streamcell.v1 import streamcell_pb2 as pb


def config(policy):
    """Returns the service config's one entry under a retry policy, None where there is no config."""
    options = dict(channel_options(timeout=Timeout(), limits=Limits(), retry=policy, tls=None))
    if "grpc.service_config" not in options:
        return None
    (entry,) = json.loads(options["grpc.service_config"])["methodConfig"]
    return entry


async def call(session, method):
    """Makes a call that changes nothing."""
    if method == "Forecast":
        await session.forecast(3)
    else:
        await session.refresh()


class TestOptions:
    """The settings become gRPC's options."""

    def test_the_channel_follows_the_settings(self):
        """Pings, message sizes, reconnection and the server's name come from the settings."""
        options = dict(channel_options(
            timeout=Timeout(connect_seconds=2.0, keepalive_seconds=20.0),
            limits=Limits(message_bytes=1 << 16),
            retry=RetryPolicy(initial_delay_seconds=0.2, max_delay_seconds=3.0),
            tls=Tls(server_name="inside"),
        ))  # fmt: skip
        assert options["grpc.keepalive_time_ms"] == 20_000
        assert options["grpc.keepalive_timeout_ms"] == 2_000
        assert options["grpc.max_send_message_length"] == 1 << 16
        assert options["grpc.max_receive_message_length"] == 1 << 16
        assert options["grpc.initial_reconnect_backoff_ms"] == 200
        assert options["grpc.max_reconnect_backoff_ms"] == 3_000
        assert options["grpc.dns_min_time_between_resolutions_ms"] == 3_000
        assert options["grpc.ssl_target_name_override"] == "inside"

    def test_the_config_names_what_changes_nothing(self):
        """It names methods of the API, and none that changes, opens or ends a session."""
        names = config(RetryPolicy())["name"]
        service = pb.DESCRIPTOR.services_by_name["StreamcellService"]
        assert {name["service"] for name in names} == {service.full_name}
        methods = {name["method"] for name in names}
        assert methods <= set(service.methods_by_name)
        assert methods == {"ListModels", "GetSession", "Forecast", "SnapshotSession"}

    @pytest.mark.parametrize(("seconds", "backoff"), [(0.2, "0.200s"), (0.001, "0.020s")])
    def test_grpc_waits_as_the_policy_has_it(self, seconds, backoff):
        """The policy's first delay is the backoff, but at least 20 ms, below which gRPC may hang."""
        policy = config(RetryPolicy(initial_delay_seconds=seconds))["retryPolicy"]
        assert policy["initialBackoff"] == policy["maxBackoff"] == backoff
        assert policy["retryableStatusCodes"] == ["UNAVAILABLE"]


class TestTargets:
    """A list of targets is split at its commas."""

    @pytest.mark.parametrize(
        ("target", "targets"),
        [
            ("a:1", ("a:1",)),
            ("a:1,b:2, c:3", ("a:1", "b:2", "c:3")),
            ("dns:///a:1,dns:///b:2", ("dns:///a:1", "dns:///b:2")),
            ("ipv4:10.0.0.1:1,10.0.0.2:1", ("ipv4:10.0.0.1:1,10.0.0.2:1",)),
            ("ipv6:[::1]:1,[::2]:1", ("ipv6:[::1]:1,[::2]:1",)),
        ],
    )
    def test_targets_are_split_at_commas(self, target, targets):
        """A list names one server after another; gRPC's own lists of addresses stay whole."""
        assert split_targets(target) == targets

    @pytest.mark.parametrize("target", ["", "a:1,", ",a:1", "a:1,,b:2"])
    def test_an_empty_target_is_refused(self, target):
        """A list with nothing between its commas names no server."""
        with pytest.raises(InvalidArgument, match="target"):
            split_targets(target)


class TestRepetition:
    """gRPC repeats a call that changes nothing, once, unless the server forbids it."""

    @pytest.mark.parametrize("method", ["GetSession", "Forecast"])
    @pytest.mark.parametrize("fault", [broken, lambda: store_unavailable(0.05)])
    async def test_a_call_that_changes_nothing_is_repeated_by_grpc(
        self, client, server, fake_time, method, fault
    ):
        """UNAVAILABLE once, with or without a delay of the server's: the library does not hear of it."""
        async with client.session() as session:
            server.before_call[method] = once(fault())
            await call(session, method)
        assert len(server.named(method)) == 2
        assert not fake_time.sleeps

    async def test_a_server_that_drains_is_not_asked_again_by_grpc(self, connect, server):
        """The server's pushback forbids it; the library then asks the next server."""
        second = FakeServer()
        await second.start()
        server.drain()
        async with connect(target=f"{server.target},{second.target}") as client:
            assert len(await client.models()) == 1
        assert len(server.named("ListModels")) == len(second.named("ListModels")) == 1
        await second.stop()

    async def test_a_call_that_changes_something_is_not_repeated_by_grpc(self, client, server, fake_time):
        """The library repeats it, as it knows what that means."""
        async with client.session() as session:
            server.before_call["Step"] = once(broken())
            await session.step([1.0])
        assert len(server.named("Step")) == 2
        assert len(fake_time.sleeps) == 1

    async def test_both_repetitions_together_are_bounded(self, connect, server):
        """Twice the policy's attempts at most; an end by DRAINING is one call an attempt."""
        for fault, num_calls in ((broken, 6), (draining, 3)):
            server.calls.clear()
            server.before_call["ListModels"] = once(*(fault() for _ in range(20)))
            policy = RetryPolicy(max_attempts=3, initial_delay_seconds=0.001)
            async with connect(retry=policy) as client:
                with pytest.raises(streamcell.Unavailable):
                    await client.models()
            assert len(server.named("ListModels")) == num_calls

    async def test_a_policy_of_one_attempt_repeats_nothing(self, connect, server):
        """Neither gRPC nor the library repeats a call."""
        assert config(RetryPolicy(max_attempts=1)) is None
        server.before_call["ListModels"] = once(broken())
        async with connect(retry=RetryPolicy(max_attempts=1)) as client:
            with pytest.raises(streamcell.ConnectionLost):
                await client.models()
        assert len(server.named("ListModels")) == 1

"""Settings check themselves; the channel is made of them."""

import dataclasses
import math

import pytest
from streamcell import InvalidArgument, Limits, RetryPolicy, Timeout, Tls
from streamcell.channel import channel_options, split_targets


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (Timeout, "call_seconds", 0),
        (Timeout, "connect_seconds", math.inf),
        (Timeout, "keepalive_seconds", math.nan),
        (Limits, "window_steps", -1),
        (Limits, "message_steps", 0),
        (RetryPolicy, "max_attempts", 0),
        (RetryPolicy, "multiplier", 0.5),
    ],
)
def test_a_setting_out_of_range_is_named(kind, field, value):
    """The message names the class and the field."""
    with pytest.raises(ValueError, match=f"{kind.__name__}: {field} must be"):
        kind(**{field: value})


@pytest.mark.parametrize(("kind", "field", "value"), [
    (Limits, "window_steps", 1.5), (Timeout, "call_seconds", "1"), (RetryPolicy, "max_attempts", True),
])  # fmt: skip
def test_a_setting_of_another_type_is_named(kind, field, value):
    """Counts are whole numbers; text is no number."""
    with pytest.raises(TypeError, match=f"{kind.__name__}: {field}"):
        kind(**{field: value})


def test_settings_are_frozen():
    """A setting cannot change under the client that uses it."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Timeout().call_seconds = 1.0


def test_a_key_goes_with_its_chain():
    """Half an identity is refused; the key is not shown."""
    with pytest.raises(ValueError, match="go together"):
        Tls(private_key=b"secret")
    assert "secret" not in repr(Tls(private_key=b"secret", certificate_chain=b"chain"))


def test_a_server_s_limits_bound_only_what_it_sees():
    """The window and the messages are the lesser of both; the tail is the caller's own."""
    own = Limits(window_steps=8, tail_steps=100, message_steps=50)
    assert own.within(4, 1000, 0) == dataclasses.replace(own, window_steps=4)


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
def test_targets_are_split_at_commas(target, targets):
    """A list names one server after another; gRPC's own lists of addresses stay whole."""
    assert split_targets(target) == targets


@pytest.mark.parametrize("target", ["", "a:1,", ",a:1", "a:1,,b:2"])
def test_an_empty_target_is_refused(target):
    """A list with nothing between its commas names no server."""
    with pytest.raises(InvalidArgument, match="target"):
        split_targets(target)


def test_the_channel_follows_the_settings():
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

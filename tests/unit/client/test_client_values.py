"""Settings check themselves, and are bounded by a server's limits."""

import dataclasses
import math

import pytest
from streamcell import Limits, RetryPolicy, Timeout, Tls


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

"""The channel to one target: its options, and how a list of targets is read.

gRPC repeats by itself, once, a call that changes nothing and meets UNAVAILABLE, unless the server says by
grpc-retry-pushback-ms that it is not to: one that drains is left rather than asked again. All else is
repeated by whoever makes the call, who knows what a repetition would mean. Both together ask at most twice
for each attempt of the retry policy; `call_seconds` bounds the two. Knows nothing of calls and sessions.
"""

import json
from typing import Any

import grpc

from streamcell.errors import invalid
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.values import Limits, RetryPolicy, Timeout, Tls

_SERVICE = pb.DESCRIPTOR.services_by_name["StreamcellService"].full_name
_READING = ("ListModels", "GetSession", "Forecast", "SnapshotSession")  # the methods that change nothing
_LEAST_BACKOFF_MILLISECONDS = 20  # grpcio may hang where it is about a millisecond
_OWN_LISTS = ("ipv4:", "ipv6:")  # gRPC's own lists of addresses, which its channel goes through itself


def split_targets(target: str) -> tuple[str, ...]:
    """Returns the targets that a comma-separated list names, in order.

    Raises:
        InvalidArgument: one of them is empty.
    """
    if target.startswith(_OWN_LISTS):
        return (target,)
    targets = tuple(part.strip() for part in target.split(","))
    if not all(targets):
        raise invalid("target", f"{target!r} names a server by an empty text")
    return targets


def open_channel(target: str, tls: Tls | None, options: list[tuple[str, Any]]) -> grpc.aio.Channel:
    """Returns a channel, which connects when it is first used."""
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    credentials = grpc.ssl_channel_credentials(tls.root_certificates, tls.private_key, tls.certificate_chain)
    return grpc.aio.secure_channel(target, credentials, options=options)


def channel_options(
    timeout: Timeout, limits: Limits, retry: RetryPolicy, tls: Tls | None
) -> list[tuple[str, Any]]:
    """Returns the options of a channel."""
    most_milliseconds = _milliseconds(retry.max_delay_seconds)
    options: list[tuple[str, Any]] = [
        # Only while a call or stream is open: an idle client costs the network nothing.
        ("grpc.keepalive_time_ms", _milliseconds(timeout.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", _milliseconds(timeout.connect_seconds)),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_send_message_length", limits.message_bytes),
        ("grpc.max_receive_message_length", limits.message_bytes),
        # gRPC would otherwise wait up to two minutes before it looks for a restarted server again, and
        # half a minute before it asks for a name's addresses again.
        ("grpc.initial_reconnect_backoff_ms", _milliseconds(retry.initial_delay_seconds)),
        ("grpc.max_reconnect_backoff_ms", most_milliseconds),
        ("grpc.min_reconnect_backoff_ms", _milliseconds(timeout.connect_seconds)),
        ("grpc.dns_min_time_between_resolutions_ms", most_milliseconds),
        # Channels of one process share connections otherwise, and a fresh one would lead to the server
        # that was just left.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 1),
    ]
    if retry.max_attempts > 1:
        options.append(("grpc.service_config", json.dumps(_service_config(retry))))
    if tls is not None and tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def _service_config(retry: RetryPolicy) -> dict[str, Any]:
    milliseconds = max(_LEAST_BACKOFF_MILLISECONDS, _milliseconds(retry.initial_delay_seconds))
    backoff = f"{milliseconds / 1000:.3f}s"
    policy = {
        "maxAttempts": 2,
        "initialBackoff": backoff,
        "maxBackoff": backoff,
        "backoffMultiplier": 1,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    names = [{"service": _SERVICE, "method": method} for method in _READING]
    return {"methodConfig": [{"name": names, "retryPolicy": policy}]}


def _milliseconds(seconds: float) -> int:
    return max(1, min(round(seconds * 1000), (1 << 31) - 1))

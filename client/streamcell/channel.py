"""Opens the channel to one target, with its options, and splits a list of targets.

gRPC itself repeats a call once if the call changes nothing and meets UNAVAILABLE. A server that drains
forbids that by grpc-retry-pushback-ms, because the client should leave it. Every other repetition is the
caller's, since only the caller knows what repeating the call would mean. Both together make at most two
calls for each attempt of the retry policy; `call_seconds` bounds the two. Knows nothing of sessions.
"""

import json
from typing import Any

import grpc

from streamcell.errors import invalid
from streamcell.proxies import direct_options
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.values import Limits, RetryPolicy, Timeout, Tls

_SERVICE = pb.DESCRIPTOR.services_by_name["StreamcellService"].full_name
_READING = ("ListModels", "GetSession", "Forecast", "SnapshotSession")  # the methods that change nothing
_MIN_BACKOFF_MILLISECONDS = 20  # grpcio may hang with a backoff of about a millisecond
_GRPC_LISTS = ("ipv4:", "ipv6:")  # lists of addresses that a gRPC channel itself goes through


def split_targets(target: str) -> tuple[str, ...]:
    """Returns the targets that a comma-separated list names, in order.

    Raises:
        InvalidArgument: a target is empty.
    """
    if target.startswith(_GRPC_LISTS):
        return (target,)
    targets = tuple(part.strip() for part in target.split(","))
    if not all(targets):
        raise invalid("target", f"{target!r} names a server by an empty text")
    return targets


def open_channel(target: str, tls: Tls | None, options: list[tuple[str, Any]]) -> grpc.aio.Channel:
    """Returns a channel that connects when it is first used; to this machine without a proxy."""
    options = [*options, *direct_options(target)]
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    credentials = grpc.ssl_channel_credentials(tls.root_certificates, tls.private_key, tls.certificate_chain)
    return grpc.aio.secure_channel(target, credentials, options=options)


def channel_options(
    *, timeout: Timeout, limits: Limits, retry: RetryPolicy, tls: Tls | None
) -> list[tuple[str, Any]]:
    """Returns the gRPC options of a channel with these settings."""
    max_milliseconds = _milliseconds(retry.max_delay_seconds)
    options: list[tuple[str, Any]] = [
        # Pings go out only while a call or stream is open: an idle client costs the network nothing.
        ("grpc.keepalive_time_ms", _milliseconds(timeout.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", _milliseconds(timeout.connect_seconds)),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_send_message_length", limits.message_bytes),
        ("grpc.max_receive_message_length", limits.message_bytes),
        # By default gRPC waits up to two minutes before it looks for a restarted server again, and half a
        # minute before it asks for a name's addresses again.
        ("grpc.initial_reconnect_backoff_ms", _milliseconds(retry.initial_delay_seconds)),
        ("grpc.max_reconnect_backoff_ms", max_milliseconds),
        ("grpc.min_reconnect_backoff_ms", _milliseconds(timeout.connect_seconds)),
        ("grpc.dns_min_time_between_resolutions_ms", max_milliseconds),
        # By default the channels of one process share connections, and a new channel would lead to the
        # server that the client has just left.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 1),
    ]
    if retry.max_attempts > 1:
        options.append(("grpc.service_config", json.dumps(_service_config(retry))))
    if tls is not None and tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def _service_config(retry: RetryPolicy) -> dict[str, Any]:
    milliseconds = max(_MIN_BACKOFF_MILLISECONDS, _milliseconds(retry.initial_delay_seconds))
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

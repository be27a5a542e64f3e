"""The channel to a server: its options, its stub, and calls whose failures are this library's errors.

Read-only calls are repeated by gRPC itself (the service config); every other retry is decided by whoever
knows what a repetition would mean. Knows nothing of sessions.
"""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import grpc

from streamcell import errors
from streamcell.retry import Backoff, Sources
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as pb_grpc
from streamcell.values import Limits, RetryPolicy, Timeout, Tls

Request = TypeVar("Request")
Response = TypeVar("Response")
Metadata = tuple[tuple[str, str], ...]

# What reads and changes nothing: safe to repeat without asking where a session stands.
_READ_ONLY = ("ListModels", "GetSession", "Forecast")
_MIN_BACKOFF_SECONDS = 0.02  # grpcio 1.85 can lose a call whose backoff is about a millisecond


class Connection:
    """A channel to one target, and what each call on it shares."""

    def __init__(
        self,
        target: str,
        *,
        tls: Tls | None,
        metadata: Mapping[str, str],
        timeout: Timeout,
        limits: Limits,
        retry: RetryPolicy,
        sources: Sources,
    ) -> None:
        self.target = target
        self.timeout = timeout
        self.limits = limits
        self._retry = retry
        self._sources = sources
        self._metadata: Metadata = tuple(metadata.items())
        options = channel_options(timeout, limits, retry, tls)
        self._channel = _open_channel(target, tls, options)
        self._is_closed = False
        self.stub = pb_grpc.StreamcellServiceStub(self._channel)

    async def aclose(self) -> None:
        """Closes the channel; calls in flight end as cancelled."""
        self._is_closed = True
        await self._channel.close(None)

    def backoff(self) -> Backoff:
        """Returns a pace for the attempts of one operation."""
        return Backoff(self._retry, self._sources)

    async def unary(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        *,
        timeout_seconds: float | None = None,
        wait_for_ready: bool | None = None,
    ) -> Response:
        """Makes one call.

        Raises:
            StreamcellError: it failed.
        """
        self._check_open()
        seconds = self.timeout.call_seconds if timeout_seconds is None else timeout_seconds
        try:
            return await method(
                request, timeout=seconds, metadata=self._metadata, wait_for_ready=wait_for_ready
            )
        except grpc.aio.AioRpcError as error:
            raise errors.from_rpc_error(error) from error

    def stream(self) -> "grpc.aio.StreamStreamCall[pb.StreamRequest, pb.StreamResponse]":
        """Opens a bidirectional stream."""
        self._check_open()
        return self.stub.Stream(None, metadata=self._metadata)

    def _check_open(self) -> None:
        if self._is_closed:
            raise errors.NotOpen("the client is closed: sessions live inside its `async with`")


def channel_options(
    timeout: Timeout, limits: Limits, retry: RetryPolicy, tls: Tls | None
) -> list[tuple[str, Any]]:
    """Returns the options of a channel."""
    options: list[tuple[str, Any]] = [
        # Only while a call or stream is open: an idle client costs the network nothing.
        ("grpc.keepalive_time_ms", _milliseconds(timeout.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", _milliseconds(timeout.connect_seconds)),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_send_message_length", limits.message_bytes),
        ("grpc.max_receive_message_length", limits.message_bytes),
        # gRPC would otherwise wait up to two minutes before it looks for a restarted server again.
        ("grpc.initial_reconnect_backoff_ms", _milliseconds(retry.initial_delay_seconds)),
        ("grpc.max_reconnect_backoff_ms", _milliseconds(retry.max_delay_seconds)),
        ("grpc.min_reconnect_backoff_ms", _milliseconds(timeout.connect_seconds)),
        ("grpc.service_config", service_config(retry)),
    ]
    if tls is not None and tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def service_config(retry: RetryPolicy) -> str:
    """Returns the service config (JSON) under which gRPC itself repeats the read-only calls."""
    method: dict[str, Any] = {
        "name": [{"service": "streamcell.v1.StreamcellService", "method": name} for name in _READ_ONLY],
    }
    if retry.max_attempts > 1:
        method["retryPolicy"] = {
            "maxAttempts": min(retry.max_attempts, 5),  # gRPC's own bound
            "initialBackoff": f"{max(retry.initial_delay_seconds, _MIN_BACKOFF_SECONDS):.9f}s",
            "maxBackoff": f"{max(retry.max_delay_seconds, _MIN_BACKOFF_SECONDS):.9f}s",
            "backoffMultiplier": retry.multiplier,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
    return json.dumps({"methodConfig": [method]})


def _open_channel(target: str, tls: Tls | None, options: list[tuple[str, Any]]) -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    credentials = grpc.ssl_channel_credentials(tls.root_certificates, tls.private_key, tls.certificate_chain)
    return grpc.aio.secure_channel(target, credentials, options=options)


def _milliseconds(seconds: float) -> int:
    return max(1, min(round(seconds * 1000), (1 << 31) - 1))

"""What Envoy lets clients take, as a part of its configuration: connections, streams, headers, silence.

Owns every number of Envoy's that bounds a client. Which of them hold is tested by attacks
(tests/e2e/test_attacks.py). Does not know the application, which bounds calls and their messages.
"""

import math
from typing import Any

from service.config import Config

_TYPES = "type.googleapis.com/envoy.extensions"
_STREAM_WINDOW_BYTES = 256 << 10  # the most that a client may send ahead on one stream
_CONNECTION_WINDOW_BYTES = 16 << 20
_MAX_METADATA_KB = 8192  # the most that Envoy takes
_HEADER_BYTES = 33  # the fewest that a header counts: a name of one byte, and HTTP/2's 32
# From a request's first byte to the end of its headers, and for a connection's greeting.
_HEADERS_SECONDS = 10.0
# A gRPC client may send a window update for every message that it reads, and one frame of 16 KiB holds up to
# 3,277 messages. Envoy would take the updates for an attack and close the connection.
_WINDOW_UPDATES = 4096


def apply(configuration: dict[str, Any], settings: Config) -> None:
    """Adds the bounds to Envoy's configuration."""
    # Twice, as Envoy closes a connection once half of so many calls were reset early.
    resets = {"overload.premature_reset_total_stream_count": 2 * settings.max_early_resets}
    configuration["layered_runtime"] = {"layers": [{"name": "bounds", "static_layer": resets}]}
    configuration["overload_manager"] = {"resource_monitors": [_connections(settings)]}
    configuration["admin"]["ignore_global_conn_limit"] = True
    for listener in configuration["static_resources"]["listeners"]:
        _bound_listener(listener)
        for chain in listener["filter_chains"]:
            _bound_http(chain["filters"][-1]["typed_config"], settings)


def _connections(settings: Config) -> dict[str, Any]:
    return {
        "name": "envoy.resource_monitors.global_downstream_max_connections",
        "typed_config": {
            "@type": f"{_TYPES}.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
            "max_active_downstream_connections": settings.max_connections,
        },
    }


def _bound_listener(listener: dict[str, Any]) -> None:
    """Bounds the time until a connection says what it is: by a TLS handshake, or by its first bytes."""
    is_plain = False
    for chain in listener["filter_chains"]:
        chain["transport_socket_connect_timeout"] = f"{_HEADERS_SECONDS:g}s"
        is_plain |= "transport_socket" not in chain
    if is_plain:  # the inspector waits for the first bytes
        inspector = {"@type": f"{_TYPES}.filters.listener.http_inspector.v3.HttpInspector"}
        listener["listener_filters"] = [
            {"name": "envoy.filters.listener.http_inspector", "typed_config": inspector}
        ]
        listener["listener_filters_timeout"] = f"{_HEADERS_SECONDS:g}s"


def _bound_http(connections: dict[str, Any], settings: Config) -> None:
    """Bounds HTTP connections, and lets streams last that are silent."""
    connections["stream_idle_timeout"] = "0s"
    connections["request_headers_timeout"] = f"{_HEADERS_SECONDS:g}s"
    # Headers of twice the bound are read, so that the refusal has a status.
    max_header_bytes = 2 * settings.max_metadata_bytes
    connections["max_request_headers_kb"] = min(math.ceil(max_header_bytes / 1024), _MAX_METADATA_KB)
    connections["common_http_protocol_options"] = {"max_headers_count": max_header_bytes // _HEADER_BYTES}
    connections["http2_protocol_options"] = {
        "max_concurrent_streams": settings.max_connection_streams,
        "max_inbound_window_update_frames_per_data_frame_sent": _WINDOW_UPDATES,
        # The other codec closes a connection after 1,000 resets plus 33 a second, which no setting changes.
        "use_oghttp2_codec": True,
        "initial_stream_window_size": _STREAM_WINDOW_BYTES,
        "initial_connection_window_size": _CONNECTION_WINDOW_BYTES,
        "connection_keepalive": {
            "interval": f"{settings.keepalive_seconds:g}s",
            "timeout": f"{settings.keepalive_seconds / 2:g}s",
        },
    }

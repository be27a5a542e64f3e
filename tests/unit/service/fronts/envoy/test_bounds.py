"""What Envoy is told to bound, from the settings."""

import pathlib

from service.fronts.envoy import launch
from tests.certificates import Authority
from tests.integration.conftest import settings


def configured(socket="admin.sock", **changes):
    """Returns Envoy's configuration, its listener, and the settings of its HTTP connections."""
    given = settings(front="envoy", **changes)
    found = launch.configuration(given, "a:b", pathlib.Path(socket))
    (listener,) = found["static_resources"]["listeners"]
    chain = listener["filter_chains"][0]
    return found, listener, chain["filters"][-1]["typed_config"]


def names_of(filters):
    """Returns the last words of the names of listener filters."""
    return [each["name"].rpartition(".")[2] for each in filters]


def test_each_setting_reaches_envoy():
    """Early resets are half of the calls that Envoy counts; a ping may be unanswered for half as long."""
    found, _, http = configured(
        max_connections=7, max_connection_streams=8, max_early_resets=9, keepalive_seconds=3.0
    )
    (monitor,) = found["overload_manager"]["resource_monitors"]
    assert monitor["typed_config"]["max_active_downstream_connections"] == 7
    (layer,) = found["layered_runtime"]["layers"]
    assert layer["static_layer"] == {"overload.premature_reset_total_stream_count": 18}
    http2 = http["http2_protocol_options"]
    assert http2["max_concurrent_streams"] == 8
    assert http2["connection_keepalive"] == {"interval": "3s", "timeout": "1.5s"}


def test_headers_of_twice_the_bound_are_read():
    """So a refusal has a status; their number is bounded by what each counts at least."""
    _, _, http = configured(max_metadata_bytes=33 << 10)
    assert http["max_request_headers_kb"] == 66
    assert http["common_http_protocol_options"] == {"max_headers_count": 2 << 10}
    assert configured(max_metadata_bytes=1 << 30)[2]["max_request_headers_kb"] == 8192


def test_the_administration_is_open_however_many_connections_there_are():
    """The supervisor asks it when the server drains."""
    found, _, _ = configured()
    assert found["admin"]["ignore_global_conn_limit"]


def test_a_connection_must_say_soon_what_it_is(tmp_path):
    """By a handshake with TLS, otherwise by its first bytes; requests by their headers."""
    _, listener, http = configured()
    assert listener["listener_filters_timeout"] == "10s"
    assert names_of(listener["listener_filters"]) == ["http_inspector", "tls_inspector"]
    assert http["request_headers_timeout"] == "10s"
    cert, key = Authority().server().save(tmp_path, "server")
    _, listener, _ = configured(str(tmp_path / "admin.sock"), tls_cert=cert, tls_key=key)
    assert names_of(listener["listener_filters"]) == ["tls_inspector"]
    assert listener["filter_chains"][0]["transport_socket_connect_timeout"] == "10s"


def test_streams_may_be_silent():
    """Some sensors report once an hour."""
    assert configured()[2]["stream_idle_timeout"] == "0s"

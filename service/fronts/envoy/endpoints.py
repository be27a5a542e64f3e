"""Where Envoy listens: one listener on every host of an address.

Does not know what the listener does with connections.
"""

from typing import Any

from service.config import Config


def apply(listener: dict[str, Any], settings: Config) -> None:
    """Puts the addresses of `--listen` into a listener's configuration."""
    first, *more = (_endpoint(host, settings.listen.port) for host in settings.listen.hosts)
    listener["address"] = first
    if more:
        listener["additional_addresses"] = [{"address": each} for each in more]
    # By this option workers share a port, and a port is kept until Envoy listens. Otherwise a second server
    # would share it silently.
    listener["enable_reuse_port"] = settings.shares_port


def _endpoint(host: str, port: int) -> dict[str, Any]:
    endpoint: dict[str, Any] = {"address": host, "port_value": port}
    if host == "::":
        endpoint["ipv4_compat"] = True  # takes IPv4 too, as on every front
    return {"socket_address": endpoint}

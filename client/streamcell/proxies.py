"""Proxies on the way to a server: none to this machine, and words for a proxy that is in the way.

gRPC takes the first of grpc_proxy, https_proxy and http_proxy that is set for every target, this machine's
own included. Here such targets are reached directly, and what no_proxy means elsewhere holds too: NO_PROXY,
`*`, and HOST:PORT. Knows neither calls nor sessions.
"""

import ipaddress
import os
import urllib.request
from urllib.parse import urlsplit

_GRPC = ("grpc_proxy", "https_proxy", "http_proxy")
_GRPC_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
_URL = ("http_proxy", "HTTP_PROXY")
_LISTS = ("ipv4:", "ipv6:")


def direct_options(target: str) -> list[tuple[str, int]]:
    """Returns the options that keep a gRPC channel from a proxy, where it must not or need not take one."""
    return [("grpc.enable_http_proxy", 0)] if _is_direct(target) else []


def way_to(target: str) -> str:
    """Returns words for the proxy that a gRPC channel to a target goes through; "" if it takes none.

    The words name the variable, and no password in it.
    """
    variable = next((name for name in _GRPC if name in os.environ), "")
    if not variable or _is_direct(target) or any(map(_is_excepted_by_grpc, _hosts(target))):
        return ""
    return _words(variable)


def way_to_url(url: str) -> str:
    """Returns words for the proxy that a request for an http: URL goes through; "" if it takes none."""
    parts = urlsplit(url)
    variable = next((name for name in _URL if os.environ.get(name)), "")
    if not variable or is_loopback(parts.hostname or "") or _is_excepted(parts.netloc):
        return ""
    return _words(variable)


def url_opener(url: str) -> urllib.request.OpenerDirector:
    """Returns what opens an http: URL, directly if it is this machine's."""
    if is_loopback(urlsplit(url).hostname or ""):
        return urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener()


def is_loopback(host: str) -> bool:
    """Returns whether a host is this machine, by its name or its number."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        number = ipaddress.ip_address(name)
    except ValueError:
        return False
    number = getattr(number, "ipv4_mapped", None) or number
    return number.is_loopback or number.is_unspecified


def _is_direct(target: str) -> bool:
    """Returns whether a target is reached without a proxy, whatever gRPC would do."""
    if target.startswith(("unix:", "unix-abstract:", "vsock:")):
        return True
    places = _places(target)
    return all(is_loopback(_host_of(place)) for place in places) or all(map(_is_excepted, places))


def _places(target: str) -> list[str]:
    """Returns the HOST:PORT texts of a gRPC target."""
    for prefix in _LISTS:
        if target.startswith(prefix):
            return target.removeprefix(prefix).split(",")
    if target.startswith("dns:"):
        target = target.removeprefix("dns:").rpartition("/")[2]
    return [target]


def _hosts(target: str) -> list[str]:
    return list(map(_host_of, _places(target)))


def _host_of(place: str) -> str:
    """Returns the host of HOST:PORT, [IPV6]:PORT, or of a host alone."""
    if place.startswith("["):
        return place[1:].partition("]")[0]
    return place if place.count(":") > 1 else place.partition(":")[0]


def _is_excepted(place: str) -> bool:
    """Returns whether no_proxy or NO_PROXY names HOST:PORT, as most programs read it."""
    return bool(urllib.request.proxy_bypass(place))


def _is_excepted_by_grpc(host: str) -> bool:
    """Returns whether gRPC's own reading of no_proxy names a host: by its end, or by a network's number."""
    name = next((name for name in _GRPC_EXCEPTIONS if name in os.environ), "")
    entries = filter(None, (entry.strip().lower() for entry in os.environ.get(name, "").split(",")))
    return any(host.lower().endswith(entry) or _is_in_network(host, entry) for entry in entries)


def _is_in_network(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def _words(variable: str) -> str:
    """Returns words for the proxy that a variable names; "" if it names none that can be used."""
    parts = urlsplit(os.environ[variable])
    if parts.scheme != "http" or not parts.hostname:
        return ""
    place = parts.netloc.rpartition("@")[2]
    return f"by way of the proxy {place}, which the variable {variable} names"

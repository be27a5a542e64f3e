"""Where Envoy is configured to listen."""

import pytest

from service.config import Address, Config
from service.fronts.envoy import endpoints


@pytest.mark.parametrize(
    ("host", "workers", "is_shared"),
    [("127.0.0.1", 1, False), ("127.0.0.1", 2, True), ("127.0.0.1,127.0.0.2,::1", 1, True)],
)
def test_one_listener_has_every_host(host, workers, is_shared):
    """All with one port, which is shared if more than one socket listens on it."""
    listener = {"address": "pyvoy's", "name": "listener"}
    endpoints.apply(listener, Config(listen=Address(host, 80), workers=workers))
    found = [listener["address"], *(each["address"] for each in listener.get("additional_addresses", []))]
    expected = [{"socket_address": {"address": each, "port_value": 80}} for each in host.split(",")]
    assert found == expected
    assert listener["enable_reuse_port"] is is_shared
    assert listener["name"] == "listener"


def test_all_of_ipv6_takes_ipv4_as_well():
    """Otherwise the listener would take IPv6 alone."""
    listener = {}
    endpoints.apply(listener, Config(listen=Address("::", 80)))
    assert listener["address"]["socket_address"]["ipv4_compat"] is True

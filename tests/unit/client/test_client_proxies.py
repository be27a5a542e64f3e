"""Proxies on the way to a server: none to this machine, and words for one that is in the way."""

import pytest
import streamcell
from streamcell import ConnectionLost, RetryPolicy, Timeout, proxies

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy")
DEAD = "http://user:hunter2@127.0.0.1:1"  # port 1: nothing listens there
ELSEWHERE = "192.0.2.1:50051"  # no machine has this address


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """An environment without proxies."""
    for name in (*VARIABLES, "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


@pytest.fixture
def dead_proxies(environment):
    """Every variable that may name a proxy names one that is not there."""
    for name in VARIABLES:
        environment.setenv(name, DEAD)
        environment.setenv(name.upper(), DEAD)
    return environment


class TestThisMachine:
    """Servers of this machine."""

    async def test_a_client_reaches_it_whatever_the_variables_say(self, dead_proxies, server):
        """By its name and by its number."""
        for host in ("localhost", "127.0.0.1", "dns:///localhost"):
            async with streamcell.Client(f"{host}:{server.port}") as client:
                assert await client.models()

    @pytest.mark.parametrize(
        "target",
        [
            "localhost:1", "LOCALHOST.:1", "a.localhost:1", "127.9.9.9:1", "[::1]:1", "0.0.0.0:1", "[::]:1",
            "[::ffff:127.0.0.1]:1", "ipv4:127.0.0.1:1,127.0.0.2:1", "ipv6:[::1]:1", "dns:localhost:1",
            "dns://10.0.0.1/localhost:1", "unix:/run/a.sock", "localhost",
        ],
    )  # fmt: skip
    def test_all_its_names_are_known(self, dead_proxies, target):
        """In every form of gRPC's targets."""
        assert proxies.direct_options(target) == [("grpc.enable_http_proxy", 0)]
        assert proxies.way_to(target) == ""

    @pytest.mark.parametrize("url", ["http://127.0.0.1:9090/metrics", "http://localhost:1", "http://[::1]:1"])
    def test_pages_are_read_directly(self, dead_proxies, url):
        """The opener has no proxy."""
        assert proxies.way_to_url(url) == ""
        assert not [each for each in proxies.url_opener(url).handlers if getattr(each, "proxies", None)]


class TestElsewhere:
    """Servers of other machines."""

    @pytest.mark.parametrize("name", ["grpc_proxy", "https_proxy", "http_proxy"])
    async def test_an_error_says_which_proxy_is_in_the_way(self, environment, name):
        """With the variable and without the password."""
        environment.setenv(name, DEAD)
        retry = RetryPolicy(max_attempts=1)
        async with streamcell.Client(ELSEWHERE, retry=retry, timeout=Timeout(connect_seconds=5.0)) as client:
            with pytest.raises(ConnectionLost) as caught:
                await client.models()
        assert f"by way of the proxy 127.0.0.1:1, which the variable {name} names" in caught.value.message
        assert "hunter2" not in caught.value.message

    def test_the_first_variable_counts(self, dead_proxies):
        """In gRPC's order; all_proxy and capitals are nothing to gRPC."""
        assert "grpc_proxy" in proxies.way_to(ELSEWHERE)
        dead_proxies.delenv("grpc_proxy")
        assert "https_proxy" in proxies.way_to(ELSEWHERE)
        dead_proxies.delenv("https_proxy")
        assert "http_proxy" in proxies.way_to(ELSEWHERE)
        dead_proxies.delenv("http_proxy")
        assert proxies.way_to(ELSEWHERE) == ""
        assert proxies.direct_options(ELSEWHERE) == []

    @pytest.mark.parametrize(("value", "way"), [("", ""), ("socks5://p:1", ""), ("127.0.0.1:1", "")])
    def test_a_variable_that_names_no_http_proxy_is_no_way(self, environment, value, way):
        """GRPC goes directly, then."""
        environment.setenv("http_proxy", value)
        assert proxies.way_to(ELSEWHERE) == way

    @pytest.mark.parametrize(
        ("exceptions", "target", "is_excepted"),
        [
            ("a.example", "a.example:1", True), (".example", "a.example:1", True),
            ("b, example", "a.example:1", True), ("b.example", "a.example:1", False), ("", ELSEWHERE, False),
            ("*", ELSEWHERE, True), (ELSEWHERE, ELSEWHERE, True), ("192.0.2.1", ELSEWHERE, True),
            ("192.0.2.0/24", ELSEWHERE, True), ("192.0.3.0/24", ELSEWHERE, False),
            ("2001:db8::/32", "[2001:db8::1]:1", True),
        ],
    )  # fmt: skip
    def test_no_proxy_holds(self, environment, exceptions, target, is_excepted):
        """As gRPC reads it, and as most programs do."""
        environment.setenv("http_proxy", DEAD)
        environment.setenv("no_proxy", exceptions)
        assert bool(proxies.way_to(target)) is not is_excepted

    def test_capitals_hold_too(self, environment):
        """GRPC itself reads small letters alone, so its channel is told."""
        environment.setenv("http_proxy", DEAD)
        environment.setenv("NO_PROXY", "a.example")
        assert proxies.direct_options("a.example:1") == [("grpc.enable_http_proxy", 0)]
        assert proxies.direct_options("b.example:1") == []

    def test_a_page_by_way_of_a_proxy_is_told(self, environment):
        """As urllib reads the variables."""
        environment.setenv("HTTP_PROXY", DEAD)
        assert "HTTP_PROXY" in proxies.way_to_url("http://a.example/metrics")
        environment.setenv("no_proxy", "a.example")
        assert proxies.way_to_url("http://a.example/metrics") == ""

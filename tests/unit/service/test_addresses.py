"""Addresses to listen on: what a name stands for, who can reach it, and ports that are kept."""

import contextlib
import socket

import pytest

from service import addresses
from service.addresses import HeldPort
from service.config import Address
from service.errors import ConfigError

FREE = Address("127.0.0.1", 0)
SEVERAL = Address("127.0.0.1,127.0.0.2", 0)


def resolved(text, *found):
    """Returns an address resolved, where every name stands for some numbers."""
    return addresses.resolved(Address.parse(text), "--listen", lambda _: found)


class TestNames:
    """Names become numbers."""

    def test_a_name_means_all_its_addresses_on_this_machine(self):
        """Each once, in order. An address of a family or a network that is not here is left out."""
        assert resolved("host:80", "127.0.0.2", "192.0.2.1", "127.0.0.1", "127.0.0.2") == Address(
            "127.0.0.2,127.0.0.1", 80
        )

    def test_numbers_stay_as_they_are(self):
        """Even where they are not this machine's: listening then fails with words for that."""
        assert resolved("192.0.2.1,[2001:db8::1]:80") == Address("192.0.2.1,2001:db8::1", 80)

    def test_all_of_ipv6_takes_ipv4_as_well(self):
        """So the two beside each other are one."""
        assert resolved("0.0.0.0,[::]:80") == Address("::", 80)

    def test_localhost_is_this_machine(self):
        """By the system's own look-up."""
        assert "127.0.0.1" in addresses.resolved(Address("localhost", 80), "--listen").hosts

    def test_a_name_of_another_machine_is_an_error(self):
        """The message has the numbers."""
        with pytest.raises(ConfigError, match=r"^--listen: 'host' is 192\.0\.2\.1, and this machine has no"):
            resolved("host:80", "192.0.2.1")

    @pytest.mark.parametrize("error", [socket.gaierror(-2, "Name or service not known"), UnicodeError("x")])
    def test_a_name_that_does_not_resolve_is_an_error(self, error):
        """One line, with the name and the flag."""

        def look_up(_):
            raise error

        with pytest.raises(ConfigError, match=r"^--metrics-listen: the host name 'h' does not resolve: .+;"):
            addresses.resolved(Address("h", 80), "--metrics-listen", look_up)


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("::ffff:127.0.0.1", True),
        ("127.0.0.1,::1", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False),  # noqa: S104
        ("127.0.0.1,10.0.0.1", False), ("::ffff:10.0.0.1", False), ("fe80::1", False),
    ],
)  # fmt: skip
def test_loopback_is_what_no_other_machine_can_reach(host, is_loopback):
    """An address with one host that others reach is reached by others."""
    assert addresses.is_loopback(Address(host, 80)) is is_loopback


@pytest.mark.parametrize(
    ("host", "shown"),
    [("0.0.0.0", "127.0.0.1:80"), ("::", "[::1]:80"), ("10.0.0.1,::1", "10.0.0.1:80")],  # noqa: S104
)
def test_a_client_gets_an_address_that_it_can_connect_to(host, shown):
    """One of several; this machine's own where the server listens on all."""
    assert str(addresses.connectable(Address(host, 80))) == shown


@contextlib.contextmanager
def listening(address, *, shares):
    """Listens on every host of an address, as fronts do, and gives the last port."""
    with contextlib.ExitStack() as stack:
        for host in address.hosts:
            each = stack.enter_context(socket.socket())
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shares))
            each.bind((host, address.port))
            each.listen()
        yield each.getsockname()[1]


class TestHeldPort:
    """Ports that are free, and ports that are kept."""

    def test_a_kept_port_is_one_for_all_hosts(self):
        """Those that share it can listen on each host; nobody else can."""
        held = HeldPort(SEVERAL, "--listen", is_shared=True)
        assert held.address.host == SEVERAL.host
        assert held.address.port
        with listening(held.address, shares=True):
            pass
        with pytest.raises(OSError, match="in use"), listening(held.address, shares=False):
            pass
        with pytest.raises(ConfigError, match="the port is taken"):
            HeldPort(held.address, "--listen", is_shared=True)
        held.close()
        held.close()
        HeldPort(held.address, "--listen", is_shared=True).close()

    def test_a_port_that_nobody_shares_is_looked_at_alone(self):
        """Whoever listens picks the port."""
        held = HeldPort(FREE, "--listen", is_shared=False)
        assert held.address == FREE
        held.close()

    def test_another_port_is_picked_while_one_host_has_it_taken(self, monkeypatch):
        """The first pick is taken on the second host; a port that was asked for is an error then."""
        with listening(Address("127.0.0.2", 0), shares=False) as taken:
            bound, asked = addresses._bound, iter([taken, 0])
            monkeypatch.setattr(
                addresses, "_bound", lambda address: bound(Address(address.host, next(asked)))
            )
            held = HeldPort(SEVERAL, "--listen", is_shared=True)
            assert held.address.port not in (0, taken)
            held.close()
            with pytest.raises(
                ConfigError, match=rf"^--listen: cannot listen on 127.0.0.2:{taken}: the port"
            ):
                HeldPort(Address(SEVERAL.host, taken), "--listen", is_shared=True)

    def test_an_address_of_another_machine_is_an_error(self):
        """Whether the port is shared or not."""
        for is_shared in (True, False):
            with pytest.raises(ConfigError, match=r"192\.0\.2\.1:0: this machine has no such address"):
                HeldPort(Address("192.0.2.1", 0), "--metrics-listen", is_shared=is_shared)


class TestWaitingForAPort:
    """The port of a killed server is taken until its last thread has ended."""

    @pytest.fixture(autouse=True)
    def naps(self, monkeypatch):
        """Returns the naps taken, as a list of seconds; nobody sleeps. `on_nap` is called after each."""
        naps = []

        async def nap(seconds):
            naps.append(seconds)
            self.on_nap(len(naps))

        monkeypatch.setattr(addresses.asyncio, "sleep", nap)
        return naps

    def on_nap(self, number):
        """Does nothing, unless a test replaces it."""

    @pytest.mark.parametrize("is_shared", [True, False])
    async def test_a_port_that_becomes_free_is_had(self, naps, is_shared):
        """The one that was asked for, after as many naps as its owner needs to end."""
        with contextlib.ExitStack() as owner:
            taken = owner.enter_context(listening(FREE, shares=False))
            self.on_nap = lambda number: number == 3 and owner.close()
            held = await addresses.hold(Address(FREE.host, taken), "--listen", is_shared=is_shared)
            assert (held.address.port, len(naps)) == (taken, 3)
            held.close()

    async def test_a_port_that_stays_taken_is_an_error(self, naps):
        """After some seconds."""
        with listening(FREE, shares=False) as taken, pytest.raises(ConfigError, match="the port is taken"):
            await addresses.hold(Address(FREE.host, taken), "--listen", is_shared=False)
        assert 2.0 <= sum(naps) <= 10.0

    async def test_an_address_of_another_machine_is_an_error_at_once(self, naps):
        """It becomes this machine's by no waiting."""
        with pytest.raises(ConfigError, match="this machine has no such address"):
            await addresses.hold(Address("192.0.2.1", 0), "--listen", is_shared=False)
        assert not naps

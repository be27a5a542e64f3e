"""Addresses to listen on: names become numbers once, at the start, and a port is free or the error says why.

Owns what an address's hosts stand for on this machine, and a port kept for others to listen on. Does not know
what is served there.
"""

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import Callable, Sequence

from service.config import Address
from service.errors import ConfigError

LookUp = Callable[[str], Sequence[str]]
_ANY_IPV4, _ANY_IPV6 = "0.0.0.0", "::"  # noqa: S104 (named here, chosen by whoever starts the server)
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_CAUSES = {
    errno.EADDRINUSE: "the port is taken",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EAFNOSUPPORT: "this machine has no IPv6",
    errno.EACCES: "this user may not have the port: take one above 1023",
}
_MAX_PICKS = 32  # of a port that is free on every host
_NUM_TRIES = 50  # to get a port that is taken
_NAP_SECONDS = 0.1  # between two tries


def _look_up(name: str) -> Sequence[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]


def resolved(address: Address, flag: str, look_up: LookUp = _look_up) -> Address:
    """Returns an address with numeric hosts: all that each name stands for on this machine.

    Args:
        flag: the flag that the address is of, for messages.
        look_up: returns the numeric addresses of a name, or raises OSError or UnicodeError.

    Raises:
        ConfigError: a name does not resolve, or no address of a name is this machine's.
    """
    hosts: dict[str, None] = {}  # in order, each once
    for host in address.hosts:
        hosts.update(dict.fromkeys([host] if _is_number(host) else _numbers(host, flag, look_up)))
    if _ANY_IPV6 in hosts:  # which takes IPv4 as well
        hosts.pop(_ANY_IPV4, None)
    return Address(",".join(hosts), address.port)


def _numbers(name: str, flag: str, look_up: LookUp) -> list[str]:
    try:
        found = look_up(name)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "it is no name of a machine"
        raise ConfigError(
            f"{flag}: the host name {name!r} does not resolve: {why}; give a name that this machine can look"
            " up, or a numeric address"
        ) from None
    # A name often stands for an address of IPv6, too, where the machine or container has none.
    here = [each for each in found if _bind_error(each, 0) not in _NOT_HERE]
    if not here:
        raise ConfigError(f"{flag}: {name!r} is {', '.join(found)}, and this machine has no such address")
    return here


def is_loopback(address: Address) -> bool:
    """Returns whether only programs on this machine can connect to an address with numeric hosts."""
    return all(_is_loopback(host) for host in address.hosts)


def _is_loopback(host: str) -> bool:
    number = ipaddress.ip_address(host)
    mapped = getattr(number, "ipv4_mapped", None)
    return bool((mapped or number).is_loopback)


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def connectable(address: Address) -> Address:
    """Returns an address that a client on this machine can connect to, of one with numeric hosts."""
    loopback = {_ANY_IPV4: "127.0.0.1", _ANY_IPV6: "::1"}
    return Address(loopback.get(address.hosts[0], address.hosts[0]), address.port)


class PortTakenError(ConfigError):
    """Another process has the port."""


def _check_free(address: Address, flag: str) -> None:
    """Checks that no other process has the port, so that the error is the same for all fronts and workers.

    Raises:
        PortTakenError: the port is taken.
        ConfigError: an address is not this machine's.
    """
    for host in address.hosts:
        if number := _bind_error(host, address.port):
            raise _cannot_listen(Address(host, address.port), flag, number)


def _bind_error(host: str, port: int) -> int:
    """Returns the number of the error that binding meets; 0 for none."""
    try:
        with socket.socket(_family(host)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        return error.errno or errno.EINVAL
    return 0


def _cannot_listen(address: Address, flag: str, number: int) -> ConfigError:
    cause = _CAUSES.get(number) or errno.errorcode.get(number, str(number))
    kind = PortTakenError if number == errno.EADDRINUSE else ConfigError
    return kind(f"{flag}: cannot listen on {address}: {cause}")


class HeldPort:
    """A port that is free on every host of an address, and kept for those that share it to listen on.

    The port is bound without listening. A port that nobody shares is only looked at.

    Args:
        flag: the flag that the address is of, for messages.
        is_shared: whether several sockets will listen on the port, by SO_REUSEPORT.

    Raises:
        PortTakenError: the port is taken.
        ConfigError: an address is not this machine's.
    """

    def __init__(self, address: Address, flag: str, *, is_shared: bool) -> None:
        _check_free(address, flag)
        self.address = address
        """The address, with the port in use where it is kept."""
        self._sockets: list[socket.socket] = []
        if is_shared:
            self._bind(flag)

    def _bind(self, flag: str) -> None:
        address = self.address
        num_left = 1 if address.port else _MAX_PICKS
        while not self._sockets:
            num_left -= 1
            try:
                self._sockets = _bound(address)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not num_left:
                    raise _cannot_listen(address, flag, error.errno or errno.EINVAL) from None
        self.address = Address(address.host, self._sockets[0].getsockname()[1])

    def close(self) -> None:
        """Gives the port back. May be called twice."""
        for each in self._sockets:
            each.close()


async def hold(address: Address, flag: str, *, is_shared: bool) -> HeldPort:
    """Returns a port as `HeldPort` does, but waits some seconds for one that is taken.

    A killed server has its port until its last thread has ended. Whoever starts the next one may be faster.

    Raises:
        ConfigError: the port stays taken, or an address is not this machine's.
    """
    for _ in range(_NUM_TRIES - 1):
        with contextlib.suppress(PortTakenError):
            return HeldPort(address, flag, is_shared=is_shared)
        await asyncio.sleep(_NAP_SECONDS)
    return HeldPort(address, flag, is_shared=is_shared)


def _bound(address: Address) -> list[socket.socket]:
    """Returns a socket for each host, all on one port.

    Raises:
        OSError: a host's port is taken.
    """
    found: list[socket.socket] = []
    with contextlib.ExitStack() as on_failure:
        port = address.port
        for host in address.hosts:
            found.append(on_failure.enter_context(socket.socket(_family(host))))
            found[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            found[-1].bind((host, port))
            port = found[-1].getsockname()[1]
        on_failure.pop_all()
    return found


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET

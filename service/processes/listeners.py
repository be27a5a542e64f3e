"""How a worker process listens for clients: the server inside listens itself, or Envoy around it does.

Owns the wait until clients can connect, and the wait until the last answers have left. Does not know the
orders between a supervisor and its workers.
"""

import asyncio
import time
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from service.config import Address
from service.errors import ConfigError

_POLL_SECONDS = 0.02
_LISTEN_SECONDS = 60.0  # the longest wait for Envoy to listen; usually milliseconds after its server is ready
_FLUSH_SECONDS = 5.0  # the longest wait for the last answers, as clients may be slow


class Listener(Protocol):
    """What listens for a worker's clients."""

    name: str

    async def wait_until_listening(self, process: Process, address: Address) -> Address:
        """Waits until clients can connect and returns the address, with the port in use.

        Args:
            address: the address that the server inside reported.

        Raises:
            ConfigError: clients cannot connect; the message says why.
        """

    async def flush(self) -> None:
        """Waits until the answers of a drained server have left, up to a bound."""

    async def tls_counts(self) -> Mapping[str, int]:
        """Returns Envoy's counts about TLS, by the ends of the counters' names."""


class ServerListener:
    """A server that listens itself: it reports its address when it listens, and drains its own answers."""

    name = "the worker"

    async def wait_until_listening(self, process: Process, address: Address) -> Address:
        """Returns the address that the server reported."""
        return address

    async def flush(self) -> None:
        """Returns at once."""

    async def tls_counts(self) -> Mapping[str, int]:
        """Returns nothing: gRPC does not count connections that it refuses."""
        return {}


class Admin(Protocol):
    """The questions to Envoy; each blocks until Envoy answers."""

    def listen_address(self) -> Address | None:
        """Returns the address at which Envoy listens; None if Envoy does not listen yet."""

    def is_sending(self) -> bool:
        """Returns whether answers are still on their way to clients."""

    def tls_counts(self) -> dict[str, int]:
        """Returns Envoy's counts about TLS, by the ends of the counters' names."""


class EnvoyListener:
    """Envoy around a server: it listens after the server is ready, and may still send after a drain."""

    name = "Envoy"

    def __init__(
        self,
        admin: Admin,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._admin = admin
        self._clock = clock
        self._sleep = sleep

    async def wait_until_listening(self, process: Process, address: Address) -> Address:
        """Asks Envoy for its address until Envoy listens.

        Raises:
            ConfigError: Envoy ended, or does not listen in time.
        """
        deadline = self._clock() + _LISTEN_SECONDS
        while (found := await asyncio.to_thread(self._admin.listen_address)) is None:
            if process.returncode is not None:
                raise ConfigError(f"--listen: Envoy cannot listen (status {process.returncode})")
            if self._clock() >= deadline:
                raise ConfigError(
                    f"--listen: Envoy does not listen on {address} after {_LISTEN_SECONDS:.0f} seconds:"
                    " look for Envoy's lines in the log, or use --front grpcio"
                )
            await self._sleep(_POLL_SECONDS)
        return Address(address.host, found.port)

    async def tls_counts(self) -> Mapping[str, int]:
        """Asks Envoy for its counts."""
        return await asyncio.to_thread(self._admin.tls_counts)

    async def flush(self) -> None:
        """Asks Envoy until it sends nothing more, for at most 5 seconds."""
        deadline = self._clock() + _FLUSH_SECONDS
        while self._clock() < deadline and await asyncio.to_thread(self._admin.is_sending):
            await self._sleep(_POLL_SECONDS)

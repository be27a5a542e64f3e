"""What Envoy refuses for TLS, in the log: what clients did wrong, and how often, a line a minute at most.

Also certificates that Envoy did not take, though the server had checked them. Envoy counts all this, and this
module asks for its counts. A server that listens itself cannot know: gRPC ends the connections before the
server sees a call.
"""

import asyncio
import collections
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from service.telemetry import log

_LOOK_SECONDS = 5.0  # between two looks at the counts
_QUIET_SECONDS = 60.0  # between two lines of a kind

_NOT_TAKEN = "update_rejected"

# What clients did, and what helps, by the end of the name of Envoy's counter.
_WITH_TLS = {
    "tls_not_found": ("plain_text", "clients spoke plain text, and this port takes TLS: they need --tls"),
    "fail_verify_no_cert": (
        "no_certificate",
        "clients showed no certificate, and --tls-client-ca asks for one: they need --tls-cert and --tls-key",
    ),
    "fail_verify_error": (
        "bad_certificate",
        "clients showed a certificate that has ended, or that no authority in --tls-client-ca has signed",
    ),
    _NOT_TAKEN: (
        "certificates",
        "Envoy did not take new files that the server had checked, as they changed again at once, or as Envoy"
        " asks more of them; it goes on with those it had",
    ),
}
_WITHOUT_TLS = {
    "tls_found": (
        "tls",
        "clients spoke TLS, and this port takes plain text: give the server --tls-cert and --tls-key, or the"
        " clients no --tls",
    ),
}


class Counting(Protocol):
    """A worker that counts connections."""

    async def tls_counts(self) -> Mapping[str, int]:
        """Returns Envoy's counts about TLS, by the ends of the counters' names."""


class RefusedConnections:
    """Looks at the counts of all workers, and logs what is new.

    Args:
        workers: the current worker of each number.
        has_tls: whether the port takes TLS.
        clock: the monotonic time in seconds.
        sleep: waits.
    """

    def __init__(
        self,
        workers: Mapping[int, Counting],
        *,
        has_tls: bool,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._workers = workers
        self._kinds = _WITH_TLS if has_tls else _WITHOUT_TLS
        self._clock = clock
        self._sleep = sleep
        self._seen: dict[int, tuple[Counting, Mapping[str, int]]] = {}  # by the worker's number
        self._untold: collections.Counter[str] = collections.Counter()
        self._told: dict[str, float] = {}  # when the last line of a counter was written

    async def look(self) -> None:
        """Waits a while, and logs the connections that were refused meanwhile."""
        await self._sleep(_LOOK_SECONDS)
        for number, worker in list(self._workers.items()):
            self._add(number, worker, await worker.tls_counts())
        for name in self._kinds:
            if self._untold[name] and self._is_due(name):
                self._tell(name)

    def _add(self, number: int, worker: Counting, counts: Mapping[str, int]) -> None:
        last_worker, last = self._seen.get(number, (worker, {}))
        if last_worker is not worker:  # a worker that replaces another one counts from zero
            last = {}
        for name, count in counts.items():
            self._untold[name] += max(0, count - last.get(name, 0))
        if counts:
            self._seen[number] = (worker, counts)

    def _is_due(self, name: str) -> bool:
        return name not in self._told or self._clock() - self._told[name] >= _QUIET_SECONDS

    def _tell(self, name: str) -> None:
        kind, why = self._kinds[name]
        if name == _NOT_TAKEN:
            log.warning("certificates_not_taken", times=self._untold[name], why=why)
        else:
            log.warning("connections_refused", kind=kind, connections=self._untold[name], why=why)
        self._told[name] = self._clock()
        self._untold[name] = 0

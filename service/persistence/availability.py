"""Whether the store can be used now: records its failures, and looks for its return.

Metrics, log and engines hear of every change. Does not know what the store is asked for.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from service import errors
from service.engine.engine import Engine
from service.errors import Reason, StreamcellError
from service.store.base import Store, StoreError
from service.telemetry import faults, log
from service.telemetry.metrics import StoreMetrics

FAULT = "a fault of the server's own; its log has it"

_Answer = TypeVar("_Answer")


class Availability:
    """The state of one store, as its calls show it.

    Args:
        store: the store.
        engines: returns the engines that there are now.
        metrics: the store's instruments.
    """

    def __init__(self, store: Store, engines: Callable[[], Sequence[Engine]], metrics: StoreMetrics) -> None:
        self.trouble = ""
        """Why the store cannot be used now; empty while it can."""
        self._store = store
        self._engines = engines
        self._metrics = metrics

    async def ask(self, call: Awaitable[_Answer]) -> _Answer:
        """Returns the store's answer; a fault of the server's own counts as a store that is away.

        Raises:
            StoreError: the store cannot be used.
        """
        try:
            return await call
        except StoreError:
            raise
        except Exception as exception:
            faults.report(exception)
            raise StoreError(FAULT) from exception

    def refusal(self) -> StreamcellError:
        """Returns the error for callers who need the store while it is away."""
        return errors.refusal(Reason.STORE_UNAVAILABLE, problem=self.trouble)

    @staticmethod
    def fault_refusal() -> StreamcellError:
        """Returns the error for callers who need the store when a fault of the server's own came between."""
        return errors.refusal(Reason.STORE_UNAVAILABLE, problem=FAULT)

    def record_success(self) -> None:
        """Records that the store can be used."""
        self._set_trouble("")

    def record_absence(self, error: StoreError) -> None:
        """Records that the store cannot be used yet, at a server's start; the log is the caller's."""
        self._metrics.errors.inc()
        self._set_trouble(str(error))

    def record_failure(self, error: StoreError) -> None:
        """Records that a call failed: the store is away from now on."""
        self._metrics.errors.inc()
        if not self.trouble:
            log.warning("store_lost", why=str(error), effect="serving goes on; sessions are kept in memory")
        self._set_trouble(str(error))

    async def probe(self, num_changed: int) -> bool:
        """Asks a store that is away whether it is back, and returns the answer.

        Args:
            num_changed: the sessions that wait to be written, for the log.
        """
        try:
            await self.ask(self._store.check())
        except StoreError as error:
            self._set_trouble(str(error))
            return False
        log.info("store_back", num_changed_sessions=num_changed)
        self._set_trouble("")
        return True

    def _set_trouble(self, why: str) -> None:
        self.trouble = why
        self._metrics.is_up.set(not why)
        for engine in self._engines():
            engine.sessions.durability.set_trouble(why)

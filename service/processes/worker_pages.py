"""The workers' pages of metrics as one, with the faults of the supervisor's own background tasks.

Does not know how a worker makes its page.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
from collections.abc import Iterable, Mapping
from typing import Protocol

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from service.telemetry.metrics import BACKGROUND_FAULTS
from service.telemetry.metrics_page import joined

_PAGE_SECONDS = 5.0  # the longest wait for the workers' pages


class Paged(Protocol):
    """A worker that has a page."""

    async def page(self) -> str | None:
        """Returns the worker's page of metrics; None if the worker is gone."""


class WorkerPages(Collector):
    """Collects the pages of all workers; the samples of an only worker get no label.

    Args:
        workers: the current worker of each number.
        is_single: whether there is only one worker.
        loop: the event loop that the workers belong to.
    """

    def __init__(
        self, workers: Mapping[int, Paged], *, is_single: bool, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._workers = workers
        self._is_single = is_single
        self._loop = loop
        self._num_faults: collections.Counter[str] = collections.Counter()  # by background task

    def count_fault(self, task: str) -> None:
        """Counts a fault in a background task of the supervisor."""
        self._num_faults[task] += 1

    def collect(self) -> Iterable[Metric]:
        """Returns the families of all pages; called on the page's thread."""
        fetching = asyncio.run_coroutine_threadsafe(self.fetch(), self._loop)
        pages: dict[str, str] = {}
        with contextlib.suppress(concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            pages = fetching.result(2 * _PAGE_SECONDS)
        if self._is_single:
            families = [family for page in pages.values() for family in text_string_to_metric_families(page)]
        else:
            families = list(joined(pages))
        return self._with_faults(families)

    def describe(self) -> Iterable[Metric]:
        """Returns nothing: the workers' registries have checked the names."""
        return []

    async def fetch(self) -> dict[str, str]:
        """Returns the page of each worker that answers in time, by the worker's number."""
        asked = {number: asyncio.create_task(each.page()) for number, each in self._workers.items()}
        if asked:
            await asyncio.wait(asked.values(), timeout=_PAGE_SECONDS)
        found = {}
        for number, task in sorted(asked.items()):
            if task.done() and (page := task.result()) is not None:
                found[str(number)] = page
            task.cancel()
        return found

    def _with_faults(self, families: Iterable[Metric]) -> Iterable[Metric]:
        by_name = {family.name: family for family in families}
        for task, count in list(self._num_faults.items()):
            family = by_name.setdefault(
                BACKGROUND_FAULTS, Metric(BACKGROUND_FAULTS, "Faults in background tasks.", "counter")
            )
            family.add_sample(f"{BACKGROUND_FAULTS}_total", {"task": task, "worker": "supervisor"}, count)
        return by_name.values()

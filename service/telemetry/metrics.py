"""The instruments that Prometheus reads, and their registry.

The engine's thread alone writes an instrument; the metrics listener's thread reads it, value by value. Values
are in base units, and no label names a session. This module does not know when something is counted.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

# Seconds, from 50 µs: a step alone takes about 100 µs, a step of a busy server some ms.
SECONDS = (
    50e-6, 100e-6, 150e-6, 200e-6, 300e-6, 400e-6, 600e-6, 800e-6, 1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3, 6e-3, 8e-3,
    10e-3, 15e-3, 20e-3, 30e-3, 50e-3, 75e-3, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
BACKGROUND_FAULTS = "streamcell_background_faults"
STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which no page needs


class HistogramChild:
    """A histogram of one model: a count for each bucket, and the sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Counts `value` `times` times: the steps of a batch share one duration."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def observe_all(self, values: Sequence[float], offset: float = 0.0) -> None:
        """Counts each value plus `offset`. Values are in ascending order, so it takes one search a bucket."""
        if not values:
            return
        bucket, at = bisect_left(self._bounds, values[0] + offset), 0
        for bound in self._bounds[bucket:]:
            until = bisect_right(values, bound - offset, at)
            self._counts[bucket] += until - at
            bucket, at = bucket + 1, until
            if at == len(values):
                break
        self._counts[-1] += len(values) - at
        self._sum += sum(values) + offset * len(values)

    @property
    def count(self) -> int:
        """The number of values counted."""
        return sum(self._counts)

    @property
    def sum(self) -> float:
        """The sum of the values."""
        return self._sum

    def cumulative(self) -> tuple[list[tuple[str, float]], float]:
        """Returns pairs of an upper bound and the count up to that bound, and the sum."""
        total = 0
        pairs = []
        for bound, count in zip([*map(_bound, self._bounds), "+Inf"], list(self._counts), strict=True):
            total += count
            pairs.append((bound, float(total)))
        return pairs, self._sum


def _bound(value: float) -> str:
    return repr(float(value))


class BatchHistogram(Collector):
    """A histogram by model. Counts a value many times at once, as the library's histogram cannot."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = tuple(bounds)
        self._children: dict[tuple[str, str], HistogramChild] = {}

    def labels(self, model: str, version: str) -> HistogramChild:
        """Returns the histogram of one model. The caller may remember it."""
        return self._children.setdefault((model, version), HistogramChild(self._bounds))

    def collect(self) -> Iterator[Metric]:
        """Yields the family with every model's buckets."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=["model", "version"])
        for labels, child in list(self._children.items()):
            buckets, total = child.cumulative()
            family.add_metric(labels, buckets, total)
        yield family

    def describe(self) -> Iterable[Metric]:
        """Returns the family without values: the registry checks the name."""
        return [HistogramMetricFamily(self._name, self._documentation, labels=["model", "version"])]


class ModelMetrics:
    """The instruments of one model, so that no label is looked up per step."""

    def __init__(self, metrics: "Metrics", model: str, version: str) -> None:
        labels = (model, version)
        self.step_seconds = metrics.step_seconds.labels(*labels)
        self.queue_seconds = metrics.queue_seconds.labels(*labels)
        self.compute_seconds = metrics.compute_seconds.labels(*labels)
        self.batch_steps = metrics.batch_steps.labels(*labels)
        self.steps = metrics.steps.labels(*labels)
        self.repeated_steps = metrics.repeated_steps.labels(*labels)
        self.forecasts = metrics.forecasts.labels(*labels)
        self.inference_failed_seconds = metrics.inference_failed_seconds.labels(*labels)
        self.sessions = metrics.sessions.labels(*labels)
        self.sessions_opened = metrics.session_events.opened.labels(*labels)
        self.sessions_expired = metrics.session_events.expired.labels(*labels)
        self.sessions_restored = metrics.session_events.restored.labels(*labels)
        self.sessions_evicted = metrics.session_events.evicted.labels(*labels)
        self.sessions_fenced = metrics.session_events.fenced.labels(*labels)
        self.sessions_handed_over = metrics.session_events.handed_over.labels(*labels)
        self.sessions_migrated = metrics.session_events.migrated.labels(*labels)
        self.queued_steps = metrics.queued_steps.labels(*labels)


class StoreMetrics:
    """The instruments of the store."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.is_up = Gauge("streamcell_store_up", "Whether the store can be used.", registry=registry)
        self.lag_seconds = Gauge(
            "streamcell_store_lag_seconds",
            "Seconds since the instant up to which the store has every change; 0 while no change waits.",
            registry=registry,
        )
        self.changed_sessions = Gauge(
            "streamcell_store_changed_sessions",
            "Sessions with changes that the store does not have yet.",
            registry=registry,
        )
        self.rows_written = Counter(
            "streamcell_store_rows_written", "Rows written to the store.", registry=registry
        )
        self.write_seconds = Histogram(
            "streamcell_store_write_seconds",
            "Duration of one write of many rows.",
            buckets=SECONDS,
            registry=registry,
        )
        self.errors = Counter("streamcell_store_errors", "Calls to the store that failed.", registry=registry)
        self.rows_lost = Counter(
            "streamcell_store_rows_lost",
            "Rows that the store lost or had an older copy of; their sessions were written anew.",
            registry=registry,
        )


class _SessionEvents:
    """Counters of what happens to sessions."""

    def __init__(self, registry: CollectorRegistry, labels: list[str]) -> None:
        def counter(name: str, documentation: str) -> Counter:
            return Counter(f"streamcell_sessions_{name}", documentation, labels, registry=registry)

        self.opened = counter("opened", "Sessions opened.")
        self.expired = counter("expired", "Sessions expired.")
        self.restored = counter("restored", "Sessions fetched from the store into memory.")
        self.evicted = counter("evicted", "Sessions moved to the store to make room in memory.")
        self.fenced = counter("fenced", "Sessions dropped because another server took them over.")
        self.handed_over = counter("handed_over", "Sessions given to another server that asked for them.")
        self.migrated = counter("migrated", "Sessions migrated in memory from another version.")


def _unauthenticated(registry: CollectorRegistry) -> Counter:
    """Returns the counter of refused callers. Every reason is there from the start: alerts see it rise."""
    counter = Counter(
        "streamcell_unauthenticated",
        "Calls refused because the caller did not show who it is.",
        ["why"],
        registry=registry,
    )
    for why in ("missing", "unknown", "expired", "certificate"):
        counter.labels(why)
    return counter


class Metrics:
    """All instruments of a server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        by_model = ["model", "version"]
        self.step_seconds = self._histogram(
            "streamcell_step_seconds", "Time from a step's arrival to its reply, without priming.", SECONDS
        )
        self.queue_seconds = self._histogram(
            "streamcell_step_queue_seconds", "Time that a step waited for a batch.", SECONDS
        )
        self.compute_seconds = self._histogram(
            "streamcell_step_compute_seconds", "Time that a step spent in its batch's cell call.", SECONDS
        )
        self.batch_steps = self._histogram(
            "streamcell_batch_steps", "Steps run in one iteration, with the steps of long inputs.", STEPS
        )
        self.inference_failed_seconds = self._histogram(
            "streamcell_inference_failed_seconds",
            "Time from arrival to reply of Open Inference Protocol requests that were refused or failed.",
            SECONDS,
        )
        self.steps = self._counter("streamcell_steps", "Steps applied.", by_model)
        self.repeated_steps = self._counter(
            "streamcell_repeated_steps", "Repeated steps, answered with the remembered reply.", by_model
        )
        self.forecasts = self._counter("streamcell_forecasts", "Forecasts made.", by_model)
        self.session_events = _SessionEvents(self.registry, by_model)
        self.errors = self._counter(
            "streamcell_errors", "Errors answered, by code and reason.", ["method", "code", "reason"]
        )
        self.unauthenticated = _unauthenticated(self.registry)
        self.background_faults = self._counter(
            BACKGROUND_FAULTS,
            "Faults in tasks that last as long as the server. Each task goes on after a fault.",
            ["task"],
        )
        self.sessions = self._gauge("streamcell_sessions_open", "Sessions in memory.", by_model)
        self.queued_steps = self._gauge("streamcell_queued_steps", "Steps waiting for a batch.", by_model)
        self.streams = self._gauge("streamcell_streams_open", "Streams open.", [])
        self.models_rejected = self._counter(
            "streamcell_model_rejected", "Artifacts that were found and cannot be served.", []
        )
        self.build = Info("streamcell_build", "What is running.", registry=self.registry)
        self.models = self._gauge(
            "streamcell_model_info",
            "A model and its device; 1 while it is served.",
            [*by_model, "device", "state_bytes"],
        )

    def count_background_fault(self, task: str) -> None:
        """Counts a fault in a task that lasts as long as the server."""
        self.background_faults.labels(task).inc()

    def count_unauthenticated(self, why: str) -> None:
        """Counts a call whose caller did not show who it is."""
        self.unauthenticated.labels(why).inc()

    def of_certificates(self) -> Callable[[str, float], None]:
        """Returns what shows when the certificates in a file end. A server without TLS does not show it."""
        gauge = self._gauge(
            "streamcell_tls_certificate_expiry_timestamp_seconds",
            "Unix time at which the first certificate in a file of TLS ends.",
            ["file"],
        )
        return lambda file, end: gauge.labels(file).set(end)

    def of_store(self) -> StoreMetrics:
        """Returns the instruments of the store. A server without a store does not show them."""
        return StoreMetrics(self.registry)

    def of_model(self, model: str, version: str) -> ModelMetrics:
        """Returns the instruments of one model."""
        return ModelMetrics(self, model, version)

    def _histogram(self, name: str, documentation: str, bounds: Sequence[float]) -> BatchHistogram:
        histogram = BatchHistogram(name, documentation, bounds)
        self.registry.register(histogram)
        return histogram

    def _counter(self, name: str, documentation: str, labels: list[str]) -> Counter:
        return Counter(name, documentation, labels, registry=self.registry)

    def _gauge(self, name: str, documentation: str, labels: list[str]) -> Gauge:
        return Gauge(name, documentation, labels, registry=self.registry)

"""What the server shows to Prometheus: the instruments and their registry.

Instruments are written by the engine's thread alone and read by the metrics listener's, value by value.
This module does not know what is measured; base units, no session in a label.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

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

# Seconds, from 50 µs: a step alone takes some 100 µs, a busy server's some ms.
SECONDS = (
    50e-6, 100e-6, 150e-6, 200e-6, 300e-6, 400e-6, 600e-6, 800e-6, 1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3, 6e-3, 8e-3,
    10e-3, 15e-3, 20e-3, 30e-3, 50e-3, 75e-3, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series per counter that nobody reads


class HistogramChild:
    """One labelled histogram: counts per bucket, and the sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Counts `value`, as often as `times` says: the steps of a batch share what they took."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def observe_all(self, values: Sequence[float], offset: float = 0.0) -> None:
        """Counts each value plus `offset` once. They come in ascending order: a search a bucket."""
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
        """How many values were counted."""
        return sum(self._counts)

    @property
    def sum(self) -> float:
        """The values' sum."""
        return self._sum

    def cumulative(self) -> tuple[list[tuple[str, float]], float]:
        """Returns the (upper bound, count up to it) pairs that Prometheus wants, and the sum."""
        total = 0
        pairs = []
        for bound, count in zip([*map(_bound, self._bounds), "+Inf"], list(self._counts), strict=True):
            total += count
            pairs.append((bound, float(total)))
        return pairs, self._sum


def _bound(value: float) -> str:
    return repr(float(value))


class BatchHistogram(Collector):
    """A histogram by model that can count a value many times at once, which the library's cannot."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = tuple(bounds)
        self._children: dict[tuple[str, str], HistogramChild] = {}

    def labels(self, model: str, version: str) -> HistogramChild:
        """Returns the histogram of one model, to hold on to."""
        return self._children.setdefault((model, version), HistogramChild(self._bounds))

    def collect(self) -> Iterator[Metric]:
        """Yields the family with every model's buckets."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=["model", "version"])
        for labels, child in list(self._children.items()):
            buckets, total = child.cumulative()
            family.add_metric(labels, buckets, total)
        yield family

    def describe(self) -> Iterable[Metric]:
        """Returns the family without values, for the registry to check its name."""
        return [HistogramMetricFamily(self._name, self._documentation, labels=["model", "version"])]


class ModelMetrics:
    """The instruments of one model, looked up once."""

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
        self.sessions_opened = metrics.sessions_opened.labels(*labels)
        self.sessions_expired = metrics.sessions_expired.labels(*labels)
        self.sessions_restored = metrics.sessions_restored.labels(*labels)
        self.sessions_spilled = metrics.sessions_spilled.labels(*labels)
        self.sessions_fenced = metrics.sessions_fenced.labels(*labels)
        self.sessions_migrated = metrics.sessions_migrated.labels(*labels)
        self.queued_steps = metrics.queued_steps.labels(*labels)


class StoreMetrics:
    """The instruments of the store."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.is_up = Gauge("streamcell_store_up", "Whether the store can be used.", registry=registry)
        self.lag_seconds = Gauge(
            "streamcell_store_lag_seconds",
            "How long ago all that had changed by then was in the store; 0 while nothing waits.",
            registry=registry,
        )
        self.changed_sessions = Gauge(
            "streamcell_store_changed_sessions",
            "Sessions that changed since they were stored.",
            registry=registry,
        )
        self.rows_written = Counter(
            "streamcell_store_rows_written", "Rows written to the store.", registry=registry
        )
        self.write_seconds = Histogram(
            "streamcell_store_write_seconds", "One write of many rows.", buckets=SECONDS, registry=registry
        )
        self.errors = Counter(
            "streamcell_store_errors", "Calls that the store did not answer.", registry=registry
        )


class Metrics:
    """All instruments of a server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        by_model = ["model", "version"]
        self.step_seconds = self._histogram(
            "streamcell_step_seconds", "From a step's arrival to its reply; priming not included.", SECONDS
        )
        self.queue_seconds = self._histogram(
            "streamcell_step_queue_seconds", "The part of it spent waiting for a batch.", SECONDS
        )
        self.compute_seconds = self._histogram(
            "streamcell_step_compute_seconds", "The part of it spent in the batch's cell call.", SECONDS
        )
        self.batch_steps = self._histogram(
            "streamcell_batch_steps", "Steps run in one iteration, those of long inputs included.", STEPS
        )
        self.inference_failed_seconds = self._histogram(
            "streamcell_inference_failed_seconds",
            "From arrival to reply of the Open Inference Protocol's requests that were refused or failed.",
            SECONDS,
        )
        self.steps = self._counter("streamcell_steps", "Steps applied.", by_model)
        self.repeated_steps = self._counter(
            "streamcell_repeated_steps", "Steps answered again from the replies kept.", by_model
        )
        self.forecasts = self._counter("streamcell_forecasts", "Forecasts made.", by_model)
        self._count_sessions(by_model)
        self.errors = self._counter(
            "streamcell_errors", "Errors answered, by code and reason.", ["method", "code", "reason"]
        )
        self.background_faults = self._counter(
            "streamcell_background_faults",
            "Faults in tasks that last as long as the server; each goes on after one.",
            ["task"],
        )
        self.sessions = self._gauge("streamcell_sessions_open", "Sessions in memory.", by_model)
        self.queued_steps = self._gauge("streamcell_queued_steps", "Steps waiting for a batch.", by_model)
        self.streams = self._gauge("streamcell_streams_open", "Streams open.", [])
        self.models_rejected = self._counter(
            "streamcell_model_rejected", "Artifacts found that cannot be served.", []
        )
        self.build = Info("streamcell_build", "What is running.", registry=self.registry)
        self.models = self._gauge(
            "streamcell_model_info", "A model served; 1 while it is.", [*by_model, "device", "state_bytes"]
        )

    def _count_sessions(self, by_model: list[str]) -> None:
        self.sessions_opened = self._counter("streamcell_sessions_opened", "Sessions opened.", by_model)
        self.sessions_expired = self._counter("streamcell_sessions_expired", "Sessions expired.", by_model)
        self.sessions_restored = self._counter(
            "streamcell_sessions_restored", "Sessions taken in from the store.", by_model
        )
        self.sessions_spilled = self._counter(
            "streamcell_sessions_spilled", "Sessions left to the store to make room in memory.", by_model
        )
        self.sessions_fenced = self._counter(
            "streamcell_sessions_fenced", "Sessions dropped because another server took them over.", by_model
        )
        self.sessions_migrated = self._counter(
            "streamcell_sessions_migrated", "Sessions taken in from another version in memory.", by_model
        )

    def count_background_fault(self, task: str) -> None:
        """Counts a fault in a task that lasts as long as the server."""
        self.background_faults.labels(task).inc()

    def of_store(self) -> StoreMetrics:
        """Returns the instruments of the store, which a server without one does not show."""
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

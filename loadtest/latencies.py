"""A histogram of latencies, bounded in memory, whose counts can be added up across processes.

Buckets grow by 0.5 %, so a percentile is exact to 0.5 %. The largest value is exact. Knows only numbers.
"""

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

_GROWTH = 1.005
_LEAST_NS = 1_000.0
_NUM_BUCKETS = math.ceil(math.log(1e9) / math.log(_GROWTH))  # 1 µs to 1000 s
_PENDING = 8192  # latencies that are put into buckets at once: until then recording is an append


class Latencies:
    """Latencies in nanoseconds, recorded one by one."""

    def __init__(self) -> None:
        self._counts: npt.NDArray[np.int64] = np.zeros(_NUM_BUCKETS, np.int64)
        self._pending: list[int] = []
        self._max_ns = 0

    def __len__(self) -> int:
        self._fold()
        return int(self._counts.sum())

    def record(self, latency_ns: int) -> None:
        """Counts one latency."""
        self._pending.append(latency_ns)
        if len(self._pending) >= _PENDING:
            self._fold()

    def percentile_seconds(self, percent: float) -> float:
        """Returns the latency that `percent` of all do not exceed; 0 where none is recorded."""
        total = len(self)
        if not total:
            return 0.0
        rank = max(1, math.ceil(total * percent / 100))
        bucket = int(np.searchsorted(np.cumsum(self._counts), rank))
        middle: float = _LEAST_NS * _GROWTH ** (bucket + 0.5)
        return min(middle, self._max_ns) * 1e-9

    @property
    def max_seconds(self) -> float:
        """The largest latency."""
        self._fold()
        return self._max_ns * 1e-9

    def add(self, other: "Latencies") -> None:
        """Adds the counts of another histogram."""
        self._fold()
        other._fold()
        self._counts += other._counts
        self._max_ns = max(self._max_ns, other._max_ns)

    def to_json(self) -> dict[str, list[int] | int]:
        """Returns the buckets in use, their counts, and the largest value."""
        self._fold()
        used = np.flatnonzero(self._counts)
        return {"buckets": used.tolist(), "counts": self._counts[used].tolist(), "max_ns": self._max_ns}

    @classmethod
    def from_json(cls, buckets: Iterable[int], counts: Iterable[int], max_ns: int) -> "Latencies":
        """Returns what `to_json` wrote."""
        latencies = cls()
        latencies._counts[list(buckets)] = list(counts)
        latencies._max_ns = max_ns
        return latencies

    def _fold(self) -> None:
        if not self._pending:
            return
        values = np.array(self._pending, np.float64)
        self._pending.clear()
        buckets = np.log(np.maximum(values, _LEAST_NS) / _LEAST_NS) / math.log(_GROWTH)
        indexes = np.minimum(buckets.astype(np.int64), _NUM_BUCKETS - 1)
        self._counts += np.bincount(indexes, minlength=_NUM_BUCKETS)
        self._max_ns = max(self._max_ns, int(values.max()))

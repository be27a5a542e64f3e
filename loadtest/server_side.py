"""What the load cost the server: its CPU time, and its own latencies.

Reads a metrics endpoint or /proc, before and after the measured window. Does not know the load.
"""

import asyncio
import contextlib
import dataclasses
import math
import os
import pathlib
import urllib.error
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families
from streamcell import proxies

from loadtest.errors import LoadtestError

_READ_SECONDS = 5.0
_CPU = "process_cpu_seconds_total"
_STEPS = "streamcell_steps_total"
_BUCKETS = "streamcell_step_seconds_bucket"


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """A server's counters at an instant. `buckets`: the number of latencies up to each bound, in seconds."""

    cpu_seconds: float
    num_steps: float | None = None
    buckets: Mapping[float, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class ServerCost:
    """The difference of two readings. A percentile is None where the server reports no latencies."""

    cpu_seconds: float
    cpu_us_per_step: float
    p50_seconds: float | None
    p99_seconds: float | None
    num_steps: int = 0


async def read_metrics(address: str) -> Reading:
    """Returns the counters of a metrics endpoint, summed over its models.

    Raises:
        LoadtestError: nothing answers, or it is not a Streamcell server.
    """
    try:
        text = await asyncio.to_thread(_fetch, f"http://{address}/metrics")
        return parse_metrics(text)
    except (OSError, ValueError) as error:
        why = error.reason if isinstance(error, urllib.error.URLError) else error
        way = proxies.way_to_url(f"http://{address}/metrics")
        raise LoadtestError(
            f"--metrics: cannot read http://{address}/metrics{way and ', ' + way} ({why})"
        ) from None


def _fetch(url: str) -> str:
    with proxies.url_opener(url).open(url, timeout=_READ_SECONDS) as response:
        text: str = response.read().decode()
        return text


def parse_metrics(text: str) -> Reading:
    """Returns the counters in Prometheus' text format.

    Raises:
        ValueError: the text has another format, or lacks the CPU time or the steps.
    """
    totals: dict[str, float] = {}
    buckets: dict[float, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == _BUCKETS:
                bound = float(sample.labels["le"])
                buckets[bound] = buckets.get(bound, 0.0) + sample.value
            else:
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    if _CPU not in totals or _STEPS not in totals:
        raise ValueError(f"it has no {_CPU} and {_STEPS}")
    return Reading(totals[_CPU], totals[_STEPS], buckets)


def process_tree(pid: int) -> tuple[int, ...]:
    """Returns a process of this machine and all its descendants, as they are now.

    A server may be several processes: a supervisor, and others that serve.

    Raises:
        LoadtestError: there is no such process, or no /proc.
    """
    parents = {}
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has just ended
            parents[int(entry.name)] = int(_stat(int(entry.name))[1])
    if pid not in parents:
        raise LoadtestError(f"--server-pid: there is no process {pid}, or no /proc")
    found = [pid]
    for each in found:  # the list grows while it is read
        found += [child for child, parent in parents.items() if parent == each]
    return tuple(found)


def read_process(*pids: int) -> Reading:
    """Returns the CPU time of processes of this machine, all threads together, from /proc.

    Raises:
        LoadtestError: there is no such process, or no /proc.
    """
    ticks = 0
    for pid in pids:
        try:
            user, system = _stat(pid)[11:13]
        except OSError:
            raise LoadtestError(f"--server-pid: there is no process {pid}, or no /proc") from None
        ticks += int(user) + int(system)
    return Reading(ticks / os.sysconf("SC_CLK_TCK"))


def _stat(pid: int) -> list[str]:
    """Returns the fields of /proc/PID/stat after the process's name."""
    text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    return text.rpartition(")")[2].split()  # the name before ")" may hold anything


def cost(before: Reading, after: Reading, num_steps: int) -> ServerCost:
    """Returns the difference of two readings.

    Args:
        num_steps: steps that the load counted, used where the server itself counts none.
    """
    if before.num_steps is not None and after.num_steps is not None:
        num_steps = round(after.num_steps - before.num_steps)
    cpu_seconds = after.cpu_seconds - before.cpu_seconds
    counts = {bound: count - before.buckets.get(bound, 0.0) for bound, count in after.buckets.items()}
    return ServerCost(
        cpu_seconds=cpu_seconds,
        cpu_us_per_step=cpu_seconds / num_steps * 1e6 if num_steps else 0.0,
        p50_seconds=quantile(counts, 0.5),
        p99_seconds=quantile(counts, 0.99),
        num_steps=num_steps,
    )


def quantile(cumulative: Mapping[float, float], share: float) -> float | None:
    """Returns a quantile from counts up to each bound, as Prometheus' histogram_quantile does.

    None where nothing was counted; the last finite bound where the quantile lies above it.
    """
    bounds = sorted(cumulative)
    if not bounds or not cumulative[bounds[-1]]:
        return None
    rank = share * cumulative[bounds[-1]]
    lower, below = 0.0, 0.0
    for bound in bounds:
        count = cumulative[bound]
        if count >= rank:
            return lower + (bound - lower) * (rank - below) / (count - below) if bound < math.inf else lower
        lower, below = bound, count
    return lower


class Observer:
    """Reads a server's counters from its metrics, or from /proc if its process is given."""

    def __init__(self, metrics: str, server_pid: int) -> None:
        """Finds the server's processes once: another search would take CPU time from the load.

        Raises:
            LoadtestError: there is no such process, or no /proc.
        """
        self._metrics = metrics
        self._pids = process_tree(server_pid) if server_pid else ()

    @property
    def has_source(self) -> bool:
        """Whether there is anything to read."""
        return bool(self._metrics or self._pids)

    async def read(self) -> Reading:
        """Returns the counters now.

        Raises:
            LoadtestError: the counters cannot be read.
        """
        return await read_metrics(self._metrics) if self._metrics else read_process(*self._pids)

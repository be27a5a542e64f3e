"""Runs a server of the demo's own on free ports, and reads the step latency from its page of metrics.

Owns the server's process: whatever happens, the process ends with the block. Knows nothing of what the
server is asked.
"""

import asyncio
import collections
import contextlib
import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import AsyncIterator, Iterable

from prometheus_client.parser import text_string_to_metric_families
from streamcell.proxies import url_opener

START_SECONDS = 180.0  # loading torch from a cold disk takes its time
STOP_SECONDS = 60.0  # more than the server gives itself to drain
LATENCY = "streamcell_step_seconds"


class ServerError(Exception):
    """The server did not start; the message says why."""


@dataclasses.dataclass(frozen=True)
class Addresses:
    """Where a server listens: HOST:PORT for gRPC and for metrics."""

    grpc: str
    metrics: str


@contextlib.asynccontextmanager
async def run_server(root: pathlib.Path) -> AsyncIterator[Addresses]:
    """Runs a server with the shipped models of a checkout for the block, and yields its addresses."""
    arguments = ["-m", "service", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, "--models", "model/artifacts",
        cwd=root, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE, limit=1 << 20,
        start_new_session=True,  # Ctrl-C is for the demo alone, which then stops the server
    )  # fmt: skip
    assert process.stderr is not None  # noqa: S101 - it is a pipe
    serving: asyncio.Future[Addresses] = asyncio.get_running_loop().create_future()
    log = asyncio.create_task(_read_log(process.stderr, serving))
    try:
        yield await asyncio.wait_for(serving, START_SECONDS)
    except TimeoutError:
        raise ServerError(f"the server did not serve within {START_SECONDS:g} s") from None
    finally:
        await _stop(process)
        await log


async def _read_log(stderr: asyncio.StreamReader, serving: "asyncio.Future[Addresses]") -> None:
    """Finds the addresses in the server's log, then reads on, because a full pipe would block the server."""
    tail: collections.deque[str] = collections.deque(maxlen=20)
    async for line in stderr:
        if serving.done():
            continue
        tail.append(line.decode(errors="replace").rstrip())
        with contextlib.suppress(ValueError, TypeError, KeyError):
            event = json.loads(line)
            if event["event"] == "serving":
                serving.set_result(Addresses(event["listen"], event["metrics"]))
    if not serving.done():
        words = "\n  ".join(["the server ended before it served; its last words:", *tail])
        serving.set_exception(ServerError(words))


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Ends the server and waits for it: by SIGTERM, and if it does not end by SIGKILL."""
    for end in (process.terminate, process.kill):
        with contextlib.suppress(ProcessLookupError):
            end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
                return


def step_latency(metrics: str, name: str, version: str) -> str:
    """Returns p50 and p99 of one model's steps, from the histogram at the server's metrics address."""
    url = f"http://{metrics}/metrics"
    with url_opener(url).open(url, timeout=10) as page:
        text = page.read().decode()
    buckets = latency_buckets(text, name, version)
    p50, p99 = quantile(0.5, buckets), quantile(0.99, buckets)
    return f"p50 {p50 * 1000:.2f} ms, p99 {p99 * 1000:.2f} ms (its {LATENCY})"


def latency_buckets(text: str, name: str, version: str) -> list[tuple[float, float]]:
    """Returns one model's latency buckets from a page of metrics: upper bounds and counts up to them."""
    return [
        (float(sample.labels["le"]), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"{LATENCY}_bucket"
        and (sample.labels.get("model"), sample.labels.get("version")) == (name, version)
    ]


def quantile(q: float, buckets: Iterable[tuple[float, float]]) -> float:
    """Estimates a quantile from cumulative buckets, as Prometheus' histogram_quantile does.

    Linear within the bucket; beyond the last finite bound, that bound; NaN without observations.
    """
    bounds = sorted(buckets)
    total = bounds[-1][1] if bounds else 0.0
    if not total:
        return math.nan
    lower, below = 0.0, 0.0
    for upper, count in bounds:
        if count >= q * total:
            if math.isinf(upper):
                return lower
            return lower + (upper - lower) * (q * total - below) / (count - below) if count > below else lower
        lower, below = upper, count
    return lower

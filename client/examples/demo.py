"""Streams a series through a server of its own and shows each prediction beside what then came.

Run from a checkout: `python client/examples/demo.py [--csv FILE] [--model NAME] [--every N]`. It owns the
server's process: whatever happens, none is left behind. How steps travel is the library's.
"""

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import datetime
import json
import math
import os
import pathlib
import signal
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterable

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "client")]  # a checkout serves too where nothing is installed

from prometheus_client.parser import text_string_to_metric_families  # noqa: E402
from streamcell import Client, Model, RetryPolicy, Session, StreamcellError, Timeout  # noqa: E402

from model.datasets import Series, mackey_glass, read_csv  # noqa: E402
from model.errors import SeriesError  # noqa: E402

NUM_TABLE_ROWS = 18
NUM_GENERATED_ROWS = 3000
GENERATED_SEED = 2026  # not one that the shipped model was trained with
FORECAST_STEPS = 6
START_SECONDS = 180.0  # loading torch from a cold disk takes its time
STOP_SECONDS = 60.0  # more than the server gives itself to drain
LATENCY = "streamcell_step_seconds"


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


@dataclasses.dataclass(frozen=True)
class Target:
    """Which output is shown, which input it is about, and the series' column for each input."""

    output_at: int
    input_at: int
    columns: tuple[int, ...]


class Errors:
    """The running errors of a prediction: mean absolute, and absolute over the mean magnitude (altMAPE)."""

    def __init__(self) -> None:
        self.count = 0
        self._absolute = 0.0
        self._magnitude = 0.0

    def add(self, predicted: float, actual: float) -> None:
        """Counts one prediction."""
        self.count += 1
        self._absolute += abs(predicted - actual)
        self._magnitude += abs(actual)

    @property
    def mae(self) -> float:
        """Mean |e|."""
        return self._absolute / max(self.count, 1)

    @property
    def alt_mape(self) -> float:
        """Mean |e| / mean |y|; NaN for a series of zeros."""
        return self._absolute / self._magnitude if self._magnitude else math.nan


class Table:
    """The lines of the running comparison."""

    def __init__(self, series: Series, scale: float) -> None:
        self._series = series
        # Five digits of what is usual for the series, and none behind the point for large values.
        self._decimals = min(max(4 - math.floor(math.log10(scale)), 0), 6) if scale > 0 else 4

    def title(self) -> str:
        """The columns' names."""
        left = f"{'time':<19}{'actual':>12}{'predicted':>12}{'error':>12}"
        return f"{left}   |{'MAE so far':>12}{'persistence':>13}"

    def line(self, row: int, actual: float, predicted: float | None, model: Errors, naive: Errors) -> str:
        """One row of the series: what came, what had been predicted, and the errors so far."""
        left = f"{self.when(int(self._series.times_ns[row])):<19}{self.number(actual):>12}"
        if predicted is None:
            return f"{left}{'-':>12}{'-':>12}   |{'-':>12}{'-':>13}"
        error = f"{actual - predicted:+,.{self._decimals}f}"
        middle = f"{self.number(predicted):>12}{error:>12}"
        return f"{left}{middle}   |{self.number(model.mae):>12}{self.number(naive.mae):>13}"

    def number(self, value: float) -> str:
        """A value of the series, or a difference of two."""
        return f"{value:,.{self._decimals}f}"

    def when(self, time_ns: int) -> str:
        """A time of the series: a date, or a count of seconds."""
        if not self._series.calendar:
            return f"t = {time_ns / 1e9:,g} s"
        moment = datetime.datetime.fromtimestamp(time_ns // 10**9, datetime.UTC)
        return f"{moment:%Y-%m-%d %H:%M:%S}"


def main() -> int:
    """Runs the demo and returns its exit status."""
    options = _parser().parse_args()
    try:
        return asyncio.run(_run_until_signal(options))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # no complaint at the end
        return 141
    except (DemoError, SeriesError, StreamcellError) as error:
        sys.stdout.flush()
        sys.stderr.write(f"demo: {error}\n")
        return 1


async def _run_until_signal(options: argparse.Namespace) -> int:
    """Runs the demo; being told to stop, by a closed terminal too, is the same to it as Ctrl-C."""
    task = asyncio.create_task(run(options))
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        if not received:  # by Ctrl-C, which asyncio.run makes a KeyboardInterrupt of
            raise
    return 128 + received[0] if received else 0


async def run(options: argparse.Namespace) -> None:
    """Starts a server, streams the series through it, sums up, stops the server."""
    series, source = _series(options.csv)
    name = options.model or ("nyc-taxi" if options.csv else "mackey-glass")
    began = time.monotonic()
    _say("starting a server: python -m service --listen 127.0.0.1:0 --models model/artifacts")
    # The server is a child on this machine: where it is gone, long patience is in vain.
    retry, timeout = RetryPolicy(max_total_seconds=5.0), Timeout(connect_seconds=2.0)
    async with (
        _server() as (listen, metrics),
        Client(listen, retry=retry, timeout=timeout) as client,
    ):
        _say(
            f"ready after {time.monotonic() - began:.1f} s: gRPC on {listen}, metrics on http://{metrics}/metrics"
        )
        async with client.session(model=name) as session:
            model = await _model_of(client, session)
            target = _target(model, series)
            _say(f"streaming {source}, step by step, through model {model.name}/{model.version}")
            _warn_of_interval(model, series, options.csv)
            await _stream(session, model, series, target, options.every)
            _say(f"step latency on the server: {await asyncio.to_thread(_latency, metrics, model)}")
            await _show_forecast(session, model, series, target)
    _say("\nserver stopped")


async def _stream(session: Session, model: Model, series: Series, target: Target, every: int | None) -> None:
    column = target.columns[target.input_at]
    actuals = series.values[:, column].tolist()
    table = Table(series, sum(map(abs, actuals)) / len(actuals))
    every = every or math.ceil(len(series) / NUM_TABLE_ROWS)
    errors, naive = Errors(), Errors()
    unit = model.inputs[target.input_at].unit
    named = f"{series.names[column]} [{unit}]" if unit else series.names[column]
    _say(f"\n{named}: each row beside what had been predicted for it one step before")
    _say(table.title())
    predicted = None
    began = time.monotonic()
    async for reply in session.stream(_rows(series, target)):
        row = reply.step_index
        if predicted is not None:
            errors.add(predicted, actuals[row])
            naive.add(actuals[row - 1], actuals[row])
        if row % every == 0 or row == len(series) - 1:
            _say(table.line(row, actuals[row], predicted, errors, naive))
        predicted = reply.y[target.output_at]
    _sum_up(table, errors, naive, len(series), time.monotonic() - began)


def _sum_up(table: Table, errors: Errors, naive: Errors, num_rows: int, seconds: float) -> None:
    _say(f"\n{num_rows:,} rows in {seconds:.2f} s: {num_rows / seconds:,.0f} steps/s over one stream")
    _say(f"{'':<14}{'model':>12}{'persistence':>14}   (persistence: the next value is this one)")
    _say(f"{'MAE':<14}{table.number(errors.mae):>12}{table.number(naive.mae):>14}")
    _say(f"{'altMAPE':<14}{errors.alt_mape:>12.2%}{naive.alt_mape:>14.2%}")
    if naive.mae:
        change = errors.mae / naive.mae - 1
        _say(f"the model's error is {abs(change):.1%} {'above' if change > 0 else 'below'} persistence's")


async def _show_forecast(session: Session, model: Model, series: Series, target: Target) -> None:
    forecast = await session.forecast(FORECAST_STEPS)
    actuals = series.values[:, target.columns[target.input_at]]
    table = Table(series, float(abs(actuals).mean()))
    interval_ns = series.interval_ns or round(model.step_interval_seconds * 1e9)
    _say(f"\nforecast of the {FORECAST_STEPS} steps after the last row")
    for ahead, y in enumerate(forecast, start=1):
        when = table.when(int(series.times_ns[-1]) + ahead * interval_ns)
        _say(f"{when:<19}{'':>12}{table.number(y[target.output_at]):>12}")


async def _rows(series: Series, target: Target) -> AsyncIterator[tuple[int, list[float]]]:
    for time_ns, values in zip(series.times_ns.tolist(), series.values.tolist(), strict=True):
        yield time_ns, [values[column] for column in target.columns]


def _series(path: pathlib.Path | None) -> tuple[Series, str]:
    """Returns the series to stream and what to call it."""
    if path is None:
        series = mackey_glass(NUM_GENERATED_ROWS, seed=GENERATED_SEED)
        return series, f"{len(series):,} rows of a Mackey-Glass series new to it"
    series = read_csv(path)
    return series, f"{len(series):,} rows of {path.name}"


async def _model_of(client: Client, session: Session) -> Model:
    version = (session.model_name, session.model_version)
    return next(model for model in await client.models() if (model.name, model.version) == version)


def _target(model: Model, series: Series) -> Target:
    """Returns which value is compared; the series must have a column for each input, by name or in order."""
    inputs = [variable.name for variable in model.inputs]
    if set(inputs) <= set(series.names):
        columns = tuple(series.names.index(name) for name in inputs)
    elif len(inputs) == len(series.names):
        columns = tuple(range(len(inputs)))
    else:
        raise DemoError(
            f"the series has {len(series.names)} value columns ({', '.join(series.names)});"
            f" model {model.name} takes {len(inputs)}: {', '.join(inputs)}"
        )
    output_at = next((at for at, output in enumerate(model.outputs) if output.role == "mean"), 0)
    about = model.outputs[output_at].target
    return Target(output_at, inputs.index(about) if about in inputs else 0, columns)


def _warn_of_interval(model: Model, series: Series, path: pathlib.Path | None) -> None:
    wanted, given = model.step_interval_seconds, series.interval_ns / 1e9
    if path is None or not wanted or math.isclose(wanted, given):
        return
    found = f"{given:g} s apart" if given else "unevenly apart"
    _say(
        f"note: the file's rows are {found}, the model's {wanted:g} s: trained on another series, it will\n"
        "      do poorly. To train one on this file:\n"
        f"      python -m model train --csv {path} --out DIR"
    )


@contextlib.asynccontextmanager
async def _server() -> AsyncIterator[tuple[str, str]]:
    """Runs a server on free ports for the block, and yields its two addresses."""
    arguments = ["-m", "service", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, "--models", "model/artifacts",
        cwd=ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE, limit=1 << 20,
        start_new_session=True,  # Ctrl-C is for the demo, which stops the server when it is done with it
    )  # fmt: skip
    assert process.stderr is not None  # noqa: S101 - it is a pipe
    serving: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()
    log = asyncio.create_task(_read_log(process.stderr, serving))
    try:
        yield await asyncio.wait_for(serving, START_SECONDS)
    except TimeoutError:
        raise DemoError(f"the server did not serve within {START_SECONDS:g} s") from None
    finally:
        await _stop(process)
        await log


async def _read_log(stderr: asyncio.StreamReader, serving: "asyncio.Future[tuple[str, str]]") -> None:
    """Finds the addresses for gRPC and metrics in the server's log, then reads on: a full pipe blocks it."""
    tail: collections.deque[str] = collections.deque(maxlen=20)
    async for line in stderr:
        if serving.done():
            continue
        tail.append(line.decode(errors="replace").rstrip())
        with contextlib.suppress(ValueError, TypeError, KeyError):
            event = json.loads(line)
            if event["event"] == "serving":
                serving.set_result((event["listen"], event["metrics"]))
    if not serving.done():
        words = "\n  ".join(["the server ended before it served; its last words:", *tail])
        serving.set_exception(DemoError(words))


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Ends the server and waits for it: politely first."""
    for end in (process.terminate, process.kill):
        with contextlib.suppress(ProcessLookupError):
            end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
                return


def _latency(metrics: str, model: Model) -> str:
    """Returns p50 and p99 of a step, as the server's histogram tells."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as page:
        text = page.read().decode()
    buckets = latency_buckets(text, model.name, model.version)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Streams a series through a server of its own.")
    parser.add_argument("--csv", type=pathlib.Path, metavar="FILE", help="a series (a generated one)")
    parser.add_argument("--model", metavar="NAME", help="mackey-glass, or nyc-taxi with --csv")
    parser.add_argument("--every", type=_positive, metavar="N", help="show every N-th row (some 20 in all)")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows")
    return int(text)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

"""Streams a series through a server of its own and shows each prediction beside the value that then came.

Run from a checkout: `python client/examples/demo.py [--csv FILE] [--model NAME] [--every N]`. How to use the
library is in `run`, `stream` and `show_forecast`; `own_server` and `comparison` beside this file do the rest.
"""

import argparse
import asyncio
import dataclasses
import math
import os
import pathlib
import signal
import sys
import time
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A checkout serves too where nothing is installed.
sys.path[:0] = [str(ROOT), str(ROOT / "client"), str(ROOT / "client" / "examples")]

from comparison import Comparison  # noqa: E402
from own_server import ServerError, run_server, step_latency  # noqa: E402
from streamcell import Client, Model, RetryPolicy, Session, StreamcellError, Timeout  # noqa: E402

from model.datasets import Series, mackey_glass, read_csv  # noqa: E402
from model.errors import SeriesError  # noqa: E402

NUM_TABLE_ROWS = 18
NUM_GENERATED_ROWS = 3000
GENERATED_SEED = 2026  # not one that the shipped model was trained with
FORECAST_STEPS = 6


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


@dataclasses.dataclass(frozen=True)
class Target:
    """Which output is shown, the series' column that it predicts, and the column for each input."""

    output_at: int
    column: int
    columns: tuple[int, ...]


async def run(options: argparse.Namespace) -> None:
    """Starts a server, streams the series through it, shows the errors and a forecast, stops the server."""
    series, source = _series(options.csv)
    name = options.model or ("nyc-taxi" if options.csv else "mackey-glass")
    began = time.monotonic()
    _say("starting a server: python -m service --listen 127.0.0.1:0 --models model/artifacts")
    # The server is a child process on this machine: if it is gone, waiting for it is of no use.
    retry, timeout = RetryPolicy(max_total_seconds=5.0), Timeout(connect_seconds=2.0)
    async with (
        run_server(ROOT) as server,
        Client(server.grpc, retry=retry, timeout=timeout) as client,
    ):
        seconds = time.monotonic() - began
        _say(
            f"ready after {seconds:.1f} s: gRPC on {server.grpc}, metrics on http://{server.metrics}/metrics"
        )
        async with client.session(model=name) as session:
            model = await _model_of(client, session)
            target = _target(model, series)
            _say(f"streaming {source}, step by step, through model {model.name}/{model.version}")
            _warn_of_interval(model, series, options.csv)
            comparison = Comparison(series, target.column)
            named = _named(model, series, target)
            _say(f"\n{named}: each row beside what had been predicted for it one step before")
            await stream(session, series, target, comparison, every=options.every)
            latency = await asyncio.to_thread(step_latency, server.metrics, model.name, model.version)
            _say(f"step latency on the server: {latency}")
            interval_ns = series.interval_ns or round(model.step_interval_seconds * 1e9)
            await show_forecast(session, target, comparison, interval_ns)
    _say("\nserver stopped")


async def stream(
    session: Session, series: Series, target: Target, comparison: Comparison, *, every: int | None
) -> None:
    """Streams the series' rows and compares each prediction with the row after it."""
    every = every or math.ceil(len(series) / NUM_TABLE_ROWS)
    _say(comparison.title())
    predicted = None
    began = time.monotonic()
    async for prediction in session.stream(_rows(series, target)):
        row = prediction.step_index
        if predicted is not None:
            comparison.add(row, predicted)
        if row % every == 0 or row == len(series) - 1:
            _say(comparison.line(row, predicted))
        predicted = prediction.y[target.output_at]
    seconds = time.monotonic() - began
    _say(f"\n{len(series):,} rows in {seconds:.2f} s: {len(series) / seconds:,.0f} steps/s over one stream")
    for line in comparison.summary():
        _say(line)


async def show_forecast(session: Session, target: Target, comparison: Comparison, interval_ns: int) -> None:
    """Predicts the steps after the last row, which leaves the session as it was."""
    _say(f"\nforecast of the {FORECAST_STEPS} steps after the last row")
    for ahead, y in enumerate(await session.forecast(FORECAST_STEPS), start=1):
        _say(comparison.forecast_line(ahead * interval_ns, y[target.output_at]))


def _rows(series: Series, target: Target) -> Iterator[tuple[int, list[float]]]:
    """Yields what a stream takes: the time of each row in Unix nanoseconds, and the model's inputs."""
    for time_ns, values in zip(series.times_ns.tolist(), series.values.tolist(), strict=True):
        yield time_ns, [values[column] for column in target.columns]


def _series(path: pathlib.Path | None) -> tuple[Series, str]:
    """Returns the series to stream and its name for people."""
    if path is None:
        series = mackey_glass(NUM_GENERATED_ROWS, seed=GENERATED_SEED)
        return series, f"{len(series):,} rows of a Mackey-Glass series new to it"
    series = read_csv(path)
    return series, f"{len(series):,} rows of {path.name}"


async def _model_of(client: Client, session: Session) -> Model:
    version = (session.model_name, session.model_version)
    return next(model for model in await client.models() if (model.name, model.version) == version)


def _target(model: Model, series: Series) -> Target:
    """Chooses the output to show; the series must have a column for each input, by name or in order."""
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
    return Target(output_at, columns[inputs.index(about) if about in inputs else 0], columns)


def _named(model: Model, series: Series, target: Target) -> str:
    """Returns the name of the column that is predicted, with its unit."""
    unit = model.inputs[target.columns.index(target.column)].unit
    return f"{series.names[target.column]} [{unit}]" if unit else series.names[target.column]


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


def main() -> int:
    """Runs the demo and returns its exit status."""
    options = _parser().parse_args()
    try:
        return asyncio.run(_run_until_signal(options))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # no complaint when Python exits
        return 141
    except (DemoError, ServerError, SeriesError, StreamcellError) as error:
        sys.stdout.flush()
        sys.stderr.write(f"demo: {error}\n")
        return 1


async def _run_until_signal(options: argparse.Namespace) -> int:
    """Runs the demo; SIGTERM, and SIGHUP of a closed terminal, stop it as Ctrl-C does."""
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
        if not received:  # by Ctrl-C, which asyncio.run turns into KeyboardInterrupt
            raise
    return 128 + received[0] if received else 0


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

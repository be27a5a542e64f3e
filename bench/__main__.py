"""The command `python -m bench`: measures, and writes bench.json, bench.md and bench.png."""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import sys

from bench import machine, plot, report
from bench.errors import BenchError
from bench.figures import Summary, summarise
from bench.processes import ROOT, Cores
from bench.rounds import FULL, QUICK, Measured, Plan, measure
from service.processes import tuning


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = _parser().parse_args(arguments)
    tuning.make_products_reproducible(os.environ)  # the cell and the engine are measured as they are served
    plan = QUICK if options.quick else _plan(options.rounds, options.seconds)
    cores = Cores(machine.cores())
    try:
        measured = measure(plan, cores, _show_progress)
    except BenchError as error:
        _show_progress("")
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    _show_progress("")
    summary = summarise(measured.rounds, measured.left_out)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    about = report.About(date=today, machine=machine.describe(), pinning=str(cores), plan=plan)
    _write(options.out / ("quick" if options.quick else "bench"), about, measured, summary)
    if options.check and summary.missed:
        print(f"bench: targets missed: {'; '.join(summary.missed)}", file=sys.stderr)
        return 1
    return 0


def _plan(num_rounds: int, seconds: float) -> Plan:
    lengths = dataclasses.replace(FULL.lengths, seconds=seconds)
    return dataclasses.replace(FULL, num_rounds=num_rounds, lengths=lengths)


def _write(stem: pathlib.Path, about: report.About, measured: Measured, summary: Summary) -> None:
    """Writes the files and prints the tables."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    found = report.to_json(about, measured, summary)
    stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    text = report.markdown(about, measured, summary)
    stem.with_suffix(".md").write_text(text)
    plot.save(stem.with_suffix(".png"), about, summary)
    print(text)
    print(f"Written to {stem}.json, .md and .png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures the server beside its floors: an empty gRPC echo, and the cell alone.",
        epilog="Takes about eight minutes. Cases that are compared are measured one after the other in a "
        "round, and their ratio is taken within the round: on a machine that does other things too, read the "
        "ratios and not the figures.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one short round, to see that the benchmark works"
    )
    parser.add_argument(
        "--rounds", type=_at_least(int, 1), default=FULL.num_rounds, help="number of rounds (%(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=_at_least(float, 0.1),
        default=FULL.lengths.seconds,
        help="seconds measured for each case (%(default)s)",
    )
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a target is missed")
    default = ROOT / "bench" / "results"
    parser.add_argument(
        "--out", type=pathlib.Path, default=default, help="folder for the results (bench/results)"
    )
    return parser


def _at_least(kind: type[int] | type[float], least: float) -> "type[int] | type[float]":
    def convert(text: str) -> int | float:
        value = kind(text)
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return value

    return convert  # type: ignore[return-value]  # argparse takes any callable


def _show_progress(line: str) -> None:
    """Shows what is being measured: on one line of a terminal, which it overwrites; elsewhere a line each."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
    elif line:
        print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

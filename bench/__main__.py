"""The command `python -m bench`: measures, and writes bench.json, bench.md and bench.png."""

import argparse
import dataclasses
import datetime
import json
import pathlib
import sys

from bench import machine, plot, report
from bench.errors import BenchError
from bench.figures import summarise
from bench.processes import ROOT, Cores
from bench.rounds import FULL, QUICK, measure


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = _parser().parse_args(arguments)
    plan = (
        QUICK
        if options.quick
        else dataclasses.replace(FULL, num_rounds=options.rounds, seconds=options.seconds)
    )
    cores = Cores()
    try:
        rounds = measure(plan, cores, _tell)
    except BenchError as error:
        _tell("")
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    _tell("")
    summary = summarise(rounds)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    about = report.About(today, machine.describe(), str(cores), plan)
    stem = options.out / ("quick" if options.quick else "bench")
    options.out.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(report.to_json(about, rounds, summary), indent=1) + "\n")
    text = report.markdown(about, summary)
    stem.with_suffix(".md").write_text(text)
    plot.save(stem.with_suffix(".png"), about, summary)
    print(text)
    print(f"Written to {stem}.json, .md and .png")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures the server beside its floors: an empty gRPC echo, and the cell alone.",
        epilog="About five minutes. Everything is measured in every round, and ratios are taken within a "
        "round: on a machine that does other things too, read those and not the figures.",
    )
    parser.add_argument("--quick", action="store_true", help="one short round, to see that it works")
    parser.add_argument(
        "--rounds", type=_at_least(int, 1), default=FULL.num_rounds, help="rounds (%(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=_at_least(float, 0.1),
        default=FULL.seconds,
        help="seconds measured a case (%(default)s)",
    )
    default = ROOT / "bench" / "results"
    parser.add_argument("--out", type=pathlib.Path, default=default, help="folder (bench/results)")
    return parser


def _at_least(kind: type[int] | type[float], least: float) -> "type[int] | type[float]":
    def convert(text: str) -> int | float:
        value = kind(text)
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return value

    return convert  # type: ignore[return-value]  # argparse takes any callable


def _tell(line: str) -> None:
    """Shows what is under way, on one line of a terminal or a line each elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
    elif line:
        print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

"""Owns the options that several commands share: the series, its rows, the horizons.

Knows nothing of what the commands do with them.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

from model.datasets import Series, mackey_glass, read_csv
from model.errors import OptionError


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options that name a series: a CSV file, or a generated series."""
    series = parser.add_argument_group("the series")
    source = series.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="a CSV file with a header, a time column and columns of numbers",
    )
    source.add_argument(
        "--generate", choices=["mackey-glass"], help="generate the Mackey-Glass series instead"
    )
    series.add_argument(
        "--time-column", metavar="NAME", help="the time column (default: found by its name or its dates)"
    )
    series.add_argument(
        "--generate-rows", type=int, default=6000, metavar="N", help="rows to generate (default 6000)"
    )
    series.add_argument(
        "--generate-seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the history before the generated rows (default 0)",
    )
    series.add_argument(
        "--tau", type=float, default=17.0, help="delay of the Mackey-Glass equation (default 17)"
    )


def read_source(options: argparse.Namespace, columns: list[str] | None) -> tuple[Series, dict[str, Any]]:
    """Reads or generates the series, and returns it with its source: plain values for the manifest."""
    if options.csv is not None:
        series = read_csv(options.csv, columns, options.time_column)
        return series, {
            "name": options.csv.name,
            "sha256": hashlib.sha256(options.csv.read_bytes()).hexdigest(),
        }
    try:
        series = mackey_glass(options.generate_rows, seed=options.generate_seed, tau=options.tau)
    except ValueError as error:
        raise OptionError(str(error)) from error
    if columns not in (None, list(series.names)):
        raise OptionError(f"the generated series has only the column {series.names[0]!r}")
    return series, {"name": options.generate, "seed": options.generate_seed, "tau": options.tau}


def parse_range(text: str, num_rows: int) -> tuple[int, int]:
    """Reads START:STOP, rows from 0, without STOP; either may be missing. OptionError where it is wrong."""
    start_text, colon, stop_text = text.partition(":")
    try:
        start, stop = int(start_text or 0), int(stop_text or num_rows)
    except ValueError:
        colon = ""
    if not colon:
        raise OptionError(f"--rows {text}: not two whole numbers START:STOP")
    if not 0 <= start < stop <= num_rows:
        raise OptionError(f"--rows {text}: not within the {num_rows} rows of the series")
    return start, stop


def parse_horizons(text: str) -> list[int]:
    """Reads numbers of steps ahead, separated by commas, and returns them sorted, each once."""
    try:
        horizons = sorted({int(part) for part in text.split(",")})
    except ValueError:
        horizons = [0]
    if horizons[0] < 1:
        raise OptionError(f"--horizons {text}: not whole numbers from 1 on, separated by commas")
    return horizons

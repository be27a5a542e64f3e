"""Owns the `evaluate` command: an artifact and a series in, a comparison with simple forecasts out.

Knows nothing of how the forecasts are made; see backtest.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from model.artifact import Artifact, load_artifact
from model.backtest import run_backtest
from model.errors import OptionError
from model.files import write_atomically
from model.options import add_source_arguments, parse_horizons, read_source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument("--artifact", type=Path, required=True, metavar="FILE", help="the artifact, model.pt")
    add_source_arguments(parser)
    parser.add_argument(
        "--horizons", default="1,5,48", help="steps ahead to compare, separated by commas (default 1,5,48)"
    )
    parser.add_argument(
        "--from-row",
        type=int,
        metavar="ROW",
        help="first row whose forecasts count; the rows before prime the state (default: half of the rows)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")


def run(options: argparse.Namespace) -> str:
    """Returns the comparison as a table, and writes it as JSON where --json names a file."""
    horizons = parse_horizons(options.horizons)
    artifact = load_artifact(options.artifact)
    _require_usable(artifact)
    series, _ = read_source(options, [column.name for column in artifact.manifest.inputs])
    interval, expected = series.interval_ns / 1e9, artifact.manifest.step_interval_seconds
    if interval and expected and interval != expected:
        raise OptionError(
            f"the rows are {interval:g} s apart, but {artifact.manifest.name} steps every {expected:g} s"
        )
    from_row = len(series) // 2 if options.from_row is None else options.from_row
    backtest = run_backtest(artifact, series, from_row=from_row, horizon=horizons[-1])
    table = backtest.table(horizons)
    if options.json is not None:
        write_atomically(options.json, (json.dumps(table, indent=2) + "\n").encode())
    return as_text(table, backtest.period)


def _require_usable(artifact: Artifact) -> None:
    names = [column.name for column in artifact.manifest.inputs]
    unknown = [output.target for output in artifact.manifest.outputs if output.target not in names]
    if unknown:
        raise OptionError(
            f"output target {unknown[0]!r} is not an input, so the series has no actual values for it"
        )
    if artifact.manifest.future:
        raise OptionError(
            f"the artifact needs the future input {artifact.manifest.future[0].name!r}, which no option gives"
        )


def as_text(table: dict[str, Any], period: int) -> str:
    """Formats the comparison as a table with one line per horizon and forecast."""
    season = f"the season of the seasonal naive forecast is {period} rows"
    lines = [f"{table['rows']:,} rows; {season}", ""]
    lines.append(f"{'horizon':>7}  {'forecast':<22}{'MAE':>14}{'RMSE':>14}{'altMAPE':>10}")
    for horizon, forecasts in table["horizons"].items():
        for name, row in forecasts.items():
            altmape = "-" if row["altmape"] is None else f"{row['altmape']:.4f}"
            lines.append(
                f"{horizon:>7}  {name.replace('_', ' '):<22}"
                f"{row['mae']:>14,.5g}{row['rmse']:>14,.5g}{altmape:>10}"
            )
    return "\n".join(lines)

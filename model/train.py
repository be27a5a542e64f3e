"""Owns the `train` command: options in, an artifact and a report out.

Knows nothing of how the fit is done; see early_stopping and fitting.
"""

import argparse
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from model.artifact import Artifact, load_artifact, save_artifact
from model.cells import CELLS
from model.datasets import Series
from model.early_stopping import Epoch, Plan, Training, network_with
from model.errors import OptionError
from model.evaluate import Outlook, look_ahead
from model.fitting import Recipe, Rows
from model.network import Architecture
from model.options import add_source_arguments, parse_horizons, parse_range, read_source
from model.provenance import describe, manifest_of

_DEFAULTS = Recipe()
_PURPOSES = {
    "seed": "seed of weights, dropout, noise and stream starts",
    "max_epochs": "epochs at most",
    "patience_epochs": "epochs without a better validation loss before the search stops",
    "num_streams": "parallel contiguous pieces of the series",
    "window_steps": "steps back through which gradients flow",
    "burn_in_steps": "first steps of each stream, which count for no loss",
    "learning_rate": "peak learning rate; it falls by a cosine over --max-epochs",
    "weight_decay": "decoupled weight decay",
    "clip_norm": "largest norm of the gradient",
    "input_noise": "standard deviation of noise on the scaled inputs",
    "averaging": "decay per update of the average of the weights",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    add_source_arguments(parser)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder that gets NAME/VERSION/model.pt and the report"
    )
    parser.add_argument("--name", help="the model's name (default: that of the series)")
    parser.add_argument("--model-version", default="1", help="the model's version (default 1)")
    parser.add_argument("--description", help="one sentence for the manifest")
    parser.add_argument("--attribution", default="", help="where the series came from, and its licence")
    parser.add_argument("--columns", help="value columns, separated by commas (default: all)")
    parser.add_argument("--units", default="", help="their units, separated by commas")
    parser.add_argument("--rows", default=":", help="rows to learn from, START:STOP (default: all)")
    parser.add_argument(
        "--validation", type=float, default=0.2, help="share of them, at the end, that judges (default 0.2)"
    )
    parser.add_argument(
        "--refit", action="store_true", help="then fit anew on all of them for the best number of epochs"
    )
    parser.add_argument(
        "--calendar", choices=["auto", "yes", "no"], default="auto", help="use time of day and week"
    )
    parser.add_argument("--horizons", default="1,5,48", help="steps ahead in the report (default 1,5,48)")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in the output folder"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="threads; the weights' last bits depend on it (default 1)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    _add_architecture_arguments(parser)
    for field in fields(Recipe):
        default = getattr(_DEFAULTS, field.name)
        purpose = f"{_PURPOSES[field.name]} (default {default:g})"
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=type(default), default=default, help=purpose
        )


def _add_architecture_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cell", choices=sorted(CELLS), default="lstm", help="kind of cell (default lstm)")
    parser.add_argument("--hidden", type=int, default=128, help="hidden size, a multiple of 16 (default 128)")
    parser.add_argument("--layers", type=int, default=1, help="layers (default 1)")
    parser.add_argument(
        "--head", type=int, default=0, help="width of the head's hidden layer (default 0: none)"
    )
    parser.add_argument(
        "--head-steps", type=int, default=48, help="steps ahead predicted directly (default 48)"
    )
    parser.add_argument("--dropout", type=float, default=0.0, help="dropout before the head (default 0)")


def run(options: argparse.Namespace) -> str:
    """Trains, writes the artifact and the report, and says where."""
    horizons = parse_horizons(options.horizons)
    series, source = read_source(options, options.columns.split(",") if options.columns else None)
    start, stop = parse_range(options.rows, len(series))
    _check(options, stop - start)
    torch.set_num_threads(options.threads)
    plan = make_plan(options, series.rows(start, stop), {**source, "rows": [start, stop]})
    name = options.name or Path(source["name"]).stem
    if 2 * max(horizons[-1], options.head_steps) > stop - start - plan.num_validation:
        raise OptionError(
            f"{stop - start - plan.num_validation} rows to learn from are too few"
            f" for {max(horizons[-1], options.head_steps)} steps ahead"
        )
    folder = options.out / name / options.model_version
    about = describe(options, series, plan.source, name)
    training = Training(plan, Rows.of(series.rows(start, stop)), about, folder / "checkpoint.pt")
    if options.resume:
        training.resume()
    _run_with_progress(training, options.quiet)
    return _finish(training, series, folder, horizons)


def make_plan(options: argparse.Namespace, series: Series, source: dict[str, Any]) -> Plan:
    """Turns options into a plan; OptionError where a value cannot be used."""
    uses_time = options.calendar == "yes" or (
        options.calendar == "auto" and series.calendar and series.interval_ns > 0
    )
    try:
        architecture = Architecture(
            num_inputs=len(series.names),
            num_outputs=len(series.names),
            interval_ns=series.interval_ns,
            uses_time=uses_time,
            cell=options.cell,
            hidden_size=options.hidden,
            num_layers=options.layers,
            head_size=options.head,
            head_steps=options.head_steps,
            dropout=options.dropout,
        )
    except ValueError as error:
        raise OptionError(str(error)) from error
    recipe = Recipe(**{field.name: getattr(options, field.name) for field in fields(Recipe)})
    return Plan(architecture, recipe, round(len(series) * options.validation), options.refit, source)


def _check(options: argparse.Namespace, num_rows: int) -> None:
    positive = (
        "max_epochs",
        "patience_epochs",
        "num_streams",
        "window_steps",
        "learning_rate",
        "clip_norm",
        "threads",
    )
    for name in positive:
        if not getattr(options, name) > 0:
            raise OptionError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be over 0")
    for name in ("burn_in_steps", "weight_decay", "input_noise"):
        if not getattr(options, name) >= 0:
            raise OptionError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be 0 or more")
    for name in ("averaging", "dropout"):
        if not 0 <= getattr(options, name) < 1:
            raise OptionError(f"--{name} {getattr(options, name)}: must be from 0 to under 1")
    if not 0 < options.validation < 1 or round(num_rows * options.validation) < 2:
        raise OptionError(f"--validation {options.validation}: leaves no validation part in {num_rows} rows")
    for text in (options.name or "name", options.model_version):
        if text != Path(text).name or text.startswith("."):
            raise OptionError(f"{text!r} cannot be the name of a folder")


def _run_with_progress(training: Training, quiet: bool) -> None:
    if quiet:
        training.run()
        return
    from tqdm import tqdm  # type: ignore[import-untyped]

    recipe = training.plan.recipe
    total = recipe.max_epochs * (2 if training.plan.refit else 1)
    with tqdm(total=total, initial=len(training.history), unit="epoch", file=sys.stderr) as bar:

        def show(epoch: Epoch) -> None:
            losses = {"phase": epoch.phase, "training": epoch.training_loss, "best": training.best_loss}
            bar.set_postfix(losses, refresh=False)
            bar.update()

        training.run(show)


def _finish(training: Training, series: Series, folder: Path, horizons: list[int]) -> str:
    """Judges, writes the artifact and the report."""
    from model.report import write_report

    plan, architecture = training.plan.to_dict(), training.plan.architecture
    start, stop = training.plan.source["rows"]
    known = {"best_epoch": training.best_epoch}
    searched = Artifact(
        network_with(architecture, training.best_weights), manifest_of(plan, training.about, known)
    )
    farthest = max(horizons[-1], architecture.head_steps)
    outlooks: dict[str, Outlook] = {
        "validation": look_ahead(searched, series.rows(start, stop), training.num_search_rows, farthest)
    }
    final = network_with(architecture, training.final_weights)
    if len(series) - stop >= 2:
        unseen = Artifact(final, manifest_of(plan, training.about, known))
        outlooks["unseen"] = look_ahead(unseen, series.rows(start, len(series)), stop - start, farthest)
    judged = {part: outlook.table(horizons) for part, outlook in outlooks.items()}
    manifest = manifest_of(plan, training.about, {**known, "figures": judged})
    save_artifact(final, manifest, folder / "model.pt")
    load_artifact(folder / "model.pt")
    history = [asdict(epoch) for epoch in training.history]
    write_report(folder, manifest, history, outlooks, judged, series)
    return f"wrote {folder}/model.pt, report.md and figures.json"

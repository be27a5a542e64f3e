"""Owns the `train` command: options and a series in, an artifact and a report out.

Knows nothing of how a network is fitted; see early_stopping and fitting.
"""

import argparse
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from model import gate_bias
from model.artifact import Artifact, load_artifact, save_artifact
from model.backtest import Backtest, run_backtest
from model.cells import CELLS
from model.datasets import Series
from model.early_stopping import Epoch, Plan, Training
from model.errors import OptionError
from model.fitting import Recipe, Rows
from model.manifest import Manifest
from model.network import Architecture, network_with
from model.options import add_source_arguments, parse_horizons, parse_range, read_source
from model.provenance import about_of, manifest_of

_DEFAULTS = Recipe()
_PURPOSES = {
    "seed": "seed of the first weights, dropout, noise and where streams start",
    "max_epochs": "largest number of epochs in the search",
    "patience_epochs": "epochs without a better validation loss before the search stops",
    "num_streams": "parallel pieces of the series, each with its own state",
    "window_steps": "steps back through which gradients flow",
    "burn_in_steps": "first steps of each stream, which do not count in the loss",
    "learning_rate": "peak learning rate; it falls along half a cosine over --max-epochs",
    "weight_decay": "decoupled weight decay, as in AdamW",
    "clip_norm": "largest norm of the gradient; longer gradients are scaled down",
    "input_noise": "standard deviation of noise on the scaled inputs",
    "averaging": "decay, per update, of the exponential average of the weights",
    "gate_bias": "how long the cell remembers at first: uniform, as torch has it; one, some four steps;"
    " chrono, each unit its own time up to --window-steps",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    add_source_arguments(parser)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder in which NAME/VERSION gets model.pt, the checkpoint and the report",
    )
    parser.add_argument(
        "--horizons", default="1,5,48", help="steps ahead in the report, separated by commas (default 1,5,48)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the checkpoint in the output folder"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")
    _add_manifest_arguments(parser.add_argument_group("what the manifest says"))
    _add_rows_arguments(parser.add_argument_group("the rows and columns"))
    _add_architecture_arguments(parser.add_argument_group("the network"))
    _add_recipe_arguments(parser.add_argument_group("the fit"))


def _add_manifest_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--name", help="the model's name (default: the series' name)")
    group.add_argument(
        "--model-version", default="1", metavar="VERSION", help="the model's version (default 1)"
    )
    group.add_argument("--description", metavar="TEXT", help="one sentence about the model")
    group.add_argument(
        "--attribution", default="", metavar="TEXT", help="where the series came from, and its licence"
    )
    group.add_argument("--units", default="", help="the columns' units, separated by commas (default: none)")


def _add_rows_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--columns", help="columns to learn and predict, separated by commas (default: all)")
    group.add_argument(
        "--rows",
        default=":",
        metavar="START:STOP",
        help="rows to train on, counted from 0, STOP excluded (default: all)",
    )
    group.add_argument(
        "--validation",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="share of these rows, at their end, that chooses the best epoch (default 0.2)",
    )
    group.add_argument(
        "--refit",
        action="store_true",
        help="then fit a fresh network to all these rows for the best number of epochs",
    )
    group.add_argument(
        "--calendar",
        choices=["auto", "yes", "no"],
        default="auto",
        help="use the time of day and week (default auto: where times are dates at a fixed interval)",
    )


def _add_architecture_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--cell", choices=sorted(CELLS), default="lstm", help="kind of cell (default lstm)")
    for flag, default, purpose in (
        ("--hidden", 128, "hidden size, a multiple of 16 (default 128)"),
        ("--layers", 1, "number of layers of cells (default 1)"),
        ("--head", 0, "width of the head's hidden layer, a multiple of 16 (default 0: none)"),
        ("--head-steps", 48, "steps ahead that the head predicts directly (default 48)"),
    ):
        group.add_argument(flag, type=int, default=default, metavar="N", help=purpose)
    group.add_argument(
        "--dropout",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of hidden values dropped before the head (default 0)",
    )


def _add_recipe_arguments(group: argparse._ArgumentGroup) -> None:
    for field in fields(Recipe):
        default = getattr(_DEFAULTS, field.name)
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(default),
            default=default,
            **_form_of(default),
            help=f"{_PURPOSES[field.name]} (default {_shown(default)})",
        )
    group.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="threads of torch; the weights' last bits depend on the number (default 1)",
    )


def _shown(default: float | str) -> str:
    return default if isinstance(default, str) else f"{default:g}"


def _form_of(default: float | str) -> dict[str, Any]:
    """Returns how an option of the recipe is shown: by its kinds, or as a number."""
    if isinstance(default, str):
        return {"choices": gate_bias.KINDS}
    return {"metavar": "N" if isinstance(default, int) else "X"}


def run(options: argparse.Namespace) -> str:
    """Trains, writes the artifact and the report, and returns a line that says where."""
    horizons = parse_horizons(options.horizons)
    series, source = read_source(options, options.columns.split(",") if options.columns else None)
    start, stop = parse_range(options.rows, len(series))
    _check_options(options, stop - start)
    torch.set_num_threads(options.threads)
    plan = make_plan(options, series.rows(start, stop), {**source, "rows": [start, stop]})
    name = options.name or Path(source["name"]).stem
    num_search_rows, farthest = stop - start - plan.num_validation, max(horizons[-1], options.head_steps)
    if 2 * farthest > num_search_rows:
        raise OptionError(
            f"{num_search_rows} rows before the validation part are too few for {farthest} steps ahead:"
            f" at least {2 * farthest} are needed"
        )
    folder = options.out / name / options.model_version
    about = about_of(options, series, plan.source, name=name)
    rows = Rows.of(series.rows(start, stop))
    training = Training(plan, rows, about=about, checkpoint=folder / "checkpoint.pt")
    if options.resume:
        training.resume()
    _run_with_progress(training, options.quiet)
    return _finish(training, series, folder, horizons)


def make_plan(options: argparse.Namespace, series: Series, source: dict[str, Any]) -> Plan:
    """Makes the plan that the options ask for; OptionError where a value cannot be used."""
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
    return Plan(
        architecture=architecture,
        recipe=recipe,
        num_validation=round(len(series) * options.validation),
        refit=options.refit,
        source=source,
    )


def _check_options(options: argparse.Namespace, num_rows: int) -> None:
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
        raise OptionError(
            f"--validation {options.validation}: must be over 0 and under 1, and take at least 2"
            f" of the {num_rows} rows"
        )
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
    from model.report import write_report  # needs matplotlib, which no other command needs

    plan, known = training.plan.to_dict(), {"best_epoch": training.best_epoch}
    backtests = _backtests(training, series, manifest_of(plan, training.about, known), horizons[-1])
    figures = {part: backtest.table(horizons) for part, backtest in backtests.items()}
    manifest = manifest_of(plan, training.about, {**known, "figures": figures})
    network = network_with(training.plan.architecture, training.final_weights)
    save_artifact(network, manifest, folder / "model.pt")
    load_artifact(folder / "model.pt")  # an artifact that cannot be read fails here, not in the server
    history = [asdict(epoch) for epoch in training.history]
    write_report(folder, manifest, history=history, backtests=backtests, figures=figures, series=series)
    return f"wrote {folder}/model.pt, report.md and figures.json"


def _backtests(training: Training, series: Series, manifest: Manifest, farthest: int) -> dict[str, Backtest]:
    """Forecasts the validation part and, where there are at least 2, the rows after the training rows.

    The search's network forecasts the validation part, because a refit has seen these rows.
    """
    architecture = training.plan.architecture
    start, stop = training.plan.source["rows"]
    horizon = max(farthest, architecture.head_steps)
    searched = Artifact(network_with(architecture, training.best_weights), manifest)
    rows = series.rows(start, stop)
    backtests = {
        "validation": run_backtest(searched, rows, from_row=training.num_search_rows, horizon=horizon)
    }
    if len(series) - stop >= 2:
        final = Artifact(network_with(architecture, training.final_weights), manifest)
        rows = series.rows(start, len(series))
        backtests["unseen"] = run_backtest(final, rows, from_row=stop - start, horizon=horizon)
    return backtests

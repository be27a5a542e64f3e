"""Owns the `memory` command: the kinds of cells in, a comparison of how long each remembers out.

Knows nothing of how a cell learns; see memory_runs and memory_tasks.
"""

import argparse
import itertools
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from model import gate_bias
from model.cells import CELLS
from model.errors import OptionError
from model.files import write_atomically
from model.memory_runs import Budget, Run, gradient_norms, learn
from model.memory_tasks import TASKS

_MIN_STEPS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    budget = Budget(max_updates=3000)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="folder for memory.json and the plots"
    )
    parser.add_argument(
        "--cells", default=",".join(CELLS), help="kinds of cells, separated by commas (default: all)"
    )
    parser.add_argument("--tasks", default=",".join(TASKS), help="tasks, separated by commas (default: all)")
    parser.add_argument(
        "--lengths",
        default="100,200,400",
        help="steps of a sequence, separated by commas (default 100,200,400)",
    )
    parser.add_argument(
        "--gate-bias",
        choices=gate_bias.KINDS,
        default="chrono",
        help="where the gates of LSTM, peephole and GRU begin (default chrono); see train",
    )
    for flag, default, purpose in (
        ("--updates", budget.max_updates, "updates after which a cell gives up"),
        ("--hidden", budget.hidden_size, "hidden size"),
        ("--sequences", budget.num_sequences, "fresh sequences in each update"),
        ("--seed", budget.seed, "seed of weights and sequences"),
        ("--threads", 1, "threads of torch"),
    ):
        parser.add_argument(
            flag, type=int, default=default, metavar="N", help=f"{purpose} (default {default})"
        )
    parser.add_argument(
        "--learning-rate",
        type=float,
        default=budget.learning_rate,
        metavar="X",
        help=f"of Adam (default {budget.learning_rate:g})",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")


def run(options: argparse.Namespace) -> str:
    """Compares the cells, writes the figures and the plots, and returns the comparison as a table."""
    cells, tasks = _chosen(options.cells, CELLS, "--cells"), _chosen(options.tasks, TASKS, "--tasks")
    lengths = _lengths(options.lengths)
    if min(options.updates, options.hidden, options.sequences, options.threads) < 1:
        raise OptionError("--updates, --hidden, --sequences and --threads must be at least 1")
    torch.set_num_threads(options.threads)
    budget = Budget(
        max_updates=options.updates,
        hidden_size=options.hidden,
        num_sequences=options.sequences,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    biases = {cell: "uniform" if cell == "elman" else options.gate_bias for cell in cells}
    runs = _learn_all(tasks, lengths, biases, budget, quiet=options.quiet)
    first = TASKS[tasks[0]]
    gradients = {
        cell: gradient_norms(cell, first, max(lengths), budget=budget, gate_bias=bias)
        for cell, bias in biases.items()
    }
    return _finish(options.out, runs, gradients, {"budget": asdict(budget), "gate_bias": biases})


def _chosen(text: str, known: dict[str, Any], flag: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in known:
            raise OptionError(f"{flag}: {name!r} is not one of {', '.join(known)}")
    return names


def _lengths(text: str) -> list[int]:
    try:
        lengths = [int(part) for part in text.split(",")]
    except ValueError:
        raise OptionError(f"--lengths: {text!r} is not a list of numbers separated by commas") from None
    if min(lengths) < _MIN_STEPS:
        raise OptionError(f"--lengths: a sequence has at least {_MIN_STEPS} steps, not {min(lengths)}")
    return lengths


def _learn_all(
    tasks: list[str], lengths: list[int], biases: dict[str, str], budget: Budget, *, quiet: bool
) -> dict[str, list[Run]]:
    """Returns the runs of every cell on every task and length, by task."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    found: dict[str, list[Run]] = {task: [] for task in tasks}
    every = list(itertools.product(tasks, lengths, biases.items()))
    with tqdm(total=len(every) * budget.max_updates, unit="update", file=sys.stderr, disable=quiet) as bar:
        for number, (task, num_steps, (cell, bias)) in enumerate(every, 1):

            def show(error: float, what: str = f"{task}, {num_steps} steps, {cell}") -> None:
                bar.set_postfix_str(f"{what}: error {error:.4f}", refresh=False)
                bar.update()

            found[task].append(
                learn(cell, TASKS[task], num_steps, budget=budget, gate_bias=bias, on_update=show)
            )
            bar.update(number * budget.max_updates - bar.n)  # what a solved task does not need
    return found


def _finish(
    folder: Path, runs: dict[str, list[Run]], gradients: dict[str, list[float]], settings: dict[str, Any]
) -> str:
    from model.memory_plots import gradient_plot, learning_plot  # needs matplotlib
    from model.plots import save

    content = {
        **settings,
        "torch": torch.__version__,
        "runs": {task: [asdict(each) for each in made] for task, made in runs.items()},
        "gradient_norms": gradients,
    }
    write_atomically(folder / "memory.json", (json.dumps(content, indent=1) + "\n").encode())
    for task, made in runs.items():
        save(learning_plot(TASKS[task], made), folder / f"{task}.png")
    save(gradient_plot(gradients), folder / "gradients.png")
    return as_text(runs, gradients)


def as_text(runs: dict[str, list[Run]], gradients: dict[str, list[float]]) -> str:
    """Formats the comparison as tables."""
    lines = []
    for name, made in runs.items():
        task = TASKS[name]
        lines += [
            f"{task.title}: {task.measure}, {task.guess:.3g} by guessing; solved below {task.solved_below:g}",
            f"{'steps':>7}  {'cell':<10}{'solved after':>14}{'last error':>12}",
        ]
        lines += [_run_line(each) for each in made] + [""]
    far = len(next(iter(gradients.values()))) - 1
    steps = [k for k in (10, 50, 100, 200, 400) if k <= far]
    lines.append("the gradient k steps back, before anything is learned, as a share of that at k = 0")
    lines.append(f"{'cell':<10}" + "".join(f"{f'k = {k}':>12}" for k in steps))
    lines += [
        f"{cell:<10}" + "".join(f"{norms[k]:>12.2g}" for k in steps) for cell, norms in gradients.items()
    ]
    return "\n".join(lines)


def _run_line(run: Run) -> str:
    solved = f"{run.solved_after:,} updates" if run.solved_after else f"not in {run.updates[-1]:,}"
    return f"{run.num_steps:>7}  {run.cell:<10}{solved:>14}{run.errors[-1]:>12.4f}"

"""Owns the tasks that only a long memory solves: what to remember lies many steps before the answer is asked.

Knows nothing of cells, or of how a task is learned.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Sequences = tuple[Tensor, Tensor]
"""Inputs (T, B, F), and what is asked after the last of them: values (B, 1) or classes (B)."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Describes a task; `draw` makes sequences of it from torch's random numbers."""

    title: str
    num_inputs: int
    num_outputs: int
    """Values that are asked, or classes to choose from."""
    is_choice: bool
    """Whether one of the classes is asked."""
    measure: str
    """What `error` is called."""
    guess: float
    """The error of an answer that knows nothing of the sequence."""
    solved_below: float
    """The error below which the task counts as solved."""
    draw: Callable[[int, int], Sequences]
    """Makes sequences: draw(T, B)."""

    def loss(self, answers: Tensor, asked: Tensor) -> Tensor:
        """Returns what training lowers: the mean squared error, or the cross-entropy of the classes."""
        if self.is_choice:
            return torch.nn.functional.cross_entropy(answers, asked)
        return torch.nn.functional.mse_loss(answers, asked)

    def error(self, answers: Tensor, asked: Tensor) -> float:
        """Returns the mean squared error, or the share of sequences whose class is chosen wrongly."""
        if self.is_choice:
            return float((answers.argmax(1) != asked).float().mean())
        return float(torch.nn.functional.mse_loss(answers, asked))


def draw_adding(num_steps: int, num_sequences: int) -> Sequences:
    """Makes sequences of the adding problem: (T, B, 2), and the sums (B, 1).

    Each step has a value, uniform between 0 and 1, and a mark. One step of each half is marked; the sum of
    their values is asked. Hochreiter & Schmidhuber 1997, "Long short-term memory", experiment 4; here as in
    Le, Jaitly & Hinton 2015, "A simple way to initialize recurrent networks of rectified linear units".
    """
    values = torch.rand(num_steps, num_sequences)
    marks = torch.zeros(num_steps, num_sequences)
    half, column = num_steps // 2, torch.arange(num_sequences)
    first = torch.randint(half, (num_sequences,))
    second = torch.randint(half, num_steps, (num_sequences,))
    marks[first, column] = marks[second, column] = 1.0
    sums = values[first, column] + values[second, column]
    return torch.stack([values, marks], 2), sums.unsqueeze(1)


_NUM_SYMBOLS = 6


def draw_temporal_order(num_steps: int, num_sequences: int) -> Sequences:
    """Makes sequences of the temporal order problem: (T, B, 6), and their classes (B), 0 to 3.

    Each step is a symbol, as a vector with a single one. Two of them, in the second tenth and in the sixth,
    are X or Y; the others are one of four that say nothing. Which two they were, in order, is asked.
    Hochreiter & Schmidhuber 1997, experiment 6a, without the marks of beginning and end.
    """
    symbols = torch.randint(2, _NUM_SYMBOLS, (num_steps, num_sequences))
    asked = torch.randint(4, (num_sequences,))
    column, tenth = torch.arange(num_sequences), num_steps // 10
    for start, which in ((tenth, asked // 2), (5 * tenth, asked % 2)):
        symbols[start + torch.randint(tenth, (num_sequences,)), column] = which
    return torch.nn.functional.one_hot(symbols, _NUM_SYMBOLS).float(), asked


TASKS = {
    "adding": Task(
        title="the adding problem",
        num_inputs=2,
        num_outputs=1,
        is_choice=False,
        measure="mean squared error",
        guess=1 / 6,  # the variance of the sum of two values
        solved_below=0.01,
        draw=draw_adding,
    ),
    "temporal-order": Task(
        title="the temporal order problem",
        num_inputs=_NUM_SYMBOLS,
        num_outputs=4,
        is_choice=True,
        measure="share of wrong answers",
        guess=3 / 4,
        solved_below=0.01,
        draw=draw_temporal_order,
    ),
}

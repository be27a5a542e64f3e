"""Owns the runs that compare how long cells remember: learning a task, and the gradient k steps back.

Knows nothing of options, files or plots.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from model.cells import CELL_STATE_KINDS, CELLS
from model.gate_bias import set_gate_bias
from model.memory_tasks import Task

_EVALUATE_EVERY = 50
"""Updates between two looks at sequences that were not learned."""
_JUDGED_SEQUENCES = 256
_CLIP_NORM = 1.0


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Holds what every cell gets alike."""

    max_updates: int
    hidden_size: int = 64
    num_sequences: int = 32
    """Fresh sequences in each update."""
    learning_rate: float = 3e-3
    seed: int = 0


@dataclass(kw_only=True)
class Run:
    """Records how one cell learned one task of one length."""

    cell: str
    num_steps: int
    updates: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    """On fresh sequences, after so many updates."""
    solved_after: int | None = None
    """The updates after which the error was first below the task's bound; None if it never was."""


class Memory(nn.Module):
    """Reads a whole sequence with one layer of a cell, and answers from the last hidden state."""

    def __init__(self, cell: str, task: Task, *, hidden_size: int, gate_bias: str, num_steps: int) -> None:
        super().__init__()
        self.cell = CELLS[cell](task.num_inputs, hidden_size)
        self.head = nn.Linear(hidden_size, task.num_outputs)
        self.hidden_size = hidden_size
        set_gate_bias([self.cell], gate_bias, longest_steps=num_steps)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the answers (B, O) after x (T, B, F)."""
        h, c = self.zero_state(x.size(1))
        for share in self.shares(x):
            h, c = self.cell(share, h, c)
        answers: Tensor = self.head(h)
        return answers

    def zero_state(self, num_sequences: int) -> tuple[Tensor, Tensor]:
        """Returns h and c (B, H) before the first step."""
        zeros = torch.zeros(num_sequences, self.hidden_size)
        return zeros, zeros

    def shares(self, x: Tensor) -> tuple[Tensor, ...]:
        """Returns the inputs' shares of the gates, (B, gates·H) for each step of x (T, B, F)."""
        projected = self.cell.project(x.flatten(0, 1)).view(x.size(0), x.size(1), -1)
        return projected.unbind(0)


def learn(
    cell: str,
    task: Task,
    num_steps: int,
    *,
    budget: Budget,
    gate_bias: str,
    on_update: Callable[[float], None] = lambda _: None,
) -> Run:
    """Trains a cell on a task until the task is solved or the budget is used up.

    Every cell gets the same sequences in the same order; the optimiser is Adam (Kingma & Ba 2015) with a
    clipped gradient. `on_update` is called after each update with the error seen last.
    """
    run = Run(cell=cell, num_steps=num_steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(budget.seed)
        model = Memory(cell, task, hidden_size=budget.hidden_size, gate_bias=gate_bias, num_steps=num_steps)
        optimizer = torch.optim.Adam(model.parameters(), budget.learning_rate)
        torch.manual_seed(budget.seed + 1)
        judged = task.draw(num_steps, _JUDGED_SEQUENCES)
        while run.solved_after is None and (not run.updates or run.updates[-1] < budget.max_updates):
            for _ in range(_EVALUATE_EVERY):
                _update(model, optimizer, task, task.draw(num_steps, budget.num_sequences))
                on_update(run.errors[-1] if run.errors else task.guess)
            _judge(model, task, judged, run)
    return run


def _update(model: Memory, optimizer: torch.optim.Adam, task: Task, sequences: tuple[Tensor, Tensor]) -> None:
    x, asked = sequences
    optimizer.zero_grad()
    task.loss(model(x), asked).backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
    optimizer.step()


@torch.no_grad()
def _judge(model: Memory, task: Task, judged: tuple[Tensor, Tensor], run: Run) -> None:
    x, asked = judged
    run.updates.append((run.updates[-1] if run.updates else 0) + _EVALUATE_EVERY)
    run.errors.append(task.error(model(x), asked))
    if run.errors[-1] < task.solved_below:
        run.solved_after = run.updates[-1]


def gradient_norms(
    cell: str, task: Task, num_steps: int, *, budget: Budget, gate_bias: str, num_sequences: int = 64
) -> list[float]:
    """Returns the norm of the gradient k steps back, for k from 0 to T, before anything is learned.

    That is the norm, over h and c, of the derivative of the last hidden state in a random direction with
    respect to the state k steps earlier: the geometric mean over the sequences, as a share of its value at
    k = 0. It is how much of an error at the end reaches the weights through a state so far back (Hochreiter
    1991; Pascanu, Mikolov & Bengio 2013, "On the difficulty of training recurrent neural networks").
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(budget.seed)
        model = Memory(cell, task, hidden_size=budget.hidden_size, gate_bias=gate_bias, num_steps=num_steps)
        torch.manual_seed(budget.seed + 1)
        x, _ = task.draw(num_steps, num_sequences)
        direction = torch.nn.functional.normalize(torch.randn(num_sequences, budget.hidden_size), dim=1)
    states = [tuple(part.clone().requires_grad_() for part in model.zero_state(num_sequences))]
    for share in model.shares(x):
        # As copies: h is made of c, and the derivative by c must not count what goes through h.
        states.append(tuple(part.clone() for part in model.cell(share, *states[-1])))
    kept = [part for state in states for part in (state if cell in CELL_STATE_KINDS else state[:1])]
    found = torch.autograd.grad((states[-1][0] * direction).sum(), kept, allow_unused=True)
    width = 2 if cell in CELL_STATE_KINDS else 1
    squares = [
        sum((part**2).sum(1) for part in found[at : at + width] if part is not None)
        for at in range(0, len(found), width)
    ]
    logs = [float(torch.as_tensor(square).sqrt().clamp(min=1e-45).log().mean()) for square in squares]
    return [float(torch.tensor(log - logs[-1]).exp()) for log in reversed(logs)]

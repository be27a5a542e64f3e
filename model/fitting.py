"""Owns the fitting of a network to rows of a series: one epoch after another, and the loss.

Knows nothing of files, reports or when to stop.

Rows are cut into parallel streams. Each stream carries its state from window to window, and gradients flow
back within one window: truncated back-propagation through time (Williams & Peng 1990, "An efficient
gradient-based algorithm for on-line training of recurrent network trajectories"). The optimiser is AdamW
(Loshchilov & Hutter 2019, "Decoupled weight decay regularization") with a clipped gradient (Pascanu, Mikolov
& Bengio 2013, "On the difficulty of training recurrent neural networks"). The network that is evaluated and
exported has averaged weights (Polyak & Juditsky 1992, "Acceleration of stochastic approximation by
averaging"; here the average is exponential).

Everything random follows from the recipe's seed and the epoch's number. A fit that continues from its saved
state therefore goes on as if it had never stopped.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.datasets import Series
from model.network import ROW_MULTIPLE, Network


@dataclass(frozen=True)
class Recipe:
    """Holds the choices that a fit depends on, beside the architecture and the rows."""

    seed: int = 0
    max_epochs: int = 160
    patience_epochs: int = 40
    """Epochs without a better validation loss before the search stops."""
    num_streams: int = 16
    """Parallel contiguous pieces of the series, each with its own carried state."""
    window_steps: int = 24
    """Steps back through which gradients flow; the state itself is carried on."""
    burn_in_steps: int = 48
    """First steps of each stream, which count in no loss: a served session soon leaves the zero state."""
    learning_rate: float = 1e-2
    """The peak; half a cosine over max_epochs leads to a twentieth (Loshchilov & Hutter 2017, "SGDR")."""
    weight_decay: float = 0.1
    """Decoupled: a share of the weights, times the learning rate, per update."""
    clip_norm: float = 1.0
    """Largest norm of the gradient over all weights."""
    input_noise: float = 0.05
    """Standard deviation of the noise on the scaled inputs, in training only."""
    averaging: float = 0.995
    """Decay, per update, of the exponential average of the weights."""
    gate_bias: str = "uniform"
    """Where the bias of the gate that keeps the memory begins: `uniform`, `one` or `chrono` (gate_bias)."""


@dataclass(frozen=True)
class Rows:
    """Holds a series as tensors: x (N, F) in plain units, time (N) in Unix ns."""

    x: Tensor
    time: Tensor

    @classmethod
    def of(cls, series: Series) -> "Rows":
        """Copies a series into tensors."""
        return cls(torch.from_numpy(series.values.copy()), torch.from_numpy(series.times_ns.copy()))

    def __len__(self) -> int:
        return len(self.x)


def set_scaling(network: Network, x: Tensor) -> None:
    """Takes mean and standard deviation of x (N, F) into the network; a constant column is scaled by one."""
    network.mean.copy_(x.double().mean(0))
    deviation = x.double().std(0, correction=0)
    network.scale.copy_(torch.where(deviation > 0, deviation, torch.ones_like(deviation)))


def horizon_weights(network: Network, x: Tensor) -> Tensor:
    """Returns a weight for each step ahead: (K, 1), with a mean of one.

    A step over which the series changes more weighs less, so that all count alike in the loss.
    """
    outputs = x[:, : network.num_outputs] / network.scale[: network.num_outputs]
    steps = range(1, network.head_steps + 1)
    changes = torch.stack(
        [(outputs[k:] - outputs[:-k]).abs().mean() if k < len(x) else torch.ones(()) for k in steps]
    )
    weights = 1.0 / changes.clamp(min=1e-3)
    return (weights / weights.mean()).unsqueeze(1)


class Fit:
    """Fits a network to rows, epoch by epoch; `network` learns, `average` holds its averaged weights."""

    def __init__(self, network: Network, rows: Rows, recipe: Recipe) -> None:
        if len(rows) // recipe.num_streams <= recipe.burn_in_steps:
            raise ValueError(
                f"{len(rows)} rows in {recipe.num_streams} streams leave no row"
                f" after {recipe.burn_in_steps} steps of burn-in: take fewer streams or less burn-in"
            )
        self.recipe = recipe
        self.rows = rows
        self.network = network
        set_scaling(network, rows.x)
        self.weights = horizon_weights(network, rows.x)
        self.average = copy.deepcopy(network)
        self.optimizer = torch.optim.AdamW(
            network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.num_epochs = 0
        self.num_updates = 0

    def run_epoch(self) -> float:
        """Goes through the rows once and returns the mean training loss."""
        losses: list[float] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed * 1_000_003 + self.num_epochs)
            self._set_learning_rate()
            self.network.train()
            for loss in self._losses():
                self._update(loss)
                losses.append(loss.item())
        self.num_epochs += 1
        return sum(losses) / len(losses)

    def state_dict(self) -> dict[str, Any]:
        """Returns a copy of everything that `load_state_dict` needs to continue."""
        return {
            "network": copy.deepcopy(self.network.state_dict()),
            "average": copy.deepcopy(self.average.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "num_epochs": self.num_epochs,
            "num_updates": self.num_updates,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continues from what `state_dict` returned."""
        self.network.load_state_dict(saved["network"])
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.num_epochs, self.num_updates = saved["num_epochs"], saved["num_updates"]

    def _set_learning_rate(self) -> None:
        progress = min(self.num_epochs / self.recipe.max_epochs, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * (
                0.05 + 0.95 * 0.5 * (1.0 + math.cos(math.pi * progress))
            )

    def _losses(self) -> Iterator[Tensor]:
        """Yields the loss of each window; the state is carried over from the window before."""
        length = len(self.rows) // self.recipe.num_streams
        shift = int(torch.randint(length, ()))
        num_streams = self.recipe.num_streams - (1 if shift else 0)
        starts = torch.arange(num_streams) * length + shift  # (B)
        state = torch.zeros(num_streams, self.network.state_size)
        for first in range(0, length, self.recipe.window_steps):
            steps = torch.arange(first, min(first + self.recipe.window_steps, length))  # (T)
            index = starts + steps.unsqueeze(1)  # (T, B)
            counted = (steps >= self.recipe.burn_in_steps).view(-1, 1, 1, 1)
            predicted, state = self._predict(index, state)
            state = state.detach()
            if bool(counted.any()):
                yield window_loss(
                    self.network,
                    self.rows.x,
                    index=index,
                    predicted=predicted,
                    counted=counted,
                    weights=self.weights,
                )

    def _predict(self, index: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Returns all direct steps after the rows index (T, B), as (T, B, K, O), and the new state (B, S)."""
        network = self.network
        x = self.rows.x[index.flatten()]  # (T·B, F)
        noisy = x
        if self.recipe.input_noise:
            noisy = x + self.recipe.input_noise * network.scale * torch.randn_like(x)
        features = network.features(noisy, self.rows.time[index.flatten()])
        num_steps, num_streams = index.shape
        h, state = network.unroll(features, x, torch.full((num_streams,), num_steps), state)
        return network.direct_values(h, x).view(num_steps, num_streams, network.head_steps, -1), state

    def _update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.num_updates += 1
        # Early updates weigh about as in a plain mean, so that the average soon forgets the random start.
        decay = min(self.recipe.averaging, self.num_updates / (self.num_updates + 10))
        with torch.no_grad():
            for mean, weight in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(weight, 1.0 - decay)


def window_loss(
    network: Network, x: Tensor, *, index: Tensor, predicted: Tensor, counted: Tensor, weights: Tensor
) -> Tensor:
    """Returns the weighted mean absolute error, in standard deviations, of predictions for rows of x (N, F).

    predicted (T, B, K, O) was made after the rows index (T, B). Only targets within x take part, and only
    steps where `counted` (T, 1, 1, 1) is true; weights (K, 1) weigh the steps ahead.
    """
    targets = index.unsqueeze(-1) + torch.arange(1, network.head_steps + 1)  # (T, B, K)
    within = (targets < len(x)).unsqueeze(-1) & counted  # (T, B, K, 1)
    actual = x[targets.clamp(max=len(x) - 1), : network.num_outputs]  # (T, B, K, O)
    error = (predicted - actual).abs() / network.scale[: network.num_outputs] * weights
    return (error * within).sum() / (within.sum().clamp(min=1) * network.num_outputs)


@torch.no_grad()
def validation_loss(network: Network, rows: Rows, *, first: int, prime_steps: int, weights: Tensor) -> float:
    """Returns the loss of the forecasts made after row `first` and later rows.

    The `prime_steps` rows before only bring the state there. weights (K, 1) weigh the steps ahead.
    """
    network.eval()
    begin = max(0, first - prime_steps)
    copies = ROW_MULTIPLE  # the one stream stands in as many rows as need no padding
    x = rows.x[begin:].repeat_interleave(copies, dim=0)  # (T·copies, F)
    features = network.features(x, rows.time[begin:].repeat_interleave(copies))
    lengths, state = torch.full((copies,), len(rows) - begin), torch.zeros(copies, network.state_size)
    h, _ = network.unroll(features, x, lengths, state)
    judged = slice((first - begin) * copies, (len(rows) - 1 - begin) * copies, copies)  # one of the copies
    loss = window_loss(
        network,
        rows.x,
        index=torch.arange(first, len(rows) - 1).unsqueeze(1),  # (T, 1)
        predicted=network.direct_values(h[judged], x[judged]).unsqueeze(1),  # (T, 1, K, O)
        counted=torch.ones(1, 1, 1, 1, dtype=torch.bool),
        weights=weights,
    )
    return loss.item()

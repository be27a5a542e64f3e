"""Owns a whole training: the search for the best epoch on a validation part, the refit, the checkpoint.

Knows nothing of artifacts or reports. The checkpoint is written whole after every epoch, and a training that
is taken up from it ends with the same weights as one that was never stopped.
"""

import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.artifact import write_atomically
from model.errors import ArtifactError, OptionError
from model.fitting import Fit, Recipe, Rows, validation_loss
from model.network import Architecture, Network

Weights = dict[str, Tensor]
CHECKPOINT_FORMAT = 1
_PRIME_STEPS = 1000


@dataclass(frozen=True)
class Plan:
    """Holds everything that the final weights depend on, beside the rows themselves."""

    architecture: Architecture
    recipe: Recipe
    num_validation: int
    """Rows at the end that no weight and no statistic of the search sees."""
    refit: bool
    """Fit anew, for the best number of epochs, on all rows."""
    source: dict[str, Any]
    """Where the rows come from, as the manifest says it."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan as plain values, to be compared and stored."""
        return asdict(self)


@dataclass(frozen=True)
class Epoch:
    """Records one epoch for the loss curve; the refit has no validation loss."""

    phase: str
    number: int
    training_loss: float
    validation_loss: float | None


class Training:
    """Runs a plan, epoch by epoch."""

    def __init__(self, plan: Plan, rows: Rows, about: dict[str, Any], checkpoint: Path) -> None:
        if not 1 <= plan.num_validation < len(rows):
            raise OptionError(f"a validation part of {plan.num_validation} of {len(rows)} rows")
        self.plan, self.rows, self.about, self.checkpoint = plan, rows, about, checkpoint
        self.phase = "search"
        self.history: list[Epoch] = []
        self.best_epoch, self.best_loss = 0, float("inf")
        self.best_weights: Weights = {}
        self.final_weights: Weights = {}
        self._fit = self._new_fit()

    @property
    def num_search_rows(self) -> int:
        """Rows that the search learns from."""
        return len(self.rows) - self.plan.num_validation

    @property
    def done(self) -> bool:
        """Whether the final weights are there."""
        return self.phase == "done"

    def run(self, on_epoch: Callable[[Epoch], None] = lambda epoch: None) -> None:
        """Runs all epochs that are left, writing the checkpoint after each."""
        while not self.done:
            epoch = self._search_epoch() if self.phase == "search" else self._refit_epoch()
            self.history.append(epoch)
            self._save()
            on_epoch(epoch)

    def resume(self) -> None:
        """Takes up the checkpoint; ArtifactError where none is, OptionError where it follows another plan."""
        saved = load_checkpoint(self.checkpoint)
        if saved["plan"] != self.plan.to_dict():
            changed = _first_difference(saved["plan"], self.plan.to_dict())
            raise OptionError(f"{self.checkpoint} follows another plan: {changed}")
        self.phase = saved["phase"]
        self.history = [Epoch(**epoch) for epoch in saved["history"]]
        self.best_epoch, self.best_loss = saved["best_epoch"], saved["best_loss"]
        self.best_weights, self.final_weights = saved["best_weights"], saved["final_weights"]
        if not self.done:
            self._fit = self._new_fit()
            self._fit.load_state_dict(saved["fit"])

    def _new_fit(self) -> Fit:
        rows = self.rows
        if self.phase == "search":
            rows = Rows(rows.x[: self.num_search_rows], rows.time[: self.num_search_rows])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.plan.recipe.seed)
            network = Network(self.plan.architecture)
        try:
            return Fit(network, rows, self.plan.recipe)
        except ValueError as error:
            raise OptionError(str(error)) from error

    def _search_epoch(self) -> Epoch:
        fit, recipe = self._fit, self.plan.recipe
        training_loss = fit.run_epoch()
        loss = validation_loss(fit.average, self.rows, self.num_search_rows, _PRIME_STEPS, fit.weights)
        if loss < self.best_loss:
            self.best_epoch, self.best_loss = fit.num_epochs, loss
            self.best_weights = fit.state_dict()["average"]
        epoch = Epoch("search", fit.num_epochs, training_loss, loss)
        waited = fit.num_epochs - self.best_epoch
        if fit.num_epochs >= recipe.max_epochs or waited >= recipe.patience_epochs:
            self._end_search()
        return epoch

    def _end_search(self) -> None:
        if not self.best_weights:
            raise OptionError("the loss was never finite: try a lower --learning-rate")
        self.final_weights = self.best_weights
        self.phase = "refit" if self.plan.refit else "done"
        if self.plan.refit:
            self._fit = self._new_fit()

    def _refit_epoch(self) -> Epoch:
        epoch = Epoch("refit", self._fit.num_epochs + 1, self._fit.run_epoch(), None)
        if self._fit.num_epochs >= self.best_epoch:
            self.final_weights = self._fit.state_dict()["average"]
            self.phase = "done"
        return epoch

    def _save(self) -> None:
        buffer = io.BytesIO()
        torch.save(
            {
                "format": CHECKPOINT_FORMAT,
                "plan": self.plan.to_dict(),
                "about": self.about,
                "phase": self.phase,
                "history": [asdict(epoch) for epoch in self.history],
                "best_epoch": self.best_epoch,
                "best_loss": self.best_loss,
                "best_weights": self.best_weights,
                "final_weights": self.final_weights,
                "fit": self._fit.state_dict(),
            },
            buffer,
        )
        write_atomically(self.checkpoint, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint; ArtifactError names the file and what is wrong with it."""
    if not path.is_file():
        raise ArtifactError(f"{path}: no such checkpoint")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in whatever way its bytes lead to
        raise ArtifactError(f"{path}: not a checkpoint, or damaged") from error
    if not isinstance(saved, dict) or saved.get("format") != CHECKPOINT_FORMAT:
        raise ArtifactError(f"{path}: not a checkpoint of format {CHECKPOINT_FORMAT}")
    return saved


def network_with(architecture: Architecture, weights: Weights) -> Network:
    """Builds the network that a training's weights belong to."""
    network = Network(architecture)
    network.load_state_dict(weights)
    return network.eval()


def _first_difference(saved: dict[str, Any], wanted: dict[str, Any]) -> str:
    for key, value in wanted.items():
        if isinstance(value, dict) and saved.get(key) != value:
            return f"{key}: " + _first_difference(saved.get(key, {}), value)
        if saved.get(key) != value:
            return f"{key} was {saved.get(key)!r}, is {value!r}"
    return "it has other fields"

"""Owns a whole training: the search for the best epoch, the refit on all rows, and how both are resumed.

Knows nothing of artifacts or reports.

Early stopping, after Goodfellow, Bengio & Courville 2016, "Deep learning", section 7.8: the search fits the
rows before a validation part, and ends when the validation loss has not fallen for some epochs (algorithm
7.1). The refit, where wanted, fits a fresh network on all rows for as many epochs as were best (algorithm
7.2). A checkpoint is written after every epoch, and a resumed training ends with the same weights as an
uninterrupted training.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import load_checkpoint, save_checkpoint
from model.errors import OptionError
from model.fitting import Fit, Recipe, Rows, validation_loss
from model.gate_bias import set_gate_bias
from model.network import Architecture, Network, Weights

_PRIME_STEPS = 1000
"""Rows before the validation part that prime the state."""


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """Records one epoch for the loss curve."""

    phase: str
    """`search` or `refit`."""
    number: int
    """Counts from 1 in each phase."""
    training_loss: float
    validation_loss: float | None
    """None in the refit, which sees the validation part."""


class Training:
    """Runs a plan epoch by epoch, and writes a checkpoint after each.

        training = Training(plan, rows, about=about, checkpoint=path)
        training.run(lambda epoch: print(epoch.number, epoch.training_loss))
        network = network_with(plan.architecture, training.final_weights)

    `about` is what the manifest will say beside the plan; the checkpoint carries it, so that `export` has it.
    """

    def __init__(self, plan: Plan, rows: Rows, *, about: dict[str, Any], checkpoint: Path) -> None:
        if not 1 <= plan.num_validation < len(rows):
            raise OptionError(f"the validation part cannot have {plan.num_validation} of {len(rows)} rows")
        self.plan, self.rows, self.about, self.checkpoint = plan, rows, about, checkpoint
        self.phase = "search"  # then "refit" where the plan has one, then "done"
        self.history: list[Epoch] = []
        self.best_epoch, self.best_loss = 0, float("inf")
        self.best_weights: Weights = {}
        self.final_weights: Weights = {}
        self._fit = self._new_fit()

    @property
    def num_search_rows(self) -> int:
        """The number of rows to which the search fits."""
        return len(self.rows) - self.plan.num_validation

    @property
    def done(self) -> bool:
        """Whether the training is over, so that `final_weights` are final."""
        return self.phase == "done"

    def run(self, on_epoch: Callable[[Epoch], None] = lambda epoch: None) -> None:
        """Runs all epochs that are left, writing the checkpoint after each."""
        while not self.done:
            epoch = self._search_epoch() if self.phase == "search" else self._refit_epoch()
            self.history.append(epoch)
            self._save()
            on_epoch(epoch)

    def resume(self) -> None:
        """Continues from the checkpoint: ArtifactError where none is, OptionError where its plan differs."""
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
        recipe = self.plan.recipe
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(recipe.seed)
                network = Network(self.plan.architecture)
                set_gate_bias(network.cells, recipe.gate_bias, longest_steps=recipe.window_steps)
            return Fit(network, rows, recipe)
        except ValueError as error:
            raise OptionError(str(error)) from error

    def _search_epoch(self) -> Epoch:
        fit, recipe = self._fit, self.plan.recipe
        training_loss = fit.run_epoch()
        loss = validation_loss(
            fit.average, self.rows, first=self.num_search_rows, prime_steps=_PRIME_STEPS, weights=fit.weights
        )
        if loss < self.best_loss:
            self.best_epoch, self.best_loss = fit.num_epochs, loss
            self.best_weights = fit.state_dict()["average"]
        epoch = Epoch(
            phase="search", number=fit.num_epochs, training_loss=training_loss, validation_loss=loss
        )
        epochs_without_better = fit.num_epochs - self.best_epoch
        if fit.num_epochs >= recipe.max_epochs or epochs_without_better >= recipe.patience_epochs:
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
        training_loss = self._fit.run_epoch()
        if self._fit.num_epochs >= self.best_epoch:
            self.final_weights = self._fit.state_dict()["average"]
            self.phase = "done"
        return Epoch(
            phase="refit",
            number=self._fit.num_epochs,
            training_loss=training_loss,
            validation_loss=None,
        )

    def _save(self) -> None:
        fields = {
            "plan": self.plan.to_dict(),
            "about": self.about,
            "phase": self.phase,
            "history": [asdict(epoch) for epoch in self.history],
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "best_weights": self.best_weights,
            "final_weights": self.final_weights,
            "fit": self._fit.state_dict(),
        }
        save_checkpoint(self.checkpoint, fields)


def _first_difference(saved: dict[str, Any], wanted: dict[str, Any]) -> str:
    for key, value in wanted.items():
        if isinstance(value, dict) and saved.get(key) != value:
            return f"{key}: " + _first_difference(saved.get(key, {}), value)
        if saved.get(key) != value:
            return f"{key} was {saved.get(key)!r}, is {value!r}"
    return "it has other fields"

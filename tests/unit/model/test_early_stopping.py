"""Early stopping: the search for the best epoch, the refit, and training that continues from a checkpoint."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.checkpoint import load_checkpoint
from model.early_stopping import Plan, Training
from model.errors import ArtifactError, OptionError
from model.fitting import Recipe, Rows
from model.network import Architecture

RECIPE = Recipe(max_epochs=3, patience_epochs=3, num_streams=3, window_steps=8, burn_in_steps=4)
PLAN = Plan(
    architecture=Architecture(num_inputs=1, num_outputs=1, hidden_size=16, head_steps=3),
    recipe=RECIPE,
    num_validation=40,
    refit=True,
    source={"name": "wave"},
)


class InterruptedTrainingError(Exception):
    """Stands for a killed process."""


@pytest.fixture
def rows() -> Rows:
    """Returns a wave of 120 rows."""
    x = np.sin(np.arange(120) / 3.0).astype(np.float32)[:, None]
    return Rows(torch.from_numpy(x), torch.zeros(120, dtype=torch.int64))


@pytest.fixture
def training_of(rows, tmp_path):
    """Returns a function that makes a training whose checkpoint has the given name."""

    def make(name: str = "checkpoint.pt", plan: Plan = PLAN, rows: Rows = rows) -> Training:
        return Training(plan, rows, about={"name": "wave"}, checkpoint=tmp_path / name)

    return make


def same_weights(first: Training, second: Training) -> bool:
    """Returns whether the final weights agree to the bit."""
    return all(
        torch.equal(weight, second.final_weights[name]) for name, weight in first.final_weights.items()
    )


class TestSearch:
    """The search for the best epoch, and the refit."""

    def test_stops_early_and_keeps_the_best(self, training_of):
        """After `patience_epochs` without a better loss the search ends; the refit runs to the best epoch."""
        recipe = replace(RECIPE, learning_rate=1e-9, averaging=0.0, max_epochs=50, patience_epochs=2)
        training = training_of(plan=replace(PLAN, recipe=recipe))
        training.run()
        searched = [epoch for epoch in training.history if epoch.phase == "search"]
        refitted = [epoch for epoch in training.history if epoch.phase == "refit"]
        losses = [epoch.validation_loss for epoch in searched]
        assert len(searched) < 50
        assert losses[training.best_epoch - 1] == min(losses) == training.best_loss
        assert len(searched) - training.best_epoch == 2
        assert len(refitted) == training.best_epoch

    def test_without_refit_the_best_weights_are_final(self, training_of):
        """Without a refit the search's best weights are the final weights."""
        training = training_of(plan=replace(PLAN, refit=False))
        training.run()
        assert {epoch.phase for epoch in training.history} == {"search"}
        assert training.final_weights is training.best_weights

    def test_search_sees_the_training_part_alone(self, training_of, rows):
        """Other values in the validation part change no training loss and no statistic of the search."""
        spoilt = Rows(torch.cat([rows.x[:80], 100.0 * rows.x[80:]]), rows.time)
        plan = replace(PLAN, refit=False, recipe=replace(RECIPE, max_epochs=2))
        first, second = training_of("a.pt", plan), training_of("b.pt", plan, spoilt)
        first.run(), second.run()
        assert [epoch.training_loss for epoch in first.history] == [
            epoch.training_loss for epoch in second.history
        ]
        assert torch.equal(first.best_weights["mean"], rows.x[:80].double().mean(0).float())
        assert torch.equal(first.best_weights["mean"], second.best_weights["mean"])

    def test_a_loss_that_is_never_finite_is_refused(self, training_of):
        """A search that diverges ends with advice instead of an artifact of NaN."""
        plan = replace(PLAN, recipe=replace(RECIPE, learning_rate=float("inf")))
        with pytest.raises(OptionError, match="learning-rate"):
            training_of(plan=plan).run()


class TestResume:
    """Continuing from a checkpoint."""

    @pytest.mark.parametrize("stop_after", [1, 3, 4])
    def test_resumed_equals_uninterrupted(self, training_of, stop_after):
        """A training resumed after any epoch has the weights and the history of an uninterrupted one."""
        through = training_of("through.pt")
        through.run()
        stopped = training_of("stopped.pt")

        def interrupt(epoch):
            if len(stopped.history) == stop_after:
                raise InterruptedTrainingError

        with pytest.raises(InterruptedTrainingError):
            stopped.run(interrupt)
        resumed = training_of("stopped.pt")
        resumed.resume()
        assert len(resumed.history) == stop_after
        resumed.run()
        assert resumed.history == through.history
        assert same_weights(resumed, through)

    def test_a_finished_training_resumes_to_nothing(self, training_of):
        """Resuming a finished training runs no epoch and gives its weights."""
        first = training_of()
        first.run()
        again = training_of()
        again.resume()
        again.run(lambda epoch: pytest.fail("an epoch ran"))
        assert same_weights(first, again)

    def test_another_plan_is_not_resumed(self, training_of):
        """A checkpoint of another plan is refused, and the message names the difference."""
        training_of().run()
        other = training_of(plan=replace(PLAN, recipe=replace(RECIPE, learning_rate=0.5)))
        with pytest.raises(OptionError, match=r"recipe: learning_rate was 0\.01, is 0\.5"):
            other.resume()

    def test_no_or_damaged_checkpoint_is_refused(self, training_of, tmp_path):
        """A checkpoint that is missing, cut short or of another format is refused by name."""
        with pytest.raises(ArtifactError, match="no such checkpoint"):
            training_of().resume()
        training_of().run()
        path = tmp_path / "checkpoint.pt"
        whole = path.read_bytes()
        for content in (whole[: len(whole) // 2], b"", b"hello"):
            path.write_bytes(content)
            with pytest.raises(ArtifactError, match="not a checkpoint, or damaged"):
                load_checkpoint(path)
        torch.save({"format": 99}, path)
        with pytest.raises(ArtifactError, match="format 1"):
            load_checkpoint(path)

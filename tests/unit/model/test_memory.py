"""How long cells remember: the tasks, the gradients, what is learned, and the command."""

import dataclasses
import json

import pytest
import torch

from model import memory_runs
from model.cells import CELLS
from model.memory_runs import Budget, Memory, gradient_norms, learn
from model.memory_tasks import TASKS, draw_adding, draw_temporal_order

every_cell = pytest.mark.parametrize("cell", sorted(CELLS))
TINY = Budget(max_updates=100, hidden_size=16, num_sequences=8)


@pytest.fixture(autouse=True)
def seeded():
    """Draws the same sequences in each test."""
    torch.manual_seed(3)


class TestAdding:
    """The adding problem."""

    def test_the_sum_of_the_marked_values_is_asked(self):
        """One is marked in each half."""
        x, asked = draw_adding(41, 500)
        values, marks = x.unbind(2)
        assert x.shape == (41, 500, 2)
        assert torch.equal(marks[:20].sum(0), torch.ones(500))
        assert torch.equal(marks[20:].sum(0), torch.ones(500))
        assert torch.allclose((values * marks).sum(0), asked[:, 0])
        assert values.min() >= 0.0
        assert values.max() < 1.0

    def test_any_step_may_be_marked(self):
        """The first and the last among them."""
        marks = draw_adding(20, 5000)[0][:, :, 1]
        assert (marks.sum(1) > 0).all()

    def test_guessing_errs_by_a_sixth(self):
        """The variance of the sum of two uniform values, whose mean is one."""
        _, asked = draw_adding(20, 20_000)
        error = TASKS["adding"].error(torch.ones_like(asked), asked)
        assert error == pytest.approx(TASKS["adding"].guess, rel=0.03)


class TestTemporalOrder:
    """The temporal order problem."""

    def test_two_symbols_tell_the_class_and_the_others_nothing(self):
        """X and Y are symbols 0 and 1: one in the second tenth, one in the sixth, and nowhere else."""
        x, asked = draw_temporal_order(50, 400)
        assert x.shape == (50, 400, 6)
        assert torch.equal(x.sum(2), torch.ones(50, 400))
        told = x[:, :, :2].sum(2)
        assert torch.equal(told.sum(0), torch.full((400,), 2.0))
        assert torch.equal(told[5:10].sum(0), torch.ones(400))
        assert torch.equal(told[25:30].sum(0), torch.ones(400))
        first, second = x[5:10, :, 1].sum(0), x[25:30, :, 1].sum(0)
        assert torch.equal(2 * first + second, asked.float())
        assert set(asked.tolist()) == {0, 1, 2, 3}

    def test_guessing_errs_three_times_of_four(self):
        """Whatever class is guessed."""
        _, asked = draw_temporal_order(20, 20_000)
        guess = torch.nn.functional.one_hot(torch.zeros_like(asked), 4).float()
        assert TASKS["temporal-order"].error(guess, asked) == pytest.approx(0.75, rel=0.03)


class TestGradients:
    """The gradient k steps back."""

    @every_cell
    def test_they_are_those_of_the_jacobians(self, cell):
        """For each sequence by itself, with the derivative of every state taken separately."""
        task = TASKS["adding"]
        found = gradient_norms(cell, task, 20, budget=TINY, gate_bias="uniform", num_sequences=3)
        assert len(found) == 21
        assert found[0] == 1.0
        torch.manual_seed(TINY.seed)
        model = Memory(cell, task, hidden_size=16, gate_bias="uniform", num_steps=20)
        torch.manual_seed(TINY.seed + 1)
        x, _ = task.draw(20, 3)
        direction = torch.nn.functional.normalize(torch.randn(3, 16), dim=1)
        shares = model.shares(x)
        state = model.zero_state(3)
        for share in shares[:15]:
            state = model.cell(share, *state)

        def last(h, c):
            for share in shares[15:]:
                h, c = model.cell(share, h, c)
            return (h * direction).sum(1)

        jacobians = torch.autograd.functional.jacobian(last, tuple(state))  # (3, 3, H) of h, and of c
        squares = torch.zeros(3)
        for jacobian in jacobians if cell in ("lstm", "peephole") else jacobians[:1]:
            squares += (jacobian[range(3), range(3)] ** 2).sum(1)
        assert found[5] == pytest.approx(float(squares.sqrt().log().mean().exp()), rel=1e-4)

    def test_an_elman_network_forgets_what_an_lstm_keeps(self):
        """A hundred steps back the one gradient has vanished; the other has not."""
        budget, task = Budget(max_updates=1), TASKS["adding"]
        elman = gradient_norms("elman", task, 100, budget=budget, gate_bias="uniform")
        lstm = gradient_norms("lstm", task, 100, budget=budget, gate_bias="chrono")
        assert elman[100] < 1e-12
        assert lstm[100] > 1e-3


class TestLearning:
    """A cell that learns a task."""

    def test_it_ends_when_the_task_is_solved(self, monkeypatch):
        """An LSTM solves a short temporal order problem; the error is of sequences that were not learned."""
        shown = []
        budget = Budget(max_updates=2000)
        made = learn(
            "lstm", TASKS["temporal-order"], 20, budget=budget, gate_bias="chrono", on_update=shown.append
        )
        assert made.solved_after == made.updates[-1] < 2000
        assert made.errors[-1] < 0.01 <= min(made.errors[:-1])
        assert len(shown) == made.updates[-1]
        assert made.updates == list(range(50, made.solved_after + 1, 50))

    @every_cell
    def test_it_ends_with_the_budget_and_a_seed_repeats_it(self, cell):
        """Update for update; another seed does not."""
        runs = [
            learn(
                cell,
                TASKS["adding"],
                20,
                budget=dataclasses.replace(TINY, seed=seed),
                gate_bias="uniform",
            )
            for seed in (0, 0, 1)
        ]
        assert runs[0].updates == [50, 100]
        assert runs[0].solved_after is None
        assert runs[0].errors == runs[1].errors
        assert runs[0].errors != runs[2].errors

    def test_every_cell_gets_the_same_sequences(self, monkeypatch):
        """However many random numbers its weights take."""
        drawn = {}
        update = memory_runs._update
        for cell in sorted(CELLS):
            seen = drawn[cell] = []
            monkeypatch.setattr(
                memory_runs,
                "_update",
                lambda *parts, seen=seen: (seen.append(parts[3][1].sum()), update(*parts)),
            )
            learn(cell, TASKS["adding"], 20, budget=TINY, gate_bias="uniform")
        first, *others = drawn.values()
        assert len(first) == 100
        assert all(each == first for each in others)


class TestCommand:
    """`python -m model memory`."""

    def test_it_writes_figures_and_plots_and_prints_a_table(self, command, tmp_path):
        """A line for each cell, length and task, and the gradients."""
        status, text, _ = command(
            *("memory", "--out", tmp_path, "--lengths", "20,30", "--updates", "50", "--hidden", "16"),
            *("--sequences", "4", "--quiet"),
        )
        assert status == 0
        found = json.loads((tmp_path / "memory.json").read_text())
        assert found["budget"]["max_updates"] == 50
        assert found["gate_bias"] == {
            "elman": "uniform",
            "lstm": "chrono",
            "peephole": "chrono",
            "gru": "chrono",
        }
        assert [(run["num_steps"], run["cell"]) for run in found["runs"]["adding"]] == [
            (steps, cell) for steps in (20, 30) for cell in CELLS
        ]
        assert {len(norms) for norms in found["gradient_norms"].values()} == {31}
        for name in ("adding", "temporal-order", "gradients"):
            assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert len([line for line in text.splitlines() if line.split()[1:2] == ["elman"]]) == 4
        assert f"{found['gradient_norms']['lstm'][10]:.2g}" in text

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--cells", "lstm,rnn"], "'rnn' is not one of elman, lstm, peephole, gru"),
            (["--tasks", "copy"], "'copy' is not one of adding, temporal-order"),
            (["--lengths", "5"], "at least 20 steps, not 5"),
            (["--lengths", "a"], "'a' is not a list of numbers"),
            (["--updates", "0"], "must be at least 1"),
        ],
    )
    def test_what_cannot_be_compared_is_refused(self, refused, tmp_path, options, said):
        """In one line."""
        assert said in refused("memory", "--out", tmp_path, *options)

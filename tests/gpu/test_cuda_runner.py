"""The runner on CUDA beside the runner on the CPU; skipped without a GPU. `make test ARGS='-m gpu'`.

Predictions are compared in the model's own scaled units: |difference| <= 1e-5 + 1e-5 |prediction|, from the
first step to the thousandth; a prediction is 2 to 4 on average. Sums in another order and another sigmoid
cannot agree to the bit. The possible differences were measured on the CPU with the shipped models:

* float32 stays within 7e-7 of float64 over 1,000 steps;
* with the state changed by 2e-6 of itself, some sixteen roundings, at every step, the difference stays within
  9e-6, over 1,000 steps as over 300; a forecast of 60 steps from there within 2e-5;
* with weights rounded as in TensorFloat-32, which must not happen unasked, the difference is 6e-4 and more.
"""

import logging
import pathlib

import numpy as np
import pytest
import torch
from torch import Tensor

from service.config import Address, Config
from service.runtime import artifact
from service.runtime.cuda import CudaGraphs
from service.runtime.cuda_runner import CudaRunner, runner_for
from service.server import Server
from tests.fakes import CPU, FAULT, Recurrence, bits, save

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

ARTIFACTS = pathlib.Path(__file__).parents[2] / "model" / "artifacts"
CUDA = torch.device("cuda")
CAPACITY = 100
MAX_BATCH = 20  # in buckets of 4, 8, 16 and 32
NUM_BUCKETS = 4
BATCHES = [1, 3, 4, 5, 8, 9, 16, 17, 32, 33, 100, 2]
BOUND = 1e-5
START_NS = 1_700_000_000 * 10**9
INTERVAL_NS = 300 * 10**9


class Pair:
    """One shipped model on the CPU and on CUDA, both warmed up, and a series for each session."""

    def __init__(self, name):
        path = ARTIFACTS / name / "1" / "model.pt"
        self.cpu, self.cuda = (runner_for(artifact.load(name, "1", path, at), CAPACITY) for at in (CPU, CUDA))
        for runner in (self.cpu, self.cuda):
            runner.warm_up(MAX_BATCH, 4)
        script = self.cpu.artifact.script
        self.mean, self.scale = script.mean.numpy(), script.scale.numpy()
        self.random = np.random.default_rng(7)
        self.z = np.zeros((CAPACITY, len(self.mean)))
        self.time = START_NS

    def values(self, slots):
        """Returns the next inputs [B, F] of sessions, moving slowly around the mean, and their times [B]."""
        self.z[slots] = 0.95 * self.z[slots] + 0.3 * self.random.standard_normal((len(slots), len(self.mean)))
        self.time += INTERVAL_NS
        x = (self.mean + self.scale * self.z[slots]).astype(np.float32)
        return x, np.full(len(slots), self.time)

    def agree(self, y, wanted):
        """Asserts that two arrays of predictions [.., O] agree within the bound."""
        scale = self.scale[: y.shape[-1]]
        np.testing.assert_allclose(y / scale, wanted / scale, rtol=BOUND, atol=BOUND)

    def step(self, slots):
        """Steps sessions on both, and asserts that they agree."""
        x, times = self.values(slots)
        found, wanted = (runner.step(slots, x, times) for runner in (self.cuda, self.cpu))
        assert found[1].all()
        assert wanted[1].all()
        self.agree(found[0], wanted[0])

    def some(self, count):
        """Returns slots of so many sessions, in no order."""
        return self.random.permutation(CAPACITY)[:count]


@pytest.fixture(params=["mackey-glass", "nyc-taxi"])
def pair(request):
    """Each shipped model."""
    return Pair(request.param)


def rows(runner):
    """Returns all rows of the pool, on the CPU."""
    return runner._pool.rows.cpu().clone()


def test_steps_agree_with_the_cpu(pair):
    """Batches of one, at the edges of buckets and beyond them agree; those in buckets run as graphs."""
    assert pair.cuda.num_graphs == NUM_BUCKETS
    for count in BATCHES:
        pair.step(pair.some(count))


def test_a_thousand_steps_do_not_drift(pair):
    """The last prediction agrees as well as the first."""
    slots = np.arange(5)
    for _ in range(1000):
        pair.step(slots)


def test_long_inputs_and_forecasts_agree_with_the_cpu(pair):
    """Scans among steps agree, and forecasts farther than the head predicts directly."""
    slots, lengths = np.array([70, 3, 20]), np.array([40, 1, 17])
    for length in (40, 9):
        pair.step(slots)
        values = [pair.values(slots) for _ in range(length)]
        x, times = (np.stack(column, axis=1) for column in zip(*values, strict=True))
        lengths = np.minimum(lengths, length)
        found, wanted = (runner.scan(slots, x, times, lengths) for runner in (pair.cuda, pair.cpu))
        assert found[1].all()
        pair.agree(found[0], wanted[0])
    before = rows(pair.cuda)
    future = np.zeros((60, 0), np.float32)
    pair.agree(*(runner.forecast(3, pair.time, 60, future) for runner in (pair.cuda, pair.cpu)))
    assert bits(rows(pair.cuda)) == bits(before)


@pytest.mark.parametrize("count", [3, 8, 40])
def test_a_row_without_a_finite_prediction_is_restored(pair, count):
    """The row is restored to the bit; all rows move with the next step."""
    slots = pair.some(count)
    pair.step(slots)
    before = rows(pair.cuda)[slots[1]]
    x, times = pair.values(slots)
    x[1] = np.nan
    found, wanted = (runner.step(slots, x, times) for runner in (pair.cuda, pair.cpu))
    others = np.arange(count) != 1
    assert found[1].tolist() == wanted[1].tolist() == others.tolist()
    pair.agree(found[0][others], wanted[0][others])
    assert bits(rows(pair.cuda)[slots[1]]) == bits(before)
    pair.step(slots)


def test_a_batch_moves_its_own_rows_alone(pair):
    """The rows of other sessions, and the spare row that padding steps, do not move."""
    assert not rows(pair.cuda).any(), "after the warm-up"
    pair.step(np.arange(CAPACITY))
    before = rows(pair.cuda)
    pair.step(np.array([9, 4, 77, 5, 50]))
    moved = (rows(pair.cuda) != before).any(dim=1)
    assert np.flatnonzero(moved.numpy()).tolist() == [4, 5, 9, 50, 77]
    assert not rows(pair.cuda)[CAPACITY].any()


def test_a_graph_does_what_its_call_does(pair):
    """A runner without a warm-up has no graphs, and agrees."""
    eager = CudaRunner(pair.cuda.artifact, CAPACITY, CudaGraphs())
    for count in (1, 5, 17):
        slots = pair.some(count)
        x, times = pair.values(slots)
        pair.agree(pair.cuda.step(slots, x, times)[0], eager.step(slots, x, times)[0])
        pair.cuda.clear(int(slots[0]))
        eager.clear(int(slots[0]))


def test_a_script_that_waits_for_the_device_runs_without_graphs(tmp_path, caplog):
    """One line says so; steps and exceptions are right, and the next model has graphs."""
    path = save(tmp_path / "model.pt")
    runner, plain = (runner_for(artifact.load("recurrence", "1", path, at), 8) for at in (CUDA, CPU))
    with caplog.at_level(logging.WARNING):
        runner.warm_up(8, 2)
    (line,) = caplog.records
    assert line.message == "cuda_graphs_unused"
    assert "captur" in line.fields["why"], "it says what CUDA did not permit"
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    slots, x, times = np.arange(5), np.ones((5, 2), np.float32), np.zeros(5, np.int64)
    for _ in range(3):
        found, wanted = (each.step(slots, x, times)[0] for each in (runner, plain))
        np.testing.assert_allclose(found, wanted, rtol=BOUND)
    before = rows(runner)
    with pytest.raises(torch.jit.Error):
        runner.step(slots, np.full((5, 2), FAULT, np.float32), times)
    assert bits(rows(runner)) == bits(before)
    assert Pair("mackey-glass").cuda.num_graphs == NUM_BUCKETS


class Recordable(Recurrence):
    """A Recurrence that can be recorded, because it does not branch on its inputs."""

    @torch.jit.export
    def step(self, x: Tensor, time: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Row by row: level' = 0.7 level + x0, seconds' = seconds of time; y is level' and seconds passed."""
        level = state[:, 0] * 0.7 + x[:, 0]  # (B,)
        seconds = torch.div(time, 1_000_000_000, rounding_mode="floor").float()  # (B,)
        after = torch.stack([level, state[:, 1], seconds], dim=1)  # (B, 3)
        return torch.stack([level, seconds - state[:, 2]], dim=1), after  # (B, 2)


def test_a_script_with_times(tmp_path):
    """Each replay takes its own inputs and whole nanoseconds; a row that overflows is restored."""
    path = save(tmp_path / "model.pt", Recordable())
    runner, plain = (runner_for(artifact.load("plain", "1", path, at), 8) for at in (CUDA, CPU))
    runner.warm_up(8, 2)
    assert runner.num_graphs == 2
    slots = np.array([6, 1, 3])
    for second in range(1, 5):
        x = np.array([[second, 0], [3e38, 0], [-second, 0]], np.float32)  # the second overflows at its second
        times = np.full(3, 1024 * second * 10**9 + 999_999_999)  # of so many seconds that float32 holds all
        found, wanted = (each.step(slots, x, times) for each in (runner, plain))
        assert found[1].tolist() == wanted[1].tolist() == [True, second == 1, True]
        np.testing.assert_allclose(found[0][found[1]], wanted[0][wanted[1]], rtol=BOUND)


async def test_a_server_takes_cuda_if_available(caplog):
    """With --device auto every shipped model is on CUDA with graphs, and no line warns."""
    anywhere = Address("127.0.0.1", 0)
    with caplog.at_level(logging.INFO):
        server = Server(Config(models=ARTIFACTS, listen=anywhere, metrics_listen=anywhere, max_batch_steps=8))
    assert {line.levelname for line in caplog.records} == {"INFO"}
    assert {line.fields["device"] for line in caplog.records} == {"cuda"}
    assert len(server.catalog.versions.engines) == len(caplog.records)

"""The CUDA runner on the CPU, with a recorder that replays calls: the same bits as the plain runner."""

import logging
import pathlib

import numpy as np
import pytest
import torch

from service.runtime import artifact
from service.runtime.cuda_runner import CudaRunner, TransferBuffer, runner_for
from service.runtime.runner import Runner
from tests import fakes
from tests.fakes import CPU, FAULT, HUGE, Counter, bits, save

ARTIFACTS = pathlib.Path(__file__).parents[4] / "model" / "artifacts"
CAPACITY = 64
MAX_BATCH = 20  # in buckets of 4, 8, 16 and 32
BATCHES = [1, 3, 4, 5, 7, 8, 9, 16, 17, 20, 31, 32, 33, 60, 2, 1]


class ReplayRecorder:
    """A recorder without CUDA. As with a graph, the results of a replay are in the same memory each time."""

    pins_memory = False

    def __init__(self, most=100):
        self.num_waits = 0
        self.num_replays = 0
        self.rows = []  # the size of each recorded batch, in order
        self._most = most

    def record(self, call):
        """Returns a replay into fixed memory; raises once `most` calls are recorded."""
        if len(self.rows) == self._most:
            try:
                raise RuntimeError(
                    "Traceback of TorchScript\nRuntimeError: CUDA error: not while capturing\nHint."
                )
            except RuntimeError:
                raise RuntimeError("CUDA error: failed due to a previous error during capture") from None
        places = [result.clone() for result in call()]
        self.rows.append(len(places[0]))

        def replay():
            self.num_replays += 1
            for place, result in zip(places, call(), strict=True):
                place.copy_(result)
            return tuple(places)

        return replay

    def wait(self):
        """Counts the waits."""
        self.num_waits += 1


@pytest.fixture
def recorder():
    """A recorder that can record every call."""
    return ReplayRecorder()


def warm(model, recorder):
    """Returns a CUDA runner with its buckets."""
    runner = CudaRunner(model, CAPACITY, recorder)
    runner.warm_up(MAX_BATCH, 3)
    return runner


def states(runner):
    """Returns the states of all sessions as bytes."""
    return bits(runner._pool.rows[:CAPACITY])


def batch_of(model, random, count):
    """Returns slots, inputs and times of a batch of random sessions."""
    slots = random.permutation(CAPACITY)[:count]
    x = random.standard_normal((count, len(model.manifest.inputs))).astype(np.float32)
    return slots, x, random.integers(0, 2 * 10**18, count)


class TestResults:
    """Predictions and states are those of the plain runner."""

    @pytest.mark.parametrize("records", [True, False], ids=["graphs", "eager"])
    @pytest.mark.parametrize("name", ["recurrence", "mackey-glass", "nyc-taxi"])
    def test_the_same_bits_as_the_plain_runner(self, name, records):
        """Batches of all sizes give the same predictions and states as with Runner."""
        model = fakes.recurrence(uses_time=True)
        if name != "recurrence":
            model = artifact.load(name, "1", ARTIFACTS / name / "1" / "model.pt", CPU)
        plain, cuda = Runner(model, CAPACITY), warm(model, ReplayRecorder(100 if records else 0))
        random = np.random.default_rng(5)
        for count in BATCHES:
            slots, x, times = batch_of(model, random, count)
            y, applied = cuda.step(slots, x, times)
            wanted, _ = plain.step(slots, x, times)
            assert applied.all()
            assert bits(y) == bits(wanted), f"a batch of {count}"
            assert states(cuda) == states(plain), f"a batch of {count}"

    def test_long_inputs_and_forecasts_are_those_of_the_plain_runner(self, recorder):
        """Scans and forecasts give the same predictions and states as with Runner."""
        model = fakes.recurrence(uses_time=True, num_future=1)
        plain, cuda = Runner(model, CAPACITY), warm(model, recorder)
        random = np.random.default_rng(6)
        slots, lengths = np.array([9, 2, 63]), np.array([5, 1, 4])
        x, times = (
            random.standard_normal((3, 5, 2)).astype(np.float32),
            random.integers(0, 2 * 10**18, (3, 5)),
        )
        found = [runner.scan(slots, x, times, lengths) for runner in (plain, cuda)]
        assert bits(found[0][0]) == bits(found[1][0])
        assert found[1][1].all()
        assert states(cuda) == states(plain)
        future = random.standard_normal((7, 1)).astype(np.float32)
        assert bits(cuda.forecast(9, 10**18, 7, future)) == bits(plain.forecast(9, 10**18, 7, future))

    def test_a_forecast_without_known_future(self, recorder):
        """A column without bytes can be sent."""
        y = warm(fakes.recurrence(), recorder).forecast(3, 0, 2, np.zeros((2, 0), np.float32))
        assert y.tolist() == [[0, 0], [0, 0]]

    def test_padding_steps_no_session(self, tmp_path, recorder):
        """A step counts in its session alone; the spare row, which padding steps, stays zero."""
        path = save(tmp_path / "model.pt", Counter())
        cuda = warm(artifact.load("counter", "1", path, CPU), recorder)
        assert not cuda._pool.rows.any(), "after the warm-up"
        for count in (1, 3, 5, 17):
            cuda.step(np.arange(count), np.zeros((count, 2), np.float32), np.zeros(count, np.int64))
        counts = cuda._pool.rows[:, 0].tolist()
        assert counts == [4, 3, 3, 2, 2, *[1] * 12, *[0] * (CAPACITY - 17), 0]

    @pytest.mark.parametrize("count", [3, 8, 33])
    def test_rows_without_a_finite_prediction_are_restored(self, recorder, count):
        """Rows are restored in a padded batch, a full one and one beyond the buckets; other rows move."""
        model = fakes.recurrence()
        plain, cuda = Runner(model, CAPACITY), warm(model, recorder)
        x = np.ones((count, 2), np.float32)
        x[[0, 2]] = [HUGE, 0]
        slots, times = np.arange(count)[::-1].copy(), np.zeros(count, np.int64)
        for is_second in (False, True):
            y, applied = cuda.step(slots, x, times)
            wanted, also = plain.step(slots, x, times)
            assert (
                applied.tolist()
                == also.tolist()
                == [not (is_second and row in (0, 2)) for row in range(count)]
            )
            assert bits(y[applied]) == bits(wanted[applied])
            assert states(cuda) == states(plain)

    def test_predictions_are_copies(self, recorder):
        """Predictions do not change when the next batch runs in the same memory."""
        cuda = warm(fakes.recurrence(), recorder)
        first, _ = cuda.step(np.arange(3), np.ones((3, 2), np.float32), np.zeros(3, np.int64))
        kept = first.copy()
        cuda.step(np.arange(3), np.full((3, 2), 9, np.float32), np.zeros(3, np.int64))
        assert bits(first) == bits(kept)

    def test_a_fault_leaves_every_state_as_it_was(self):
        """An exception of the script moves no row, and the next batch is served."""
        cuda = warm(fakes.recurrence(), ReplayRecorder(0))
        cuda.step(np.arange(3), np.ones((3, 2), np.float32), np.zeros(3, np.int64))
        before = states(cuda)
        with pytest.raises(torch.jit.Error):
            cuda.step(np.arange(3), np.full((3, 2), FAULT, np.float32), np.zeros(3, np.int64))
        assert states(cuda) == before
        assert cuda.step(np.arange(3), np.ones((3, 2), np.float32), np.zeros(3, np.int64))[1].all()


class TestGraphs:
    """Which batches run as graphs."""

    def test_every_bucket_is_a_graph(self, recorder):
        """The largest bucket is recorded first; a batch within the buckets is one replay and one wait."""
        cuda = warm(fakes.recurrence(), recorder)
        assert recorder.rows == [32, 16, 8, 4]
        assert cuda.num_graphs == 4
        waits, replays = recorder.num_waits, recorder.num_replays
        for count in (1, 5, 32):
            cuda.step(*batch_of(cuda.artifact, np.random.default_rng(0), count))
        assert (recorder.num_waits - waits, recorder.num_replays - replays) == (3, 3)
        cuda.step(*batch_of(cuda.artifact, np.random.default_rng(0), 33))
        assert recorder.num_replays - replays == 3

    @pytest.mark.parametrize("most", [0, 2], ids=["none", "some"])
    def test_a_script_that_cannot_be_recorded_runs_without_graphs(self, caplog, most):
        """One line says why, by the first error; graphs recorded before are not used either."""
        recorder = ReplayRecorder(most)
        with caplog.at_level(logging.INFO):
            cuda = warm(fakes.recurrence(), recorder)
        (line,) = caplog.records
        assert (line.levelname, line.message) == ("WARNING", "cuda_graphs_unused")
        assert line.fields["model"] == "recurrence/1"
        assert line.fields["why"] == "RuntimeError: CUDA error: not while capturing"
        assert cuda.num_graphs == 0
        cuda.step(*batch_of(cuda.artifact, np.random.default_rng(0), 5))
        assert recorder.num_replays == 0

    def test_there_are_no_buckets_before_a_warm_up(self, recorder):
        """Without a warm-up there are no buckets, and every batch runs unpadded."""
        cuda = CudaRunner(fakes.recurrence(), CAPACITY, recorder)
        assert cuda.step(*batch_of(cuda.artifact, np.random.default_rng(0), 5))[1].all()
        assert recorder.num_waits == 0


def test_columns_of_a_transfer_buffer_are_apart():
    """Each column arrives unchanged, and starts at an address that a kernel can read in one go."""
    buffer = TransferBuffer(
        [((3,), np.int64), ((1, 0), np.float32), ((3, 1), np.float32), ((5,), np.int64)],
        CPU,
        pins_memory=False,
    )
    for number, column in enumerate(buffer.host):
        column[...] = number + 1
    buffer.send()
    assert [column.tolist() for column in buffer.device] == [[1] * 3, [[]], [[3]] * 3, [4] * 5]
    assert [column.dtype for column in buffer.device] == [
        torch.int64,
        torch.float32,
        torch.float32,
        torch.int64,
    ]
    start = buffer.device[0].data_ptr()
    assert [(column.data_ptr() - start) % 16 for column in buffer.device if column.numel()] == [0, 0, 0]


def test_the_plain_runner_serves_the_cpu():
    """On the CPU nothing is copied, so the runner is the plain one."""
    assert type(runner_for(fakes.recurrence(), 2)) is Runner

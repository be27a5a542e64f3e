"""Iterations: which work shares one, which work shares a cell call, and what is measured."""

import pytest

from service.engine.work import Block, Phase
from service.runtime.runner import Runner
from tests import fakes
from tests.fakes import Rig, random_x


class RecordingRunner(Runner):
    """A runner that records the slots of each cell call, and how many steps the call applies."""

    def __init__(self):
        super().__init__(fakes.recurrence(), 64)
        self.calls = []
        self.computed = []  # steps computed by each scan: its rows times the time steps of the longest

    def step(self, slots, *columns):
        """Runs one step of each session."""
        self.calls.append((slots.tolist(), len(slots)))
        return super().step(slots, *columns)

    def scan(self, slots, x, times, lengths):
        """Runs several steps of each session."""
        self.calls.append((slots.tolist(), int(lengths.sum())))
        self.computed.append(x.shape[0] * x.shape[1])
        return super().scan(slots, x, times, lengths)


class TestOneIteration:
    """What an iteration runs, and when it is asked for."""

    def test_one_iteration_serves_all_that_is_ready(self, rig):
        """The engine asks the loop for one turn for all submitted work, and for none when no work is left."""
        slots = rig.open(*"abcdef")
        for slot in slots:
            rig.step(slot, [1, 1])
        assert len(rig.loop.due) == 1
        assert rig.run() == 1
        assert len(rig.done) == 6

    def test_callers_may_submit_from_on_done(self, rig):
        """A caller may submit the next step when the one before is answered."""
        (slot,) = rig.open("a")

        def again(work):
            rig.done.append(work)
            if work.step_index < 3:
                rig.step(slot, [1, 1]).on_done = again

        rig.step(slot, [1, 1]).on_done = again
        rig.run()
        assert [work.step_index for work in rig.done] == [0, 1, 2, 3]


class TestCellCalls:
    """Which work shares a cell call."""

    def test_single_steps_overtake_long_inputs_of_others(self, rig):
        """A step beside an input of many pieces is answered in the next iteration."""
        a, b = rig.open("a", "b")
        long = rig.block([a], [random_x(400)])
        rig.iterate()
        step = rig.step(b, [1, 1])
        rig.iterate()
        assert rig.done == [step]
        rig.run()
        assert rig.done == [step, long]

    def test_no_session_is_twice_in_an_iteration(self):
        """An iteration steps each session at most once, however much work of all kinds is queued."""
        rig = Rig(runner=RecordingRunner(), max_batch_steps=8)
        slots = rig.open(*"abcdef")
        for first in range(4):
            for slot in slots:
                rig.step(slot, [1, 1])
            rig.block(slots[first:], [random_x(1)] * (6 - first))
            rig.block(slots[: first + 1], [random_x(3 + first)] * (first + 1))
            rig.step(slots[first], [1, 1])
        most = 0
        while rig.loop.due:
            rig.runner.calls.clear()
            rig.loop.turn()
            taken = [slot for called, _ in rig.runner.calls for slot in called]
            assert len(taken) == len(set(taken))
            most = max(most, len(rig.runner.calls))
        assert most == 2
        assert all(work.error is None for work in rig.done)
        assert len(rig.done) == 4 * 9

    def test_single_steps_get_in_between_long_inputs_in_any_number(self):
        """An iteration runs max_batch_steps steps of long inputs at most, and a single step beside them."""
        rig = Rig(runner=RecordingRunner(), max_batch_steps=16, max_piece_steps=4)
        *slots, own = rig.open(*(f"s{number}" for number in range(41)))
        for first in range(0, 40, 10):
            rig.block(slots[first : first + 10], [random_x(2 + 7 * at) for at in range(10)])
        rig.block(slots[39:], [random_x(90)])
        longest = 0
        while len([work for work in rig.done if isinstance(work, Block)]) < 5:
            rig.runner.calls.clear()
            step = rig.step(own, [1, 1])
            rig.iterate()
            assert step.phase is Phase.DONE
            (alone, *long) = rig.runner.calls
            assert alone == ([own], 1)
            assert sum(num_steps for _, num_steps in long) <= 16
            longest = max(longest, *(num_steps for _, num_steps in long))
        assert longest > 8
        assert all(work.error is None for work in rig.done)

    def test_a_short_input_is_not_scanned_at_the_length_of_a_long_one(self):
        """A call computes max_batch_steps steps at most, including the padding of shorter rows."""
        rig = Rig(runner=RecordingRunner(), max_batch_steps=16, max_piece_steps=4)
        slots = rig.open(*(f"s{number}" for number in range(11)))
        rig.block(slots[:1], [random_x(9)])
        rig.block(slots[1:], [random_x(2)] * 10)
        while rig.loop.due:
            rig.loop.turn()
        assert sorted(work.num_steps for work in rig.done) == [9, 20]
        assert max(rig.runner.computed) <= 16

    def test_blocks_are_served_though_single_steps_fill_every_batch(self):
        """A block runs even if max_batch_steps single steps are ready in every iteration."""
        rig = Rig(max_batch_steps=4)
        slots = rig.open(*"abcde")

        def again(work):
            rig.step(work.slot, [0, 0]).on_done = again

        for slot in slots[:4]:
            rig.step(slot, [0, 0]).on_done = again
        block = rig.block([slots[4]], [[[1, 1]]])
        for _ in range(100):
            rig.loop.turn()
        assert block.phase is Phase.DONE

    def test_a_cell_call_has_max_batch_steps_at_most(self):
        """A group that was formed in an empty batch has a call of its own beside single steps."""
        rig = Rig(max_batch_steps=4)
        slots = rig.open(*"abcdefgh")
        rig.block(slots[:4], [[[1, 1]] * 3] * 4)
        rig.loop.turn()
        for slot in slots[4:7]:
            rig.step(slot, [0, 0])
        batch = rig.engine._scheduler.schedule()
        rows = len(batch.steps) + sum(len(piece.entries) for piece in batch.pieces if not piece.block.is_long)
        assert rows <= 4


class TestMetrics:
    """What the engine counts and measures."""

    def test_latency_is_queue_plus_compute(self):
        """Latency splits at the start of the batch; all steps of a batch have the same compute time."""

        class Slow(Runner):
            def step(self, *columns):
                rig.clock.now_ns += 2_000_000
                return super().step(*columns)

        rig = Rig(runner=Slow(fakes.recurrence(), 64))
        a, b = rig.open("a", "b")
        rig.step(a, [1, 1])
        rig.clock.now_ns += 5_000_000
        rig.step(b, [1, 1])
        rig.clock.now_ns += 1_000_000
        rig.run()
        assert rig.sample("streamcell_step_queue_seconds_sum") == pytest.approx(0.007)
        assert rig.sample("streamcell_step_compute_seconds_sum") == pytest.approx(0.004)
        assert rig.sample("streamcell_step_seconds_sum") == pytest.approx(0.011)
        assert rig.sample("streamcell_step_seconds_count") == 2

    def test_each_step_is_counted_once(self, rig):
        """Applied, repeated and batched steps count once; errors and primes do not count as replies."""
        a, b = rig.open("a", "b")
        rig.step(a, [1, 1], index=0)
        rig.step(a, [1, 1], index=0)
        rig.step(a, [1, 1], index=7)
        rig.block([b], [random_x(6)])
        rig.block([b], [random_x(3)], wants_replies=False)
        rig.run()
        assert rig.sample("streamcell_steps_total") == 10
        assert rig.sample("streamcell_repeated_steps_total") == 1
        assert rig.sample("streamcell_step_seconds_count") == 7
        assert rig.sample("streamcell_batch_steps_sum") == 10
        assert rig.sample("streamcell_queued_steps") == 0
        assert rig.sample("streamcell_sessions_open") == 2
        assert rig.sample("streamcell_sessions_opened_total") == 2

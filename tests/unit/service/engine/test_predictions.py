"""The engine's predictions: the bits of each session alone, however its steps are grouped."""

import numpy as np

from tests import fakes
from tests.fakes import INTERVAL_NS, Alone, Rig, bits, random_x


class TestBits:
    """Predictions have the bits of the session alone."""

    def test_batched_is_alone_is_replayed(self, rig):
        """The same steps alone, in a batch of many sessions, and sent a second time have the same bits."""
        names = [f"s{number}" for number in range(20)]
        slots = rig.open(*names)
        x = random_x(6, 20)
        batched = [[rig.step(slot, x[t, at]) for at, slot in enumerate(slots)] for t in range(6)]
        assert rig.run() == 6
        for at, slot in enumerate(slots):
            alone = Alone(rig.model)
            wanted = [alone.step(x[t, at]) for t in range(6)]
            assert [bits(batched[t][at].y) for t in range(6)] == wanted
            replayed = [rig.step(slot, x[t, at], index=t) for t in range(2, 6)]
            rig.run()
            assert [bits(work.y) for work in replayed] == wanted[2:]
            assert all(work.is_repeat for work in replayed)
            assert rig.engine.sessions.progress.next_step[slot] == 6

    def test_steps_frames_and_primes_give_the_same_bits(self, rig):
        """A series has the same predictions however it is cut into steps, frames and primes."""
        one, other, primed = rig.open("one", "other", "primed")
        x = random_x(30)
        wanted = Alone(rig.model).fold(x)
        frame = rig.block([one, other], [x[:13], x])
        rest = [rig.step(one, row) for row in x[13:15]]
        last = rig.block([one], [x[15:]])
        history = rig.block([primed], [x], wants_replies=False)
        rig.run()
        found = bits(frame.y[:13]) + b"".join(bits(step.y) for step in rest) + bits(last.y)
        assert found == wanted
        assert bits(frame.y[13:]) == wanted
        assert bits(history.y[-1]) == wanted[-8:]


class TestCleanStart:
    """A session starts from zero, whatever its slot held before."""

    def test_a_reused_slot_starts_clean(self, rig):
        """A session in the slot of an earlier one predicts like the first session of that slot."""
        (slot,) = rig.open("old")
        rig.block([slot], [random_x(9)])
        rig.control(slot, rig.engine.residents.close)
        rig.run()
        (again,) = rig.open("new")
        assert again == slot
        x = random_x(3)
        steps = [rig.step(again, row) for row in x]
        rig.run()
        assert b"".join(bits(step.y) for step in steps) == Alone(rig.model).fold(x)
        assert [step.step_index for step in steps] == [0, 1, 2]

    def test_a_reset_session_starts_clean(self, rig):
        """After a reset a session predicts like a new one."""
        (slot,) = rig.open("a")
        rig.block([slot], [random_x(9)])
        rig.control(slot, rig.engine.residents.reset)
        step = rig.step(slot, [1, 2], index=0)
        rig.run()
        assert bits(step.y) == Alone(rig.model).step([1, 2])
        assert not step.is_repeat


class TestTimes:
    """Times that steps do not give follow by the interval."""

    def test_times_go_on_from_step_to_step(self):
        """A step without a time follows the one before by the interval, also behind a block."""
        rig = Rig(fakes.recurrence(uses_time=True))
        (slot,) = rig.open("a")
        rig.step(slot, [1, 1], time=100 * INTERVAL_NS)
        rig.block([slot], [random_x(6)])
        rig.step(slot, [1, 1])
        rig.run()
        assert rig.engine.sessions.progress.last_time[slot] == 107 * INTERVAL_NS
        assert [work.error for work in rig.done] == [None] * 3

    def test_a_time_beyond_the_largest_is_refused_alone(self):
        """A step whose time would pass the largest is refused; the other steps of the batch are served."""
        rig = Rig(fakes.recurrence(uses_time=True))
        a, b = rig.open("a", "b")
        rig.step(a, [1, 2], time=2**62)
        rig.step(b, [1, 2], time=5)
        rig.run()
        bad, good = rig.step(a, [1, 2]), rig.step(b, [1, 2])
        rig.run()
        assert good.error is None
        assert bad.error.metadata["field"] == "time_ns"

    def test_times_do_not_wrap_round_within_a_block(self):
        """A block whose times would wrap round to negative ones is refused."""
        rig = Rig(fakes.recurrence(uses_time=True))
        (a,) = rig.open("a")
        rig.step(a, [1, 2], time=2**62)
        block = rig.block([a], [[[1, 2]] * 3])
        rig.run()
        assert block.errors[0].metadata["field"] == "time_raw"


def test_forecasts_leave_the_session_as_it_was(rig):
    """A forecast is refused before the first step; a forecast after it changes no later prediction."""
    (slot,) = rig.open("a")
    none = np.zeros((3, 0), np.float32)
    early = rig.control(slot, lambda slot: rig.engine.forecast(slot, 3, none))
    rig.step(slot, [1, 1])
    looks = [rig.control(slot, lambda slot: rig.engine.forecast(slot, 3, none)) for _ in range(2)]
    after = rig.step(slot, [2, 2])
    rig.run()
    assert early.error.metadata["field"] == "session_id"
    assert bits(looks[0].result) == bits(looks[1].result)
    assert looks[0].result.shape == (3, 2)
    alone = Alone(rig.model)
    alone.step([1, 1])
    assert bits(after.y) == alone.step([2, 2])
    assert rig.sample("streamcell_forecasts_total") == 2

"""Held iterations among any other work: no work waits for long, and nothing else changes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine import pacer
from service.engine.work import Control, Phase, Step
from service.runtime.runner import Runner
from tests import fakes
from tests.fakes import Alone, Rig, bits

MAX_TICKS, NUM_SESSIONS = 3, 5
MODEL = fakes.recurrence()
RUNNER = Runner(MODEL, 64)
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["unary", "unary", "unary", "step", "frame", "control", "withdraw", "turn", "turn"]),
        st.integers(0, NUM_SESSIONS - 1),
    ),
    max_size=60,
)


@pytest.fixture(autouse=True, scope="module")
def always_tried():
    """Makes every iteration a trial, not one in 512."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pacer, "_TRY_EVERY", 1)
        yield


class HoldingEngine:
    """An engine whose unary steps may be held, and the work of each session, in order."""

    def __init__(self):
        self.rig = Rig(MODEL, RUNNER, max_hold_seconds=MAX_TICKS / 1000)
        self.slots = self.rig.open(*(f"s{number}" for number in range(NUM_SESSIONS)))
        self.lanes = {slot: [] for slot in self.slots}
        self.turns_left = {}  # work that is first in its lane -> turns within which it must be done

    def submit(self, kind, slot):
        """Submits a step, a frame of one entry, or a control."""
        x = [float(len(self.lanes[slot])), 1.0]
        # Withdrawn work stays in its lane until an iteration removes it.
        is_alone = self.rig.engine.is_idle or all(one.phase is Phase.DONE for one, _ in self.lanes[slot])
        if kind == "frame":
            work = self.rig.block([slot], [[x]])
        elif kind == "control":
            work = self.rig.control(slot, lambda at: int(self.rig.engine.sessions.progress.next_step[at]))
        else:
            work = self.rig.step(slot, x, may_be_held=kind == "unary")
        if is_alone:
            self.turns_left[work] = 1 + MAX_TICKS if kind == "unary" else 1
        self.lanes[slot].append((work, x))

    def withdraw(self, slot):
        """Withdraws a session's last work, if that is still possible."""
        if self.lanes[slot]:
            self.rig.engine.withdraw(self.lanes[slot][-1][0])

    def turn(self):
        """Runs one turn of the loop, if one is due."""
        if not self.rig.loop.due:
            return
        self.rig.loop.turn()
        for work in list(self.turns_left):
            self.turns_left[work] -= 1
            if work.phase in (Phase.DONE, Phase.WITHDRAWN):
                del self.turns_left[work]
        assert all(self.turns_left.values()), "kept waiting for too long"

    def check(self):
        """Checks that each session's work was done in order, with the bits of the session alone."""
        done = {work: at for at, work in enumerate(self.rig.done)}
        assert len(done) == len(self.rig.done)
        for lane in self.lanes.values():
            alone, order = Alone(MODEL), []
            for work, x in lane:
                assert (work in done) == (work.phase is Phase.DONE)
                if work not in done:
                    continue
                order.append(done[work])
                if isinstance(work, Control):
                    assert work.result == alone.num_steps
                else:
                    assert bits(work.y if isinstance(work, Step) else work.y[0]) == alone.step(x)
            assert order == sorted(order)


@given(EVENTS)
@settings(max_examples=150, deadline=None)
def test_held_or_not_all_is_served_in_order_and_soon(events):
    """A held step waits for some ticks at most, other work for the next turn; there is one timer at most."""
    holding = HoldingEngine()
    for kind, number in events:
        if kind == "turn":
            holding.turn()
        elif kind == "withdraw":
            holding.withdraw(holding.slots[number])
        else:
            holding.submit(kind, holding.slots[number])
        assert len(holding.rig.loop.due) <= 1
        assert holding.rig.loop.due or holding.rig.engine.is_idle
    holding.rig.run()
    assert holding.rig.engine.is_idle
    holding.check()

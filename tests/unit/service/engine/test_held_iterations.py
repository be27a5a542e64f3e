"""Iterations that are held so that more steps join, and work that comes meanwhile."""

import pytest

from service.errors import Reason, StreamcellError
from tests.fakes import Rig


@pytest.fixture
def holding():
    """An engine that holds its next iteration, if it may, and the slots of four sessions."""
    rig = Rig(max_hold_seconds=0.003)
    slots = rig.open(*"abcd")
    for _ in range(511):  # only now and then does it try
        rig.step(slots[0], [0, 0], may_be_held=True)
        rig.run()
    rig.control(slots[0], rig.engine.residents.reset)
    rig.run()
    rig.done.clear()
    return rig, slots


def held(rig, slots):
    """Submits steps that may be held, and sees that they are."""
    steps = [rig.step(slot, [1, 1], may_be_held=True) for slot in slots]
    rig.loop.turn()
    assert rig.done == []
    return steps


def test_a_held_step_can_be_withdrawn(holding):
    """It has not begun: nothing moves by it, and those held with it are answered."""
    rig, slots = holding
    steps = held(rig, slots[:3])
    assert rig.engine.withdraw(steps[1])
    rig.run()
    assert rig.done == [steps[0], steps[2]]
    assert rig.engine.sessions.progress.next_step[slots].tolist() == [1, 0, 1, 0]
    assert rig.engine.is_idle


def test_all_that_is_held_can_be_withdrawn(holding):
    """Then the iteration has nothing to do; the next one is asked for anew."""
    rig, slots = holding
    for step in held(rig, slots):
        assert rig.engine.withdraw(step)
    rig.run()
    assert (rig.done, rig.engine.is_idle, len(rig.loop.due)) == ([], True, 0)
    step = rig.step(slots[0], [1, 1], may_be_held=True)
    rig.run()
    assert rig.done == [step]
    assert step.step_index == 0


def test_a_control_ends_the_wait_and_keeps_its_place(holding):
    """A look sees the held step applied, a close ends the session behind it; both by the next tick."""
    rig, slots = holding
    (step,) = held(rig, slots[:1])
    look = rig.control(slots[0], lambda slot: int(rig.engine.sessions.progress.next_step[slot]))
    close = rig.control(slots[0], rig.engine.residents.close)
    beside = rig.control(slots[1], rig.engine.residents.close)
    late = rig.step(slots[0], [1, 1], may_be_held=True)
    rig.loop.turn()
    assert rig.done == [beside, step]
    assert rig.loop.num_delays == 1
    rig.run()
    assert rig.done == [beside, step, look, close, late]
    assert (look.result, close.result, beside.result) == (1, 1, 0)
    assert late.error.reason is Reason.SESSION_NOT_FOUND
    assert rig.loop.num_delays == 1


def test_a_step_behind_a_held_one_is_not_held_again(holding):
    """Work left over by an iteration goes on at once, also where holding pays."""
    rig, slots = holding
    first, *others = [
        *held(rig, slots[:1]),
        *(rig.step(slot, [1, 1], may_be_held=True) for slot in slots[1:]),
    ]
    behind = rig.step(slots[0], [1, 1], may_be_held=True)
    rig.loop.turn()
    rig.loop.turn()
    assert rig.done == [first, *others]
    rig.loop.turn()
    assert rig.done == [first, *others, behind]
    num_delays = rig.loop.num_delays
    held_again = rig.step(slots[0], [1, 1], may_be_held=True)
    rig.run()
    assert rig.loop.num_delays > num_delays
    assert rig.done[-1] is held_again


def test_an_engine_that_holds_is_not_idle(holding):
    """So that a drain waits for it, and no session with a held step expires."""
    rig, slots = holding
    (step,) = held(rig, slots[:1])
    assert not rig.engine.is_idle
    rig.clock.now_ns += 1000
    rig.engine.expire_idle(5)
    assert [rig.engine.sessions.find(f"\0{name}") for name in "ab"] == [slots[0], None]
    rig.run()
    assert rig.done == [step]
    assert step.error is None
    assert rig.engine.is_idle


def test_what_is_held_counts_in_the_queue():
    """A full queue says so at once, held or not."""
    rig = Rig(max_hold_seconds=0.003, max_queue_steps=2)
    slots = rig.open(*"abc")
    for _ in range(511):
        rig.step(slots[0], [0, 0], may_be_held=True)
        rig.run()
    rig.done.clear()
    steps = held(rig, slots[:2])
    for may_be_held in (True, False):
        with pytest.raises(StreamcellError) as caught:
            rig.step(slots[2], [1, 1], may_be_held=may_be_held)
        assert caught.value.reason is Reason.OVERLOADED
    assert len(rig.loop.due) == 1
    rig.run()
    assert rig.done == steps

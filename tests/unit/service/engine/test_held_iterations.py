"""Iterations that are held so that more steps join, and work that comes meanwhile."""

import pytest

from service.errors import Reason, StreamcellError
from tests.fakes import Rig


@pytest.fixture
def about_to_hold():
    """An engine that will hold its next iteration if it may, and the slots of four sessions."""
    rig = Rig(max_hold_seconds=0.003)
    slots = rig.open(*"abcd")
    for _ in range(511):  # the policy tries once in 512 iterations
        rig.step(slots[0], [0, 0], may_be_held=True)
        rig.run()
    rig.control(slots[0], rig.engine.residents.reset)
    rig.run()
    rig.done.clear()
    return rig, slots


def held(rig, slots):
    """Submits steps that may be held, and checks that they are."""
    steps = [rig.step(slot, [1, 1], may_be_held=True) for slot in slots]
    rig.loop.turn()
    assert rig.done == []
    return steps


def test_a_held_step_can_be_withdrawn(about_to_hold):
    """A withdrawn step moves nothing; the steps held with it are answered."""
    rig, slots = about_to_hold
    steps = held(rig, slots[:3])
    assert rig.engine.withdraw(steps[1])
    rig.run()
    assert rig.done == [steps[0], steps[2]]
    assert rig.engine.sessions.progress.next_step[slots].tolist() == [1, 0, 1, 0]
    assert rig.engine.is_idle


def test_all_held_steps_can_be_withdrawn(about_to_hold):
    """An iteration may find no work; the next one is asked for again."""
    rig, slots = about_to_hold
    for step in held(rig, slots):
        assert rig.engine.withdraw(step)
    rig.run()
    assert (rig.done, rig.engine.is_idle, len(rig.loop.due)) == ([], True, 0)
    step = rig.step(slots[0], [1, 1], may_be_held=True)
    rig.run()
    assert rig.done == [step]
    assert step.step_index == 0


def test_a_control_ends_the_hold_and_keeps_its_place(about_to_hold):
    """A control ends the hold with the next tick, and runs after the held step of its session."""
    rig, slots = about_to_hold
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


def test_a_step_behind_a_held_one_is_not_held_again(about_to_hold):
    """Work left over by an iteration runs at once, also while about_to_hold pays."""
    rig, slots = about_to_hold
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


def test_an_engine_that_holds_is_not_idle(about_to_hold):
    """A drain waits for a held step, and its session does not expire."""
    rig, slots = about_to_hold
    (step,) = held(rig, slots[:1])
    assert not rig.engine.is_idle
    rig.clock.now_ns += 1000
    rig.engine.expire_idle(5)
    assert [rig.engine.sessions.find(f"\0{name}") for name in "ab"] == [slots[0], None]
    rig.run()
    assert rig.done == [step]
    assert step.error is None
    assert rig.engine.is_idle


def test_held_steps_count_in_the_queue():
    """Held steps fill the queue: more steps are refused at once, whether they may be held or not."""
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

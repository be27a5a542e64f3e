"""When iterations are held back: for company, and for what comes in beside long inputs."""

from service.engine.pacer import HoldPolicy
from tests.fakes import Rig

TRY_EVERY = 512


def run(pace, first, *later):
    """Takes a pace through one iteration of `first` steps, then `later` at each tick; returns ticks held."""
    if not pace.begin(first):
        return 0
    for ticks, num_steps in enumerate(later, 1):
        if not pace.extend(num_steps):
            return ticks
    raise AssertionError("held longer than the test says")


def tried(pace):
    """Brings a pace to where it tries holding next."""
    for _ in range(TRY_EVERY - 1):
        assert not pace.begin(1)
    return pace


def test_a_lone_step_is_hardly_ever_held():
    """Of the steps of one caller, of whom nobody else is there to wait for, one in 512 waits a tick."""
    pace = HoldPolicy(3)
    held = [run(pace, 1, 1) for _ in range(4 * TRY_EVERY)]
    assert sum(held) == 4
    assert [at % TRY_EVERY for at, ticks in enumerate(held) if ticks] == [TRY_EVERY - 1] * 4


def test_holding_goes_on_while_it_pays():
    """Once four times as many steps ran for holding, each iteration is held, as long as steps keep coming."""
    pace = tried(HoldPolicy(3))
    assert run(pace, 1, 5, 9, 14) == 3  # the most ticks
    assert run(pace, 1, 5, 5) == 2  # nobody came in the second
    assert run(pace, 2, 40, 64) == 2  # enough


def test_holding_ends_when_it_no_longer_pays():
    """Three in a row for which too few steps came end it; fewer do not."""
    pace = tried(HoldPolicy(3))
    assert run(pace, 1, 4, 4) == 2
    assert [run(pace, 1, 3, 3), run(pace, 1, 1), run(pace, 1, 4, 4), run(pace, 1, 1)] == [2, 1, 2, 1]
    assert [run(pace, 1, 1), run(pace, 1, 1), run(pace, 1, 1)] == [1, 1, 0]


def test_a_batch_of_some_size_is_not_held():
    """Where sixteen steps are there already, waiting for more would gain little."""
    pace = tried(HoldPolicy(3))
    assert run(pace, 1, 16, 32, 48) == 3
    assert run(pace, 17) == 0
    assert run(pace, 16, 16) == 1


def test_can_be_turned_off():
    """With no ticks nothing is ever held."""
    pace = HoldPolicy(0)
    assert not any(pace.begin(1) for _ in range(4 * TRY_EVERY))


def about_to_hold(**changes):
    """Returns an engine that holds its next iteration, if it may, and the slots of four sessions."""
    rig = Rig(**changes)
    slots = rig.open("a", "b", "c", "d")
    for _ in range(TRY_EVERY - 1):
        rig.step(slots[0], [1, 1], may_be_held=True)
        rig.loop.run()
    rig.done.clear()
    return rig, slots


def turn(rig):
    """Takes one turn of an engine's loop; returns how many steps are answered by then."""
    rig.loop.turn()
    return len(rig.done)


def test_a_held_call_runs_with_those_that_come_meanwhile():
    """They are one batch; with --max-hold-seconds 0 each runs at once."""
    rig, slots = about_to_hold(max_hold_seconds=0.003)
    rig.step(slots[0], [1, 1], may_be_held=True)
    assert turn(rig) == 0
    for slot in slots[1:]:
        rig.step(slot, [1, 1], may_be_held=True)
    assert [turn(rig), turn(rig)] == [0, 4]
    assert rig.loop.num_delays == 2
    assert all(step.error is None for step in rig.done)
    rig, slots = about_to_hold(max_hold_seconds=0)
    rig.step(slots[0], [1, 1], may_be_held=True)
    assert turn(rig) == 1


def test_nothing_else_is_held():
    """A step of a stream runs at once; one that joins held calls ends their wait with the next tick."""
    rig, slots = about_to_hold(max_hold_seconds=0.003)
    rig.step(slots[0], [1, 1])
    assert turn(rig) == 1
    rig.step(slots[0], [1, 1], may_be_held=True)
    assert turn(rig) == 1
    rig.step(slots[1], [1, 1])
    assert turn(rig) == 3
    assert rig.loop.num_delays == 1


def test_between_two_pieces_of_a_long_input_others_get_in():
    """What comes within four turns after an iteration is part of the next; nothing is slept for."""
    rig = Rig()
    a, *others = rig.open("a", "b", "c", "d", "e")
    long = rig.block([a], [[[1, 1]] * 12])
    assert turn(rig) == 0
    for slot in others:
        assert turn(rig) == 0
        rig.step(slot, [1, 1])
    assert turn(rig) == 4
    rig.run()
    assert rig.done[-1] is long
    assert rig.loop.num_delays == 0
    assert rig.sample("streamcell_batch_steps_count") == 4  # three pieces, and the four steps as one


def test_work_that_waits_behind_its_own_session_goes_on_at_once():
    """A client that sends steps ahead gets each in a turn of its own."""
    rig = Rig()
    (slot,) = rig.open("a")
    for _ in range(3):
        rig.step(slot, [1, 1])
    assert [turn(rig) for _ in range(3)] == [1, 2, 3]

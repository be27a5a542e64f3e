"""When iterations run: held so that more steps join, and some turns later after long inputs."""

from service.engine.pacer import HoldPolicy
from tests.fakes import Rig

TRY_EVERY = 512


def run(policy, first, *later):
    """Runs an iteration of `first` steps, then `later` at each tick; returns how many ticks it was held."""
    if not policy.begin(first):
        return 0
    for ticks, num_steps in enumerate(later, 1):
        if not policy.extend(num_steps):
            return ticks
    raise AssertionError("held longer than the test expects")


def tried(policy):
    """Advances a policy to just before its next trial."""
    for _ in range(TRY_EVERY - 1):
        assert not policy.begin(1)
    return policy


class TestHoldPolicy:
    """Which iterations are held, and for how many ticks."""

    def test_a_lone_step_is_hardly_ever_held(self):
        """One step in 512 of a single caller waits for a tick."""
        policy = HoldPolicy(3)
        held = [run(policy, 1, 1) for _ in range(4 * TRY_EVERY)]
        assert sum(held) == 4
        assert [at % TRY_EVERY for at, ticks in enumerate(held) if ticks] == [TRY_EVERY - 1] * 4

    def test_iterations_are_held_while_that_pays(self):
        """After a trial with four times as many steps each iteration is held while more steps come in."""
        policy = tried(HoldPolicy(3))
        assert run(policy, 1, 5, 9, 14) == 3  # the most ticks
        assert run(policy, 1, 5, 5) == 2  # no step came in the second
        assert run(policy, 2, 40, 64) == 2  # enough

    def test_holding_ends_when_it_no_longer_pays(self):
        """Three iterations in a row with too few steps end the holding; fewer do not."""
        policy = tried(HoldPolicy(3))
        assert run(policy, 1, 4, 4) == 2
        assert [run(policy, 1, 3, 3), run(policy, 1, 1), run(policy, 1, 4, 4), run(policy, 1, 1)] == [
            2,
            1,
            2,
            1,
        ]
        assert [run(policy, 1, 1), run(policy, 1, 1), run(policy, 1, 1)] == [1, 1, 0]

    def test_a_batch_of_some_size_is_not_held(self):
        """More than sixteen steps run at once, because more steps would save little."""
        policy = tried(HoldPolicy(3))
        assert run(policy, 1, 16, 32, 48) == 3
        assert run(policy, 17) == 0
        assert run(policy, 16, 16) == 1

    def test_holding_can_be_turned_off(self):
        """Without ticks no iteration is held."""
        policy = HoldPolicy(0)
        assert not any(policy.begin(1) for _ in range(4 * TRY_EVERY))


def about_to_hold(**changes):
    """Returns an engine that will hold its next iteration if it may, and the slots of four sessions."""
    rig = Rig(**changes)
    slots = rig.open("a", "b", "c", "d")
    for _ in range(TRY_EVERY - 1):
        rig.step(slots[0], [1, 1], may_be_held=True)
        rig.loop.run()
    rig.done.clear()
    return rig, slots


def turn(rig):
    """Runs one turn of an engine's loop; returns how many steps are answered by then."""
    rig.loop.turn()
    return len(rig.done)


class TestPacer:
    """When an engine's iterations run."""

    def test_a_held_call_runs_with_those_that_come_meanwhile(self):
        """Held steps run in one batch; with --max-hold-seconds 0 each step runs at once."""
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

    def test_nothing_else_is_held(self):
        """A step of a stream runs at once, and ends the hold of unary steps with the next tick."""
        rig, slots = about_to_hold(max_hold_seconds=0.003)
        rig.step(slots[0], [1, 1])
        assert turn(rig) == 1
        rig.step(slots[0], [1, 1], may_be_held=True)
        assert turn(rig) == 1
        rig.step(slots[1], [1, 1])
        assert turn(rig) == 3
        assert rig.loop.num_delays == 1

    def test_between_two_pieces_of_a_long_input_others_get_in(self):
        """Steps that come within four turns after an iteration run in the next one; no time passes."""
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

    def test_work_that_waits_behind_its_own_session_goes_on_at_once(self):
        """Steps that a client sends ahead run in one turn each."""
        rig = Rig()
        (slot,) = rig.open("a")
        for _ in range(3):
            rig.step(slot, [1, 1])
        assert [turn(rig) for _ in range(3)] == [1, 2, 3]

"""The engine, turned by hand: isolation within a batch, exact bits, order of controls, bounds and expiry."""

import logging

import numpy as np
import pytest

from service.engine.work import INDEX_NEXT, Block, Control, Phase, Step, Work
from service.errors import Reason, StreamcellError
from service.runtime.runner import Runner
from tests import fakes
from tests.fakes import FAULT, FAULT_TEXT, INTERVAL_NS, Alone, Rig, bits

HUGE = 3e38  # twice in a row overflows the Recurrence's level


@pytest.fixture
def rig():
    """An engine over the Recurrence."""
    return Rig()


def random_x(*shape):
    """Returns inputs of no particular pattern."""
    return np.random.default_rng(5).standard_normal((*shape, 2)).astype(np.float32)


def turn(rig):
    """Takes one turn of the loop."""
    rig.loop.turn()


def iteration(rig):
    """Takes turns of the loop until steps have run."""
    num_batches = rig.sample("streamcell_batch_steps_count")
    while rig.sample("streamcell_batch_steps_count") == num_batches:
        turn(rig)


# -- Exact bits --------------------------------------------------------------------------------------


def test_batched_is_alone_is_replayed(rig):
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


def test_steps_frames_and_primes_give_the_same_bits(rig):
    """However a series is cut into steps and blocks, its predictions are those of single steps alone."""
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


def test_a_reused_slot_starts_clean(rig):
    """A session in the slot of an earlier one predicts as if it were the first there ever was."""
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


def test_a_reset_session_starts_clean(rig):
    """After a reset the session predicts as a new one, under the same slot."""
    (slot,) = rig.open("a")
    rig.block([slot], [random_x(9)])
    rig.control(slot, rig.engine.residents.reset)
    step = rig.step(slot, [1, 2], index=0)
    rig.run()
    assert bits(step.y) == Alone(rig.model).step([1, 2])
    assert not step.is_repeat


def test_times_go_on_from_step_to_step():
    """A step without a time gets the one before plus the interval, also behind a block of the same batch."""
    rig = Rig(fakes.recurrence(uses_time=True))
    (slot,) = rig.open("a")
    rig.step(slot, [1, 1], time=100 * INTERVAL_NS)
    rig.block([slot], [random_x(6)])
    rig.step(slot, [1, 1])
    rig.run()
    assert rig.engine.sessions.progress.last_time[slot] == 107 * INTERVAL_NS
    assert [work.error for work in rig.done] == [None] * 3


# -- Nobody's trouble is another's -------------------------------------------------------------------


def test_a_cancelled_step_leaves_its_batchmates_served(rig):
    """A step withdrawn before its batch is not applied nor answered; all others of the batch are."""
    slots = rig.open(*"abcd")
    steps = [rig.step(slot, [1, 1]) for slot in slots]
    assert rig.engine.withdraw(steps[1])
    rig.run()
    assert rig.done == [steps[0], steps[2], steps[3]]
    assert all(bits(step.y) == Alone(rig.model).step([1, 1]) for step in rig.done)
    assert rig.engine.sessions.progress.next_step[slots].tolist() == [1, 0, 1, 1]
    assert rig.engine.is_idle


def test_a_step_cancelled_too_late_is_applied_and_answered_to_the_retry(rig):
    """Once its batch has run a step cannot be taken back; sent again it gets the reply it had."""
    (slot,) = rig.open("a")
    step = rig.step(slot, [1, 1], index=0)
    rig.run()
    assert not rig.engine.withdraw(step)
    again = rig.step(slot, [1, 1], index=0)
    rig.run()
    assert (again.is_repeat, again.y) == (True, step.y)


def test_a_caller_that_goes_while_its_batch_runs_disturbs_nobody(rig):
    """A caller told of one step may withdraw others of the same batch, blocks too; the rest are answered."""
    a, b, c = rig.open(*"abc")
    block = rig.block([b], [random_x(20)])
    other = rig.step(c, [1, 1])
    first = rig.step(a, [1, 1])
    told = []
    first.on_done = lambda work: told.append((rig.engine.withdraw(block), rig.engine.withdraw(other)))
    rig.run()
    assert told == [(True, False)]
    assert rig.done == [other]
    assert rig.engine.sessions.progress.next_step[b] == rig.settings.max_piece_steps
    assert rig.engine.is_idle
    assert not rig.loop.due


def test_a_fault_in_the_cell_call_fails_that_batch_alone(rig, caplog):
    """Its steps are told an id, the log has the rest, no state moves, later steps go on with exact bits."""
    a, b, c = rig.open(*"abc")
    rig.step(a, [1, 1])
    rig.step(b, [2, 2])
    rig.run()
    rig.done.clear()
    with caplog.at_level(logging.ERROR, "streamcell"):
        bad, mate = rig.step(a, [FAULT, 0]), rig.step(b, [3, 3])
        frame = rig.block([c], [[[4, 4]]])
        long = rig.block(rig.open("d"), [random_x(2)])
        rig.run()
    assert set(rig.done) == {bad, mate, frame, long}
    assert bad.error is mate.error is frame.errors[0]
    assert bad.error.reason is Reason.INTERNAL
    assert FAULT_TEXT not in bad.error.message + str(bad.error.metadata)
    assert long.errors == {}
    (record,) = caplog.records
    assert record.fields["error_id"] == bad.error.metadata["error_id"]
    assert FAULT_TEXT in str(record.exc_info[1])
    assert rig.engine.sessions.progress.next_step[[a, b, c]].tolist() == [1, 1, 0]
    later = [rig.step(a, [5, 5], index=1), rig.step(b, [3, 3], index=1)]
    rig.run()
    for step, first in zip(later, ([1, 1], [2, 2]), strict=True):
        alone = Alone(rig.model)
        alone.step(first)
        assert bits(step.y) == alone.step([5, 5] if first == [1, 1] else [3, 3])


def test_a_fault_midway_ends_a_long_input_there(rig):
    """What was applied before stays applied and is told; the rest is not run."""
    (slot,) = rig.open("a")
    x = random_x(20)
    x[9, 0] = FAULT
    block = rig.block([slot], [x])
    rig.run()
    assert block.errors[0].reason is Reason.INTERNAL
    assert block.num_applied.tolist() == [8]
    assert rig.engine.sessions.progress.next_step[slot] == 8
    after = rig.step(slot, [1, 1])
    rig.run()
    alone = Alone(rig.model)
    alone.fold(x[:8])
    assert bits(after.y) == alone.step([1, 1])


def test_overflow_in_one_session_never_reaches_another(rig):
    """A step without a finite prediction is refused and not applied; its batchmates' bits are theirs."""
    good, bad, framed = rig.open("good", "bad", "framed")
    found = []
    for _ in range(4):
        found.append(rig.step(good, [1, 1]))
        rig.step(bad, [HUGE, 0])
        rig.block([framed], [[[2, 2]]])
        rig.run()
    assert b"".join(bits(step.y) for step in found) == Alone(rig.model).fold([[1, 1]] * 4)
    bad_steps = [work for work in rig.done if getattr(work, "slot", None) == bad]
    assert [work.error is None for work in bad_steps] == [True, False, False, False]
    assert bad_steps[1].error.metadata["field"] == "x"
    assert rig.engine.sessions.progress.next_step[[good, bad, framed]].tolist() == [4, 1, 4]
    on = rig.step(bad, [0, 0], index=1)
    rig.run()
    alone = Alone(rig.model)
    alone.step([HUGE, 0])
    assert bits(on.y) == alone.step([0, 0])


def test_overflow_midway_ends_an_entry_and_leaves_the_others(rig):
    """The entry's piece is not applied, its earlier pieces are; other entries run to their ends."""
    bad, good = rig.open("bad", "good")
    x = random_x(10)
    worse = x.copy()
    worse[5:7] = [HUGE, 0]
    block = rig.block([bad, good], [worse, x])
    rig.run()
    assert block.errors[0].metadata["field"] == "x_raw"
    assert (list(block.errors), block.num_applied.tolist()) == ([0], [4, 10])
    assert bits(block.y[10:]) == Alone(rig.model).fold(x)
    assert rig.engine.sessions.progress.next_step[[bad, good]].tolist() == [4, 10]


def test_a_failing_caller_disturbs_nobody(rig, caplog):
    """An exception in one caller's on_done is logged; the others hear of theirs, the engine goes on."""
    a, b = rig.open("a", "b")
    first, second = rig.step(a, [1, 1]), rig.step(b, [1, 1])

    def fail(_):
        raise KeyError("a caller's own")

    first.on_done = fail
    rig.run()
    assert rig.done == [second]
    assert "a caller's own" in caplog.text
    assert rig.engine.is_idle
    again = rig.step(a, [1, 1])
    rig.run()
    assert again.step_index == 1


def test_a_fault_while_committing_ends_the_sessions(rig, monkeypatch, caplog):
    """Where states have moved and counters have not, the sessions end rather than go on wrong."""
    a, b, other = rig.open("a", "b", "other")
    steps = [rig.step(a, [1, 1]), rig.step(b, [1, 1])]
    behind = rig.step(a, [2, 2])

    def fail(*_):
        raise MemoryError("no room to write down where they stand")

    with monkeypatch.context() as patch:
        patch.setattr(rig.engine.sessions, "apply", fail)
        turn(rig)
    rig.run()
    assert [step.error.reason for step in steps] == [Reason.INTERNAL] * 2
    assert behind.error.reason is Reason.SESSION_NOT_FOUND
    assert "no room" in caplog.text
    assert len(rig.engine.sessions) == 1
    assert rig.sample("streamcell_sessions_open") == 1
    fresh = [rig.step(slot, [3, 3]) for slot in rig.open("a", "b")]
    step = rig.step(other, [3, 3])
    rig.run()
    assert all(bits(work.y) == Alone(rig.model).step([3, 3]) for work in [*fresh, step])


# -- Controls and order ------------------------------------------------------------------------------


def test_controls_keep_their_place_in_the_lane(rig):
    """A control sees every step asked before it and none asked after."""
    a, b = rig.open("a", "b")
    seen = []
    look = lambda slot: seen.append((slot, int(rig.engine.sessions.progress.next_step[slot])))  # noqa: E731
    rig.block([a], [random_x(10)])
    rig.control(a, look)
    rig.step(a, [1, 1])
    rig.control(a, look)
    rig.control(b, look)
    rig.run()
    assert seen == [(b, 0), (a, 10), (a, 11)]


def test_a_controls_result_is_its_actions(rig):
    """What the action returns is the result; a StreamcellError of it is told, any other is a fault."""
    (slot,) = rig.open("a")

    def refuse(_):
        raise StreamcellError(Reason.STEP_GAP, "no")

    works = [
        rig.control(slot, lambda slot: slot + 1),
        rig.control(slot, refuse),
        rig.control(slot, lambda _: 1 / 0),
    ]
    rig.run()
    assert works[0].result == slot + 1
    assert works[1].error.reason is Reason.STEP_GAP
    assert works[2].error.reason is Reason.INTERNAL
    assert rig.done == works


def test_work_behind_a_close_finds_no_session(rig):
    """Whatever is queued behind a close is refused; the next owner of the slot is untouched."""
    (slot,) = rig.open("a")
    rig.step(slot, [1, 1])
    closing = rig.control(slot, rig.engine.residents.close)
    behind = [
        rig.step(slot, [2, 2]),
        rig.block([slot], [[[3, 3]]]),
        rig.control(slot, rig.engine.residents.close),
    ]
    turn(rig)
    turn(rig)
    assert closing.result == 1
    assert rig.open("b") == [slot]
    rig.run()
    found = [behind[0].error, behind[1].errors[0], behind[2].error]
    assert [error.reason for error in found] == [Reason.SESSION_NOT_FOUND] * 3
    assert rig.engine.sessions.progress.next_step[slot] == 0
    assert len(rig.engine.sessions) == 1


def test_replies_of_a_session_come_in_the_order_of_its_requests(rig):
    """Whatever kinds of work a session is asked for, their ends come in order."""
    (slot,) = rig.open("a")
    works = [
        rig.step(slot, [1, 1]), rig.block([slot], [random_x(9)]), rig.control(slot, lambda _: 0),
        rig.step(slot, [1, 1]), rig.block([slot], [random_x(1)]), rig.step(slot, [1, 1]),
    ]  # fmt: skip
    rig.run()
    assert rig.done == works
    assert all(work.phase is Phase.DONE for work in works)


def test_single_steps_overtake_long_inputs_of_others(rig):
    """A step beside an input of many pieces is answered in the next iteration."""
    a, b = rig.open("a", "b")
    long = rig.block([a], [random_x(400)])
    iteration(rig)
    step = rig.step(b, [1, 1])
    iteration(rig)
    assert rig.done == [step]
    rig.run()
    assert rig.done == [step, long]


def test_forecasts_leave_the_session_as_it_was(rig):
    """A forecast is refused before the first step, and after it moves nothing."""
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


class Watched(Runner):
    """Tells the slots of each cell call, and how many steps of them it applies."""

    def __init__(self):
        super().__init__(fakes.recurrence(), 64)
        self.calls = []
        self.computed = []  # by each scan: rows times the time steps of the longest

    def step(self, slots, *columns):
        """Runs one step of each session."""
        self.calls.append((slots.tolist(), len(slots)))
        return super().step(slots, *columns)

    def scan(self, slots, x, times, lengths):
        """Runs several steps of each session."""
        self.calls.append((slots.tolist(), int(lengths.sum())))
        self.computed.append(x.shape[0] * x.shape[1])
        return super().scan(slots, x, times, lengths)


def test_no_session_is_twice_in_an_iteration():
    """However much of a session waits, and in whichever forms, the calls of an iteration have it once."""
    rig = Rig(runner=Watched(), max_batch_steps=8)
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
        turn(rig)
        taken = [slot for called, _ in rig.runner.calls for slot in called]
        assert len(taken) == len(set(taken))
        most = max(most, len(rig.runner.calls))
    assert most == 2
    assert all(work.error is None for work in rig.done)
    assert len(rig.done) == 4 * 9


def test_single_steps_get_in_between_long_inputs_in_any_number():
    """Each iteration applies max_batch_steps steps of theirs at most, and a step asked for meanwhile."""
    rig = Rig(runner=Watched(), max_batch_steps=16, max_piece_steps=4)
    *slots, own = rig.open(*(f"s{number}" for number in range(41)))
    for first in range(0, 40, 10):
        rig.block(slots[first : first + 10], [random_x(2 + 7 * at) for at in range(10)])
    rig.block(slots[39:], [random_x(90)])
    longest = 0
    while len([work for work in rig.done if isinstance(work, Block)]) < 5:
        rig.runner.calls.clear()
        step = rig.step(own, [1, 1])
        iteration(rig)
        assert step.phase is Phase.DONE
        (alone, *long) = rig.runner.calls
        assert alone == ([own], 1)
        assert sum(num_steps for _, num_steps in long) <= 16
        longest = max(longest, *(num_steps for _, num_steps in long))
    assert longest > 8
    assert all(work.error is None for work in rig.done)


def test_a_short_input_is_not_scanned_at_the_length_of_a_long_one():
    """A call computes max_batch_steps steps at most, counting those that pad its shorter rows."""
    rig = Rig(runner=Watched(), max_batch_steps=16, max_piece_steps=4)
    slots = rig.open(*(f"s{number}" for number in range(11)))
    rig.block(slots[:1], [random_x(9)])
    rig.block(slots[1:], [random_x(2)] * 10)
    while rig.loop.due:
        turn(rig)
    assert sorted(work.num_steps for work in rig.done) == [9, 20]
    assert max(rig.runner.computed) <= 16


def test_no_two_pieces_of_work_share_a_thing():
    """What work begins with stands in its class: whatever becomes of one, another begins as the first did."""
    begins = {kind: {**vars(Work), **vars(kind)} for kind in (Step, Block, Control)}
    rig = Rig(replies_kept=2)
    a, b, c = rig.open(*"abc")
    untouched = Step(c, 0, b"", time=0, index=INDEX_NEXT, arrived_ns=0, on_done=rig.done.append)
    for index in (0, 0, 5):  # applied, repeated, refused
        rig.step(a, [1, 1], index=index, may_be_held=True)
    rig.step(b, [HUGE, 0])
    rig.step(b, [HUGE, 0])
    rig.block([a, b, c], [random_x(3)] * 3, [7, INDEX_NEXT, INDEX_NEXT])
    rig.control(b, lambda _: 1 / 0)
    rig.engine.withdraw(rig.step(a, [1, 1]))
    rig.run()
    assert {kind: {**vars(Work), **vars(kind)} for kind in begins} == begins
    assert vars(untouched).keys() == {"slot", "generation", "x", "time", "index", "arrived_ns", "on_done"}
    found = (untouched.error, untouched.phase, untouched.y, untouched.is_repeat, untouched.may_be_held)
    assert found == (None, Phase.QUEUED, (), False, False)
    steps = [work for work in rig.done if isinstance(work, Step)]
    assert [(work.step_index, work.is_repeat, work.error is None, len(work.y)) for work in steps] == [
        (0, False, True, 2), (0, False, True, 2), (0, True, True, 2), (1, False, False, 0),
        (-1, False, False, 0),
    ]  # fmt: skip


# -- While an iteration is held ----------------------------------------------------------------------


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
    turn(rig)
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
    turn(rig)
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
    turn(rig)
    turn(rig)
    assert rig.done == [first, *others]
    turn(rig)
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


# -- Bounds ------------------------------------------------------------------------------------------


def test_a_full_queue_says_so_at_once():
    """A step beyond the bound is refused when it is submitted; what is queued is served."""
    rig = Rig(max_queue_steps=3)
    slots = rig.open(*"abcd")
    steps = [rig.step(slot, [1, 1]) for slot in slots[:3]]
    with pytest.raises(StreamcellError) as caught:
        rig.step(slots[3], [1, 1])
    assert caught.value.reason is Reason.OVERLOADED
    assert caught.value.retry_delay_seconds > 0
    rig.run()
    assert rig.done == steps
    rig.step(slots[3], [1, 1])
    rig.run()
    assert rig.engine.sessions.progress.next_step[slots].tolist() == [1, 1, 1, 1]


def test_no_room_for_another_session_until_one_ends():
    """Sessions beyond the bound are refused with it; a closed one makes room."""
    rig = Rig(max_resident_sessions=2)
    a, _ = rig.open("a", "b")
    with pytest.raises(StreamcellError) as caught:
        rig.open("c")
    assert (caught.value.reason, caught.value.metadata) == (
        Reason.SESSIONS_FULL,
        {"max_resident_sessions": "2"},
    )
    rig.control(a, rig.engine.residents.close)
    rig.run()
    assert rig.open("c") == [a]


def test_idle_sessions_expire_and_others_stay():
    """A session unused for the ttl ends and is remembered; steps, looks and work under way count as use."""
    rig = Rig()
    idle, stepped, looked, busy = rig.open("idle", "stepped", "looked", "busy")
    rig.clock.now_ns += 1000
    rig.step(stepped, [1, 1])
    rig.control(looked, lambda _: None)
    rig.run()
    rig.clock.now_ns += 500
    waiting = rig.step(busy, [1, 1])
    rig.engine.expire_idle(1000)
    assert [rig.engine.sessions.find(f"\0{name}") for name in ("idle", "stepped", "looked", "busy")] == [
        None, stepped, looked, busy,
    ]  # fmt: skip
    assert rig.engine.sessions.endings.of("\0idle") is Reason.SESSION_EXPIRED
    assert rig.sample("streamcell_sessions_expired_total") == 1
    assert rig.sample("streamcell_sessions_open") == 3
    rig.run()
    assert waiting.error is None
    assert rig.open("new") == [idle]


def test_a_step_for_an_expired_session_is_refused():
    """A step that was made for a session which then expired finds no session, not its slot's next owner."""
    rig = Rig()
    (slot,) = rig.open("a")
    rig.clock.now_ns += 10
    rig.engine.expire_idle(5)
    rig.open("b")
    late = rig.step(slot, [1, 1], generation=0)
    rig.run()
    assert late.error.reason is Reason.SESSION_NOT_FOUND
    assert rig.engine.sessions.progress.next_step[slot] == 0


# -- Iterations and what is measured -----------------------------------------------------------------


def test_one_iteration_serves_all_that_is_ready(rig):
    """However much is submitted, the engine asks for one turn; it asks for none when nothing is left."""
    slots = rig.open(*"abcdef")
    for slot in slots:
        rig.step(slot, [1, 1])
    assert len(rig.loop.due) == 1
    assert rig.run() == 1
    assert len(rig.done) == 6


def test_callers_may_submit_from_on_done(rig):
    """A caller told of a step may ask for the next one there and then."""
    (slot,) = rig.open("a")

    def again(work):
        rig.done.append(work)
        if work.step_index < 3:
            rig.step(slot, [1, 1]).on_done = again

    rig.step(slot, [1, 1]).on_done = again
    rig.run()
    assert [work.step_index for work in rig.done] == [0, 1, 2, 3]


def test_latency_is_queue_plus_compute():
    """A step's seconds are split when its batch begins; every step of a batch has the call's time."""

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


def test_what_is_counted(rig):
    """Steps applied, repeated and batched are counted once each; errors and primes are no replies."""
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


def test_what_is_left_of_a_long_input_moves_nobody_elses_session():
    """Its session was fenced in the middle of it, and another one has the slot now."""
    rig = Rig()
    rig.engine.sessions.durability.is_enabled = True
    (slot,) = rig.open("s")
    block = rig.block([slot], [np.ones((12, 2))])
    turn(rig)  # its first piece
    rig.engine.residents.fence(slot)
    assert rig.open("t") == [slot]
    rig.run()
    assert block.errors[0].reason == "SESSION_FENCED"
    assert rig.engine.sessions.progress.next_step[slot] == 0
    step = rig.step(slot, [1, 2])
    rig.run()
    assert bits(step.y) == Alone(rig.model).step([1, 2])

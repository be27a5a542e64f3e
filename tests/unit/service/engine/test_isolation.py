"""Work that fails, overflows or is withdrawn changes nothing for other work."""

import logging

import numpy as np

from service.engine.work import INDEX_NEXT, Block, Control, Phase, Step, Work
from service.errors import Reason
from tests.fakes import FAULT, FAULT_TEXT, HUGE, Alone, Rig, bits, random_x


class TestWithdrawing:
    """A caller may withdraw work at any moment without harm to others."""

    def test_a_cancelled_step_leaves_its_batchmates_served(self, rig):
        """A step withdrawn before its batch is neither applied nor answered; the others of the batch are."""
        slots = rig.open(*"abcd")
        steps = [rig.step(slot, [1, 1]) for slot in slots]
        assert rig.engine.withdraw(steps[1])
        rig.run()
        assert rig.done == [steps[0], steps[2], steps[3]]
        assert all(bits(step.y) == Alone(rig.model).step([1, 1]) for step in rig.done)
        assert rig.engine.sessions.progress.next_step[slots].tolist() == [1, 0, 1, 1]
        assert rig.engine.is_idle

    def test_a_step_cancelled_too_late_is_applied_and_answered_to_the_retry(self, rig):
        """A step whose batch has run cannot be withdrawn; the same step sent again gets the same reply."""
        (slot,) = rig.open("a")
        step = rig.step(slot, [1, 1], index=0)
        rig.run()
        assert not rig.engine.withdraw(step)
        again = rig.step(slot, [1, 1], index=0)
        rig.run()
        assert (again.is_repeat, again.y) == (True, step.y)

    def test_a_caller_may_withdraw_other_work_when_answered(self, rig):
        """In `on_done` a caller may withdraw other work of the batch; the rest is answered."""
        a, b, c = rig.open(*"abc")
        block = rig.block([b], [random_x(20)])
        other = rig.step(c, [1, 1])
        first = rig.step(a, [1, 1])
        withdrawn = []
        first.on_done = lambda work: withdrawn.append(
            (rig.engine.withdraw(block), rig.engine.withdraw(other))
        )
        rig.run()
        assert withdrawn == [(True, False)]
        assert rig.done == [other]
        assert rig.engine.sessions.progress.next_step[b] == rig.settings.max_piece_steps
        assert rig.engine.is_idle
        assert not rig.loop.due


class TestFaults:
    """An exception fails the work that it concerns, and no other work."""

    def test_a_fault_in_the_cell_call_fails_that_batch_alone(self, rig, caplog):
        """The answers have an error id, the log has the rest; no state moves, and later bits are exact."""
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

    def test_a_fault_midway_ends_a_long_input_there(self, rig):
        """Rows applied before a fault stay applied and are counted; the rows after it do not run."""
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

    def test_a_failing_caller_leaves_the_others_served(self, rig, caplog):
        """An exception in one caller's `on_done` is logged; the other callers are answered."""
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

    def test_a_fault_while_committing_ends_the_sessions(self, rig, monkeypatch, caplog):
        """Sessions end when their states have moved and their progress has not."""
        a, b, other = rig.open("a", "b", "other")
        steps = [rig.step(a, [1, 1]), rig.step(b, [1, 1])]
        behind = rig.step(a, [2, 2])

        def fail(*_):
            raise MemoryError("no room to record the progress")

        with monkeypatch.context() as patch:
            patch.setattr(rig.engine.sessions, "apply", fail)
            rig.loop.turn()
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


class TestOverflow:
    """A step without a finite prediction is refused and not applied."""

    def test_overflow_in_one_session_never_reaches_another(self, rig):
        """A step that overflows is refused and not applied; the other steps of the batch keep their bits."""
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

    def test_overflow_midway_ends_an_entry_and_leaves_the_others(self, rig):
        """The piece that overflows is not applied, the pieces before are; other entries run to their ends."""
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


def test_the_rest_of_a_fenced_long_input_moves_no_other_session():
    """A long input whose session is fenced midway does not run on the next session of the slot."""
    rig = Rig()
    rig.engine.sessions.durability.enable()
    (slot,) = rig.open("s")
    block = rig.block([slot], [np.ones((12, 2))])
    rig.loop.turn()  # its first piece
    rig.engine.residents.fence(slot)
    assert rig.open("t") == [slot]
    rig.run()
    assert block.errors[0].reason == "SESSION_FENCED"
    assert rig.engine.sessions.progress.next_step[slot] == 0
    step = rig.step(slot, [1, 2])
    rig.run()
    assert bits(step.y) == Alone(rig.model).step([1, 2])


def test_work_shares_no_values_with_other_work():
    """First values are attributes of the class; running work changes them for no other work."""
    first_values = {kind: {**vars(Work), **vars(kind)} for kind in (Step, Block, Control)}
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
    assert {kind: {**vars(Work), **vars(kind)} for kind in first_values} == first_values
    assert vars(untouched).keys() == {"slot", "generation", "x", "time", "index", "arrived_ns", "on_done"}
    found = (untouched.error, untouched.phase, untouched.y, untouched.is_repeat, untouched.may_be_held)
    assert found == (None, Phase.QUEUED, (), False, False)
    steps = [work for work in rig.done if isinstance(work, Step)]
    assert [(work.step_index, work.is_repeat, work.error is None, len(work.y)) for work in steps] == [
        (0, False, True, 2), (0, False, True, 2), (0, True, True, 2), (1, False, False, 0),
        (-1, False, False, 0),
    ]  # fmt: skip

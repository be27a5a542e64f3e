"""The order of work on one session: steps, blocks and controls end as they were submitted."""

from service.engine.work import Phase
from service.errors import Reason, StreamcellError
from tests.fakes import random_x


class TestControls:
    """Controls run in their place among a session's work."""

    def test_controls_keep_their_place_in_the_lane(self, rig):
        """A control sees the steps submitted before it, and none submitted after."""
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

    def test_a_control_has_the_result_or_the_error_of_its_action(self, rig):
        """A StreamcellError of the action is the control's error; any other exception is INTERNAL."""
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

    def test_work_behind_a_close_finds_no_session(self, rig):
        """Work queued behind a close is refused and does not reach the slot's next session."""
        (slot,) = rig.open("a")
        rig.step(slot, [1, 1])
        closing = rig.control(slot, rig.engine.residents.close)
        behind = [
            rig.step(slot, [2, 2]),
            rig.block([slot], [[[3, 3]]]),
            rig.control(slot, rig.engine.residents.close),
        ]
        rig.loop.turn()
        rig.loop.turn()
        assert closing.result == 1
        assert rig.open("b") == [slot]
        rig.run()
        found = [behind[0].error, behind[1].errors[0], behind[2].error]
        assert [error.reason for error in found] == [Reason.SESSION_NOT_FOUND] * 3
        assert rig.engine.sessions.progress.next_step[slot] == 0
        assert len(rig.engine.sessions) == 1


def test_replies_of_a_session_come_in_the_order_of_its_requests(rig):
    """Work of all kinds on one session is answered in the order it was submitted."""
    (slot,) = rig.open("a")
    works = [
        rig.step(slot, [1, 1]), rig.block([slot], [random_x(9)]), rig.control(slot, lambda _: 0),
        rig.step(slot, [1, 1]), rig.block([slot], [random_x(1)]), rig.step(slot, [1, 1]),
    ]  # fmt: skip
    rig.run()
    assert rig.done == works
    assert all(work.phase is Phase.DONE for work in works)

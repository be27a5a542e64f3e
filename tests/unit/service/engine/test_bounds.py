"""Bounds of queue and sessions, and the expiry of idle sessions."""

import pytest

from service.errors import Reason, StreamcellError
from tests.fakes import Rig


def test_a_full_queue_refuses_at_once():
    """A step beyond the bound is refused when it is submitted; queued steps are served."""
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


def test_a_session_beyond_the_bound_is_refused():
    """A session beyond the bound is refused, and the error has the bound; a closed session makes room."""
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


class TestExpiry:
    """Sessions that are idle for too long end."""

    def test_idle_sessions_expire_and_others_stay(self):
        """Steps, controls and work under way count as use; the end of an idle session is remembered."""
        rig = Rig()
        idle, stepped, controlled, busy = rig.open("idle", "stepped", "controlled", "busy")
        rig.clock.now_ns += 1000
        rig.step(stepped, [1, 1])
        rig.control(controlled, lambda _: None)
        rig.run()
        rig.clock.now_ns += 500
        waiting = rig.step(busy, [1, 1])
        rig.engine.expire_idle(1000)
        found = [rig.engine.sessions.find(f"\0{name}") for name in ("idle", "stepped", "controlled", "busy")]
        assert found == [None, stepped, controlled, busy]
        assert rig.engine.sessions.endings.of("\0idle") is Reason.SESSION_EXPIRED
        assert rig.sample("streamcell_sessions_expired_total") == 1
        assert rig.sample("streamcell_sessions_open") == 3
        rig.run()
        assert waiting.error is None
        assert rig.open("new") == [idle]

    def test_a_step_for_an_expired_session_is_refused(self):
        """A step made before its session expired finds no session, not the next one in the slot."""
        rig = Rig()
        (slot,) = rig.open("a")
        rig.clock.now_ns += 10
        rig.engine.expire_idle(5)
        rig.open("b")
        late = rig.step(slot, [1, 1], generation=0)
        rig.run()
        assert late.error.reason is Reason.SESSION_NOT_FOUND
        assert rig.engine.sessions.progress.next_step[slot] == 0

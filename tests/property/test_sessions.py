"""The session table beside a plain dict of plain lists."""

import dataclasses

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.errors import Reason
from tests.fakes import applied, session_table

CAPACITY, KEPT = 4, 3
KEYS = st.sampled_from("abcdef")
VALUES = st.integers(-3, 3)


@dataclasses.dataclass
class PlainSession:
    """One session as a plain value: its slot, its steps (input, given time) and its last use."""

    slot: int
    used: int
    steps: list = dataclasses.field(default_factory=list)
    last_time: int = 0


class SessionsMachine(RuleBasedStateMachine):
    """Opens, moves, restarts, closes and expires sessions at random; predictions are the inputs, doubled."""

    def __init__(self):
        super().__init__()
        self.sessions = session_table(CAPACITY, 1, 1, KEPT)
        self.plain = {}
        self.expired = set()
        self.closes = [0] * CAPACITY
        self.now = 100

    @precondition(lambda self: len(self.plain) < CAPACITY)
    @rule(key=KEYS)
    def open(self, key):
        """Opens a session in a free slot."""
        if key in self.plain:
            return
        self.now += 1
        slot = min(set(range(CAPACITY)) - {one.slot for one in self.plain.values()})
        self.sessions.open(key, slot, self.now)
        self.plain[key] = PlainSession(slot, self.now)
        self.expired.discard(key)

    @precondition(lambda self: self.plain)
    @rule(data=st.data())
    def apply(self, data):
        """Applies some steps to each of some sessions, in one call."""
        keys = data.draw(st.lists(st.sampled_from(sorted(self.plain)), min_size=1, unique=True))
        lengths = [data.draw(st.integers(1, 6)) for _ in keys]
        shape = (len(keys), max(lengths))
        draw = st.lists(VALUES, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
        x = np.array(data.draw(draw), np.float32).reshape(*shape, 1)
        times = np.array(data.draw(draw)).reshape(shape)
        self.now += 1
        slots = np.array([self.plain[key].slot for key in keys])
        self.sessions.apply(applied(slots, lengths, x, given_times=times, times=times + 7, y=x * 2), self.now)
        for at, (key, length) in enumerate(zip(keys, lengths, strict=True)):
            one = self.plain[key]
            one.steps += [(float(x[at, t, 0]), int(times[at, t])) for t in range(length)]
            one.last_time = int(times[at, length - 1]) + 7
            one.used = self.now

    @precondition(lambda self: self.plain)
    @rule(data=st.data())
    def restart(self, data):
        """Restarts a session."""
        one = self.plain[data.draw(st.sampled_from(sorted(self.plain)))]
        self.sessions.progress.restart(one.slot)
        one.steps, one.last_time = [], 0

    @precondition(lambda self: self.plain)
    @rule(data=st.data(), by_expiry=st.booleans())
    def end(self, data, by_expiry):
        """Closes or expires a session."""
        key = data.draw(st.sampled_from(sorted(self.plain)))
        slot = self.plain.pop(key).slot
        if by_expiry:
            self.sessions.end(slot, Reason.SESSION_EXPIRED)
            self.expired.add(key)
        else:
            self.sessions.close(slot)
        self.closes[slot] += 1

    @rule(ago=st.integers(0, 20))
    def find_idle_sessions(self, ago):
        """Exactly the sessions not used since an instant are idle."""
        idle = {one.slot for one in self.plain.values() if one.used < self.now - ago}
        assert set(self.sessions.idle_since(self.now - ago)) == idle

    @invariant()
    def sessions_agree(self):
        """Keys, counters, times, generations and endings agree."""
        assert len(self.sessions) == len(self.plain)
        assert self.sessions.generation.tolist() == self.closes
        for key in "abcdef":
            one = self.plain.get(key)
            assert self.sessions.find(key) == (one and one.slot)
            assert (self.sessions.endings.of(key) is not None) == (key in self.expired)
        for key, one in self.plain.items():
            assert self.sessions.key(one.slot) == key
            assert self.sessions.progress.next_step[one.slot] == len(one.steps)
            assert self.sessions.progress.last_time[one.slot] == one.last_time
            assert self.sessions.last_used[one.slot] == one.used

    @invariant()
    def the_last_replies_are_remembered(self):
        """The last few replies of every session are remembered, with fingerprints, and no others."""
        for one in self.plain.values():
            for index, (x, time) in enumerate(one.steps):
                kept = self.sessions.progress.remembered(one.slot, index)
                assert (kept is not None) == (index >= len(one.steps) - KEPT)
                if kept is not None:
                    row = np.array([[x]], np.float32)
                    assert kept[0] == int(self.sessions.progress.fingerprints(row, np.array([time]))[0])
                    assert kept[1].tolist() == [2 * x]


SessionsMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestSessions = SessionsMachine.TestCase

"""Frames of one step each whose entries differ in fate: each fares as it would alone, in rows of its own."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.work import INDEX_NEXT
from service.errors import Reason
from service.runtime.runner import Runner
from tests import fakes
from tests.fakes import Alone, Rig, bits

NUM_SESSIONS = 7
MODEL = fakes.recurrence()
RUNNER = Runner(MODEL, 64)
FATES = ["next", "next", "named", "again", "conflict", "gap", "overflow"]
ENTRIES = st.lists(
    st.tuples(st.integers(0, NUM_SESSIONS - 1), st.sampled_from(FATES)),
    min_size=1,
    max_size=NUM_SESSIONS,
    unique_by=lambda entry: entry[0],
)


class Session:
    """A session as it goes alone: its steps applied, and the last input and reply."""

    def __init__(self):
        self.alone = Alone(MODEL)
        self.last = None

    def ask(self, fate, x):
        """Returns index and input of a request of this fate, and what becomes of it: bytes or a Reason."""
        count = self.alone.num_steps
        if fate in ("again", "conflict") and self.last is not None:
            earlier, reply = self.last
            if fate == "again":
                return count - 1, earlier, reply
            return count - 1, [earlier[0] + 1, earlier[1]], Reason.STEP_CONFLICT
        if fate == "gap":
            return count + 3, x, Reason.STEP_GAP
        if fate == "overflow":
            return INDEX_NEXT, [np.inf, 1], Reason.INVALID_ARGUMENT
        self.last = x, self.alone.step(x)
        return count if fate == "named" else INDEX_NEXT, x, self.last[1]


@given(
    rounds=st.lists(st.tuples(st.lists(ENTRIES, max_size=3), ENTRIES | st.just([])), max_size=6),
    max_batch=st.sampled_from([1, 2, 5, 32]),
)
@settings(max_examples=120, deadline=None)
def test_each_entry_fares_as_it_would_alone(rounds, max_batch):
    """Applied, repeated, refused, not finite: among any others, behind steps, in groups of any size."""
    rig = Rig(MODEL, RUNNER, max_batch_steps=max_batch)
    slots = rig.open(*(f"s{number}" for number in range(NUM_SESSIONS)))
    sessions = [Session() for _ in slots]
    for number, (frames, steps) in enumerate(rounds):
        asked = []
        for entries in [*([one] for one in steps), *frames]:
            told = [sessions[at].ask(fate, [float(number), 1.0 + at]) for at, fate in entries]
            at = [slots[one] for one, _ in entries]
            if len(asked) < len(steps):
                asked.append((rig.step(at[0], told[0][1], told[0][0]), told))
            else:
                asked.append(
                    (rig.block(at, [[x] for _, x, _ in told], [index for index, _, _ in told]), told)
                )
        rig.run()
        for work, told in asked[: len(steps)]:
            check(work.error, work.y, told[0][2])
        for work, told in asked[len(steps) :]:
            for entry, (_, _, wanted) in enumerate(told):
                check(work.errors.get(entry), work.y[entry], wanted)
    assert rig.engine.sessions.progress.next_step[slots].tolist() == [one.alone.num_steps for one in sessions]


def check(error, y, wanted):
    """Holds what became of an entry against what should have."""
    if isinstance(wanted, Reason):
        assert error is not None
        assert error.reason is wanted
        assert np.isnan(y).all()  # of nothing, for a step
    else:
        assert error is None
        assert bits(y) == wanted

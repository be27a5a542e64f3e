"""Frames whose entries succeed, repeat or fail: each entry has the outcome that it would have alone."""

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
# What an entry asks: the next step (twice as often), without or with its index, and what else may happen.
KINDS = ["next", "next", "indexed", "repeat", "conflict", "gap", "overflow"]
ENTRIES = st.lists(
    st.tuples(st.integers(0, NUM_SESSIONS - 1), st.sampled_from(KINDS)),
    min_size=1,
    max_size=NUM_SESSIONS,
    unique_by=lambda entry: entry[0],
)


class LoneSession:
    """A session that runs alone: its model, and its last input and reply."""

    def __init__(self):
        self.alone = Alone(MODEL)
        self.last = None

    def request(self, kind, x):
        """Returns the index and input of a request, and its outcome: the prediction's bytes or a Reason."""
        count = self.alone.num_steps
        if kind in ("repeat", "conflict") and self.last is not None:
            earlier, reply = self.last
            if kind == "repeat":
                return count - 1, earlier, reply
            return count - 1, [earlier[0] + 1, earlier[1]], Reason.STEP_CONFLICT
        if kind == "gap":
            return count + 3, x, Reason.STEP_GAP
        if kind == "overflow":
            return INDEX_NEXT, [np.inf, 1], Reason.INVALID_ARGUMENT
        self.last = x, self.alone.step(x)
        return count if kind == "indexed" else INDEX_NEXT, x, self.last[1]


@given(
    rounds=st.lists(st.tuples(st.lists(ENTRIES, max_size=3), ENTRIES | st.just([])), max_size=6),
    max_batch=st.sampled_from([1, 2, 5, 32]),
)
@settings(max_examples=120, deadline=None)
def test_each_entry_has_the_outcome_that_it_would_have_alone(rounds, max_batch):
    """Applied, repeated, refused or not finite; among any other entries, behind steps, in any batch size."""
    rig = Rig(MODEL, RUNNER, max_batch_steps=max_batch)
    slots = rig.open(*(f"s{number}" for number in range(NUM_SESSIONS)))
    sessions = [LoneSession() for _ in slots]
    for number, (frames, steps) in enumerate(rounds):
        submitted = []
        for entries in [*([one] for one in steps), *frames]:
            requests = [sessions[at].request(kind, [float(number), 1.0 + at]) for at, kind in entries]
            chosen = [slots[at] for at, _ in entries]
            indexes, inputs, wanted = zip(*requests, strict=True)
            if len(submitted) < len(steps):
                work = rig.step(chosen[0], inputs[0], indexes[0])
            else:
                work = rig.block(chosen, [[x] for x in inputs], list(indexes))
            submitted.append((work, wanted))
        rig.run()
        for work, wanted in submitted[: len(steps)]:
            check(work.error, work.y, wanted[0])
        for work, wanted in submitted[len(steps) :]:
            for entry, outcome in enumerate(wanted):
                check(work.errors.get(entry), work.y[entry], outcome)
    assert rig.engine.sessions.progress.next_step[slots].tolist() == [one.alone.num_steps for one in sessions]


def check(error, y, wanted):
    """Checks the outcome of an entry or step: `wanted` is the prediction's bytes or a Reason."""
    if isinstance(wanted, Reason):
        assert error is not None
        assert error.reason is wanted
        assert np.isnan(y).all()  # true of a failed step, which has no prediction
    else:
        assert error is None
        assert bits(y) == wanted

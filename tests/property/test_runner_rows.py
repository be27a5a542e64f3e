"""Rows without a finite prediction are restored, and all other rows move, in any slots and order."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.runtime.runner import Runner
from tests import fakes
from tests.fakes import Alone, bits

CAPACITY = 7
MODEL = fakes.recurrence()
RUNNER = Runner(MODEL, CAPACITY)
CALLS = st.lists(
    st.tuples(
        st.lists(st.integers(0, CAPACITY - 1), min_size=1, max_size=CAPACITY, unique=True),  # slots
        st.lists(st.booleans(), min_size=CAPACITY, max_size=CAPACITY),  # which of them overflow
        st.lists(st.integers(1, 4), min_size=CAPACITY, max_size=CAPACITY),  # lengths
        st.booleans(),  # step or scan
    ),
    max_size=6,
)


@given(calls=CALLS, seed=st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_a_row_is_applied_as_a_whole_or_stays_as_it_was(calls, seed):
    """Each session goes on as if alone, whichever of them overflow, in steps and scans."""
    draw = np.random.default_rng(seed)
    alone = []
    for slot in range(CAPACITY):
        RUNNER.clear(slot)
        alone.append(Alone(MODEL))
    for slots, overflows, lengths, is_step in calls:
        lengths = np.array([1 if is_step else length for length in lengths[: len(slots)]])
        spoilt = np.array(overflows[: len(slots)])
        x = draw.standard_normal((len(slots), int(lengths.max()), 2)).astype(np.float32)
        x[spoilt, lengths[spoilt] - 1] = np.inf  # the last step alone, so that those before it are undone
        times = np.zeros(x.shape[:2], np.int64)
        if is_step:
            y, applied = RUNNER.step(np.array(slots), x[:, 0], times[:, 0])
            y = y[:, None]
        else:
            y, applied = RUNNER.scan(np.array(slots), x, times, lengths)
        assert applied.tolist() == (~spoilt).tolist()
        for row, slot in enumerate(slots):
            if not spoilt[row]:
                assert bits(y[row, : lengths[row]]) == alone[slot].fold(x[row, : lengths[row]])
    rest = draw.standard_normal((CAPACITY, 2)).astype(np.float32)
    y, applied = RUNNER.step(np.arange(CAPACITY), rest, np.zeros(CAPACITY, np.int64))
    assert applied.all()
    assert [bits(row) for row in y] == [one.step(x) for one, x in zip(alone, rest, strict=True)]

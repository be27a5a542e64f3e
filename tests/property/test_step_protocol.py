"""Exactly once: whatever clients send, in steps and blocks, each index of a session is applied once.

The Recurrence's predictions distinguish any two orders of steps; the reference is a list of the inputs
applied.
"""

import dataclasses
import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.work import INDEX_NEXT, Step
from service.errors import Reason
from tests import fakes
from tests.fakes import Alone, Rig, bits

KEPT = 4
MODEL = fakes.recurrence()


class Reference:
    """One session: its applied inputs and predictions, and the protocol's reply to a request."""

    def __init__(self):
        self.alone = Alone(MODEL)
        self.applied = []  # (input, prediction's bytes)

    def at(self, index, x, is_wanted=True):
        """Returns a row's outcome: a Reason, the reply's bytes, or None for a row skipped without a reply."""
        if index > len(self.applied):
            return Reason.STEP_GAP
        if index == len(self.applied):
            self.applied.append((x, self.alone.step([x, 1])))
            return self.applied[-1][1]
        if index < len(self.applied) - KEPT:
            return Reason.STEP_FORGOTTEN if is_wanted else None
        earlier, y = self.applied[index]
        return y if earlier == x else Reason.STEP_CONFLICT

    def step(self, index, x):
        """Returns the outcome of a step."""
        return self.at(len(self.applied) if index == INDEX_NEXT else index, x)

    def block(self, index, xs, wants_replies):
        """Returns the outcome of a block's entry: a Reason, or each row's bytes."""
        first = len(self.applied) if index == INDEX_NEXT else index
        if first > len(self.applied):
            return Reason.STEP_GAP
        known = min(len(xs), len(self.applied) - first)
        found = [self.at(first + row, xs[row], wants_replies or row == len(xs) - 1) for row in range(known)]
        refused = [reply for reply in found if isinstance(reply, Reason)]
        if refused:
            return refused[0]
        return found + [self.at(first + row, xs[row]) for row in range(known, len(xs))]


@dataclasses.dataclass
class Request:
    """A step (one value) or a block (several) of a session; `then_run`: whether the engine then runs."""

    session: int
    back: int | None  # the index asked for is this far behind the session's next when asked; None: no index
    xs: list[int]
    is_step: bool
    wants_replies: bool
    then_run: bool


REQUESTS = st.lists(
    st.builds(
        Request,
        session=st.integers(0, 2),
        back=st.one_of(st.none(), st.integers(-2, 7), st.just(0)),
        xs=st.lists(st.integers(0, 1), min_size=1, max_size=7),
        is_step=st.booleans(),
        wants_replies=st.booleans(),
        then_run=st.booleans(),
    ),
    max_size=40,
)


def check(request, work, wanted):
    """Compares the outcome of a request with the reference."""
    error = work.error if isinstance(work, Step) else work.errors.get(0)
    if isinstance(wanted, Reason):
        assert error is not None, (request, wanted)
        assert error.reason is wanted
    elif isinstance(work, Step):
        assert error is None
        assert bits(work.y) == wanted
    else:
        assert error is None, error and error.message
        for row, reply in enumerate(wanted):
            assert reply is None or bits(work.y[row]) == reply


@given(REQUESTS)
@settings(max_examples=200, deadline=None)
def test_every_index_is_applied_once(requests):
    """Retries, gaps, conflicts and duplicates, one by one or queued together, end as in the reference."""
    rig = Rig(MODEL, replies_kept=KEPT, max_piece_steps=2, max_batch_steps=4)
    slots = rig.open("a", "b", "c")
    references = [Reference() for _ in slots]
    expected = []
    for request in requests:
        reference, slot = references[request.session], slots[request.session]
        index = INDEX_NEXT if request.back is None else max(0, len(reference.applied) - request.back)
        if request.is_step:
            work = rig.step(slot, [request.xs[0], 1], index)
            expected.append((request, work, reference.step(index, request.xs[0])))
        else:
            rows = [[x, 1] for x in request.xs]
            work = rig.block([slot], [rows], [index], wants_replies=request.wants_replies)
            expected.append((request, work, reference.block(index, request.xs, request.wants_replies)))
        if request.then_run:
            rig.run()
    rig.run()
    assert len(rig.done) == len(requests)
    for request, work, wanted in expected:
        check(request, work, wanted)
    for slot, reference in zip(slots, references, strict=True):
        assert rig.engine.sessions.progress.next_step[slot] == len(reference.applied)


@given(
    num_steps=st.integers(1, 30),
    losses=st.lists(st.booleans(), max_size=60),
    cut=st.lists(st.integers(1, 4), min_size=1, max_size=30),
)
@settings(max_examples=60, deadline=None)
def test_a_client_that_retries_until_it_is_answered_gets_every_prediction(num_steps, losses, cut):
    """A client that loses replies and sends its tail again gets the bits of one that lost none."""
    rig = Rig(MODEL, replies_kept=KEPT)
    (slot,) = rig.open("a")
    x = np.random.default_rng(num_steps).standard_normal((num_steps, 2)).astype(np.float32)
    got, lost, sizes = [], iter(losses), itertools.cycle(cut)
    while len(got) < num_steps:
        size = min(next(sizes), num_steps - len(got))
        tail = x[len(got) : len(got) + size]
        work = rig.block([slot], [tail], [len(got)])
        rig.run()
        assert work.errors == {}
        if not next(lost, False):
            got += [bits(row) for row in work.y]
    assert b"".join(got) == Alone(MODEL).fold(x)
    assert rig.engine.sessions.progress.next_step[slot] == num_steps


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_withdrawn_steps_are_applied_or_not_but_never_twice(data):
    """A step that is withdrawn at any moment and sent again is applied once."""
    rig = Rig(MODEL, replies_kept=KEPT)
    (slot,) = rig.open("a")
    alone = Alone(MODEL)
    for index in range(data.draw(st.integers(1, 8))):
        wanted = alone.step([index, 1])
        for _ in range(data.draw(st.integers(0, 3))):
            gone = rig.step(slot, [index, 1], index)
            if data.draw(st.booleans()):
                rig.run()
            rig.engine.withdraw(gone)
        final = rig.step(slot, [index, 1], index)
        rig.run()
        assert bits(final.y) == wanted
    assert rig.engine.sessions.progress.next_step[slot] == alone.num_steps

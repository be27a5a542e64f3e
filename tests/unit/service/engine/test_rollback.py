"""Work that fails after it moved its session rolls the session back."""

import numpy as np
import pytest

from tests.fakes import FAULT, HUGE, Alone, Rig, bits, recurrence

X = np.random.default_rng(2).standard_normal((20, 2)).astype(np.float32)
OVERFLOWING = np.full((9, 2), HUGE, np.float32)


@pytest.fixture
def rig():
    """An engine whose one session has taken six steps."""
    rig = Rig()
    rig.open("s")
    for x in X[:6]:
        rig.step(0, x)
        rig.run()
    return rig


def check_unchanged(rig):
    """Checks that the session is as it was after its six steps, replies included."""
    assert rig.engine.sessions.progress.next_step[0] == 6
    for index in (4, 5):
        repeat = rig.step(0, X[index], index)
        rig.run()
        assert repeat.is_repeat
    after = rig.step(0, X[6])
    rig.run()
    alone = Alone(recurrence())
    alone.fold(X[:6])
    assert bits(after.y) == alone.step(X[6])


def submit(rig, x, restarts):
    """Submits a whole block, or a step if x has one row; runs and returns it."""
    if len(x) == 1:
        work = rig.step(0, x[0])
    else:
        work = rig.block([0], [x])
        work.is_whole = True
    work.restarts = restarts
    rig.run()
    return work


@pytest.mark.parametrize("restarts", [True, False])
def test_a_block_that_fails_late_is_rolled_back(rig, restarts):
    """The pieces that were applied, and the replies that were overwritten, are rolled back."""
    block = submit(rig, np.concatenate([X[:5], OVERFLOWING]), restarts)
    assert "no finite prediction" in block.errors[0].message
    assert block.num_applied[0] == 0
    check_unchanged(rig)


def test_a_restart_that_fails_is_rolled_back(rig):
    """A failed step that was to restart the session leaves it after its sixth step."""
    assert submit(rig, np.float32([[FAULT, 0]]), restarts=True).error is not None
    check_unchanged(rig)


@pytest.mark.parametrize("num_steps", [1, 7])
def test_a_restart_begins_anew(rig, num_steps):
    """A successful restart begins with a clean state at step 0."""
    work = submit(rig, X[:num_steps], restarts=True)
    assert bits(work.y) == Alone(recurrence()).fold(X[:num_steps])
    assert rig.engine.sessions.progress.next_step[0] == num_steps


@pytest.mark.parametrize("num_steps", [1, 7])
def test_a_session_that_ended_is_not_restarted(rig, num_steps):
    """The next session in the slot keeps its progress and state."""
    generation = int(rig.engine.sessions.generation[0])
    rig.engine.residents.close(0)
    (slot,) = rig.open("other")
    assert slot == 0
    other = rig.step(0, X[0])
    rig.run()
    if num_steps == 1:
        work = rig.step(0, X[1], generation=generation)
    else:
        work = rig.block([0], [X[:num_steps]])
        work.generations[0] = generation
        work.is_whole = True
    work.restarts = True
    rig.run()
    assert work.error is not None or work.errors
    assert rig.engine.sessions.progress.next_step[0] == 1
    assert bits(other.y) == Alone(recurrence()).step(X[0])

"""Bit for bit: any mixture of steps, frames and primes over many sessions predicts as each session alone.

On the Recurrence and on a shipped model, through the engine, with small bounds so that every cut occurs.
"""

import functools
import pathlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.runtime import artifact
from tests import fakes
from tests.fakes import CPU, Alone, Rig, bits

ROOT = pathlib.Path(__file__).parents[2]
SHIPPED = ROOT / "model" / "artifacts" / "mackey-glass" / "1" / artifact.FILE_NAME
NUM_SESSIONS, NUM_STEPS = 12, 40


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Runs cell calls on one thread, as the server does by default."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def model_of(name):
    """Returns a model by name."""
    if name == "fake":
        return fakes.recurrence()
    return artifact.load("mackey-glass", "1", SHIPPED, CPU)


@functools.cache
def series(name):
    """Returns each session's inputs [sessions, steps, F], and the artifact's predictions for each alone."""
    model = model_of(name)
    width = len(model.manifest.inputs)
    x = np.random.default_rng(1).uniform(0.2, 1.4, (NUM_SESSIONS, NUM_STEPS, width)).astype(np.float32)
    return x, [Alone(model).fold(rows) for rows in x]


KINDS = st.sampled_from(["step", "frame", "prime"])
MIXTURES = st.lists(
    st.tuples(KINDS, st.lists(st.integers(0, NUM_SESSIONS - 1), min_size=1, max_size=8, unique=True),
              st.integers(1, 9), st.integers(0, 3)),
    min_size=1, max_size=40,
)  # fmt: skip


def submit(rig, slots, x, at, mixture):
    """Submits one request of a mixture; returns (session, first step, last step, replies) of each entry."""
    kind, sessions, length, _ = mixture
    width = x.shape[2]
    spans = [(session, at[session], min(NUM_STEPS, at[session] + length)) for session in sessions]
    spans = [(session, first, last) for session, first, last in spans if first < last]
    if kind == "step":
        spans = [(session, first, first + 1) for session, first, _ in spans]
    for session, _, last in spans:
        at[session] = last
    if kind == "frame" and spans:
        rows = [x[session, first:last] for session, first, last in spans]
        block = rig.block([slots[session] for session, _, _ in spans], rows)
        ends = np.cumsum([len(one) for one in rows]).tolist()
        parts = [slice(end - len(one), end) for one, end in zip(rows, ends, strict=True)]
        return [
            (*span, lambda block=block, part=part: bits(block.y[part]))
            for span, part in zip(spans, parts, strict=True)
        ]
    found = []
    for session, first, last in spans:
        if kind == "step":
            work = rig.step(slots[session], x[session, first].reshape(width))
            found.append((session, first, last, lambda work=work: bits(work.y)))
        else:
            block = rig.block([slots[session]], [x[session, first:last]], wants_replies=False)
            found.append((session, last - 1, last, lambda block=block: bits(block.y[-1])))
    return found


def check_mixture(name, mixtures, max_batch, max_piece):
    """Runs a mixture and compares every reply with the session's own series."""
    model = model_of(name)
    x, wanted = series(name)
    rig = Rig(model, max_batch_steps=max_batch, max_piece_steps=max_piece, max_resident_sessions=NUM_SESSIONS)
    slots = rig.open(*(f"s{number}" for number in range(NUM_SESSIONS)))
    at = [0] * NUM_SESSIONS
    replies = []
    for mixture in mixtures:
        replies += submit(rig, slots, x, at, mixture)
        for _ in range(mixture[3]):  # so many iterations run before the next request
            if rig.loop.due:
                rig.loop.turn()
    rig.run()
    size = 4 * len(model.manifest.outputs)
    for session, first, last, found in replies:
        assert found() == wanted[session][first * size : last * size], (session, first, last)
    assert rig.engine.sessions.progress.next_step[slots].tolist() == at


@given(mixtures=MIXTURES, max_batch=st.sampled_from([1, 3, 5, 64]), max_piece=st.sampled_from([1, 2, 5, 32]))
@settings(max_examples=60, deadline=None)
def test_any_mixture_is_each_session_alone(mixtures, max_batch, max_piece):
    """The Recurrence's predictions show any confusion of sessions, steps or order."""
    check_mixture("fake", mixtures, max_batch, max_piece)


@pytest.mark.skipif(not SHIPPED.exists(), reason=f"{SHIPPED.relative_to(ROOT)} is not there")
@given(mixtures=MIXTURES, max_batch=st.sampled_from([1, 3, 5, 64]), max_piece=st.sampled_from([1, 2, 5, 32]))
@settings(max_examples=40, deadline=None)
def test_any_mixture_is_each_session_alone_on_the_shipped_model(mixtures, max_batch, max_piece):
    """The bits of the real LSTM depend on the padding of its matrix products."""
    check_mixture("shipped", mixtures, max_batch, max_piece)


@pytest.mark.skipif(not SHIPPED.exists(), reason=f"{SHIPPED.relative_to(ROOT)} is not there")
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 16, 33, 255, 256, 1024])
def test_a_batch_of_any_size_has_the_bits_of_one(size):
    """The shipped model's first steps in one batch of `size` sessions equal those of a session alone."""
    model = model_of("shipped")
    rig = Rig(model, max_batch_steps=1024, max_resident_sessions=1024)
    slots = rig.open(*(f"s{number}" for number in range(size)))
    x, wanted = series("shipped")
    steps = [rig.step(slot, x[at % NUM_SESSIONS, 0]) for at, slot in enumerate(slots)]
    assert rig.run() == 1
    width = 4 * len(model.manifest.outputs)
    for at, step in enumerate(steps):
        assert bits(step.y) == wanted[at % NUM_SESSIONS][:width]


@pytest.mark.parametrize("name", ["fake", "shipped"])
@given(poison=st.integers(0, NUM_SESSIONS - 1), at=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_a_failing_session_changes_no_other_bit(name, poison, at):
    """If one session of a batch overflows or is withdrawn, the others predict as without it."""
    if name == "shipped" and not SHIPPED.exists():
        pytest.skip(f"{SHIPPED.relative_to(ROOT)} is not there")
    model = model_of(name)
    x, wanted = series(name)
    rig = Rig(model, max_resident_sessions=NUM_SESSIONS)
    slots = rig.open(*(f"s{number}" for number in range(NUM_SESSIONS)))
    size = 4 * len(model.manifest.outputs)
    for t in range(6):
        rows = [x[session, t] for session in range(NUM_SESSIONS)]
        if t == at:
            rows[poison] = np.full(x.shape[2], 3e38, np.float32)
        steps = [rig.step(slot, row) for slot, row in zip(slots, rows, strict=True)]
        if t > at:
            rig.engine.withdraw(steps[poison])
        rig.run()
        for session in set(range(NUM_SESSIONS)) - {poison}:
            assert bits(steps[session].y) == wanted[session][t * size : (t + 1) * size]

"""A prediction's bits are those of its session alone, whatever the batch, slot, other sessions and threads.

With the bounds of production, on the benchmark's network and on a shipped one that uses time: up to 1,024
sessions in used slots; single steps, frames and long inputs in one iteration.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.artifact import save_artifact
from model.export import reference
from service.config import Config
from service.engine.progress import TIME_ABSENT
from service.runtime import artifact
from service.runtime.runner import Runner
from tests.fakes import CPU, Alone, Rig, bits

SHIPPED = sorted((Path(__file__).parents[2] / "model" / "artifacts").glob(f"nyc-taxi/*/{artifact.FILE_NAME}"))
MOST = 1024  # sessions at once, as many as a cell call of production has
NUM_LONG, LONG, SHORT = 24, 220, 6  # series of many steps, which may be long inputs; all others are short
START_NS = 1_600_000_000 * 10**9


class Series:
    """The inputs of each session, and the artifact's predictions for each alone, on one thread."""

    def __init__(self, model: artifact.Artifact) -> None:
        self.model = model
        about = model.manifest
        draw = np.random.default_rng(0).standard_normal((MOST, LONG, len(about.inputs)))
        mean, scale = model.script.mean.numpy(), model.script.scale.numpy()
        self.x = (mean + 1.5 * scale * draw).astype(np.float32)  # (S, T, F)
        interval = about.step_interval_ns if about.uses_time else 0
        starts = START_NS * (interval > 0) + np.arange(MOST)[:, None] * interval
        self.times = starts + np.arange(LONG) * interval  # (S, T)
        self.lengths = [LONG] * NUM_LONG + [SHORT] * (MOST - NUM_LONG)
        self.alone = [self.fold(number, length) for number, length in enumerate(self.lengths)]
        self.runner = Runner(model, MOST)  # used by all runs, so that no slot is fresh

    def fold(self, number: int, length: int) -> list[bytes]:
        """Returns the first predictions of one series."""
        alone = Alone(self.model)
        return [alone.step(self.x[number, t], int(self.times[number, t])) for t in range(length)]


@pytest.fixture(
    scope="module", params=["reference", *SHIPPED], ids=lambda p: p if isinstance(p, str) else p.parts[-3]
)
def series(request, tmp_path_factory) -> Series:
    """Each network under test: the default of `model export --reference`, and the shipped one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if isinstance(request.param, Path):
            path = request.param
            return Series(artifact.load(path.parts[-3], path.parts[-2], path, CPU))
        path = tmp_path_factory.mktemp("reference") / artifact.FILE_NAME
        save_artifact(*reference(num_inputs=8, hidden_size=128, num_layers=1, seed=0), path)
        return Series(artifact.load("reference", "1", path, CPU))
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def restored_threads():
    """Restores the number of threads after a test."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@dataclasses.dataclass
class Session:
    """One session of a run: the number of its series, its slot, and how many of its steps were submitted."""

    number: int
    slot: int
    at: int = 0
    given: list[int] = dataclasses.field(default_factory=list)
    """The time that each step's request gave."""


class Run:
    """Sessions of an engine with production's bounds, in used slots, and what they were asked."""

    def __init__(self, series: Series, numbers: list[int], draw: np.random.Generator) -> None:
        self.series, self.draw = series, draw
        production = Config()
        assert production.max_batch_steps == MOST
        self.rig = Rig(
            series.model,
            series.runner,
            max_resident_sessions=MOST,
            max_batch_steps=production.max_batch_steps,
            max_piece_steps=production.max_piece_steps,
            max_queue_steps=production.max_queue_steps,
            replies_kept=production.replies_kept,
        )
        self.uses_time = series.model.manifest.uses_time
        slots = self.used_slots(len(numbers))
        self.sessions = [Session(number, slot) for number, slot in zip(numbers, slots, strict=True)]
        self.asked = []  # (session, first step, its replies' bytes once they are there)

    def used_slots(self, count: int) -> list[int]:
        """Opens and steps sessions, ends some of them in any order, and opens new sessions in their slots."""
        others = self.rig.open(*(f"other{at}" for at in range(self.draw.integers(count, MOST + 1))))
        for slot in others:
            self.rig.step(slot, self.series.x[slot, 0], time=START_NS)
        for slot in self.draw.permutation(others)[:count].tolist():
            self.rig.control(slot, self.rig.engine.residents.close)
        self.rig.run()
        assert all(work.error is None for work in self.rig.done)
        return self.rig.open(*(f"s{at}" for at in range(count)))

    def time(self, session: Session, t: int) -> int:
        """Returns the time that a step gives: its own, or none if its time follows by the interval."""
        is_left_out = t and self.draw.random() < 0.5
        return TIME_ABSENT if is_left_out or not self.uses_time else int(self.series.times[session.number, t])

    def step(self, session: Session) -> None:
        """Submits a session's next step."""
        t, series = session.at, self.series
        session.given.append(self.time(session, t))
        work = self.rig.step(session.slot, series.x[session.number, t], time=session.given[-1])
        session.at += 1
        self.asked.append((session, t, lambda: [bits(work.y)]))

    def block(self, sessions: list[Session], lengths: list[int], wants_replies: bool = True) -> None:
        """Submits several sessions' next steps in one block."""
        spans = [(one.number, slice(one.at, one.at + n)) for one, n in zip(sessions, lengths, strict=True)]
        xs = [self.series.x[number, span] for number, span in spans]
        times = [self.series.times[number, span] for number, span in spans]
        is_timed = self.uses_time and (any(one.at == 0 for one in sessions) or self.draw.random() < 0.5)
        work = self.rig.block(
            [one.slot for one in sessions],
            xs,
            times=np.concatenate(times) if is_timed else None,
            wants_replies=wants_replies,
        )
        end = 0
        for session, x, time in zip(sessions, xs, times, strict=True):
            end += len(x)
            session.at += len(x)
            session.given += time.tolist() if is_timed else [TIME_ABSENT] * len(x)
            rows = range(end - (len(x) if wants_replies else 1), end)
            replies = functools.partial(lambda rows: [bits(work.y[row]) for row in rows], rows)
            self.asked.append((session, session.at - len(rows), replies))

    def check(self) -> None:
        """Compares every reply, remembered reply and repeat with the session alone."""
        self.rig.run()
        assert all(work.error is None and not getattr(work, "errors", None) for work in self.rig.done)
        for session, first, replies in self.asked:
            found = replies()
            assert found == self.series.alone[session.number][first : first + len(found)], (session, first)
        self.asked.clear()
        for session in self.sessions:
            alone = self.series.alone[session.number]
            for t in range(max(0, session.at - self.rig.settings.replies_kept), session.at):
                assert (
                    self.rig.engine.sessions.progress.remembered(session.slot, t)[1].tobytes() == alone[t]
                ), (session, t)
        self.check_repeats([one for one in self.sessions if one.at][:40])

    def check_repeats(self, sessions: list[Session]) -> None:
        """Repeats a recent step of each session."""
        repeats = []
        for session in sessions:
            t = session.at - 1 - int(self.draw.integers(min(session.at, self.rig.settings.replies_kept)))
            x, time = self.series.x[session.number, t], session.given[t]
            repeats.append((session, t, self.rig.step(session.slot, x, index=t, time=time)))
        self.rig.run()
        for session, t, work in repeats:
            assert work.is_repeat
            assert bits(work.y) == self.series.alone[session.number][t]


NUM_SESSIONS = st.one_of(
    st.integers(1, 40), st.integers(41, MOST), st.sampled_from([63, 64, 65, 255, 256, 257, 512, 1023, 1024])
)


@settings(max_examples=20, deadline=None)
@given(count=NUM_SESSIONS, seed=st.integers(0, 2**31), threads=st.sampled_from([1, 2]))
def test_a_batch_of_any_size(series, count, seed, threads):
    """Single steps of all sessions run in one iteration, twice, with the bits of each alone."""
    torch.set_num_threads(threads)
    draw = np.random.default_rng(seed)
    run = Run(series, draw.permutation(MOST)[:count].tolist(), draw)
    for _ in range(2):
        for at in draw.permutation(count).tolist():
            run.step(run.sessions[at])
        assert run.rig.run() == 1
    run.check()


@settings(max_examples=25, deadline=None)
@given(
    count=NUM_SESSIONS,
    share_long=st.integers(0, NUM_LONG),
    longest=st.sampled_from([2, 9, 65, 200]),
    weights=st.sampled_from([(1, 1, 1), (8, 1, 1), (1, 8, 1), (1, 0, 4), (4, 4, 0)]),
    num_rounds=st.integers(1, 3),
    seed=st.integers(0, 2**31),
    threads=st.sampled_from([1, 2]),
)
def test_any_mixture_of_work(series, count, share_long, longest, weights, num_rounds, seed, threads):
    """Steps, frames, long inputs of 1 to 200 steps and primes together have the bits of each alone."""
    torch.set_num_threads(threads)
    draw = np.random.default_rng(seed)
    num_long = min(count, share_long)
    numbers = [*draw.permutation(NUM_LONG)[:num_long], *(NUM_LONG + draw.permutation(MOST - NUM_LONG))]
    run = Run(series, [int(number) for number in numbers[:count]], draw)
    for _ in range(num_rounds):
        asks = []
        for _ in range(2):  # twice, so that work of a session waits behind its own
            asks += mixture(run, longest, weights)
        for at in draw.permutation(len(asks)).tolist():
            asks[at]()
        run.check()


def mixture(run, longest, weights):
    """Returns ways to submit work for the sessions of a run: a step, a frame, or long inputs."""
    draw = run.draw
    kinds = draw.choice(3, len(run.sessions), p=np.array(weights) / sum(weights))
    stepped, framed, long = ([run.sessions[at] for at in np.flatnonzero(kinds == kind)] for kind in range(3))
    primed = [one for one in long if one.number < NUM_LONG][:4]
    long = [one for one in long if one not in primed]

    def parts(sessions):
        return [part.tolist() for part in np.array_split(np.array(sessions, object), draw.integers(1, 4))]

    return [
        *(functools.partial(ask_step, run, one) for one in stepped),
        *(functools.partial(ask_block, run, part, 1) for part in parts(framed)),
        *(functools.partial(ask_block, run, part, longest) for part in parts(long)),
        *(functools.partial(ask_block, run, [one], longest, wants_replies=False) for one in primed),
    ]


def ask_step(run, session):
    """Submits one step of a session, if its series has one left."""
    if session.at < run.series.lengths[session.number]:
        run.step(session)


def ask_block(run, sessions, most, wants_replies=True):
    """Submits up to `most` steps of each session whose series has any left."""
    left = [(one, run.series.lengths[one.number] - one.at) for one in sessions]
    lengths = {one.slot: int(run.draw.integers(1, min(most, room) + 1)) for one, room in left if room}
    if lengths:
        run.block([one for one, room in left if room], list(lengths.values()), wants_replies)

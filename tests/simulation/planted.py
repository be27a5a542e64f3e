"""Bugs to plant: each breaks the production code, or the store, in one place; the simulation must find it.

Production code knows nothing of them: they replace methods while a seed runs. Does not know how they are
found.
"""

import asyncio
import contextlib

import numpy as np
from streamcell.position import SessionPosition
from streamcell.recovery import Recovery
from streamcell.session import Session

from service.engine.admission import Admission
from service.engine.answers import Answers
from service.engine.durability import Durability
from service.engine.ownership import Ownership
from service.engine.progress import ProgressTable
from service.engine.scheduler import Scheduler
from service.engine.session_table import SessionTable
from service.persistence import refused_writes
from service.persistence.changes import Changes
from service.persistence.hand_over import HandOver
from service.persistence.pending_claims import PendingClaims
from service.persistence.stored_sessions import StoredSessions
from service.store.base import Claim, WriteKind
from tests.simulation.database import Database

BUGS = {}
"""Each bug by name: a function that yields (owner, name, what takes its place)."""


def _bug(function):
    BUGS[function.__name__] = function
    return function


@contextlib.contextmanager
def planted(name):
    """Plants a bug for the length of a block; "" plants none."""
    patches = list(BUGS[name]()) if name else []
    before = [(owner, attribute, owner.__dict__[attribute]) for owner, attribute, _ in patches]
    for owner, attribute, value in patches:
        setattr(owner, attribute, value)
    try:
        yield
    finally:
        for owner, attribute, value in before:
            setattr(owner, attribute, value)


@_bug
def no_fence():
    """The store takes writes of former owners."""
    yield Database, "may_write", staticmethod(lambda row, write, owner: True)


@_bug
def epoch_that_falls():
    """A row that is made anew begins at epoch 1."""

    def claim(key, *, least_epoch, **rest):
        return Claim(key, least_epoch=1, **rest)

    yield refused_writes, "Claim", claim


@_bug
def reply_ring_off_by_one():
    """A repeated step gets the reply beside its own."""
    remembered = ProgressTable.remembered
    yield ProgressTable, "remembered", lambda self, slot, index: remembered(self, slot, index + 1)


@_bug
def lost_wake_up():
    """An iteration that leaves work asks for no other."""
    yield Scheduler, "has_ready", property(lambda self: False)


@_bug
def lost_caller_of_a_failed_claim():
    """Callers whose claim failed are forgotten."""
    yield PendingClaims, "put_back", lambda self, batch: None


@_bug
def stale_copy_served():
    """An idle session is used without asking the store whose it is."""
    yield StoredSessions, "must_confirm", lambda self, session: False
    yield StoredSessions, "slots_to_confirm", lambda self, engine, slots: slots[:0]


@_bug
def durable_told_early():
    """A durable step is answered before its write."""
    yield Answers, "_waits_for_store", lambda self, step: False


@_bug
def stored_steps_told_early():
    """A write counts for the steps that came while it was under way."""
    record = Durability.record_write

    def record_write(self, written, now_ns):
        record(self, written._replace(next_steps=written.next_steps + 1), now_ns)

    yield Durability, "record_write", record_write


@_bug
def put_back_forgotten():
    """Sessions whose write failed are not written again."""
    undo = Changes._undo

    def forget(self, checkpoint):
        waiting = undo(self, checkpoint)
        for each in checkpoint.sessions:
            each.engine.sessions.durability.mark_unchanged(each.slots)
        return waiting

    yield Changes, "_undo", forget


@_bug
def applied_again_on_retry():
    """A step that is sent again moves the state again."""
    admit = Admission.admit_step

    def admit_step(self, step):
        if step.index >= 0 and step.index == self._next_step[step.slot] - 1:
            self._next_step[step.slot] -= 1
        return admit(self, step)

    yield Admission, "admit_step", admit_step


@_bug
def tail_trimmed_too_far():
    """The client forgets two steps more than are stored."""
    learn = SessionPosition.learn_durable
    yield (
        SessionPosition,
        "learn_durable",
        lambda self, num_steps: learn(self, num_steps and num_steps + 2),
    )


@_bug
def tail_not_sent_again():
    """The client recovers a session without the steps that its server lost."""

    async def send_nothing(self, info):
        self._position.learn_durable(info.num_durable_steps)

    yield Recovery, "_send_again", send_nothing


@_bug
def release_leaves_the_record_old():
    """A drain gives rows up without writing what changed."""
    capture = Changes._capture

    def capture_without_records(self, checkpoint, engine, slots, kind):
        if kind is WriteKind.RELEASE:
            sessions = engine.sessions
            sessions.durability.mark_unchanged(slots)
            sessions.durability.num_durable[slots] = sessions.progress.next_step[slots]
        capture(self, checkpoint, engine, slots, kind)

    yield Changes, "_capture", capture_without_records


@_bug
def drain_drops_changed_rows():
    """A drain forgets the sessions that have changed."""
    begin = Changes.begin

    def begin_without_changed(self, kind=WriteKind.SAVE):
        begin(self, kind)
        if kind is WriteKind.RELEASE:
            for engine, slots in self._due.items():
                is_changed = engine.sessions.durability.is_changed[slots]
                self._due[engine] = slots[~is_changed]
                engine.sessions.durability.mark_unchanged(slots[is_changed])

    yield Changes, "begin", begin_without_changed


@_bug
def adopted_one_reply_short():
    """A session from the store has forgotten its oldest reply."""
    put = ProgressTable.put

    def put_short(self, slots, progress):
        put(self, slots, progress)
        start = np.maximum(self._reply_start[slots], self.next_step[slots] - self.replies_kept + 1)
        self._reply_start[slots] = np.maximum(start, 0)

    yield ProgressTable, "put", put_short


@_bug
def fenced_session_kept():
    """A server that hears that a session is another's keeps it."""

    def keep(self, refused):
        for on_stored in refused.waiting:
            on_stored(None)

    yield Changes, "lose", keep


@_bug
def lost_caller_of_a_fenced_session():
    """Who waits for the write of a session that another server took over is never answered."""

    def drop(self, refused):
        session = refused.session.current
        if session.is_live:
            session.engine.residents.fence(session.slot)

    yield Changes, "lose", drop


@_bug
def evicted_before_it_is_stored():
    """A session leaves memory while its changes are not in the store."""

    def all_whole(self, slots):
        return np.ones(len(slots), np.bool_)

    yield SessionTable, "are_stored_whole", all_whole


@_bug
def confirmed_by_being_asked():
    """A session counts as confirmed whatever the store says."""
    yield Ownership, "is_confirmed_since", lambda self, slot, instant_ns: True


@_bug
def prime_repeated_from_the_start():
    """A history that is sent in pieces is numbered from its start in each piece."""
    prime = Session._prime_piece

    async def prime_piece(self, calls, history, start, stop):
        calls.position.next_step_index -= start and 1
        return await prime(self, calls, history, start, stop)

    yield Session, "_prime_piece", prime_piece


@_bug
def handed_over_as_it_was_stored():
    """A session goes to another server without the steps that the store does not have yet."""

    async def release(self, key, session):
        await asyncio.sleep(0)
        _leave(self, key, session)

    yield HandOver, "_release", release


@_bug
def handed_over_in_the_middle():
    """A session that is about to leave still takes work, and leaves all the same."""

    async def release(self, key, session):
        await self._wait_until_stored(session)
        if session.is_live:
            _leave(self, key, session)

    yield HandOver, "_release", release


def _leave(hand_over, key, session):
    epoch = session.epoch
    session.engine.residents.hand_over(session.slot)
    hand_over._changes.release(key, epoch, None, 0.0)
    hand_over._wake()

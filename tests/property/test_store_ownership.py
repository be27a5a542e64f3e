"""Several servers on one store, with crashes and clocks that jump: one live owner a row, no lost write."""

import asyncio
import contextlib
import dataclasses
import tempfile

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from service.store.base import (
    MAX_EPOCH,
    WRITTEN,
    Claim,
    Claimed,
    ClaimStatus,
    Write,
    WriteKind,
    WriteOutcome,
    WriteStatus,
)
from service.store.redis import RedisStore
from service.store.sqlite import SqliteStore
from tests.redis_server import BOUND_SECONDS

NUM_STORES = 3
KEYS = st.sampled_from(["alice\0a", "alice\0b", "bob\0a"])
STORES = st.integers(0, NUM_STORES - 1)
INSTANTS = st.sampled_from(
    [-1e9, 0.0, 0.1, 1.7e9, 1.7e9 + 1e-6, 1e12]
)  # jumps, and instants next to each other
RECORDS = st.none() | st.binary(max_size=3)
CLAIMS = st.builds(
    Claim,
    KEYS,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    RECORDS,
    st.integers(1, 3),
    st.integers(1, 4) | st.just(MAX_EPOCH),
    st.booleans(),
)
REMEMBERED_SECONDS = 86_400  # how long the end of a row is
WRITES = st.tuples(st.sampled_from(WriteKind), KEYS, st.integers(0, 2), RECORDS, INSTANTS)


@dataclasses.dataclass
class Row:
    """What the model knows of a row. `owner` is the store object that claimed the row last."""

    owner: object
    epoch: int
    used_at: float
    record: bytes | None = None
    is_released: bool = False


class Ownership(RuleBasedStateMachine):
    """Stores against a dictionary of rows.

    A crashed store object lives on as a ghost: a server that was taken for dead and was only cut off.
    """

    forgets_by_its_clock = True
    """Whether ends of rows are forgotten by the store's clock; a Redis server has a clock of its own."""
    tells_the_dead_at_once = True
    """Whether only a closed store counts as dead; on Redis also one that is not heard of, in real time."""

    def __init__(self, make):
        super().__init__()
        self.make = make
        self.runner = asyncio.Runner()
        self.now = 0.0
        self.rows = {}
        self.ended = {}  # key -> epoch and instant of the end of a row that had several owners
        self.ghosts = []
        self.closed = []
        self.told = {}  # store -> key -> epochs that the store was told, oldest first
        self.highest = {}  # key -> the highest epoch that any store was told since the row was created
        self.stores = [self.born() for _ in range(NUM_STORES)]

    def born(self):
        """Makes a store, and opens it."""
        store = self.make(lambda: self.now)
        self.runner.run(store.open())
        self.told[store] = {}
        return store

    @initialize(number=STORES)
    def begin(self, number):
        """Creates a row, which the stores compete for from the start."""
        self.claim(number, [Claim("alice\0a", True, True, True)])

    @rule(now=INSTANTS)
    def clock_jumps(self, now):
        """Sets the stores' clock."""
        self.now = now

    @rule(number=STORES, claims=st.lists(CLAIMS, min_size=1, max_size=4))
    def claim(self, number, claims):
        """Claims rows, and compares each outcome with the model's."""
        store = self.stores[number]
        if not self.tells_the_dead_at_once:
            claims = [dataclasses.replace(one, asks=False) for one in claims]
        outcomes = self.runner.run(store.claim(claims))
        for one, outcome in zip(claims, outcomes, strict=True):
            assert outcome == self.expected(store, one)
            if outcome.status in (ClaimStatus.CREATED, ClaimStatus.TAKEN):
                assert outcome.epoch > self.highest.get(one.key, 0)
                self.highest[one.key] = outcome.epoch
                self.told[store].setdefault(one.key, []).append(outcome.epoch)

    def expected(self, store, one):
        """Returns the outcome that a claim must have, and applies the claim to the model."""
        row = self.rows.get(one.key)
        last = row.epoch if row else self.ended.get(one.key, (0, 0))[0]
        if last > one.most_epoch:
            return Claimed(ClaimStatus.NEWER, last)
        if row is None:
            if not one.may_create:
                return Claimed(ClaimStatus.MISSING)
            epoch = max(one.least_epoch, self.ended.pop(one.key, (0, 0))[0] + 1)
            self.rows[one.key] = Row(store, epoch, self.now, record=one.record)
            return Claimed(ClaimStatus.CREATED, epoch, one.record, self.now)
        if not one.may_find:
            return Claimed(ClaimStatus.EXISTS)
        is_free = row.owner is store or row.is_released or (one.asks and row.owner in self.closed)
        if not is_free and not one.may_take_over:
            return Claimed(ClaimStatus.OWNED_ELSEWHERE, row.epoch)
        row.owner, row.is_released = store, False
        row.epoch = max(one.least_epoch, row.epoch + 1)
        return Claimed(ClaimStatus.TAKEN, row.epoch, row.record, row.used_at)

    @rule(number=STORES, drawn=st.lists(WRITES, min_size=1, max_size=4))
    def write(self, number, drawn):
        """Writes at epochs that the store was told: the newest, or older ones."""
        store = self.stores[number]
        writes = [
            Write(kind, key, self.epoch(store, key, age), record, used_at)
            for kind, key, age, record, used_at in drawn
        ]
        self.compare(store, writes)

    def epoch(self, store, key, age=0):
        """Returns the epoch that a store was told `age` epochs before its newest; 1 if it was told none."""
        told = self.told[store].get(key, [1])
        return told[max(-1 - age, -len(told))]

    def compare(self, store, writes):
        """Writes, and compares each outcome with the model's. Returns the outcomes."""
        outcomes = self.runner.run(store.write(writes))
        assert outcomes == [self.outcome(store, one) for one in writes]
        return outcomes

    def outcome(self, store, one):
        """Returns how a write must end, and applies the write to the model."""
        row = self.rows.get(one.key)
        if row is None:
            return WriteOutcome(WriteStatus.GONE, self.ended.get(one.key, (0, 0))[0])
        is_owned = row.owner is store and row.epoch == one.epoch
        if not is_owned or (row.is_released and one.kind is not WriteKind.RELEASE):
            is_own = row.owner is store and not row.is_released
            return WriteOutcome(WriteStatus.NOT_OWNED, row.epoch, is_own)
        if one.kind is WriteKind.DELETE:
            self.forget(one.key)
        elif one.kind is not WriteKind.VERIFY:
            if one.record is not None:
                row.record, row.used_at = one.record, one.used_at
            row.is_released = one.kind is WriteKind.RELEASE
        return WRITTEN

    def forget(self, key):
        """Removes a row from the model. Only the end of a row that had several owners is remembered."""
        epoch = self.rows.pop(key).epoch
        if epoch > 1:
            self.ended[key] = epoch, self.now
        else:
            del self.highest[key]

    @rule(key=KEYS, record=RECORDS)
    def everyone_saves(self, key, record):
        """Saves as every store and ghost at each epoch that it was ever told: one save at most is done."""
        num_saved = 0
        for store in [*self.ghosts, *self.stores]:
            epochs = sorted(set(self.told[store].get(key, [])))
            saves = [Write(WriteKind.SAVE, key, epoch, record, self.now) for epoch in epochs]
            num_saved += self.compare(store, saves).count(WRITTEN)
        is_owned = key in self.rows and not self.rows[key].is_released
        assert num_saved <= is_owned

    @rule(number=STORES)
    def crash(self, number):
        """Replaces a store by a new one. The former store releases nothing and may wake up."""
        self.ghosts.append(self.stores[number])
        self.stores[number] = self.born()
        if len(self.ghosts) > 2:
            self.closed.append(self.ghosts.pop(0))
            self.runner.run(self.closed[-1].close())

    @rule(number=STORES, before=INSTANTS, limit=st.integers(0, 3))
    def expire(self, number, before, limit):
        """Deletes idle rows. The store chooses among rows that are equally idle."""
        expired = self.runner.run(self.stores[number].expire(before, limit))
        if self.forgets_by_its_clock:
            self.forget_ends()
        idle = {key: row.used_at for key, row in self.rows.items() if row.used_at < before}
        assert len(expired) == len(set(expired)) == min(limit, len(idle))
        assert [idle[key] for key in expired] == sorted(idle.values())[:limit]
        for key in expired:
            self.forget(key)

    def forget_ends(self):
        """Forgets the ends of rows that are a day old."""
        for key in [key for key, (_, at) in self.ended.items() if at < self.now - REMEMBERED_SECONDS]:
            del self.ended[key], self.highest[key]

    def teardown(self):
        """Compares every row with the model, and closes all stores."""
        last = self.born()
        found = self.runner.run(last.claim([Claim(key, False, True, True) for key in self.rows]))
        wanted = [
            Claimed(ClaimStatus.TAKEN, row.epoch + 1, row.record, row.used_at) for row in self.rows.values()
        ]
        for store in [last, *self.ghosts, *self.stores]:
            self.runner.run(store.close())
        self.runner.close()
        assert found == wanted


def test_one_owner_on_sqlite():
    """Store objects share one file, each with its own connection, like separate processes."""
    with contextlib.ExitStack() as stack:

        class OnItsFile(Ownership):
            """The machine, on a new file each time."""

            def __init__(self):
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                super().__init__(
                    lambda clock: SqliteStore(f"{folder}/s.db", clock=clock, busy_seconds=BOUND_SECONDS)
                )

        bounds = settings(max_examples=60, stateful_step_count=30, deadline=None)
        run_state_machine_as_test(OnItsFile, settings=bounds)


def test_one_owner_on_redis(shared_redis):
    """Store objects share one Redis server."""

    class OnEmptyServer(Ownership):
        """The machine, on a server that is emptied each time."""

        forgets_by_its_clock = False
        tells_the_dead_at_once = False

        def __init__(self):
            shared_redis.command("FLUSHALL")
            super().__init__(
                lambda clock: RedisStore(shared_redis.url(), clock=clock, timeout_seconds=BOUND_SECONDS)
            )

    bounds = settings(max_examples=25, stateful_step_count=25, deadline=None)
    run_state_machine_as_test(OnEmptyServer, settings=bounds)

"""The store of the simulation: rows as SQLite and Redis keep them, and calls that arrive late, or not at all.

`Database` is what the servers share, `SimulatedStore` one server's way to it. Does not know sessions.
"""

import asyncio
from typing import NamedTuple

from service.store.base import (
    WRITTEN,
    Claimed,
    ClaimStatus,
    StoreError,
    WriteKind,
    WriteOutcome,
    WriteStatus,
)

TIMEOUT_SECONDS = 1.0  # after which a server gives a call up
ALIVE_SECONDS = 3.0  # without a sign, after which an owner counts as dead
_LISTEN_SECONDS = 1.0  # between two signs of life


class Row(NamedTuple):
    """A row, see `service.store.base`."""

    epoch: int
    owner: str
    is_released: bool
    used_at: float
    record: bytes | None


class Database:
    """The rows, and the deletions that are remembered; `journal` hears of every change.

    Owners show that they live, and hear which rows others ask for. `clock` tells how long ago that was.
    """

    def __init__(self, journal, clock=lambda: 0.0):
        self.rows: dict[str, Row] = {}
        self.ended: dict[str, int] = {}
        self.run = "run 0"
        self._journal = journal
        self._clock = clock
        self._owners = {}  # by name: when it was last heard of, and who takes what it is asked

    def show_life(self, owner, hear):
        """Hears of an owner; `hear` is called with each key that it is asked for."""
        self._owners[owner] = self._clock(), hear

    def forget(self, owner):
        """Hears that an owner has closed its store."""
        self._owners.pop(owner, None)

    def is_alive(self, owner):
        """Returns whether an owner was heard of lately."""
        return owner in self._owners and self._clock() - self._owners[owner][0] < ALIVE_SECONDS

    def claim(self, claim, owner, now):
        """Claims a row."""
        row = self.rows.get(claim.key)
        last = self.ended.get(claim.key, 0) if row is None else row.epoch
        if last > claim.most_epoch:
            return Claimed(ClaimStatus.NEWER, last)
        if row is None:
            if not claim.may_create:
                return Claimed(ClaimStatus.MISSING)
            self.ended.pop(claim.key, None)
            epoch = max(claim.least_epoch, last + 1)
            self._put(claim.key, Row(epoch, owner, False, now, claim.record))
            return Claimed(ClaimStatus.CREATED, epoch, claim.record, now)
        if not claim.may_find:
            return Claimed(ClaimStatus.EXISTS)
        is_free = row.is_released or row.owner == owner or (claim.asks and not self.is_alive(row.owner))
        if not (is_free or claim.may_take_over):
            if claim.asks:
                self._owners[row.owner][1](claim.key)
            return Claimed(ClaimStatus.OWNED_ELSEWHERE, row.epoch)
        taken = row._replace(epoch=max(claim.least_epoch, row.epoch + 1), owner=owner, is_released=False)
        self._put(claim.key, taken)
        return Claimed(ClaimStatus.TAKEN, taken.epoch, row.record, row.used_at)

    def write(self, write, owner):
        """Writes a row."""
        row, is_release = self.rows.get(write.key), write.kind is WriteKind.RELEASE
        if row is None:
            return WriteOutcome(WriteStatus.GONE, self.ended.get(write.key, 0))
        if not self.may_write(row, write, owner):
            is_own = row.owner == owner and not row.is_released
            return WriteOutcome(WriteStatus.NOT_OWNED, row.epoch, is_own=is_own)
        if write.kind is WriteKind.DELETE:
            self.delete(write.key)
        elif write.kind is not WriteKind.VERIFY:
            if write.record is not None:
                row = row._replace(record=write.record, used_at=write.used_at)
            self._put(write.key, row._replace(is_released=is_release))
        return WRITTEN

    @staticmethod
    def may_write(row, write, owner):
        """Returns whether a row is an owner's, at the epoch of a write. A repeated release is done again."""
        is_repeat = write.kind is WriteKind.RELEASE
        return row.epoch == write.epoch and row.owner == owner and (is_repeat or not row.is_released)

    def delete(self, key):
        """Deletes a row, and remembers one that had several owners."""
        epoch = self.rows.pop(key).epoch
        if epoch > 1:
            self.ended[key] = epoch
        self._journal(key, None)

    def expire(self, before, limit):
        """Deletes rows last used before an instant, those idle for longest first."""
        idle = sorted((row.used_at, key) for key, row in self.rows.items() if row.used_at < before)[:limit]
        for _, key in idle:
            self.delete(key)
        return [key for _, key in idle]

    def copy(self):
        """Returns a copy, to go back to."""
        return dict(self.rows), dict(self.ended)

    def go_back(self, copy):
        """Goes back to an earlier copy; returns by key the rows that changed by that, as they were before."""
        rows, ended = copy
        keys = sorted({*self.rows, *rows})
        lost = {key: self.rows.get(key) for key in keys if self.rows.get(key) != rows.get(key)}
        self.rows, self.ended = dict(rows), dict(ended)
        for key in lost:
            self._journal(key, self.rows.get(key))
        return lost

    def _put(self, key, row):
        self.rows[key] = row
        self._journal(key, row)


class SimulatedStore:
    """One server's store, as `service.store.base.Store` describes it.

    Args:
        database: the rows.
        name: the owner's token.
        weather: how the store fares now.
        heard: called with each claim or write, its outcome and the instant of it, once the server has the
            answer; with None when a call failed.
    """

    def __init__(self, loop, database, name, *, weather, random, heard, wall):
        self.owner = name
        self._loop = loop
        self._database = database
        self._weather = weather
        self._random = random
        self._heard = heard
        self._wall = wall
        self._done_at = 0.0  # when the last call got to the database
        self._asked = []  # the keys that other owners asked for
        self._listening = None
        self.must_sync = False
        self.disk_problem = ""

    async def open(self):
        """Asks whether the store is there, and shows that the owner lives."""
        await self._ask(lambda _: self._database.show_life(self.owner, self._hear_asked), [None])

    async def claim(self, claims):
        """Claims rows."""
        now = self._wall()
        outcomes = await self._ask(lambda each: self._database.claim(each, self.owner, now), claims)
        self._hear(claims, outcomes)
        return outcomes

    async def write(self, writes):
        """Writes rows."""
        outcomes = await self._ask(lambda each: self._database.write(each, self.owner), writes)
        self._hear(writes, outcomes)
        return outcomes

    async def expire(self, before, limit):
        """Deletes rows last used before an instant."""
        (keys,) = await self._ask(lambda _: self._database.expire(before, limit), [None])
        return keys

    async def asked_for(self):
        """Shows that the owner lives, and waits for a second for what it is asked."""
        await self._ask(
            lambda _: self._database.show_life(self.owner, self._hear_asked), [None], is_counted=False
        )
        if not self._asked:
            self._listening = self._loop.create_future()
            self._loop.outside(_LISTEN_SECONDS, self._stop_listening, self._listening)
            await self._listening
        asked, self._asked = self._asked, []
        return asked

    def _hear_asked(self, key):
        """Hears a key, unless the message is lost."""
        if self._weather.reaches_store(self.owner) and self._weather.fate_of_call(self._random) == "well":
            self._asked.append(key)
            self._stop_listening(self._listening)

    @staticmethod
    def _stop_listening(listening):
        if listening is not None and not listening.done():
            listening.set_result(None)

    async def incarnation(self):
        """Returns the name of the database's run."""
        (run,) = await self._ask(lambda _: self._database.run, [None])
        return run

    async def check(self):
        """Raises StoreError if the store cannot be used."""
        await self._ask(lambda _: None, [None])

    async def close(self):
        """Shows that the owner is gone."""
        if self._weather.reaches_store(self.owner):
            self._database.forget(self.owner)

    def _hear(self, asked, outcomes):
        for each in zip(asked, outcomes, strict=True):
            self._heard(*each, self._done_at)

    async def _ask(self, operation, items, *, is_counted=True):
        """Sends items to the database and waits for its answers; a failure counts as trouble of the store."""
        weather, random, loop = self._weather, self._random, self._loop
        done = loop.create_future()
        fate = weather.fate_of_call(random)

        def arrive():
            if not weather.reaches_store(self.owner) or fate == "lost":
                loop.outside(weather.delay(random, TIMEOUT_SECONDS), answer, None)
                return
            part = items[: random.randrange(len(items) + 1)] if fate == "in part" else items
            outcomes = [operation(each) for each in part]
            self._done_at = loop.time()
            is_heard = fate == "well" and weather.reaches_store(self.owner)
            loop.outside(weather.delay(random, TIMEOUT_SECONDS), answer, outcomes if is_heard else None)

        def answer(outcomes):
            if done.done():
                return
            if outcomes is None or not weather.reaches_store(self.owner):
                done.set_exception(StoreError("the store is away"))
            else:
                done.set_result(outcomes)

        loop.outside(weather.delay(random, TIMEOUT_SECONDS), arrive)
        try:
            return await done
        except asyncio.CancelledError:
            raise
        except StoreError:
            if is_counted:
                self._heard(None, None, loop.time())
            raise

"""A store in memory, which the servers of a test may share. A test can block and break it."""

import asyncio
import dataclasses
from collections.abc import Sequence

from service.store.base import (
    WRITTEN,
    Claim,
    Claimed,
    ClaimStatus,
    StoreError,
    Write,
    WriteKind,
    WriteOutcome,
    WriteStatus,
    new_owner,
)


@dataclasses.dataclass
class Row:
    """A row, see `service.store.base`."""

    epoch: int
    owner: str
    used_at: float
    record: bytes | None


class FakeStore:
    """One server's store, over rows, and the ends of rows, that other servers' stores share.

    `asked` has the keys that each living owner is asked for, by owner; without it no owner hears another, and
    all count as living. While `trouble` has a text, calls raise StoreError with that text. While
    `is_blocked`, writes wait.
    `num_writes` counts the calls of `write`. A test that removes rows, as a restart may, changes `run` too.
    With `must_sync`, a write with `to_disk` is on the disk once a `sync` ends; `may_sync` holds it back.
    """

    def __init__(
        self,
        rows: dict[str, Row] | None = None,
        ended: dict[str, int] | None = None,
        asked: "dict[str, asyncio.Queue[str]] | None" = None,
    ) -> None:
        self.rows: dict[str, Row] = {} if rows is None else rows
        # Epochs of deleted rows that had several owners.
        self.ended: dict[str, int] = {} if ended is None else ended
        self.owner = new_owner()
        self.trouble = ""
        self.run = "first"
        self.num_writes = 0
        self.asked = asked
        self._asked: asyncio.Queue[str] = asyncio.Queue()
        self.must_sync = False
        self.disk_problem = ""
        self.sync_trouble = ""
        self.num_syncs, self.num_unsynced = 0, 0
        self.may_sync = asyncio.Event()
        self.may_sync.set()
        self._may_write = asyncio.Event()
        self._may_write.set()

    @property
    def is_blocked(self) -> bool:
        """Whether writes wait."""
        return not self._may_write.is_set()

    @is_blocked.setter
    def is_blocked(self, value: bool) -> None:
        (self._may_write.clear if value else self._may_write.set)()

    async def open(self) -> None:
        """Shows that the owner lives."""
        if self.asked is not None:
            self.asked[self.owner] = self._asked

    async def claim(self, claims: Sequence[Claim]) -> list[Claimed]:
        """Claims rows."""
        await self.check()
        return [self._claim(claim) for claim in claims]

    def _claim(self, claim: Claim) -> Claimed:
        row = self.rows.get(claim.key)
        last = row.epoch if row else self.ended.get(claim.key, 0)
        if last > claim.most_epoch:
            return Claimed(ClaimStatus.NEWER, last)
        if row is None:
            if not claim.may_create:
                return Claimed(ClaimStatus.MISSING)
            epoch = max(claim.least_epoch, self.ended.pop(claim.key, 0) + 1)
            self.rows[claim.key] = Row(epoch, self.owner, 0.0, claim.record)
            return Claimed(ClaimStatus.CREATED, epoch, claim.record)
        if not claim.may_find:
            return Claimed(ClaimStatus.EXISTS)
        if row.owner not in ("", self.owner) and not claim.may_take_over and self._is_refused(claim, row):
            return Claimed(ClaimStatus.OWNED_ELSEWHERE, row.epoch)
        row.epoch, row.owner = max(claim.least_epoch, row.epoch + 1), self.owner
        return Claimed(ClaimStatus.TAKEN, row.epoch, row.record, row.used_at)

    def _is_refused(self, claim: Claim, row: Row) -> bool:
        """Returns whether a claim does not get another owner's row, and asks that owner if it may."""
        if not claim.asks or self.asked is None:
            return True
        if row.owner in self.asked:
            self.asked[row.owner].put_nowait(claim.key)
        return row.owner in self.asked

    async def asked_for(self) -> list[str]:
        """Waits for the next key."""
        return [await self._asked.get()]

    async def write(self, writes: Sequence[Write], *, to_disk: bool = False) -> list[WriteOutcome]:
        """Writes rows."""
        self.num_writes += 1
        await self._may_write.wait()
        await self.check()
        self.num_unsynced += to_disk
        return [self._write(write) for write in writes]

    def _write(self, write: Write) -> WriteOutcome:
        row = self.rows.get(write.key)
        if row is None:
            return WriteOutcome(WriteStatus.GONE, self.ended.get(write.key, 0))
        if (row.epoch, row.owner) != (write.epoch, self.owner):
            return WriteOutcome(WriteStatus.NOT_OWNED, row.epoch, is_own=row.owner == self.owner)
        if write.kind is WriteKind.DELETE:
            self._delete(write.key)
        elif write.kind is not WriteKind.VERIFY:
            if write.record is not None:
                row.record, row.used_at = write.record, write.used_at
            if write.kind is WriteKind.RELEASE:
                row.owner = ""
        return WRITTEN

    def _delete(self, key: str) -> None:
        epoch = self.rows.pop(key).epoch
        if epoch > 1:
            self.ended[key] = epoch

    async def sync(self) -> None:
        """Returns when the test allows it; raises StoreError while there is trouble with the disk."""
        assert self.num_unsynced, "there is something to wait for"
        self.num_syncs, self.num_unsynced = self.num_syncs + 1, 0
        await self.may_sync.wait()
        if self.sync_trouble:
            raise StoreError(self.sync_trouble)

    async def expire(self, before: float, limit: int) -> list[str]:
        """Deletes rows last used before an instant."""
        await self.check()
        gone = [key for key, row in self.rows.items() if row.used_at < before][:limit]
        for key in gone:
            self._delete(key)
        return gone

    async def incarnation(self) -> str:
        """Returns the name of the run, which a test may change."""
        await self.check()
        return self.run

    async def check(self) -> None:
        """Raises StoreError while there is trouble."""
        await asyncio.sleep(0)
        if self.trouble:
            raise StoreError(self.trouble)

    async def close(self) -> None:
        """Ends the owner's life."""
        if self.asked is not None:
            self.asked.pop(self.owner, None)

"""A store in memory, which the servers of a test may share: held back, broken and damaged as it likes."""

import asyncio
import dataclasses
from collections.abc import Sequence

from service.store.base import Claim, Claimed, Kind, Standing, StoreError, Write, new_owner


@dataclasses.dataclass
class Row:
    """A row."""

    epoch: int
    owner: str
    used_at: float
    record: bytes | None


class FakeStore:
    """One server's store, over rows that others have as well.

    `trouble` is raised while it says something; while `is_held`, writes wait. `num_writes` counts the calls.
    Who takes rows away changes `run` as well.
    """

    def __init__(self, rows: dict[str, Row] | None = None) -> None:
        self.rows: dict[str, Row] = {} if rows is None else rows
        self.owner = new_owner()
        self.trouble = ""
        self.run = "first"
        self.num_writes = 0
        self._go = asyncio.Event()
        self._go.set()

    @property
    def is_held(self) -> bool:
        """Whether writes wait."""
        return not self._go.is_set()

    @is_held.setter
    def is_held(self, value: bool) -> None:
        (self._go.clear if value else self._go.set)()

    async def open(self) -> None:
        """Does nothing."""

    async def claim(self, claims: Sequence[Claim]) -> list[Claimed]:
        """Claims rows."""
        await self.check()
        return [self._claim(claim) for claim in claims]

    def _claim(self, claim: Claim) -> Claimed:
        row = self.rows.get(claim.key)
        if row is None:
            if not claim.may_create:
                return Claimed(Standing.MISSING)
            self.rows[claim.key] = Row(1, self.owner, 0.0, claim.record)
            return Claimed(Standing.CREATED, 1)
        if not claim.may_find:
            return Claimed(Standing.EXISTS)
        if row.owner not in ("", self.owner) and not claim.may_take_over:
            return Claimed(Standing.HELD, row.epoch)
        row.epoch, row.owner = row.epoch + 1, self.owner
        return Claimed(Standing.TAKEN, row.epoch, row.record, row.used_at)

    async def write(self, writes: Sequence[Write]) -> list[bool]:
        """Writes rows."""
        self.num_writes += 1
        await self._go.wait()
        await self.check()
        return [self._write(write) for write in writes]

    def _write(self, write: Write) -> bool:
        row = self.rows.get(write.key)
        if row is None or (row.epoch, row.owner) != (write.epoch, self.owner):
            return False
        if write.kind is Kind.DELETE:
            del self.rows[write.key]
            return True
        row.record, row.used_at = write.record, write.used_at
        if write.kind is Kind.RELEASE:
            row.owner = ""
        return True

    async def expire(self, before: float, limit: int) -> list[str]:
        """Deletes rows not used since."""
        await self.check()
        gone = [key for key, row in self.rows.items() if row.used_at < before][:limit]
        for key in gone:
            del self.rows[key]
        return gone

    async def incarnation(self) -> str:
        """Names the run, which a test may change."""
        await self.check()
        return self.run

    async def check(self) -> None:
        """Fails while there is trouble."""
        await asyncio.sleep(0)
        if self.trouble:
            raise StoreError(self.trouble)

    async def close(self) -> None:
        """Does nothing."""

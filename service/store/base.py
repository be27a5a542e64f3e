"""What every store offers: records by key, and who owns each.

A *row* has a key, an epoch (from 1, it only rises), an owner, the instant of its last use (Unix seconds) and
a record (bytes, or none before the first save). An *owner* is the random token of one store object; by it a
row that was deleted and created again, at epoch 1 once more, is told from the old owner's. Whoever claims a
row raises its epoch, and a write is done only for the owner and at the epoch that the row has: there never
are two live owners.

This module does not know sessions, models or what a record holds, nor any database.
"""

import enum
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class StoreError(Exception):
    """The store cannot be used now: gone, full, read-only, damaged, too slow. The text says what to do.

    Whether the call that failed was applied is not known; it can be repeated when the trouble is over.
    """


@dataclass(frozen=True, slots=True)
class Claim:
    """A wish to own a row: by creating it, by finding it, by finding it though another owner has it.

    `record`: what a row that is created holds.
    """

    key: str
    may_create: bool
    may_find: bool
    may_take_over: bool
    record: bytes | None = None


class Standing(enum.Enum):
    """How a claim ended. Only CREATED and TAKEN move anything."""

    CREATED = "created"  # there was no row; it is this owner's now, at epoch 1
    TAKEN = "taken"  # the row is this owner's now, one epoch up
    MISSING = "missing"  # there is no row, and none was to be created
    EXISTS = "exists"  # there is a row, and none was to be found
    HELD = "held"  # another owner has the row


@dataclass(frozen=True, slots=True)
class Claimed:
    """The outcome of a claim; the epoch is of CREATED, TAKEN and HELD, the rest of the first two alone.

    `used_at` and `record` are as the row has them.
    """

    standing: Standing
    epoch: int = 0
    record: bytes | None = None
    used_at: float = 0.0


class Kind(enum.Enum):
    """What a write does to its row."""

    SAVE = "save"  # sets record and used_at
    RELEASE = "release"  # the same, and leaves the row to whoever claims it next
    DELETE = "delete"  # removes the row


@dataclass(frozen=True, slots=True)
class Write:
    """A change to a row that is owned at `epoch`; a DELETE does not look at record and used_at."""

    kind: Kind
    key: str
    epoch: int
    record: bytes | None
    used_at: float


class Store(Protocol):
    """A store. Sequences are worked off in order, so a key may come several times in one.

    Calls may overlap; what must keep its order is awaited one after the other. Every method but `open` raises
    StoreError when the store cannot be used, and the store recovers by itself when the trouble is over.
    """

    async def open(self) -> None:
        """Connects, and lays the store out where it is new.

        Raises:
            ConfigError: it cannot be reached or written, is another program's, or has another format version.
        """

    async def claim(self, claims: Sequence[Claim]) -> list[Claimed]:
        """Claims rows, each atomically.

        No row: may_create makes one, with the claim's record. A row: without may_find it EXISTS; one that is
        released or this store's own is TAKEN, another's only with may_take_over. A claim whose reply was lost
        may have been applied; the row is this store's own then, for a repeated claim that may find it.
        """

    async def write(self, writes: Sequence[Write]) -> list[bool]:
        """Writes rows, each atomically; False where the row is not this store's at that epoch: nothing moved.

        Writes can be repeated when their replies were lost: a SAVE and a RELEASE give True again as long as
        nobody claimed the row since; a DELETE gives False then, as for every row that is gone.
        """

    async def expire(self, before: float, limit: int) -> list[str]:
        """Deletes up to `limit` rows last used before an instant, whoever owns them, the longest idle first.

        Returns their keys.
        """

    async def incarnation(self) -> str:
        """Names the run of the database: one with another name may have lost what this one was told."""

    async def check(self) -> None:
        """Tells, by an exception, that the store cannot be written now."""

    async def close(self) -> None:
        """Disconnects; rows stay owned. May be called twice, and after an `open` that failed."""


def new_owner() -> str:
    """Returns a token that no other store object has."""
    return secrets.token_hex(8)

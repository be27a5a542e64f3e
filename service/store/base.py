"""What every store offers: records by key, and the owner of each.

A *row* has a key, an epoch (from 1, it only rises), an owner, the instant of its last use (Unix seconds) and
a record (bytes, or none before the first save). An *owner* is the random token of one store object. A claim
raises the row's epoch, and a write is done only for the row's owner and at the row's epoch, so a row never
has two live owners. The epoch alone would not do: a row that is deleted and created again starts at epoch 1
once more, and only the token shows that the former owner is not the present one.

Owners may also ask each other for rows. What they say is a hint: it may be lost, or come late or twice. Only
owner and epoch decide who may write.

This module does not know sessions, models or the content of a record, nor any database.
"""

import enum
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

MAX_EPOCH = 1 << 53
"""Above every epoch; numbers up to this one are exact in a Redis script."""


class StoreError(Exception):
    """The store cannot be used now: gone, full, read-only, damaged, too slow. The text says what to do.

    The failed call may have been applied or not. It can be repeated when the trouble is over.
    """


class WrongStoreError(StoreError):
    """The store cannot be used as it is set up, however long one waits: another program's, a cluster."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A request to own a row.

    `may_create` allows a new row, which then has `record`. `may_find` allows a row that exists, and
    `may_take_over` allows that row to belong to another owner. The row's epoch becomes `least_epoch` at
    least: an owner whose row was lost, or fell back to an older copy, never falls behind its own epoch. A row
    above `most_epoch`, or one that was deleted above it, is left alone: since the owner looked, a newer owner
    has had it. `asks` takes the row of a dead owner, and asks a living owner to release it.
    """

    key: str
    may_create: bool
    may_find: bool
    may_take_over: bool
    record: bytes | None = None
    least_epoch: int = 1
    most_epoch: int = MAX_EPOCH
    asks: bool = False


class ClaimStatus(enum.Enum):
    """How a claim ended. Only CREATED and TAKEN change a row."""

    CREATED = "created"  # there was no row; it is this owner's now
    TAKEN = "taken"  # the row is this owner's now, at a higher epoch
    MISSING = "missing"  # there is no row, and the claim may not create one
    EXISTS = "exists"  # there is a row, and the claim may not find one
    NEWER = "newer"  # the row is above the claim's most_epoch, or its deletion is
    OWNED_ELSEWHERE = "owned_elsewhere"  # another owner has the row, and the claim may not take it over


@dataclass(frozen=True, slots=True)
class Claimed:
    """The outcome of a claim.

    CREATED and TAKEN come with the row's epoch, record and last use; OWNED_ELSEWHERE comes with the epoch.
    """

    status: ClaimStatus
    epoch: int = 0
    record: bytes | None = None
    used_at: float = 0.0


class WriteKind(enum.Enum):
    """What a write does to its row."""

    SAVE = "save"  # sets record and used_at
    RELEASE = "release"  # sets record and used_at, and leaves the row to the next claim of any owner
    DELETE = "delete"  # removes the row
    VERIFY = "verify"  # changes nothing


@dataclass(frozen=True, slots=True)
class Write:
    """A change to a row that is owned at `epoch`.

    Without a record, the row's record and used_at stay. A DELETE and a VERIFY ignore both.
    """

    kind: WriteKind
    key: str
    epoch: int
    record: bytes | None
    used_at: float


class WriteStatus(enum.Enum):
    """How a write ended. Only DONE changes a row."""

    DONE = "done"  # the row is this owner's at that epoch
    GONE = "gone"  # there is no row
    NOT_OWNED = "not_owned"  # the row is another owner's, or at another epoch, or released


@dataclass(frozen=True, slots=True)
class WriteOutcome:
    """The outcome of a write.

    NOT_OWNED comes with the row's epoch; `is_own` says that the row is this owner's all the same, at another
    epoch: the reply to a claim was lost, or the row is an older copy. GONE comes with the epoch that the row
    was deleted at, 0 if no deletion is remembered: the row was lost, or deleted while nobody but its first
    owner could have a copy.
    """

    status: WriteStatus
    epoch: int = 0
    is_own: bool = False


WRITTEN = WriteOutcome(WriteStatus.DONE)


class Store(Protocol):
    """A store. A call handles its sequence in order, so a key may come several times in one sequence.

    Calls may overlap, in any order; a caller that needs an order awaits one call after another. Every method
    but `open` raises StoreError when the store cannot be used. The store recovers by itself when the trouble
    is over.
    """

    must_sync: bool
    """Whether a write may be answered from the memory of the store alone, until `sync` says otherwise."""
    disk_problem: str
    """Why nobody can tell when a write is on a disk; empty if the answer to the write tells, or `sync`.

    This and `must_sync` are known once the store is open.
    """

    async def open(self) -> None:
        """Connects to the store, and creates its layout in a new one.

        Raises:
            ConfigError: the store is wrong for good: another program's, of another format version, not
                writable for this user.
            StoreError: the store is away: it can be opened later, by another call.
        """

    async def claim(self, claims: Sequence[Claim]) -> list[Claimed]:
        """Claims rows, each atomically.

        Where there is no row, a claim that may_create makes one, with the claim's record, at an epoch above
        that of a row of the key whose deletion is remembered. Where there is a row, a claim that may not find
        it ends with EXISTS. A row that is released, or this store's own, is TAKEN; another owner's row is
        TAKEN only by a claim that may_take_over, or that asks if the owner is dead. Before all that, a row or
        a remembered deletion above the claim's most_epoch ends it with NEWER.

        A claim whose reply was lost may have been applied. Then the row is this store's own, and a repeated
        claim that may find it takes it.
        """

    async def write(self, writes: Sequence[Write], *, to_disk: bool = False) -> list[WriteOutcome]:
        """Writes rows, each atomically, and returns how each write ended.

        With `to_disk`, `sync` waits for these writes. If such a write fails, nobody can wait any longer for
        those before it.

        Writes can be repeated when their replies were lost. A SAVE and a RELEASE are DONE again until the row
        is claimed; a repeated DELETE is GONE.

        The deletion of a row that has had several owners is remembered for a day, with its epoch: an earlier
        owner's copy must not bring the session back.
        """

    async def sync(self) -> None:
        """Returns when the writes with `to_disk` since the last call are on the disk.

        Not to be called while such a write is under way; later ones may come while this call waits.

        Raises:
            StoreError: nobody knows whether they are.
        """

    async def expire(self, before: float, limit: int) -> list[str]:
        """Deletes up to `limit` rows of any owner that were last used before an instant, longest idle first.

        Returns their keys. Deletions are remembered as those of `write` are.
        """

    async def asked_for(self) -> list[str]:
        """Waits until other owners ask for rows of this one, a second or so at most, and returns the keys.

        A key may be of a row that is not this owner's any more. An owner that does not call this method again
        and again may count as dead after some seconds, one that has closed its store counts as dead at once.
        """

    async def incarnation(self) -> str:
        """Returns the name of the database's run. A run with another name may have lost earlier writes."""

    async def check(self) -> None:
        """Raises StoreError if the store cannot be written now."""

    async def close(self) -> None:
        """Disconnects. Rows stay owned. May be called twice, and after an `open` that failed."""


def new_owner() -> str:
    """Returns a random token, which no other store object has."""
    return secrets.token_hex(8)

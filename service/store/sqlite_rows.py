"""The rows of an SQLite store: their layout, and claims, writes and expiry in a transaction of the caller's.

Does not know files, threads or other processes.

A statement covers many rows: each statement gives up Python's lock, and must get it back from an event loop
that may be busy. Row by row that made 10,000 writes take over a second instead of a fifth of one.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from service.store.base import Claim, Claimed, Kind, Standing, Write

Database = sqlite3.Connection
Keyed = TypeVar("Keyed", Claim, Write)

LEAST_SQLITE = (3, 33, 0)  # for UPDATE ... FROM
FORMAT_VERSION = 1
_CHUNK_ROWS = 100  # more gain nothing; SQLite before 3.32 took 999 values in a statement

# The last owner's token stays when a row is released, so that a repeated release is known as such.
LAYOUT = (
    """
    CREATE TABLE sessions (
        key TEXT PRIMARY KEY,
        epoch INTEGER NOT NULL,
        owner TEXT NOT NULL,
        is_released INTEGER NOT NULL,
        used_at REAL NOT NULL,
        record BLOB
    )""",
    "CREATE INDEX sessions_by_use ON sessions (used_at)",
    "CREATE TABLE probe (filler BLOB)",
)

# {rows} becomes a placeholder for each value of each row; what else a statement takes comes after them.
_FIND = """
    WITH given (key) AS (VALUES {rows})
    SELECT sessions.key, epoch, owner, is_released, used_at, record
    FROM given CROSS JOIN sessions ON sessions.key = given.key"""
_CREATE = "INSERT INTO sessions (key, epoch, owner, is_released, used_at, record) VALUES {rows}"
_TAKE = """
    WITH given (key) AS (VALUES {rows})
    UPDATE sessions SET epoch = epoch + 1, owner = ?, is_released = 0 WHERE key IN given"""
# A release, and it alone, holds on a row that is released already: it is a repeated one.
_HOLDS = """
    sessions.key = given.key AND sessions.epoch = given.epoch AND sessions.owner = ?
    AND sessions.is_released <= given.is_released"""
_HELD = f"""
    WITH given (n, key, epoch, is_released) AS (VALUES {{rows}})
    SELECT group_concat(n) FROM given CROSS JOIN sessions ON {_HOLDS}"""  # noqa: S608 (all of it stands here)
_SAVE = f"""
    WITH given (key, epoch, is_released, used_at, record) AS (VALUES {{rows}})
    UPDATE sessions SET is_released = given.is_released, used_at = given.used_at, record = given.record
    FROM given WHERE {_HOLDS}"""  # noqa: S608 (all of it stands here)
_DELETE = "DELETE FROM sessions WHERE key IN (VALUES {rows})"
_IDLE = "SELECT key FROM sessions WHERE used_at < ? ORDER BY used_at LIMIT ?"


def claim(database: Database, claims: Sequence[Claim], owner: str, now: float) -> list[Claimed]:
    """Claims rows for an owner, as `base.Store.claim` describes it."""
    claimed: list[Claimed] = []
    for chunk in _chunks(claims):
        keys = [(one.key,) for one in chunk]
        found = {key: row for key, *row in _run(database, _FIND, keys)}
        outcomes = [_outcome(one, found.get(one.key), owner, now) for one in chunk]
        standings = [outcome.standing for outcome in outcomes]
        created = [
            one for one, standing in zip(chunk, standings, strict=True) if standing is Standing.CREATED
        ]
        taken = [
            (one.key,) for one, standing in zip(chunk, standings, strict=True) if standing is Standing.TAKEN
        ]
        _run(database, _CREATE, [(one.key, 1, owner, 0, now, one.record) for one in created])
        _run(database, _TAKE, taken, owner)
        claimed += outcomes
    return claimed


def _outcome(one: Claim, row: list[Any] | None, owner: str, now: float) -> Claimed:
    if row is None:
        return Claimed(Standing.CREATED, 1, one.record, now) if one.may_create else Claimed(Standing.MISSING)
    if not one.may_find:
        return Claimed(Standing.EXISTS)
    epoch, last_owner, is_released, used_at, record = row
    if is_released or last_owner == owner or one.may_take_over:
        return Claimed(Standing.TAKEN, epoch + 1, record, used_at)
    return Claimed(Standing.HELD, epoch)


def write(database: Database, writes: Sequence[Write], owner: str) -> list[bool]:
    """Writes rows of an owner, as `base.Store.write` describes it."""
    written: list[bool] = []
    for chunk in _chunks(writes):
        held = _save(database, [one for one in chunk if one.kind is not Kind.DELETE], owner)
        held |= _delete(database, [one for one in chunk if one.kind is Kind.DELETE], owner)
        written += [one.key in held for one in chunk]
    return written


def _save(database: Database, writes: list[Write], owner: str) -> set[str]:
    """Saves and releases; returns the keys of those that the owner holds."""
    rows = [(one.key, one.epoch, one.kind is Kind.RELEASE, one.used_at, one.record) for one in writes]
    num_saved = _run(database, _SAVE, rows, owner).rowcount if rows else 0
    if num_saved == len(writes):
        return {one.key for one in writes}
    # Saving moves nothing that decides who holds a row, so this can be asked afterwards: it is rare.
    return _held(database, writes, owner)


def _delete(database: Database, writes: list[Write], owner: str) -> set[str]:
    held = _held(database, writes, owner)
    _run(database, _DELETE, [(key,) for key in held])
    return held


def _held(database: Database, writes: list[Write], owner: str) -> set[str]:
    """Returns the keys of the writes that the owner may do; the answer is one row, for the lock's sake."""
    if not writes:
        return set()
    rows = [(n, one.key, one.epoch, one.kind is Kind.RELEASE) for n, one in enumerate(writes)]
    numbers: str | None = _run(database, _HELD, rows, owner).fetchone()[0]
    return {writes[int(number)].key for number in numbers.split(",")} if numbers else set()


def expire(database: Database, before: float, limit: int) -> list[str]:
    """Deletes the rows that are idle longest, of those last used before an instant; returns their keys."""
    keys = [key for (key,) in database.execute(_IDLE, (before, limit))]
    for start in range(0, len(keys), _CHUNK_ROWS):
        _run(database, _DELETE, [(key,) for key in keys[start : start + _CHUNK_ROWS]])
    return keys


def _run(database: Database, statement: str, rows: Sequence[tuple[Any, ...]], *rest: Any) -> sqlite3.Cursor:
    """Runs a statement over rows of one length; over none, it is not run."""
    if not rows:
        return database.cursor()
    row = f"({', '.join('?' * len(rows[0]))})"
    values = [value for row in rows for value in row]
    return database.execute(statement.format(rows=", ".join([row] * len(rows))), [*values, *rest])


def _chunks(items: Sequence[Keyed]) -> Iterator[list[Keyed]]:
    """Cuts a sequence into short lists with each key once: within a statement there is no order."""
    chunk: dict[str, Keyed] = {}
    for item in items:
        if item.key in chunk or len(chunk) == _CHUNK_ROWS:
            yield list(chunk.values())
            chunk = {}
        chunk[item.key] = item
    if chunk:
        yield list(chunk.values())

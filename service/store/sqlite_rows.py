"""The rows of an SQLite store: their layout, claims, writes and expiry, within the caller's transaction.

Does not know files, threads or other processes.

A statement covers many rows. Each statement gives up Python's lock, and must get the lock back from an event
loop that may be busy: row by row, 10,000 writes took over a second, and this way a fifth of a second.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from service.store.base import (
    WRITTEN,
    Claim,
    Claimed,
    ClaimStatus,
    Write,
    WriteKind,
    WriteOutcome,
    WriteStatus,
)

Database = sqlite3.Connection
Keyed = TypeVar("Keyed", Claim, Write)

LEAST_SQLITE = (3, 33, 0)  # for UPDATE ... FROM
FORMAT_VERSION = 1
_CHUNK_ROWS = 100  # rows a statement; more are no faster, and SQLite before 3.32 takes 999 values at most

# A released row keeps its last owner's token, so that a repeated release is recognised.
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
# Deleted rows that had several owners, with their epochs, and rows that other owners ask for. Not a part of
# the layout: files of the first release lack them, and servers of the first release do not need them.
ADDITIONS = (
    "CREATE TABLE IF NOT EXISTS ended (key TEXT PRIMARY KEY, epoch INTEGER NOT NULL, ended_at REAL NOT NULL)",
    "CREATE INDEX IF NOT EXISTS ended_by_time ON ended (ended_at)",
    "CREATE TABLE IF NOT EXISTS asked (key TEXT PRIMARY KEY, owner TEXT NOT NULL)",
)
_ENDED_SECONDS = 86400.0

# {rows} becomes a placeholder for each value of each row. The statement's other values come after them.
_FIND = """
    WITH given (key) AS (VALUES {rows})
    SELECT sessions.key, epoch, owner, is_released, used_at, record
    FROM given CROSS JOIN sessions ON sessions.key = given.key"""
_OWNER, _IS_RELEASED = 1, 2  # in a row that was found, after its key
_CREATE = "INSERT INTO sessions (key, epoch, owner, is_released, used_at, record) VALUES {rows}"
_TAKE = """
    WITH given (key, epoch) AS (VALUES {rows})
    UPDATE sessions SET epoch = given.epoch, owner = ?, is_released = 0
    FROM given WHERE sessions.key = given.key"""
# Whether a write may be done. On a released row only a release is done: it is a repeated one.
_MAY_WRITE = """
    sessions.key = given.key AND sessions.epoch = given.epoch AND sessions.owner = ?
    AND sessions.is_released <= given.is_released"""
_WRITABLE = f"""
    WITH given (n, key, epoch, is_released) AS (VALUES {{rows}})
    SELECT group_concat(n) FROM given CROSS JOIN sessions ON {_MAY_WRITE}"""  # noqa: S608 (every part is a constant of this module)
_SAVE = f"""
    WITH given (key, epoch, is_released, used_at, record) AS (VALUES {{rows}})
    UPDATE sessions SET is_released = given.is_released,
        used_at = coalesce(given.used_at, sessions.used_at), record = coalesce(given.record, sessions.record)
    FROM given WHERE {_MAY_WRITE}"""  # noqa: S608 (every part is a constant of this module)
_DELETE = "DELETE FROM sessions WHERE key IN (VALUES {rows})"
_REMEMBER = """
    WITH given (key) AS (VALUES {rows})
    INSERT OR REPLACE INTO ended
    SELECT sessions.key, epoch, ? FROM given CROSS JOIN sessions ON sessions.key = given.key
    WHERE epoch > 1"""
_ENDED = "SELECT key, epoch FROM ended WHERE key IN (VALUES {rows})"
_FORGET = "DELETE FROM ended WHERE key IN (VALUES {rows})"
_FORGET_OLD = "DELETE FROM ended WHERE ended_at < ?"
_ASK = "INSERT OR REPLACE INTO asked (key, owner) VALUES {rows}"
_ASKED = "SELECT key FROM asked WHERE owner = ?"
_ANSWERED = "DELETE FROM asked WHERE key IN (VALUES {rows})"
_IDLE = "SELECT key FROM sessions WHERE used_at < ? ORDER BY used_at LIMIT ?"


def claim(
    database: Database, claims: Sequence[Claim], owner: str, now: float, *, is_alive: Callable[[str], bool]
) -> list[Claimed]:
    """Claims rows for an owner, as `base.Store.claim` describes it; `is_alive` tells of other owners."""
    claimed: list[Claimed] = []
    for chunk in _chunks(claims):
        keys = [(one.key,) for one in chunk]
        found = {key: row for key, *row in _run(database, _FIND, keys)}
        ended = dict(_run(database, _ENDED, [key for key in keys if key[0] not in found]).fetchall())
        _release_of_dead(chunk, found, owner, is_alive)
        outcomes = [_outcome(one, found.get(one.key), ended.get(one.key, 0), owner, now) for one in chunk]
        by_status: dict[ClaimStatus, list[tuple[Claim, int]]] = {status: [] for status in ClaimStatus}
        for one, outcome in zip(chunk, outcomes, strict=True):
            by_status[outcome.status].append((one, outcome.epoch))
        created = by_status[ClaimStatus.CREATED]
        _run(database, _CREATE, [(one.key, epoch, owner, 0, now, one.record) for one, epoch in created])
        _run(database, _FORGET, [(one.key,) for one, _ in created if one.key in ended])
        taken = by_status[ClaimStatus.TAKEN]
        _run(database, _TAKE, [(one.key, epoch) for one, epoch in taken], owner)
        _run(database, _ANSWERED, [(one.key,) for one, _ in taken if one.asks])
        elsewhere = by_status[ClaimStatus.OWNED_ELSEWHERE]
        _run(database, _ASK, [(one.key, found[one.key][_OWNER]) for one, _ in elsewhere if one.asks])
        claimed += outcomes
    return claimed


def _release_of_dead(
    claims: list[Claim], found: dict[str, list[Any]], owner: str, is_alive: Callable[[str], bool]
) -> None:
    """Treats the rows of dead owners as released, for the claims that ask."""
    asked = [found[one.key] for one in claims if one.asks and one.key in found]
    others = {row[_OWNER] for row in asked} - {owner}
    dead = {other for other in others if not is_alive(other)}
    for row in asked:
        row[_IS_RELEASED] |= row[_OWNER] in dead


def asked_for(database: Database, owner: str) -> list[str]:
    """Returns the keys of an owner's rows that others ask for."""
    return [key for (key,) in database.execute(_ASKED, (owner,))]


def forget_asked(database: Database, keys: list[str]) -> None:
    """Forgets that rows were asked for."""
    for start in range(0, len(keys), _CHUNK_ROWS):
        _run(database, _ANSWERED, [(key,) for key in keys[start : start + _CHUNK_ROWS]])


def _outcome(one: Claim, row: list[Any] | None, ended: int, owner: str, now: float) -> Claimed:
    last = ended if row is None else row[0]
    if last > one.most_epoch:
        return Claimed(ClaimStatus.NEWER, last)
    if row is None and one.may_create:
        return Claimed(ClaimStatus.CREATED, max(one.least_epoch, last + 1), one.record, now)
    if row is None:
        return Claimed(ClaimStatus.MISSING)
    if not one.may_find:
        return Claimed(ClaimStatus.EXISTS)
    epoch, last_owner, is_released, used_at, record = row
    if is_released or last_owner == owner or one.may_take_over:
        return Claimed(ClaimStatus.TAKEN, max(one.least_epoch, epoch + 1), record, used_at)
    return Claimed(ClaimStatus.OWNED_ELSEWHERE, epoch)


def write(database: Database, writes: Sequence[Write], owner: str, now: float) -> list[WriteOutcome]:
    """Writes rows of an owner, as `base.Store.write` describes it."""
    written: list[WriteOutcome] = []
    for chunk in _chunks(writes):
        by_kind: dict[WriteKind, list[Write]] = {kind: [] for kind in WriteKind}
        for one in chunk:
            by_kind[one.kind].append(one)
        done = _save(database, by_kind[WriteKind.SAVE] + by_kind[WriteKind.RELEASE], owner)
        done |= _writable(database, by_kind[WriteKind.VERIFY], owner)
        done |= _delete(database, by_kind[WriteKind.DELETE], owner, now)
        refused = _refusals(database, [one.key for one in chunk if one.key not in done], owner)
        written += [refused.get(one.key, WRITTEN) for one in chunk]
    return written


def _save(database: Database, writes: list[Write], owner: str) -> set[str]:
    """Saves and releases rows. Returns the keys of the writes that were done."""
    rows = [
        (
            one.key,
            one.epoch,
            one.kind is WriteKind.RELEASE,
            None if one.record is None else one.used_at,
            one.record,
        )
        for one in writes
    ]
    num_saved = _run(database, _SAVE, rows, owner).rowcount if rows else 0
    if num_saved == len(writes):
        return {one.key for one in writes}
    # Some were not done, which is rare. The question has the same answer after the save as before: a save
    # changes nothing that _MAY_WRITE reads, and a release may be repeated.
    return _writable(database, writes, owner)


def _delete(database: Database, writes: list[Write], owner: str, now: float) -> set[str]:
    """Deletes rows. Returns the keys of the writes that were done."""
    keys = _writable(database, writes, owner)
    _remove(database, sorted(keys), now)
    return keys


def _remove(database: Database, keys: list[str], now: float) -> None:
    """Deletes rows, and remembers those that had several owners."""
    rows = [(key,) for key in keys]
    _run(database, _REMEMBER, rows, now)
    _run(database, _DELETE, rows)


def _writable(database: Database, writes: list[Write], owner: str) -> set[str]:
    """Returns the keys of the writes that the owner may do.

    SQLite answers with one row of numbers, as Python's lock changes hands with each row.
    """
    if not writes:
        return set()
    rows = [(n, one.key, one.epoch, one.kind is WriteKind.RELEASE) for n, one in enumerate(writes)]
    numbers: str | None = _run(database, _WRITABLE, rows, owner).fetchone()[0]
    return {writes[int(number)].key for number in numbers.split(",")} if numbers else set()


def _refusals(database: Database, keys: list[str], owner: str) -> dict[str, WriteOutcome]:
    """Returns why writes were not done, by key: the row is gone, or not the owner's at that epoch."""
    rows = [(key,) for key in keys]
    found = {
        key: WriteOutcome(WriteStatus.NOT_OWNED, epoch, is_own=last_owner == owner and not is_released)
        for key, epoch, last_owner, is_released, *_ in _run(database, _FIND, rows)
    }
    ended = dict(_run(database, _ENDED, [row for row in rows if row[0] not in found]).fetchall())
    return {key: found.get(key) or WriteOutcome(WriteStatus.GONE, ended.get(key, 0)) for key in keys}


def expire(database: Database, before: float, limit: int, now: float) -> list[str]:
    """Deletes the rows idle longest of those last used before an instant. Returns their keys."""
    database.execute(_FORGET_OLD, (now - _ENDED_SECONDS,))
    keys = [key for (key,) in database.execute(_IDLE, (before, limit))]
    for start in range(0, len(keys), _CHUNK_ROWS):
        _remove(database, keys[start : start + _CHUNK_ROWS], now)
    return keys


def _run(database: Database, statement: str, rows: Sequence[tuple[Any, ...]], *rest: Any) -> sqlite3.Cursor:
    """Runs a statement over rows of equal length. Without rows, nothing is run."""
    if not rows:
        return database.cursor()
    row = f"({', '.join('?' * len(rows[0]))})"
    values = [value for row in rows for value in row]
    return database.execute(statement.format(rows=", ".join([row] * len(rows))), [*values, *rest])


def _chunks(items: Sequence[Keyed]) -> Iterator[list[Keyed]]:
    """Yields the sequence in short lists, each with a key once: a statement's rows have no order."""
    chunk: dict[str, Keyed] = {}
    for item in items:
        if item.key in chunk or len(chunk) == _CHUNK_ROWS:
            yield list(chunk.values())
            chunk = {}
        chunk[item.key] = item
    if chunk:
        yield list(chunk.values())

"""A store in one SQLite file, which several processes of one machine may share.

Owns the file and the connection. A thread of the store's own does all the work, so that the event loop never
waits for the disk. The file must not be on a network file system: the write-ahead log needs shared memory.
Does not know how rows are laid out.
"""

import asyncio
import contextlib
import os
import pathlib
import sqlite3
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from service.errors import ConfigError
from service.store import sqlite_rows
from service.store.base import Claim, Claimed, StoreError, Write, WriteOutcome, WrongStoreError, new_owner
from service.store.owner_locks import OwnerLocks
from service.store.sqlite_rows import FORMAT_VERSION, LEAST_SQLITE, Database

T = TypeVar("T")

_APPLICATION_ID = int.from_bytes(b"Scel")  # in the file's header, where `file` and other programs look
_BUSY_SECONDS = 5.0  # how long to wait for another process's lock on the file
_RETRY_SECONDS = 0.01
_PROBE_BYTES = 1 << 16
_LOOK_SECONDS = 0.02  # between two looks whether another owner has written to the file
_NUM_LOOKS = 50
_SETTINGS = (
    # A commit that is done is on the disk, and survives a power failure. That takes one fsync a transaction,
    # of any size: a quarter of a millisecond where it was measured. NORMAL would save too little.
    "PRAGMA synchronous = FULL",
    f"PRAGMA cache_size = {-(32 << 10)}",  # in KiB; 10,000 rows fit, so that SQLite writes no page early
    f"PRAGMA journal_size_limit = {64 << 20}",
)

# By the beginning of an error's name in SQLite: what the error means here, and what to do.
_ADVICE = {
    "SQLITE_FULL": "has no room left: free space on its disk",
    "SQLITE_READONLY": "is read-only: let this server write to the file and its folder",
    "SQLITE_PERM": "is read-only: let this server write to the file and its folder",
    "SQLITE_CANTOPEN": "cannot be opened: see that its folder is there and that this server may write to it",
    "SQLITE_BUSY": "was locked for too long: see which other process locks it",
    "SQLITE_NOTADB": "is not an SQLite database: choose another file",
    "SQLITE_CORRUPT": "is damaged: restore it from a copy, or begin with a new file",
    "SQLITE_IOERR": "cannot be read or written: check its disk",
}
# Those that may pass while a server waits. A folder that is not there is a wrong path, and so is a file that
# may not be written: whoever corrects the path starts the server anew.
_PASSING = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL", "SQLITE_FULL", "SQLITE_IOERR")


class SqliteStore:
    """The store in the file at `path`, as `base.Store` describes it.

    `clock` returns Unix seconds, for new rows. The store waits `busy_seconds` for another process's lock.
    """

    must_sync = False
    disk_problem = ""

    def __init__(
        self, path: str, *, clock: Callable[[], float] = time.time, busy_seconds: float = _BUSY_SECONDS
    ) -> None:
        self.owner = new_owner()
        self._path = pathlib.Path(path).absolute()
        self._clock = clock
        self._busy_seconds = busy_seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._is_closed = False
        self._log = _ChangingFile(self._path.with_name(self._path.name + "-wal"))
        # Only the thread uses these three.
        self._database: Database | None = None
        self._file: tuple[int, int] | None = None
        self._locks = OwnerLocks(self._path.with_name(self._path.name + "-owners"), self.owner)

    def __str__(self) -> str:
        return f"sqlite:{self._path}"

    async def open(self) -> None:
        """Opens the file, and creates it if there is none."""
        try:
            await self._on_thread(self._open)
        except WrongStoreError as error:
            raise ConfigError(f"--store: {error}") from error

    async def claim(self, claims: Sequence[Claim]) -> list[Claimed]:
        """Claims rows, in one transaction."""
        now = self._clock()
        return await self._transaction(
            lambda database: sqlite_rows.claim(
                database, claims, self.owner, now, is_alive=self._locks.is_alive
            )
        )

    async def write(self, writes: Sequence[Write], *, to_disk: bool = False) -> list[WriteOutcome]:
        """Writes rows, in one transaction, with one fsync for all."""
        now = self._clock()
        return await self._transaction(lambda database: sqlite_rows.write(database, writes, self.owner, now))

    async def sync(self) -> None:
        """Returns at once: what is committed is on the disk."""

    async def expire(self, before: float, limit: int) -> list[str]:
        """Deletes rows last used before an instant, in one transaction."""
        now = self._clock()
        return await self._transaction(lambda database: sqlite_rows.expire(database, before, limit, now))

    async def asked_for(self) -> list[str]:
        """Waits for a change of the write-ahead log, which any writer makes, and then looks for questions."""
        await self._on_thread(self._locks.hold)
        for _ in range(_NUM_LOOKS):
            if self._log.may_have_changed():
                keys = await self._on_thread(self._asked_for)
                if keys:
                    return keys
            await asyncio.sleep(_LOOK_SECONDS)
        return []

    async def incarnation(self) -> str:
        """Returns the same name always: what is committed to the file stays there."""
        return ""

    async def check(self) -> None:
        """Writes to the file, and deletes what it wrote."""
        await self._on_thread(self._probe)

    async def close(self) -> None:
        """Closes the file, after the calls that came before."""
        if not self._is_closed:
            self._is_closed = True
            await self._on_thread(self._disconnect)
            await self._on_thread(self._locks.release)
            self._thread.shutdown()

    async def _transaction(self, work: Callable[[Database], T]) -> T:
        return await self._on_thread(lambda: self._transact(work))

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._explaining, work)

    # What follows runs on the thread.

    def _explaining(self, work: Callable[[], T]) -> T:
        """Does some work, and turns SQLite's errors into StoreError, with advice."""
        try:
            return work()
        except sqlite3.Error as error:
            # The state of this connection is unknown after an error. The next call makes a new one.
            self._disconnect()
            raise self._explained(error) from error
        except OSError as error:  # of the owners' files
            raise StoreError(f"{self} cannot be used: {error}") from error

    def _explained(self, error: sqlite3.Error) -> StoreError:
        name: str = getattr(error, "sqlite_errorname", "")
        kind = StoreError if name.startswith(_PASSING) else WrongStoreError
        for beginning, advice in _ADVICE.items():
            if name.startswith(beginning):
                return kind(f"{self} {advice} ({error})")
        return kind(f"{self} cannot be used: {error}")

    def _open(self) -> None:
        if sqlite3.sqlite_version_info < LEAST_SQLITE:
            least = ".".join(map(str, LEAST_SQLITE))
            raise WrongStoreError(
                f"SQLite is of version {sqlite3.sqlite_version} here, too old: {least} would do"
            )
        self._database = self._connect(may_create=True)
        self._probe()  # only a write shows whether the file can be written
        self._locks.hold()

    def _connect(self, *, may_create: bool) -> Database:
        mode = "rwc" if may_create else "rw"
        if may_create:
            self._create_private()
        uri = f"file:{urllib.parse.quote(str(self._path))}?mode={mode}"
        database = sqlite3.connect(uri, uri=True, timeout=self._busy_seconds, isolation_level=None)
        try:
            if may_create:
                _lay_out(database)
            self._check_identity(database)
            self._log_ahead(database)
            for statement in sqlite_rows.ADDITIONS:
                database.execute(statement)
            for setting in _SETTINGS:
                database.execute(setting)
            self._file = self._file_now()
        except BaseException:
            database.close()
            raise
        return database

    def _create_private(self) -> None:
        """Creates the file, if there is none, for this user alone: a row has what a client sent."""
        with contextlib.suppress(OSError):  # SQLite says better what is wrong
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))

    def _check_identity(self, database: Database) -> None:
        if _is_empty(database):
            raise StoreError(f"{self} is empty, its sessions are lost: put it back, or start the server anew")
        application, version = _identity(database)
        if application != _APPLICATION_ID:
            raise WrongStoreError(f"{self} is another program's database: choose another file")
        if version != FORMAT_VERSION:
            raise WrongStoreError(
                f"{self} has format version {version}, this server knows {FORMAT_VERSION}: "
                "choose another file"
            )

    def _log_ahead(self, database: Database) -> None:
        """Gives the file a write-ahead log.

        Waits for other processes that do the same at this time: SQLite's own timeout does not cover this.
        """
        deadline = time.monotonic() + self._busy_seconds
        while True:
            try:
                mode = database.execute("PRAGMA journal_mode = WAL").fetchone()[0]
                break
            except sqlite3.OperationalError as error:
                if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_SECONDS)
        if mode != "wal":
            raise WrongStoreError(f"{self} cannot keep a write-ahead log: put it on a local disk")

    def _connected(self) -> Database:
        """Returns the connection; after trouble, a new one.

        A file that is gone is not created again: an empty file would mean that every session is lost.
        """
        if self._database is None:
            self._database = self._connect(may_create=False)
        elif self._file != self._file_now():
            # SQLite would still write to the former file, which no process can open again.
            self._disconnect()
            raise StoreError(
                f"{self} was removed, replaced or emptied: put it back, or start the server anew"
            )
        return self._database

    def _file_now(self) -> tuple[int, int] | None:
        """Returns the device and inode of the file at the path; None if there is no file, or an empty one."""
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return (status.st_dev, status.st_ino) if status.st_size else None

    def _asked_for(self) -> list[str]:
        """Reads what is asked for, which waits for no writer; forgets it if there is anything."""
        keys = sqlite_rows.asked_for(self._connected(), self.owner)
        if keys:
            self._transact(lambda database: sqlite_rows.forget_asked(database, keys))
        return keys

    def _transact(self, work: Callable[[Database], T]) -> T:
        database = self._connected()
        with _transaction(database):
            return work(database)

    def _probe(self) -> None:
        """Commits enough to notice a full disk: one page or two would fit into space that SQLite has free."""
        self._transact(
            lambda database: database.execute("INSERT INTO probe VALUES (zeroblob(?))", [_PROBE_BYTES])
        )
        self._transact(lambda database: database.execute("DELETE FROM probe"))

    def _disconnect(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            with contextlib.suppress(sqlite3.Error):
                database.close()


class _ChangingFile:
    """A file that others write to.

    The clock of a file system has ticks: two writes in one tick leave the same time. So after a change the
    next look reports a change, too.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._has_changed = True

    def may_have_changed(self) -> bool:
        """Returns whether the file may have changed since the last look."""
        try:
            status = os.stat(self._path)
        except OSError:
            now = None
        else:
            now = status.st_mtime_ns, status.st_size
        before, self._has_changed = self._has_changed, now != self._seen
        self._seen = now
        return before or self._has_changed


@contextlib.contextmanager
def _transaction(database: Database) -> Iterator[None]:
    """Commits all that is done within, or nothing. Takes the lock to write at the beginning."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # after some errors SQLite itself has rolled it back
            database.execute("ROLLBACK")
        raise


def _identity(database: Database) -> tuple[int, int]:
    """Returns the application's id and the format's version; zeros for a new database."""
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    return application, version


def _is_empty(database: Database) -> bool:
    (num_tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return not num_tables and _identity(database) == (0, 0)


def _lay_out(database: Database) -> None:
    """Creates the tables of an empty database. Leaves any other database as it is."""
    if not _is_empty(database):
        return
    database.execute("PRAGMA page_size = 8192")  # records of a usual size waste less of 8192 than of 4096
    with _transaction(database):
        if not _is_empty(database):
            return  # another process was first
        for statement in sqlite_rows.LAYOUT:
            database.execute(statement)
        database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {FORMAT_VERSION}")

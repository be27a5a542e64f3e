"""SQLite in trouble: what is refused at the start, what each call says while serving, and recovery."""

import asyncio
import contextlib
import os
import pathlib
import sqlite3
import subprocess
import sys
import tempfile

import pytest

from service.store.base import ClaimStatus, StoreError, Write, WriteKind
from service.store.sqlite import SqliteStore
from tests import redis_server
from tests.unit.service.store.troubles import (
    OPENING,
    Closing,
    check_away,
    check_refused,
    check_trouble,
    claim_status,
    save,
)

NOBODY = 65534  # a user's number


@contextlib.asynccontextmanager
async def sqlite_store(path, kind=SqliteStore):
    """Opens a store that gives up on locks soon."""
    store = kind(path, busy_seconds=0.05)
    async with contextlib.aclosing(Closing(store)):
        await store.open()
        yield store


@pytest.fixture
def unprivileged_folder():
    """Returns a folder of a user to whom permissions apply; the test runs as that user, not as root."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        pathlib.Path(name).chmod(0o777)
        folder = pathlib.Path(name) / "own"
        if user == 0:
            os.seteuid(NOBODY)
        try:
            folder.mkdir()
            yield folder
        finally:
            os.seteuid(user)
            folder.chmod(0o777)


def execute(path, *statements):
    """Executes statements on a database, as another program would."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


async def test_a_missing_folder_is_refused(tmp_path):
    """The store does not make the folder; a folder in place of the file is refused too."""
    await check_refused(SqliteStore(tmp_path / "none" / "s.db"), "cannot be opened", "folder is there")
    await check_refused(SqliteStore(tmp_path), "cannot be opened")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"short", b"garbage " * 4000])
async def test_a_file_that_is_not_a_database_is_refused(tmp_path, content):
    """The file stays as it is."""
    path = tmp_path / "s.db"
    path.write_bytes(content)
    await check_refused(SqliteStore(path), f"sqlite:{path}", "not an SQLite database")
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "statement", ["CREATE TABLE t (x)", "PRAGMA application_id = 7", "PRAGMA user_version = 1"]
)
async def test_another_programs_database_is_refused(tmp_path, statement):
    """The database stays as it is, journal mode included."""
    path = tmp_path / "s.db"
    execute(path, statement)
    content = path.read_bytes()
    await check_refused(SqliteStore(path), "another program's")
    assert path.read_bytes() == content


async def test_another_format_version_is_refused(tmp_path):
    """The message names the file's version and the version that this server knows."""
    path = tmp_path / "s.db"
    async with sqlite_store(path):
        pass
    execute(path, "PRAGMA user_version = 2")
    await check_refused(SqliteStore(path), "format version 2", "knows 1")


async def test_a_read_only_file_is_refused(unprivileged_folder):
    """A file that can be read but not written is not a store."""
    path = unprivileged_folder / "s.db"
    async with sqlite_store(path):
        pass
    path.chmod(0o444)
    await check_refused(SqliteStore(path), "read-only", "let this server write")


async def test_a_read_only_folder_is_refused(unprivileged_folder):
    """SQLite writes its log beside the file."""
    path = unprivileged_folder / "s.db"
    async with sqlite_store(path):
        pass
    unprivileged_folder.chmod(0o555)
    await check_refused(SqliteStore(path), "read-only", "folder")
    await check_refused(SqliteStore(unprivileged_folder / "t.db"), "cannot be opened")


class BoundedStore(SqliteStore):
    """A store whose file may not grow while `is_full`, as on a full disk."""

    is_full = False

    def _connected(self):
        database = super()._connected()
        database.execute(f"PRAGMA max_page_count = {1 if self.is_full else 1 << 30}")
        return database


async def test_a_full_disk_is_an_error_until_there_is_room(tmp_path):
    """Nothing of a write without room is stored, and the store goes on once there is room."""
    async with sqlite_store(tmp_path / "s.db", BoundedStore) as store:
        await store.claim([OPENING])
        await store.write([save(1, bytes(1 << 16))])  # fits into free pages within the file
        store.is_full = True
        with pytest.raises(StoreError, match="no room left: free space"):
            await store.write([save(1, b"lost"), save(1, bytes(1 << 20))])
        with pytest.raises(StoreError, match="no room left: free space"):
            await store.check()
        store.is_full = False
        await store.check()
        (claimed,) = await store.claim([OPENING])
        assert (claimed.epoch, claimed.record) == (2, bytes(1 << 16))


async def test_a_damaged_file_is_an_error_until_it_is_restored(tmp_path):
    """Each call fails until then."""
    path = tmp_path / "s.db"
    async with sqlite_store(path) as store:
        await store.claim([OPENING])
        await store.write([Write(WriteKind.RELEASE, "a", 1, b"stored", 1.0)])
    content = path.read_bytes()
    # The first call connects the store, as after trouble.
    store = SqliteStore(path)
    async with contextlib.aclosing(Closing(store)):
        path.write_bytes(content[:8192] + bytes(range(256)) * 32 * (len(content) // 8192 - 1))
        await check_trouble(store, "damaged", "restore it")
        path.write_bytes(content)
        (claimed,) = await store.claim([OPENING])
        assert (claimed.epoch, claimed.record) == (2, b"stored")


async def test_a_file_that_is_gone_is_an_error_until_it_is_back(tmp_path):
    """An unlinked file would take writes that nobody finds. The store puts no empty file in its place."""
    path, aside = tmp_path / "s.db", tmp_path / "aside.db"
    async with sqlite_store(path) as store:
        await store.claim([OPENING])
        await store.write([save(1, b"stored")])
        path.rename(aside)
        with pytest.raises(StoreError, match="removed, replaced or emptied"):
            await store.check()
        await check_trouble(store, "cannot be opened")
        assert not path.exists()
        aside.rename(path)
        (claimed,) = await store.claim([OPENING])
        assert (claimed.epoch, claimed.record) == (2, b"stored")


async def test_a_file_that_is_cut_to_nothing_is_found_out(tmp_path):
    """Writes to what SQLite has cached would still succeed, and a restart would begin at step 0."""
    path = tmp_path / "s.db"
    async with sqlite_store(path) as store:
        await store.claim([OPENING])
        path.write_bytes(b"")
        with pytest.raises(StoreError, match="removed, replaced or emptied"):
            await store.write([save(1)])
        path.write_bytes(b"")  # what SQLite wrote back when it disconnected
        await check_trouble(store, "is empty, its sessions are lost")


async def test_a_commit_is_synced(tmp_path):
    """A write that is answered survives a power failure, also after trouble made the store connect anew."""
    path, aside = tmp_path / "s.db", tmp_path / "aside.db"

    def setting():
        return store._connected().execute("PRAGMA synchronous").fetchone()

    async with sqlite_store(path) as store:
        assert await store._on_thread(setting) == (2,), "FULL"
        path.rename(aside)
        with pytest.raises(StoreError):
            await store.check()
        aside.rename(path)
        assert await store._on_thread(setting) == (2,)


async def test_a_new_file_is_for_its_user_alone(tmp_path):
    """A row has what a client sent. The mode of a file that exists already stays."""
    path, theirs = tmp_path / "s.db", tmp_path / "theirs.db"
    theirs.touch(0o644)
    for each, mode in ((path, 0o600), (theirs, 0o644)):
        async with sqlite_store(each) as store:
            await store.claim([OPENING])
            files = [file for file in sorted(tmp_path.glob(f"{each.name}*")) if file.is_file()]
            assert len(files) == 3
            assert [file.stat().st_mode & 0o777 for file in files] == [mode] * 3


LOCK_SCRIPT = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
database.close()
"""


@contextlib.contextmanager
def locked_by_another_process(path):
    """Another process has the lock on a file for as long as the block lasts."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", LOCK_SCRIPT, str(path)], **pipes) as other:
        assert other.stdout.readline() == b"locked\n"
        yield
        other.communicate(timeout=redis_server.BOUND_SECONDS)


async def test_a_file_that_another_process_locks_is_an_error_until_the_lock_is_gone(tmp_path):
    """Each call fails once it has waited for the lock as long as it may."""
    path = tmp_path / "s.db"
    async with sqlite_store(path) as store:
        with locked_by_another_process(path):
            await check_trouble(store, "locked", "other process")
            await check_away(SqliteStore(path, busy_seconds=0.05), "locked")
        assert await claim_status(store) is ClaimStatus.CREATED


async def test_many_stores_open_a_new_file_at_once(tmp_path):
    """The first one lays the file out, and the others wait for it."""
    stores = [SqliteStore(tmp_path / "s.db") for _ in range(8)]
    async with contextlib.AsyncExitStack() as stack:
        for store in stores:
            stack.push_async_callback(store.close)
        await asyncio.gather(*(store.open() for store in stores))
        found = [await claim_status(store) for store in stores]
    assert found == [ClaimStatus.CREATED] + [ClaimStatus.TAKEN] * 7


async def test_an_old_sqlite_is_refused(tmp_path, monkeypatch):
    """A library that lacks what the statements need is named as too old, not as a syntax error."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 26, 0))
    await check_refused(SqliteStore(tmp_path / "s.db"), "too old", "3.33.0")

"""Stores in trouble: what is refused at the start, what is said while serving, and that they recover."""

import asyncio
import contextlib
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import tempfile

import pytest

from service.errors import ConfigError
from service.store.base import Claim, ClaimStatus, StoreError, Write, WriteKind
from service.store.redis import RedisStore
from service.store.sqlite import SqliteStore
from tests import redis_server
from tests.redis_server import RedisServer

OPENING = Claim("a", may_create=True, may_find=True, may_take_over=True)
NOBODY = 65534


def save(epoch, record=b"r", key="a"):
    """Returns a save at an epoch."""
    return Write(WriteKind.SAVE, key, epoch, record, 1.0)


async def standing(store):
    """Claims a row, and returns how that ended."""
    (claimed,) = await store.claim([OPENING])
    return claimed.status


async def refused(store, *words):
    """Opens a store, which must fail with a message that names the flag and has these words."""
    async with contextlib.aclosing(Closing(store)):
        with pytest.raises(ConfigError, match=r"^--store: ") as error:
            await store.open()
    assert all(word in str(error.value) for word in words), error.value
    return str(error.value)


async def in_trouble(store, *words):
    """Has a store do each thing that it does, which must all fail, with a message that has these words."""
    for call in (store.claim([OPENING]), store.write([save(1)]), store.check()):
        with pytest.raises(StoreError) as error:
            await call
        assert all(word in str(error.value) for word in words), error.value


class Closing:
    """A store as aclosing() wants it."""

    def __init__(self, store):
        self.aclose = store.close


# -- SQLite


@contextlib.asynccontextmanager
async def sqlite_store(path, kind=SqliteStore):
    """An open store, that gives up on locks soon."""
    store = kind(path, busy_seconds=0.05)
    async with contextlib.aclosing(Closing(store)):
        await store.open()
        yield store


@pytest.fixture
def unprivileged():
    """A folder of a user who must mind permissions, and the test as that user: root need not mind them."""
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


def foreign(path, *statements):
    """Makes another program's database."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


async def test_a_file_in_no_folder_is_refused(tmp_path):
    """A folder that is not there is not made; a folder is no file."""
    await refused(SqliteStore(tmp_path / "none" / "s.db"), "cannot be opened", "folder is there")
    await refused(SqliteStore(tmp_path), "cannot be opened")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"short", b"garbage " * 4000])
async def test_a_file_that_is_no_database_is_refused(tmp_path, content):
    """Any other file is left as it is."""
    path = tmp_path / "s.db"
    path.write_bytes(content)
    await refused(SqliteStore(path), f"sqlite:{path}", "not an SQLite database")
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "statement", ["CREATE TABLE t (x)", "PRAGMA application_id = 7", "PRAGMA user_version = 1"]
)
async def test_another_programs_database_is_refused(tmp_path, statement):
    """A database of anybody else's is left as it is, journal mode included."""
    path = tmp_path / "s.db"
    foreign(path, statement)
    content = path.read_bytes()
    await refused(SqliteStore(path), "another program's")
    assert path.read_bytes() == content


async def test_another_format_version_is_refused(tmp_path):
    """A file of a server of another age is told by its version."""
    path = tmp_path / "s.db"
    async with sqlite_store(path):
        pass
    foreign(path, "PRAGMA user_version = 2")
    await refused(SqliteStore(path), "format version 2", "knows 1")


async def test_a_read_only_file_is_refused(unprivileged):
    """A file that can be read and not written is no store."""
    path = unprivileged / "s.db"
    async with sqlite_store(path):
        pass
    path.chmod(0o444)
    await refused(SqliteStore(path), "read-only", "let this server write")


async def test_a_read_only_folder_is_refused(unprivileged):
    """The folder must take the log beside the file."""
    path = unprivileged / "s.db"
    async with sqlite_store(path):
        pass
    unprivileged.chmod(0o555)
    await refused(SqliteStore(path), "read-only", "folder")
    await refused(SqliteStore(unprivileged / "t.db"), "cannot be opened")


class Bounded(SqliteStore):
    """A store whose file may not grow, as on a full disk, as long as `is_full`."""

    is_full = False

    def _connected(self):
        database = super()._connected()
        database.execute(f"PRAGMA max_page_count = {1 if self.is_full else 1 << 30}")
        return database


async def test_a_full_disk_is_told_and_got_over(tmp_path):
    """What finds no room is an error, nothing of it is kept, and all goes on when there is room."""
    async with sqlite_store(tmp_path / "s.db", Bounded) as store:
        await store.claim([OPENING])
        await store.write([save(1, bytes(1 << 16))])  # in what was free within the file
        store.is_full = True
        with pytest.raises(StoreError, match="no room left: free space"):
            await store.write([save(1, b"lost"), save(1, bytes(1 << 20))])
        with pytest.raises(StoreError, match="no room left: free space"):
            await store.check()
        store.is_full = False
        await store.check()
        (claimed,) = await store.claim([OPENING])
        assert (claimed.epoch, claimed.record) == (2, bytes(1 << 16))


async def test_a_damaged_file_is_told_and_got_over(tmp_path):
    """Damage is an error each time, until the file is put right."""
    path = tmp_path / "s.db"
    async with sqlite_store(path) as store:
        await store.claim([OPENING])
        await store.write([Write(WriteKind.RELEASE, "a", 1, b"kept", 1.0)])
    content = path.read_bytes()
    # Its first call connects it, as after trouble.
    store = SqliteStore(path)
    async with contextlib.aclosing(Closing(store)):
        path.write_bytes(content[:8192] + bytes(range(256)) * 32 * (len(content) // 8192 - 1))
        await in_trouble(store, "damaged", "restore it")
        path.write_bytes(content)
        (claimed,) = await store.claim([OPENING])
        assert (claimed.epoch, claimed.record) == (2, b"kept")


async def test_a_file_that_is_gone_is_told_and_got_over(tmp_path):
    """An unlinked file would take writes that nobody finds; and no empty one is put in its place."""
    path, aside = tmp_path / "s.db", tmp_path / "aside.db"
    async with sqlite_store(path) as store:
        await store.claim([OPENING])
        await store.write([save(1, b"kept")])
        path.rename(aside)
        with pytest.raises(StoreError, match="removed or replaced"):
            await store.check()
        await in_trouble(store, "cannot be opened")
        assert not path.exists()
        aside.rename(path)
        (claimed,) = await store.claim([OPENING])
        assert (claimed.epoch, claimed.record) == (2, b"kept")


HOLD = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
database.close()
"""


@contextlib.contextmanager
def held_by_another_process(path):
    """Has another process hold the lock to write a file."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], **pipes) as other:
        assert other.stdout.readline() == b"held\n"
        yield
        other.communicate(timeout=redis_server.BOUND_SECONDS)


async def test_a_file_that_another_process_holds_is_told_and_got_over(tmp_path):
    """A lock held too long is an error; when it is gone, all goes on."""
    path = tmp_path / "s.db"
    async with sqlite_store(path) as store:
        with held_by_another_process(path):
            await in_trouble(store, "locked", "other process")
            await refused(SqliteStore(path, busy_seconds=0.05), "locked")
        assert await standing(store) is ClaimStatus.CREATED


async def test_many_open_a_new_file_at_once(tmp_path):
    """Whoever is first lays the file out, and the others wait for it."""
    stores = [SqliteStore(tmp_path / "s.db") for _ in range(8)]
    async with contextlib.AsyncExitStack() as stack:
        for store in stores:
            stack.push_async_callback(store.close)
        await asyncio.gather(*(store.open() for store in stores))
        found = [await standing(store) for store in stores]
    assert found == [ClaimStatus.CREATED] + [ClaimStatus.TAKEN] * 7


async def test_an_old_sqlite_is_refused(tmp_path, monkeypatch):
    """A library without what the statements need says so, not a syntax error."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 26, 0))
    await refused(SqliteStore(tmp_path / "s.db"), "too old", "3.33.0")


# -- Redis


@pytest.fixture
def own_redis(tmp_path):
    """A Redis to be troubled, which wants a password."""
    if redis_server.PROGRAM is None:
        pytest.skip(redis_server.MISSING)
    server = RedisServer(tmp_path, "--requirepass", "s3cret")
    yield server
    server.signal(signal.SIGCONT)
    server.kill()


def url_of(server):
    """Returns a URL that opens the Redis of `own_redis`."""
    return server.url(":s3cret@")


def configure(server, *words):
    """Has the Redis of `own_redis` do something."""
    assert server.command("AUTH", "s3cret", then=words) == "+OK"


@contextlib.asynccontextmanager
async def redis_store(url, **settings):
    """An open store."""
    store = RedisStore(url, **settings)
    async with contextlib.aclosing(Closing(store)):
        await store.open()
        yield store


async def test_a_redis_that_is_not_there_is_refused():
    """Nothing listens, or no such host: the message says where it was looked for."""
    port = redis_server.free_port()
    await refused(
        RedisStore(f"redis://127.0.0.1:{port}/1"), f"redis://127.0.0.1:{port}/1", "cannot be reached"
    )
    await refused(RedisStore("redis://no..host"), "cannot be reached")
    await refused(RedisStore("unix:///nowhere/redis.sock"), "cannot be reached")
    await refused(RedisStore("rediss://127.0.0.1?ssl_ca_certs=/nowhere.pem"), "cannot be reached")


@pytest.mark.parametrize("credentials", ["", ":wr0ng@", "user:wr0ng@"])
async def test_a_wrong_password_is_refused(own_redis, credentials):
    """And is not told, nor is the right one."""
    message = await refused(RedisStore(own_redis.url(credentials)), "password")
    assert "wr0ng" not in message
    assert "s3cret" not in message


async def test_another_format_version_in_redis_is_refused(own_redis):
    """A database of a server of another age, and one that becomes so while serving."""
    async with redis_store(url_of(own_redis)) as store:
        configure(own_redis, "SET", "streamcell:format", "2")
        with pytest.raises(StoreError, match="format version 2"):
            await store.check()
        await refused(RedisStore(url_of(own_redis)), "format version 2", "choose another database")


async def test_a_redis_that_dies_is_told_and_got_over(own_redis):
    """Every call says so while it is down; started again, it serves, its scripts loaded anew."""
    async with redis_store(url_of(own_redis)) as store:
        await standing(store)
        own_redis.kill()
        await in_trouble(store, "cannot be reached", "see that it runs")
        await refused(RedisStore(url_of(own_redis)), "cannot be reached")
        own_redis.start()
        assert await standing(store) is ClaimStatus.CREATED
        assert await store.write([save(1)]) == [True]
        assert await store.expire(2.0, 9) == ["a"]


async def test_a_redis_started_again_is_met_by_an_idle_store(own_redis):
    """A store that slept through it does not fail on its dead connection."""
    async with redis_store(url_of(own_redis)) as store:
        await asyncio.to_thread(own_redis.kill)
        await asyncio.to_thread(own_redis.start)
        assert await standing(store) is ClaimStatus.CREATED


async def test_a_redis_that_hangs_is_told_and_got_over(own_redis):
    """A server that does not answer is an error in bounded time, and its late answers confuse nobody."""
    async with redis_store(url_of(own_redis), timeout_seconds=0.1) as store:
        assert await standing(store) is ClaimStatus.CREATED
        own_redis.signal(signal.SIGSTOP)
        await in_trouble(store, "does not answer in time")
        own_redis.signal(signal.SIGCONT)
        assert await recovered(store)
        assert await standing(store) is ClaimStatus.TAKEN


async def recovered(store):
    """Waits until a store can be used."""
    async with asyncio.timeout(redis_server.BOUND_SECONDS):
        while True:
            with contextlib.suppress(StoreError):
                await store.check()
                return True


async def test_a_full_redis_is_told_and_got_over(own_redis):
    """Out of memory, it refuses what adds something, deletes, and goes on when it may have more."""
    async with redis_store(url_of(own_redis)) as store:
        await standing(store)
        configure(own_redis, "CONFIG", "SET", "maxmemory", "1")
        await in_trouble(store, "no memory left", "maxmemory")
        await refused(RedisStore(url_of(own_redis)), "no memory left")
        configure(own_redis, "CONFIG", "SET", "maxmemory", "0")
        assert await store.write([save(1)]) == [True], "nothing had moved"
        configure(own_redis, "CONFIG", "SET", "maxmemory", "1")
        assert await store.write([Write(WriteKind.DELETE, "a", 1, None, 0.0)]) == [True]


async def test_a_read_only_replica_is_told_and_got_over(own_redis):
    """A replica refuses writes; the same server as primary takes them."""
    async with redis_store(url_of(own_redis)) as store:
        await standing(store)
        configure(own_redis, "REPLICAOF", "127.0.0.1", redis_server.free_port())
        await in_trouble(store, "read-only replica", "name the primary")
        await refused(RedisStore(url_of(own_redis)), "read-only replica")
        configure(own_redis, "REPLICAOF", "NO", "ONE")
        assert await store.write([save(1)]) == [True]


async def test_a_user_without_rights_is_refused(own_redis):
    """What the user of the URL may not do is said by the server's own words."""
    configure(own_redis, "ACL", "SETUSER", "reader", "on", ">r3ad", "~*", "+get")
    message = await refused(RedisStore(own_redis.url("reader:r3ad@")), "forbids its user", "set")
    assert "r3ad@" not in message


class Between:
    """Stands between store and server, and can keep the server's next replies to itself."""

    def __init__(self, port):
        self._port = port
        self.keeps_replies = False
        self.tasks = set()

    @contextlib.asynccontextmanager
    async def listening(self):
        """Listens, at the URL that this gives."""
        server = await asyncio.start_server(self._meet, "127.0.0.1", 0)
        try:
            yield f"redis://:s3cret@127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            await asyncio.gather(*self.tasks)

    async def _meet(self, reader, writer):
        self.tasks.add(asyncio.current_task())
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._port)
        await asyncio.gather(
            self._pass(reader, there_writer), self._pass(there_reader, writer, are_replies=True)
        )

    async def _pass(self, reader, writer, *, are_replies=False):
        with contextlib.suppress(ConnectionError):
            while (some := await reader.read(1 << 16)) and not (are_replies and self.keeps_replies):
                writer.write(some)
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_call_whose_reply_is_lost_can_be_repeated(own_redis):
    """The server did it, the store heard nothing: again, it finds its own work and adds no owner."""
    between = Between(own_redis.port)
    async with between.listening() as url, redis_store(url) as store:

        async def lost(call):
            between.keeps_replies = True
            with pytest.raises(StoreError, match="cannot be reached"):
                await call
            between.keeps_replies = False

        await standing(store)
        await lost(store.claim([OPENING]))
        (claimed,) = await store.claim([OPENING])
        assert (claimed.status, claimed.epoch) == (ClaimStatus.TAKEN, 3)
        release = Write(WriteKind.RELEASE, "a", 3, b"end", 1.0)
        for one, again in ((save(3), True), (release, True)):
            await lost(store.write([one]))
            assert await store.write([one]) == [again]
        (claimed,) = await store.claim([OPENING])
        assert (claimed.epoch, claimed.record) == (4, b"end")
        gone = Write(WriteKind.DELETE, "a", 4, None, 0.0)
        await lost(store.write([gone]))
        assert await store.write([gone]) == [False]


async def test_a_call_that_is_cancelled_leaves_no_reply_behind(own_redis):
    """A caller that goes away in the middle: the next one gets its own answer."""
    async with redis_store(url_of(own_redis)) as store:
        await standing(store)
        own_redis.signal(signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(store.write([save(1)]), 0.05)
        own_redis.signal(signal.SIGCONT)
        (claimed,) = await store.claim([OPENING])
        assert (claimed.status, claimed.epoch) == (ClaimStatus.TAKEN, 2)


async def test_a_redis_that_loads_is_told():
    """A server that reads its rows in answers so to everything: the store says to wait."""

    async def answer(reader, writer):
        while await reader.read(1 << 16):
            writer.write(b"-LOADING Redis is loading the dataset in memory\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        await refused(
            RedisStore(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"), "loading", "wait"
        )


async def test_scripts_that_redis_forgot_are_loaded_again(own_redis):
    """A server may drop its scripts at any time; nobody notices."""
    async with redis_store(url_of(own_redis)) as store:
        await standing(store)
        configure(own_redis, "SCRIPT", "FLUSH")
        assert await standing(store) is ClaimStatus.TAKEN


@pytest.fixture
def tls_url(tmp_path):
    """The URL of a Redis that speaks TLS, with cert.pem of the test's folder."""
    if redis_server.PROGRAM is None:
        pytest.skip(redis_server.MISSING)
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key.pem")
    name = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    certificate = ["openssl", "req", "-x509", *key, "-out", "cert.pem", "-days", "2", *name]
    subprocess.run(certificate, cwd=tmp_path, check=True, capture_output=True)
    port = redis_server.free_port()
    files = ("--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem")
    server = RedisServer(tmp_path, "--tls-port", str(port), *files, "--tls-auth-clients", "no")
    yield f"rediss://localhost:{port}"
    server.kill()


async def test_redis_over_tls(tls_url, tmp_path):
    """With rediss the server's certificate is checked against the authority that the URL names."""
    async with redis_store(f"{tls_url}?ssl_ca_certs={tmp_path}/cert.pem") as store:
        assert await standing(store) is ClaimStatus.CREATED
    await refused(RedisStore(tls_url), "certificate verify failed")

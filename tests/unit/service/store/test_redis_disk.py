"""Redis and its disk: what is known at the start, and when a write counts as on the disk.

A Redis before 7.2 has no WAITAOF: a proxy in front of the server answers instead, so that all answers are
tried on every version. A server that has the command is asked itself, too.
"""

import asyncio
import contextlib

import pytest

from service.store.base import WRITTEN, StoreError
from service.store.redis import RedisStore
from tests import redis_server
from tests.redis_server import RedisServer
from tests.unit.service.store.troubles import OPENING, Closing, claim_status, save

SYNCED, NOT_SYNCED = b"*2\r\n:1\r\n:0\r\n", b"*2\r\n:0\r\n:0\r\n"
UNKNOWN = b"-ERR unknown command 'WAITAOF', with args beginning with: '1' '0' \r\n"
NO_FILE = b"-ERR WAITAOF cannot be used when numlocal is set but appendonly is disabled.\r\n"
FORBIDDEN = b"-NOPERM User default has no permissions to run the 'waitaof' command\r\n"


@pytest.fixture
def appending(tmp_path):
    """A Redis that appends to a file, and syncs the file after each write."""
    if redis_server.PROGRAM is None:
        pytest.skip(redis_server.MISSING)
    server = RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    yield server
    server.kill()


class WaitaofProxy:
    """A proxy that answers WAITAOF itself, with `answer` once `may_answer`; all else it passes on."""

    def __init__(self, port):
        self.answer, self.may_answer = SYNCED, asyncio.Event()
        self.may_answer.set()
        self.questions = []
        self._port, self._tasks, self._clients = port, set(), []

    @contextlib.asynccontextmanager
    async def listening(self):
        """Listens for as long as the block lasts, and yields its URL."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            await asyncio.gather(*self._tasks)

    def cut(self):
        """Ends every connection."""
        for client in self._clients:
            client.close()

    async def _serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        self._clients.append(writer)
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        replies = asyncio.create_task(self._pass_on(server_reader, writer))
        with contextlib.suppress(ConnectionError):
            while some := await reader.read(1 << 16):
                if b"WAITAOF" in some:
                    self.questions.append(some)
                    await self.may_answer.wait()
                    writer.write(self.answer)
                else:
                    server_writer.write(some)
        server_writer.close()
        await replies

    @staticmethod
    async def _pass_on(reader, writer):
        with contextlib.suppress(ConnectionError):
            while some := await reader.read(1 << 16):
                writer.write(some)
        writer.close()


@contextlib.asynccontextmanager
async def opened(url):
    """Opens a store."""
    store = RedisStore(url)
    async with contextlib.aclosing(Closing(store)):
        await store.open()
        yield store


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (SYNCED, ""),
        (UNKNOWN, "older than 7.2"),
        (NO_FILE, "appendonly is disabled"),
        (FORBIDDEN, "forbids its user WAITAOF"),
        (NOT_SYNCED, "has not synced its file within 2.4 s"),
    ],
)
async def test_what_redis_can_tell_is_known_at_the_start(appending, answer, problem):
    """It is asked after a write; whatever it answers, the store can be used."""
    proxy = WaitaofProxy(appending.port)
    proxy.answer = answer
    async with proxy.listening() as url, opened(url) as store:
        assert problem in store.disk_problem
        assert store.must_sync is not bool(store.disk_problem)
        await claim_status(store)
        assert await store.write([save(1)]) == [WRITTEN]


async def test_a_redis_that_speaks_too_early_is_found_out(appending):
    """A file that is synced once a second is not synced at once again, as some releases say it is."""
    assert appending.command("CONFIG", "SET", "appendfsync", "everysec") == "+OK"
    proxy = WaitaofProxy(appending.port)
    async with proxy.listening() as url, opened(url) as store:
        assert "too early" in store.disk_problem
        assert not store.must_sync


async def test_without_a_file_nobody_is_asked(tmp_path):
    """A Redis that appends nothing says so by itself."""
    if redis_server.PROGRAM is None:
        pytest.skip(redis_server.MISSING)
    server = RedisServer(tmp_path)
    try:
        async with opened(server.url()) as store:
            assert "appendonly is no" in store.disk_problem
            assert not store.must_sync
    finally:
        server.kill()


async def test_one_question_is_for_many_writes_and_others_go_on(appending):
    """What is not for the disk asks nothing, and no other call waits for the answer."""
    proxy = WaitaofProxy(appending.port)
    async with proxy.listening() as url, opened(url) as store:
        await claim_status(store)
        await store.write([save(1)])
        proxy.questions.clear()
        await store.write([save(1)] * 250, to_disk=True)
        await store.write([save(1)], to_disk=True)
        assert not proxy.questions
        proxy.may_answer.clear()
        syncing = asyncio.create_task(store.sync())
        async with asyncio.timeout(redis_server.BOUND_SECONDS):
            while not proxy.questions:  # noqa: ASYNC110 (the proxy's task has no event for it)
                await asyncio.sleep(0)
        assert await store.write([save(1)]) == [WRITTEN]
        assert await store.write([save(1)], to_disk=True) == [WRITTEN]
        await store.check()
        assert not syncing.done()
        proxy.may_answer.set()
        await syncing
        assert len(proxy.questions) == 1
        await store.sync()
        assert len(proxy.questions) == 2
        with pytest.raises(StoreError):
            await store.sync()


@pytest.mark.parametrize(
    ("answer", "words"), [(NOT_SYNCED, "not synced its file"), (NO_FILE, "appendonly is disabled")]
)
async def test_a_write_that_is_not_on_the_disk_is_an_error_until_it_is(appending, answer, words):
    """Redis was not in time, or has no file any more; the next write is asked for anew."""
    proxy = WaitaofProxy(appending.port)
    async with proxy.listening() as url, opened(url) as store:
        await claim_status(store)
        await store.write([save(1)], to_disk=True)
        proxy.answer = answer
        with pytest.raises(StoreError, match=words):
            await store.sync()
        proxy.answer = SYNCED
        await store.write([save(1)], to_disk=True)
        await store.sync()


async def test_a_lost_connection_tells_nothing_of_its_writes(appending):
    """A new connection would be answered at once, whether the writes are on the disk or not."""
    proxy = WaitaofProxy(appending.port)
    async with proxy.listening() as url, opened(url) as store:
        await claim_status(store)
        await store.write([save(1)], to_disk=True)
        proxy.cut()
        proxy.questions.clear()
        with pytest.raises(StoreError):
            await store.sync()
        assert not proxy.questions


async def test_a_redis_that_can_tell_is_believed(appending):
    """What it says is on the disk is there after a crash."""
    if appending.command("WAITAOF", 0, 0, 1).startswith("-ERR unknown"):
        pytest.skip("this Redis is older than 7.2")
    async with opened(appending.url()) as store:
        assert store.must_sync
        await claim_status(store)
        await store.write([save(1, b"promised")], to_disk=True)
        await store.sync()
        await asyncio.to_thread(appending.kill)
        await asyncio.to_thread(appending.start)
        (claimed,) = await store.claim([OPENING])
        assert (claimed.epoch, claimed.record) == (2, b"promised")

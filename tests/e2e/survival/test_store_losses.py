"""A Redis that rolls back, fails over and evicts between kills of the server: nothing promised is lost.

What a store loses is in the server's memory, and the server writes it anew. A kill comes once it has.
"""

import asyncio
import contextlib
import random

import pytest
import redis
from grpc import aio
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

from service.engine import snapshot
from service.engine.snapshot import SnapshotError
from tests import redis_server
from tests.e2e.conftest import BOUND_SECONDS
from tests.e2e.survival.fleet import every_front, scaled
from tests.e2e.survival.load import KINDS, DurableStepper, Load
from tests.redis_server import RedisServer

NUM_KILLS = scaled(3, 51)  # of each front: over 100 in all
NUM_MORE_ANSWERS = 3  # of each client, which the older copy lacks
_ROW = "streamcell:session:\0"
_PAUSE_SECONDS = 0.01  # between two looks at a Redis, which can only be asked


class LossyRedis:
    """Redis servers behind one address, one of them the primary; each fault loses rows or their newest state.

    Open connections lead to the server that was the primary when they began.
    """

    def __init__(self, folder, seed):
        self._folder = folder
        self._chance = random.Random(seed)
        self._num_servers = 0
        self._primary = self._new_server()
        self._former = None
        self._connections = set()

    @contextlib.asynccontextmanager
    async def listening(self):
        """Yields the URL at which servers find the primary."""
        proxy = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        try:
            yield f"redis://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        finally:
            proxy.close()
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            for server in filter(None, (self._primary, self._former)):
                server.kill()

    async def roll_back(self, load):
        """Ends the primary without a word, and starts it again with an older copy."""
        assert self._primary.command("SAVE") == "+OK"
        await load.all_answered(NUM_MORE_ANSWERS)
        await asyncio.to_thread(self._primary.kill)
        await asyncio.to_thread(self._primary.start)

    async def fail_over(self, load):
        """Makes a replica the primary that lags behind, and the primary its replica."""
        new = await asyncio.to_thread(self._new_server)
        assert new.command("REPLICAOF", "127.0.0.1", self._primary.port) == "+OK"
        await _until(lambda: _client(new).info("replication")["master_link_status"] == "up")
        assert new.command("REPLICAOF", "NO", "ONE") == "+OK"
        await load.all_answered(NUM_MORE_ANSWERS)
        if self._former is not None:
            self._former.kill()
        self._former, self._primary = self._primary, new
        assert self._former.command("REPLICAOF", "127.0.0.1", new.port) == "+OK"

    async def evict(self, load):
        """Removes half of the rows."""
        await load.all_answered(NUM_MORE_ANSWERS)
        client = _client(self._primary)
        rows = client.keys(_ROW + "*")
        assert client.delete(*self._chance.sample(rows, len(rows) // 2)) == len(rows) // 2

    async def until_stored(self, num_steps):
        """Waits until the primary has so many steps of each session."""
        client = _client(self._primary)
        await _until(lambda: all(_num_stored(client, name) >= count for name, count in num_steps.items()))

    def _new_server(self):
        self._num_servers += 1
        folder = self._folder / str(self._num_servers)
        folder.mkdir()
        return RedisServer(folder)

    async def _connect(self, reader, writer):
        self._connections.add(asyncio.current_task())
        try:
            with contextlib.suppress(OSError):
                there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._primary.port)
                await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
        finally:
            writer.close()
            self._connections.discard(asyncio.current_task())


async def _pump(reader, writer):
    try:
        while piece := await reader.read(1 << 16):
            writer.write(piece)
            await writer.drain()
    finally:
        writer.close()


async def _until(holds):
    async with asyncio.timeout(BOUND_SECONDS):
        while not await asyncio.to_thread(holds):  # noqa: ASYNC110 (a Redis can only be asked)
            await asyncio.sleep(_PAUSE_SECONDS)


def _client(server):
    return redis.Redis(port=server.port)


def _num_stored(client, session_id):
    """Returns how many steps of a session a Redis has; -1 if it has no row, or an empty one."""
    record = client.hget(_ROW + session_id, "record")
    try:
        return int(snapshot.decode(record or b"").progress.next_step[0])
    except SnapshotError:
        return -1


async def promised(replica, load):
    """Returns how many steps of each session a server has reported as stored."""
    async with aio.insecure_channel(replica.listen) as channel:
        stub = stubs.StreamcellServiceStub(channel)
        requests = [pb.GetSessionRequest(session_id=each) for each in load.session_ids]
        replies = await asyncio.gather(*(stub.GetSession(each, timeout=BOUND_SECONDS) for each in requests))
    return {reply.session.session_id: reply.session.num_durable_steps for reply in replies}


@every_front("grpcio")
async def test_nothing_stored_is_lost_by_kills_between_losses_of_the_store(new_replica, model, tmp_path):
    """The store rolls back, fails over and evicts in turn; each time the server is killed afterwards."""
    if redis_server.PROGRAM is None:
        pytest.skip(redis_server.MISSING)
    store = LossyRedis(tmp_path, seed=4)
    async with store.listening() as url:
        replica = new_replica("--store", url, "--checkpoint-interval-seconds", "0.1")
        await replica.start()
        async with Load(replica.listen, model, 9, num_each=1, kinds=(*KINDS, DurableStepper)) as load:
            for number in range(NUM_KILLS):
                await load.all_answered()
                await (store.roll_back, store.fail_over, store.evict)[number % 3](load)
                await store.until_stored(await promised(replica, load))
                await replica.kill()
                await replica.start()
            await load.all_answered()

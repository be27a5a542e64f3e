"""Stores that go away and come back, that are full, or that cannot be used at all."""

import asyncio
import contextlib
import sqlite3
import subprocess

import pytest
from grpc import aio
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

from tests import redis_server
from tests.e2e.survival.fleet import MODEL, every_front, scaled
from tests.e2e.survival.load import Load
from tests.integration.conftest import BOUND_SECONDS, refusal

NUM_OUTAGES = scaled(1, 10)
KEEPING = ("--appendonly", "yes", "--appendfsync", "always")
DISK_MIB = 4


@pytest.fixture
def own_redis(tmp_path, request):
    """A Redis that the test may kill: one that keeps its rows, or none."""
    if redis_server.PROGRAM is None:
        pytest.skip(redis_server.MISSING)
    server = redis_server.RedisServer(tmp_path, *request.param)
    yield server
    server.kill()


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def no_room(folder):
    """Fills a disk to its last byte for as long as the block lasts."""
    path = folder / "filler"
    with open(path, "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(bytes(4096)):
            pass
    yield
    path.unlink()


async def outage(seat, stub, load):
    """Goes through the time in which a store is gone: serving goes on, and says what it cannot do."""
    assert await seat.until("streamcell_store_up", lambda value: value == 0) == 0
    await load.everyone_moves(10)
    assert await seat.until("streamcell_store_lag_seconds", lambda value: value > 0)
    step = pb.StepRequest(session_id="durable", x=[0.5])
    assert (await refusal(stub.Step(step))).reason == "STORE_UNAVAILABLE"
    new = pb.OpenSessionRequest(session_id="new", model=MODEL)
    assert (await refusal(stub.OpenSession(new))).reason == "STORE_UNAVAILABLE"


async def recovery(seat, stub, load):
    """Goes through the time after: what was refused is done, and all is stored again."""
    await seat.until("streamcell_store_up", lambda value: value == 1)
    await load.everyone_moves(10)
    step = await stub.Step(pb.StepRequest(session_id="durable", x=[0.5]))
    assert step.num_durable_steps == step.step_index + 1


async def all_stored(seat, stub, session_ids):
    """Waits until all steps of sessions are in the store, and the metrics say so."""
    async with asyncio.timeout(BOUND_SECONDS):
        for session_id in session_ids:
            while True:
                session = (await stub.GetSession(pb.GetSessionRequest(session_id=session_id))).session
                if session.num_durable_steps == session.next_step_index:
                    break
    await seat.until("streamcell_store_lag_seconds", lambda value: value == 0)


@pytest.mark.parametrize(
    ("own_redis", "front"),
    scaled(
        [(KEEPING, "envoy"), ((), "grpcio")],
        [(flags, front) for flags in (KEEPING, ()) for front in ("grpcio", "envoy")],
    ),
    indirect=["own_redis"],
    ids=lambda value: value if isinstance(value, str) else "kept" if value else "empty",
)
async def test_redis_is_killed_and_started_again_under_load(new_seat, own_redis, truth):
    """Predictions go on, and all is stored again after, though the store may come back with nothing in it."""
    seat = new_seat("--store", own_redis.url(), "--checkpoint-interval-seconds", "0.1")
    await seat.start()
    async with aio.insecure_channel(seat.listen) as channel:
        stub = stubs.StreamcellServiceStub(channel)
        await stub.OpenSession(pb.OpenSessionRequest(session_id="durable", model=MODEL, durable=True))
        async with Load(seat.listen, truth, 8, num_each=1) as load:
            for _ in range(NUM_OUTAGES):
                await load.everyone_moves()
                own_redis.kill()
                await outage(seat, stub, load)
                await asyncio.to_thread(own_redis.start)
                await recovery(seat, stub, load)
        await all_stored(seat, stub, load.session_ids)


@every_front("grpcio")
async def test_a_full_disk_is_an_outage_until_there_is_room(new_seat, small_disk, truth):
    """SQLite's file cannot grow: the log says so once, the metrics do, and whoever needs the store hears."""
    seat = new_seat("--store", f"sqlite:{small_disk}/sessions.db", "--checkpoint-interval-seconds", "0.1")
    await seat.start()
    async with aio.insecure_channel(seat.listen) as channel:
        stub = stubs.StreamcellServiceStub(channel)
        await stub.OpenSession(pb.OpenSessionRequest(session_id="durable", model=MODEL, durable=True))
        async with Load(seat.listen, truth, 9, num_each=1) as load:
            await load.everyone_moves()
            with no_room(small_disk):
                await outage(seat, stub, load)
            await recovery(seat, stub, load)
        await all_stored(seat, stub, load.session_ids)
    lost = await asyncio.to_thread(seat.server.event, "store_lost")
    assert "has no room left: free space on its disk" in lost["why"]
    await asyncio.to_thread(seat.server.event, "store_back")
    await seat.drain()
    assert not [line for line in seat.server.lines if "store_lost" in line][1:]


def database(path, *settings):
    """Makes an SQLite database, with settings in its header; returns its URL."""
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.execute("CREATE TABLE t (x)")
        for setting in settings:
            made.execute(f"PRAGMA {setting}")
    return f"sqlite:{path}"


@every_front("grpcio")
def test_a_store_that_cannot_be_used_is_one_line_and_status_2(start_server, tmp_path):
    """Whatever is wrong with it: the server does not begin without it, nor with an empty one in its place."""
    ours = f"application_id = {int.from_bytes(b'Scel')}"
    stores = {
        database(tmp_path / "foreign.db", "application_id = 7"): "is another program's database",
        database(tmp_path / "newer.db", ours, "user_version = 99"): "has format version 99",
        "sqlite:/proc/sessions.db": "cannot be opened",  # where nobody can write, the administrator included
    }
    servers = {start_server("--store", url): said for url, said in stores.items()}
    for server, said in servers.items():
        assert server.wait() == 2
        errors = [line for line in server.lines if not line.startswith("{")]
        assert len(errors) == 1, errors
        assert errors[0].startswith("streamcell: --store: ")
        assert said in errors[0]

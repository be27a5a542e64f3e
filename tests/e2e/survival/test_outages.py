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
from tests.e2e.conftest import BOUND_SECONDS
from tests.e2e.survival.fleet import MODEL, every_front, scaled
from tests.e2e.survival.load import Load
from tests.integration.conftest import refusal

NUM_OUTAGES = scaled(1, 10)
APPEND_ONLY = ("--appendonly", "yes", "--appendfsync", "always")
DISK_MIB = 4


@pytest.fixture
def own_redis(tmp_path, request):
    """Returns a Redis that the test may kill: it comes back with its rows, or with none."""
    if redis_server.PROGRAM is None:
        pytest.skip(redis_server.MISSING)
    server = redis_server.RedisServer(tmp_path, *request.param)
    yield server
    server.kill()


@pytest.fixture
def small_disk(tmp_path):
    """Returns a folder on a small disk of its own."""
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


async def outage(replica, stub, load):
    """Checks a server while its store is away: it serves, and refuses what needs the store."""
    assert await replica.until_metric("streamcell_store_up", lambda value: value == 0) == 0
    await load.all_answered(10)
    assert await replica.until_metric("streamcell_store_lag_seconds", lambda value: value > 0)
    step = pb.StepRequest(session_id="durable", x=[0.5])
    assert (await refusal(stub.Step(step))).reason == "STORE_UNAVAILABLE"
    new = pb.OpenSessionRequest(session_id="new", model=MODEL)
    assert (await refusal(stub.OpenSession(new))).reason == "STORE_UNAVAILABLE"


async def recovery(replica, stub, load):
    """Checks a server after its store is back: refused requests succeed, and steps are stored."""
    await replica.until_metric("streamcell_store_up", lambda value: value == 1)
    await load.all_answered(10)
    step = await stub.Step(pb.StepRequest(session_id="durable", x=[0.5]))
    assert step.num_durable_steps == step.step_index + 1


async def all_stored(replica, stub, session_ids):
    """Waits until all steps of sessions are in the store, in replies and in the metrics."""
    async with asyncio.timeout(BOUND_SECONDS):
        for session_id in session_ids:
            while True:
                session = (await stub.GetSession(pb.GetSessionRequest(session_id=session_id))).session
                if session.num_durable_steps == session.next_step_index:
                    break
    await replica.until_metric("streamcell_store_lag_seconds", lambda value: value == 0)


@pytest.mark.parametrize(
    ("own_redis", "front"),
    scaled(
        [(APPEND_ONLY, "envoy"), ((), "grpcio")],
        [(flags, front) for flags in (APPEND_ONLY, ()) for front in ("grpcio", "envoy")],
    ),
    indirect=["own_redis"],
    ids=lambda value: value if isinstance(value, str) else "append-only" if value else "empty",
)
async def test_redis_is_killed_and_started_again_under_load(new_replica, own_redis, model):
    """Predictions go on, and all steps are stored afterwards, even if Redis comes back empty."""
    replica = new_replica("--store", own_redis.url(), "--checkpoint-interval-seconds", "0.1")
    await replica.start()
    async with aio.insecure_channel(replica.listen) as channel:
        stub = stubs.StreamcellServiceStub(channel)
        await stub.OpenSession(pb.OpenSessionRequest(session_id="durable", model=MODEL, durable=True))
        async with Load(replica.listen, model, 8, num_each=1) as load:
            for _ in range(NUM_OUTAGES):
                await load.all_answered()
                own_redis.kill()
                await outage(replica, stub, load)
                await asyncio.to_thread(own_redis.start)
                await recovery(replica, stub, load)
        await all_stored(replica, stub, load.session_ids)


@every_front("grpcio")
async def test_a_full_disk_is_an_outage_until_there_is_room(new_replica, small_disk, model):
    """SQLite's file cannot grow: one line in the log, the metrics, and STORE_UNAVAILABLE say so."""
    replica = new_replica(
        "--store", f"sqlite:{small_disk}/sessions.db", "--checkpoint-interval-seconds", "0.1"
    )
    await replica.start()
    async with aio.insecure_channel(replica.listen) as channel:
        stub = stubs.StreamcellServiceStub(channel)
        await stub.OpenSession(pb.OpenSessionRequest(session_id="durable", model=MODEL, durable=True))
        async with Load(replica.listen, model, 9, num_each=1) as load:
            await load.all_answered()
            with no_room(small_disk):
                await outage(replica, stub, load)
            await recovery(replica, stub, load)
        await all_stored(replica, stub, load.session_ids)
    lost = await asyncio.to_thread(replica.server.event, "store_lost")
    assert "has no room left: free space on its disk" in lost["why"]
    await asyncio.to_thread(replica.server.event, "store_back")
    await replica.drain()
    assert not [line for line in replica.server.lines if "store_lost" in line][1:]


def database(path, *settings):
    """Makes an SQLite database with settings in its header, and returns its URL."""
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.execute("CREATE TABLE t (x)")
        for setting in settings:
            made.execute(f"PRAGMA {setting}")
    return f"sqlite:{path}"


@every_front("grpcio")
def test_an_unusable_store_is_one_line_and_status_2(start_server, tmp_path):
    """The server does not start without its store, nor with an empty one in its place."""
    ours = f"application_id = {int.from_bytes(b'Scel')}"
    stores = {
        database(tmp_path / "foreign.db", "application_id = 7"): "is another program's database",
        database(tmp_path / "newer.db", ours, "user_version = 99"): "has format version 99",
        "sqlite:/proc/sessions.db": "cannot be opened",  # no user can write there, not even root
    }
    servers = {start_server("--store", url): said for url, said in stores.items()}
    for server, said in servers.items():
        assert server.wait() == 2
        errors = [line for line in server.lines if not line.startswith("{")]
        assert len(errors) == 1, errors
        assert errors[0].startswith("streamcell: --store: ")
        assert said in errors[0]

"""Rows of a later release, in both stores: refused in words, and left as they were for who reads them."""

import time
import zlib

import pytest
from streamcell.v1 import streamcell_pb2 as pb

from service.engine import snapshot
from service.store.base import Claim, ClaimStatus, Write, WriteKind
from service.store.redis import RedisStore
from service.store.sqlite import SqliteStore
from tests.fakes import Served
from tests.redis_server import BOUND_SECONDS
from tests.unit.service.persistence.sessions import step

KEY = "\0s"


@pytest.fixture(params=["sqlite", "redis"])
def make_store(request, tmp_path):
    """Returns a function that makes stores on one file, or in one Redis."""
    if request.param == "redis":
        url = request.getfixturevalue("empty_redis").url()
        return lambda: RedisStore(url, timeout_seconds=BOUND_SECONDS)
    return lambda: SqliteStore(tmp_path / "s.db", busy_seconds=BOUND_SECONDS)


async def begun(store):
    """Returns a server over a store."""
    served = Served(store=store, clock=time.monotonic_ns, session_ttl_seconds=0)
    await served.write_behind.start()
    return served


def newer(record):
    """Returns a record as a later release might write it: of the next format version, and longer."""
    changed = record[:4] + (snapshot.VERSION + 1).to_bytes(2, "little") + record[6:] + b"more"
    return changed + zlib.crc32(changed).to_bytes(4, "little")


async def claimed(store, *, may_take_over):
    """Claims the row, which must exist."""
    (found,) = await store.claim([Claim(KEY, may_create=False, may_find=True, may_take_over=may_take_over)])
    return found


async def test_a_row_of_a_later_release_is_refused_and_left_as_it_was(make_store):
    """Whatever asks for the session; the row is then released, with its record and its last use."""
    first = await begun(make_store())
    await first.ask("Step", step(step_index=0))
    await first.write_behind.stop()
    later = make_store()
    await later.open()
    found = await claimed(later, may_take_over=False)
    assert found.status is ClaimStatus.TAKEN
    record = newer(found.record)
    await later.write([Write(WriteKind.RELEASE, KEY, found.epoch, record, 1_700_000_000.5)])
    second = await begun(make_store())
    requests = {
        "Step": step(row=1, step_index=1),
        "OpenSession": pb.OpenSessionRequest(session_id="s"),
        "GetSession": pb.GetSessionRequest(session_id="s"),
    }
    for name, request in requests.items():
        refused = await second.refused(name, request)
        assert (refused.code, refused.reason) == (9, "SNAPSHOT_REJECTED")
        versions = f"format version {snapshot.VERSION + 1}; this server reads {snapshot.VERSION}"
        assert versions in refused.message
    assert await second.write_behind.stop()
    found = await claimed(later, may_take_over=False)
    assert found.status is ClaimStatus.TAKEN, "the row is free for a server that reads it"
    assert (found.record, found.used_at) == (record, 1_700_000_000.5)
    await later.close()

"""Durable sessions on a store that answers from memory: they wait for its disk, and nobody else does."""

import asyncio

import pytest
from streamcell.v1 import streamcell_pb2 as pb

from tests.fake_store import FakeStore
from tests.fakes import Served
from tests.unit.service.persistence.sessions import step, until

PROBLEM = "Redis is older than 7.2, and has no WAITAOF"


async def begun(store, **changes):
    """Returns a server over a store; the test stops it."""
    served = Served(store=store, checkpoint_interval_seconds=3600, session_ttl_seconds=0, **changes)
    served.store = store
    await served.write_behind.start()
    return served


@pytest.fixture
async def served():
    """A server whose store has a disk that the test can hold back."""
    store = FakeStore()
    store.must_sync = True
    served = await begun(store)
    yield served
    store.may_sync.set()
    await served.write_behind.abandon()


async def open_durable(served, *names):
    """Opens durable sessions."""
    for name in names:
        await served.ask("OpenSession", pb.OpenSessionRequest(session_id=name, durable=True))


async def test_a_durable_step_waits_for_the_disk(served):
    """Other sessions, new ones too, do not; one question serves all that wait for it."""
    await open_durable(served, *"abc")
    await served.open("free")
    served.store.may_sync.clear()
    num_syncs, num_writes = served.store.num_syncs, served.store.num_writes
    asked = [asyncio.create_task(served.ask("Step", step(name))) for name in "abc"]
    await until(lambda: served.store.num_syncs > num_syncs)
    assert served.store.num_writes == num_writes + 1
    assert (await served.ask("Step", step("free"))).step_index == 0
    await served.open("another")
    assert not any(task.done() for task in asked)
    served.store.may_sync.set()
    assert [(await task).num_durable_steps for task in asked] == [1, 1, 1]
    assert served.store.num_syncs == num_syncs + 1


async def test_steps_that_come_meanwhile_are_written_and_wait_for_the_next_time(served):
    """They are asked for together once the disk has what came before, by whose answer none is answered."""
    await open_durable(served, *"ab")
    served.store.may_sync.clear()
    num_syncs, num_writes = served.store.num_syncs, served.store.num_writes
    first = asyncio.create_task(served.ask("Step", step("a")))
    await until(lambda: served.store.num_syncs > num_syncs)
    later = []
    for name in "ab":
        later.append(asyncio.create_task(served.ask("Step", step(name, 1))))
        await until(lambda: served.store.num_writes == num_writes + 1 + len(later))
    assert served.store.num_syncs == num_syncs + 1
    assert not first.done()
    served.store.may_sync.set()
    served.store.may_sync.clear()  # who waits by now goes on, and nobody else
    assert (await first).num_durable_steps == 1
    await until(lambda: served.store.num_syncs == num_syncs + 2)
    assert not any(task.done() for task in later)
    served.store.may_sync.set()
    assert [(await task).num_durable_steps for task in later] == [2, 1]


async def test_a_write_that_fails_takes_those_before_with_it(served):
    """Nobody can ask any more for what the same connection wrote: it is refused and written again."""
    await open_durable(served, *"ab")
    served.store.may_sync.clear()
    num_syncs, num_writes = served.store.num_syncs, served.store.num_writes
    asked = asyncio.create_task(served.ask("Step", step("a", step_index=0)))
    await until(lambda: served.store.num_syncs > num_syncs)
    again = asyncio.create_task(served.refused("Step", step("a", 1, step_index=1)))
    await until(lambda: served.store.num_writes == num_writes + 2)
    served.store.trouble = "gone"
    assert (await served.refused("Step", step("b", step_index=0))).reason == "STORE_UNAVAILABLE"
    found = await again
    assert (found.reason, "(gone)" in found.message) == ("STORE_UNAVAILABLE", True)
    served.store.trouble = ""
    served.store.may_sync.set()
    assert (await asked).num_durable_steps == 1, "the disk was asked before"
    await until(lambda: not served.write_behind.trouble)
    assert (await served.ask("Step", step("a", 1, step_index=1))).num_durable_steps == 2
    assert (await served.ask("Step", step("b", step_index=0))).num_durable_steps == 1


async def test_a_new_durable_session_is_on_the_disk_when_it_is_open(served):
    """A step with index 0 would otherwise open one that is not durable, after a crash of the store."""
    served.store.may_sync.clear()
    opening = asyncio.create_task(open_durable(served, "s"))
    await until(lambda: served.store.num_syncs)
    assert not opening.done()
    served.store.may_sync.set()
    await opening


async def test_what_is_not_on_the_disk_is_refused_and_written_again(served, logged):
    """The step is applied; its retry is answered once the disk has it. The store itself is not away."""
    await open_durable(served, "s")
    served.store.sync_trouble = "the disk is slow"
    for _ in range(2):
        found = await served.refused("Step", step(step_index=0))
        assert (found.reason, "the disk is slow" in found.message) == ("STORE_UNAVAILABLE", True)
    assert [line["why"] for line in logged("not_on_disk")] == ["the disk is slow"]
    assert served.write_behind.trouble == ""
    await served.open("another")
    served.store.sync_trouble = ""
    found = await served.ask("Step", step(step_index=0))
    assert (found.step_index, found.num_durable_steps) == (0, 1)


@pytest.mark.parametrize("is_synced", [True, False])
async def test_a_drain_ends_once_the_disk_has_the_durable_sessions(served, is_synced):
    """All are asked for together; a drain without an answer is not clean."""
    await open_durable(served, *"abc")
    served.store.may_sync.clear()
    num_syncs = served.store.num_syncs
    asked = [asyncio.create_task(served.ask("Step", step(name))) for name in "abc"]
    await until(lambda: served.store.num_syncs > num_syncs)
    served.store.sync_trouble = "" if is_synced else "the disk is slow"
    stopping = asyncio.create_task(served.write_behind.stop())
    await until(lambda: served.store.num_syncs > num_syncs + 1)
    assert not stopping.done()
    served.store.may_sync.set()
    assert await stopping is is_synced
    assert served.store.num_syncs == num_syncs + 2
    await asyncio.wait(asked)
    assert {row.owner for row in served.store.rows.values()} == {""}, "the rows are released"


@pytest.mark.parametrize("policy", ["warn", "refuse"])
async def test_where_nobody_can_tell_a_flag_decides(policy, logged):
    """A warning at the start and durable sessions as before, or a refusal that names the reason."""
    store = FakeStore()
    store.disk_problem = PROBLEM
    served = await begun(store, durable_without_disk=policy)
    (warning,) = logged("durable_without_disk")
    assert warning["why"] == PROBLEM
    request = pb.OpenSessionRequest(session_id="s", durable=True)
    if policy == "warn":
        await served.ask("OpenSession", request)
        assert (await served.ask("Step", step())).num_durable_steps == 1
    else:
        await served.open("s")
        found = await served.refused("OpenSession", request)
        assert (found.code, found.reason) == (9, "DURABLE_UNSUPPORTED")
        assert PROBLEM in found.message
        assert not (await served.ask("GetSession", pb.GetSessionRequest(session_id="s"))).session.durable
    await served.write_behind.abandon()


async def test_a_durable_session_of_another_server_is_refused_and_left_as_it_is():
    """Where durable sessions are refused, one that the store has is not served as one that is not durable."""
    first = await begun(FakeStore())
    await open_durable(first, "s")
    await first.ask("Step", step())
    await first.write_behind.stop()
    rows = first.store.rows
    record = rows["\0s"].record
    store = FakeStore(rows)
    store.disk_problem = PROBLEM
    second = await begun(store, durable_without_disk="refuse")
    assert (await second.refused("Step", step(step_index=1))).reason == "DURABLE_UNSUPPORTED"
    await until(lambda: not rows["\0s"].owner)
    assert rows["\0s"].record == record
    await second.write_behind.abandon()

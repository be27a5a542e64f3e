"""Writing behind: what is written when, what replies say of it, and an orderly end."""

import asyncio
import contextlib

import numpy as np
import pytest
from streamcell.v1 import streamcell_pb2 as pb

from service.engine import snapshot
from service.store.base import WriteKind
from tests import fakes
from tests.fakes import Alone, bits, talk
from tests.unit.service.persistence.sessions import BOUND_SECONDS, X, resume, step, until_stored


class TestWrites:
    """Changed sessions reach the store, and unchanged ones cost nothing."""

    async def test_a_second_server_continues_where_the_first_was_stored(self, serve):
        """It has the remembered replies, and its predictions have the same bits."""
        first, alone = await serve(), Alone(fakes.recurrence())
        await first.open("s")
        replies = [await first.ask("Step", step(row=row)) for row in range(6)]
        assert b"".join(bits(reply.y) for reply in replies) == alone.fold(X[:6])
        await until_stored(first, num_steps=6)
        second = await serve()
        session = await resume(second)
        assert (session.next_step_index, session.num_durable_steps, session.epoch) == (6, 6, 2)
        again = await second.ask("Step", step(row=5, step_index=5))
        assert bits(again.y) == bits(replies[5].y)
        reply = await second.ask("Step", step(row=6))
        assert (reply.step_index, bits(reply.y)) == (6, alone.step(X[6]))

    async def test_replies_say_what_is_stored(self, serve):
        """Steps, frames and primes say 0 steps before a write, and all steps after it."""
        served = await serve()
        await served.open("s")
        served.store.is_blocked = True
        assert (await served.ask("Step", step())).num_durable_steps == 0
        served.store.is_blocked = False
        await until_stored(served, num_steps=1)
        served.store.is_blocked = True
        assert (await served.ask("Step", step())).num_durable_steps == 1
        primed = await served.ask("Prime", pb.PrimeRequest(session_id="s", x=X[:3].reshape(-1)))
        assert primed.num_durable_steps == 1
        stream = served.stream()
        frame = pb.Frame(session_ids=["s"], x_raw=X[:1].tobytes())
        (found,) = await talk(stream, pb.StreamRequest(frame=frame))
        assert np.frombuffer(found.frame.num_durable_steps_raw, "<u8").tolist() == [1]
        (found,) = await talk(stream, pb.StreamRequest(step=step()))
        assert found.step.num_durable_steps == 1
        served.store.is_blocked = False

    async def test_an_unchanged_session_is_not_written(self, serve):
        """Only sessions that changed since their last write are in the next one."""
        served = await serve()
        await served.open("s", "t")
        await served.ask("Step", step("s"))
        await until_stored(served, num_steps=1)
        count = served.store.num_writes
        await served.ask("Step", step("t"))
        await until_stored(served, "t", 1)
        assert served.store.num_writes == count + 1
        assert served.metrics.registry.get_sample_value("streamcell_store_changed_sessions") == 0

    async def test_a_fault_of_the_store_loses_nothing(self, serve):
        """An exception that is no StoreError is logged, and the write is repeated."""
        served = await serve()
        await served.open("s")
        write = served.store.write

        async def broken(writes):
            served.store.write = write
            raise RuntimeError("a mistake")

        served.store.write = broken
        await served.ask("Step", step())
        await until_stored(served, num_steps=1)


class TestFaults:
    """A fault of the server's own between two writes ends nothing and loses nothing."""

    @pytest.mark.parametrize("place", ["export", "claims"])
    async def test_the_task_goes_on(self, serve, monkeypatch, place):
        """Callers who wait meanwhile are told, the fault is counted, and the next write has everything."""
        served = await serve()
        await served.ask("OpenSession", pb.OpenSessionRequest(session_id="s", durable=True))
        engine, claims = served.engines[0], served.write_behind._claims
        owner, name = (engine.residents, "export") if place == "export" else (claims, "take")
        original = getattr(owner, name)

        def fail_once(*_):
            monkeypatch.setattr(owner, name, original)
            raise MemoryError("injected")

        monkeypatch.setattr(owner, name, fail_once)
        if place == "export":
            assert (await served.refused("Step", step())).reason == "STORE_UNAVAILABLE"
        else:
            await served.open("t")  # answered by the next turn
        assert (await served.ask("Step", step(row=1))).num_durable_steps == (2 if place == "export" else 1)
        await served.open("u")
        count = served.metrics.registry.get_sample_value
        assert count("streamcell_background_faults_total", {"task": "write_behind"}) == 1

    async def test_an_end_with_a_fault_says_what_is_not_stored(self, serve, monkeypatch, logged):
        """The server ends all the same."""
        served = await serve(checkpoint_interval_seconds=3600)
        await served.open("s")
        await served.ask("Step", step())

        def fail(_):
            raise MemoryError("injected")

        monkeypatch.setattr(served.engines[0].residents, "export", fail)
        assert not await served.write_behind.stop()
        (line,) = logged("sessions_not_stored")
        assert (line["num_sessions"], line["why"]) == (1, "a fault of the server's own; its log has it")


class TestEnd:
    """A server that ends writes everything and releases its rows."""

    async def test_another_server_continues_the_sessions_of_a_drained_one(self, serve):
        """Steps that were not stored until then are there; a step without an index continues at once."""
        first, second, alone = (
            await serve(checkpoint_interval_seconds=3600),
            await serve(),
            Alone(fakes.recurrence()),
        )
        await first.open("s")
        for row in range(3):
            assert bits((await first.ask("Step", step(row=row))).y) == alone.step(X[row])
        assert await first.write_behind.stop()
        reply = await second.ask("Step", step(row=3))
        assert (reply.step_index, bits(reply.y)) == (3, alone.step(X[3]))

    async def test_unchanged_sessions_are_released_without_their_states(self, serve):
        """Their rows have the states already."""
        served = await serve(checkpoint_interval_seconds=3600)
        await served.open("s", "t")
        for name in "st":
            await served.ask("Step", step(name))
        await served.catalog.persistence.wait_until_stored(served.catalog.find("", "s"))
        write, seen = served.store.write, []

        async def record(writes):
            seen.extend(writes)
            return await write(writes)

        served.store.write = record
        assert await served.write_behind.stop()
        assert {(each.kind, each.key, each.record is None) for each in seen} == {
            (WriteKind.RELEASE, "\0s", True),
            (WriteKind.RELEASE, "\0t", False),
        }
        rows = served.store.rows
        assert {rows[key].owner for key in ("\0s", "\0t")} == {""}
        assert [int(snapshot.decode(rows[key].record).progress.next_step[0]) for key in ("\0s", "\0t")] == [
            1,
            1,
        ]

    async def test_a_store_that_swallows_the_cancellation_does_not_delay_the_end(self, serve):
        """A write may answer at the moment of its cancellation; everything is written and released then."""
        served = await serve()
        await served.open("s")
        write, began = served.store.write, asyncio.Event()

        async def swallow_cancellation(writes):
            served.store.write = write
            began.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            return await write(writes)

        served.store.write = swallow_cancellation
        await served.ask("Step", step())
        await began.wait()
        async with asyncio.timeout(BOUND_SECONDS) as bound:
            assert await served.write_behind.stop()
        assert not bound.expired()
        row = served.store.rows["\0s"]
        assert (row.owner, snapshot.decode(row.record).progress.next_step[0]) == ("", 1)

    async def test_stop_can_be_cancelled(self, serve):
        """A cancelled stop writes nothing, and a second stop ends the server."""
        served = await serve(checkpoint_interval_seconds=3600)
        await served.open("s")
        ending = asyncio.create_task(served.write_behind.stop())
        await fakes.turn()
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        assert not served.store.num_writes
        assert await served.write_behind.stop()

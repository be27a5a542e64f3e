"""Writes that the store refuses: the session is another server's, or the store lost its row."""

import asyncio
import contextlib
import dataclasses

import pytest
from streamcell.v1 import streamcell_pb2 as pb

from service.engine import snapshot
from service.errors import Reason, StreamcellError
from service.store.base import StoreError
from tests import fakes
from tests.fakes import Alone, bits
from tests.unit.service.persistence.sessions import X, resume, step, until, until_stored

NEVER = {"checkpoint_interval_seconds": 3600}  # a test asks for each write


def stored_steps(served, session_id="s"):
    """Returns how many steps of a session its row holds."""
    record = served.store.rows[f"\0{session_id}"].record
    return int(snapshot.decode(record).progress.next_step[0])


async def write(served, session_id="s"):
    """Waits until a session is written as it is now."""
    await served.catalog.persistence.wait_until_stored(served.catalog.find("", session_id))


async def with_an_older_row(serve):
    """Returns a former owner of a session, and its owner with three steps; its row fell back to before."""
    old, owner = await serve(**NEVER), await serve(**NEVER)
    await old.open("s")
    before = dataclasses.replace(old.store.rows["\0s"])
    assert (await resume(owner)).epoch == 2
    for row in range(3):
        await owner.ask("Step", step(row=row))
    await write(owner)
    owner.store.rows["\0s"] = before
    return old, owner


def is_resident(served, session_id="s"):
    """Returns whether a session is in memory."""
    return served.engines[0].sessions.find(f"\0{session_id}") is not None


class TestRestartedStore:
    """A store that restarted may have lost rows: the server that has the sessions writes them again."""

    @pytest.mark.parametrize("loss", ["all", "some", "another's"])
    async def test_rows_that_the_store_lost_are_written_again(self, serve, loss):
        """Rows may be gone, or back at an earlier owner; no session is fenced by a loss."""
        old, served, alone = await serve(), await serve(), Alone(fakes.recurrence())
        await old.open("s")
        before = dataclasses.replace(old.store.rows["\0s"])
        assert (await resume(served)).epoch == 2
        await served.ask("Step", step(row=0))
        await until_stored(served, num_steps=1)
        alone.step(X[0])
        served.store.run = old.store.run = "second"
        if loss == "all":
            served.store.rows.clear()
        else:
            served.store.rows["\0s"] = before
            before.owner = served.store.owner if loss == "some" else before.owner
        for row in (1, 2):
            assert bits((await served.ask("Step", step(row=row))).y) == alone.step(X[row])
        await until_stored(served, num_steps=3)
        assert stored_steps(served) == 3
        if loss == "another's":  # the earlier owner does not profit from the loss
            await old.ask("Step", step(row=0))
            await until(lambda: not is_resident(old))

    async def test_a_restarted_store_gets_every_session_in_memory(self, serve):
        """Idle sessions too: steps that a reply called stored are stored again."""
        served = await serve()
        await served.open("s")
        await served.ask("Step", step())
        await until_stored(served, num_steps=1)
        served.store.rows.clear()
        served.store.run = "second"
        await until(lambda: "\0s" in served.store.rows)
        assert stored_steps(served) == 1

    async def test_an_older_copy_does_not_count_as_stored(self, serve, monkeypatch):
        """From when the server knows of the loss until the session is written again."""
        old, served = await serve(**NEVER), await serve(**NEVER)
        await old.open("s")
        before = dataclasses.replace(old.store.rows["\0s"])
        await resume(served)
        await served.ask("Step", step())
        await write(served)
        served.store.rows["\0s"] = before
        claim = served.store.claim

        async def claim_and_block(claims):
            claimed = await claim(claims)
            served.store.is_blocked = True
            return claimed

        monkeypatch.setattr(served.store, "claim", claim_and_block)
        num_writes = served.store.num_writes
        writing = asyncio.create_task(write(served))
        await until(lambda: served.store.num_writes == num_writes + 2)  # refused; the next one waits
        assert (await served.ask("Step", step(row=1))).num_durable_steps == 0
        served.store.is_blocked = False
        await writing
        assert (await served.ask("Step", step(row=2))).num_durable_steps == stored_steps(served) >= 1

    @pytest.mark.parametrize("loss", ["gone", "older"])
    async def test_a_drain_writes_and_releases_what_it_has_regained(self, serve, loss):
        """Found lost by the drain's own write, the row is written and released, and the drain is clean."""
        old, served = await serve(**NEVER), await serve(**NEVER)
        await old.open("s")
        before = dataclasses.replace(old.store.rows["\0s"])
        await resume(served)
        await served.ask("Step", step())
        served.store.rows.clear()
        if loss == "older":
            served.store.rows["\0s"] = before
        assert await served.write_behind.stop()
        assert stored_steps(served) == 1
        assert served.store.rows["\0s"].owner == ""

    async def test_a_claim_whose_reply_is_lost_does_not_fence_its_own_server(self, serve, monkeypatch):
        """The row is this server's at a higher epoch than it knows of; nobody else has had the session."""
        served = await serve(**NEVER)
        await served.open("s")
        await served.ask("Step", step())
        served.store.rows.clear()
        claim = served.store.claim

        async def claim_without_reply(claims):
            await claim(claims)
            monkeypatch.setattr(served.store, "claim", claim)
            raise StoreError("the reply is lost")

        monkeypatch.setattr(served.store, "claim", claim_without_reply)
        with pytest.raises(StreamcellError) as caught:
            await write(served)
        assert caught.value.reason is Reason.STORE_UNAVAILABLE
        await until(lambda: not served.write_behind.trouble)
        await served.ask("Step", step(row=1))
        await write(served)
        assert (stored_steps(served), served.store.rows["\0s"].epoch) == (2, 3)


class TestRowsThatAreGone:
    """Rows go while the store runs: deleted by hand, evicted, or expired by a server with a shorter limit."""

    async def test_the_session_is_written_anew(self, serve, logged):
        """At a higher epoch, with the same bits; the log and a metric say so, and nobody is fenced."""
        served, alone = await serve(), Alone(fakes.recurrence())
        await served.open("s")
        assert bits((await served.ask("Step", step())).y) == alone.step(X[0])
        await until_stored(served, num_steps=1)
        served.store.rows.clear()
        assert bits((await served.ask("Step", step(row=1))).y) == alone.step(X[1])
        await until_stored(served, num_steps=2)
        assert (stored_steps(served), served.store.rows["\0s"].epoch) == (2, 2)
        assert bits((await served.ask("Step", step(row=2))).y) == alone.step(X[2])
        values = served.metrics.registry.get_sample_value
        assert values("streamcell_store_rows_lost_total") == 1
        assert values("streamcell_sessions_fenced_total", {"model": "recurrence", "version": "1"}) in (
            None,
            0,
        )
        await until(lambda: logged("store_lost_rows"))
        assert logged("store_lost_rows")[0]["num_rows"] == 1

    async def test_one_lost_row_has_all_sessions_written_again(self, serve):
        """The others' rows may be gone as well, and their clients were told that they are stored."""
        served = await serve()
        await served.open("s", "idle")
        for name in ("s", "idle"):
            await served.ask("Step", step(name))
            await until_stored(served, name, 1)
        served.store.rows.clear()
        await served.ask("Step", step("s", row=1))
        await until(lambda: "\0idle" in served.store.rows)
        assert stored_steps(served, "idle") == 1

    async def test_a_durable_step_waits_for_the_new_row(self, serve):
        """Its answer says that the step is stored, and it is."""
        served = await serve(**NEVER)
        await served.ask("OpenSession", pb.OpenSessionRequest(session_id="s", durable=True))
        served.store.rows.clear()
        assert (await served.ask("Step", step())).num_durable_steps == 1
        assert stored_steps(served) == 1

    async def test_durable_steps_of_a_stream_keep_their_order(self, serve):
        """The first waits for a write that is refused, and for the next one; the second came meanwhile."""
        served = await serve(**NEVER)
        await served.ask("OpenSession", pb.OpenSessionRequest(session_id="s", durable=True))
        served.store.rows.clear()
        served.store.is_blocked = True
        stream = served.stream()
        stream.receive(pb.StreamRequest(request_id=0, step=step(row=0)).SerializeToString())
        await until(lambda: served.store.num_writes)
        stream.receive(pb.StreamRequest(request_id=1, step=step(row=1)).SerializeToString())
        await until(lambda: served.engines[0].sessions.progress.next_step[0] == 2)
        served.store.is_blocked = False
        assert [(await fakes.answer(stream)).step.step_index for _ in range(2)] == [0, 1]

    async def test_a_row_that_another_server_expired_is_written_anew(self, serve):
        """Its limit may be shorter than the one of the server that has the session, which decides."""
        served, second = await serve(**NEVER), await serve()
        await served.open("s")
        await served.ask("Step", step())
        await write(served)
        await resume(second)
        assert (await resume(served)).epoch == 3
        assert await second.store.expire(float("inf"), 10) == ["\0s"]
        await served.ask("Step", step(row=1))
        await write(served)
        assert (stored_steps(served), served.store.rows["\0s"].epoch) == (2, 4)

    async def test_a_session_that_was_closed_elsewhere_does_not_come_back(self, serve):
        """A server with an older copy is told by the deletion that the store remembers."""
        old, owner = await serve(**NEVER), await serve()
        await old.open("s")
        assert (await resume(owner)).epoch == 2
        await owner.ask("CloseSession", pb.CloseSessionRequest(session_id="s"))
        await until(lambda: not owner.store.rows)
        assert old.store.ended == {"\0s": 2}
        await old.ask("Step", step())
        with pytest.raises(StreamcellError) as caught:
            await write(old)
        assert caught.value.reason is Reason.SESSION_FENCED
        assert not is_resident(old)
        assert not old.store.rows

    async def test_a_session_that_ends_meanwhile_gets_no_row(self, serve):
        """The write of a session that is closed before its refusal arrives is not repeated."""
        served = await serve(**NEVER)
        await served.open("s")
        await served.ask("Step", step())
        served.store.rows.clear()
        served.store.is_blocked = True
        writing = asyncio.create_task(write(served))
        await until(lambda: served.store.num_writes)
        engine = served.engines[0]
        engine.residents.close(engine.sessions.find("\0s"))
        served.store.is_blocked = False
        with pytest.raises(StreamcellError) as caught:
            await writing
        assert caught.value.reason is Reason.SESSION_NOT_FOUND
        assert not served.store.rows


class TestStaleCopies:
    """After a loss, a server with an older copy of a session may be the first to write it anew."""

    @pytest.mark.parametrize("num_owners", [2, 4])
    async def test_the_copy_that_is_further_wins(self, serve, num_owners):
        """The owner goes on with what it told its client is stored; the older copy is dropped.

        With 2 owners the older copy's new row has the owner's epoch, with 4 a lower one.
        """
        old, owner, alone = await serve(**NEVER), await serve(**NEVER), Alone(fakes.recurrence())
        await old.open("s")
        if num_owners == 4:
            await resume(owner)
            await resume(await serve())
        assert (await resume(owner)).epoch == num_owners
        for row in range(3):
            assert bits((await owner.ask("Step", step(row=row))).y) == alone.step(X[row])
        await write(owner)
        owner.store.rows.clear()
        await old.ask("Step", step())
        await write(old)
        assert owner.store.rows["\0s"].epoch == 2
        assert bits((await owner.ask("Step", step(row=3))).y) == alone.step(X[3])
        await write(owner)
        assert (stored_steps(owner), owner.store.rows["\0s"].epoch) == (4, num_owners + 1)
        assert bits((await owner.ask("Step", step(row=4))).y) == alone.step(X[4])
        with pytest.raises(StreamcellError) as caught:
            await write(old)
        assert caught.value.reason is Reason.SESSION_FENCED
        assert not is_resident(old)

    async def test_the_row_that_is_further_stays(self, serve):
        """A copy that is behind the row at the same epoch gives the row back as it was."""
        old, owner = await serve(**NEVER), await serve(**NEVER)
        await old.open("s")
        assert (await resume(owner)).epoch == 2
        owner.store.rows.clear()
        for row in range(3):
            await old.ask("Step", step(row=row))
        await write(old)
        assert old.store.rows["\0s"].epoch == 2
        await owner.ask("Step", step())
        with pytest.raises(StreamcellError) as caught:
            await write(owner)
        assert caught.value.reason is Reason.SESSION_FENCED
        await until(lambda: owner.store.rows["\0s"].owner == "")
        assert stored_steps(owner) == 3

    async def test_a_row_of_a_later_release_stays(self, serve):
        """How far it is cannot be read here: at the same epoch it is taken for the one that is further."""
        old, owner = await serve(**NEVER), await serve(**NEVER)
        await old.open("s")
        assert (await resume(owner)).epoch == 2
        owner.store.rows.clear()
        await old.ask("Step", step())
        await write(old)
        row = old.store.rows["\0s"]
        row.record = newer = row.record[:4] + (snapshot.VERSION + 1).to_bytes(2, "little") + row.record[6:]
        await owner.ask("Step", step())
        with pytest.raises(StreamcellError) as caught:
            await write(owner)
        assert caught.value.reason is Reason.SESSION_FENCED
        await until(lambda: row.owner == "")
        assert row.record == newer


def next_call(store, name, behaviour):
    """Has a store's next call of a method go through a function of the method and what it is called with."""
    method = getattr(store, name)

    async def replaced(asked):
        setattr(store, name, method)
        return await behaviour(method, asked)

    setattr(store, name, replaced)


async def reply_lost(method, asked):
    """Does a call, whose reply does not arrive."""
    await method(asked)
    raise StoreError("the connection broke")


async def not_done(method, asked):
    """Fails before anything is done."""
    raise StoreError("the connection broke")


class TestBetweenRefusalAndClaim:
    """A refused write and the claim that follows are two calls, between which other servers go on.

    docs/adr/0008-ownership.pml finds these cases.
    """

    async def test_a_session_that_was_closed_meanwhile_stays_closed(self, serve):
        """The claim leaves alone what is at a higher epoch, the remembered deletion too."""
        old = await serve(**NEVER)
        await old.open("s")
        await old.ask("Step", step())
        row = old.store.rows.pop("\0s")

        async def after_the_close(method, asked):
            old.store.ended["\0s"] = row.epoch + 2
            return await method(asked)

        next_call(old.store, "claim", after_the_close)
        with pytest.raises(StreamcellError) as caught:
            await write(old)
        assert caught.value.reason is Reason.SESSION_FENCED
        assert (old.store.rows, old.store.ended) == ({}, {"\0s": 3})

    @pytest.mark.parametrize("outcome", ["taken", "the store is away"])
    async def test_a_session_does_not_leave_memory_meanwhile(self, serve, outcome):
        """The store has nothing of it, although it had everything before."""
        served = await serve(**NEVER, max_resident_sessions=1)
        await served.open("s")
        await served.ask("Step", step())
        await write(served)
        served.store.rows.clear()

        async def while_another_wants_room(method, asked):
            making_room = asyncio.create_task(served.catalog.persistence.make_room(served.engines[0]))
            for _ in range(20):
                await fakes.turn()
            assert is_resident(served)
            making_room.cancel()
            if outcome != "taken":
                raise StoreError("the connection broke")
            return await method(asked)

        next_call(served.store, "claim", while_another_wants_room)
        with contextlib.suppress(StreamcellError):
            await write(served)
        await until(lambda: not served.write_behind.trouble)
        await write(served)
        assert stored_steps(served) == 1

    async def test_a_third_server_that_took_the_row_over_keeps_it(self, serve):
        """At an equal epoch the further copy wins, but only over the owner that was seen."""
        old, owner, third = await serve(**NEVER), await serve(**NEVER), await serve(**NEVER)
        await old.open("s")
        assert (await resume(owner)).epoch == 2
        await owner.ask("Step", step())
        owner.store.rows.clear()
        await old.ask("Step", step())
        await write(old)

        async def after_the_move(method, asked):
            assert (await resume(third)).epoch == 3
            return await method(asked)

        next_call(owner.store, "claim", after_the_move)
        with pytest.raises(StreamcellError) as caught:
            await write(owner)
        assert caught.value.reason is Reason.SESSION_FENCED
        assert (owner.store.rows["\0s"].epoch, owner.store.rows["\0s"].owner) == (3, third.store.owner)

    async def test_a_claim_whose_reply_was_lost_is_nobody_elses(self, serve):
        """The row is this server's at a higher epoch: what memory has beyond it is not given up."""
        _, owner = await with_an_older_row(serve)
        await owner.ask("Step", step(row=3))
        next_call(owner.store, "claim", reply_lost)
        with pytest.raises(StreamcellError) as caught:
            await write(owner)
        assert caught.value.reason is Reason.STORE_UNAVAILABLE
        assert owner.store.rows["\0s"].owner == owner.store.owner
        await write(owner)
        assert stored_steps(owner) == 4
        assert is_resident(owner)

    @pytest.mark.parametrize("reply", ["comes", "is lost"])
    async def test_a_session_that_is_closed_while_it_is_written_anew_is_deleted(self, serve, reply):
        """The new row goes too, at its own epoch."""
        served = await serve(**NEVER)
        await served.open("s")
        await served.ask("Step", step())
        served.store.rows.clear()

        async def while_it_closes(method, asked):
            outcomes = await method(asked)
            assert "\0s" in served.store.rows
            engine = served.engines[0]
            engine.residents.close(engine.sessions.find("\0s"))
            if reply == "is lost":
                raise StoreError("the connection broke")
            return outcomes

        next_call(served.store, "claim", while_it_closes)
        with pytest.raises(StreamcellError):
            await write(served)
        await until(lambda: not served.store.rows)
        assert served.store.ended == {"\0s": 2}


class TestOrder:
    """What a server gives up goes to the store before what it claims."""

    async def test_no_claim_overtakes_a_deletion_that_failed(self, serve):
        """The claim is refused for now; done first, it would bring back the session that a client closed."""
        served = await serve(**NEVER)
        await served.open("s")
        await served.ask("Step", step())
        await write(served)
        next_call(served.store, "write", not_done)
        engine, resuming = served.engines[0], pb.OpenSessionRequest(session_id="s", mode=pb.OPEN_MODE_RESUME)
        engine.residents.close(engine.sessions.find("\0s"))
        assert (await served.refused("OpenSession", resuming)).reason == "STORE_UNAVAILABLE"
        await until(lambda: not served.store.rows)
        await until(lambda: not served.write_behind.trouble)
        assert (await served.refused("OpenSession", resuming)).reason == "SESSION_NOT_FOUND"


class TestDrain:
    """A server that ends gives its sessions to the store."""

    async def test_a_row_that_fell_back_is_written_before_the_end(self, serve):
        """The older copy is claimed and then overwritten: the next owner has all steps."""
        old, owner = await with_an_older_row(serve)
        assert await owner.write_behind.stop()
        assert (stored_steps(old), old.store.rows["\0s"].owner) == (3, "")

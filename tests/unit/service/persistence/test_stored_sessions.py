"""Sessions with a store: which server owns them, and how they are opened, fetched and closed."""

import asyncio

import pytest
from streamcell.v1 import streamcell_pb2 as pb

from tests import fakes
from tests.fakes import Alone, answer, bits, renamed, talk
from tests.unit.service.persistence.sessions import X, resume, step, until, until_stored


class TestOwner:
    """At most one server owns a session."""

    async def test_a_server_drops_a_session_that_another_took_over(self, serve):
        """Its next write is refused; it answers SESSION_FENCED until the session is opened there again."""
        first, second = await serve(), await serve()
        await first.open("s")
        await first.ask("Step", step(row=0))
        await until_stored(first, num_steps=1)
        assert (await resume(second)).next_step_index == 1
        await second.ask("Step", step(row=1))
        first.store.is_blocked = True
        await first.ask("Step", step(row=1))  # the first server has not noticed yet
        first.store.is_blocked = False
        await until(lambda: first.engines[0].sessions.find("\0s") is None)
        for request in (step(row=2), step(row=2, step_index=2)):
            found = await first.refused("Step", request)
            assert (found.code, found.reason) == (10, "SESSION_FENCED")
        await until_stored(second, num_steps=2)
        assert (await resume(first)).next_step_index == 2

    async def test_a_step_without_an_index_takes_no_session_from_another_server(self, serve):
        """The state there may be newer. A step with an index finds out, so it may, and OpenSession may."""
        first, second = await serve(), await serve()
        await first.open("s", "t")
        for name in "st":
            await first.ask("Step", step(name))
            await until_stored(first, name, 1)
        assert (await second.refused("Step", step("s", 1))).reason == "SESSION_FENCED"
        assert (await second.ask("Step", step("s", 1, step_index=1))).step_index == 1
        assert (await second.refused("Step", step("t", 3, step_index=3))).reason == "STEP_GAP"

    async def test_open_returns_the_newest_state_of_a_session_that_moved_away(self, serve):
        """Though this server still has an old state in memory."""
        first, second = await serve(checkpoint_interval_seconds=3600), await serve()
        await first.open("s")
        await resume(second)
        await second.ask("Step", step(row=0))
        await until_stored(second, num_steps=1)
        assert (await resume(first)).next_step_index == 1
        first.store.trouble = "gone"
        assert (await resume(first)).next_step_index == 1

    async def test_a_session_closed_on_another_server_stays_closed(self, serve):
        """A row that is gone was deleted by the new owner, unless the store lost rows."""
        first, second = await serve(checkpoint_interval_seconds=3600), await serve()
        await first.open("s")
        await first.ask("Step", step())
        await resume(second)
        await second.ask("CloseSession", pb.CloseSessionRequest(session_id="s"))
        await until(lambda: not second.store.rows)
        opened = await first.ask("OpenSession", pb.OpenSessionRequest(session_id="s"))
        assert (opened.created, opened.session.next_step_index) == (True, 0)


class TestOpen:
    """A session exists for every server once one has opened it."""

    async def test_another_server_finds_a_session_without_steps(self, serve):
        """At step 0, on the model on which it was opened."""
        models = [renamed(fakes.recurrence(), name, "1") for name in ("a", "b")]
        first, second = await serve(*models), await serve(*models)
        await first.open("s", model="b")
        session = await resume(second)
        assert (session.model_name, session.next_step_index) == ("b", 0)

    async def test_one_id_is_opened_once(self, serve):
        """Of two servers at once, one opens the session and the other finds it; CREATE is refused."""
        first, second = await serve(), await serve()
        request = pb.OpenSessionRequest(session_id="s")
        found = await asyncio.gather(
            *(served.ask("OpenSession", request) for served in (first, second, first))
        )
        assert sorted(reply.created for reply in found) == [False, False, True]
        create = pb.OpenSessionRequest(session_id="s", mode=pb.OPEN_MODE_CREATE)
        assert (await first.refused("OpenSession", create)).reason == "SESSION_EXISTS"

    async def test_a_step_of_index_0_opens_its_session_in_the_store(self, serve):
        """On a stream and as a call; a wrong value opens nothing."""
        served = await serve()
        assert (await served.refused("Step", pb.StepRequest(session_id="s", x=[1], step_index=0))).code == 3
        assert not served.store.rows
        assert (await served.ask("Step", step(step_index=0))).step_index == 0
        (found,) = await talk(served.stream(), pb.StreamRequest(step=step("t", step_index=0)))
        assert found.step.step_index == 0
        assert set(served.store.rows) == {"\0s", "\0t"}

    async def test_a_closed_session_is_closed_on_every_server(self, serve):
        """Its id can be opened again, at step 0."""
        first, second = await serve(), await serve()
        await first.open("s")
        await first.ask("Step", step())
        await first.ask("CloseSession", pb.CloseSessionRequest(session_id="s"))
        await first.open("s")
        assert (await resume(second)).next_step_index == 0
        await second.ask("CloseSession", pb.CloseSessionRequest(session_id="s"))
        await until(lambda: not second.store.rows)
        assert (await second.refused("Step", step())).reason == "SESSION_NOT_FOUND"


class TestFetch:
    """Requests of a stream wait for sessions that are fetched."""

    async def test_later_steps_of_a_fetched_session_wait_in_order(self, serve):
        """Three steps are sent at once, and answered in the order in which they were sent."""
        served, alone = await serve(max_resident_sessions=1), Alone(fakes.recurrence())
        await served.open("s")
        await served.ask("Step", step("s", 0))
        alone.step(X[0])
        await served.open("t")  # evicts s
        stream = served.stream()
        for number in range(1, 4):
            stream.receive(pb.StreamRequest(request_id=number, step=step("s", number)).SerializeToString())
        found = [await answer(stream) for _ in range(3)]
        assert [each.request_id for each in found] == [1, 2, 3]
        assert [bits(each.step.y) for each in found] == [alone.step(X[row]) for row in range(1, 4)]

    async def test_a_stream_answers_for_sessions_that_do_not_exist(self, serve):
        """A step gets its error, a frame its entry's; a half-closed stream ends once all is answered."""
        served = await serve()
        await served.open("s")
        stream = served.stream()
        frame = pb.Frame(session_ids=["none", "s"], x_raw=X[:2].tobytes())
        requests = [
            pb.StreamRequest(request_id=1, step=step("none")),
            pb.StreamRequest(request_id=2, frame=frame),
        ]
        for request in requests:
            stream.receive(request.SerializeToString())
        stream.half_close()
        first, second = [await answer(stream) for _ in range(2)]
        assert (first.request_id, first.error.reason) == (1, "SESSION_NOT_FOUND")
        assert [(error.entry, error.error.reason) for error in second.frame.errors] == [
            (0, "SESSION_NOT_FOUND")
        ]
        assert await fakes.ending(stream) is None


class TestUnusableRows:
    """A row that this server cannot use is an error of its session alone."""

    @pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: b"x" + raw[1:], lambda raw: b""])
    async def test_a_damaged_record_is_refused_and_can_be_closed(self, serve, damage):
        """SNAPSHOT_REJECTED says what to do, and no step starts the session again at 0."""
        first = await serve()
        await first.open("s", "t")
        for name in "st":
            await first.ask("Step", step(name))
            await until_stored(first, name, 1)
        row = first.store.rows["\0s"]
        row.record = damage(row.record)
        second = await serve()
        for request in (step(row=1, step_index=1), step(row=1, step_index=0)):
            found = await second.refused("Step", request)
            assert (found.code, found.reason) == (9, "SNAPSHOT_REJECTED")
            assert "CloseSession" in found.message
        assert (await second.ask("Step", step("t", 1, step_index=1))).step_index == 1
        await second.ask("CloseSession", pb.CloseSessionRequest(session_id="s"))
        assert (await second.ask("OpenSession", pb.OpenSessionRequest(session_id="s"))).created

    async def test_a_server_without_the_model_leaves_the_session_alone(self, serve):
        """It answers MODEL_NOT_FOUND and releases the row for a server that has the model."""
        first = await serve(renamed(fakes.recurrence(), "a", "1"))
        await first.open("s")
        await first.ask("Step", step())
        await until_stored(first, num_steps=1)
        other = await serve(renamed(fakes.recurrence(), "b", "1"))
        resume = pb.OpenSessionRequest(session_id="s", mode=pb.OPEN_MODE_RESUME)
        assert (await other.refused("OpenSession", resume)).reason == "MODEL_NOT_FOUND"
        await until(lambda: not other.store.rows["\0s"].owner)
        third = await serve(renamed(fakes.recurrence(), "a", "1"))
        assert (await third.ask("Step", step(row=1))).step_index == 1

"""Sessions that move to another version of their model: idle, with work under way, in frames, in a store."""

import asyncio
import dataclasses
import gc
import shutil
import weakref

import numpy as np
import pytest
from streamcell.v1 import streamcell_pb2 as pb

from service.engine import snapshot
from tests import fakes
from tests.fake_store import FakeStore
from tests.fakes import answer, bits, talk
from tests.folder_of_models import NAME, X, until


async def until_migrated(server):
    """Retires versions until all sessions have moved and the old version has left memory."""

    def is_alone():
        server.retire()
        return len(server.catalog.versions.engines) == 1

    await until(is_alone)


def predictions_on_2(server, old, rows):
    """Returns the bits that version 2 predicts from the state that a session had on version 1."""
    new = server.alone("2")
    new.state = old.state
    return [new.step(X[row]) for row in rows]


async def open_durable(server, session_id):
    """Opens a durable session."""
    await server.served.ask("OpenSession", pb.OpenSessionRequest(session_id=session_id, durable=True))


async def evict(server, session_id):
    """Evicts a session, so that it is in the store alone."""
    session = server.catalog.find("", session_id)
    await server.catalog.persistence.wait_until_stored(session)
    session.engine.residents.evict(session.slot)


class TestIdleSessions:
    """Sessions without work under way move in the background, or when they are asked for."""

    async def test_a_session_moves_with_all_it_has(self, serve_folder):
        """Key, index, remembered replies, state: the next step uses the new weights on the old state."""
        server = await serve_folder(on_new_version="migrate")
        await server.served.open("s", "idle")
        old = server.alone("1")
        replies = [await server.step("s", row) for row in range(5)]
        assert b"".join(replies) == old.fold(X[:5])
        await server.notice("2")
        await until_migrated(server)
        assert await server.version_of("idle") == "2"
        assert await server.step("s", 4, step_index=4) == replies[4]
        refusal = await server.served.refused("Step", pb.StepRequest(session_id="s", x=X[9], step_index=4))
        assert refusal.reason == "STEP_CONFLICT"
        assert [await server.step("s", row) for row in (5, 6)] == predictions_on_2(server, old, (5, 6))
        labels = {"model": NAME, "version": "2"}
        assert server.sample("streamcell_sessions_migrated_total", **labels) == 2
        assert server.sample("streamcell_sessions_open", **labels) == 2

    async def test_a_request_may_name_the_version_on_which_the_session_began(self, serve_folder):
        """As clients do that send a step again; a version that never had the session is MODEL_CHANGED."""
        server = await serve_folder(on_new_version="migrate")
        await server.served.open("s")
        await server.notice("2")
        await server.step("s", 0, model=f"{NAME}/1")
        await server.step("s", 1, model=f"{NAME}/2")
        refusal = await server.served.refused(
            "Step", pb.StepRequest(session_id="s", x=X[0], model=f"{NAME}/7")
        )
        assert refusal.reason == "MODEL_CHANGED"

    async def test_a_session_whose_state_has_another_layout_stays(self, serve_folder):
        """It ends on the version that understands its state."""
        server = await serve_folder(on_new_version="migrate")
        await server.served.open("s")
        await server.step("s", 0)
        await server.notice("3")
        for _ in range(3):
            server.retire()
        assert server.statuses() == {f"{NAME}/1": "RETIRING", f"{NAME}/3": "SERVING"}
        assert await server.version_of("s") == "1"
        await server.step("s", 1)

    async def test_a_session_stays_until_the_new_version_has_room(self, serve_folder):
        """The old version serves meanwhile, and the sessions move one after another."""
        server = await serve_folder(on_new_version="migrate", max_resident_sessions=2)
        await server.served.open("a", "b")
        await server.notice("2")
        await server.served.open("new")
        server.retire()
        versions = [await server.version_of(each) for each in "ab"]
        assert sorted(versions) == ["1", "2"]
        for each in "ab":
            await server.step(each, 0)
        await server.served.ask("CloseSession", pb.CloseSessionRequest(session_id="new"))
        await until_migrated(server)
        assert [await server.version_of(each) for each in "ab"] == ["2", "2"]

    async def test_sessions_move_back_and_forth(self, serve_folder):
        """The newer version is removed and comes again: the sessions follow, bound ones too."""
        server = await serve_folder(on_new_version="migrate", max_resident_sessions=4)
        await server.served.open("s")
        stream = server.served.stream()
        await talk(stream, pb.StreamRequest(config=pb.StreamConfig(session_ids=["s"])))
        alone, row = server.alone("1"), 0
        for round_ in range(5):
            if round_ % 2:
                await server.notice("2")
            elif round_:
                shutil.rmtree(server.path / NAME / "2")
                await server.models.look()
                await server.models.look()
            version = "2" if round_ % 2 else "1"
            state, alone = alone.state, server.alone(version)
            alone.state = state
            for _ in range(2):
                (found,) = await talk(stream, pb.StreamRequest(step=pb.StepRequest(session=0, x=X[row])))
                assert bits(found.step.y) == alone.step(X[row])
                row += 1
            assert await server.version_of("s") == version
            server.retire()

    async def test_at_the_start_the_newest_version_takes_over(self, serve_folder):
        """As if it had come last: sessions of older versions that come from the store move to it."""
        server = await serve_folder("1", "2", on_new_version="migrate")
        server.models.start()
        assert server.statuses() == {f"{NAME}/1": "RETIRING", f"{NAME}/2": "SERVING"}
        server = await serve_folder("1", "2")
        server.models.start()
        assert server.statuses() == {f"{NAME}/1": "SERVING", f"{NAME}/2": "SERVING"}


class TestBusySessions:
    """A session with work under way moves after that work."""

    async def test_a_session_that_is_never_idle_moves_too(self, serve_folder):
        """Later requests wait for earlier ones, then run on the new version, in order."""
        server = await serve_folder(on_new_version="migrate")
        await server.served.open("s")
        stream = server.served.stream()
        await talk(stream, pb.StreamRequest(config=pb.StreamConfig(session_ids=["s"])))
        steps = [
            pb.StreamRequest(request_id=row, step=pb.StepRequest(session=0, x=X[row])) for row in range(9)
        ]
        server.put("2")
        await server.models.look()
        for request in steps[:3]:
            stream.receive(request.SerializeToString())
        await server.models.look(are_complete=True)
        for request in steps[3:6]:
            stream.receive(request.SerializeToString())
        steps[6].step.session_id = "s"  # by its id as well
        for request in steps[6:]:
            stream.receive(request.SerializeToString())
        found = [await answer(stream) for _ in steps]
        assert [each.request_id for each in found] == list(range(9))
        assert [each.step.step_index for each in found] == list(range(9))
        old, replies = server.alone("1"), [bits(each.step.y) for each in found]
        num_old = 0
        while num_old < 9 and replies[num_old] == old.step(X[num_old]):
            num_old += 1
        assert await server.version_of("s") == "2"

    async def test_steps_under_way_end_on_the_old_version(self, serve_folder):
        """Later steps wait for them: no step is refused, and the state moves between two steps."""
        server = await serve_folder(on_new_version="migrate")
        await server.served.open("s")
        await server.notice("2")
        engine = server.catalog.versions.get(f"{NAME}/1")
        engine.succession.successor = None  # not yet
        stream = server.served.stream()
        await talk(stream, pb.StreamRequest(config=pb.StreamConfig(session_ids=["s"])))
        requests = [pb.StreamRequest(step=pb.StepRequest(session=0, x=X[row])) for row in range(6)]
        for request in requests[:3]:
            stream.receive(request.SerializeToString())
        engine.supersede(server.catalog.versions.get(NAME))
        for request in requests[3:]:
            stream.receive(request.SerializeToString())
        replies = [bits((await answer(stream)).step.y) for _ in requests]
        old = server.alone("1")
        assert replies[:3] == [old.step(X[row]) for row in range(3)]
        assert replies[3:] == predictions_on_2(server, old, (3, 4, 5))

    async def test_unary_calls_wait_for_the_work_under_way(self, serve_folder):
        """Steps of one session at the same time, and GetSession."""
        server = await serve_folder(on_new_version="migrate")
        await server.served.open("s")
        await server.notice("2")
        engine, successor = server.catalog.versions.get(f"{NAME}/1"), server.catalog.versions.get(NAME)
        engine.succession.successor = None
        first = asyncio.create_task(server.step("s", 0))
        await fakes.turn()
        engine.supersede(successor)
        rest = [asyncio.create_task(server.step("s", row)) for row in range(1, 4)]
        version = asyncio.create_task(server.version_of("s"))
        old = server.alone("1")
        assert await first == old.step(X[0])
        assert [await each for each in rest] == predictions_on_2(server, old, (1, 2, 3))
        assert await version == "2"

    @pytest.mark.parametrize("names", ["all", "numbers", "ids"])
    async def test_a_frame_may_have_sessions_that_move(self, serve_folder, names):
        """One moved before, one moves for the frame, one has work under way, one has ended."""
        server = await serve_folder(on_new_version="migrate")
        sessions = list("abcd")
        await server.served.open(*sessions)
        stream = server.served.stream()
        await talk(stream, pb.StreamRequest(config=pb.StreamConfig(session_ids=sessions)))
        named = {
            "all": {},
            "numbers": {"session_raw": np.arange(4, dtype="<u4").tobytes()},
            "ids": {"session_ids": sessions},
        }[names]
        (found,) = await talk(stream, pb.StreamRequest(frame=pb.Frame(x_raw=X[:4].tobytes(), **named)))
        await server.notice("2")
        old = [server.alone("1") for _ in sessions]
        assert found.frame.y_raw == b"".join(each.step(X[row]) for row, each in enumerate(old))
        engine, slot, _ = server.catalog._resident("\0d")
        engine.residents.close(slot)
        engine.move([server.catalog._resident("\0a").slot])
        successor, engine.succession.successor = engine.succession.successor, None
        under_way = asyncio.create_task(server.step("b", 4))
        await fakes.turn()
        engine.succession.successor = successor
        for at in range(2):
            frame = pb.Frame(x_raw=X[8 + 4 * at : 12 + 4 * at].tobytes(), **named)
            (found,) = await talk(stream, pb.StreamRequest(frame=frame))
            assert [(error.entry, error.error.reason) for error in found.frame.errors] == [
                (3, "SESSION_NOT_FOUND")
            ]
            if not at:
                assert await under_way == old[1].step(X[4])
                new = [server.alone("2") for _ in range(3)]
                for each, before in zip(new, old, strict=False):
                    each.state = before.state
            expected = [each.step(X[8 + 4 * at + row]) for row, each in enumerate(new)]
            assert found.frame.y_raw[: 3 * 8] == b"".join(expected)
        await until_migrated(server)
        (found,) = await talk(stream, pb.StreamRequest(frame=frame))
        assert len(found.frame.errors) == 1


class TestBoundNumbers:
    """A stream's numbers stay bound to their sessions."""

    async def test_a_stream_does_not_keep_its_first_version_in_memory(self, serve_folder):
        """Weights and states are freed, as a client may use one stream for as long as it likes."""
        server = await serve_folder(on_new_version="migrate")
        await server.served.open("s", "closed")
        stream = server.served.stream()
        bind = pb.StreamRequest(config=pb.StreamConfig(session_ids=["s", "closed"]))
        step = pb.StreamRequest(step=pb.StepRequest(x=X[0]))
        await talk(stream, bind, step)
        gone = weakref.ref(server.catalog.versions.get(f"{NAME}/1")._runner)
        await server.served.ask("CloseSession", pb.CloseSessionRequest(session_id="closed"))
        await server.notice("2")
        await until_migrated(server)
        await fakes.turn()
        gc.collect()  # TorchScript leaves rings of its own
        assert gone() is None
        (reply,) = await talk(stream, step)
        assert reply.step.step_index == 1
        (reply,) = await talk(stream, pb.StreamRequest(step=pb.StepRequest(session=1, x=X[0])))
        assert reply.error.reason == "SESSION_NOT_FOUND"

    async def test_the_number_of_a_session_that_ended_never_means_another(self, serve_folder):
        """Its version has left memory, and another session has the id."""
        server = await serve_folder(on_new_version="migrate")
        await server.served.open("s", "t")
        stream = server.served.stream()
        await talk(stream, pb.StreamRequest(config=pb.StreamConfig(session_ids=["s", "t"])))
        await server.served.ask("CloseSession", pb.CloseSessionRequest(session_id="s"))
        await server.notice("2")
        await until_migrated(server)
        await server.served.open("s")
        (found,) = await talk(stream, pb.StreamRequest(step=pb.StepRequest(session=0, x=X[0])))
        assert found.error.reason == "SESSION_NOT_FOUND"
        (found,) = await talk(stream, pb.StreamRequest(step=pb.StepRequest(session=1, x=X[0])))
        assert found.step.step_index == 0


class TestStore:
    """Sessions with a store move as well."""

    async def test_a_session_in_the_store_loads_its_version_again(self, serve_folder):
        """With keep, no session is lost because its version left; without its folder, MODEL_NOT_FOUND."""
        server = await serve_folder(store=FakeStore())
        await server.served.open("s")
        old = server.alone("1")
        assert await server.step("s", 0) == old.step(X[0])
        await server.notice("2")
        await evict(server, "s")
        server.retire()
        assert server.statuses() == {f"{NAME}/2": "SERVING"}
        assert await server.step("s", 1) == old.step(X[1])
        assert server.statuses()[f"{NAME}/1"] == "RETIRING"
        await evict(server, "s")
        server.retire()
        shutil.rmtree(server.path / NAME / "1")
        await server.models.look()
        refusal = await server.served.refused("Step", pb.StepRequest(session_id="s", x=X[2]))
        assert refusal.reason == "MODEL_NOT_FOUND"
        server.put("1")
        assert await server.step("s", 2) == old.step(X[2])

    async def test_a_session_in_the_store_moves_to_the_new_version(self, serve_folder):
        """With migrate; its row is written again with the new version."""
        server = await serve_folder(store=FakeStore(), on_new_version="migrate")
        await server.served.open("s")
        old = server.alone("1")
        await server.step("s", 0)
        old.step(X[0])
        await server.notice("2")
        server.retire()
        await evict(server, "s")
        server.retire()
        shutil.rmtree(server.path / NAME / "1")
        assert [await server.step("s", row) for row in (1, 2)] == predictions_on_2(server, old, (1, 2))
        row = server.store.rows["\0s"]
        await until(lambda: snapshot.decode(row.record).model.version == "2")

    async def test_a_session_of_a_newer_version_does_not_go_back(self, serve_folder):
        """MODEL_NOT_HERE on a server that lacks the version, until it has it; with migrate too."""
        server = await serve_folder(store=FakeStore(), on_new_version="migrate")
        await server.served.open("s")
        old = server.alone("1")
        await server.step("s", 0)
        old.step(X[0])
        await evict(server, "s")
        row = server.store.rows["\0s"]
        session = snapshot.decode(row.record)
        newer = dataclasses.replace(session.model, version="2", digest=b"2" * 16)
        row.record = snapshot.encode_one(dataclasses.replace(session, model=newer))
        before = row.record
        refusal = await server.served.refused("Step", pb.StepRequest(session_id="s", x=X[1]))
        assert (refusal.code, refusal.reason) == (14, "MODEL_NOT_HERE")
        assert refusal.metadata == {"model": f"{NAME}/2"}
        assert refusal.retry_delay_seconds == 1
        await until(lambda: row.owner == "")
        assert row.record == before
        row.record = snapshot.encode_one(session)
        assert await server.step("s", 1) == old.step(X[1])

    async def test_a_snapshot_with_sizes_that_are_not_its_layouts_opens_nothing(self, serve_folder):
        """It claims an older version, to be moved to the one that leads, and is refused each time."""
        server = await serve_folder("1", "2", on_new_version="migrate")
        engine = server.catalog.versions.get(NAME)
        blank = engine.residents.blank("forged", is_durable=False)
        model = dataclasses.replace(blank.model, version="1", state_size=blank.model.state_size + 1)
        state = np.zeros(model.state_size, np.float32)
        raw = snapshot.encode_one(dataclasses.replace(blank, model=model, state=state))
        for _ in range(3):
            refusal = await server.served.refused("RestoreSession", pb.RestoreSessionRequest(snapshot=raw))
            assert refusal.reason in ("MODEL_NOT_FOUND", "MODEL_CHANGED")
        assert not len(engine.sessions)

    async def test_durable_steps_are_answered_though_the_session_moves(self, serve_folder):
        """The session moves while its write is under way, or before its write."""
        server = await serve_folder(store=FakeStore(), on_new_version="migrate")
        await open_durable(server, "s")
        await open_durable(server, "t")
        await server.notice("2")
        engine, successor = server.catalog.versions.get(f"{NAME}/1"), server.catalog.versions.get(NAME)
        engine.succession.successor, count = None, server.store.num_writes
        server.store.is_blocked = True
        request = pb.StepRequest(session_id="s", x=X[0])
        first = asyncio.create_task(server.served.ask("Step", request))
        await until(lambda: server.store.num_writes > count)  # it is being written
        request = pb.StepRequest(session_id="t", x=X[0])
        second = asyncio.create_task(server.served.ask("Step", request))
        await until(lambda: engine.sessions.progress.next_step[engine.sessions.find("\0t")] == 1)
        engine.supersede(successor)
        await until_migrated(server)
        assert not first.done()
        assert not second.done()
        server.store.is_blocked = False
        assert [(await each).num_durable_steps for each in (first, second)] == [1, 1]

    async def test_a_moved_session_that_another_server_took_is_fenced(self, serve_folder):
        """The new version drops the session, as the old one would have."""
        store = FakeStore()
        server = await serve_folder(store=store, on_new_version="migrate")
        await server.served.open("s")
        await server.notice("2")
        store.is_blocked = True
        await server.step("s", 0)
        await until_migrated(server)
        store.rows["\0s"].owner, store.rows["\0s"].epoch = "another", 7
        store.is_blocked = False
        await until(lambda: server.catalog.versions.get(NAME).sessions.find("\0s") is None)
        refusal = await server.served.refused("Step", pb.StepRequest(session_id="s", x=X[1]))
        assert refusal.reason == "SESSION_FENCED"

    async def test_a_version_stays_while_a_session_is_about_to_enter(self, serve_folder):
        """A session that is being opened in the store finds its version still in memory."""
        store = FakeStore()
        server = await serve_folder(store=store)
        opening = asyncio.create_task(server.served.open("s"))
        await fakes.turn()
        assert server.catalog.versions.get(f"{NAME}/1").succession.num_arriving == 1
        server.catalog.versions.get(f"{NAME}/1").supersede(None)
        server.retire()
        assert f"{NAME}/1" in server.statuses()
        await opening
        assert await server.version_of("s") == "1"

    async def test_a_new_version_knows_that_the_store_is_away(self, serve_folder):
        """Durable sessions that move to it are refused as before, until the store is back."""
        store = FakeStore()
        server = await serve_folder(store=store, on_new_version="migrate")
        await open_durable(server, "s")
        store.trouble = "gone"
        engine = server.catalog.versions.get(NAME)
        engine.sessions.durability.is_changed[engine.sessions.find("\0s")] = True
        await until(lambda: engine.sessions.durability.trouble)
        await server.notice("2")
        await until_migrated(server)
        refusal = await server.served.refused("Step", pb.StepRequest(session_id="s", x=X[0]))
        assert refusal.reason == "STORE_UNAVAILABLE"
        store.trouble = ""
        await until(lambda: not server.catalog.versions.get(NAME).sessions.durability.trouble)
        assert await server.step("s", 0) == server.alone("2").step(X[0])

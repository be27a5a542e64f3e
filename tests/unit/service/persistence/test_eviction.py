"""More sessions than have room in memory: idle ones are evicted, and fetched again by themselves."""

import asyncio

import numpy as np
from streamcell.v1 import streamcell_pb2 as pb

from service import errors
from service.engine import snapshot
from service.errors import Reason
from tests import fakes
from tests.fakes import Alone, bits, talk
from tests.unit.service.persistence.sessions import X, resume, step, until


class TestManySessions:
    """Sessions without room are in the store, and come back with the same bits."""

    async def test_unary_steps_of_more_sessions_than_have_room(self, serve):
        """Twenty sessions take turns in the room of four."""
        served = await serve(max_resident_sessions=4)
        names = [f"s{number}" for number in range(20)]
        alone = {name: Alone(fakes.recurrence()) for name in names}
        await served.open(*names)
        for row in range(3):
            for name in names:
                reply = await served.ask("Step", step(name, row))
                assert (reply.step_index, bits(reply.y)) == (row, alone[name].step(X[row]))
        assert len(served.engines[0].sessions) <= 4
        assert len(served.store.rows) == 20

    async def test_a_stream_of_more_sessions_than_have_room(self, serve):
        """Steps by id and by number, and frames, many at once: each session's in order, each right."""
        served = await serve(max_resident_sessions=6)
        names = [f"s{number}" for number in range(12)]
        alone = {name: Alone(fakes.recurrence()) for name in names}
        await served.open(*names)
        stream = served.stream()
        for name in names:
            (found,) = await talk(stream, pb.StreamRequest(config=pb.StreamConfig(session_ids=[name])))
            assert found.config.sessions[0].session_id == name
        for row in range(3):
            requests = [pb.StreamRequest(request_id=n, step=step(name, row)) for n, name in enumerate(names)]
            requests += [
                pb.StreamRequest(request_id=100 + n, step=pb.StepRequest(session=n, x=X[row]))
                for n in range(12)
            ]
            found = {each.request_id: each for each in await talk(stream, *requests)}
            for number, name in enumerate(names):
                for each in (found[number], found[100 + number]):
                    assert bits(each.step.y) == alone[name].step(X[row]), each
        for at in range(0, 12, 3):
            frame = pb.Frame(
                session_raw=np.arange(at, at + 3, dtype="<u4").tobytes(),
                x_raw=np.tile(X[9], (3, 1)).tobytes(),
            )
            (found,) = await talk(stream, pb.StreamRequest(frame=frame))
            assert found.frame.y_raw == b"".join(alone[name].step(X[9]) for name in names[at : at + 3])
            (found,) = await talk(
                stream,
                pb.StreamRequest(
                    frame=pb.Frame(session_ids=names[at : at + 3], x_raw=np.tile(X[8], (3, 1)).tobytes())
                ),
            )
            assert found.frame.y_raw == b"".join(alone[name].step(X[8]) for name in names[at : at + 3])

    async def test_more_sessions_in_a_message_than_have_room_are_refused(self, serve):
        """They would evict each other for ever; in several messages they are served."""
        served = await serve(max_resident_sessions=4)
        names = [f"s{number}" for number in range(8)]
        await served.open(*names)
        stream, x = served.stream(), X[:8].tobytes()
        for request in (
            pb.StreamRequest(config=pb.StreamConfig(session_ids=names)),
            pb.StreamRequest(frame=pb.Frame(session_ids=names, x_raw=x)),
        ):
            (found,) = await talk(stream, request)
            assert (found.error.reason, found.error.metadata["field"]) == ("INVALID_ARGUMENT", "session_ids")
            assert "name fewer" in found.error.message
        for part in (names[:4], names[4:]):
            (found,) = await talk(stream, pb.StreamRequest(config=pb.StreamConfig(session_ids=part)))
            assert len(found.config.sessions) == 4
        for numbers in (b"", np.arange(8, dtype="<u4").tobytes()):
            frame = pb.Frame(session_raw=numbers, x_raw=x)
            (found,) = await talk(stream, pb.StreamRequest(frame=frame))
            assert (found.error.reason, found.error.metadata["field"]) == ("INVALID_ARGUMENT", "session_raw")
        for numbers in (range(2, 6), range(4)):
            frame = pb.Frame(session_raw=np.array(numbers, "<u4").tobytes(), x_raw=X[:4].tobytes())
            (found,) = await talk(stream, pb.StreamRequest(frame=frame))
            assert not found.frame.errors


class TestRoom:
    """Room for a newcomer comes from sessions that the store has."""

    async def test_one_write_makes_room_for_all_newcomers(self, serve):
        """Eight newcomers at once cost one write, not one each."""
        served = await serve(max_resident_sessions=8, checkpoint_interval_seconds=3600)
        names = [f"s{number}" for number in range(16)]
        await served.open(*names[:8])
        for name in names[:8]:
            await served.ask("Step", step(name))
        count = served.store.num_writes
        await asyncio.gather(*(served.open(name) for name in names[8:]))
        assert served.store.num_writes == count + 1
        assert all(served.engines[0].sessions.find(f"\0{name}") is not None for name in names[8:])

    async def test_a_session_that_was_taken_over_makes_room_too(self, serve):
        """The refused write that shows the new owner is no error of the newcomer."""
        first, second = await serve(max_resident_sessions=1, checkpoint_interval_seconds=3600), await serve()
        await first.open("s")
        await first.ask("Step", step("s"))
        await resume(second)
        await first.open("t")
        assert (await first.ask("Step", step("t"))).step_index == 0

    async def test_a_session_is_not_evicted_while_its_write_is_under_way(self, serve):
        """The write may still fail; then another one stores the session first."""
        served = await serve(max_resident_sessions=1, checkpoint_interval_seconds=3600)
        await served.open("s")
        await served.ask("Step", step(row=0))
        changes, engine = served.write_behind.changes, served.engines[0]
        changes.begin()
        under_way = changes.take(10, everything=True)
        served.store.is_blocked = True
        room = asyncio.create_task(served.catalog.persistence.make_room(engine))
        await until(lambda: served.store.num_writes)
        assert engine.sessions.find("\0s") is not None
        changes.fail(under_way, errors.refusal(Reason.STORE_UNAVAILABLE, problem="gone"))
        served.store.is_blocked = False
        await room
        assert engine.sessions.find("\0s") is None
        assert snapshot.decode(served.store.rows["\0s"].record).progress.next_step[0] == 1


async def test_a_session_stays_while_its_write_is_under_way(serve):
    """A caller waits for that write, and its outcome is open: only then does the session leave."""
    served = await serve(max_resident_sessions=1, checkpoint_interval_seconds=3600)
    await served.open("s")
    (engine,), persistence = served.engines, served.catalog.persistence
    served.store.is_blocked = True
    waiting = asyncio.create_task(persistence.wait_until_stored(served.catalog.find("", "s")))
    await until(lambda: served.store.num_writes)
    room = asyncio.create_task(persistence.make_room(engine))
    for _ in range(5):
        await fakes.turn()
    assert engine.sessions.find("\0s") is not None
    served.store.is_blocked = False
    await waiting
    await room
    assert engine.sessions.find("\0s") is None

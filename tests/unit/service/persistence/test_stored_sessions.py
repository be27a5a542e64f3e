"""Sessions with a store, over real engines and servicers: written behind, brought back, fenced, spilled."""

import asyncio
import contextlib
import dataclasses

import numpy as np
import pytest
from streamcell.v1 import streamcell_pb2 as pb

from service import errors
from service.engine import snapshot
from service.errors import Reason
from tests import fakes
from tests.fakes import Alone, answer, bits, renamed, talk

X = np.random.default_rng(6).standard_normal((40, 2)).astype(np.float32)


def step(session_id="s", row=0, **fields):
    """Returns a step request with a row of X."""
    return pb.StepRequest(session_id=session_id, x=X[row], **fields)


async def until(condition):
    """Waits until something holds; bounded."""
    async with asyncio.timeout(10):
        while not condition():
            await fakes.turn()


async def stand(served, session_id="s", mode=pb.OPEN_MODE_RESUME):
    """Takes a session up and tells where it stands."""
    return (await served.ask("OpenSession", pb.OpenSessionRequest(session_id=session_id, mode=mode))).session


async def stored(served, session_id="s", num_steps=0):
    """Waits until so many steps of a session are in the store."""
    engine = served.engines[0]
    await until(
        lambda: engine.sessions.durability.num_durable[engine.sessions.find(f"\0{session_id}")] >= num_steps
    )


# -- Written behind ----------------------------------------------------------------------------------


async def test_steps_are_written_behind_and_a_successor_goes_on(serve):
    """A second server takes the session over where it was stored, replies kept and all: the same bits."""
    first, alone = await serve(), Alone(fakes.recurrence())
    await first.open("s")
    replies = [await first.ask("Step", step(row=row)) for row in range(6)]
    assert b"".join(bits(reply.y) for reply in replies) == alone.fold(X[:6])
    await stored(first, num_steps=6)
    second = await serve()
    session = await stand(second)
    assert (session.next_step_index, session.num_durable_steps, session.epoch) == (6, 6, 2)
    again = await second.ask("Step", step(row=5, step_index=5))
    assert bits(again.y) == bits(replies[5].y)
    reply = await second.ask("Step", step(row=6))
    assert (reply.step_index, bits(reply.y)) == (6, alone.step(X[6]))


async def test_replies_say_what_is_stored(serve):
    """Nothing while the store is held; all of it once it was written: steps, frames and priming alike."""
    served = await serve()
    await served.open("s")
    served.store.is_blocked = True
    assert (await served.ask("Step", step())).num_durable_steps == 0
    served.store.is_blocked = False
    await stored(served, num_steps=1)
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


async def test_only_what_changed_is_written(serve):
    """A session that rests costs the store nothing."""
    served = await serve()
    await served.open("s", "t")
    await served.ask("Step", step("s"))
    await stored(served, num_steps=1)
    count = served.store.num_writes
    await served.ask("Step", step("t"))
    await stored(served, "t", 1)
    assert served.store.num_writes == count + 1
    assert served.metrics.registry.get_sample_value("streamcell_store_changed_sessions") == 0


async def test_a_store_that_misses_its_cancellation_holds_up_no_end(serve):
    """As a network's client may, whose answer comes at that moment; all is written and released then."""
    served = await serve()
    await served.open("s")
    write, began = served.store.write, asyncio.Event()

    async def deaf(writes):
        served.store.write = write
        began.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return await write(writes)

    served.store.write = deaf
    await served.ask("Step", step())
    await began.wait()
    async with asyncio.timeout(10) as bound:
        assert await served.write_behind.stop()
    assert not bound.expired()
    row = served.store.rows["\0s"]
    assert (row.owner, snapshot.decode(row.record).progress.next_step[0]) == ("", 1)


async def test_who_waits_for_the_end_can_be_cancelled(serve):
    """It goes on to write nothing; the server can be ended all the same."""
    served = await serve(checkpoint_interval_seconds=3600)
    await served.open("s")
    ending = asyncio.create_task(served.write_behind.stop())
    await fakes.turn()
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert not served.store.num_writes
    assert await served.write_behind.stop()


# -- Durable sessions --------------------------------------------------------------------------------


async def test_a_durable_step_is_answered_once_it_is_stored(serve):
    """One write for all that wait; nobody else waits with them."""
    served = await serve(checkpoint_interval_seconds=3600)
    for name in "abc":
        request = pb.OpenSessionRequest(session_id=name, durable=True)
        assert (await served.ask("OpenSession", request)).session.durable
    await served.open("free")
    served.store.is_blocked = True
    asked = [asyncio.create_task(served.ask("Step", step(name))) for name in "abc"]
    assert (await served.ask("Step", step("free"))).num_durable_steps == 0
    await until(lambda: served.store.num_writes)
    assert not any(task.done() for task in asked)
    served.store.is_blocked = False
    assert [(await task).num_durable_steps for task in asked] == [1, 1, 1]
    again = await served.ask("Step", step("a", step_index=0))
    assert again.num_durable_steps == 1


async def test_durable_frames_and_primes_wait_as_well(serve):
    """They are answered with all their steps stored."""
    served = await serve(checkpoint_interval_seconds=3600)
    await served.ask("OpenSession", pb.OpenSessionRequest(session_id="s", durable=True))
    primed = await served.ask("Prime", pb.PrimeRequest(session_id="s", x=X[:5].reshape(-1)))
    assert primed.num_durable_steps == 5
    frame = pb.Frame(session_ids=["s"], num_steps_raw=b"\x02\0\0\0", x_raw=X[5:7].tobytes())
    (found,) = await talk(served.stream(), pb.StreamRequest(frame=frame))
    assert np.frombuffer(found.frame.num_durable_steps_raw, "<u8").tolist() == [7]


async def test_without_its_store_a_server_serves_all_but_durable_sessions(serve):
    """These hear STORE_UNAVAILABLE and are not applied; new ones too; the rest goes on, and catches up."""
    served = await serve()
    await served.open("s")
    await served.ask("OpenSession", pb.OpenSessionRequest(session_id="d", durable=True))
    served.store.trouble = "gone"
    await served.ask("Step", step("s"))
    await until(lambda: served.engines[0].sessions.durability.trouble)
    assert (await served.refused("Step", step("d"))).reason == "STORE_UNAVAILABLE"
    assert (await served.refused("OpenSession", pb.OpenSessionRequest(session_id="n"))).code == 14
    assert (await served.refused("Step", step("elsewhere"))).reason == "STORE_UNAVAILABLE"
    for row in range(1, 5):
        assert (await served.ask("Step", step("s", row))).num_durable_steps == 0
    assert served.metrics.registry.get_sample_value("streamcell_store_up") == 0
    await until(lambda: served.metrics.registry.get_sample_value("streamcell_store_lag_seconds") > 0)
    served.store.trouble = ""
    await stored(served, "s", 5)
    assert (await served.ask("Step", step("d"))).step_index == 0
    assert (await served.ask("Step", step("d"))).num_durable_steps == 2
    assert served.metrics.registry.get_sample_value("streamcell_store_up") == 1


# -- Whose session it is -----------------------------------------------------------------------------


async def test_two_servers_and_one_session_one_is_fenced(serve):
    """The old owner's next write fails, it drops the session and says so, until it is opened there again."""
    first, second = await serve(), await serve()
    await first.open("s")
    await first.ask("Step", step(row=0))
    await stored(first, num_steps=1)
    assert (await stand(second)).next_step_index == 1
    await second.ask("Step", step(row=1))
    first.store.is_blocked = True
    await first.ask("Step", step(row=1))  # the first does not know yet
    first.store.is_blocked = False
    await until(lambda: first.engines[0].sessions.find("\0s") is None)
    for request in (step(row=2), step(row=2, step_index=2)):
        found = await first.refused("Step", request)
        assert (found.code, found.reason) == (10, "SESSION_FENCED")
    await stored(second, num_steps=2)
    assert (await stand(first)).next_step_index == 2


async def test_a_step_without_an_index_takes_no_session_from_another_server(serve):
    """The state there may be newer; one with an index finds out, so it may, and OpenSession may."""
    first, second = await serve(), await serve()
    await first.open("s", "t")
    for name in "st":
        await first.ask("Step", step(name))
        await stored(first, name, 1)
    assert (await second.refused("Step", step("s", 1))).reason == "SESSION_FENCED"
    assert (await second.ask("Step", step("s", 1, step_index=1))).step_index == 1
    assert (await second.refused("Step", step("t", 3, step_index=3))).reason == "STEP_GAP"


async def test_a_session_that_was_opened_and_never_stepped_is_known_elsewhere(serve):
    """At step 0, on the model that it was opened on."""
    models = [renamed(fakes.recurrence(), name, "1") for name in ("a", "b")]
    first, second = await serve(*models), await serve(*models)
    await first.open("s", model="b")
    session = await stand(second)
    assert (session.model_name, session.next_step_index) == ("b", 0)


async def test_one_id_is_opened_once(serve):
    """On two servers at once: one opens it, the other one finds it; with CREATE it is refused."""
    first, second = await serve(), await serve()
    request = pb.OpenSessionRequest(session_id="s")
    found = await asyncio.gather(*(served.ask("OpenSession", request) for served in (first, second, first)))
    assert sorted(reply.created for reply in found) == [False, False, True]
    create = pb.OpenSessionRequest(session_id="s", mode=pb.OPEN_MODE_CREATE)
    assert (await first.refused("OpenSession", create)).reason == "SESSION_EXISTS"


async def test_a_drained_servers_sessions_are_anybodys(serve):
    """What was not written yet is; a step without an index goes on at once."""
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


async def test_a_closed_session_is_gone_everywhere(serve):
    """And its id can be opened anew, at step 0."""
    first, second = await serve(), await serve()
    await first.open("s")
    await first.ask("Step", step())
    await first.ask("CloseSession", pb.CloseSessionRequest(session_id="s"))
    await first.open("s")
    assert (await stand(second)).next_step_index == 0
    await second.ask("CloseSession", pb.CloseSessionRequest(session_id="s"))
    await until(lambda: not second.store.rows)
    assert (await second.refused("Step", step())).reason == "SESSION_NOT_FOUND"


async def test_a_reset_is_stored_before_it_is_answered(serve):
    """Else whoever took the session over would bring the steps back."""
    first, second = await serve(checkpoint_interval_seconds=3600), await serve()
    await first.open("s")
    await first.ask("Prime", pb.PrimeRequest(session_id="s", x=X[:5].reshape(-1)))
    await first.ask("ResetSession", pb.ResetSessionRequest(session_id="s"))
    assert (await stand(second)).next_step_index == 0


@pytest.mark.parametrize("loss", ["all", "some", "another's"])
async def test_what_the_store_loses_its_server_has(serve, loss):
    """Rows that are gone, or go back to an earlier owner, are written anew: nobody is fenced by a loss."""
    old, served, alone = await serve(), await serve(), Alone(fakes.recurrence())
    await old.open("s")
    before = dataclasses.replace(old.store.rows["\0s"])
    assert (await stand(served)).epoch == 2
    await served.ask("Step", step(row=0))
    await stored(served, num_steps=1)
    alone.step(X[0])
    served.store.run = old.store.run = "second"
    if loss == "all":
        served.store.rows.clear()
    else:
        served.store.rows["\0s"] = before
        before.owner = served.store.owner if loss == "some" else before.owner
    for row in (1, 2):
        assert bits((await served.ask("Step", step(row=row))).y) == alone.step(X[row])
    await stored(served, num_steps=3)
    assert snapshot.decode(served.store.rows["\0s"].record).progress.next_step[0] == 3
    if loss == "another's":  # the one before does not win by it
        await old.ask("Step", step(row=0))
        await until(lambda: old.engines[0].sessions.find("\0s") is None)


# -- Records that cannot be used ---------------------------------------------------------------------


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: b"x" + raw[1:], lambda raw: b""])
async def test_a_damaged_record_is_an_error_of_its_session_alone(serve, damage):
    """It says so and what to do, is never begun anew, and can be closed."""
    first = await serve()
    await first.open("s", "t")
    for name in "st":
        await first.ask("Step", step(name))
        await stored(first, name, 1)
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


async def test_another_model_is_no_place_for_a_session(serve):
    """A server without the model says so, and leaves the session to one that has it."""
    first = await serve(renamed(fakes.recurrence(), "a", "1"))
    await first.open("s")
    await first.ask("Step", step())
    await stored(first, num_steps=1)
    other = await serve(renamed(fakes.recurrence(), "b", "1"))
    resume = pb.OpenSessionRequest(session_id="s", mode=pb.OPEN_MODE_RESUME)
    assert (await other.refused("OpenSession", resume)).reason == "MODEL_NOT_FOUND"
    await until(lambda: not other.store.rows["\0s"].owner)
    third = await serve(renamed(fakes.recurrence(), "a", "1"))
    assert (await third.ask("Step", step(row=1))).step_index == 1


# -- Room in memory ----------------------------------------------------------------------------------


async def test_more_sessions_than_memory_holds(serve):
    """Those not used for longest leave for the store and come back by themselves, with the same bits."""
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


async def test_a_stream_of_more_sessions_than_memory_holds(serve):
    """Steps by id and by number and frames, many at once: each session's in order, each right."""
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
            pb.StreamRequest(request_id=100 + n, step=pb.StepRequest(session=n, x=X[row])) for n in range(12)
        ]
        found = {each.request_id: each for each in await talk(stream, *requests)}
        for number, name in enumerate(names):
            for each in (found[number], found[100 + number]):
                assert bits(each.step.y) == alone[name].step(X[row]), each
    for at in range(0, 12, 3):
        frame = pb.Frame(
            session_raw=np.arange(at, at + 3, dtype="<u4").tobytes(), x_raw=np.tile(X[9], (3, 1)).tobytes()
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


async def test_more_sessions_in_a_message_than_memory_holds_are_refused(serve):
    """They would send each other away for ever; in several messages they are served."""
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


async def test_newcomers_share_what_makes_room_for_them(serve):
    """One write for as many sessions as are to come, not one of each newcomer's own."""
    served = await serve(max_resident_sessions=8, checkpoint_interval_seconds=3600)
    names = [f"s{number}" for number in range(16)]
    await served.open(*names[:8])
    for name in names[:8]:
        await served.ask("Step", step(name))
    count = served.store.num_writes
    await asyncio.gather(*(served.open(name) for name in names[8:]))
    assert served.store.num_writes == count + 1
    assert all(served.engines[0].sessions.find(f"\0{name}") is not None for name in names[8:])


async def test_a_session_that_was_taken_over_makes_room_too(serve):
    """That it is another server's shows when it is to be written, which is no error of the newcomer's."""
    first, second = await serve(max_resident_sessions=1, checkpoint_interval_seconds=3600), await serve()
    await first.open("s")
    await first.ask("Step", step("s"))
    await stand(second)
    await first.open("t")
    assert (await first.ask("Step", step("t"))).step_index == 0


async def test_a_step_behind_one_whose_session_is_brought_waits_its_turn(serve):
    """Both are sent at once; another session's step does not wait for them."""
    served, alone = await serve(max_resident_sessions=1), Alone(fakes.recurrence())
    await served.open("s")
    await served.ask("Step", step("s", 0))
    alone.step(X[0])
    await served.open("t")  # and s leaves
    stream = served.stream()
    for number in range(1, 4):
        stream.receive(pb.StreamRequest(request_id=number, step=step("s", number)).SerializeToString())
    found = [await answer(stream) for _ in range(3)]
    assert [each.request_id for each in found] == [1, 2, 3]
    assert [bits(each.step.y) for each in found] == [alone.step(X[row]) for row in range(1, 4)]


async def test_a_stream_hears_what_became_of_sessions_that_cannot_be_brought(serve):
    """A step has its error, a frame its entry's; a half-closed stream ends when all is answered."""
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
    assert [(error.entry, error.error.reason) for error in second.frame.errors] == [(0, "SESSION_NOT_FOUND")]
    assert await fakes.ending(stream) is None


async def test_a_step_of_index_0_opens_its_session_in_the_store(serve):
    """On a stream and as a call; a value that is wrong opens nothing."""
    served = await serve()
    assert (await served.refused("Step", pb.StepRequest(session_id="s", x=[1], step_index=0))).code == 3
    assert not served.store.rows
    assert (await served.ask("Step", step(step_index=0))).step_index == 0
    (found,) = await talk(served.stream(), pb.StreamRequest(step=step("t", step_index=0)))
    assert found.step.step_index == 0
    assert set(served.store.rows) == {"\0s", "\0t"}


async def test_idle_sessions_expire_in_the_store_too(serve):
    """And say so; but none does before the server has run for as long."""
    served = await serve(max_resident_sessions=1, session_ttl_seconds=0.2)
    await served.open("s")
    await served.ask("Step", step("s"))
    await served.open("t")
    await until(lambda: "\0s" not in served.store.rows)
    assert (await served.refused("Step", step("s", 1))).reason == "SESSION_EXPIRED"


async def test_who_opens_a_session_hears_where_it_stands_not_where_it_stood(serve):
    """Though the server has one in memory, which another server has taken over and moved on."""
    first, second = await serve(checkpoint_interval_seconds=3600), await serve()
    await first.open("s")
    await stand(second)
    await second.ask("Step", step(row=0))
    await stored(second, num_steps=1)
    assert (await stand(first)).next_step_index == 1
    first.store.trouble = "gone"
    assert (await stand(first)).next_step_index == 1


async def test_a_session_closed_elsewhere_is_not_brought_back(serve):
    """A row that is gone, while the store has lost nothing, was closed by who took the session over."""
    first, second = await serve(checkpoint_interval_seconds=3600), await serve()
    await first.open("s")
    await first.ask("Step", step())
    await stand(second)
    await second.ask("CloseSession", pb.CloseSessionRequest(session_id="s"))
    await until(lambda: not second.store.rows)
    opened = await first.ask("OpenSession", pb.OpenSessionRequest(session_id="s"))
    assert (opened.created, opened.session.next_step_index) == (True, 0)


async def test_a_store_that_runs_anew_is_told_all_that_is_in_memory(serve):
    """Also of sessions that rest: what was said to be stored is so again."""
    served = await serve()
    await served.open("s")
    await served.ask("Step", step())
    await stored(served, num_steps=1)
    served.store.rows.clear()
    served.store.run = "second"
    await until(lambda: "\0s" in served.store.rows)
    assert snapshot.decode(served.store.rows["\0s"].record).progress.next_step[0] == 1


async def test_a_session_does_not_leave_while_its_write_is_under_way(serve):
    """The write may fail yet: what it had goes into another one first."""
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


async def test_a_fault_in_the_store_is_got_over(serve):
    """What is no error of the store's is logged, tried again, and loses nothing."""
    served = await serve()
    await served.open("s")
    write = served.store.write

    async def broken(writes):
        served.store.write = write
        raise RuntimeError("a mistake")

    served.store.write = broken
    await served.ask("Step", step())
    await stored(served, num_steps=1)


async def test_a_checkpoint_ends_though_sessions_change_while_it_is_written(serve):
    """What changes meanwhile is of the next one: a busy server writes each session once an interval."""
    served = await serve(checkpoint_interval_seconds=3600)
    await served.open(*"abc")
    for name in "abc":
        await served.ask("Step", step(name))
    changes, engine = served.write_behind.changes, served.engines[0]
    changes.begin()
    written = []
    while (checkpoint := changes.take(2, everything=True)) is not None:
        written += [write.key for write in checkpoint.writes]
        for name in "abc":
            await served.ask("Step", step(name, 1))
        changes.complete(checkpoint, await served.store.write(checkpoint.writes))
    assert sorted(written) == ["\0a", "\0b", "\0c"]
    assert changes.num_changed == 3
    assert (
        engine.sessions.durability.num_durable[[engine.sessions.find(f"\0{name}") for name in "abc"]].min()
        >= 1
    )

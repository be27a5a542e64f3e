"""Sequences with a store: evicted and fetched, taken over, fenced, restarted; steps without a sequence."""

import asyncio

import numpy as np
import pytest
from streamcell.v1 import streamcell_pb2 as api

from service.engine import snapshot
from service.servicers.inference.inference_request import InferenceRequest
from service.servicers.inference.lifecycle import State
from service.servicers.inference.parameters import read_parameters
from service.servicers.inference.sequences import Sequences
from service.servicers.inference.tensors import single_row
from tests import fakes
from tests.fakes import Alone, ending, recurrence
from tests.inference import SERVICE, infer, next_response, talk, y_of

X = np.random.default_rng(16).standard_normal((40, 2)).astype(np.float32)
HUGE = [3e38, 3e38]  # two in a row, and the prediction is not finite
INFER, STREAM = f"{SERVICE}/ModelInfer", f"{SERVICE}/ModelStreamInfer"
SESSION = "inference:recurrence:int:7"
NEVER = {"checkpoint_interval_seconds": 3600}  # the store has only what a request waits for


def request(row=0, sequence=7, **parameters):
    """Returns a request for one step of a sequence, with a row of X."""
    return infer(X[row : row + 1], sequence_id=sequence, **parameters)


async def run(served, row=0, sequence=7, **parameters):
    """Runs a request for one step; returns the index of the step and the prediction's bytes."""
    response = await served.ask(INFER, request(row, sequence, **parameters))
    return response.parameters["step_index"].int64_param, y_of(response).tobytes()


async def refused(served, *arguments, **parameters):
    """Returns the refusal of a request for one step."""
    return await served.refused(INFER, request(*arguments, **parameters))


async def until(condition):
    """Takes turns of the loop until a condition is true."""
    while not condition():
        await fakes.turn()


async def stored(served, num_steps, session_id=SESSION):
    """Waits until so many steps of a sequence are in the store."""
    sessions = served.engines[0].sessions
    await until(lambda: sessions.durability.num_durable[sessions.find(f"\0{session_id}")] == num_steps)


def num_stored(served, session_id=SESSION):
    """Returns how many steps of a sequence the store has."""
    return int(snapshot.decode(served.store.rows[f"\0{session_id}"].record).progress.next_step[0])


class TestRoom:
    """Sequences share the memory with others."""

    async def test_more_sequences_than_memory_holds(self, serve):
        """The least recently used sequences are evicted and fetched again, with the same bits."""
        served = await serve(max_resident_sessions=4)
        alone = {number: Alone(recurrence()) for number in range(1, 13)}
        for row in range(4):
            for number, each in alone.items():
                flags = {"sequence_start": row == 0, "sequence_end": row == 3}
                assert await run(served, row, number, **flags) == (row, each.step(X[row]))
        await until(lambda: not served.store.rows)

    async def test_a_stream_of_more_sequences_than_memory_holds(self, serve):
        """With many requests at once, some of several steps, each sequence has its answers in order."""
        served = await serve(max_resident_sessions=4)
        stream, alone = served.stream(STREAM), {number: Alone(recurrence()) for number in range(1, 9)}
        for begin in (True, False):
            for some in ((1, 2, 3), (4, 5, 6), (7, 8)):  # of more, all with work, none could make room
                rows = [(at, number) for at in range(5) for number in some]
                parts = [X[None, :3] if at == 2 else X[at : at + 1] for at, _ in rows]
                requests = [
                    infer(x, sequence_id=number, sequence_start=begin and not at, request_id=str(number))
                    for (at, number), x in zip(rows, parts, strict=True)
                ]
                found = [(each.infer_response.id, each) for each in await talk(stream, *requests)]
                for number in some:
                    answers = [
                        y_of(each.infer_response).tobytes() for name, each in found if name == str(number)
                    ]
                    asked = [x for (_, of), x in zip(rows, parts, strict=True) if of == number]
                    assert answers == [alone[number].fold(x.reshape(-1, 2)) for x in asked]

    async def test_a_request_that_waits_for_the_store_delays_only_its_own_sequence(self, serve):
        """Requests behind it wait, an end and a start too; requests of other sequences do not."""
        served = await serve(max_resident_sessions=2, **NEVER)
        await run(served, 0, 1, sequence_start=True)
        await run(served, 0, 2, sequence_start=True)
        stream = served.stream(STREAM)
        served.store.is_blocked = True  # no room can be made for the third
        behind = [
            request(0, 3, sequence_start=True, request_id="3 start"),
            request(1, 3, sequence_end=True, request_id="3 end"),
            request(0, 3, sequence_start=True, request_id="3 anew"),
        ]
        for each in behind:
            stream.receive(each.SerializeToString())
        (found,) = await talk(stream, request(1, 2, request_id="2"))
        assert found.infer_response.id == "2"
        served.store.is_blocked = False
        found = [await next_response(stream) for _ in behind]
        assert [(each.infer_response.id, each.error_message) for each in found] == [
            ("3 start", ""),
            ("3 end", ""),
            ("3 anew", ""),
        ]
        alone, anew = Alone(recurrence()), Alone(recurrence())
        y = [each.infer_response.raw_output_contents[0] for each in found]
        assert y == [alone.step(X[0]), alone.step(X[1]), anew.step(X[0])]

    async def test_steps_without_a_sequence_write_nothing(self, serve):
        """No row and no write, for one step or many, failed ones, and ones in flight at the end."""
        served = await serve()
        for x in (X[:1], X[None, :9]):
            response = await served.ask(INFER, infer(x))
            assert y_of(response).tobytes() == Alone(recurrence()).fold(x.reshape(-1, 2))
            assert not response.parameters
        assert (await served.refused(INFER, infer([[HUGE, HUGE]]))).code == 3
        in_flight = asyncio.create_task(served.ask(INFER, infer(X[None, :9])))
        await until(lambda: served.engines[0].last_applied_ns)
        await served.write_behind.stop()
        await in_flight
        assert not served.store.rows
        assert served.store.num_writes == 0
        assert served.metrics.registry.get_sample_value("streamcell_store_changed_sessions") in (None, 0)

    async def test_steps_without_a_sequence_find_room_in_a_full_memory(self, serve):
        """A sequence is evicted meanwhile, and fetched again."""
        served = await serve(max_resident_sessions=1, **NEVER)
        alone = Alone(recurrence())
        assert await run(served, 0, sequence_start=True) == (0, alone.step(X[0]))
        response = await served.ask(INFER, infer(X[:1]))
        assert y_of(response).tobytes() == Alone(recurrence()).step(X[0])
        assert await run(served, 1) == (1, alone.step(X[1]))


class TestOwnership:
    """Which server has a sequence."""

    async def test_a_sequence_moves_to_another_server_by_its_step_index(self, serve):
        """The bits are as on one server; without an index the error says what to do."""
        first, second, alone = await serve(), await serve(), Alone(recurrence())
        for row in range(3):
            assert await run(first, row, sequence_start=row == 0) == (row, alone.step(X[row]))
        await stored(first, 3)
        refusal = await refused(second, 3)
        assert (refusal.code, refusal.reason) == (10, "SESSION_FENCED")
        assert refusal.message.startswith("sequence '7' of recurrence/1 is another server's")
        assert (await refused(second, 9, step_index=9)).reason == "STEP_GAP"
        assert await run(second, 3, step_index=3) == (3, alone.step(X[3]))
        assert await run(second, 4) == (4, alone.step(X[4]))

    async def test_a_drained_server_gives_up_its_sequences(self, serve):
        """Another server runs the sequence on at once, without a step index."""
        first, second, alone = await serve(**NEVER), await serve(), Alone(recurrence())
        for row in range(3):
            assert await run(first, row, sequence_start=row == 0) == (row, alone.step(X[row]))
        assert await first.write_behind.stop()
        assert await run(second, 3) == (3, alone.step(X[3]))

    async def test_a_fenced_sequence_is_refused_until_it_is_begun_anew(self, serve):
        """The old owner's next write fails; a start there restarts the sequence and takes it back."""
        first, second = await serve(), await serve()
        await run(first, 0, sequence_start=True)
        await stored(first, 1)
        await run(second, 1, step_index=1)
        await run(first, 1)  # the first does not know yet
        await until(lambda: not len(first.engines[0].sessions))
        for flags in ({}, {"step_index": 2}):
            assert (await refused(first, 2, **flags)).reason == "SESSION_FENCED"
        alone = Alone(recurrence())
        assert await run(first, 5, sequence_start=True) == (0, alone.step(X[5]))
        assert await run(first, 6) == (1, alone.step(X[6]))
        assert num_stored(first) >= 1
        await run(second, 2)
        await until(lambda: not len(second.engines[0].sessions))

    async def test_a_restart_takes_a_sequence_back_that_another_server_took(self, serve):
        """The server has the sequence in memory, and learns from the store that another has it."""
        first, second = await serve(**NEVER), await serve(**NEVER)
        await run(first, 0, sequence_start=True)
        await run(second, 0, step_index=0)
        alone = Alone(recurrence())
        stream = first.stream(STREAM)
        found = await talk(
            stream, request(5, sequence_start=True, request_id="0"), request(6, request_id="1")
        )
        assert [each.infer_response.id for each in found] == ["0", "1"]
        assert [y_of(each.infer_response).tobytes() for each in found] == [alone.step(X[5]), alone.step(X[6])]
        row = first.store.rows[f"\0{SESSION}"]
        assert (row.owner, num_stored(first)) == (first.store.owner, 1)

    async def test_a_start_takes_a_sequence_over_and_restarts_it(self, serve):
        """The other server still has the sequence; its old steps leave the store."""
        first, second, alone = await serve(), await serve(**NEVER), Alone(recurrence())
        await first.ask(INFER, infer(X[None, :5], sequence_id=7, sequence_start=True))
        await stored(first, 5)
        assert await run(second, 5, sequence_start=True) == (0, alone.step(X[5]))
        assert num_stored(second) == 1
        assert await run(second, 6) == (1, alone.step(X[6]))

    async def test_an_ended_sequence_is_gone_everywhere(self, serve):
        """A new sequence of the same id may start on any server."""
        first, second = await serve(), await serve()
        await run(first, 0, sequence_start=True)
        await run(first, 1, sequence_end=True)
        await until(lambda: not first.store.rows)
        assert (await refused(second, 2)).reason == "SESSION_NOT_FOUND"
        assert await run(second, 3, sequence_start=True) == (0, Alone(recurrence()).step(X[3]))

    @pytest.mark.parametrize("flags", [{}, {"step_index": 0}])
    async def test_a_start_replaces_a_record_that_cannot_be_used(self, serve, flags):
        """A restart needs nothing of the record, unless a step_index asks for what was applied."""
        first, second = await serve(), await serve()
        await run(first, 0, sequence_start=True)
        await stored(first, 1)
        row = first.store.rows[f"\0{SESSION}"]
        row.record = b"x" + row.record[1:]
        assert (await refused(second, 1, step_index=1)).reason == "SNAPSHOT_REJECTED"
        if flags:
            assert (await refused(second, 1, sequence_start=True, **flags)).reason == "SNAPSHOT_REJECTED"
        else:
            assert await run(second, 1, sequence_start=True) == (0, Alone(recurrence()).step(X[1]))


class TestWrites:
    """What is in the store, and when."""

    async def test_responses_say_how_many_steps_are_stored(self, serve):
        """Responses to single steps and to several have the parameter num_durable_steps."""
        served = await serve(**NEVER)

        async def num_durable(x, **flags):
            response = await served.ask(INFER, infer(x, sequence_id=7, **flags))
            return response.parameters["num_durable_steps"].int64_param

        assert await num_durable(X[:1], sequence_start=True) == 0
        await served.catalog.persistence.wait_until_stored(served.catalog.find("", SESSION))
        assert await num_durable(X[1:2]) == 1
        assert await num_durable(X[None, 2:5]) == 1
        assert (
            await num_durable(X[:1], sequence_start=True) == 1
        )  # a restart is in the store before it is answered

    async def test_a_restart_is_stored_before_it_is_answered(self, serve):
        """After a crash the old steps must not come back. The request behind the restart waits with it."""
        served = await serve(**NEVER)
        await served.ask(INFER, infer(X[None, :5], sequence_id=7, sequence_start=True))
        await served.catalog.persistence.wait_until_stored(served.catalog.find("", SESSION))
        served.store.is_blocked = True
        stream = served.stream(STREAM)
        restart = infer(X[None, 5:14], sequence_id=7, sequence_start=True, request_id="0")
        for each in (restart, request(14, request_id="1")):
            stream.receive(each.SerializeToString())
        (found,) = await talk(stream, request(0, 8, request_id="other"))
        assert "SESSION_NOT_FOUND" in str(found)
        await until(lambda: served.store.num_writes > 1)
        assert stream.take() is None
        served.store.is_blocked = False
        alone = Alone(recurrence())
        assert [y_of((await next_response(stream)).infer_response).tobytes() for _ in range(2)] == [
            alone.fold(X[5:14]),
            alone.step(X[14]),
        ]
        assert num_stored(served) == 9

    async def test_a_restart_does_not_count_an_earlier_write_as_its_own(self, serve):
        """A write under way has the sequence as it was before the restart."""
        served = await serve(**NEVER)
        await served.ask(INFER, infer(X[None, :5], sequence_id=7, sequence_start=True))
        session = served.catalog.find("", SESSION)
        served.store.is_blocked = True
        before = asyncio.create_task(served.catalog.persistence.wait_until_stored(session))
        await until(lambda: served.store.num_writes)
        restart = asyncio.create_task(served.ask(INFER, request(5, sequence_start=True)))
        await until(lambda: session.next_step_index == 1)
        served.store.is_blocked = False
        await before
        assert session.num_durable_steps <= 1
        await restart
        assert (session.num_durable_steps, num_stored(served)) == (1, 1)

    @pytest.mark.parametrize("restarts", [True, False])
    async def test_a_checkpoint_has_no_part_of_a_request(self, serve, restarts):
        """A request is applied as a whole or not at all: the store has the sequence before it or after it."""
        served, alone = await serve(max_piece_steps=1, **NEVER), Alone(recurrence())
        for row in range(3):
            await run(served, row, sequence_start=row == 0)
        alone.fold(X[:3])
        session = served.catalog.find("", SESSION)
        bad = [[X[0].tolist()] * 30 + [HUGE, HUGE]]
        task = asyncio.create_task(served.refused(INFER, infer(bad, sequence_id=7, sequence_start=restarts)))
        await until(lambda: session.next_step_index not in (0, 3))
        await served.catalog.persistence.wait_until_stored(session)
        assert not task.done()
        assert num_stored(served) == 3
        assert (await task).code == 3
        assert (session.next_step_index, session.num_durable_steps) == (3, 3)
        assert await run(served, 3) == (3, alone.step(X[3]))

    async def test_without_its_store_sequences_run_on(self, serve):
        """New sequences and restarts are refused, all else runs; afterwards everything works again."""
        served, alone = await serve(), Alone(recurrence())
        assert await run(served, 0, sequence_start=True) == (0, alone.step(X[0]))
        served.store.trouble = "gone"
        assert await run(served, 1) == (1, alone.step(X[1]))
        await until(lambda: served.engines[0].sessions.durability.trouble)
        assert (await refused(served, 0, 8, sequence_start=True)).reason == "STORE_UNAVAILABLE"
        assert (await refused(served, 0, 9)).reason == "STORE_UNAVAILABLE"
        for x in (X[:1], X[None, :3]):
            restart = infer(x, sequence_id=7, sequence_start=True)
            assert (await served.refused(INFER, restart)).reason == "STORE_UNAVAILABLE"
        await served.ask(INFER, infer(X[:1]))
        assert await run(served, 2) == (2, alone.step(X[2]))
        served.store.trouble = ""
        await stored(served, 3)
        assert await run(served, 0, 8, sequence_start=True) == (0, Alone(recurrence()).step(X[0]))

    async def test_a_durable_sequences_answers_keep_their_order(self, serve):
        """Each answer waits for the store, and a repeat that needs no write waits behind them."""
        served = await serve(**NEVER)
        opened = api.OpenSessionRequest(session_id=SESSION, durable=True, model="recurrence")
        await served.ask("OpenSession", opened)
        assert await run(served, 0) == (0, Alone(recurrence()).step(X[0]))
        served.store.is_blocked = True
        stream = served.stream(STREAM)
        asked = [
            request(1, request_id="1"),
            request(0, step_index=0, request_id="0"),
            request(2, request_id="2"),
        ]
        for each in asked:
            stream.receive(each.SerializeToString())
        for _ in range(20):
            await fakes.turn()
        assert stream.take() is None
        served.store.is_blocked = False
        assert [(await next_response(stream)).infer_response.id for _ in asked] == ["1", "0", "2"]


class TestDepartures:
    """Callers that go, and a store that fails, while a sequence is fetched."""

    async def test_a_request_withdrawn_during_its_fetch_begins_nothing(self, serve):
        """The session that was opened is closed, and the request behind it is answered."""
        served = await serve()
        stream, other = served.stream(STREAM), served.stream(STREAM)
        stream.receive(request(0, sequence_start=True).SerializeToString())
        other.receive(request(1).SerializeToString())
        served.router.close(stream)
        assert (await next_response(other)).error_message.startswith(
            "sequence '7' of recurrence/1 is not live"
        )
        await until(lambda: not served.store.rows)

    async def test_a_request_that_failed_in_its_fetch_can_be_withdrawn(self, serve):
        """A caller may go in the moment of its answer: nothing changes."""
        engine = (served := await serve()).engines[0]
        sequences, done = Sequences(served.catalog), asyncio.get_running_loop().create_future()
        inference = InferenceRequest(
            read_parameters(engine, request(0)),
            single_row(X[0].tobytes()),
            "",
            arrived_ns=engine.now(),
            on_done=done.set_result,
        )
        sequences.submit(inference)
        assert inference.state is State.FETCHING
        assert (await done).error.reason == "SESSION_NOT_FOUND"
        sequences.withdraw(inference)
        assert inference.state is State.ANSWERED

    async def test_a_time_out_passes_during_a_fetch(self, serve):
        """The answer comes in time, and the request begins nothing."""
        served = await serve(max_resident_sessions=1, **NEVER)
        await run(served, 0, 1, sequence_start=True)
        served.store.is_blocked = True
        assert (await refused(served, 0, sequence_start=True, timeout=1)).reason == "TIMED_OUT"
        served.store.is_blocked = False
        await until(lambda: f"\0{SESSION}" not in served.store.rows)

    async def test_a_half_closed_stream_is_answered_after_a_fetch(self, serve):
        """After a half-close the stream ends once the store has answered."""
        served = await serve()
        stream = served.stream(STREAM)
        for each in (request(0, sequence_start=True, request_id="0"), request(0, 9, request_id="1")):
            stream.receive(each.SerializeToString())
        stream.half_close()
        found = {
            each.infer_response.id: each.error_message
            for each in [await next_response(stream) for _ in range(2)]
        }
        assert not found["0"]
        assert "is not live" in found["1"]
        assert await ending(stream) is None

    async def test_a_fault_of_the_store_gives_an_id_alone(self, serve):
        """The sequence can be asked for again."""
        served = await serve()

        async def fail(*_, **__):
            raise RuntimeError("sealed words")

        persistence = served.catalog.persistence
        fetch, persistence.fetch = persistence.fetch, fail
        found = await refused(served, 0)
        assert found.reason == "INTERNAL"
        assert "sealed" not in found.message
        persistence.fetch = fetch
        assert (await refused(served, 0)).reason == "SESSION_NOT_FOUND"

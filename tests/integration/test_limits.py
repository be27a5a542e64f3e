"""Bounds: requests too large, too many or too late are refused with a reason, and disturb no other client."""

import asyncio

import numpy as np
import pytest
from grpc import aio
from streamcell.v1 import streamcell_pb2 as pb

from tests.integration.conftest import BOUND_SECONDS, answer, folded, inputs, refusal


class TestSizes:
    """Bounds on messages, sessions and ids."""

    async def test_too_many_steps_in_a_message(self, start):
        """The error names the bound on steps, for primes and frames."""
        peer = await start(max_message_steps=100)
        session_id = await peer.open()
        found = await refusal(peer.stub.Prime(pb.PrimeRequest(session_id=session_id, x_raw=bytes(4 * 101))))
        assert (found.code, found.reason) == ("INVALID_ARGUMENT", "TOO_MANY_STEPS")
        assert found.metadata["max_message_steps"] == "100"
        call = await peer.stream(session_id)
        frame = pb.Frame(x_raw=bytes(4 * 101), num_steps_raw=np.array([101], "<u4").tobytes())
        await call.write(pb.StreamRequest(frame=frame))
        assert (await answer(call)).error.reason == "TOO_MANY_STEPS"

    async def test_a_message_too_large(self, start):
        """Over the bound the error has its reason; far over it gRPC itself refuses, with the same code."""
        peer = await start(max_message_bytes=10_000)
        session_id = await peer.open()
        for size, reason in ((12_000, "MESSAGE_TOO_LARGE"), (100_000, "")):
            found = await refusal(peer.stub.Prime(pb.PrimeRequest(session_id=session_id, x_raw=bytes(size))))
            assert (found.code, found.reason) == ("RESOURCE_EXHAUSTED", reason)
        call = await peer.stream(session_id)
        await call.write(pb.StreamRequest(frame=pb.Frame(x_raw=bytes(12_000))))
        assert await asyncio.wait_for(call.code(), BOUND_SECONDS) == aio.grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await peer.stub.Step(pb.StepRequest(session_id=session_id, x=[0.5]))).step_index == 0

    async def test_sessions_are_bounded(self, start):
        """A session above the bound is refused, and there is room when another session ends."""
        peer = await start(max_resident_sessions=2)
        first, _ = await peer.open(), await peer.open()
        found = await refusal(peer.open())
        assert (found.code, found.reason) == ("RESOURCE_EXHAUSTED", "SESSIONS_FULL")
        await peer.stub.CloseSession(pb.CloseSessionRequest(session_id=first))
        await peer.open()

    async def test_a_reused_slot_starts_clean(self, start, mackey_glass):
        """The session in the slot of a closed session begins at zero."""
        peer = await start(max_resident_sessions=1)
        x = inputs(seed=1, num_steps=10)
        for _ in range(2):
            session_id = await peer.open()
            y = [(await peer.stub.Step(pb.StepRequest(session_id=session_id, x=row))).y for row in x]
            assert np.array_equal(np.array(y, np.float32), folded(mackey_glass, x))
            await peer.stub.CloseSession(pb.CloseSessionRequest(session_id=session_id))

    async def test_an_idle_session_expires_and_says_so(self, start):
        """An idle session becomes SESSION_EXPIRED, not unknown; no step opens it again by itself."""
        peer = await start(session_ttl_seconds=0.01)
        session_id = await peer.open()
        await peer.until("streamcell_sessions_expired_total", lambda count: count == 1)
        found = await refusal(peer.stub.Step(pb.StepRequest(session_id=session_id, x=[0.5])))
        assert (found.code, found.reason) == ("NOT_FOUND", "SESSION_EXPIRED")
        resumed = pb.OpenSessionRequest(session_id=session_id, mode=pb.OPEN_MODE_RESUME)
        assert (await refusal(peer.stub.OpenSession(resumed))).reason == "SESSION_EXPIRED"

    @pytest.mark.parametrize("session_id", ["with space", "ü", "x" * 129, "nul\0"])
    async def test_an_id_that_is_not_valid_is_refused(self, peer, session_id):
        """Ids are printable ASCII of bounded length; the error is short for any id."""
        found = await refusal(peer.open(session_id))
        assert (found.reason, found.metadata["field"]) == ("INVALID_ARGUMENT", "session_id")
        long = await refusal(peer.stub.GetSession(pb.GetSessionRequest(session_id="y" * 100_000)))
        assert long.reason == "SESSION_NOT_FOUND"
        assert len(long.message) < 500


class TestQueue:
    """A queue that is full or busy."""

    async def test_a_full_queue_refuses_at_once_with_a_retry_delay(self, start):
        """Steps beyond the bound are OVERLOADED; the steps in the queue are served."""
        peer = await start(max_queue_steps=2048, max_batch_steps=8, max_piece_steps=1)
        sessions = [await peer.open() for _ in range(4)]
        x = inputs(seed=1, num_steps=2000)  # so long that all requests arrive while the first is in the queue
        primes = [
            peer.stub.Prime(pb.PrimeRequest(session_id=session_id, x_raw=x.tobytes()))
            for session_id in sessions
        ]
        outcomes = await asyncio.gather(*primes, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, aio.AioRpcError)]
        assert 1 <= len(refused) < 4
        for error in refused:
            found = await refusal(_raise(error))
            assert (found.code, found.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
            assert found.retry_delay_seconds > 0

    async def test_a_full_queue_refuses_calls_streams_and_frames_while_it_is_full(self, start):
        """None waits for the long history to end; each gets a retry delay, and is served afterwards."""
        peer = await start(max_queue_steps=2, max_piece_steps=4)
        session_id = await peer.open()
        unary, streamed, framed = (
            pb.StepRequest(session_id=session_id, x=[0.5]),
            await peer.stream(session_id),
            await peer.stream(session_id),
        )
        priming = await busy(peer, 20_000)
        found = await refusal(peer.stub.Step(unary))
        assert (found.code, found.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert found.retry_delay_seconds > 0
        requests = (
            (streamed, pb.StreamRequest(step=pb.StepRequest(x=[0.5]))),
            (framed, pb.StreamRequest(frame=pb.Frame(x_raw=inputs(seed=1, num_steps=1).tobytes()))),
        )
        for call, request in requests:
            await call.write(request)
            error = (await answer(call)).error
            assert error.reason == "OVERLOADED"
            assert error.retry_delay_seconds > 0
        assert not priming.done()
        assert (await priming).step_index == 19_999
        assert (await peer.stub.Step(unary)).step_index == 0
        for index, (call, request) in enumerate(requests, 1):
            await call.write(request)
            reply = await answer(call)
            assert not reply.error.reason
            if reply.WhichOneof("response") == "step":
                assert reply.step.step_index == index
            else:
                assert np.frombuffer(reply.frame.step_index_raw, "<u8").tolist() == [index]

    async def test_single_steps_get_in_between_the_pieces_of_a_long_history(self, peer, mackey_glass):
        """Steps of other sessions are answered meanwhile, with the same bits as alone."""
        x = inputs(seed=6, num_steps=20)
        session_id = await peer.open()
        call = await peer.stream(await peer.open())
        priming = await busy(peer, 60_000)
        unary, streamed = [], []
        for row in x:
            unary.append((await peer.stub.Step(pb.StepRequest(session_id=session_id, x=row))).y)
            await call.write(pb.StreamRequest(step=pb.StepRequest(x=row)))
            streamed.append((await answer(call)).step.y)
        assert not priming.done()
        for y in (unary, streamed):
            assert np.array_equal(np.array(y, np.float32), folded(mackey_glass, x))
        assert (await priming).step_index == 59_999

    async def test_one_session_stepped_from_everywhere_at_once_moves_a_step_at_a_time(
        self, peer, mackey_glass
    ):
        """Streams, frames and calls of one session never share a batch: each index is answered once."""
        x = np.full((60, 1), 0.7, np.float32)  # the same input each time, so that no order is the wrong one
        session_id = await peer.open()
        stream, frames = await peer.stream(session_id), await peer.stream(session_id)
        for row in x[:20]:
            await stream.write(pb.StreamRequest(step=pb.StepRequest(x=row)))
            await frames.write(pb.StreamRequest(frame=pb.Frame(x_raw=row.tobytes())))
        calls = [peer.stub.Step(pb.StepRequest(session_id=session_id, x=row)) for row in x[40:]]
        found = {}
        for reply in [await answer(stream) for _ in range(20)]:
            found[reply.step.step_index] = list(reply.step.y)
        for frame in [(await answer(frames)).frame for _ in range(20)]:
            (index,) = np.frombuffer(frame.step_index_raw, "<u8").tolist()
            found[index] = np.frombuffer(frame.y_raw, np.float32).tolist()
        for reply in await asyncio.gather(*calls):
            found[reply.step_index] = list(reply.y)
        assert sorted(found) == list(range(60))
        y = np.array([found[index] for index in range(60)], np.float32)
        assert np.array_equal(y, folded(mackey_glass, x))

    async def test_a_step_whose_deadline_passes_while_it_waits_is_withdrawn(self, peer):
        """The step waits behind a long history of its session. It moves nothing, and the history goes on."""
        session_id = await peer.open()
        history = pb.PrimeRequest(session_id=session_id, x_raw=inputs(seed=4, num_steps=20_000).tobytes())
        priming = asyncio.ensure_future(peer.stub.Prime(history))
        await peer.until("streamcell_queued_steps", lambda count: count > 0)
        found = await refusal(peer.stub.Step(pb.StepRequest(session_id=session_id, x=[0.5]), timeout=0.05))
        assert found.code == "DEADLINE_EXCEEDED"
        assert (await priming).step_index == 19_999
        assert (await peer.stub.Step(pb.StepRequest(session_id=session_id, x=[0.5]))).step_index == 20_000


async def busy(peer, num_steps):
    """Begins a long prime of a new session, and returns the call once its steps are in the queue."""
    history = pb.PrimeRequest(
        session_id=await peer.open(), x_raw=inputs(seed=5, num_steps=num_steps).tobytes(), step_index=0
    )
    priming = asyncio.ensure_future(peer.stub.Prime(history))
    await peer.until("streamcell_queued_steps", lambda count: count > 0)
    return priming


async def _raise(error):
    raise error


class TestTrouble:
    """One caller's trouble, which no other caller notices."""

    async def test_one_callers_cancellation_touches_nobody_else(self, start, mackey_glass):
        """Many callers cancel in the middle; the others get the same bits as alone."""
        peer = await start(max_early_resets=1000)  # they share a connection, as behind a gateway
        x = inputs(seed=2, num_steps=30)
        staying, leaving = [await peer.open() for _ in range(5)], [await peer.open() for _ in range(20)]

        async def stay(session_id):
            return [(await peer.stub.Step(pb.StepRequest(session_id=session_id, x=row))).y for row in x]

        async def leave(session_id):
            for row in x:
                call = peer.stub.Step(pb.StepRequest(session_id=session_id, x=row))
                await asyncio.sleep(0)
                call.cancel()

        replies = await asyncio.gather(*map(stay, staying), *map(leave, leaving))
        for y in replies[:5]:
            assert np.array_equal(np.array(y, np.float32), folded(mackey_glass, x))
        for session_id in leaving:  # each session lives on
            found = await peer.stub.GetSession(pb.GetSessionRequest(session_id=session_id))
            again = await peer.stub.Step(pb.StepRequest(session_id=session_id, x=[0.5]))
            assert again.step_index == found.session.next_step_index

    async def test_a_huge_input_is_refused_if_the_model_has_no_answer_to_it(self, peer, mackey_glass):
        """A finite input that drives the model to infinity changes neither its session nor its batchmates."""
        huge, normal = await peer.open(), await peer.open()
        x = inputs(seed=3, num_steps=1)
        steps = [
            peer.stub.Step(pb.StepRequest(session_id=huge, x=[3.4e38])),
            peer.stub.Step(pb.StepRequest(session_id=normal, x=x[0])),
        ]
        outcomes = await asyncio.gather(*steps, return_exceptions=True)
        assert np.float32(outcomes[1].y[0]) == folded(mackey_glass, x)[0, 0]
        session = (await peer.stub.GetSession(pb.GetSessionRequest(session_id=huge))).session
        if isinstance(outcomes[0], aio.AioRpcError):
            assert session.next_step_index == 0
        else:
            assert np.isfinite(outcomes[0].y[0])

"""The Stream method, over real gRPC."""

import asyncio

import numpy as np
import pytest
from grpc import aio
from streamcell.v1 import streamcell_pb2 as pb

from tests.integration.conftest import BOUND_SECONDS, answer, folded, inputs, refusal_of


def step(x, **fields):
    """Returns a stream's message with one step."""
    request_id = fields.pop("request_id", 0)
    return pb.StreamRequest(request_id=request_id, step=pb.StepRequest(x=x, **fields))


class TestSteps:
    """Messages with one step."""

    async def test_one_session_streams(self, peer, mackey_glass):
        """Steps of the only bound session need neither its id nor its number."""
        x = inputs(seed=1, num_steps=50)
        call = await peer.stream(await peer.open())
        got = []
        for row in x:
            await call.write(step(row))
            got.append((await answer(call)).step.y[0])
        await call.done_writing()
        assert await call.read() is aio.EOF
        assert np.array_equal(np.array(got, np.float32), folded(mackey_glass, x)[:, 0])

    async def test_fifty_streams_give_the_same_bits_as_each_session_alone(self, peer, mackey_glass):
        """Streams share batches, and no bit changes."""
        xs = [inputs(seed, num_steps=40) for seed in range(50)]

        async def run(x):
            call = await peer.stream(await peer.open())
            got = []
            for row in x:
                await call.write(step(row))
                got.append((await answer(call)).step.y)
            await call.done_writing()
            return np.array(got, np.float32)

        for x, y in zip(xs, await asyncio.gather(*map(run, xs)), strict=True):
            assert np.array_equal(y, folded(mackey_glass, x))

    async def test_steps_sent_ahead_are_answered_in_order(self, peer, mackey_glass):
        """A client need not wait: the replies of a session have the order of its requests."""
        x = inputs(seed=2, num_steps=600)  # more than may lack an answer, so back-pressure sets in
        call = await peer.stream(await peer.open())

        async def write():
            for number, row in enumerate(x):
                await call.write(step(row, request_id=number + 1))
            await call.done_writing()

        writer = asyncio.create_task(write())
        replies = [await answer(call) for _ in x]
        await writer
        assert [reply.request_id for reply in replies] == list(range(1, 601))
        assert [reply.step.step_index for reply in replies] == list(range(600))
        assert np.array_equal(
            np.array([reply.step.y for reply in replies], np.float32), folded(mackey_glass, x)
        )

    async def test_steps_name_sessions_by_id_or_number(self, peer):
        """Many sessions share a stream; each reply names its session."""
        first, second = await peer.open(), await peer.open()
        call = await peer.stream(first, second)
        await call.write(step([0.5], session=1, request_id=7))
        reply = await answer(call)
        assert (reply.request_id, reply.session, reply.session_id) == (7, 1, "")
        await call.write(step([0.5], session_id=first))
        reply = await answer(call)
        assert (reply.session, reply.session_id) == (0, first)


class TestErrors:
    """Errors within a stream, and the end of a stream."""

    async def test_an_error_of_a_step_ends_that_step_and_not_the_stream(self, peer):
        """After a refused step the stream goes on, and the session has not moved."""
        call = await peer.stream(await peer.open())
        for wrong, reason in (
            (step([float("nan")]), "INVALID_ARGUMENT"),
            (step([0.5, 0.5]), "INVALID_ARGUMENT"),
            (step([0.5], step_index=5), "STEP_GAP"),
            (step([0.5], session=9), "INVALID_ARGUMENT"),
            (step([0.5], session_id="nobody"), "SESSION_NOT_FOUND"),
            (step([0.5], model="nyc-taxi"), "MODEL_CHANGED"),
            (pb.StreamRequest(request_id=3), "INVALID_ARGUMENT"),
            (pb.StreamRequest(config=pb.StreamConfig(session_ids=["nobody"])), "SESSION_NOT_FOUND"),
        ):
            await call.write(wrong)
            reply = await answer(call)
            assert (reply.error.reason, reply.request_id) == (reason, wrong.request_id)
            assert reply.error.message
        await call.write(step([0.5]))
        assert (await answer(call)).step.step_index == 0

    async def test_bytes_that_are_no_message_end_the_stream_with_a_reason(self, peer):
        """Bytes that cannot be parsed have no request number to answer: the stream ends, and no other."""
        other = await peer.stream(await peer.open())
        raw = peer.channel.stream_stream("/streamcell.v1.StreamcellService/Stream")
        call = raw()
        await call.write(b"\xff\xff\xff")
        assert await asyncio.wait_for(call.code(), BOUND_SECONDS)
        with pytest.raises(aio.AioRpcError) as caught:
            await call.read()
        assert refusal_of(caught.value).reason == "INVALID_ARGUMENT"
        await other.write(step([0.5]))
        assert (await answer(other)).step.step_index == 0

    async def test_a_cancelled_stream_leaves_its_sessions_usable(self, peer):
        """Sessions outlive their stream."""
        session_id = await peer.open()
        call = await peer.stream(session_id)
        await call.write(step([0.5]))
        await answer(call)
        call.cancel()
        again = await peer.stream(session_id)
        await again.write(step([0.5]))
        assert (await answer(again)).step.step_index == 1


class TestFrames:
    """Messages with many steps."""

    async def test_frames_run_many_sessions_at_once(self, peer, mackey_glass):
        """A frame of bound sessions, one step each, equals each session alone."""
        xs = np.stack([inputs(seed, num_steps=20) for seed in range(30)])  # (S, T, F)
        call = await peer.stream(*[await peer.open() for _ in xs])
        got = []
        for t in range(20):
            await call.write(pb.StreamRequest(frame=pb.Frame(x_raw=xs[:, t].tobytes())))
            got.append(np.frombuffer((await answer(call)).frame.y_raw, np.float32))
        for number, x in enumerate(xs):
            assert np.array_equal(np.array(got)[:, number], folded(mackey_glass, x)[:, 0])

    async def test_a_frame_may_hold_many_steps_of_each_session(self, peer, mackey_glass):
        """Entries of different lengths, longer than a piece and a batch too, run to their ends."""
        counts = [1, 70, 3, 200]
        xs = [inputs(seed, num_steps=count) for seed, count in enumerate(counts)]
        call = await peer.stream(*[await peer.open() for _ in xs])
        frame = pb.Frame(
            session_raw=np.arange(4, dtype="<u4").tobytes(),
            num_steps_raw=np.array(counts, "<u4").tobytes(),
            x_raw=np.concatenate(xs).tobytes(),
        )
        await call.write(pb.StreamRequest(frame=frame))
        y = np.frombuffer((await answer(call)).frame.y_raw, np.float32)
        assert np.array_equal(y, np.concatenate([folded(mackey_glass, x)[:, 0] for x in xs]))

    async def test_an_entry_that_fails_leaves_the_others_of_its_frame_served(self, peer, mackey_glass):
        """An unknown session or a gap is an error of its entry; the other entries are applied."""
        good, ahead = await peer.open(), await peer.open()
        call = await peer.stream()
        frame = pb.Frame(
            session_ids=["nobody", good, ahead],
            x_raw=np.full(3, 0.8, np.float32).tobytes(),
            step_index_raw=np.array([0, 0, 4], "<u8").tobytes(),
        )
        await call.write(pb.StreamRequest(frame=frame))
        response = (await answer(call)).frame
        assert [(e.entry, e.error.reason) for e in response.errors] == [
            (0, "SESSION_NOT_FOUND"),
            (2, "STEP_GAP"),
        ]
        y = np.frombuffer(response.y_raw, np.float32)
        assert np.isnan(y[[0, 2]]).all()
        assert y[1] == folded(mackey_glass, np.full((1, 1), 0.8, np.float32))[0, 0]

    async def test_a_frame_sent_again_gets_its_earlier_replies(self, peer):
        """Repeated rows get their remembered replies; new rows behind them are applied."""
        x = inputs(seed=6, num_steps=6)
        call = await peer.stream(await peer.open())

        async def send(count):
            frame = pb.Frame(
                num_steps_raw=np.array([count], "<u4").tobytes(),
                x_raw=x[:count].tobytes(),
                step_index_raw=bytes(8),
            )
            await call.write(pb.StreamRequest(frame=frame))
            return (await answer(call)).frame

        first, again, longer = await send(4), await send(4), await send(6)
        assert first == again
        assert longer.y_raw[: len(first.y_raw)] == first.y_raw
        assert not longer.errors

    @pytest.mark.parametrize(
        ("frame", "field"),
        [
            (pb.Frame(x_raw=bytes(7)), "x_raw"),
            (pb.Frame(x_raw=np.full(2, np.inf, np.float32).tobytes()), "x_raw"),
            (pb.Frame(x_raw=bytes(8), num_steps_raw=bytes(8)), "num_steps_raw"),
            (pb.Frame(x_raw=bytes(8), num_steps_raw=bytes(3)), "num_steps_raw"),
            (pb.Frame(x_raw=bytes(8), time_raw=bytes(8)), "time_raw"),
            (pb.Frame(x_raw=bytes(8), step_index_raw=b"\xff" * 16), "step_index_raw"),
            (pb.Frame(x_raw=bytes(8), session_raw=bytes(8)), "session_raw"),  # number 0 twice
            (pb.Frame(x_raw=bytes(8), session_raw=b"\x09\0\0\0" * 2), "session_raw"),
            (pb.Frame(x_raw=bytes(8), session_ids=["a"], session_raw=bytes(4)), "session_raw"),
        ],
    )
    async def test_a_frame_that_is_not_valid_is_refused_whole(self, peer, frame, field):
        """The error names the field, and no row is applied."""
        ids = [await peer.open(), await peer.open()]
        call = await peer.stream(*ids)
        await call.write(pb.StreamRequest(frame=frame))
        error = (await answer(call)).error
        assert (error.reason, error.metadata["field"]) == ("INVALID_ARGUMENT", field)
        for session_id in ids:
            session = (await peer.stub.GetSession(pb.GetSessionRequest(session_id=session_id))).session
            assert session.next_step_index == 0

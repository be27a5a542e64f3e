"""A gateway that does not use the client library: many sessions on one stream, with frames.

The gateway numbers its steps. It sends steps again that were not answered, and answered steps that a server
lost: from the step at which the server says that each session stands.
"""

import asyncio
import time

import grpc
import numpy as np
from grpc import aio
from streamcell import errors
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

from tests.e2e.conftest import BOUND_SECONDS
from tests.e2e.survival.fleet import MODEL
from tests.integration.conftest import folded, inputs

MAX_STEPS = 100_000  # of one session
OPEN_SECONDS = 10  # then the call is repeated: the connection may lead to a server that was killed
MAX_ENTRY_STEPS = 3  # new ones; fewer than the server keeps replies for
# The errors that the end or the start of a server may cause; any other error is a failure.
EXPECTED_ERRORS = (errors.Unavailable, errors.Fenced, errors.SessionNotFound, errors.StepGap)


class Gateway:
    """A client of a load, with one session for each seed; see `load.LoadClient`."""

    def __init__(self, load, seeds):
        self.load = load
        self.name = f"Gateway of seeds {seeds[0]} to {seeds[-1]}"
        self._chance = np.random.default_rng(seeds[0])
        self.session_ids = [f"gateway-{seed}" for seed in seeds]
        self._x = np.stack([inputs(seed, MAX_STEPS)[:, 0] for seed in seeds])  # (S, T)
        self._y = [[] for _ in seeds]
        self._next_steps = np.zeros(len(seeds), np.int64)
        self.num_answered = 0

    async def run(self):
        """Sends frames until the load ends, over as many connections as that takes."""
        deadline = time.monotonic() + BOUND_SECONDS
        while True:
            before = self.num_answered
            try:
                async with aio.insecure_channel(
                    self.load.target, [("grpc.use_local_subchannel_pool", 1)]
                ) as channel:
                    await self._talk(stubs.StreamcellServiceStub(channel))
                return
            except aio.AioRpcError as error:
                failure = errors.from_rpc_error(error)
            except EXPECTED_ERRORS as error:
                failure = error
            if self.num_answered > before:
                deadline = time.monotonic() + BOUND_SECONDS
            if not isinstance(failure, EXPECTED_ERRORS) or time.monotonic() > deadline:
                raise failure

    async def _talk(self, stub):
        self._next_steps[:] = await asyncio.gather(*(self._open(stub, each) for each in self.session_ids))
        call = stub.Stream()
        try:
            await self._ask(call, config=pb.StreamConfig(session_ids=self.session_ids))
            while await self.load.may_continue():
                await self._exchange(call)
            await call.done_writing()
            assert await call.read() is aio.EOF
        finally:
            call.cancel()
        next_steps = await asyncio.gather(*(self._open(stub, each) for each in self.session_ids))
        assert next_steps == [len(y) for y in self._y], self.name

    @staticmethod
    async def _open(stub, session_id):
        """Opens a session, on whichever server it is, and returns the index of its next step."""
        request = pb.OpenSessionRequest(session_id=session_id, model=MODEL)
        try:
            reply = await stub.OpenSession(request, timeout=OPEN_SECONDS, wait_for_ready=True)
        except aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise errors.ConnectionLost("no answer in time") from error
            raise
        return reply.session.next_step_index

    async def _exchange(self, call):
        """Sends the steps that the server lacks of each session, and some new ones; records the answer."""
        answered = np.array([len(y) for y in self._y])
        first = np.minimum(self._next_steps, answered)
        last = answered + self._chance.integers(1, MAX_ENTRY_STEPS + 1, len(first))
        x = np.concatenate([row[a:b] for row, a, b in zip(self._x, first, last, strict=True)])
        frame = pb.Frame(
            num_steps_raw=(last - first).astype("<u4").tobytes(),
            x_raw=x.astype("<f4").tobytes(),
            step_index_raw=first.astype("<u8").tobytes(),
        )
        reply = (await self._ask(call, frame=frame)).frame
        for failed in reply.errors:
            raise errors.from_stream_error(failed.error)
        assert np.array_equal(np.frombuffer(reply.step_index_raw, "<u8"), first), self.name
        # A server may be ahead: it had applied and stored steps that it was killed before answering.
        self._next_steps = np.maximum(self._next_steps, last)
        assert (np.frombuffer(reply.num_durable_steps_raw, "<u8") <= self._next_steps).all(), self.name
        self._record(first, last, np.frombuffer(reply.y_raw, "<f4").reshape(len(x), -1))

    async def _ask(self, call, **request):
        try:
            await call.write(pb.StreamRequest(**request))
        except asyncio.InvalidStateError:  # the call ended between two messages
            raise errors.ConnectionLost("the stream ended") from None
        reply = await call.read()
        if not isinstance(reply, pb.StreamResponse):
            raise errors.ConnectionLost("the stream ended")
        if reply.HasField("error"):
            raise errors.from_stream_error(reply.error)
        return reply

    def _record(self, first, last, y):
        """Records the answers; repeated answers must equal the earlier ones."""
        ends = np.cumsum(last - first)
        for known, a, entry in zip(self._y, first, np.split(y, ends[:-1]), strict=True):
            y_now, num_known = entry.tolist(), len(known) - a
            assert y_now[:num_known] == known[a:], self.name
            known += y_now[num_known:]
        self.num_answered += 1
        self.load.notify()

    def check(self, model):
        """Compares every answer with an uninterrupted run."""
        for x, y in zip(self._x, self._y, strict=True):
            assert np.array_equal(np.array(y, np.float32), folded(model, x[: len(y), None])), self.name

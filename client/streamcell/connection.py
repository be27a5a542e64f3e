"""The way to the servers: calls whose failures are this library's errors, and the move to another server.

One channel is in use at a time. A server that drains or stays silent, or that cannot be reached while
there are other targets, is left for a fresh channel to the next target, once for all the calls that fail on
it; with one target the fresh channel leads to whoever listens there now. Knows nothing of sessions.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TypeAlias, TypeVar

import grpc

from streamcell import errors
from streamcell.channel import channel_options, open_channel, split_targets
from streamcell.errors import ConnectionLost, Draining, StreamcellError, Unavailable
from streamcell.retry import Backoff, Sources
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as pb_grpc
from streamcell.values import Limits, RetryPolicy, Timeout, Tls

Request = TypeVar("Request")
Response = TypeVar("Response")
Metadata = tuple[tuple[str, str], ...]
Stub: TypeAlias = "pb_grpc.StreamcellServiceAsyncStub"
Choose: TypeAlias = "Callable[[Stub], grpc.aio.UnaryUnaryMultiCallable[Request, Response]]"
StreamCall: TypeAlias = "grpc.aio.StreamStreamCall[pb.StreamRequest, pb.StreamResponse]"

_FEW_ATTEMPTS = 5  # before a server that was perhaps never there is given up


class Lane:
    """A channel to one target, and how many calls are under way on it."""

    def __init__(self, target: str, channel: grpc.aio.Channel) -> None:
        self.target = target
        self.channel = channel
        self.stub: Stub = pb_grpc.StreamcellServiceStub(channel)
        self.num_calls = 0


class Connection:
    """A channel to one of several targets, and what each call on it shares."""

    def __init__(
        self,
        target: str,
        *,
        tls: Tls | None,
        metadata: Mapping[str, str],
        timeout: Timeout,
        limits: Limits,
        retry: RetryPolicy,
        sources: Sources,
    ) -> None:
        self.timeout = timeout
        self.limits = limits
        self._targets = split_targets(target)
        self._tls = tls
        self._options = channel_options(timeout, limits, retry, tls)
        self._retry = retry
        self._sources = sources
        self._metadata: Metadata = tuple(metadata.items())
        self._is_closed = False
        self._turn = 0
        self._lane = self._open_lane()
        self._left: set[Lane] = set()  # lanes with calls still under way

    async def aclose(self) -> None:
        """Closes every channel; calls in flight end as cancelled."""
        self._is_closed = True
        for lane in (self._lane, *self._left):
            await lane.channel.close(None)

    def backoff(self, *, insists: bool = True) -> Backoff:
        """Returns a pace for the attempts of one operation; one that does not insist gives up soon."""
        return Backoff(self._retry, self._sources, None if insists else _FEW_ATTEMPTS)

    async def unary(self, choose: "Choose[Request, Response]", request: Request) -> Response:
        """Makes one call of the method chosen from a stub.

        Raises:
            StreamcellError: it failed.
        """
        async with self._using_lane() as lane:
            return await choose(lane.stub)(
                request, timeout=self.timeout.call_seconds, metadata=self._metadata
            )

    async def unary_again(self, choose: "Choose[Request, Response]", request: Request) -> Response:
        """Makes the call that looks for a server after one was lost.

        Waits for a single target to be there; of several the next has its turn if one is not.

        Raises:
            ConnectionLost: no server answered within `connect_seconds`.
            StreamcellError: it failed.
        """
        seconds = self.timeout.connect_seconds
        async with self._using_lane() as lane:
            try:
                return await choose(lane.stub)(
                    request, timeout=seconds, metadata=self._metadata, wait_for_ready=len(self._targets) == 1
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    self._leave(lane)
                    raise ConnectionLost(f"no answer from {lane.target} within {seconds:g} s") from error
                raise

    async def unary_repeated(self, choose: "Choose[Request, Response]", request: Request) -> Response:
        """Makes a call that is safe to repeat a few times.

        Raises:
            StreamcellError: the last attempt's.
        """
        backoff = self.backoff(insists=False)
        while True:
            try:
                return await self.unary(choose, request)
            except StreamcellError as error:
                await backoff.pause(error)

    @contextlib.asynccontextmanager
    async def stream(self) -> AsyncIterator[StreamCall]:
        """Opens a bidirectional stream, cancelled at the end of the block.

        Raises:
            StreamcellError: it failed; errors of the block decide about a move all the same.
        """
        async with self._using_lane() as lane:
            call = lane.stub.Stream(None, metadata=self._metadata)
            try:
                yield call
            finally:
                call.cancel()

    @contextlib.asynccontextmanager
    async def _using_lane(self) -> AsyncIterator[Lane]:
        if self._is_closed:
            raise errors.NotOpen("the client is closed: sessions live inside its `async with`")
        lane = self._lane
        lane.num_calls += 1
        try:
            yield lane
        except grpc.aio.AioRpcError as error:
            failure = errors.from_rpc_error(error)
            self._judge(lane, failure)
            raise failure from error
        except StreamcellError as failure:
            self._judge(lane, failure)
            raise
        finally:
            lane.num_calls -= 1
            if lane in self._left and not lane.num_calls:
                self._left.discard(lane)
                await lane.channel.close(None)

    def _judge(self, lane: Lane, failure: StreamcellError) -> None:
        """Moves on if this failure is one to leave a server for."""
        if isinstance(failure, Unavailable if len(self._targets) > 1 else Draining):
            self._leave(lane)

    def _leave(self, lane: Lane) -> None:
        """Moves on from a lane, unless somebody did before."""
        if lane is self._lane and not self._is_closed:
            self._left.add(lane)
            self._turn = (self._turn + 1) % len(self._targets)
            self._lane = self._open_lane()

    def _open_lane(self) -> Lane:
        target = self._targets[self._turn]
        return Lane(target, open_channel(target, self._tls, self._options))

"""The way to the servers: makes calls, turns their failures into this library's errors, changes servers.

One channel is in use at a time. The connection leaves a server that drains or does not answer. With several
targets it also leaves a server that it cannot reach. It leaves a server once, however many calls fail on it,
and opens a new channel to the next target; with one target the new channel leads to the server that listens
there now. Knows nothing of sessions.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TypeAlias, TypeVar

import grpc

from streamcell import errors, proxies, tls_failures
from streamcell.channel import channel_options, open_channel, split_targets
from streamcell.errors import ConnectionLost, Draining, StreamcellError, Unavailable
from streamcell.retry import Backoff, Sources
from streamcell.token import Token
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as pb_grpc
from streamcell.values import Limits, RetryPolicy, Timeout, Tls

Request = TypeVar("Request")
Response = TypeVar("Response")
Metadata = tuple[tuple[str, str], ...]
Stub: TypeAlias = "pb_grpc.StreamcellServiceAsyncStub"
Choose: TypeAlias = "Callable[[Stub], grpc.aio.UnaryUnaryMultiCallable[Request, Response]]"
StreamCall: TypeAlias = "grpc.aio.StreamStreamCall[pb.StreamRequest, pb.StreamResponse]"

_FEW_ATTEMPTS = 5  # for a server that was perhaps never there


class TargetChannel:
    """A channel to one target, with the number of calls under way on it."""

    def __init__(self, target: str, channel: grpc.aio.Channel) -> None:
        self.target = target
        self.channel = channel
        self.stub: Stub = pb_grpc.StreamcellServiceStub(channel)
        self.num_calls = 0
        self.has_worked = False  # whether a call has succeeded
        # Why no connection came about: kept, as gRPC names one address of several, and not always the same.
        self.tls_problem = ""


class Connection:
    """Makes calls to one of several targets, all with the same metadata, token, time limits and TLS settings.

    Example:
        reply = await connection.unary(lambda stub: stub.GetSession, request)
    """

    def __init__(
        self,
        target: str,
        *,
        tls: Tls | None,
        token: Token | None,
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
        self._options = channel_options(timeout=timeout, limits=limits, retry=retry, tls=tls)
        self._retry = retry
        self._sources = sources
        self._token = token
        self._metadata: Metadata = tuple(metadata.items())
        self._is_closed = False
        self._target_index = 0
        self._channel = self._open_channel()
        self._left_channels: set[TargetChannel] = set()  # each has calls under way

    async def aclose(self) -> None:
        """Closes every channel; calls under way end as cancelled."""
        self._is_closed = True
        for channel in (self._channel, *self._left_channels):
            await channel.channel.close(None)

    def backoff(self, *, gives_up_early: bool = False) -> Backoff:
        """Returns the pace for the attempts of one operation; giving up early means after five attempts."""
        return Backoff(self._retry, self._sources, max_attempts=_FEW_ATTEMPTS if gives_up_early else None)

    async def unary(
        self, choose: "Choose[Request, Response]", request: Request, metadata: Metadata = ()
    ) -> Response:
        """Makes one call of the method that `choose` takes from a stub, with more metadata if any is given.

        Raises:
            StreamcellError: the call failed.
        """
        async with self._using_channel() as channel:
            return await choose(channel.stub)(
                request, timeout=self.timeout.call_seconds, metadata=self._all_metadata(metadata)
            )

    async def unary_reconnecting(
        self, choose: "Choose[Request, Response]", request: Request, metadata: Metadata = ()
    ) -> Response:
        """Makes a call that also looks for a server, for use after a connection was lost.

        Waits until the server listens if there is one target. With several targets it does not wait, so that
        the next attempt asks the next target.

        Raises:
            ConnectionLost: no server answered within `connect_seconds`.
            StreamcellError: the call failed.
        """
        seconds = self.timeout.connect_seconds
        async with self._using_channel() as channel:
            try:
                return await choose(channel.stub)(
                    request,
                    timeout=seconds,
                    metadata=self._all_metadata(metadata),
                    wait_for_ready=len(self._targets) == 1,
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    self._leave(channel)
                    lost = ConnectionLost(f"no answer from {channel.target} within {seconds:g} s")
                    raise _with_way(lost, channel.target) from error
                raise

    async def unary_repeated(self, choose: "Choose[Request, Response]", request: Request) -> Response:
        """Makes a call that is safe to repeat, up to five times.

        Raises:
            StreamcellError: the error of the last attempt.
        """
        backoff = self.backoff(gives_up_early=True)
        while True:
            try:
                return await self.unary(choose, request)
            except StreamcellError as error:
                await backoff.pause(error)

    @contextlib.asynccontextmanager
    async def stream(self, metadata: Metadata = ()) -> AsyncIterator[StreamCall]:
        """Opens a bidirectional stream and cancels it at the end of the block.

        A StreamcellError that the block raises counts as a failure of the server, too: it may change servers.

        Raises:
            StreamcellError: the stream failed.
        """
        async with self._using_channel() as channel:
            call = channel.stub.Stream(None, metadata=self._all_metadata(metadata))
            try:
                yield call
            finally:
                call.cancel()

    @contextlib.asynccontextmanager
    async def _using_channel(self) -> AsyncIterator[TargetChannel]:
        """Counts a call on the channel in use, translates its failure, and closes a channel left by all."""
        if self._is_closed:
            raise errors.NotOpen("the client is closed: sessions live inside its `async with`")
        channel = self._channel
        channel.num_calls += 1
        try:
            yield channel
            channel.has_worked, channel.tls_problem = True, ""
        except grpc.aio.AioRpcError as error:
            failure = _with_way(self._explained(errors.from_rpc_error(error), channel), channel.target)
            self._leave_after(failure, channel)
            raise failure from error
        except StreamcellError as failure:
            self._leave_after(failure, channel)
            raise
        finally:
            channel.num_calls -= 1
            if channel in self._left_channels and not channel.num_calls:
                self._left_channels.discard(channel)
                await channel.channel.close(None)

    def _all_metadata(self, more: Metadata) -> Metadata:
        """Returns the metadata of a call, with the token to use now."""
        return self._metadata + more + (self._token.metadata() if self._token is not None else ())

    def _explained(self, failure: StreamcellError, channel: TargetChannel) -> StreamcellError:
        """Returns a failure to connect with words about TLS, where TLS may be why."""
        if not (isinstance(failure, ConnectionLost) and tls_failures.is_about_connecting(failure.message)):
            return failure
        # A port that has worked takes what this client speaks: it closes connections when it ends.
        problem = tls_failures.why(failure.message, self._tls, may_guess=not channel.has_worked)
        channel.tls_problem = problem or channel.tls_problem
        if not channel.tls_problem:
            return failure
        return ConnectionLost(f"{channel.tls_problem} ({failure.message})", code=failure.code)

    def _leave_after(self, failure: StreamcellError, channel: TargetChannel) -> None:
        """Leaves a server that drains; with several targets also one that is unavailable."""
        if isinstance(failure, Unavailable if len(self._targets) > 1 else Draining):
            self._leave(channel)

    def _leave(self, channel: TargetChannel) -> None:
        """Opens a channel to the next target, unless another call has done so already."""
        if channel is self._channel and not self._is_closed:
            self._left_channels.add(channel)
            self._target_index = (self._target_index + 1) % len(self._targets)
            self._channel = self._open_channel()

    def _open_channel(self) -> TargetChannel:
        target = self._targets[self._target_index]
        return TargetChannel(target, open_channel(target, self._tls, self._options))


def _with_way(failure: StreamcellError, target: str) -> StreamcellError:
    """Returns a failure with words for the proxy on the way, if there is one and the connection failed."""
    if type(failure) is not ConnectionLost or not (way := proxies.way_to(target)):
        return failure
    return ConnectionLost(f"{failure.message} ({way})", code=failure.code)

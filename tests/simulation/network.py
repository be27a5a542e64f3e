"""gRPC of the simulation: channels of clients, and calls that take time, break, or lose their replies.

A channel keeps the order of what is sent on it, as one connection does. Knows servers as hosts with a process
that may be gone, frozen or another one by now; does not know what calls are about.
"""

import asyncio
from collections import deque

import grpc
from streamcell.v1 import streamcell_pb2_grpc as pb_grpc

from service.rpc.statuses import RefusedError
from tests.simulation.loop import OUTSIDE

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
PING_SECONDS = 3.0  # how long a connection may be silent before a client gives it up
_STEP_SECONDS = 1e-6  # between two messages, so that they keep their order


class Host:
    """An address; `process` is the server that listens there, if any."""

    def __init__(self, name):
        self.name = name
        self.process = None
        self.waiting: list[asyncio.Future] = []

    def listen(self, process):
        """Begins to serve."""
        self.process = process
        for future in self.waiting:
            if not future.done():
                future.set_result(None)
        self.waiting = []


class Network:
    """The hosts, and the channels to them."""

    def __init__(self, loop, hosts, weather, seeded):
        self.loop = loop
        self.hosts = {host.name: host for host in hosts}
        self.weather = weather
        self._seeded = seeded
        self._num_channels = 0

    def open_channel(self, target, tls=None, options=()):
        """Returns a channel, in place of `streamcell.channel.open_channel`."""
        self._num_channels += 1
        random = self._seeded(f"channel {self._num_channels}")
        return Channel(self, self.hosts[target], random)

    def stub(self, host_name):
        """Returns a stub on a channel of its own, for clients that use the protocol by hand."""
        return pb_grpc.StreamcellServiceStub(self.open_channel(host_name))


def rpc_error(code, details, trailers=()):
    """Returns the error that grpc.aio raises for a status."""
    metadata = grpc.aio.Metadata(*trailers)
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details=details)


def _of_status(status):
    if status is None:
        return None
    return rpc_error(_CODES[status.code], status.message, status.trailers)


class Channel:
    """A client's connection to a host; the part of grpc.aio.Channel that clients use."""

    def __init__(self, network, host, random):
        self.network = network
        self.host = host
        self.random = random
        self.is_closed = False
        self._last_arrival = 0.0
        self.exchanges = {}

    def unary_unary(self, path, request_serializer=None, response_deserializer=None, **_):
        """Returns a callable for a unary method."""

        async def call(request, timeout=None, metadata=None, wait_for_ready=False):  # noqa: ASYNC109 (as in grpc.aio)
            exchange = UnaryExchange(self, path, request_serializer(request))
            return response_deserializer(await exchange.run(timeout, wait_for_ready))

        return call

    def stream_stream(self, path, request_serializer=None, response_deserializer=None, **_):
        """Returns a callable for a streaming method."""

        def call(requests=None, metadata=None):
            return StreamExchange(self, path, request_serializer, response_deserializer)

        return call

    def send(self, function, *arguments):
        """Calls a function at the far end, after everything that was sent before."""
        network = self.network
        now = network.loop.time()
        arrival = max(now + network.weather.travel(self.random), self._last_arrival + _STEP_SECONDS)
        self._last_arrival = arrival
        network.loop.outside(arrival - now, function, *arguments)

    async def close(self, grace):
        """Ends every call."""
        self.is_closed = True
        for exchange in list(self.exchanges):
            exchange.cancel()


class Exchange:
    """One call: what both sides have of it."""

    def __init__(self, channel, path):
        self.channel = channel
        self.loop = channel.network.loop
        self.path = path
        self.process = None
        self.is_over = False  # for the client
        channel.exchanges[self] = None

    def in_process(self, function, *arguments):
        """Calls a function in the server's process, soon."""
        self.loop.call_soon(function, *arguments, context=self.process.context)

    def reach(self):
        """Returns whether there is a server at the host; it has the call from now on."""
        self.process = self.channel.host.process
        if self.process is None:
            self.fail("connection refused")
            return False
        self.process.exchanges[self] = None
        return True

    def forget(self):
        """Ends the server's side."""
        if self.process is not None:
            self.process.exchanges.pop(self, None)

    def break_off(self, why):
        """Breaks the connection under the call, for both sides."""
        self.fail(why)
        if self.process is not None and self in self.process.exchanges:
            self.in_process(self.end_in_process)

    def fail(self, why):
        """Tells the client, a moment later, that the connection is gone."""
        delay = self.channel.network.weather.travel(self.channel.random)
        self.loop.outside(delay, self.conclude, rpc_error(_UNAVAILABLE, why))

    def conclude(self, error):
        """Ends the client's side."""
        self.is_over = True
        self.channel.exchanges.pop(self, None)

    def end_in_process(self):
        """Cancels the call in the server's process."""

    def cancel(self):
        """Ends the call from the client's side."""


class UnaryExchange(Exchange):
    """One unary call."""

    def __init__(self, channel, path, raw):
        super().__init__(channel, path)
        self._raw = raw
        self._outcome = self.loop.create_future()
        self._task = None
        self._is_cancelled = False
        self._waits = False

    async def run(self, seconds, waits):
        """Returns the reply's bytes; raises grpc.aio.AioRpcError."""
        self._waits = waits
        if not self.channel.is_closed:
            self.channel.send(self._arrive)
        else:
            self.fail("channel closed")
        try:
            async with asyncio.timeout(seconds):
                return await self._outcome
        except TimeoutError:
            self.cancel()
            raise rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded") from None
        except asyncio.CancelledError:
            self.cancel()
            raise
        finally:
            self.is_over = True
            self.channel.exchanges.pop(self, None)

    def conclude(self, error):
        """Ends the client's side."""
        super().conclude(error)
        if not self._outcome.done():
            self._outcome.set_exception(error)

    def cancel(self):
        """Ends the call from the client's side."""
        self._is_cancelled = True
        if not self._outcome.done():
            self._outcome.cancel()
        self.channel.send(self._cancel_arrives)

    def _arrive(self):
        channel = self.channel
        if self._waits and channel.host.process is None:
            ready = self.loop.create_future()
            ready.add_done_callback(lambda _: self._is_cancelled or self._arrive(), context=OUTSIDE)
            channel.host.waiting.append(ready)
            return
        self._fate = channel.network.weather.fate_of_message(channel.random)
        if self._fate == "lost":
            self.fail("connection reset")
        elif self.reach():
            self.in_process(self._begin)

    def _begin(self):
        if self in self.process.exchanges:
            self._task = self.loop.create_task(self._serve())

    async def _serve(self):
        raw, status = None, None
        try:
            raw = await self.process.answer(self.path, self._raw)
        except RefusedError as refused:
            status = refused.status
        except asyncio.CancelledError:
            self.forget()
            return
        self.forget()
        if self._fate == "reply lost":
            self.fail("connection reset")
            return
        delay = self.channel.network.weather.travel(self.channel.random)
        self.loop.outside(delay, self._reply, raw, status)

    def _reply(self, raw, status):
        if status is not None:
            self.conclude(_of_status(status))
        elif not self._outcome.done():
            self._outcome.set_result(raw)

    def _cancel_arrives(self):
        if self.process is not None and self in self.process.exchanges:
            self.in_process(self.end_in_process)

    def end_in_process(self):
        """Cancels the call in the server's process."""
        self.forget()
        if self._task is not None:
            self._task.cancel()


class StreamExchange(Exchange):
    """One bidirectional stream; the part of grpc.aio.StreamStreamCall that clients use."""

    def __init__(self, channel, path, serialize, deserialize):
        super().__init__(channel, path)
        self._serialize, self._deserialize = serialize, deserialize
        self._inbox = deque()
        self._reader = None
        self._end = None  # the error with which the call ended
        self._last_reply = 0.0
        self._stream = None
        self._received = deque()  # messages that the server's stream has no room for yet
        self._is_half_closed = False
        self._is_delivering = False
        if channel.is_closed:
            self.fail("channel closed")
        else:
            channel.send(self._arrive)

    # -- The client's side -------------------------------------------------------------------------

    async def read(self):
        """Returns the next message, or EOF; raises grpc.aio.AioRpcError."""
        while not self._inbox and not self.is_over:
            self._reader = self.loop.create_future()
            await self._reader
        if self._inbox:
            return self._deserialize(self._inbox.popleft())
        if self._end is not None:
            raise self._end
        return grpc.aio.EOF

    async def write(self, message):
        """Sends a message."""
        if self.is_over:
            raise self._end or asyncio.InvalidStateError("the call is over")
        self.channel.send(self._message_arrives, self._serialize(message))
        await asyncio.sleep(0)

    async def done_writing(self):
        """Sends no more messages."""
        self.channel.send(self._half_close_arrives)

    def cancel(self):
        """Ends the call from the client's side."""
        if not self.is_over:
            self.conclude(rpc_error(grpc.StatusCode.CANCELLED, "cancelled"))
            self.channel.send(self._cancel_arrives)

    def conclude(self, error):
        """Ends the client's side; messages that came before can still be read."""
        if self.is_over:
            return
        super().conclude(error)
        self._end = error
        self._wake_reader()

    def _message_comes(self, raw):
        if not self.is_over:
            self._inbox.append(raw)
            self._wake_reader()

    def _wake_reader(self):
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # -- Between the sides -------------------------------------------------------------------------

    def _arrive(self):
        fate = self.channel.network.weather.fate_of_message(self.channel.random)
        if fate == "lost":
            self.fail("connection reset")
        elif self.reach():
            self.in_process(self._begin)

    def _message_arrives(self, raw):
        if self.process is None or self not in self.process.exchanges:
            return
        fate = self.channel.network.weather.fate_of_message(self.channel.random)
        if fate == "lost":
            self.break_off("connection reset")
            return
        self.in_process(self._receive, raw)
        if fate == "reply lost":
            self.loop.outside(0.001, self.break_off, "connection reset")

    def _half_close_arrives(self):
        if self.process is not None and self in self.process.exchanges:
            self.in_process(self._half_close)

    def _cancel_arrives(self):
        if self.process is not None and self in self.process.exchanges:
            self.in_process(self.end_in_process)

    def _send_back(self, function, *arguments):
        now = self.loop.time()
        travel = self.channel.network.weather.travel(self.channel.random)
        arrival = max(now + travel, self._last_reply + _STEP_SECONDS)
        self._last_reply = arrival
        self.loop.outside(arrival - now, function, *arguments)

    # -- The server's side -------------------------------------------------------------------------

    def _begin(self):
        if self in self.process.exchanges:
            self._observer, self._stream = self.process.open_stream(self.path)
            self._stream.on_change = self._on_change
            self._on_change()

    def _receive(self, raw):
        if self._stream is not None and self in self.process.exchanges:
            self._observer.received(raw)
            self._received.append(raw)
            self._deliver()

    def _half_close(self):
        self._is_half_closed = True
        if self._stream is not None and self in self.process.exchanges:
            self._deliver()

    def _deliver(self):
        if self._is_delivering:
            return
        self._is_delivering = True
        while self._received and not self._stream.is_full:
            self._stream.receive(self._received.popleft())
        self._is_delivering = False
        if self._is_half_closed and not self._received and not self._stream.is_over:
            self._is_half_closed = False
            self._stream.half_close()

    def _on_change(self):
        if self not in self.process.exchanges:
            return
        while (raw := self._stream.take()) is not None:
            self._observer.sent(raw)
            self._send_back(self._message_comes, raw)
        if self._stream.is_over:
            self._send_back(self.conclude, _of_status(self._stream.status))
            self.end_in_process()
        else:
            self._deliver()

    def end_in_process(self):
        """Ends the stream in the server's process."""
        if self in self.process.exchanges:
            self.forget()
            if self._stream is not None:
                self.process.close_stream(self._stream)

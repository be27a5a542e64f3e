"""The connections, sessions and senders of one generator process: opened before the load, closed after it.

Owns which session uses which connection. Does not know when messages are sent.
"""

import asyncio
import contextlib
import functools
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

import grpc
from streamcell import proxies, tls_failures
from streamcell.v1 import streamcell_pb2 as pb

from loadtest.api import Connection
from loadtest.errors import LoadtestError, OptionError, one_line
from loadtest.options import Options
from loadtest.payloads import Payloads, forecasts
from loadtest.pipelined import PipelinedSender
from loadtest.senders import CallSender, Sender, StreamSender

_CALLS_AT_ONCE = 64  # while opening and closing: fast, without flooding the server
_CLOSE_SECONDS = 20.0


class Fleet:
    """All that one process needs for its load; `senders` are there when `open` has returned."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._access = options.access()
        self._connections = [Connection(options.target, self._access) for _ in range(options.num_connections)]
        run = secrets.token_hex(6)
        self._session_ids = [f"loadtest-{run}-{number}" for number in range(options.num_sessions)]
        self._num_requested = 0  # sessions that may be open
        self.senders: list[Sender] = []

    async def open(self) -> None:
        """Opens the sessions and their senders.

        Raises:
            LoadtestError: there is no server, or no such model, or the server refuses sessions.
        """
        model = await self._find_model()
        payloads = Payloads(len(model.inputs), self._options.steps_per_message)
        name = f"{model.name}/{model.version}"
        try:
            await self._open_first(name)
            await _all_of(self._open_session(number, name) for number in range(1, len(self._session_ids)))
            if model.uses_time:
                now = time.time_ns()
                await self._for_each_session(
                    lambda connection, id_: connection.step(payloads.first_step(id_, now))
                )
            if self._options.mode == "forecast":
                await self._for_each_session(lambda connection, id_: connection.prime(payloads.history(id_)))
            make = functools.partial(self._sender, payloads=payloads, num_future=len(model.future))
            self.senders = [make(number) for number in range(self._options.streams)]
            await _all_of(sender.open() for sender in self.senders)
        except grpc.aio.AioRpcError as error:
            raise LoadtestError(f"cannot open {len(self._session_ids)} sessions: {one_line(error)}") from None

    async def close(self) -> None:
        """Closes streams, sessions and connections. A server that is gone has nothing left to close."""
        await _all_of(sender.close() for sender in self.senders)
        with contextlib.suppress(grpc.aio.AioRpcError, TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await _all_of(self._close_session(number) for number in range(self._num_requested))
        await _all_of(connection.close() for connection in self._connections)

    async def _find_model(self) -> pb.Model:
        try:
            models = list((await self._connections[0].list_models()).models)
        except grpc.aio.AioRpcError as error:
            way = proxies.way_to(self._options.target)
            what = f"no Streamcell server answers at {self._options.target}{way and ', ' + way}"
            if tls_problem := tls_failures.why(error.details() or "", self._access.tls):
                what += f": {tls_problem}"
            raise LoadtestError(f"{what} ({one_line(error)})") from None
        return choose_model(models, self._options.model)

    async def _open_first(self, model: str) -> None:
        limit = (await self._open_session(0, model)).limits.max_message_steps
        if limit and self._options.steps_per_message > limit:
            raise OptionError(f"--frame-steps: the server takes {limit:,} steps in a message at most")

    async def _open_session(self, number: int, model: str) -> pb.OpenSessionResponse:
        self._num_requested = max(self._num_requested, number + 1)
        return await self._connection(number).open_session(self._session_ids[number], model)

    async def _close_session(self, number: int) -> None:
        await self._connection(number).close_session(self._session_ids[number])

    async def _for_each_session(self, call: Callable[[Connection, str], Awaitable[object]]) -> None:
        """Makes a call for each session, given its connection and its id."""
        await _all_of(call(self._connection(number), id_) for number, id_ in enumerate(self._session_ids))

    def _connection(self, session: int) -> Connection:
        stream = session // self._options.sessions_per_stream
        return self._connections[stream % len(self._connections)]

    def _sender(self, stream: int, payloads: Payloads, num_future: int) -> Sender:
        per_stream = self._options.sessions_per_stream
        first = stream * per_stream
        ids, connection = self._session_ids[first : first + per_stream], self._connection(first)
        on_stream = StreamSender if self._options.in_flight == 1 else PipelinedSender
        horizon = self._options.horizon_steps
        senders: dict[str, Callable[[], Sender]] = {
            "stream": lambda: on_stream(connection.stream, payloads.stream_steps, ids),
            "frame": lambda: on_stream(connection.stream, payloads.stream_frames, ids),
            "forecast": lambda: CallSender(connection.forecast, forecasts(ids[0], horizon, num_future)),
            "unary": lambda: CallSender(connection.step, payloads.steps(ids[0])),
            "prime": lambda: CallSender(connection.prime, payloads.primes(ids[0])),
        }
        return senders[self._options.mode]()


def choose_model(models: list[pb.Model], wanted: str) -> pb.Model:
    """Returns the newest model of a name, "NAME" or "NAME/VERSION"; "" stands for the only name served.

    Raises:
        OptionError: there is no such model, or no name is given and several are served.
    """
    serving = [model for model in models if model.status != pb.MODEL_STATUS_RETIRING]
    names = sorted({model.name for model in serving})
    if not wanted and len(names) > 1:
        raise OptionError(f"--model: the server has several: {', '.join(names)}")
    wanted = wanted or "".join(names)
    fitting = [model for model in serving if wanted in (model.name, f"{model.name}/{model.version}")]
    if not fitting:
        raise OptionError(f"--model: the server has no {wanted!r}; it has {', '.join(names) or 'none'}")
    return fitting[-1]  # versions come in order


@contextlib.asynccontextmanager
async def opened(options: Options, stop: asyncio.Event) -> AsyncIterator[Fleet]:
    """Opens a fleet for as long as the block lasts.

    Raises:
        LoadtestError: it cannot be opened, or `stop` was set before it was open.
    """
    fleet = Fleet(options)
    try:
        opening = asyncio.ensure_future(fleet.open())
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait((opening, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not opening.done():
            opening.cancel()
            await asyncio.wait((opening,))
            raise LoadtestError("interrupted before the load began")
        opening.result()
        yield fleet
    finally:
        await fleet.close()


async def _all_of(calls: Iterable[Awaitable[object]]) -> None:
    """Awaits many calls, up to 64 at a time. After a failure it begins no more, and raises the failure."""
    waiting = iter(calls)
    failures: list[BaseException] = []

    async def work() -> None:
        while not failures and (call := next(waiting, None)) is not None:
            try:
                await call
            except Exception as failure:
                failures.append(failure)

    await asyncio.gather(*(work() for _ in range(_CALLS_AT_ONCE)))
    if failures:
        raise failures[0]

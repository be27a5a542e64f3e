"""A session as callers see it: what each call sends, and what its answer means.

Knows nothing of channels. `SessionCalls` orders and repeats the calls; `StepStream` runs a stream.
"""

import contextlib
import secrets
from collections.abc import Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from streamcell import convert
from streamcell.connection import Connection
from streamcell.convert import History, Row, Rows, Time
from streamcell.errors import (
    ConnectionLost,
    Fenced,
    Misuse,
    NotOpen,
    StreamcellError,
    Unavailable,
    invalid,
)
from streamcell.pieces import in_pieces
from streamcell.position import SessionPosition
from streamcell.session_calls import SessionCalls
from streamcell.session_connection import SessionConnection
from streamcell.stream import StepStream, step_request
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.values import OpenMode, Prediction, SessionInfo
from streamcell.window import NumberedStep

if TYPE_CHECKING:
    from typing_extensions import Buffer

_MODES = {
    "open": pb.OPEN_MODE_UNSPECIFIED,
    "create": pb.OPEN_MODE_CREATE,
    "resume": pb.OPEN_MODE_RESUME,
}
_ID_BYTES = 16  # of a random id: enough that no two are ever the same


class Session:
    """One client's state on the server; made by `Client.session` and used with `async with`.

    Example:
        async with client.session(model="nyc-taxi") as session:
            await session.prime(history)  # what came before
            prediction = await session.step([10_844.0])
            ahead = await session.forecast(48)

    Calls that change the session (step, stream, prime, reset) run in the order in which they are awaited.
    The session numbers their steps, so that it can repeat a call after a broken connection without applying
    a step twice. After a call that failed, was cancelled or met its deadline it is not known whether the
    server applied it. The next call asks the server first; `refresh` asks at once.
    """

    def __init__(
        self,
        connection: Connection,
        request: pb.OpenSessionRequest,
        *,
        keep: bool,
        metadata: Mapping[str, str],
    ) -> None:
        self._connection = connection
        self._metadata = metadata
        self._request = request
        self._keep = keep
        self._created = False
        self._calls: SessionCalls | None = None
        self._is_closed = False

    async def __aenter__(self) -> Self:
        if self._calls is not None or self._is_closed:
            raise Misuse("a session object is entered once; ask the client for another")
        request = pb.OpenSessionRequest()
        request.CopyFrom(self._request)
        is_unnamed = not request.session_id
        if is_unnamed:
            # A repetition finds what an earlier attempt opened.
            request.session_id = secrets.token_urlsafe(_ID_BYTES)
            request.mode = pb.OPEN_MODE_UNSPECIFIED
        connection = SessionConnection(self._connection, request.session_id, self._metadata)
        reply = await _open(connection, request, is_unnamed=is_unnamed)
        self._created = reply.created
        limits = convert.to_limits(connection.limits, reply.limits)
        position = SessionPosition(convert.to_session_info(reply.session), limits)
        self._calls = SessionCalls(connection, position)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        calls = self._open_calls()
        self._is_closed = True
        if calls.end_stream is not None:
            await calls.end_stream("the session's end")
        if not self._created or self._keep:
            return
        # A server that is away lets the session expire, and a client that took the session over goes on
        # with it. If the body raised an error, that error matters more than any error of the close.
        quiet = (StreamcellError,) if error is not None else (Unavailable, Fenced)
        request = pb.CloseSessionRequest(session_id=calls.position.session_id, allow_missing=True)
        with contextlib.suppress(*quiet):
            await calls.connection.unary(lambda stub: stub.CloseSession, request)

    @property
    def session_id(self) -> str:
        """The session's id; "" before the session is open if none was given."""
        return self._calls.position.session_id if self._calls is not None else self._request.session_id

    @property
    def model_name(self) -> str:
        """The name of the model that the session runs on."""
        return self._open_calls().position.model_name

    @property
    def model_version(self) -> str:
        """The version of the model that the session was opened on."""
        return self._open_calls().position.model_version

    @property
    def created(self) -> bool:
        """Whether this object created the session; if not, it found one, to go on at `next_step_index`."""
        return self._created

    @property
    def next_step_index(self) -> int:
        """The index of the next step, as far as the server's answers say."""
        return self._open_calls().position.next_step_index

    async def step(self, x: Row, *, time: Time | None = None) -> Prediction:
        """Applies one step.

        Args:
            x: a value for each of the model's inputs, in its units.
            time: the time of the step; absent: the last step's time plus the model's interval. The first step
                of a session on a model that uses time must give it.
        """
        values = convert.to_x(x)
        time_ns = None if time is None else convert.to_time_ns(time)
        calls = self._open_calls()
        position = calls.position
        async with calls.changing("step()"):
            request = step_request(position, NumberedStep(position.next_step_index, values, time_ns))
            position.sending(position.next_step_index, convert.to_single(values, time_ns))
            reply = await calls.unary(lambda stub: stub.Step, request)
            position.answered(reply)
        return convert.to_prediction(reply)

    def stream(self, rows: Rows) -> StepStream:
        """Returns a stream that applies a step for each row and yields their predictions in order.

        Faster than one `step` after another: several steps are under way at once.

        Args:
            rows: an iterable of rows, or of pairs of a time and a row; an asynchronous one if they arrive
                over time. An ordinary iterable must not block: the event loop reads it.
        """
        return StepStream(self._open_calls(), rows)

    async def prime(self, rows: "Iterable[Row] | Buffer", times: Iterable[Time] | None = None) -> Prediction:
        """Feeds a history, so that the next prediction knows what came before it.

        The history is cut into as many messages as the server's limits need.

        Args:
            rows: [num_steps, num_inputs], in the order of time; at least one.
            times: a time for each row. Absent: as in `step`.

        Returns:
            The prediction after the last row.
        """
        history = convert.to_history(rows, times)
        if history.num_steps == 0:
            raise invalid("rows", "a history has at least one row")
        calls = self._open_calls()
        async with calls.changing("prime()"):
            return await in_pieces(history, calls.position.limits, partial(self._prime_piece, calls, history))

    async def forecast(
        self, horizon_steps: int, future: "Iterable[Row] | Buffer | None" = None
    ) -> tuple[tuple[float, ...], ...]:
        """Predicts many steps ahead and leaves the state as it was.

        Args:
            horizon_steps: how many steps; the server allows 1,000 by default.
            future: [horizon_steps, number of the model's future values], for models that have them.

        Returns:
            A row of outputs for each step ahead; the first is about the session's next step.
        """
        known = convert.to_history(future, None).x if future is not None else ()
        calls = self._open_calls()
        request = pb.ForecastRequest(
            session_id=calls.position.session_id, horizon_steps=horizon_steps, future=known
        )
        async with calls.reading():
            reply = await calls.attempt(lambda: self._forecast(calls, request))
        return convert.to_rows(reply.y, horizon_steps)

    async def reset(self) -> None:
        """Puts the session back to its start: clean state, step 0."""
        calls = self._open_calls()
        request = pb.ResetSessionRequest(session_id=calls.position.session_id)
        async with calls.changing("reset()", locate_first=False):
            calls.position.begin_reset()
            reply = await calls.unary(lambda stub: stub.ResetSession, request)
            calls.position.end_reset(convert.to_session_info(reply.session))

    async def refresh(self) -> SessionInfo:
        """Asks where the session stands, and goes on from there even if the server lost steps.

        Before that it sends the lost steps again, as far as the tail has them. While a stream is open it
        only asks.
        """
        calls = self._open_calls()
        async with calls.reading():
            return await calls.refresh()

    def _open_calls(self) -> SessionCalls:
        if self._calls is None or self._is_closed:
            raise NotOpen("the session is not open: use it inside its `async with`")
        return self._calls

    async def _prime_piece(self, calls: SessionCalls, history: History, start: int, stop: int) -> Prediction:
        position, piece = calls.position, history.between(start, stop)
        x_raw, time_raw = piece.packed()
        request = pb.PrimeRequest(
            session_id=position.session_id,
            x_raw=x_raw,
            time_raw=time_raw,
            step_index=position.next_step_index,
        )
        position.sending(position.next_step_index, piece)
        reply = await calls.unary(lambda stub: stub.Prime, request)
        position.answered(reply)
        return convert.to_prediction(reply)

    async def _forecast(self, calls: SessionCalls, request: pb.ForecastRequest) -> pb.ForecastResponse:
        answered = calls.position.next_step_index  # before the call: a stream may go on meanwhile
        reply = await calls.connection.unary(lambda stub: stub.Forecast, request)
        calls.position.check_reached(reply.next_step_index, answered)
        return reply


async def _open(
    connection: SessionConnection, request: pb.OpenSessionRequest, *, is_unnamed: bool
) -> pb.OpenSessionResponse:
    """Opens a session, and repeats that where a repetition cannot find or open another session."""
    backoff = connection.backoff(gives_up_early=is_unnamed)
    while True:
        try:
            reply = await connection.unary(lambda stub: stub.OpenSession, request)
        except StreamcellError as error:
            if isinstance(error, ConnectionLost) and request.mode == pb.OPEN_MODE_CREATE:
                raise
            await backoff.pause(error)
        else:
            reply.created |= is_unnamed
            return reply


def open_request(
    *, model: str | None, session_id: str | None, mode: OpenMode, durable: bool
) -> pb.OpenSessionRequest:
    """Returns the message that opens a session.

    Raises:
        InvalidArgument: the mode is unknown, or needs an id and there is none.
    """
    if mode not in _MODES:
        raise invalid("mode", f"{mode!r} is none of {', '.join(_MODES)}")
    if mode == "resume" and not session_id:
        raise invalid("session_id", "resuming needs the session's id")
    return pb.OpenSessionRequest(
        session_id=session_id or "", model=model or "", mode=_MODES[mode], durable=durable
    )

"""A stream of steps: rows in, predictions out, with several steps under way on one bidirectional call.

Three tasks share the window: one takes rows from the caller while the window has room, one writes the steps
that are not sent yet, one reads replies. When the call breaks, the session is recovered, and steps without a
reply are sent again on a new call. Knows nothing of how a session is opened, recovered or closed.
"""

import asyncio
from collections.abc import Callable
from typing import Self

import grpc

from streamcell import convert, errors
from streamcell.connection import StreamCall
from streamcell.errors import ConnectionLost, StreamcellError, StreamInterrupted
from streamcell.position import SessionPosition
from streamcell.retry import Backoff, is_curable
from streamcell.session_calls import SessionCalls
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.values import Prediction
from streamcell.window import NumberedStep, Window


class Bell:
    """Wakes tasks that wait for a condition, whenever the condition may have changed."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], None] = {}  # in the order in which they came

    def ring(self) -> None:
        """Makes every waiting task check its condition."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns once the condition holds."""
        while not condition():
            future = asyncio.get_running_loop().create_future()
            self._waiting[future] = None
            try:
                await future
            finally:
                del self._waiting[future]


class StepStream:
    """Iterates over the predictions for a stream of rows, in order, one for each row.

    Example:
        async for prediction in session.stream(rows):
            print(prediction.step_index, prediction.y)

    The stream takes rows as the loop advances, at most a window ahead of it. An error (of a row, of the
    source of the rows, of the session) is raised in place of the first prediction that is missing. A loop
    that is left early may have sent up to a window of steps more: the next call on the session ends the
    stream and asks where the session stands.
    """

    def __init__(self, calls: SessionCalls, rows: convert.Rows) -> None:
        self._calls = calls
        self._rows = rows
        self._rows_ended = False
        self._rows_error: Exception | None = None
        self._window = Window(0, 1)  # replaced once the stream's first index is known
        self._bell = Bell()
        self._task: asyncio.Task[None] | None = None
        self._ended = False
        self._failure: Exception | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Prediction:
        if self._task is None and not self._ended:
            self._task = asyncio.create_task(self._run())
        await self._bell.until(lambda: self._window.has_answered or self._ended)
        if self._window.has_answered:
            prediction = self._window.take()
            self._bell.ring()  # there is room for another row
            return prediction
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Ends the stream; steps already sent may or may not have been applied."""
        self._ended = True
        if self._task is not None and not self._task.done():
            self._task.cancel()
            # Waits without taking over the task's cancellation as its own.
            await asyncio.wait([self._task])

    async def _interrupt(self, call: str) -> None:
        if not self._ended:
            self._failure = StreamInterrupted(f"{call} on the same session ended this stream")
        await self.aclose()

    async def _run(self) -> None:
        """Reserves the session until every row is answered or something fails."""
        try:
            async with self._calls.changing("another stream"):
                self._calls.end_stream = self._interrupt
                try:
                    await self._answer_rows()
                finally:
                    self._calls.end_stream = None
            self._failure = self._rows_error
        except Exception as error:  # raised to the caller by __anext__
            self._failure = error
        finally:
            self._ended = True
            self._bell.ring()

    async def _answer_rows(self) -> None:
        position = self._calls.position
        self._window = Window(position.next_step_index, position.limits.window_steps)
        feeder = asyncio.create_task(self._take_rows())
        try:
            await self._converse_until_answered()
        finally:
            feeder.cancel()
            await asyncio.wait([feeder])

    async def _take_rows(self) -> None:
        """Takes rows from the caller into the window while it has room."""
        window, bell = self._window, self._bell
        try:
            async for item in convert.each(self._rows):
                time_ns, x = convert.to_step(item)
                window.append(x, time_ns)
                bell.ring()
                await bell.until(lambda: window.has_room)
        except Exception as error:  # raised to the caller once the rows before it are answered
            self._rows_error = error
        finally:
            self._rows_ended = True
            bell.ring()

    async def _converse_until_answered(self) -> None:
        backoff = self._calls.connection.backoff()
        is_broken = False
        while True:
            if not self._window.has_unanswered:
                backoff.succeeded()  # an idle call broke: attempts and time count from the next row
            # With no row to send, a server may be away: nobody waits for it.
            await self._bell.until(lambda: self._window.has_unanswered or self._rows_ended)
            if self._is_finished():
                return
            if is_broken:
                await self._calls.recover(backoff)
            try:
                await self._converse(backoff)
            except StreamcellError as error:
                if self._is_finished():  # the call broke after its last reply
                    return
                await backoff.pause(error, is_curable)
                is_broken = True
                self._window.rewind()

    async def _converse(self, backoff: Backoff) -> None:
        """Sends unsent steps and takes replies until both sides are done.

        Raises:
            StreamcellError: a step failed, or the call broke.
        """
        async with self._calls.connection.stream() as call:
            writer = asyncio.create_task(self._write(call))
            try:
                while isinstance(message := await call.read(), pb.StreamResponse):
                    self._receive(message)
                    backoff.succeeded()
                if not self._is_finished():
                    raise ConnectionLost("the server ended the stream before every step was answered")
            finally:
                writer.cancel()
                await asyncio.wait([writer])

    async def _write(self, call: StreamCall) -> None:
        window, position = self._window, self._calls.position
        try:
            while True:
                await self._bell.until(lambda: window.has_unsent or self._rows_ended)
                if not window.has_unsent:
                    await call.done_writing()
                    return
                step = window.send_next()
                position.sending(step.step_index, convert.to_single(step.x, step.time_ns))
                request = step_request(position, step)
                await call.write(pb.StreamRequest(request_id=step.step_index, step=request))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the call has ended; the reading task gets the reason

    def _receive(self, message: pb.StreamResponse) -> None:
        kind = message.WhichOneof("response")
        if kind == "error":
            raise errors.from_stream_error(message.error)
        if kind != "step":
            return  # a kind of reply that this stream never asks for
        self._window.answer(convert.to_prediction(message.step))
        self._calls.position.answered(message.step)
        self._bell.ring()

    def _is_finished(self) -> bool:
        return self._rows_ended and not self._window.has_unanswered


def step_request(position: SessionPosition, step: NumberedStep) -> pb.StepRequest:
    """Returns the message for one numbered step."""
    request = pb.StepRequest(
        session_id=position.session_id, x=step.x, step_index=step.step_index, time_ns=step.time_ns
    )
    if step.step_index == 0:  # opens a session if it is gone by now: name the model, so that it is the same
        request.model = position.model
    return request

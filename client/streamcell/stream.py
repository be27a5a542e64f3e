"""A stream of steps: rows in, predictions out, pipelined over one bidirectional call.

Rows are taken from the caller while the window has room, unsent steps are written, replies are read: three
tasks with the window between them. When the call breaks, the session is recovered and what was not answered
is sent again on a new one. Knows nothing of how a session is opened, recovered or closed.
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
    """Wakes those who wait for a condition, whenever something it depends on may have changed."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        """Lets everyone who waits look again."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns once the condition holds."""
        while not condition():
            future = asyncio.get_running_loop().create_future()
            self._waiting.add(future)
            try:
                await future
            finally:
                self._waiting.discard(future)


class StepStream:
    """Iterates over the predictions for a stream of rows, in order, one for each row.

    Rows are taken as the loop advances, a bounded window ahead of it. What goes wrong (a row, the source
    of the rows, the session) is raised in the place of the first prediction that is missing. Leaving
    the loop early leaves up to a window of steps sent: the next call on the session ends the stream and
    finds out where it stands.
    """

    def __init__(self, calls: SessionCalls, rows: convert.Rows) -> None:
        self._calls = calls
        self._rows = rows
        self._rows_ended = False
        self._rows_error: Exception | None = None
        self._window = Window(0, 1)  # replaced when the numbers are known
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
        """Owns the session until every row is answered or something fails."""
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
        """Moves rows from the caller into the window, as there is room."""
        window, bell = self._window, self._bell
        try:
            async for item in convert.each(self._rows):
                time_ns, x = convert.to_step(item)
                window.append(x, time_ns)
                bell.ring()
                await bell.until(lambda: window.has_room)
        except Exception as error:  # the caller's own, raised to the caller once the rows before are answered
            self._rows_error = error
        finally:
            self._rows_ended = True
            bell.ring()

    async def _converse_until_answered(self) -> None:
        backoff = self._calls.connection.backoff()
        is_broken = False
        while True:
            if not self._window.has_unanswered:
                backoff.succeeded()  # what broke was idle: time counts from when something is asked again
            # While there is nothing to ask, a server that is away harms nobody.
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
        """Sends what is unsent and takes replies until both sides are done.

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
            return  # the call has ended; whoever reads learns why

    def _receive(self, message: pb.StreamResponse) -> None:
        kind = message.WhichOneof("response")
        if kind == "error":
            raise errors.from_stream_error(message.error)
        if kind != "step":
            return  # nothing that was asked for
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
    if step.step_index == 0:  # would open a session that is gone by now: then on the same model
        request.model = position.model
    return request

"""The Stream method: steps and frames of one client as they come, answers as they are ready."""

import asyncio
import functools
from collections.abc import Mapping, Sequence

from streamcell.v1 import streamcell_pb2 as pb

from service import errors
from service.catalog.catalog import Catalog, NotResident, TakeOver
from service.config import Config
from service.engine.engine import Engine
from service.engine.session_ref import SessionRef
from service.engine.work import AnyWork, Block, Step
from service.errors import Reason, StreamcellError
from service.rpc.methods import Call, parse
from service.rpc.stream import Stream
from service.servicers import values
from service.servicers.stream_backpressure import Backpressure, StreamEnd
from service.servicers.streamcell import convert
from service.servicers.streamcell.bindings import Bindings
from service.servicers.streamcell.frames import FrameWork
from service.servicers.streamcell.pending import Held, Waiting
from service.servicers.streamcell.steps import fetch, step_work
from service.telemetry import faults

_NOTHING: Mapping[str, StreamcellError] = {}


class StepStream:
    """One client's Stream: every request gets one answer, an error of a step being one too."""

    def __init__(self, stream: Stream, call: Call, catalog: Catalog, settings: Config) -> None:
        self._stream = stream
        self._backpressure = Backpressure(stream, self._handle)
        self._end = StreamEnd(stream, self._is_done)
        self._call = call
        self._catalog = catalog
        self._max_steps = settings.max_message_steps
        self._ttl_seconds = settings.session_ttl_seconds
        self._bindings = Bindings(catalog, call.principal, settings.max_stream_sessions)
        self._reply = convert.StepReply()
        self._under_way: dict[AnyWork, Engine] = {}
        self._held: Held[pb.StreamRequest] = Held()

    # -- For the stream ----------------------------------------------------------------------------

    def receive(self, raw: bytes) -> None:
        """Begins what a message asks, or has it wait while the queue is full."""
        self._backpressure.receive(raw)

    def stop(self, error: StreamcellError | None) -> None:
        """Ends the stream, with `error` if any, once everything received is answered."""
        self._end.begin(error)

    def _handle(self, raw: bytes) -> None:
        if not self._end.has_begun:
            self._go(parse(pb.StreamRequest, raw))

    def _go(self, request: pb.StreamRequest, failed: Mapping[str, StreamcellError] = _NOTHING) -> None:
        """Begins what is asked, or has it wait for its sessions."""
        if self._held and self._held.holds(self._sessions_of(request)):
            self._held.add(self._sessions_of(request), request)
            return
        kind = request.WhichOneof("request")
        try:
            if kind == "step":
                self._take_step(request, failed)
            elif kind == "frame":
                self._take_frame(request.request_id, request.frame, failed)
            elif kind == "config":
                self._send(request.request_id, config=self._configure(request.config, failed))
            else:
                raise errors.invalid_argument("request", "give one of config, step and frame")
        except NotResident as absent:
            waiting = self._held.add(self._sessions_of(request), request)
            waiting.bringing = asyncio.create_task(self._bring(waiting, absent.session_ids))
        except StreamcellError as error:
            if self._catalog.is_draining:
                raise
            self._refuse(request, error)

    def cancel(self) -> None:
        """Withdraws what has not begun: the client is gone."""
        self._end.abandon()
        for work, engine in self._under_way.items():
            engine.withdraw(work)
        self._under_way.clear()
        self._held.cancel()

    # -- Sessions from the store -------------------------------------------------------------------

    def _sessions_of(self, request: pb.StreamRequest) -> Sequence[str] | None:
        """Returns the ids of a request's sessions; None for one that gives numbers, which others may use."""
        kind = request.WhichOneof("request")
        if kind == "step":
            return [request.step.session_id or self._bindings.id_of(request.step.session)]
        if kind == "frame":
            return list(request.frame.session_ids) or self._bindings.ids_of(request.frame.session_raw)
        return None

    async def _bring(self, waiting: Waiting[pb.StreamRequest], session_ids: Sequence[str]) -> None:
        """Brings the sessions that a request waits for, then goes on with all that need not wait any more."""
        found = await asyncio.gather(
            *(self._bring_one(waiting.request, each) for each in session_ids), return_exceptions=True
        )
        failed = zip(session_ids, found, strict=True)
        waiting.failed = {each: _error_of(why) for each, why in failed if isinstance(why, Exception)}
        waiting.bringing = None
        for each in self._held.take_all():
            if each.bringing is not None:
                self._held.add_again(each)
            else:
                self._stream.guard(self._go, each.request, each.failed)
        self._end.end_if_done()

    async def _bring_one(self, request: pb.StreamRequest, session_id: str) -> None:
        kind = request.WhichOneof("request")
        if kind == "step" and request.step.session_id:
            await fetch(self._catalog, self._call, request.step)
            return
        # A stream's configuration is answered with where the sessions stand.
        has_index = request.step.HasField("step_index") if kind == "step" else request.frame.step_index_raw
        take_over = TakeOver.IF_INDEXED if kind == "config" or has_index else TakeOver.NEVER
        await self._catalog.fetch(self._call.principal, session_id, take_over)

    # -- Requests ----------------------------------------------------------------------------------

    def _configure(
        self, config: pb.StreamConfig, failed: Mapping[str, StreamcellError]
    ) -> pb.StreamConfigured:
        for error in failed.values():
            raise error
        first = len(self._bindings)
        bound = self._bindings.bind(list(config.session_ids))
        sessions = [convert.session(session, self._ttl_seconds) for session in bound]
        return pb.StreamConfigured(first_session=first, sessions=sessions)

    def _take_step(self, request: pb.StreamRequest, failed: Mapping[str, StreamcellError]) -> None:
        for error in failed.values():
            raise error
        asked = request.step
        if asked.session_id:
            on_done = functools.partial(self._answer_step, request)
            session, work = step_work(self._catalog, self._call, asked, on_done)
            self._submit(session.engine, work)
            return
        session = self._bindings.one(asked.session)
        if asked.model:
            self._catalog.check_model(session.engine, f"number {asked.session}", asked.model)
        row = values.row(session.engine, asked.x)
        on_done = functools.partial(self._answer_step, request)
        self._submit(session.engine, convert.step(session, asked, row, on_done))

    def _take_frame(self, request_id: int, request: pb.Frame, failed: Mapping[str, StreamcellError]) -> None:
        if self._catalog.is_draining:
            raise errors.refusal(Reason.DRAINING)

        def on_done(work: Block) -> None:
            if frame.is_done:
                for error in frame.entry_errors:
                    self._stream.count(error)
                self._send(request_id, frame=frame.response())
            self._ended(work)

        frame = FrameWork(request, self._bindings, failed, self._max_steps, self._check_room, on_done)
        for engine, block in frame.blocks:
            self._submit(engine, block)

    def _submit(self, engine: Engine, work: AnyWork) -> None:
        try:
            engine.submit(work)
        except StreamcellError:
            self._backpressure.record_refusal(engine, work.num_steps)
            raise
        self._under_way[work] = engine

    def _check_room(self, engine: Engine, num_steps: int) -> None:
        try:
            engine.check_room(num_steps)
        except StreamcellError:
            self._backpressure.record_refusal(engine, num_steps)
            raise

    # -- Answers -----------------------------------------------------------------------------------

    def _answer_step(self, request: pb.StreamRequest, work: Step) -> None:
        if work.error is None:
            engine, num_durable = self._under_way[work], 0
            if engine.sessions.durability.is_enabled:
                num_durable = SessionRef(engine, work.slot, work.generation).current.num_durable_steps
            self._stream.send(self._reply.encode(request, work, num_durable))
        else:
            self._refuse(request, work.error)
        self._ended(work)

    def _refuse(self, request: pb.StreamRequest, error: StreamcellError) -> None:
        self._stream.count(error)
        asked = request.step
        response = pb.StreamResponse(
            request_id=request.request_id,
            session_id=asked.session_id[:128],
            session=0 if asked.session_id else asked.session,
            error=convert.stream_error(error),
        )
        self._stream.send(response.SerializeToString())

    def _send(
        self,
        request_id: int,
        config: pb.StreamConfigured | None = None,
        frame: pb.FrameResponse | None = None,
    ) -> None:
        response = pb.StreamResponse(request_id=request_id, config=config, frame=frame)
        self._stream.send(response.SerializeToString())

    def _ended(self, work: AnyWork) -> None:
        self._under_way.pop(work, None)
        self._end.end_if_done()

    def _is_done(self) -> bool:
        return not self._under_way and not self._held


def _error_of(exception: Exception) -> StreamcellError:
    return exception if isinstance(exception, StreamcellError) else faults.report(exception)

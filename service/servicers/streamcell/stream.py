"""The Stream method: begins one client's steps and frames as they come, and answers them as they are done.

Owns the work in flight on the stream and the requests that wait for sessions. Does not know how a frame's
columns are read, nor how a session is found.
"""

import asyncio
import functools
from collections.abc import Sequence

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
from service.servicers.streamcell.frames import ActiveFrame
from service.servicers.streamcell.pending import NO_FETCH_ERRORS, FetchErrors, PendingRequest, PendingRequests
from service.servicers.streamcell.steps import fetch_or_open, prepare_step
from service.telemetry import faults


class StepStream:
    """One client's Stream: every request gets one answer, which may be an error."""

    def __init__(self, stream: Stream, call: Call, catalog: Catalog, settings: Config) -> None:
        self._stream = stream
        self._backpressure = Backpressure(stream, self._begin_message, call.account_number)
        self._end = StreamEnd(stream, self._is_done)
        self._call = call
        self._catalog = catalog
        self._max_steps = settings.max_message_steps
        self._ttl_seconds = settings.session_ttl_seconds
        self._bindings = Bindings(catalog, call.principal, settings.max_stream_sessions)
        self._step_encoder = convert.StepResponseEncoder()
        self._in_flight: dict[AnyWork, Engine] = {}
        self._pending: PendingRequests[pb.StreamRequest] = PendingRequests()

    # -- Called by the router ----------------------------------------------------------------------

    def receive(self, raw: bytes) -> None:
        """Begins what a message asks: now, or once a queue that was full has room."""
        self._backpressure.receive(raw)

    def stop(self, error: StreamcellError | None) -> None:
        """Ends the stream, with `error` if any, once everything received is answered."""
        self._end.begin(error)

    def _begin_message(self, raw: bytes) -> None:
        if not self._end.has_begun:
            self._begin(parse(pb.StreamRequest, raw))

    def _begin(self, request: pb.StreamRequest, fetch_errors: FetchErrors = NO_FETCH_ERRORS) -> None:
        """Begins what a request asks, or lets the request wait until its sessions are in memory."""
        if self._pending and self._pending.must_wait(self._sessions_of(request)):
            self._pending.add(self._sessions_of(request), request)
            return
        kind = request.WhichOneof("request")
        try:
            if kind == "step":
                self._begin_step(request, fetch_errors)
            elif kind == "frame":
                self._begin_frame(request.request_id, request.frame, fetch_errors)
            elif kind == "config":
                self._send(request.request_id, config=self._configure(request.config, fetch_errors))
            else:
                raise errors.invalid_argument("request", "give one of config, step and frame")
        except NotResident as absent:
            pending = self._pending.add(self._sessions_of(request), request)
            pending.fetching = asyncio.create_task(self._fetch_and_resume(pending, absent.session_ids))
        except StreamcellError as error:
            if self._catalog.is_draining:
                raise
            self._refuse(request, error)

    def cancel(self) -> None:
        """Withdraws the work that has not begun: the client is gone."""
        self._end.abandon()
        for work, engine in self._in_flight.items():
            engine.withdraw(work)
        self._in_flight.clear()
        self._pending.cancel()

    # -- Sessions from the store -------------------------------------------------------------------

    def _sessions_of(self, request: pb.StreamRequest) -> Sequence[str] | None:
        """Returns the session ids of a request; None for a configuration: later requests use its numbers."""
        kind = request.WhichOneof("request")
        if kind == "step":
            return [request.step.session_id or self._bindings.id_of(request.step.session)]
        if kind == "frame":
            return list(request.frame.session_ids) or self._bindings.ids_of(request.frame.session_raw)
        return None

    async def _fetch_and_resume(
        self, pending: PendingRequest[pb.StreamRequest], session_ids: Sequence[str]
    ) -> None:
        """Fetches the sessions that a request waits for, then begins every request that need wait no more."""
        results = await asyncio.gather(
            *(self._fetch_session(pending.request, each) for each in session_ids), return_exceptions=True
        )
        pending.fetch_errors = {
            session_id: _as_streamcell_error(result)
            for session_id, result in zip(session_ids, results, strict=True)
            if isinstance(result, Exception)
        }
        pending.fetching = None
        for each in self._pending.pop_all():
            if each.fetching is not None:
                self._pending.put_back(each)
            else:  # `_begin` adds the request again if an earlier one of its sessions still waits
                self._stream.guard(self._begin, each.request, each.fetch_errors)
        self._end.end_if_done()

    async def _fetch_session(self, request: pb.StreamRequest, session_id: str) -> None:
        kind = request.WhichOneof("request")
        if kind == "step" and request.step.session_id:
            await fetch_or_open(self._catalog, self._call, request.step)
            return
        # A configuration may take a session over too: its answer has the next step index of each, by which
        # the client sees that a row is old.
        has_index = request.step.HasField("step_index") if kind == "step" else request.frame.step_index_raw
        take_over = TakeOver.IF_INDEXED if kind == "config" or has_index else TakeOver.NEVER
        await self._catalog.fetch(self._call.principal, session_id, take_over)

    # -- Requests ----------------------------------------------------------------------------------

    def _configure(self, config: pb.StreamConfig, fetch_errors: FetchErrors) -> pb.StreamConfigured:
        if fetch_errors:
            raise next(iter(fetch_errors.values()))
        first = len(self._bindings)
        bound = self._bindings.bind(list(config.session_ids))
        sessions = [convert.session_message(session, self._ttl_seconds) for session in bound]
        return pb.StreamConfigured(first_session=first, sessions=sessions)

    def _begin_step(self, request: pb.StreamRequest, fetch_errors: FetchErrors) -> None:
        if fetch_errors:
            raise next(iter(fetch_errors.values()))
        asked = request.step
        # Guarded: a fault in an answer ends the stream, which would otherwise wait for that answer for ever.
        on_done = functools.partial(self._stream.guard, self._answer_step, request)
        if asked.session_id:
            session, work = prepare_step(self._catalog, self._call, asked, on_done)
            self._submit(session.engine, work)
            return
        session = self._bindings.session_of(asked.session)
        if asked.model:
            self._catalog.check_model(session.engine, f"number {asked.session}", asked.model)
        row = values.row(session.engine, asked.x)
        self._submit(session.engine, convert.step_work(session, asked, row, on_done))

    def _begin_frame(self, request_id: int, request: pb.Frame, fetch_errors: FetchErrors) -> None:
        if self._catalog.is_draining:
            raise errors.refusal(Reason.DRAINING)

        def answer(work: Block) -> None:
            if frame.is_done:
                for error in frame.entry_errors:
                    self._stream.count(error)
                self._send(request_id, frame=frame.response())
            self._complete(work)

        frame = ActiveFrame(
            request,
            self._bindings,
            fetch_errors,
            max_steps=self._max_steps,
            check_room=self._check_room,
            on_done=functools.partial(self._stream.guard, answer),
        )
        for engine, block in frame.blocks:
            self._submit(engine, block)

    def _submit(self, engine: Engine, work: AnyWork) -> None:
        try:
            engine.submit(work)
        except StreamcellError:
            self._backpressure.record_refusal(engine, work.num_steps)
            raise
        self._in_flight[work] = engine
        self._backpressure.record(engine)

    def _check_room(self, engine: Engine, num_steps: int) -> None:
        try:
            engine.check_room(num_steps, self._call.account_number)
        except StreamcellError:
            self._backpressure.record_refusal(engine, num_steps)
            raise

    # -- Answers -----------------------------------------------------------------------------------

    def _answer_step(self, request: pb.StreamRequest, work: Step) -> None:
        engine = self._in_flight.get(work)
        if engine is None:  # the client went away while the step ran or waited for the store
            return
        if work.error is None:
            num_durable = 0
            if engine.sessions.durability.is_enabled:
                num_durable = SessionRef(engine, work.slot, work.generation).current.num_durable_steps
            self._stream.send(self._step_encoder.encode(request, work, num_durable))
        else:
            self._refuse(request, work.error)
        self._complete(work)

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

    def _complete(self, work: AnyWork) -> None:
        self._in_flight.pop(work, None)
        self._end.end_if_done()

    def _is_done(self) -> bool:
        return not self._in_flight and not self._pending


def _as_streamcell_error(exception: Exception) -> StreamcellError:
    return exception if isinstance(exception, StreamcellError) else faults.report(exception)

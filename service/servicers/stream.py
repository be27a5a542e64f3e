"""The Stream method: steps and frames of one client as they come, answers as they are ready."""

import functools
from collections.abc import Callable

from streamcell.v1 import streamcell_pb2 as pb

from service import errors
from service.catalog import Catalog, is_missing
from service.config import Config
from service.engine import Engine
from service.errors import StreamcellError
from service.rpc import Call, Stream, parse
from service.servicers import convert
from service.servicers.bindings import Bindings
from service.servicers.frames import FrameWork
from service.work import AnyWork, Block, Step


def step_work(
    catalog: Catalog, call: Call, request: pb.StepRequest, on_done: Callable[[Step], None]
) -> tuple[Engine, Step]:
    """Returns the work that a step naming its session asks for, and its engine; opens the session if it may.

    Raises:
        StreamcellError: there is no such session and the step does not open one, the model is another, or a
            value is wrong; nothing is opened then.
    """
    try:
        engine, slot = catalog.find(call.principal, request.session_id)
    except StreamcellError as error:
        if not (is_missing(error) and request.HasField("step_index") and request.step_index == 0):
            raise
        engine = catalog.choose(request.model)
        x = convert.row(engine, request.x)
        convert.check_first_time(engine, request)
        engine, slot = catalog.open(call.principal, request.session_id, request.model)
    else:
        catalog.check_model(engine, request.session_id, request.model)
        x = convert.row(engine, request.x)
    return engine, convert.step(engine, slot, request, x, on_done)


class StepStream:
    """One client's Stream: every request gets one answer, an error of a step being one too."""

    def __init__(self, stream: Stream, call: Call, catalog: Catalog, settings: Config) -> None:
        self._stream = stream
        self._call = call
        self._catalog = catalog
        self._max_steps = settings.max_message_steps
        self._ttl_seconds = settings.session_ttl_seconds
        self._bindings = Bindings(catalog, call.principal, settings.max_resident_sessions)
        self._reply = convert.StepReply()
        self._under_way: dict[AnyWork, Engine] = {}
        self._is_stopping = False
        self._refused: tuple[Engine, int] | None = None  # by whom, and how many steps: turns are taken there
        self._last_error: StreamcellError | None = None

    # -- What the front tells ----------------------------------------------------------------------

    def receive(self, raw: bytes) -> None:
        """Takes one request: at once, or in its turn after one that the queue had no room for.

        To read on, only to refuse, would take time that the steps in the queue need.
        """
        if self._refused is not None:
            engine, num_steps = self._refused
            if not engine.has_room(num_steps):
                self._stream.pause()
                engine.when_room(num_steps, functools.partial(self._take_turn, raw))
                return
            self._refused = None
        self._take(raw)

    def _take_turn(self, raw: bytes) -> None:
        self._stream.hand(raw, self._take)
        self._stream.resume()

    def _take(self, raw: bytes) -> None:
        if self._is_stopping:
            return
        request = parse(pb.StreamRequest, raw)
        kind = request.WhichOneof("request")
        try:
            if kind == "step":
                self._take_step(request)
            elif kind == "frame":
                self._take_frame(request.request_id, request.frame)
            elif kind == "config":
                self._send(request.request_id, config=self._configure(request.config))
            else:
                raise errors.invalid_argument("request", "give one of config, step and frame")
        except StreamcellError as error:
            if self._catalog.is_draining:
                raise
            self._refuse(request, error)

    def stop(self, error: StreamcellError | None) -> None:
        """Ends the stream once everything received is answered."""
        if not self._is_stopping:  # a client that was done before a drain is not sent elsewhere
            self._last_error = error
        self._is_stopping = True
        self._end_if_done()

    def cancel(self) -> None:
        """Withdraws what has not begun: the client is gone."""
        self._is_stopping = True
        for work, engine in self._under_way.items():
            engine.withdraw(work)
        self._under_way.clear()

    # -- Requests ----------------------------------------------------------------------------------

    def _configure(self, config: pb.StreamConfig) -> pb.StreamConfigured:
        first = len(self._bindings)
        bound = self._bindings.bind(list(config.session_ids))
        sessions = [convert.session(engine, slot, self._ttl_seconds) for engine, slot in bound]
        return pb.StreamConfigured(first_session=first, sessions=sessions)

    def _take_step(self, request: pb.StreamRequest) -> None:
        asked = request.step
        on_done = functools.partial(self._answer_step, request)
        if asked.session_id:
            self._submit(*step_work(self._catalog, self._call, asked, on_done))
            return
        engine, slot, generation = self._bindings.one(asked.session)
        if asked.model:
            self._catalog.check_model(engine, f"number {asked.session}", asked.model)
        work = convert.step(engine, slot, asked, convert.row(engine, asked.x), on_done)
        work.generation = generation
        self._submit(engine, work)

    def _take_frame(self, request_id: int, request: pb.Frame) -> None:
        if self._catalog.is_draining:
            raise errors.draining()

        def on_done(work: Block) -> None:
            for error in frame.entry_errors:
                self._stream.count(error)
            self._send(request_id, frame=frame.response())
            self._ended(work)

        frame = FrameWork(request, self._bindings, self._max_steps, self._check_room, on_done)
        self._submit(frame.engine, frame.block)

    def _submit(self, engine: Engine, work: AnyWork) -> None:
        try:
            engine.submit(work)
        except StreamcellError:
            self._refused = engine, work.num_steps
            raise
        self._under_way[work] = engine

    def _check_room(self, engine: Engine, num_steps: int) -> None:
        try:
            engine.check_room(num_steps)
        except StreamcellError:
            self._refused = engine, num_steps
            raise

    # -- Answers -----------------------------------------------------------------------------------

    def _answer_step(self, request: pb.StreamRequest, work: Step) -> None:
        if work.error is None:
            self._stream.send(self._reply.encode(request, work))
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
        if self._is_stopping:
            self._end_if_done()

    def _end_if_done(self) -> None:
        if not self._under_way:
            self._stream.end(self._last_error)

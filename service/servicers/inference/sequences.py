"""Sequences of the Open Inference Protocol as sessions; the requests of each run in the order they came in.

A sequence is a session of the catalog. The session's lane in the engine keeps the order of its requests.
Three kinds of request block their sequence, so that its later requests wait here: a request whose session is
fetched from the store, a restart that is being stored, and an end, because the next sequence of the same id
may start then. `lifecycle` has the states of a request. Does not know messages.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any

from service import errors
from service.catalog.catalog import UNUSABLE, Catalog, NotResident, TakeOver, is_missing
from service.catalog.versions import NotLoaded
from service.engine.engine import Engine
from service.engine.session_ref import SessionRef
from service.engine.work import Block, Phase, Step
from service.errors import Reason, StreamcellError
from service.servicers.inference import tensors
from service.servicers.inference.errors import in_protocol_terms
from service.servicers.inference.inference_request import InferenceRequest
from service.servicers.inference.lifecycle import Event, State
from service.servicers.inference.parameters import build_work
from service.telemetry import faults

_SUBMIT, _ANSWER = Event.SUBMIT, Event.ANSWER  # for every request; to look a member up takes 0.1 µs


class Sequences:
    """The sequences of all callers. A request runs in its turn, or is refused and moves nothing."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        # By sequence, the requests that wait for the one that blocks it.
        self._waiting: dict[str, deque[InferenceRequest]] = {}
        self._fetches: set[asyncio.Task[None]] = set()

    def submit(self, request: InferenceRequest) -> None:
        """Queues a request, behind the earlier ones of its sequence.

        Raises:
            StreamcellError: the request is refused.
        """
        waiting = self._waiting.get(request.key) if self._waiting else None
        if waiting is None:
            self._begin(request)
        else:
            request.advance(Event.BLOCK)
            waiting.append(request)
        if request.parameters.timeout_microseconds:
            loop = asyncio.get_running_loop()
            request.timer = loop.call_later(
                request.parameters.timeout_microseconds * 1e-6, self._time_out, request
            )

    def withdraw(self, request: InferenceRequest) -> None:
        """Withdraws a request whose caller is gone. Its steps do not run, except those that have begun."""
        request.on_done = _ignore
        if request.work is None or request.engine.withdraw(request.work):
            self._withdraw(request, Event.WITHDRAW)

    # -- Sessions ----------------------------------------------------------------------------------

    def _find_or_open(self, request: InferenceRequest) -> SessionRef:
        """Returns a request's session; opens the session if the request may and there is no store.

        Raises:
            NotResident: the session is to be fetched first, by `_fetch_session`.
            StreamcellError: there is no session, or it runs on another model.
        """
        parameters, catalog = request.parameters, self._catalog
        if not parameters.session_id:
            session = catalog.open_ephemeral(self._engine_for_new(request), parameters.account)
            request.opened_session = True
            return session
        try:
            session = catalog.find(parameters.principal, parameters.session_id)
        except NotResident:
            raise
        except StreamcellError as error:
            if not (is_missing(error) and parameters.is_start):
                raise
            self._engine_for_new(request)
            session = catalog.open(parameters.principal, parameters.session_id, parameters.model_asked)
            request.opened_session = True
            return session
        self._validate_rows(request, session.engine)
        return session

    def _engine_for_new(self, request: InferenceRequest) -> Engine:
        """Returns the engine on which a request opens its session.

        Raises:
            NotResident: the model is to be loaded first.
            StreamcellError: there is no such model, or it does not take the request's rows.
        """
        parameters, engine = request.parameters, request.parameters.engine
        if engine.succession.is_retiring or not parameters.version:
            try:
                engine = self._catalog.versions.choose(parameters.model_asked)
            except NotLoaded:
                raise NotResident([parameters.session_id]) from None
        self._validate_rows(request, engine)
        return engine

    def _validate_rows(self, request: InferenceRequest, engine: Engine) -> None:
        """Checks a request's rows for the version that its sequence runs on; reads rows that are unread.

        Raises:
            StreamcellError: MODEL_CHANGED; INVALID_ARGUMENT, the engine does not take the rows; OVERLOADED.
        """
        parameters = request.parameters
        if engine is not parameters.engine:
            self._catalog.check_model(engine, parameters.session_id, parameters.model_asked)
        if request.read_rows is not None:
            request.rows, request.read_rows = request.read_rows(engine), None
            engine.check_room(request.rows.num_steps, parameters.account)
        elif engine is not parameters.engine:
            tensors.check_width(engine, request.rows)

    async def _fetch_session(self, request: InferenceRequest) -> None:
        """Fetches a request's session into memory; for a start, opens the session in the store.

        A start takes the session over from any other server. Another request takes it over only if its step
        index shows whether the state in the store is the newest.
        """
        parameters, catalog = request.parameters, self._catalog
        if parameters.engine.succession.is_retiring:
            await catalog.versions.load(parameters.model_asked)
        if not parameters.session_id:
            await catalog.persistence.make_room(self._engine_for_new(request))
        elif not parameters.is_start:
            take_over = TakeOver.IF_INDEXED if parameters.first_index >= 0 else TakeOver.NEVER
            await catalog.fetch(parameters.principal, parameters.session_id, take_over)
        else:
            while not (await self._create(request) or await self._take_over(request)):
                pass  # the session was closed, or opened, between the two

    async def _create(self, request: InferenceRequest) -> bool:
        """Opens a request's session in the store; returns False if there is one already."""
        parameters = request.parameters
        try:
            session = await self._catalog.create(
                parameters.principal, parameters.session_id, parameters.model_asked
            )
        except StreamcellError as error:
            if error.reason is not Reason.SESSION_EXISTS:
                raise
            return False
        request.opened_session = True
        request.session = session
        self._validate_rows(request, session.engine)
        return True

    async def _take_over(self, request: InferenceRequest) -> bool:
        """Fetches a start's session into memory, from any server; returns whether a usable one was there."""
        principal, session_id = request.parameters.principal, request.parameters.session_id
        try:
            await self._catalog.fetch(principal, session_id, TakeOver.ALWAYS)
        except StreamcellError as error:
            if is_missing(error):
                return False
            if error.reason not in UNUSABLE or request.parameters.first_index >= 0:
                raise
            await self._catalog.discard(principal, session_id)  # a restart needs nothing of it
            return False
        return True

    @staticmethod
    def _close_session(request: InferenceRequest) -> None:
        """Closes a request's session, if it is live."""
        if request.session is not None and (session := request.session.current).is_live:
            session.engine.residents.close(session.slot)

    # -- A request's life --------------------------------------------------------------------------

    def _begin(self, request: InferenceRequest) -> None:
        """Submits a request to the engine of its session, or fetches the session first.

        Raises:
            StreamcellError: the request is refused.
        """
        parameters, engine = request.parameters, request.parameters.engine
        slot = engine.sessions.find(request.key)  # nearly always there; "" names none
        session = None if slot is None else SessionRef.at(engine, slot)
        if session is None or request.read_rows is not None or self._must_look(session):
            try:
                # Before a session is opened for the request.
                engine.check_room(request.rows.num_steps, parameters.account)
                session = self._find_or_open(request)
            except NotResident:
                request.advance(Event.FETCH)
                self._start_fetch(request)
                return
            except StreamcellError as error:
                raise in_protocol_terms(error, parameters) from None
        self._submit_to_engine(request, session)

    def _must_look(self, session: SessionRef) -> bool:
        """Returns whether the catalog must say if a session takes work now."""
        if session.engine.succession.is_retiring or self._catalog.is_draining:
            return True
        return self._catalog.persistence.must_confirm(session)

    def _submit_to_engine(self, request: InferenceRequest, session: SessionRef) -> None:
        parameters = request.parameters
        request.session = session
        work = build_work(
            parameters,
            request.rows,
            session,
            arrived_ns=request.arrived_ns,
            on_done=lambda work: self._finish(request, work),
        )
        # A start with a step index on a live sequence is a retry, or a conflict: the engine decides.
        if parameters.is_start and not request.opened_session and parameters.first_index < 0:
            work.restarts = True
        if request.may_be_delayed:
            work.may_be_held = True
        session.engine.submit(work)
        request.work = work
        request.advance(_SUBMIT)
        if parameters.is_end or (work.restarts and session.engine.sessions.durability.is_enabled):
            self._block_sequence(request)

    def _start_fetch(self, request: InferenceRequest) -> None:
        self._block_sequence(request)
        task = asyncio.create_task(self._fetch_and_begin(request))
        self._fetches.add(task)  # the loop's own reference is weak
        task.add_done_callback(self._fetches.discard)

    async def _fetch_and_begin(self, request: InferenceRequest) -> None:
        """Fetches a request's session, then begins the request and the requests that wait for it."""
        error: StreamcellError | None = None
        try:
            await self._fetch_session(request)
        except StreamcellError as refusal:
            error = refusal
        except Exception as exception:
            error = faults.report(exception)
        waiting = self._waiting.pop(request.key, ())
        request.blocks_sequence = False  # a request of the same sequence that it begins now may block it anew
        if error is not None and request.state is not State.WITHDRAWN:
            self._fail(request, error)
            self._begin_in_order(waiting)
        else:
            self._begin_in_order([request, *waiting])

    def _block_sequence(self, request: InferenceRequest) -> None:
        """Makes later requests of a request's sequence wait for it."""
        if request.key:
            request.blocks_sequence = True
            self._waiting.setdefault(request.key, deque())

    def _unblock_sequence(self, request: InferenceRequest) -> None:
        """Begins the requests that waited for a request."""
        if request.blocks_sequence:
            self._begin_in_order(self._waiting.pop(request.key, ()))

    def _begin_in_order(self, requests: Iterable[InferenceRequest]) -> None:
        """Begins requests of a sequence; those behind a request that blocks the sequence anew wait again."""
        for request in requests:
            waiting = self._waiting.get(request.key)
            if request.state is State.WITHDRAWN:
                if request.opened_session:
                    self._close_session(request)
            elif waiting is not None:
                request.advance(Event.BLOCK)
                waiting.append(request)
            else:
                try:
                    self._begin(request)
                except StreamcellError as error:
                    self._fail(request, error)

    def _finish(self, request: InferenceRequest, work: Step | Block) -> None:
        """Answers a request whose work is done; closes its session if the sequence ends or did not start."""
        error = work.errors.get(0) if isinstance(work, Block) else work.error
        work.on_done = _ignore  # a cycle would keep the engine in memory until it is collected
        if error is None:
            request.advance(_ANSWER)
        elif request.advance(_event_of(work, error)) is State.TAKING_OVER:
            request.work = None
            self._start_fetch(request)
            return
        else:
            request.error = in_protocol_terms(error, request.parameters)
        if request.timer is not None:
            request.timer.cancel()
        is_last = request.opened_session if error is not None else request.parameters.is_end
        if is_last or not request.key:
            self._close_session(request)
        request.on_done(request)
        self._unblock_sequence(request)

    def _fail(self, request: InferenceRequest, error: StreamcellError) -> None:
        """Answers a request that cannot begin."""
        request.advance(_ANSWER)
        request.error = in_protocol_terms(error, request.parameters)
        if request.timer is not None:
            request.timer.cancel()
        if request.opened_session:
            self._close_session(request)
        request.on_done(request)

    def _time_out(self, request: InferenceRequest) -> None:
        """Answers TIMED_OUT to a request whose steps have not begun, and withdraws it."""
        work = request.work
        if work is not None:
            if work.phase is not Phase.QUEUED:
                return
            request.engine.withdraw(work)
        request.error = errors.refusal(
            Reason.TIMED_OUT, field="timeout", timeout_microseconds=request.parameters.timeout_microseconds
        )
        request.on_done(request)
        self._withdraw(request, Event.TIME_OUT)

    def _withdraw(self, request: InferenceRequest, event: Event) -> None:
        """Leaves the sequence as if a request that the engine has given back had never come."""
        request.advance(event)
        if request.timer is not None:
            request.timer.cancel()
        work = request.work
        if work is None:
            return  # it waits for an earlier request or for the store, and is passed over in its turn
        work.on_done = _ignore  # as in `_finish`
        has_begun = isinstance(work, Block) and bool(work.num_applied[0])
        if request.opened_session and not (request.key and has_begun):
            self._close_session(request)
        self._unblock_sequence(request)


def _event_of(work: Step | Block, error: StreamcellError) -> Event:
    """Returns what an error of a request's work means for the request."""
    is_fenced = error.reason is Reason.SESSION_FENCED
    return Event.FENCE if work.restarts and is_fenced else Event.ANSWER


def _ignore(_: Any) -> None:
    pass

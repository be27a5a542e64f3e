"""Sequences of the Open Inference Protocol as sessions: which begin, run on and end, in the order asked.

A sequence is a session of the catalog's, and what is asked of it keeps its order in the session's lane. What
that lane cannot order waits here: what comes after a request whose sequence is brought from the store, whose
restart is being stored, or that ends it, as the next one of the same id may begin then. Does not know
messages.
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
from service.engine.work import Block, Phase
from service.errors import Reason, StreamcellError
from service.servicers.inference import tensors
from service.servicers.inference.errors import worded
from service.servicers.inference.inference_request import Run
from service.servicers.inference.parameters import step_of
from service.telemetry import faults


class Sequences:
    """The sequences of all callers. What is asked is done in its turn, or refused and nothing moves."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._waiting: dict[str, deque[Run]] = {}  # what waits for the run that holds its sequence
        self._bringing: set[asyncio.Task[None]] = set()

    def submit(self, run: Run) -> None:
        """Queues a run, behind the earlier ones of its sequence.

        Raises:
            StreamcellError: it is refused.
        """
        waiting = self._waiting.get(run.key) if self._waiting else None
        if waiting is None:
            self._begin(run)
        else:
            waiting.append(run)
        if run.ask.timeout_microseconds:
            loop = asyncio.get_running_loop()
            run.timer = loop.call_later(run.ask.timeout_microseconds * 1e-6, self._time_out, run)

    def withdraw(self, run: Run) -> None:
        """Takes a run back, its caller being gone; what has begun of a single step is applied."""
        run.on_done = _ignore
        if run.work is None or run.engine.withdraw(run.work):
            self._take_back(run)

    # -- Sessions ----------------------------------------------------------------------------------

    def _session_of(self, run: Run) -> SessionRef:
        """Returns a run's session; opens it if the run may and there is no store.

        Raises:
            NotResident: `_bring` fetches it.
            StreamcellError: there is none, or it runs on another model.
        """
        ask, catalog = run.ask, self._catalog
        if not ask.session_id:
            session = catalog.open_ephemeral(self._leader_of(run))
            run.is_opened = True
            return session
        try:
            session = catalog.find(run.principal, ask.session_id)
        except NotResident:
            raise
        except StreamcellError as error:
            if not (is_missing(error) and ask.is_start):
                raise
            self._leader_of(run)
            session = catalog.open(run.principal, ask.session_id, ask.asked)
            run.is_opened = True
            return session
        self._fit(run, session.engine)
        return session

    def _leader_of(self, run: Run) -> Engine:
        """Returns the engine on which a run begins its session.

        Raises:
            NotResident: it is to be loaded.
            StreamcellError: there is none, or it does not take the run's rows.
        """
        ask, engine = run.ask, run.ask.engine
        if engine.succession.is_retiring or not ask.version:
            try:
                engine = self._catalog.versions.choose(ask.asked)
            except NotLoaded:
                raise NotResident([ask.session_id]) from None
        self._fit(run, engine)
        return engine

    def _fit(self, run: Run, engine: Engine) -> None:
        """Re-validates a run's rows for the version that its sequence runs on.

        Raises:
            StreamcellError: MODEL_CHANGED; INVALID_ARGUMENT, the engine does not take its rows; OVERLOADED.
        """
        ask = run.ask
        if engine is not ask.engine:
            self._catalog.check_model(engine, ask.session_id, ask.asked)
        if run.read is not None:
            run.rows, run.read = run.read(engine), None
            engine.check_room(run.rows.num_steps)
        elif engine is not ask.engine:
            tensors.check_width(engine, run.rows)

    async def _bring(self, run: Run) -> None:
        """Has a run's session in memory, then begins it and what waits behind it."""
        error: StreamcellError | None = None
        try:
            await self._fetch(run)
        except StreamcellError as refusal:
            error = refusal
        except Exception as exception:
            error = faults.report(exception)
        behind = self._waiting.pop(run.key, ())
        if error is not None and not run.is_withdrawn:
            self._fail(run, error)
            self._go_on(behind)
        else:
            self._go_on([run, *behind])

    async def _fetch(self, run: Run) -> None:
        """Brings a run's session from the store, or opens it there if the run may begin a sequence.

        One that a run begins anew is taken over from another server; else only what cannot be older than it
        seems, which a step's index shows.
        """
        ask, catalog = run.ask, self._catalog
        if run.ask.engine.succession.is_retiring:
            await catalog.versions.load(ask.asked)
        if not ask.session_id:
            await catalog.persistence.make_room(self._leader_of(run))
        elif not ask.is_start:
            take_over = TakeOver.IF_INDEXED if ask.first_index >= 0 else TakeOver.NEVER
            await catalog.fetch(run.principal, ask.session_id, take_over)
        else:
            while not (await self._create(run) or await self._take_over(run)):
                pass  # it was closed, or opened, between the two

    async def _create(self, run: Run) -> bool:
        """Opens a run's session in the store, if there is none; tells whether it did."""
        try:
            session = await self._catalog.create(run.principal, run.ask.session_id, run.ask.asked)
        except StreamcellError as error:
            if error.reason is not Reason.SESSION_EXISTS:
                raise
            return False
        run.is_opened = True
        run.session = session
        self._fit(run, session.engine)
        return True

    async def _take_over(self, run: Run) -> bool:
        """Brings the session that stands where a run is to begin its sequence; tells whether there is one."""
        principal, session_id = run.principal, run.ask.session_id
        try:
            await self._catalog.fetch(principal, session_id, TakeOver.ALWAYS)
        except StreamcellError as error:
            if is_missing(error):
                return False
            if error.reason not in UNUSABLE or run.ask.first_index >= 0:
                raise
            await self._catalog.discard(principal, session_id)  # nothing of it is needed
            return False
        return True

    @staticmethod
    def _close(run: Run) -> None:
        """Ends a run's session, if it has not ended."""
        if run.session is not None and (session := run.session.current).is_live:
            session.engine.residents.close(session.slot)

    # -- A run's life ------------------------------------------------------------------------------

    def _begin(self, run: Run) -> None:
        ask, engine = run.ask, run.ask.engine
        slot = engine.sessions.find(run.key)  # as nearly always; "" names none
        is_sure = run.read is None and not (engine.succession.is_retiring or self._catalog.is_draining)
        if slot is not None and is_sure:
            session = SessionRef.at(engine, slot)
        else:
            try:
                engine.check_room(run.rows.num_steps)  # before a session is opened for it
                session = self._session_of(run)
            except NotResident:
                self._begin_to_bring(run)
                return
            except StreamcellError as error:
                raise worded(error, ask) from None
        run.session = session
        work = step_of(ask, run.rows, session, arrived_ns=run.arrived_ns, on_done=lambda _: self._finish(run))
        # With an index, the start of a live sequence is a retry, or a conflict: the step protocol tells.
        work.restarts = ask.is_start and not run.is_opened and ask.first_index < 0
        work.may_be_held = run.may_be_held
        session.engine.submit(work)
        run.work = work
        if ask.is_end or (work.restarts and session.engine.sessions.durability.is_enabled):
            self._hold(run)

    def _begin_to_bring(self, run: Run) -> None:
        self._hold(run)
        task = asyncio.create_task(self._bring(run))
        self._bringing.add(task)  # else the loop alone would know it, and weakly
        task.add_done_callback(self._bringing.discard)

    def _hold(self, run: Run) -> None:
        """Has what comes after a run, of its sequence, wait for it."""
        if run.key:
            run.holds = True
            self._waiting.setdefault(run.key, deque())

    def _finish(self, run: Run) -> None:
        """Takes the result; ends the sequence if it was to end, or did not begin."""
        error = _error_of(run)
        _cut(run)
        if error is not None and self._is_to_run_again(run, error):
            run.is_second, run.work = True, None
            self._begin_to_bring(run)
            return
        if error is not None:
            run.error = worded(error, run.ask)
        if run.timer is not None:
            run.timer.cancel()
        if not run.key or (run.is_opened if error is not None else run.ask.is_end):
            self._close(run)
        run.on_done(run)
        self._let_go(run)

    @staticmethod
    def _is_to_run_again(run: Run, error: StreamcellError) -> bool:
        """Tells whether a restart found only then that another server has its session: it takes it over."""
        is_restart = run.work is not None and run.work.restarts
        return error.reason is Reason.SESSION_FENCED and is_restart and not run.is_second

    def _fail(self, run: Run, error: StreamcellError) -> None:
        """Answers a run that cannot begin."""
        run.error = worded(error, run.ask)
        if run.timer is not None:
            run.timer.cancel()
        if run.is_opened:
            self._close(run)
        run.on_done(run)

    def _time_out(self, run: Run) -> None:
        """Withdraws a run that has not begun."""
        engine, work = run.engine, run.work
        if run.is_withdrawn or (work is not None and work.phase is not Phase.QUEUED):
            return
        if work is not None:
            engine.withdraw(work)
        run.error = errors.refusal(
            Reason.TIMED_OUT, field="timeout", timeout_microseconds=run.ask.timeout_microseconds
        )
        run.on_done(run)
        self._take_back(run)

    def _take_back(self, run: Run) -> None:
        """Leaves everything as if a withdrawn run had not been."""
        run.is_withdrawn = True
        _cut(run)
        if run.timer is not None:
            run.timer.cancel()
        if run.work is None:
            return  # it waits for an earlier one or for the store, and is passed over then
        if run.is_opened and (not run.key or not _has_begun(run)):
            self._close(run)
        self._let_go(run)

    def _let_go(self, run: Run) -> None:
        """Begins what waited for a run."""
        if run.holds:
            self._go_on(self._waiting.pop(run.key, ()))

    def _go_on(self, runs: Iterable[Run]) -> None:
        """Begins what waited, up to what holds the sequence anew."""
        for run in runs:
            waiting = self._waiting.get(run.key)
            if run.is_withdrawn:
                if run.is_opened:
                    self._close(run)
            elif waiting is not None:
                waiting.append(run)
            else:
                try:
                    self._begin(run)
                except StreamcellError as error:
                    self._fail(run, error)


def _error_of(run: Run) -> StreamcellError | None:
    work = run.work
    return work.errors.get(0) if isinstance(work, Block) else work.error if work is not None else None


def _cut(run: Run) -> None:
    """Ends the ring of a run and its work: else both, and the engine too, would wait for the collector."""
    if run.work is not None:
        run.work.on_done = _ignore


def _has_begun(run: Run) -> bool:
    return isinstance(run.work, Block) and bool(run.work.num_applied[0])


def _ignore(_: Any) -> None:
    pass

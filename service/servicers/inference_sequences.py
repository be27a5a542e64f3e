"""Sequences of the Open Inference Protocol as sessions: which begin, run on and end, in the order asked.

A sequence is a session of the catalog's, and what is asked of it keeps its order in the session's lane. What
comes after a request that ends the sequence waits here until it has ended, as it may begin the next one of
the same id. Does not know messages.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from service import errors
from service.catalog import Catalog, is_missing
from service.engine import Engine
from service.errors import Reason, StreamcellError
from service.servicers import inference_tensors as tensors
from service.servicers.inference_request import Ask, step_of
from service.sessions import Float32s
from service.work import Block, Phase, Step

_FIELDS = {"time_ns": tensors.TIME, "time_raw": tensors.TIME, "x_raw": tensors.X}
_WHY_MISSING = {
    Reason.SESSION_NOT_FOUND: "is not live",
    Reason.SESSION_EXPIRED: "expired because it was idle",
    Reason.SESSION_EVICTED: "was evicted to make room for others",
}


class Run:
    """A request under way.

    Args:
        ask: the request.
        principal: the caller.
        may_be_held: whether its step may wait a moment for others to join.
        arrived_ns: when it came, in the engine's time.
        on_done: called once with the run, its result or `error` in place, unless it is withdrawn.
    """

    work: Step | Block | None = None
    """None until it is queued."""
    error: StreamcellError | None = None
    timer: asyncio.TimerHandle | None = None
    is_opened = False
    """Whether it opened its session."""
    is_withdrawn = False

    def __init__(
        self,
        ask: Ask,
        principal: str,
        may_be_held: bool,
        arrived_ns: int,
        on_done: "Callable[[Run], None]",
    ) -> None:
        self.ask = ask
        self.principal = principal
        self.may_be_held = may_be_held
        self.on_done = on_done
        self.arrived_ns = arrived_ns
        self.slot = self.generation = -1

    @property
    def key(self) -> tuple[str, str]:
        """Names its sequence among those of all callers."""
        return self.principal, self.ask.session_id

    @property
    def step_index(self) -> int:
        """The index that its first step got."""
        work = self.work
        return int(work.step_indexes[0]) if isinstance(work, Block) else work.step_index if work else -1

    @property
    def y(self) -> "list[float] | Float32s":
        """The predictions: a list of O, or [T, O]."""
        return self.work.y if self.work is not None else []  # type: ignore[return-value]  # a step's is a list


class Sequences:
    """The sequences of all callers. What it is asked for is queued at once, or refused and nothing moves."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._ending: dict[tuple[str, str], deque[Run]] = {}  # what waits for sequences that end

    def submit(self, run: Run) -> None:
        """Queues a run, behind the earlier ones of its sequence.

        Raises:
            StreamcellError: it is refused.
        """
        waiting = self._ending.get(run.key) if self._ending else None
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
        if run.work is None or run.ask.engine.withdraw(run.work):
            self._take_back(run)

    # -- Sessions ----------------------------------------------------------------------------------

    def _find(self, run: Run) -> tuple[int, bool]:
        """Returns the slot of a run's session, and whether it had to be opened for it."""
        ask = run.ask
        model = f"{ask.engine.name}/{ask.engine.version}"
        if not ask.session_id:
            return self._catalog.open(run.principal, "", model)[1], True
        try:
            engine, slot = self._catalog.find(run.principal, ask.session_id)
        except StreamcellError as error:
            if not (is_missing(error) and ask.is_start):
                raise
            return self._catalog.open(run.principal, ask.session_id, model)[1], True
        if engine is not ask.engine:
            self._catalog.check_model(engine, ask.session_id, model)
        return slot, False

    @staticmethod
    def _close(run: Run) -> None:
        """Ends a run's session, if it has not ended."""
        engine = run.ask.engine
        if engine.sessions.generation[run.slot] == run.generation:
            engine.close(run.slot)

    # -- A run's life ------------------------------------------------------------------------------

    def _begin(self, run: Run) -> None:
        ask, engine = run.ask, run.ask.engine
        try:
            engine.check_room(ask.rows.num_steps)  # before a session is opened for it
            run.slot, run.is_opened = self._find(run)
        except StreamcellError as error:
            raise _worded(error, ask) from None
        run.generation = engine.sessions.generation.item(run.slot)
        work = step_of(ask, run.slot, run.generation, run.arrived_ns, lambda _: self._finish(run))
        # With an index, the start of a live sequence is a retry, or a conflict: the step protocol tells.
        work.restarts = ask.is_start and not run.is_opened and ask.first_index < 0
        work.may_be_held = run.may_be_held
        engine.submit(work)
        run.work = work
        if ask.is_end:
            self._ending[run.key] = deque()

    def _finish(self, run: Run) -> None:
        """Takes the result; ends the sequence if it was to end, or did not begin."""
        error = _error_of(run)
        if error is not None:
            run.error = _worded(error, run.ask)
        if run.timer is not None:
            run.timer.cancel()
        if not run.ask.session_id or (run.is_opened if error is not None else run.ask.is_end):
            self._close(run)
        run.on_done(run)
        if run.ask.is_end:
            self._go_on(run.key)

    def _time_out(self, run: Run) -> None:
        """Withdraws a run that has not begun."""
        engine, work = run.ask.engine, run.work
        if run.is_withdrawn or (work is not None and work.phase is not Phase.QUEUED):
            return
        if work is not None:
            engine.withdraw(work)
        run.error = errors.timed_out(run.ask.timeout_microseconds)
        run.on_done(run)
        self._take_back(run)

    def _take_back(self, run: Run) -> None:
        """Leaves everything as if a withdrawn run had not been."""
        run.is_withdrawn = True
        if run.timer is not None:
            run.timer.cancel()
        if run.work is None:
            return  # it waits for an end, and is passed over then
        if run.is_opened and (not run.ask.session_id or not _has_begun(run)):
            self._close(run)
        if run.ask.is_end:
            self._go_on(run.key)

    def _go_on(self, key: tuple[str, str]) -> None:
        """Queues what waited for a sequence's end, up to what ends the next one."""
        for run in self._ending.pop(key, ()):
            if run.is_withdrawn:
                continue
            waiting = self._ending.get(key)
            if waiting is not None:
                waiting.append(run)
                continue
            try:
                self._begin(run)
            except StreamcellError as error:
                run.error = error
                if run.timer is not None:
                    run.timer.cancel()
                run.on_done(run)


def _error_of(run: Run) -> StreamcellError | None:
    work = run.work
    return work.errors.get(0) if isinstance(work, Block) else work.error if work is not None else None


def _has_begun(run: Run) -> bool:
    return isinstance(run.work, Block) and bool(run.work.num_applied[0])


def _worded(error: StreamcellError, ask: Ask) -> StreamcellError:
    """Returns an error of the catalog's or engine's in the protocol's words."""
    if is_missing(error):
        sequence = errors.brief(str(ask.sequence))
        message = (
            f"sequence {sequence} of {_model(ask.engine)} {_WHY_MISSING[error.reason]}: "
            "begin it with sequence_start"
        )
        return StreamcellError(error.reason, message, metadata=error.metadata)
    field = error.metadata.get("field", "")
    name = _FIELDS.get(field)
    if name is None:
        return error
    message = f"{name}: {error.message.removeprefix(f'{field}: ')}"
    return StreamcellError(error.reason, message, metadata={**error.metadata, "field": name})


def _model(engine: Engine) -> str:
    return f"{engine.name}/{engine.version}"


def _ignore(_: Run) -> None:
    pass

"""One model's engine: the only owner of the model's sessions, states and queue, so it needs no lock.

The engine runs in iterations, one at a time on one thread: schedule, run, commit, answer. Whatever is ready
when an iteration begins is its batch; the pacer may delay an iteration so that more steps join. Work comes in
as Step, Block or Control and is answered by a call of its `on_done`. Does not know protos or transports.
"""

import dataclasses
import itertools
import struct
from collections.abc import Callable

import numpy as np

from service import errors
from service.accounts import NOBODY
from service.arrays import Flags, Float32s
from service.config import Config
from service.engine import columns as columns_of
from service.engine.admission import Admission
from service.engine.answers import Answers
from service.engine.columns import Columns
from service.engine.fair_queue import FairQueue
from service.engine.latency import Latency
from service.engine.pacer import Loop, Pacer
from service.engine.progress import AppliedSteps
from service.engine.residents import Residents
from service.engine.scheduler import Piece, Scheduler
from service.engine.succession import Succession
from service.engine.work import AnyWork, Block, Control, Phase, Step
from service.errors import StreamcellError
from service.runtime.runner import Runner
from service.telemetry import faults
from service.telemetry.metrics import ModelMetrics


class Engine:
    """One model's sessions, and the iterations that move them.

    Args:
        runner: has the model.
        settings: has the bounds.
        metrics: the model's instruments.
        loop: runs the iterations, all on one thread.
        clock: monotonic nanoseconds.
        count_steps: called with an account and a number of steps that were queued for it, where accounts take
            turns; None: they take none.
    """

    def __init__(
        self,
        runner: Runner,
        settings: Config,
        metrics: ModelMetrics,
        *,
        loop: Loop,
        clock: Callable[[], int],
        count_steps: Callable[[int, int], None] | None = None,
    ) -> None:
        self.manifest = runner.artifact.manifest
        self.residents = Residents(runner, settings, metrics, clock=clock)
        self.sessions = self.residents.sessions
        self.model = self.residents.model
        self.name, self.version = self.model.name, self.model.version
        self.succession: Succession[Engine] = Succession()
        self.answers = Answers(self.sessions)
        self.row = struct.Struct(f"<{len(self.manifest.inputs)}f")
        """The layout of one input row as bytes."""
        self.last_applied_ns: int | None = None
        """When steps were last applied, in the time of `now`; None if never."""
        self._runner = runner
        self._metrics = metrics
        self._clock = clock
        self._latency = Latency(metrics, clock)
        self._rollback = self.residents.rollback
        self._scheduler = Scheduler(
            self.residents.max_sessions,
            max_queue_steps=settings.max_queue_steps,
            max_batch_steps=settings.max_batch_steps,
            max_piece_steps=settings.max_piece_steps,
            account_of=self.sessions.account.item if count_steps is not None else None,
        )
        self._count_steps = count_steps
        self._admission = Admission(
            self.sessions, self.manifest, times_must_rise=settings.time_order == "rising"
        )
        self._pacer = Pacer(
            loop,
            max_hold_seconds=settings.max_hold_seconds,
            num_steps=self._num_queued,
            iterate=self.iterate,
        )
        self._waiting_for_room: FairQueue[_Waiting] = FairQueue(lambda waiting: waiting.account)

    # -- Sessions at rest --------------------------------------------------------------------------

    def is_busy(self, slot: int) -> bool:
        """Returns whether a session has work that is queued or running."""
        return self._scheduler.is_busy(slot)

    def at_rest(self, count: int) -> list[int]:
        """Returns the slots of up to `count` sessions without work, those idle for longest first."""
        oldest = self.sessions.least_recently_used(len(self.sessions)).tolist()
        return list(itertools.islice((slot for slot in oldest if not self.is_busy(slot)), count))

    def expire_idle(self, ttl_ns: int) -> None:
        """Ends the sessions that were idle for `ttl_ns`; a session with work under way is not idle."""
        for slot in self.sessions.idle_since(self._clock() - ttl_ns):
            if not self.is_busy(slot):
                self.residents.expire(slot)

    def forecast(self, slot: int, horizon: int, future: Float32s) -> Float32s:
        """Returns a session's forecast [H, O]; `future` is [H, K]. Called from a control.

        Raises:
            StreamcellError: INVALID_ARGUMENT; the session has no step yet, or the model no finite forecast.
        """
        progress = self.sessions.progress
        if not progress.next_step[slot]:
            raise errors.invalid_argument(
                "session_id", "the session has no step yet: a forecast needs one at least"
            )
        y = self._runner.forecast(slot, int(progress.last_time[slot]), horizon, future)
        if not np.isfinite(y).all():
            raise errors.invalid_argument(
                "horizon_steps", "the model has no finite forecast from here: ask for fewer steps"
            )
        self._metrics.forecasts.inc()
        return y

    # -- Another version of the model leads --------------------------------------------------------

    def supersede(self, successor: "Engine | None") -> None:
        """Begins the retirement of this version; sessions move to the `successor`, if there is one."""
        self.succession.begin(successor)

    def resume(self) -> None:
        """Ends the retirement: this version leads again."""
        self.residents.free(self.succession.end())

    def move(self, slots: list[int]) -> int:
        """Moves idle sessions to the successor, as far as it has room; returns how many moved."""
        to = self.succession.successor
        if to is None:
            return 0
        generations = self.sessions.generation[slots].tolist()
        places = self.residents.move_to(to.residents, slots)
        for slot, generation, place in zip(slots, generations, places, strict=False):
            self.succession.record_move(slot, generation, (to, *place))
        return len(places)

    def unload(self) -> None:
        """Frees the model and states of an idle engine. `sessions` and `succession` may still be read."""
        self.succession.unload()
        self.residents.unload()
        self.answers.when_stored = None
        self._pacer.stop()
        # Streams may refer to this object for as long as their clients like.
        del self._runner, self._rollback

    # -- Work --------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether no work is queued."""
        return self._scheduler.num_queued_steps == 0

    def now(self) -> int:
        """Returns the engine's time, monotonic ns, for the `arrived_ns` of work."""
        return self._clock()

    def check_room(self, num_steps: int, account: int = NOBODY) -> None:
        """Checks that an account may queue so many steps, before a message is made into work.

        Raises:
            StreamcellError: OVERLOADED.
        """
        self._scheduler.check_room(num_steps, account)

    def has_room(self, num_steps: int, account: int = NOBODY) -> bool:
        """Returns whether an account may queue so many steps now.

        It may not while callers of `when_room` wait, or while rivals are to come first.
        """
        return not self._waiting_for_room and self._has_room(num_steps, account)

    def _has_room(self, num_steps: int, account: int) -> bool:
        return self._scheduler.has_turn(account) and self._scheduler.has_room(num_steps, account)

    def when_room(self, num_steps: int, function: Callable[[], None], account: int = NOBODY) -> None:
        """Calls a function once an account may queue so many steps, if `has_room` says that it may not now.

        The functions of one account are called in order, and accounts take turns.
        """
        self._waiting_for_room.append(_Waiting(account, num_steps, function))

    def submit(self, work: AnyWork) -> None:
        """Queues work for an iteration soon. Calls `work.on_done` when the work is done, unless withdrawn.

        Raises:
            StreamcellError: OVERLOADED, and nothing is queued.
        """
        self._scheduler.submit(work)
        if self._count_steps is not None:
            self._count_steps(work.account, work.num_steps)
        self._pacer.wake(work.may_be_held)

    def withdraw(self, work: AnyWork) -> bool:
        """Takes back work that has not begun, and returns whether it could. Withdrawn work moves nothing."""
        is_withdrawn = self._scheduler.withdraw(work)
        if is_withdrawn and isinstance(work, Block):
            self._rollback.finish_block(work)  # rows that ran stay applied
        return is_withdrawn

    def _num_queued(self) -> int:
        return self._scheduler.num_queued_steps

    # -- An iteration ------------------------------------------------------------------------------

    def iterate(self) -> None:
        """Schedules a batch, runs, commits and answers it; asks for another iteration if work is left."""
        batch = self._scheduler.schedule()
        now = self._clock()
        self._run_controls(batch.controls)
        steps = self._admit_steps(batch.steps)
        frames, long_inputs = self._admit_pieces(batch.pieces, now)
        compute_ns = self._run_call(steps, frames)
        self._run_call([], long_inputs)
        self._finish_steps(batch.steps, now, compute_ns)
        self._finish_blocks(batch.pieces)
        self._metrics.queued_steps.set(self._scheduler.num_queued_steps)
        if self._waiting_for_room:
            self._call_waiting_for_room()
        if self._scheduler.has_ready:
            if long_inputs:
                self._pacer.wake_after_long_inputs()
            else:
                self._pacer.wake()

    def _run_controls(self, controls: list[Control]) -> None:
        for control in controls:
            try:
                if not self.sessions.is_live(control.slot, control.generation):
                    raise errors.session_ended(self.sessions.endings.in_slot(control.slot))
                control.result = control.action(control.slot)
                self.sessions.touch(control.slot, self._clock())
            except StreamcellError as error:
                control.error = error
            except Exception as exception:
                control.error = faults.report(exception)
            self._scheduler.finish(control)
        for control in controls:
            self.answers.answer(control)

    def _admit_steps(self, steps: list[Step]) -> list[Step]:
        """Returns the steps that are to run; the others are repeats or have errors."""
        admitted, admit = [], self._admission.admit_step
        for step in steps:
            try:
                if step.restarts:
                    self._rollback.begin_step(step)
                if admit(step):
                    admitted.append(step)
            except StreamcellError as error:
                step.error = error
        return admitted

    def _admit_pieces(self, pieces: list[Piece], now: int) -> tuple[list[Piece], list[Piece]]:
        """Checks the groups that begin; returns the pieces of frames, and the pieces of long inputs."""
        frames: list[Piece] = []
        long_inputs: list[Piece] = []
        for piece in pieces:
            if piece.begins_group:
                piece.block.started_ns = piece.block.started_ns or now
                if piece.block.is_whole:
                    self._rollback.begin_block(piece.block)
                self._admission.admit_group(piece)
            elif self.sessions.durability.is_enabled:
                self._admission.refuse_ended(piece)
            (long_inputs if piece.block.is_long else frames).append(piece)
        return frames, long_inputs

    def _run_call(self, steps: list[Step], pieces: list[Piece]) -> int:
        """Runs one cell call over steps and pieces; returns its duration in ns. A fault fails these alone."""
        if not steps and not pieces:
            return 0
        started = self._clock()
        try:
            columns = columns_of.gather(steps, pieces, self._admission, len(self.manifest.inputs))
            if columns is None:
                return 0
            y, applied = self._compute(columns)
        except Exception as exception:
            _fail(steps, pieces, faults.report(exception))
            return 0
        try:
            self._commit(columns, y, applied)
        except Exception as exception:
            # States have moved and counters have not: end the sessions rather than go on wrong.
            _fail(steps, pieces, faults.report(exception))
            for slot in columns.slots.tolist():
                self.residents.close(slot)
            return 0
        elapsed_ns = self._clock() - started
        for ran in columns.pieces:
            ran.piece.block.compute_ns += elapsed_ns
        self._metrics.batch_steps.observe(int(columns.lengths.sum()))
        self._metrics.steps.inc(int(columns.lengths @ applied))
        return elapsed_ns

    def _compute(self, columns: Columns) -> tuple[Float32s, Flags]:
        """Runs the model; returns y [B, T, O] and which rows were applied [B]."""
        if columns.x.shape[1] > 1:
            return self._runner.scan(columns.slots, columns.x, columns.times, columns.lengths)
        y, applied = self._runner.step(columns.slots, columns.x[:, 0], columns.times[:, 0])
        return y[:, None], applied

    def _commit(self, columns: Columns, y: Float32s, applied: Flags) -> None:
        """Moves the sessions' progress on to match their states, and gives the work its predictions."""
        steps = AppliedSteps(
            columns.slots,
            columns.lengths,
            columns.x,
            given_times=columns.given_times,
            times=columns.times,
            y=y,
        )
        if not applied.all():
            steps = steps.of(applied)
        self.last_applied_ns = self._clock()
        self.sessions.apply(steps, self.last_applied_ns)
        columns_of.scatter(columns, y, applied)

    def _finish_steps(self, steps: list[Step], started_ns: int, compute_ns: int) -> None:
        """Ends and answers single steps; those that ran share one cell call."""
        if not steps:
            return
        self._rollback.finish_steps()
        self._scheduler.finish_steps(steps)
        self._latency.observe_steps(steps, started_ns, compute_ns)
        if num_repeats := sum([step.is_repeat for step in steps]):
            self._metrics.repeated_steps.inc(num_repeats)
        self.answers.answer_steps(steps)

    def _finish_blocks(self, pieces: list[Piece]) -> None:
        """Ends and answers the blocks that have no rows left to run; the others queue again."""
        for piece in pieces:
            block = piece.block
            if self._scheduler.advance(block):
                continue
            self._rollback.finish_block(block)
            self._scheduler.finish(block)
            if block.phase is Phase.WITHDRAWN:
                continue
            if block.wants_replies:
                self._latency.observe_block(block)
            self.answers.answer_block(block)

    def _call_waiting_for_room(self) -> None:
        """Calls the functions that waited for room, while there is; each fills its room at once.

        The first of an account that has no room stops the account's others.
        """
        num_without_room = 0
        while num_without_room < self._waiting_for_room.num_accounts:
            waiting = self._waiting_for_room.first
            if self._has_room(waiting.num_steps, waiting.account):
                self._waiting_for_room.popleft()
                waiting.function()
                num_without_room = 0
            else:
                self._waiting_for_room.pass_turn()
                num_without_room += 1


@dataclasses.dataclass(frozen=True, slots=True)
class _Waiting:
    """A function that waits for room in the queue."""

    account: int
    num_steps: int
    function: Callable[[], None]


def _fail(steps: list[Step], pieces: list[Piece], error: StreamcellError) -> None:
    for step in steps:
        step.error = error
    for piece in pieces:
        for entry in piece.entries.tolist():
            piece.block.fail(entry, error)

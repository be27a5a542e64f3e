"""One model's engine: the only owner of its sessions, states and queue, so nothing here needs a lock.

It runs in iterations, one at a time on one thread: schedule, run, commit. Whatever is ready when an iteration
begins is its batch; `pace` says when one is held back for company. Does not know protos or transports; work
comes in as Step, Block or Control and its `on_done` goes out.
"""

import itertools
import struct
from collections import deque
from collections.abc import Callable

import numpy as np

from service import errors
from service.arrays import Flags, Float32s
from service.config import Config
from service.engine import columns as columns_of
from service.engine.admission import Admission
from service.engine.columns import Columns
from service.engine.pacer import Loop, Pacer
from service.engine.residents import Residents
from service.engine.scheduler import Piece, Scheduler
from service.engine.work import AnyWork, Block, Control, Phase, Step
from service.errors import StreamcellError
from service.runtime.runner import Runner
from service.telemetry import faults
from service.telemetry.metrics import ModelMetrics

Told = Callable[[StreamcellError | None], None]
WhenStored = Callable[[list[int], Told], None]


class Engine(Residents):
    """Sessions of one model, and the iterations that move them.

    Args:
        runner: the model.
        settings: bounds.
        metrics: the model's instruments.
        loop: runs the iterations, all on one thread.
        clock: monotonic nanoseconds.
    """

    def __init__(
        self,
        runner: Runner,
        settings: Config,
        metrics: ModelMetrics,
        loop: Loop,
        clock: Callable[[], int],
    ) -> None:
        super().__init__(runner, settings, metrics, clock)
        self._scheduler = Scheduler(
            self.max_sessions, settings.max_queue_steps, settings.max_batch_steps, settings.max_piece_steps
        )
        self._admission = Admission(self.sessions, self.manifest)
        self._pacer = Pacer(loop, settings.max_hold_seconds, self._num_queued, self.iterate)
        self._waiting_for_room: deque[tuple[int, Callable[[], None]]] = deque()
        self._num_inputs = len(self.manifest.inputs)
        self.last_applied_ns: int | None = None
        """When steps were last applied, as `now` tells it."""
        self.row = struct.Struct(f"<{self._num_inputs}f")
        """The bytes of one input row."""
        self.when_stored: WhenStored | None = None
        """Has a function called when sessions are in the store as they are now, or cannot be written."""

    # -- Sessions at rest --------------------------------------------------------------------------

    def expire_idle(self, ttl_ns: int) -> None:
        """Ends the sessions that nobody used for `ttl_ns`; those with work under way are in use."""
        for slot in self.sessions.idle_since(self._clock() - ttl_ns):
            if not self._scheduler.is_busy(slot):
                self.expire(slot)

    def at_rest(self, count: int) -> list[int]:
        """Returns the slots of up to `count` sessions without work, those not used for longest first."""
        oldest = self.sessions.least_recently_used(len(self.sessions)).tolist()
        return list(itertools.islice((slot for slot in oldest if not self.is_busy(slot)), count))

    def is_busy(self, slot: int) -> bool:
        """Tells whether a session has work under way."""
        return self._scheduler.is_busy(slot)

    def leave(self) -> None:
        """Ends an engine that nobody uses, as `let_go` says; nothing in it keeps it."""
        self.let_go()
        self.when_stored = None
        self._pacer.end()

    # -- Work --------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether no work is queued."""
        return self._scheduler.num_queued_steps == 0

    def now(self) -> int:
        """Returns the engine's time, monotonic ns: what work says it arrived at."""
        return self._clock()

    def check_room(self, num_steps: int) -> None:
        """Checks that so many steps may be queued, before the work is made of a message.

        Raises:
            StreamcellError: OVERLOADED.
        """
        self._scheduler.check_room(num_steps)

    def submit(self, work: AnyWork) -> None:
        """Queues work for an iteration soon; `work.on_done` is called when it is done, unless withdrawn.

        Raises:
            StreamcellError: OVERLOADED, and nothing is queued.
        """
        self._scheduler.submit(work)
        self._pacer.wake(work.may_be_held)

    def has_room(self, num_steps: int) -> bool:
        """Tells whether the queue has room for so many steps, that nobody waits for."""
        return not self._waiting_for_room and self._scheduler.has_room(num_steps)

    def when_room(self, num_steps: int, function: Callable[[], None]) -> None:
        """Calls a function once, in its turn, when the queue has room for so many steps."""
        self._waiting_for_room.append((num_steps, function))

    def withdraw(self, work: AnyWork) -> bool:
        """Takes back work that has not begun; tells whether it could. Nothing moves by withdrawn work."""
        is_withdrawn = self._scheduler.withdraw(work)
        if is_withdrawn and isinstance(work, Block):
            self._undo.settle_block(work)  # what ran of it stays
        return is_withdrawn

    def _num_queued(self) -> int:
        return self._scheduler.num_queued_steps

    # -- An iteration ------------------------------------------------------------------------------

    def iterate(self) -> None:
        """Schedules a batch, runs it and commits it; asks for the next iteration if work is left."""
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
            self._tell_of_room()
        if self._scheduler.has_ready:
            if long_inputs:
                self._pacer.go_on()
            else:
                self._pacer.wake()

    def _tell_of_room(self) -> None:
        """Calls those for whom there is room, of which each takes its share at once."""
        while self._waiting_for_room and self._scheduler.has_room(self._waiting_for_room[0][0]):
            self._waiting_for_room.popleft()[1]()

    def _run_controls(self, controls: list[Control]) -> None:
        for control in controls:
            try:
                if self.sessions.generation[control.slot] != control.generation:
                    raise errors.session_ended(self.sessions.end_in(control.slot))
                control.result = control.action(control.slot)
                self.sessions.last_used[control.slot] = self._clock()
            except StreamcellError as error:
                control.error = error
            except Exception as exception:
                control.error = faults.report(exception)
            self._scheduler.finish(control)
        for control in controls:
            self._tell(control)

    def _admit_steps(self, steps: list[Step]) -> list[Step]:
        """Returns the steps that are to run; the others are repeats or have their errors."""
        admitted, admit = [], self._admission.admit_step
        for step in steps:
            try:
                if step.restarts:
                    self._undo.begin_step(step)
                if admit(step):
                    admitted.append(step)
            except StreamcellError as error:
                step.error = error
        return admitted

    def _admit_pieces(self, pieces: list[Piece], now: int) -> tuple[list[Piece], list[Piece]]:
        """Checks the groups that begin; returns the pieces of frames, and those of long inputs."""
        frames: list[Piece] = []
        long_inputs: list[Piece] = []
        for piece in pieces:
            if piece.is_first:
                piece.block.started_ns = piece.block.started_ns or now
                if piece.block.is_whole:
                    self._undo.begin_block(piece.block)
                self._admission.admit_group(piece)
            elif self.sessions.is_stored:
                self._admission.drop_gone(piece)
            (long_inputs if piece.block.is_long else frames).append(piece)
        return frames, long_inputs

    def _run_call(self, steps: list[Step], pieces: list[Piece]) -> int:
        """Runs one cell call over steps and pieces, a fault in which fails them alone; returns its ns."""
        if not steps and not pieces:
            return 0
        started = self._clock()
        try:
            columns = columns_of.gather(steps, pieces, self._admission, self._num_inputs)
            if columns is None:
                return 0
            y, applied = self._compute(columns)
        except Exception as exception:
            self._fail(steps, pieces, faults.report(exception))
            return 0
        try:
            self._commit(columns, y, applied)
        except Exception as exception:
            # States have moved and counters have not: rather no session than a wrong one.
            self._fail(steps, pieces, faults.report(exception))
            for slot in columns.slots.tolist():
                self.close(slot)
            return 0
        elapsed_ns = self._clock() - started
        for part in columns.parts:
            part.piece.block.compute_ns += elapsed_ns
        self._metrics.batch_steps.observe(int(columns.lengths.sum()))
        self._metrics.steps.inc(int(columns.lengths @ applied))
        return elapsed_ns

    @staticmethod
    def _fail(steps: list[Step], pieces: list[Piece], error: StreamcellError) -> None:
        for step in steps:
            step.error = error
        for piece in pieces:
            for entry in piece.entries.tolist():
                piece.block.fail(entry, error)

    def _compute(self, columns: Columns) -> tuple[Float32s, Flags]:
        """Returns y [B, T, O] and which rows were applied [B]."""
        if columns.x.shape[1] > 1:
            return self._runner.scan(columns.slots, columns.x, columns.times, columns.lengths)
        y, applied = self._runner.step(columns.slots, columns.x[:, 0], columns.times[:, 0])
        return y[:, None], applied

    def _commit(self, columns: Columns, y: Float32s, applied: Flags) -> None:
        """Moves the sessions to where their states now are, and hands out the predictions."""
        rows = slice(None) if applied.all() else applied
        self.last_applied_ns = self._clock()
        self.sessions.apply(
            columns.slots[rows],
            columns.lengths[rows],
            columns.x[rows],
            columns.given_times[rows],
            columns.times[rows],
            y[rows],
            self.last_applied_ns,
        )
        columns_of.hand_back(columns, y, applied)

    def _finish_steps(self, steps: list[Step], started_ns: int, compute_ns: int) -> None:
        """Ends single steps and tells whoever asked for them; those that ran share one cell call."""
        if not steps:
            return
        self._undo.settle_steps()
        self._scheduler.finish_steps(steps)
        self._observe_steps(steps, started_ns, compute_ns)
        for step in steps:
            if step.is_repeat:
                self._metrics.repeated_steps.inc()
            if self.when_stored is not None and self._waits_for_store(step):
                self._tell_once_stored(self.when_stored, [step.slot], step)
            else:
                self._tell(step)

    def _finish_blocks(self, pieces: list[Piece]) -> None:
        """Ends the blocks of which nothing is left."""
        for piece in pieces:
            block = piece.block
            if self._scheduler.advance(block):
                continue
            self._undo.settle_block(block)
            self._scheduler.finish(block)
            if block.phase is Phase.WITHDRAWN:
                continue
            if block.wants_replies:
                self._observe_block(block)
            if self.when_stored is not None and (slots := self._durable_of(block)):
                self._tell_once_stored(self.when_stored, slots, block)
            else:
                self._tell(block)

    # -- Answers that wait for the store ---------------------------------------------------------------

    def _waits_for_store(self, step: Step) -> bool:
        """Tells whether a step is of a durable session, or its first anew, and not in the store yet."""
        sessions = self.sessions
        if step.error is not None or not (sessions.is_durable.item(step.slot) or step.restarts):
            return False
        return step.step_index >= sessions.num_durable.item(step.slot)

    def _durable_of(self, block: Block) -> list[int]:
        """Returns the durable or restarted sessions of a block, of which the store may not have all yet."""
        sessions, slots = self.sessions, block.slots
        lives = sessions.generation[slots] == block.generations
        is_asked = sessions.is_durable[slots] | (block.restarts and not block.errors)
        waits = is_asked & (sessions.num_durable[slots] < sessions.next_step[slots])
        found: list[int] = slots[lives & waits].tolist()
        return found

    def _tell_once_stored(self, when_stored: WhenStored, slots: list[int], work: Step | Block) -> None:
        def told(error: StreamcellError | None) -> None:
            if error is not None and isinstance(work, Block):
                for entry in np.flatnonzero(np.isin(work.slots, slots)).tolist():
                    work.errors.setdefault(entry, error)
            elif error is not None:
                work.error = error
            self._tell(work)

        when_stored(slots, told)

    @staticmethod
    def _tell(work: AnyWork) -> None:
        work.phase = Phase.DONE
        try:
            work.on_done(work)
        except Exception as exception:  # one caller's trouble is nobody else's
            faults.report(exception)

    # -- What is measured --------------------------------------------------------------------------

    def _observe_steps(self, steps: list[Step], started_ns: int, compute_ns: int) -> None:
        """Counts the latency of the steps of a batch that were applied."""
        metrics, now = self._metrics, self._clock()
        seconds = sorted(
            [(now - step.arrived_ns) * 1e-9 for step in steps if step.error is None and not step.is_repeat]
        )
        metrics.step_seconds.observe_all(seconds)
        metrics.queue_seconds.observe_all(seconds, offset=(started_ns - now) * 1e-9)
        metrics.compute_seconds.observe(compute_ns * 1e-9, len(seconds))

    def _observe_block(self, block: Block) -> None:
        """Counts the latency of a block's steps, which are answered together."""
        metrics, count = self._metrics, int(block.num_applied.sum())
        metrics.step_seconds.observe((self._clock() - block.arrived_ns) * 1e-9, count)
        metrics.queue_seconds.observe((block.started_ns - block.arrived_ns) * 1e-9, count)
        metrics.compute_seconds.observe(block.compute_ns * 1e-9, count)

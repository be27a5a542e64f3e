"""One model's engine: the only owner of its sessions, states and queue, so nothing here needs a lock.

It runs in iterations, one at a time on one thread: schedule, run, commit. Whatever is ready when an iteration
begins is its batch. Does not know protos or transports; work comes in as Step, Block or Control and its
`on_done` goes out.
"""

from collections.abc import Callable

from service import columns as columns_of
from service import errors, faults
from service.admission import Admission, session_ended
from service.columns import Columns, Flags
from service.config import Config
from service.errors import StreamcellError
from service.manifest import Manifest
from service.metrics import ModelMetrics
from service.runner import Runner
from service.scheduler import Batch, Piece, Scheduler
from service.sessions import Float32s, Sessions
from service.slots import Slots
from service.work import AnyWork, Block, Control, Phase, Step


class Engine:
    """Sessions of one model, and the iterations that move them.

    Args:
        runner: the model.
        settings: bounds.
        metrics: the model's instruments.
        call_soon: runs a function on the engine's thread after what is already due (an event loop's own).
        clock: monotonic nanoseconds.
    """

    def __init__(
        self,
        runner: Runner,
        settings: Config,
        metrics: ModelMetrics,
        call_soon: Callable[[Callable[[], None]], object],
        clock: Callable[[], int],
    ) -> None:
        manifest = runner.artifact.manifest
        capacity = settings.max_resident_sessions
        self.name = runner.artifact.name
        self.version = runner.artifact.version
        self.manifest: Manifest = manifest
        self.sessions = Sessions(capacity, len(manifest.inputs), len(manifest.outputs), settings.replies_kept)
        self._slots = Slots(capacity)
        self._scheduler = Scheduler(
            capacity, settings.max_queue_steps, settings.max_batch_steps, settings.max_piece_steps
        )
        self._admission = Admission(self.sessions, manifest)
        self._runner = runner
        self._metrics = metrics
        self._call_soon = call_soon
        self._clock = clock
        self._is_due = False  # whether an iteration is on its way
        self._num_inputs = len(manifest.inputs)

    # -- Sessions ----------------------------------------------------------------------------------

    def open(self, key: str) -> int:
        """Opens a session and returns its slot.

        Raises:
            StreamcellError: SESSIONS_FULL.
        """
        slot = self._slots.take()
        if slot is None:
            raise errors.sessions_full(self._slots.capacity)
        self._runner.clear(slot)
        self.sessions.open(key, slot, self._clock())
        self._metrics.sessions_opened.inc()
        self._metrics.sessions.set(len(self.sessions))
        return slot

    def close(self, slot: int) -> int:
        """Ends a session and returns how many steps it had; to be called from a control."""
        num_steps = int(self.sessions.next_step[slot])
        self.sessions.close(slot)
        self._release(slot)
        return num_steps

    def reset(self, slot: int) -> None:
        """Puts a session back to its start; to be called from a control."""
        self._runner.clear(slot)
        self.sessions.restart(slot)

    def forecast(self, slot: int, horizon: int, future: Float32s) -> Float32s:
        """Returns a session's forecast [H, O] for `future` [H, K]; to be called from a control.

        Raises:
            StreamcellError: INVALID_ARGUMENT, the session has no step yet.
        """
        if not self.sessions.next_step[slot]:
            raise errors.invalid_argument(
                "session_id", "the session has no step yet: a forecast needs one at least"
            )
        y = self._runner.forecast(slot, int(self.sessions.last_time[slot]), horizon, future)
        self._metrics.forecasts.inc()
        return y

    def expire_idle(self, ttl_ns: int) -> None:
        """Ends the sessions that nobody used for `ttl_ns`; those with work under way are in use."""
        for slot in self.sessions.idle_since(self._clock() - ttl_ns):
            if not self._scheduler.is_busy(slot):
                self.sessions.expire(slot)
                self._metrics.sessions_expired.inc()
                self._release(slot)

    def _release(self, slot: int) -> None:
        self._slots.give_back(slot)
        self._metrics.sessions.set(len(self.sessions))

    # -- Work --------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether no work is queued."""
        return self._scheduler.num_queued_steps == 0

    def now(self) -> int:
        """Returns the engine's time, monotonic ns: what work says it arrived at."""
        return self._clock()

    def submit(self, work: AnyWork) -> None:
        """Queues work for an iteration soon; `work.on_done` is called when it is done, unless withdrawn.

        Raises:
            StreamcellError: OVERLOADED, and nothing is queued.
        """
        self._scheduler.submit(work)
        self._wake()

    def withdraw(self, work: AnyWork) -> bool:
        """Takes back work that has not begun; tells whether it could. Nothing moves by withdrawn work."""
        return self._scheduler.withdraw(work)

    def _wake(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._call_soon(self.iterate)

    # -- An iteration ------------------------------------------------------------------------------

    def iterate(self) -> None:
        """Schedules a batch, runs it and commits it; asks for the next iteration if work is left."""
        self._is_due = False
        batch = self._scheduler.schedule()
        now = self._clock()
        self._run_controls(batch.controls)
        steps = [step for step in batch.steps if self._admit(step, now)]
        self._admit_groups(batch.pieces, now)
        self._run_call(steps, [piece for piece in batch.pieces if not piece.block.is_long])
        self._run_call([], [piece for piece in batch.pieces if piece.block.is_long])
        self._finish(batch)
        self._metrics.queued_steps.set(self._scheduler.num_queued_steps)
        if self._scheduler.has_ready:
            self._wake()

    def _run_controls(self, controls: list[Control]) -> None:
        for control in controls:
            try:
                if self.sessions.generation[control.slot] != control.generation:
                    raise session_ended()
                control.result = control.action(control.slot)
                self.sessions.last_used[control.slot] = self._clock()
            except StreamcellError as error:
                control.error = error
            except Exception as exception:
                control.error = faults.report(exception)

    def _admit(self, step: Step, now: int) -> bool:
        step.started_ns = now
        try:
            return self._admission.admit_step(step)
        except StreamcellError as error:
            step.error = error
            return False

    def _admit_groups(self, pieces: list[Piece], now: int) -> None:
        for piece in pieces:
            if piece.is_first:
                piece.block.started_ns = piece.block.started_ns or now
                self._admission.admit_group(piece)

    def _run_call(self, steps: list[Step], pieces: list[Piece]) -> None:
        """Runs one cell call over steps and pieces; a fault in it fails those, and them alone."""
        if not steps and not pieces:
            return
        started = self._clock()
        columns = None
        try:
            columns = columns_of.gather(steps, pieces, self._admission, self._num_inputs)
            if columns is None:
                return
            y, applied = self._compute(columns)
        except Exception as exception:
            self._fail(steps, pieces, faults.report(exception))
            return
        try:
            self._commit(columns, y, applied)
        except Exception as exception:
            # States have moved and counters have not: rather no session than a wrong one.
            self._fail(steps, pieces, faults.report(exception))
            for slot in columns.slots.tolist():
                self.close(slot)
            return
        self._observe_call(columns, applied, started)

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
        self.sessions.apply(
            columns.slots[applied],
            columns.lengths[applied],
            columns.x[applied],
            columns.given_times[applied],
            columns.times[applied],
            y[applied],
            self._clock(),
        )
        columns_of.hand_back(columns, y, applied)

    def _finish(self, batch: Batch) -> None:
        """Ends what is done and tells whoever asked for it."""
        for control in batch.controls:
            self._end(control)
        for step in batch.steps:
            if step.is_repeat:
                self._metrics.repeated_steps.inc()
            elif step.error is None:
                self._observe_replies(step, 1)
            self._end(step)
        for piece in batch.pieces:
            if self._scheduler.advance(piece.block):
                continue
            if piece.block.wants_replies and piece.block.phase is not Phase.WITHDRAWN:
                self._observe_replies(piece.block, int(piece.block.num_applied.sum()))
            self._end(piece.block)

    def _end(self, work: AnyWork) -> None:
        self._scheduler.finish(work)
        if work.phase is Phase.WITHDRAWN:
            return
        work.phase = Phase.DONE
        try:
            work.on_done(work)
        except Exception as exception:  # one caller's trouble is nobody else's
            faults.report(exception)

    # -- What is measured --------------------------------------------------------------------------

    def _observe_call(self, columns: Columns, applied: Flags, started_ns: int) -> None:
        elapsed_ns = self._clock() - started_ns
        for step in columns.steps:
            step.compute_ns = elapsed_ns
        for part in columns.parts:
            part.piece.block.compute_ns += elapsed_ns
        self._metrics.batch_steps.observe(int(columns.lengths.sum()))
        self._metrics.steps.inc(int(columns.lengths[applied].sum()))

    def _observe_replies(self, work: Step | Block, count: int) -> None:
        """Counts the latency of `count` steps that are answered together."""
        metrics = self._metrics
        metrics.step_seconds.observe((self._clock() - work.arrived_ns) * 1e-9, count)
        metrics.queue_seconds.observe((work.started_ns - work.arrived_ns) * 1e-9, count)
        metrics.compute_seconds.observe(work.compute_ns * 1e-9, count)

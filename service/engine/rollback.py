"""Rolls a session back when work on it fails.

A step that is not applied leaves its session unchanged anyway. Two kinds of work need more: a step or block
that restarts its session first, and a block that is applied as a whole or not at all. Does not know why work
fails, nor the store.
"""

from typing import NamedTuple

import numpy as np

from service.arrays import Float32s, Int64s
from service.engine.progress import Progress
from service.engine.session_table import SessionTable
from service.engine.work import Block, Step
from service.runtime.runner import Runner


class Before(NamedTuple):
    """A session as it was before the work."""

    progress: Progress  # of one session
    states: Float32s  # (1, S)


class Rollback:
    """Copies sessions before work that may need a rollback, and restores the sessions whose work failed."""

    def __init__(self, sessions: SessionTable, runner: Runner) -> None:
        self._sessions = sessions
        self._runner = runner
        self._steps: list[tuple[Step, Before]] = []  # of this iteration
        self._blocks: dict[Block, Before] = {}  # a block runs over several iterations

    def begin_step(self, step: Step) -> None:
        """Restarts the session of a step that asks for it. Called before the step is admitted."""
        if self._sessions.is_live(step.slot, step.generation):  # otherwise the step will be refused
            self._steps.append((step, self._read(step.slot)))
            self._restart(step.slot)

    def begin_block(self, block: Block) -> None:
        """Copies a whole block's session, and restarts it if the block asks. Called before the block runs."""
        slot = int(block.slots[0])
        if self._sessions.is_live(slot, int(block.generations[0])):
            self._blocks[block] = self._read(slot)
            if block.restarts:
                self._restart(slot)

    def finish_steps(self) -> None:
        """Restores the sessions of the iteration's steps that failed."""
        for step, before in self._steps:
            self._finish(step, step.slot, step.generation, before, is_failed=step.error is not None)
        self._steps = []

    def finish_block(self, block: Block) -> None:
        """Restores the session of a block that failed. Called once the block has no rows left to run."""
        before = self._blocks.pop(block, None)
        if before is not None:
            is_failed = bool(block.errors)
            slot, generation = int(block.slots[0]), int(block.generations[0])
            self._finish(block, slot, generation, before, is_failed=is_failed)
            if is_failed:
                block.num_applied[0] = 0

    def restore_copies(self, slots: Int64s, progress: Progress, states: Float32s) -> None:
        """Rolls back copies of the sessions at `slots` [N] that are in the middle of a whole block.

        Without this a store could get half of a block that is applied as a whole or not at all.
        """
        for block, before in self._blocks.items():
            for at in np.flatnonzero(slots == block.slots[0]).tolist():
                if self._sessions.is_live(int(slots[at]), int(block.generations[0])):
                    progress.put(at, before.progress)
                    states[at] = before.states[0]

    def _read(self, slot: int) -> Before:
        slots = np.array([slot], np.int64)
        return Before(self._sessions.progress.read(slots), self._runner.read(slots))

    def _restart(self, slot: int) -> None:
        self._runner.clear(slot)
        self._sessions.progress.restart(slot)

    def _finish(
        self, work: Step | Block, slot: int, generation: int, before: Before, *, is_failed: bool
    ) -> None:
        if not self._sessions.is_live(slot, generation):
            return  # a fault ended the session, or another server took it over
        if is_failed:
            self._sessions.progress.put(slot, before.progress)
            self._runner.put(np.array([slot]), before.states)
        elif work.restarts:
            self._sessions.durability.mark_restarted(slot)

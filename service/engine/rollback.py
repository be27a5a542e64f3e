"""Puts a session back to where it stood when work fails that would else have left it elsewhere.

A step that is not applied leaves its session as it was by itself. Two kinds of work need more: a step or
block that first restarts its session, and a block that is to be applied as a whole or not at all. Does not
know why work fails, nor what a store is told.
"""

from typing import NamedTuple

import numpy as np

from service.arrays import Float32s, Int64s
from service.engine.session_table import Sessions, Standing
from service.engine.work import Block, Step
from service.runtime.runner import Runner


class Kept(NamedTuple):
    """A session as it stood."""

    standing: Standing  # of one
    states: Float32s  # (1, S)


class Undo:
    """Keeps where sessions stand before such work, and undoes what failed."""

    def __init__(self, sessions: Sessions, runner: Runner) -> None:
        self._sessions = sessions
        self._runner = runner
        self._steps: list[tuple[Step, Kept]] = []  # of the iteration
        self._blocks: dict[Block, Kept] = {}  # these go on over iterations

    def begin_step(self, step: Step) -> None:
        """Restarts the session of a step that asks for it; to be called before it is admitted."""
        if self._sessions.generation[step.slot] == step.generation:  # else it ended: the step will be refused
            self._steps.append((step, self._keep(step.slot)))
            self._restart(step.slot)

    def begin_block(self, block: Block) -> None:
        """Does the same for a block of one session, which is whole; to be called before its first piece."""
        slot = int(block.slots[0])
        if self._sessions.generation[slot] == block.generations[0]:
            self._blocks[block] = self._keep(slot)
            if block.restarts:
                self._restart(slot)

    def settle_steps(self) -> None:
        """Undoes what failed of the steps that began since."""
        for step, kept in self._steps:
            self._settle(step, step.slot, step.generation, kept, is_failed=step.error is not None)
        self._steps = []

    def settle_block(self, block: Block) -> None:
        """Undoes a block that failed; to be called once nothing of it is left to run."""
        kept = self._blocks.pop(block, None)
        if kept is not None:
            is_failed = bool(block.errors)
            self._settle(block, int(block.slots[0]), int(block.generations[0]), kept, is_failed=is_failed)
            if is_failed:
                block.num_applied[0] = 0

    def put_before(self, slots: Int64s, standing: Standing, states: Float32s) -> None:
        """Puts back, in copies of sessions at `slots`, those in the middle of what may be undone.

        Else a store could have half of what is applied as a whole, and whoever takes the session over.
        """
        for block, kept in self._blocks.items():
            for at in np.flatnonzero(slots == block.slots[0]).tolist():
                if self._sessions.generation[slots[at]] == block.generations[0]:
                    standing.put(at, kept.standing)
                    states[at] = kept.states[0]

    def _keep(self, slot: int) -> Kept:
        slots = np.array([slot], np.int64)
        return Kept(self._sessions.read(slots), self._runner.read(slots))

    def _restart(self, slot: int) -> None:
        self._runner.clear(slot)
        self._sessions.restart(slot)

    def _settle(self, work: Step | Block, slot: int, generation: int, kept: Kept, *, is_failed: bool) -> None:
        if self._sessions.generation[slot] != generation:
            return  # a fault ended it, or another server took it over
        if is_failed:
            self._sessions.put(slot, kept.standing)
            self._runner.put(np.array([slot]), kept.states)
        elif work.restarts:
            self._sessions.forget_stored(slot)

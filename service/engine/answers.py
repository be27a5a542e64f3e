"""How finished work is answered: at once, or once the store has the steps.

Does not know the store, nor the callers.
"""

from collections.abc import Callable

import numpy as np

from service.engine.session_table import SessionTable
from service.engine.work import AnyWork, Block, Phase, Step
from service.errors import StreamcellError
from service.telemetry import faults

OnStored = Callable[[StreamcellError | None], None]
OnAllStored = Callable[[dict[int, StreamcellError]], None]
WhenStored = Callable[[list[int], OnAllStored], None]


class Answers:
    """Calls the `on_done` of finished work; for durable sessions after the write that holds their steps."""

    def __init__(self, sessions: SessionTable) -> None:
        self._sessions = sessions
        self.when_stored: WhenStored | None = None
        """Calls a function once the store has the present states of sessions, with the error of each that it
        cannot have, by slot."""

    def answer(self, work: AnyWork) -> None:
        """Answers work at once. An exception of the caller's is logged and goes no further."""
        work.phase = Phase.DONE
        try:
            work.on_done(work)
        except Exception as exception:  # one caller's fault must not reach the others
            faults.report(exception)

    def answer_steps(self, steps: list[Step]) -> None:
        """Answers single steps, each at once or when the store has the step."""
        when_stored, answer = self.when_stored, self.answer  # looked up once, not for each step
        for step in steps:
            if when_stored is not None and self._waits_for_store(step):
                self._answer_once_stored(when_stored, [step.slot], step)
            else:
                answer(step)

    def answer_block(self, block: Block) -> None:
        """Answers a block, at once or when the store has the steps of the block's durable sessions."""
        if self.when_stored is not None and (slots := self._unstored_slots(block)):
            self._answer_once_stored(self.when_stored, slots, block)
        else:
            self.answer(block)

    def _waits_for_store(self, step: Step) -> bool:
        """Returns whether a step must be in the store first, for a durable session or after a restart."""
        durability = self._sessions.durability
        if step.error is not None or not (durability.is_durable.item(step.slot) or step.restarts):
            return False
        return step.step_index >= durability.num_durable.item(step.slot)

    def _unstored_slots(self, block: Block) -> list[int]:
        """Returns the slots of a block's durable or restarted sessions whose steps the store may lack."""
        sessions, slots = self._sessions, block.slots
        durability, next_step = sessions.durability, sessions.progress.next_step
        is_live = sessions.generation[slots] == block.generations
        must_be_stored = durability.is_durable[slots] | (block.restarts and not block.errors)
        is_unstored = durability.num_durable[slots] < next_step[slots]
        unstored: list[int] = slots[is_live & must_be_stored & is_unstored].tolist()
        return unstored

    def _answer_once_stored(self, when_stored: WhenStored, slots: list[int], work: Step | Block) -> None:
        def on_all_stored(failed: dict[int, StreamcellError]) -> None:
            if isinstance(work, Step):
                work.error = failed.get(work.slot)
            else:
                for entry in np.flatnonzero(np.isin(work.slots, list(failed))).tolist():
                    work.errors.setdefault(entry, failed[work.slots.item(entry)])
            self.answer(work)

        when_stored(slots, on_all_stored)

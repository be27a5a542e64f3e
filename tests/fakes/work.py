"""Work for a scheduler, which looks at no value: steps and blocks of sessions by slot."""

import numpy as np

from service.engine.work import INDEX_NEXT, Block, Step


def nothing(*_):
    """Ignores its arguments."""


def step_of(slot):
    """Returns a step of a session."""
    return Step(slot, 0, b"", time=0, index=INDEX_NEXT, arrived_ns=0, on_done=nothing)


def block_with(counts):
    """Returns a block with counts[slot] steps for each slot."""
    slots = np.array(list(counts), np.int64)
    steps = np.array(list(counts.values()), np.int64)
    x = np.zeros((int(steps.sum()), 1), np.float32)
    return Block(
        slots,
        slots * 0,
        counts=steps,
        x=x,
        times=None,
        indexes=slots * 0 - 1,
        num_outputs=1,
        wants_replies=True,
        arrived_ns=0,
        on_done=nothing,
    )

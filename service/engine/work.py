"""What callers ask of an engine: a step, a block of many, or a control. Values without policy.

Whoever submits a piece of work sets `on_done`; the engine calls it once, with the result or `error` in place,
unless the work was withdrawn.
"""

import enum
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from service.arrays import Float32s, Int64s
from service.errors import StreamcellError

INDEX_NEXT = -1  # as a step's index: the next one


class Phase(enum.IntEnum):
    """Where a piece of work is in its life."""

    QUEUED = 0
    STARTED = 1
    WITHDRAWN = 2
    DONE = 3


class Work:
    """What steps, blocks and controls have in common; `arrived_ns` is monotonic.

    What work begins with stands in its class: a step is made for every message, so each attribute set in
    `__init__` is paid for by every message.
    """

    num_steps = 1
    """Steps it counts for in the queue; controls count for one, so that they are bounded too."""
    error: StreamcellError | None = None
    phase = Phase.QUEUED
    num_blockers = 0
    """Lanes in which earlier work stands before it."""
    restarts = False
    """Whether it first puts its session back to its start."""
    may_be_held = False
    """Whether it may wait a moment for others to join: a unary call, of which fronts bring few at a time."""

    arrived_ns: int
    on_done: "Callable[[Any], None]"


class Step(Work):
    """One step of one session.

    Args:
        slot, generation: the session.
        x: F little-endian float32.
        time: Unix ns, or TIME_ABSENT.
        index: the index asked for, or INDEX_NEXT.

    Results: `step_index`, `y` (O floats), `is_repeat` (answered from the replies kept).
    """

    run_time = 0
    """What the model gets: the time given, or the one that follows."""
    step_index = -1
    is_repeat = False
    y: Sequence[float] = ()

    def __init__(
        self,
        slot: int,
        generation: int,
        x: bytes,
        time: int,
        index: int,
        arrived_ns: int,
        on_done: "Callable[[Step], None]",
    ) -> None:
        self.slot = slot
        self.generation = generation
        self.x = x
        self.time = time
        self.index = index
        self.arrived_ns = arrived_ns
        self.on_done = on_done


class Block(Work):
    """Steps of one or many sessions, in columns: entry e has rows starts[e] .. starts[e] + counts[e] - 1.

    Args:
        slots, generations: [n], the sessions, each once.
        counts: [n], steps of each, at least 1.
        x: float32 [rows, F].
        times: [rows], or None when the request gave none.
        indexes: [n], each entry's first index or INDEX_NEXT.
        wants_replies: whether y is wanted of every row, or (priming) of each entry's last one alone.

    Results: `y` [rows, O] (NaN where there is none), `step_indexes` [n] (of each entry's first row),
    `num_applied` [n] (rows that moved the state), `errors` by entry.
    """

    is_whole = False
    """Whether a failure puts its one session back to where it stood before; else what ran stays applied."""
    started_ns = 0
    """When it was first in a batch."""
    compute_ns = 0
    """What its cell calls took."""

    def __init__(
        self,
        slots: Int64s,
        generations: Int64s,
        counts: Int64s,
        x: Float32s,
        times: Int64s | None,
        indexes: Int64s,
        num_outputs: int,
        wants_replies: bool,
        arrived_ns: int,
        on_done: "Callable[[Block], None]",
    ) -> None:
        self.arrived_ns = arrived_ns
        self.on_done = on_done
        self.num_steps = len(x)
        self.slots = slots
        self.generations = generations
        # Rows still to run of each entry. Both columns shrink from the front by rows applied before.
        self.totals = counts.copy()
        self.starts = np.cumsum(counts) - counts
        self.x = x
        self.times = times
        self.indexes = indexes
        self.is_long = bool(counts.max() > 1)  # several steps of a session: runs in a cell call of its own
        self.wants_replies = wants_replies
        self.y = np.full((len(x), num_outputs), np.nan, np.float32)
        self.step_indexes = np.zeros_like(slots)
        self.num_applied = np.zeros_like(slots)
        self.errors: dict[int, StreamcellError] = {}
        # Entries run in groups that fit a batch, each group to its last row before the next begins.
        self.cursor = 0  # first entry of the group
        self.stop = 0  # entry after the group's last; the group is formed when it is past the cursor
        self.rows_done = 0  # time steps of the group that were scheduled

    def fail(self, entry: int, error: StreamcellError) -> None:
        """Gives up the rest of an entry."""
        self.errors[entry] = error
        self.totals[entry] = 0
        self.step_indexes[entry] = 0

    @property
    def num_outputs(self) -> int:
        """Values of a prediction."""
        return int(self.y.shape[1])


class Control(Work):
    """Something to do with one session after the work that came before: close, reset, forecast ...

    `action` runs in the engine between two batches; its return value becomes `result`.
    """

    def __init__(
        self,
        slot: int,
        generation: int,
        action: "Callable[[int], Any]",
        arrived_ns: int,
        on_done: "Callable[[Control], None]",
    ) -> None:
        self.slot = slot
        self.generation = generation
        self.action = action
        self.arrived_ns = arrived_ns
        self.on_done = on_done
        self.result: Any = None


AnyWork = Step | Block | Control

"""What callers ask of an engine: a step, a block of many steps, or a control. Values without policy.

The caller sets `on_done`. The engine calls `on_done` once, when the result or `error` is set, unless the work
was withdrawn.
"""

import enum
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from service.accounts import NOBODY
from service.arrays import Float32s, Int64s
from service.errors import StreamcellError

INDEX_NEXT = -1  # as a step's index: whichever is next


class Phase(enum.IntEnum):
    """How far a piece of work has come."""

    QUEUED = 0
    STARTED = 1
    WITHDRAWN = 2
    DONE = 3


class Work:
    """What steps, blocks and controls have in common; `arrived_ns` is monotonic.

    First values are attributes of the class: a step is made for every message, so every message would pay for
    each attribute that `__init__` sets.
    """

    num_steps = 1
    """How many steps the work counts for in the queue; a control counts for one, to be bounded too."""
    error: StreamcellError | None = None
    phase = Phase.QUEUED
    num_blockers = 0
    """The number of lanes in which earlier work comes first."""
    restarts = False
    """Whether the session is put back to its start first."""
    account = NOBODY
    """Whose turn the work takes: set when it is queued, where callers have principals."""
    may_be_held = False
    """Whether its iteration may be held: true for unary calls, which come in few at a time."""

    arrived_ns: int
    on_done: "Callable[[Any], None]"


class Step(Work):
    """One step of one session.

    Args:
        slot, generation: the session.
        x: F little-endian float32.
        time: Unix ns, or TIME_ABSENT.
        index: the index asked for, or INDEX_NEXT.

    Results: `step_index`, `y` (O floats), `is_repeat` (whether `y` is a remembered reply).
    """

    run_time = 0
    """The time that the model gets: the time given, or the one that follows the last step's."""
    step_index = -1
    is_repeat = False
    y: Sequence[float] = ()

    # Calls on the way of every message are positional: keywords would add 170 ns, as much again.
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
        wants_replies: whether y is wanted of every row, or (priming) of each entry's last row alone.

    Results: `y` [rows, O] (NaN where there is none), `step_indexes` [n] (of each entry's first row),
    `num_applied` [n] (rows that moved the state), `errors` by entry.
    """

    is_whole = False
    """Whether a failure rolls the block's one session back; if not, the rows that ran stay applied."""
    started_ns = 0
    """When the block was first in a batch, monotonic."""
    compute_ns = 0
    """How long the block's cell calls took."""

    def __init__(
        self,
        slots: Int64s,
        generations: Int64s,
        *,
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
        # Each entry's steps to run, and its first row. Rows that were applied before are taken off the front:
        # `totals` shrinks and `starts` moves on by as many.
        self.totals = counts.copy()
        self.starts = np.cumsum(counts) - counts
        self.x = x
        self.times = times
        self.indexes = indexes
        self.is_long = bool(counts.max() > 1)  # several steps of a session: a long input, not a frame
        self.wants_replies = wants_replies
        self.y = np.full((len(x), num_outputs), np.nan, np.float32)
        self.step_indexes = np.zeros_like(slots)
        self.num_applied = np.zeros_like(slots)
        self.errors: dict[int, StreamcellError] = {}
        # Entries run in groups that fit a batch, each group to its last row before the next begins.
        self.group_start = 0  # the group's first entry
        self.group_stop = 0  # the entry after the group's last; not past `group_start` until there is a group
        self.group_steps_done = 0  # time steps of the group that were scheduled

    def fail(self, entry: int, error: StreamcellError) -> None:
        """Fails an entry: its remaining rows do not run."""
        self.errors[entry] = error
        self.totals[entry] = 0
        self.step_indexes[entry] = 0

    @property
    def num_outputs(self) -> int:
        """The number of values in a prediction."""
        return int(self.y.shape[1])


class Control(Work):
    """An action on one session, in its place among the session's other work: close, reset, forecast ...

    `action` is called with the slot, in an iteration before its cell calls; what it returns is `result`. It
    counts as `num_steps` steps: a forecast takes about as long as so many steps of one session.
    """

    def __init__(
        self,
        slot: int,
        generation: int,
        action: "Callable[[int], Any]",
        *,
        arrived_ns: int,
        on_done: "Callable[[Control], None]",
        num_steps: int = 1,
    ) -> None:
        self.num_steps = num_steps
        self.slot = slot
        self.generation = generation
        self.action = action
        self.arrived_ns = arrived_ns
        self.on_done = on_done
        self.result: Any = None


AnyWork = Step | Block | Control

"""One inference request under way: what it asks, where it is in its life, and its result."""

import asyncio
from collections.abc import Callable

from service.arrays import Float32s
from service.engine.engine import Engine
from service.engine.session_ref import SessionRef
from service.engine.work import Block, Step
from service.errors import StreamcellError
from service.servicers.inference.lifecycle import TRANSITIONS, Event, State
from service.servicers.inference.parameters import RequestParameters
from service.servicers.inference.tensors import Rows


class InferenceRequest:
    """An inference request under way.

    Args:
        parameters, rows: what the request asks.
        request_id: the caller's name for the request.
        arrived_ns: when the request came, in the engine's time.
        on_done: called once with the request, its result or `error` in place, unless its caller withdraws it.
    """

    state = State.NEW
    work: Step | Block | None = None
    """The steps in the engine's queue; None until they are there."""
    error: StreamcellError | None = None
    read_rows: "Callable[[Engine], Rows] | None" = None
    """Reads the rows once the session is found; None for rows that are read."""
    timer: asyncio.TimerHandle | None = None
    session: SessionRef | None = None
    """The session that stands for the sequence, once it is found."""
    may_be_delayed = False
    """Whether the step may wait a moment for others to join its batch."""
    opened_session = False
    """Whether this request opened the session."""
    blocks_sequence = False
    """Whether later requests of the sequence wait for this one."""

    def __init__(
        self,
        parameters: RequestParameters,
        rows: Rows,
        request_id: str,
        arrived_ns: int,
        on_done: "Callable[[InferenceRequest], None]",
    ) -> None:
        self.parameters = parameters
        self.rows = rows
        self.request_id = request_id
        self.arrived_ns = arrived_ns
        self.on_done = on_done
        self.key = parameters.key
        """Names the sequence among those of all callers; empty for steps on their own."""

    def advance(self, event: Event) -> State:
        """Moves to the state that follows an event, and returns that state.

        Raises:
            ValueError: the event cannot happen in this state; nothing changes.
        """
        following = TRANSITIONS[self.state].get(event)
        if following is None:
            raise ValueError(f"{event} cannot happen in {self.state}")
        self.state = following
        return following

    @property
    def engine(self) -> Engine:
        """The session's engine; before the session is found, the engine for which the request was read."""
        return self.parameters.engine if self.session is None else self.session.engine

    @property
    def step_index(self) -> int:
        """The index that the first step got; -1 before the request is submitted."""
        work = self.work
        return int(work.step_indexes[0]) if isinstance(work, Block) else work.step_index if work else -1

    @property
    def y(self) -> "list[float] | Float32s":
        """The predictions: a list of O, or [T, O]."""
        return self.work.y if self.work is not None else []  # type: ignore[return-value]  # a step's is a list

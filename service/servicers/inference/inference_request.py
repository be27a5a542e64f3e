"""One request of the Open Inference Protocol under way. A value without policy."""

import asyncio
from collections.abc import Callable

from service.arrays import Float32s
from service.engine.engine import Engine
from service.engine.session_ref import SessionRef
from service.engine.work import Block, Step
from service.errors import StreamcellError
from service.servicers.inference.parameters import Ask
from service.servicers.inference.tensors import Rows


class Run:
    """A request under way.

    Args:
        ask, rows: the request.
        name: what its caller calls it.
        principal: the caller.
        arrived_ns: when it came, in the engine's time.
        on_done: called once with the run, its result or `error` in place, unless it is withdrawn.
    """

    work: Step | Block | None = None
    """None until it is queued."""
    error: StreamcellError | None = None
    read: "Callable[[Engine], Rows] | None" = None
    """Reads its rows, where that is left until its sequence is found."""
    timer: asyncio.TimerHandle | None = None
    session: SessionRef | None = None
    """The session that stands for its sequence, once it is found."""
    may_be_held = False
    """Whether its step may wait a moment for others to join."""
    is_opened = False
    """Whether it opened its session."""
    is_withdrawn = False
    holds = False
    """Whether what comes after it, of its sequence, waits for it."""
    is_second = False
    """Whether another server had its session when it first ran."""

    def __init__(
        self,
        ask: Ask,
        rows: Rows,
        name: str,
        principal: str,
        arrived_ns: int,
        on_done: "Callable[[Run], None]",
    ) -> None:
        self.ask = ask
        self.rows = rows
        self.name = name
        self.principal = principal
        self.arrived_ns = arrived_ns
        self.on_done = on_done
        self.key = ask.key
        """Names its sequence among those of all callers; empty for steps on their own."""

    @property
    def engine(self) -> Engine:
        """The engine that the run is on; before its session is found, the one that its rows were read for."""
        return self.ask.engine if self.session is None else self.session.engine

    @property
    def step_index(self) -> int:
        """The index that its first step got."""
        work = self.work
        return int(work.step_indexes[0]) if isinstance(work, Block) else work.step_index if work else -1

    @property
    def y(self) -> "list[float] | Float32s":
        """The predictions: a list of O, or [T, O]."""
        return self.work.y if self.work is not None else []  # type: ignore[return-value]  # a step's is a list

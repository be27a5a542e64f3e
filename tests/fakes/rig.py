"""One engine on a loop turned by hand, and the steps and blocks that tests give it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from service.config import Config
from service.engine.engine import Engine
from service.engine.progress import TIME_ABSENT, AppliedSteps, ProgressTable
from service.engine.session_table import SessionTable
from service.engine.work import INDEX_NEXT, Block, Control, Step
from service.runtime.artifact import Artifact
from service.runtime.runner import Runner
from service.telemetry.metrics import Metrics
from tests.fakes.loop import ManualClock, ManualLoop
from tests.fakes.models import recurrence


def settings(**changes: Any) -> Config:
    """Returns settings with small bounds, so that tests reach them."""
    small = {"max_resident_sessions": 64, "max_batch_steps": 32, "max_piece_steps": 4, "replies_kept": 4}
    return Config(**(small | changes))


class Rig:
    """One engine over a model, with a loop and a clock moved by hand; `done` has the answered work."""

    def __init__(
        self,
        model: Artifact | None = None,
        runner: Runner | None = None,
        count_steps: "Callable[[int, int], None] | None" = None,
        **changes: Any,
    ) -> None:
        self.model = model or recurrence()
        self.settings = settings(**changes)
        self.clock = ManualClock()
        self.loop = ManualLoop()
        self.metrics = Metrics()
        self.runner = runner or Runner(self.model, self.settings.max_resident_sessions)
        self.engine = Engine(
            self.runner,
            self.settings,
            self.metrics.of_model(self.model.name, self.model.version),
            loop=self.loop,
            clock=self.clock,
            count_steps=count_steps,
        )
        self.done: list[Any] = []

    def open(self, *names: str) -> list[int]:
        """Opens sessions and returns their slots."""
        return [self.engine.residents.open(f"\0{name}") for name in names]

    def step(
        self,
        slot: int,
        x: Any,
        index: int = INDEX_NEXT,
        time: int = TIME_ABSENT,
        generation: int | None = None,
        may_be_held: bool = False,
    ) -> Step:
        """Submits a step."""
        if generation is None:
            generation = int(self.engine.sessions.generation[slot])
        row = np.asarray(x, "<f4").tobytes()
        work = Step(
            slot,
            generation,
            row,
            time=time,
            index=index,
            arrived_ns=self.engine.now(),
            on_done=self.done.append,
        )
        work.may_be_held = may_be_held
        self.engine.submit(work)
        return work

    def block(
        self,
        slots: list[int],
        xs: list[Any],
        indexes: list[int] | None = None,
        times: Any = None,
        wants_replies: bool = True,
    ) -> Block:
        """Submits a block; xs has rows [T, F] for each slot."""
        work = block_of(
            self.model,
            slots,
            xs,
            generations=self.engine.sessions.generation[slots],
            indexes=indexes,
            times=times,
            wants_replies=wants_replies,
            arrived_ns=self.engine.now(),
            on_done=self.done.append,
        )
        self.engine.submit(work)
        return work

    def control(self, slot: int, action: Any) -> Control:
        """Submits a control."""
        generation = int(self.engine.sessions.generation[slot])
        work = Control(slot, generation, action, arrived_ns=self.engine.now(), on_done=self.done.append)
        self.engine.submit(work)
        return work

    def iterate(self) -> None:
        """Turns the loop until an iteration has run steps."""
        num_batches = self.sample("streamcell_batch_steps_count")
        while self.sample("streamcell_batch_steps_count") == num_batches:
            self.loop.turn()

    def run(self) -> int:
        """Runs the loop until the engine is idle; returns the number of turns."""
        return self.loop.run()

    def sample(self, name: str, **labels: str) -> float:
        """Returns a sample of the model's metrics, 0 where there is none."""
        model = {"model": self.model.name, "version": self.model.version}
        return self.metrics.registry.get_sample_value(name, model | labels) or 0.0


def session_table(capacity: int, num_inputs: int, num_outputs: int, replies_kept: int) -> SessionTable:
    """Returns an empty session table."""
    return SessionTable(capacity, ProgressTable(capacity, num_inputs, num_outputs, replies_kept))


def applied(slots: Any, lengths: Any, x: Any, *, given_times: Any, times: Any, y: Any) -> AppliedSteps:
    """Returns the steps that sessions took in one cell call."""
    return AppliedSteps(np.asarray(slots), np.asarray(lengths), x, given_times=given_times, times=times, y=y)


def block_of(
    model: Artifact,
    slots: list[int],
    xs: list[Any],
    *,
    generations: Any = None,
    indexes: list[int] | None = None,
    times: Any = None,
    wants_replies: bool = True,
    arrived_ns: int = 0,
    on_done: Any = None,
) -> Block:
    """Returns a block; xs has rows [T, F] for each entry."""
    rows = [np.asarray(x, np.float32).reshape(-1, len(model.manifest.inputs)) for x in xs]
    return Block(
        np.array(slots, np.int64),
        np.array([0] * len(slots) if generations is None else generations, np.int64),
        counts=np.array([len(x) for x in rows], np.int64),
        x=np.concatenate(rows),
        times=None if times is None else np.asarray(times, np.int64),
        indexes=np.array([INDEX_NEXT] * len(slots) if indexes is None else indexes, np.int64),
        num_outputs=len(model.manifest.outputs),
        wants_replies=wants_replies,
        arrived_ns=arrived_ns,
        on_done=on_done,
    )

"""Fakes shared by the tests: a small scripted model, a clock that is held, and an engine driven by hand."""

import asyncio
import dataclasses
import functools
import json
import pathlib
import tempfile
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message
from google.rpc import status_pb2
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from streamcell.v1 import streamcell_pb2 as pb
from torch import Tensor, nn

from service.catalog.catalog import Catalog
from service.catalog.versions import Versions
from service.config import Config
from service.engine.engine import Engine
from service.engine.progress import TIME_ABSENT, AppliedSteps, ProgressTable
from service.engine.session_table import SessionTable
from service.engine.work import INDEX_NEXT, Block, Control, Step
from service.errors import StreamcellError
from service.persistence.stored_sessions import StoredSessions
from service.persistence.write_behind import WriteBehind
from service.rpc.router import Call, Router, Stream, Streaming, Unary
from service.rpc.statuses import RefusedError, Status
from service.runtime import artifact
from service.runtime.artifact import Artifact
from service.runtime.runner import Runner
from service.servicers.inference import servicer as inference
from service.servicers.standard import health, reflection
from service.servicers.streamcell import servicer as streamcell
from service.store.base import Store
from service.telemetry.metrics import Metrics

CPU = torch.device("cpu")
INTERVAL_NS = 1_000_000_000
FAULT = 31337.0  # an input on which the scripted model raises
FAULT_TEXT = "the sealed words of the model"


class Recurrence(nn.Module):
    """A recurrence of two inputs whose outcome depends on the order of steps; sums and products alone.

    Such arithmetic is exact to the last bit whatever the batch. Two steps of 3e38 overflow float32.
    """

    @torch.jit.export
    def step(self, x: Tensor, time: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Row by row: level' = 0.7 level + x0, trend' = 0.3 trend + x1 level, clock' = seconds of time."""
        if bool((x == 31337.0).any()):
            raise ValueError("the sealed words of the model")
        level = state[:, 0] * 0.7 + x[:, 0]  # (B,)
        trend = state[:, 1] * 0.3 + x[:, 1] * state[:, 0]  # (B,)
        clock = torch.div(time, 1_000_000_000, rounding_mode="floor").float()  # (B,)
        after = torch.stack([level, trend, clock], dim=1)  # (B, 3)
        y = torch.stack([level + trend, level - 2.0 * trend + 0.001 * (clock - state[:, 2])], dim=1)  # (B, 2)
        return y, after

    @torch.jit.export
    def scan(self, x: Tensor, time: Tensor, lengths: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Folds `step` over the first lengths[b] steps of each row."""
        ys: list[Tensor] = []
        for t in range(x.size(1)):
            y, after = self.step(x[:, t], time[:, t], state)
            state = torch.where((lengths > t).unsqueeze(1), after, state)  # (B, 3)
            ys.append(y)
        return torch.stack(ys, dim=1), state  # (B, T, 2)

    @torch.jit.export
    def forecast(self, state: Tensor, time: Tensor, horizon: int, future: Tensor) -> Tensor:
        """Says the level, fading, plus the known future value if there is one."""
        rows: list[Tensor] = []
        for h in range(horizon):
            level = state[:, 0] * 0.7 ** (h + 1)  # (B,)
            if future.size(2) > 0:
                level = level + future[:, h, 0]
            rows.append(torch.stack([level, state[:, 1]], dim=1))
        return torch.stack(rows, dim=1)  # (B, H, 2)


class Sharper(Recurrence):
    """Another version of it: the same state, other predictions."""

    @torch.jit.export
    def step(self, x: Tensor, time: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Row by row: level' = 0.5 level + x0, trend' = 0.25 trend + x1 level, clock' as it is."""
        level = state[:, 0] * 0.5 + x[:, 0]  # (B,)
        trend = state[:, 1] * 0.25 + x[:, 1] * state[:, 0]  # (B,)
        after = torch.stack([level, trend, state[:, 2]], dim=1)  # (B, 3)
        return torch.stack([level + trend, level - trend], dim=1), after  # (B, 2)


class Other(Recurrence):
    """Another version of it, whose inputs and predictions may be of another number."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.num_outputs = num_outputs

    @torch.jit.export
    def step(self, x: Tensor, time: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Row by row: level' = 0.7 level + the last x, the rest as it is; says the level, again and again."""
        level = state[:, :1] * 0.7 + x[:, -1:]  # (B, 1)
        return level.repeat(1, self.num_outputs), torch.cat([level, state[:, 1:]], dim=1)  # (B, O), (B, 3)

    @torch.jit.export
    def forecast(self, state: Tensor, time: Tensor, horizon: int, future: Tensor) -> Tensor:
        """Says the level."""
        return state[:, :1].unsqueeze(1).repeat(1, horizon, self.num_outputs)  # (B, H, O)


def manifest_of(**changes: Any) -> dict[str, Any]:
    """Returns the Recurrence's manifest, with some of its entries changed."""
    variable = {"name": "level", "target": "flow", "role": "mean", "quantile": None, "unit": "l/s"}
    return {
        "format_version": 1,
        "name": "recurrence",
        "version": "1",
        "description": "Two numbers in, two numbers out.",
        "inputs": [{"name": "flow", "unit": "l/s"}, {"name": "valve", "unit": ""}],
        "outputs": [
            variable | {"horizon_steps": 1},
            variable | {"name": "high", "role": "quantile", "quantile": 0.9},
        ],
        "future": [],
        "state": {
            "size": 3,
            "layout": [
                {"name": "level", "offset": 0, "size": 1},
                {"name": "trend", "offset": 1, "size": 1},
                {"name": "clock", "offset": 2, "size": 1},
            ],
        },
        "uses_time": False,
        "step_interval_seconds": 1.0,
        "training": {},
    } | changes


def save(path: pathlib.Path, module: nn.Module | None = None, **changes: Any) -> pathlib.Path:
    """Writes a module, scripted, as an artifact file; the manifest is the Recurrence's, changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    extra = {"manifest.json": json.dumps(manifest_of(**changes))}
    torch.jit.save(torch.jit.script(module or Recurrence()), str(path), _extra_files=extra)
    return path


@functools.cache
def recurrence(uses_time: bool = False, num_future: int = 0) -> Artifact:
    """Returns the Recurrence as a loaded artifact."""
    future = [{"name": f"plan{number}", "unit": "l/s"} for number in range(num_future)]
    with tempfile.TemporaryDirectory() as folder:
        path = save(pathlib.Path(folder) / "model.pt", uses_time=uses_time, future=future)
        return artifact.load("recurrence", "1", path, CPU)


def renamed(model: Artifact, name: str, version: str) -> Artifact:
    """Returns an artifact as served under another name."""
    return Artifact(name, version, model.manifest, model.script, model.device)


class HeldClock:
    """Monotonic nanoseconds that move only when told."""

    def __init__(self) -> None:
        self.now_ns = 1_000

    def __call__(self) -> int:
        """Returns the time it holds."""
        return self.now_ns


class Turns:
    """An event loop whose turns are taken by hand, and in which no time passes."""

    def __init__(self) -> None:
        self.due: deque[Any] = deque()
        self.num_delays = 0

    def call_soon(self, function: Any) -> None:
        """Keeps a function for later."""
        self.due.append(function)

    def call_later(self, delay: float, function: Any) -> None:
        """Keeps a function for later, and counts it."""
        self.num_delays += 1
        self.due.append(function)

    def run(self, most: int = 10_000) -> int:
        """Runs what is due until nothing is; returns how many turns that took."""
        for turn in range(most):
            if not self.due:
                return turn
            self.due.popleft()()
        raise AssertionError(f"still busy after {most} turns")


def settings(**changes: Any) -> Config:
    """Returns small bounds, so that tests reach them."""
    small = {"max_resident_sessions": 64, "max_batch_steps": 32, "max_piece_steps": 4, "replies_kept": 4}
    return Config(**(small | changes))


class Rig:
    """One engine over a model, its loop turned by hand and its clock held; `done` is what was answered."""

    def __init__(self, model: Artifact | None = None, runner: Runner | None = None, **changes: Any) -> None:
        self.model = model or recurrence()
        self.settings = settings(**changes)
        self.clock = HeldClock()
        self.turns = Turns()
        self.metrics = Metrics()
        self.runner = runner or Runner(self.model, self.settings.max_resident_sessions)
        self.engine = Engine(
            self.runner,
            self.settings,
            self.metrics.of_model(self.model.name, self.model.version),
            self.turns,
            self.clock,
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
        work = Step(slot, generation, row, time, index, self.engine.now(), self.done.append)
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
        work = block_of(self.model, self.engine.sessions.generation[slots], slots, xs, indexes, times,
                        wants_replies, self.engine.now(), self.done.append)  # fmt: skip
        self.engine.submit(work)
        return work

    def control(self, slot: int, action: Any) -> Control:
        """Submits a control."""
        generation = int(self.engine.sessions.generation[slot])
        work = Control(slot, generation, action, self.engine.now(), self.done.append)
        self.engine.submit(work)
        return work

    def run(self) -> int:
        """Turns the loop until the engine is idle."""
        return self.turns.run()

    def sample(self, name: str, **labels: str) -> float:
        """Returns a value from the metrics, 0 where there is none."""
        model = {"model": self.model.name, "version": self.model.version}
        return self.metrics.registry.get_sample_value(name, model | labels) or 0.0


def session_table(capacity: int, num_inputs: int, num_outputs: int, replies_kept: int) -> SessionTable:
    """Returns a table for sessions of a model with so many values."""
    return SessionTable(capacity, ProgressTable(capacity, num_inputs, num_outputs, replies_kept))


def applied(slots: Any, lengths: Any, x: Any, given_times: Any, times: Any, y: Any) -> AppliedSteps:
    """Returns steps that sessions have taken."""
    return AppliedSteps(np.asarray(slots), np.asarray(lengths), x, given_times, times, y)


def block_of(
    model: Artifact, generations: Any, slots: list[int], xs: list[Any], indexes: list[int] | None, times: Any,
    wants_replies: bool, arrived_ns: int, on_done: Any,
) -> Block:  # fmt: skip
    """Returns a block of entries; xs has rows [T, F] for each."""
    rows = [np.asarray(x, np.float32).reshape(-1, len(model.manifest.inputs)) for x in xs]
    return Block(
        np.array(slots, np.int64),
        np.array(generations, np.int64),
        np.array([len(x) for x in rows], np.int64),
        np.concatenate(rows),
        None if times is None else np.asarray(times, np.int64),
        np.array([INDEX_NEXT] * len(slots) if indexes is None else indexes, np.int64),
        len(model.manifest.outputs),
        wants_replies=wants_replies,
        arrived_ns=arrived_ns,
        on_done=on_done,
    )


@dataclasses.dataclass
class Alone:
    """One session of a model on its own: each step folded through `step`, one row at a time."""

    model: Artifact
    num_steps: int = 0

    def __post_init__(self) -> None:
        self.state = torch.zeros(1, self.model.manifest.state_size)

    def step(self, x: Any, time: int = 0) -> bytes:
        """Returns the prediction's bytes."""
        row = torch.tensor(np.asarray(x, np.float32).reshape(1, -1))
        with torch.inference_mode():
            y, self.state = self.model.step(row, torch.tensor([time]), self.state)
        self.num_steps += 1
        return y.numpy().tobytes()

    def fold(self, xs: Any) -> bytes:
        """Returns the predictions' bytes, one after another."""
        return b"".join(self.step(x) for x in xs)


def bits(values: Any) -> bytes:
    """Returns float32 values as bytes, to compare without tolerance."""
    return np.asarray(values, np.float32).tobytes()


class Served:
    """A router over real engines and servicers, without a network; needs a running loop.

    Args:
        store: where sessions are kept; `write_behind.start` then begins.
        clock: monotonic nanoseconds; held unless told otherwise.
        runner: that of the only model, made before.
        engines: makes the engines, in place of `models`.
    """

    def __init__(
        self,
        *models: Artifact,
        store: Store | None = None,
        clock: Any = None,
        runner: Runner | None = None,
        engines: "Callable[[Config, Metrics], list[Engine]] | None" = None,
        **changes: Any,
    ) -> None:
        self.settings = settings(**changes)
        self.clock = clock or HeldClock()
        self.metrics = Metrics()
        loop = asyncio.get_running_loop()
        self.engines = (
            engines(self.settings, self.metrics)
            if engines is not None
            else [
                Engine(
                    runner or Runner(model, self.settings.max_resident_sessions),
                    self.settings,
                    self.metrics.of_model(model.name, model.version),
                    loop,
                    self.clock,
                )
                for model in models or (recurrence(),)
            ]
        )
        self.catalog = Catalog(Versions(self.engines, migrates=self.settings.on_new_version == "migrate"))
        if store is not None:
            self._store_in(store)
        services = [streamcell.SERVICE, inference.SERVICE]
        self.health = health.HealthServicer(services)
        self.errors: list[tuple[str, StreamcellError]] = []
        self.num_streams = 0
        self.router = Router(
            [
                *streamcell.StreamcellServicer(self.catalog, self.settings).methods(),
                *inference.InferenceServicer(self.catalog, self.settings, self.metrics).methods(),
                *self.health.methods(),
                *reflection.methods([*services, health.SERVICE]),
            ],
            self.settings.max_message_bytes,
            self.settings.max_stream_messages,
            lambda path, error: self.errors.append((path, error)),
            lambda count: setattr(self, "num_streams", count),
        )

    def _store_in(self, store: Store) -> None:
        self.write_behind = WriteBehind(
            store,
            lambda: self.catalog.versions.engines,
            self.settings,
            self.metrics.of_store(),
            count_fault=self.metrics.count_background_fault,
            clock=self.clock,
        )
        self.catalog.persistence = StoredSessions(self.write_behind, self.catalog.versions.engine_of)
        for engine in self.engines:
            self.catalog.persistence.attach(engine)

    async def ask(self, name: str, request: Message, principal: str = "") -> Any:
        """Returns a unary response; a refusal is raised as RefusedError."""
        path = name if "/" in name else f"/{streamcell.SERVICE}/{name}"
        method = self.router.methods[path]
        assert isinstance(method, Unary)
        raw = await self.router.answer(method, request.SerializeToString(), Call(principal))
        return _response_type(path).FromString(raw)

    async def refused(self, name: str, request: Message, principal: str = "") -> "Refusal":
        """Returns the refusal of a unary request."""
        try:
            found = await self.ask(name, request, principal)
        except RefusedError as error:
            return Refusal.of(error.status)
        raise AssertionError(f"{name} was answered: {found}")

    async def open(self, *session_ids: str, model: str = "", principal: str = "") -> None:
        """Opens sessions."""
        for session_id in session_ids:
            request = pb.OpenSessionRequest(session_id=session_id, model=model, mode=pb.OPEN_MODE_CREATE)
            await self.ask("OpenSession", request, principal)

    def stream(self, path: str = f"/{streamcell.SERVICE}/Stream", principal: str = "") -> Stream:
        """Opens a stream."""
        method = self.router.methods[path]
        assert isinstance(method, Streaming)
        return self.router.open(method, Call(principal))


@dataclasses.dataclass
class Refusal:
    """An error as a client decodes it from a status."""

    code: int
    reason: str
    message: str
    metadata: dict[str, str]
    retry_delay_seconds: float = 0.0

    @classmethod
    def of(cls, status: Status) -> "Refusal":
        """Decodes the status' details and checks that they agree with it."""
        whole = status_pb2.Status.FromString(status.details)
        assert (whole.code, whole.message) == (status.code, status.message)
        info, delay = ErrorInfo(), RetryInfo()
        assert whole.details[0].Unpack(info)
        assert info.domain == "streamcell"
        found = cls(status.code, info.reason, status.message, dict(info.metadata))
        if len(whole.details) > 1:
            assert whole.details[1].Unpack(delay)
            found.retry_delay_seconds = delay.retry_delay.ToNanoseconds() / 1e9
        return found


def _response_type(path: str) -> type[Message]:
    _, service, method = path.split("/")
    described = descriptor_pool.Default().FindServiceByName(service).FindMethodByName(method)
    return message_factory.GetMessageClass(described.output_type)


async def talk(stream: Stream, *requests: Message) -> list[pb.StreamResponse]:
    """Sends requests down a Stream and returns their answers, one each."""
    for request in requests:
        stream.receive(request.SerializeToString())
    return [await answer(stream) for _ in requests]


async def changed(stream: Stream) -> None:
    """Waits until a stream tells its front of something."""
    told = asyncio.get_running_loop().create_future()
    stream.on_change = lambda: None if told.done() else told.set_result(None)
    await told


async def next_message(stream: Stream) -> bytes | None:
    """Returns the next message that a front would send, None at the end."""
    while (message := stream.take()) is None and not stream.is_over:
        await changed(stream)
    return message


async def room(stream: Stream) -> None:
    """Waits until a front may read on."""
    while stream.is_full:
        await changed(stream)


async def answer(stream: Stream) -> pb.StreamResponse:
    """Returns a Stream's next message."""
    raw = await asyncio.wait_for(next_message(stream), 10)
    assert raw is not None, f"the stream ended: {stream.status}"
    return pb.StreamResponse.FromString(raw)


async def ending(stream: Stream) -> "Refusal | None":
    """Waits for a stream's end, past what it still sends; returns its error, None for OK."""
    while await asyncio.wait_for(next_message(stream), 10) is not None:
        pass
    return None if stream.status is None else Refusal.of(stream.status)


async def turn() -> None:
    """Lets the loop run what is due, once around."""
    await asyncio.sleep(0)

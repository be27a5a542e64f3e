"""The whole server without a network: a router over engines and servicers."""

import asyncio
from collections.abc import Callable
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message
from streamcell.v1 import streamcell_pb2 as pb

from service.catalog.catalog import Catalog
from service.catalog.versions import Versions
from service.config import Config
from service.engine.engine import Engine
from service.engine.snapshot_keys import SnapshotKeys
from service.errors import StreamcellError
from service.persistence.stored_sessions import StoredSessions
from service.persistence.write_behind import WriteBehind
from service.rpc.methods import Call, Streaming, Unary
from service.rpc.router import Router
from service.rpc.statuses import RefusedError
from service.rpc.stream import Stream
from service.runtime.artifact import Artifact
from service.runtime.runner import Runner
from service.servicers.inference import servicer as inference
from service.servicers.standard import health, reflection
from service.servicers.streamcell import servicer as streamcell
from service.store.base import Store
from service.telemetry.metrics import Metrics
from tests.fakes.loop import ManualClock
from tests.fakes.models import recurrence
from tests.fakes.rig import settings
from tests.fakes.streams import Refusal


class Served:
    """A router over real engines and servicers, without a network; needs a running loop.

    Args:
        store: where sessions are stored; the test then starts `write_behind`.
        clock: monotonic nanoseconds; by default one that stands still.
        runner: the runner of the only model; by default a new one.
        engines: makes the engines instead of `models`.
        takes_turns: whether callers take turns, as they do where they have principals.
    """

    def __init__(
        self,
        *models: Artifact,
        store: Store | None = None,
        clock: Any = None,
        runner: Runner | None = None,
        engines: "Callable[[Config, Metrics], list[Engine]] | None" = None,
        takes_turns: bool = False,
        **changes: Any,
    ) -> None:
        self.settings = settings(**changes)
        self.clock = clock or ManualClock()
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
                    loop=loop,
                    clock=self.clock,
                    count_steps=(lambda *_: None) if takes_turns else None,
                )
                for model in models or (recurrence(),)
            ]
        )
        self.catalog = Catalog(Versions(self.engines, migrates=self.settings.on_new_version == "migrate"))
        if store is not None:
            self._store_in(store)
        services = [streamcell.SERVICE, inference.SERVICE]
        self.health = health.HealthServicer(services)
        self.snapshot_keys = SnapshotKeys(self.settings.snapshot_key)
        self.errors: list[tuple[str, StreamcellError]] = []
        self.num_streams = 0
        self.router = Router(
            [
                *streamcell.StreamcellServicer(self.catalog, self.settings, self.snapshot_keys).methods(),
                *inference.InferenceServicer(self.catalog, self.settings, self.metrics).methods(),
                *self.health.methods(),
                *reflection.methods([*services, health.SERVICE]),
            ],
            max_message_bytes=self.settings.max_message_bytes,
            max_stream_messages=self.settings.max_stream_messages,
            count_error=lambda path, error: self.errors.append((path, error)),
            count_streams=lambda count: setattr(self, "num_streams", count),
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
        """Returns the refusal of a unary request; fails if there is a response."""
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


def _response_type(path: str) -> type[Message]:
    _, service, method = path.split("/")
    described = descriptor_pool.Default().FindServiceByName(service).FindMethodByName(method)
    return message_factory.GetMessageClass(described.output_type)

"""The unary methods of the Streamcell API."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import Message
from streamcell.v1 import streamcell_pb2 as pb

from service import errors
from service.catalog.catalog import UNUSABLE, Catalog, NotResident, Reach, is_missing
from service.config import Config
from service.engine import snapshot
from service.engine.engine import Engine
from service.engine.snapshot import Snapshot, SnapshotError
from service.engine.work import AnyWork, Block, Control, Step
from service.errors import Reason, StreamcellError
from service.rpc.methods import Call, Streaming, Unary
from service.rpc.stream import Stream
from service.servicers.streamcell import convert
from service.servicers.streamcell.steps import bring, reach_of, step_work
from service.servicers.streamcell.stream import StepStream

SERVICE = pb.DESCRIPTOR.services_by_name["StreamcellService"].full_name
_Done = Callable[[Any], None]
_Work = TypeVar("_Work", Step, Block, Control)


class StreamcellServicer:
    """Converts, awaits the engine, converts back."""

    def __init__(self, catalog: Catalog, settings: Config) -> None:
        self._catalog = catalog
        self._settings = settings
        self._limits = pb.Limits(
            max_message_steps=settings.max_message_steps,
            max_message_bytes=settings.max_message_bytes,
            max_horizon_steps=settings.max_horizon_steps,
            num_replies_kept=settings.replies_kept,
        )

    def methods(self) -> list[Unary[Any] | Streaming]:
        """Returns every method of the service."""
        unary: dict[str, tuple[type[Message], Callable[[Any, Call], Awaitable[Message]]]] = {
            "ListModels": (pb.ListModelsRequest, self.list_models),
            "OpenSession": (pb.OpenSessionRequest, self.open_session),
            "GetSession": (pb.GetSessionRequest, self.get_session),
            "ResetSession": (pb.ResetSessionRequest, self.reset_session),
            "CloseSession": (pb.CloseSessionRequest, self.close_session),
            "Step": (pb.StepRequest, self.step),
            "Prime": (pb.PrimeRequest, self.prime),
            "Forecast": (pb.ForecastRequest, self.forecast),
            "ForkSession": (pb.ForkSessionRequest, self.fork_session),
            "SnapshotSession": (pb.SnapshotSessionRequest, self.snapshot_session),
            "RestoreSession": (pb.RestoreSessionRequest, self.restore_session),
        }
        listed: list[Unary[Any] | Streaming] = [
            Unary(f"/{SERVICE}/{name}", *parts) for name, parts in unary.items()
        ]
        return [*listed, Streaming(f"/{SERVICE}/Stream", self.stream)]

    async def list_models(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        """Answers ListModels."""
        return pb.ListModelsResponse(models=[convert.model(engine) for engine in self._catalog.engines])

    async def open_session(self, request: pb.OpenSessionRequest, call: Call) -> pb.OpenSessionResponse:
        """Answers OpenSession."""
        if request.durable and self._catalog.keeper is None:
            raise errors.invalid_argument("durable", "this server has no store; leave it out")
        existing = await self._existing(request, call)
        if existing is None:
            try:
                engine, slot = await self._catalog.create(
                    call.principal, request.session_id, request.model, is_durable=request.durable
                )
            except StreamcellError as error:
                # Opened meanwhile by another request, which this one then finds.
                if error.reason is not Reason.SESSION_EXISTS or request.mode == pb.OPEN_MODE_CREATE:
                    raise
                return await self.open_session(request, call)
            # Nothing has been asked of it yet, so it need not wait in the queue, which may be full.
            session = convert.session(engine, slot, self._settings.session_ttl_seconds)
        else:
            engine, slot = existing
            self._catalog.check_model(engine, request.session_id, request.model)
            engine.sessions.is_durable[slot] |= request.durable
            session = await self._stand(engine, slot)
        return pb.OpenSessionResponse(session=session, created=existing is None, limits=self._limits)

    async def _existing(self, request: pb.OpenSessionRequest, call: Call) -> tuple[Engine, int] | None:
        """Returns the session that an open request finds, None where it is to open one."""
        may_open = request.mode != pb.OPEN_MODE_RESUME
        if request.mode == pb.OPEN_MODE_CREATE or (may_open and not request.session_id):
            return None
        try:
            return await self._catalog.fetch(call.principal, request.session_id, Reach.OPEN)
        except StreamcellError as error:
            if may_open and is_missing(error):
                return None
            raise

    async def get_session(self, request: pb.GetSessionRequest, call: Call) -> pb.GetSessionResponse:
        """Answers GetSession."""
        engine, slot = await self._catalog.fetch(call.principal, request.session_id)
        return pb.GetSessionResponse(session=await self._stand(engine, slot))

    async def reset_session(self, request: pb.ResetSessionRequest, call: Call) -> pb.ResetSessionResponse:
        """Answers ResetSession."""
        engine, slot = await self._catalog.fetch(call.principal, request.session_id)
        await self._control(engine, slot, engine.reset)
        # Else a crash could bring back steps that were to be forgotten.
        await self._catalog.stored(*await self._catalog.fetch(call.principal, request.session_id))
        # It may have moved while it waited.
        engine, slot = await self._catalog.fetch(call.principal, request.session_id)
        return pb.ResetSessionResponse(session=await self._stand(engine, slot))

    async def close_session(self, request: pb.CloseSessionRequest, call: Call) -> pb.CloseSessionResponse:
        """Answers CloseSession."""
        try:
            engine, slot = await self._catalog.fetch(call.principal, request.session_id, Reach.OPEN)
            num_steps = await self._control(engine, slot, engine.close)
        except StreamcellError as error:
            if error.reason in UNUSABLE:  # it is removed unseen
                await self._catalog.forget(call.principal, request.session_id)
                return pb.CloseSessionResponse()
            if request.allow_missing and is_missing(error):
                return pb.CloseSessionResponse()
            raise
        return pb.CloseSessionResponse(num_steps=num_steps)

    async def step(self, request: pb.StepRequest, call: Call) -> pb.StepResponse:
        """Answers Step."""
        done = asyncio.get_running_loop().create_future()
        while True:
            try:
                engine, work = step_work(self._catalog, call, request, _settle(done))
                break
            except NotResident:
                await bring(self._catalog, call, request)
        work.may_be_held = True
        return convert.response_of(engine, await _finished(engine, work, done))

    async def prime(self, request: pb.PrimeRequest, call: Call) -> pb.PrimeResponse:
        """Answers Prime."""
        engine, slot = await self._catalog.fetch(call.principal, request.session_id, reach_of(request))
        done = asyncio.get_running_loop().create_future()
        block = convert.prime_block(engine, slot, request, self._settings.max_message_steps, _settle(done))
        await _finished(engine, block, done)
        if block.errors:
            error = block.errors[0]
            applied = {"num_applied": str(int(block.num_applied[0]))}
            raise StreamcellError(error.reason, error.message, metadata=error.metadata | applied)
        last = int(block.step_indexes[0]) + len(block.x) - 1
        (num_durable,) = convert.num_durable_now(engine, block.slots, block.generations)
        return pb.PrimeResponse(step_index=last, y=block.y[-1].tolist(), num_durable_steps=num_durable)

    async def forecast(self, request: pb.ForecastRequest, call: Call) -> pb.ForecastResponse:
        """Answers Forecast."""
        engine, slot = await self._catalog.fetch(call.principal, request.session_id)
        future = convert.future_rows(engine, request, self._settings.max_horizon_steps)

        def forecast(slot: int) -> pb.ForecastResponse:
            y = engine.forecast(slot, request.horizon_steps, future)
            return pb.ForecastResponse(
                next_step_index=int(engine.sessions.next_step[slot]), y=y.reshape(-1).tolist()
            )

        response: pb.ForecastResponse = await self._control(engine, slot, forecast)
        return response

    async def fork_session(self, request: pb.ForkSessionRequest, call: Call) -> pb.ForkSessionResponse:
        """Answers ForkSession."""
        original, raw = await self._snapshot(request.session_id, call)
        if request.new_session_id == original.session_id:
            raise errors.session_exists(original.session_id)
        copied = snapshot.decode(raw)
        return pb.ForkSessionResponse(session=await self._restore(copied, request.new_session_id, call))

    async def snapshot_session(
        self, request: pb.SnapshotSessionRequest, call: Call
    ) -> pb.SnapshotSessionResponse:
        """Answers SnapshotSession."""
        session, raw = await self._snapshot(request.session_id, call)
        return pb.SnapshotSessionResponse(snapshot=raw, session=session)

    async def restore_session(
        self, request: pb.RestoreSessionRequest, call: Call
    ) -> pb.RestoreSessionResponse:
        """Answers RestoreSession."""
        try:
            session = snapshot.decode(request.snapshot)
        except SnapshotError as error:
            raise errors.snapshot_rejected(str(error)) from None
        session_id = request.session_id or session.session_id
        return pb.RestoreSessionResponse(session=await self._restore(session, session_id, call))

    async def _snapshot(self, session_id: str, call: Call) -> tuple[pb.Session, bytes]:
        engine, slot = await self._catalog.fetch(call.principal, session_id)

        def take(slot: int) -> tuple[pb.Session, bytes]:
            session = convert.session(engine, slot, self._settings.session_ttl_seconds)
            return session, engine.export(np.array([slot], np.int64))[0]

        taken: tuple[pb.Session, bytes] = await self._control(engine, slot, take)
        return taken

    async def _restore(self, session: Snapshot, session_id: str, call: Call) -> pb.Session:
        engine, slot = await self._catalog.restore(call.principal, session_id, session)
        return convert.session(engine, slot, self._settings.session_ttl_seconds)

    def stream(self, stream: Stream, call: Call) -> StepStream:
        """Begins a Stream."""
        return StepStream(stream, call, self._catalog, self._settings)

    async def _stand(self, engine: Engine, slot: int) -> pb.Session:
        """Returns a session as it stands after everything asked of it before."""

        def look(slot: int) -> pb.Session:
            return convert.session(engine, slot, self._settings.session_ttl_seconds)

        session: pb.Session = await self._control(engine, slot, look)
        return session

    async def _control(self, engine: Engine, slot: int, action: Callable[[int], Any]) -> Any:
        """Runs an action on a session once the work before it is done, and returns its result."""
        done = asyncio.get_running_loop().create_future()
        generation = int(engine.sessions.generation[slot])
        control = Control(slot, generation, action, engine.now(), _settle(done))
        return (await _finished(engine, control, done)).result


async def _finished(engine: Engine, work: _Work, done: "asyncio.Future[None]") -> _Work:
    """Submits work and returns it when it is done; withdraws it if the caller goes away before it begins."""
    engine.submit(work)
    try:
        await done
    except asyncio.CancelledError:
        engine.withdraw(work)
        raise
    if work.error is not None:
        raise work.error
    return work


def _settle(done: "asyncio.Future[None]") -> _Done:
    def on_done(_: AnyWork) -> None:
        if not done.done():
            done.set_result(None)

    return on_done

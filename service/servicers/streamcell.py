"""The unary methods of the Streamcell API."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from google.protobuf.message import Message
from streamcell.v1 import streamcell_pb2 as pb

from service import errors
from service.catalog import Catalog, is_missing
from service.config import Config
from service.engine import Engine
from service.errors import StreamcellError
from service.rpc import Call, Stream, Streaming, Unary
from service.servicers import convert
from service.servicers.stream import StepStream, step_work
from service.work import AnyWork, Block, Control, Step

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
        """Returns every method of the service; those not there yet answer NOT_IMPLEMENTED."""
        unary: dict[str, tuple[type[Message], Callable[[Any, Call], Awaitable[Message]]]] = {
            "ListModels": (pb.ListModelsRequest, self.list_models),
            "OpenSession": (pb.OpenSessionRequest, self.open_session),
            "GetSession": (pb.GetSessionRequest, self.get_session),
            "ResetSession": (pb.ResetSessionRequest, self.reset_session),
            "CloseSession": (pb.CloseSessionRequest, self.close_session),
            "Step": (pb.StepRequest, self.step),
            "Prime": (pb.PrimeRequest, self.prime),
            "Forecast": (pb.ForecastRequest, self.forecast),
            "ForkSession": (pb.ForkSessionRequest, _absent("ForkSession")),
            "SnapshotSession": (pb.SnapshotSessionRequest, _absent("SnapshotSession")),
            "RestoreSession": (pb.RestoreSessionRequest, _absent("RestoreSession")),
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
        if request.durable:
            raise errors.invalid_argument("durable", "this server has no store; leave it out")
        existing = self._existing(request, call)
        if existing is None:
            # Nothing has been asked of it yet, so it need not wait in the queue, which may be full.
            engine, slot = self._catalog.open(call.principal, request.session_id, request.model)
            session = convert.session(engine, slot, self._settings.session_ttl_seconds)
        else:
            engine, slot = existing
            self._catalog.check_model(engine, request.session_id, request.model)
            session = await self._stand(engine, slot)
        return pb.OpenSessionResponse(session=session, created=existing is None, limits=self._limits)

    def _existing(self, request: pb.OpenSessionRequest, call: Call) -> tuple[Engine, int] | None:
        """Returns the session that an open request finds, None where it is to open one."""
        may_open = request.mode != pb.OPEN_MODE_RESUME
        if request.mode == pb.OPEN_MODE_CREATE or (may_open and not request.session_id):
            return None
        try:
            return self._catalog.find(call.principal, request.session_id)
        except StreamcellError as error:
            if may_open and is_missing(error):
                return None
            raise

    async def get_session(self, request: pb.GetSessionRequest, call: Call) -> pb.GetSessionResponse:
        """Answers GetSession."""
        engine, slot = self._catalog.find(call.principal, request.session_id)
        return pb.GetSessionResponse(session=await self._stand(engine, slot))

    async def reset_session(self, request: pb.ResetSessionRequest, call: Call) -> pb.ResetSessionResponse:
        """Answers ResetSession."""
        engine, slot = self._catalog.find(call.principal, request.session_id)
        await self._control(engine, slot, engine.reset)
        return pb.ResetSessionResponse(session=await self._stand(engine, slot))

    async def close_session(self, request: pb.CloseSessionRequest, call: Call) -> pb.CloseSessionResponse:
        """Answers CloseSession."""
        try:
            engine, slot = self._catalog.find(call.principal, request.session_id)
            num_steps = await self._control(engine, slot, engine.close)
        except StreamcellError as error:
            if request.allow_missing and is_missing(error):
                return pb.CloseSessionResponse()
            raise
        return pb.CloseSessionResponse(num_steps=num_steps)

    async def step(self, request: pb.StepRequest, call: Call) -> pb.StepResponse:
        """Answers Step."""
        done = asyncio.get_running_loop().create_future()
        engine, work = step_work(self._catalog, call, request, _settle(done))
        work.may_be_held = True
        return convert.response_of(await _finished(engine, work, done))

    async def prime(self, request: pb.PrimeRequest, call: Call) -> pb.PrimeResponse:
        """Answers Prime."""
        engine, slot = self._catalog.find(call.principal, request.session_id)
        done = asyncio.get_running_loop().create_future()
        block = convert.prime_block(engine, slot, request, self._settings.max_message_steps, _settle(done))
        await _finished(engine, block, done)
        if block.errors:
            error = block.errors[0]
            applied = {"num_applied": str(int(block.num_applied[0]))}
            raise StreamcellError(error.reason, error.message, metadata=error.metadata | applied)
        last = int(block.step_indexes[0]) + len(block.x) - 1
        return pb.PrimeResponse(step_index=last, y=block.y[-1].tolist())

    async def forecast(self, request: pb.ForecastRequest, call: Call) -> pb.ForecastResponse:
        """Answers Forecast."""
        engine, slot = self._catalog.find(call.principal, request.session_id)
        future = convert.future_rows(engine, request, self._settings.max_horizon_steps)

        def forecast(slot: int) -> pb.ForecastResponse:
            y = engine.forecast(slot, request.horizon_steps, future)
            return pb.ForecastResponse(
                next_step_index=int(engine.sessions.next_step[slot]), y=y.reshape(-1).tolist()
            )

        response: pb.ForecastResponse = await self._control(engine, slot, forecast)
        return response

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


def _absent(name: str) -> Callable[[Any, Call], Awaitable[Message]]:
    async def refuse(request: Message, call: Call) -> Message:
        raise errors.not_implemented(name)

    return refuse

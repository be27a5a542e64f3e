"""The methods of the Streamcell API: each unary method is here, `stream` has the streaming one.

Owns the order of a call: convert the request, wait for the engine, convert the result. Does not know how
sessions are stored, nor when work runs.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import Message
from streamcell.v1 import streamcell_pb2 as pb

from service import errors, futures
from service.catalog.catalog import UNUSABLE, Catalog, NotResident, TakeOver, is_missing
from service.config import Config
from service.engine import snapshot
from service.engine.session_ref import SessionRef
from service.engine.snapshot import Snapshot, SnapshotError
from service.engine.snapshot_keys import SnapshotKeys
from service.engine.work import Block, Control, Step
from service.errors import Reason, StreamcellError
from service.rpc.methods import Call, Streaming, Unary
from service.rpc.stream import Stream
from service.servicers.streamcell import convert
from service.servicers.streamcell.steps import fetch_or_open, prepare_step, take_over_for
from service.servicers.streamcell.stream import StepStream
from service.servicers.turns import in_turn

SERVICE = pb.DESCRIPTOR.services_by_name["StreamcellService"].full_name
_Work = TypeVar("_Work", Step, Block, Control)


class StreamcellServicer:
    """Answers the API's calls over a catalog's sessions.

    Args:
        catalog: the sessions.
        settings: limits.
        snapshot_keys: sign the snapshots that leave, and verify those that come.
    """

    def __init__(self, catalog: Catalog, settings: Config, snapshot_keys: SnapshotKeys | None = None) -> None:
        self._catalog = catalog
        self._settings = settings
        self._snapshot_keys = snapshot_keys or SnapshotKeys()
        self._limits = pb.Limits(
            max_message_steps=settings.max_message_steps,
            max_message_bytes=settings.max_message_bytes,
            max_horizon_steps=settings.max_horizon_steps,
            num_replies_kept=settings.replies_kept,
        )

    def methods(self) -> list[Unary[Any] | Streaming]:
        """Returns every method of the service, for the router."""
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
        return pb.ListModelsResponse(
            models=[
                convert.model_message(engine, call.account_number)
                for engine in self._catalog.versions.engines
            ]
        )

    async def open_session(self, request: pb.OpenSessionRequest, call: Call) -> pb.OpenSessionResponse:
        """Answers OpenSession."""
        if request.durable:
            self._catalog.persistence.check_durable()
        existing = await self._find_existing(request, call)
        if existing is None:
            try:
                opened = await self._catalog.create(
                    call.principal, request.session_id, request.model, is_durable=request.durable
                )
            except StreamcellError as error:
                # Another request opened the session meanwhile: this request finds it.
                if error.reason is not Reason.SESSION_EXISTS or request.mode == pb.OPEN_MODE_CREATE:
                    raise
                return await self.open_session(request, call)
            # A new session has no earlier work to wait for, and the queue may be full.
            session = self._session_message(opened)
        else:
            self._catalog.check_model(existing.engine, request.session_id, request.model)
            if request.durable:
                # Stored before the answer: a crash before the next step must not make it forget.
                existing.engine.sessions.durability.make_durable(existing.slot)
                await self._catalog.persistence.wait_until_stored(existing)
                # The session may have been evicted meanwhile, or moved to another version.
                existing = await self._catalog.fetch(call.principal, request.session_id)
            session = await self._session_after_queue(existing)
        return pb.OpenSessionResponse(session=session, created=existing is None, limits=self._limits)

    async def _find_existing(self, request: pb.OpenSessionRequest, call: Call) -> SessionRef | None:
        """Returns the session that an open request finds; None if the request is to open one."""
        may_open = request.mode != pb.OPEN_MODE_RESUME
        if request.mode == pb.OPEN_MODE_CREATE or (may_open and not request.session_id):
            return None
        try:
            return await self._catalog.fetch(call.principal, request.session_id, TakeOver.ALWAYS)
        except StreamcellError as error:
            if may_open and is_missing(error):
                return None
            raise

    async def get_session(self, request: pb.GetSessionRequest, call: Call) -> pb.GetSessionResponse:
        """Answers GetSession."""
        session = await self._catalog.fetch(call.principal, request.session_id)
        return pb.GetSessionResponse(session=await self._session_after_queue(session))

    async def reset_session(self, request: pb.ResetSessionRequest, call: Call) -> pb.ResetSessionResponse:
        """Answers ResetSession."""
        session = await self._catalog.fetch(call.principal, request.session_id)
        await self._run_control(session, session.engine.residents.reset)
        # The reset is stored before the answer: otherwise a crash could bring back the steps before it.
        session = await self._catalog.fetch(call.principal, request.session_id)
        await self._catalog.persistence.wait_until_stored(session)
        # The session may have moved to another version meanwhile.
        session = await self._catalog.fetch(call.principal, request.session_id)
        return pb.ResetSessionResponse(session=await self._session_after_queue(session))

    async def close_session(self, request: pb.CloseSessionRequest, call: Call) -> pb.CloseSessionResponse:
        """Answers CloseSession."""
        try:
            session = await self._catalog.fetch(call.principal, request.session_id, TakeOver.ALWAYS)
            num_steps = await self._run_control(session, session.engine.residents.close)
        except StreamcellError as error:
            if error.reason in UNUSABLE:  # the row in the store is deleted without being read
                await self._catalog.discard(call.principal, request.session_id)
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
                session, work = prepare_step(self._catalog, call, request, futures.sets(done))
                work.may_be_held = True
                await _submit_in_turn(session, work, call)
                break
            except NotResident:
                await fetch_or_open(self._catalog, call, request)
        return convert.step_response(session, await _wait(session, work, done))

    async def prime(self, request: pb.PrimeRequest, call: Call) -> pb.PrimeResponse:
        """Answers Prime."""
        done = asyncio.get_running_loop().create_future()
        on_done, max_steps = futures.sets(done), self._settings.max_message_steps
        while True:
            session = await self._catalog.fetch(call.principal, request.session_id, take_over_for(request))
            block = convert.prime_block(session, request, max_steps, on_done)
            with contextlib.suppress(NotResident):
                await _submit_in_turn(session, block, call)
                break
        await _wait(session, block, done)
        if block.errors:
            error = block.errors[0]
            applied = {"num_applied": str(int(block.num_applied[0]))}
            raise StreamcellError(error.reason, error.message, metadata=error.metadata | applied)
        last = int(block.step_indexes[0]) + len(block.x) - 1
        num_durable = session.current.num_durable_steps
        return pb.PrimeResponse(step_index=last, y=block.y[-1].tolist(), num_durable_steps=num_durable)

    async def forecast(self, request: pb.ForecastRequest, call: Call) -> pb.ForecastResponse:
        """Answers Forecast."""
        session = await self._catalog.fetch(call.principal, request.session_id)
        future = convert.future_rows(session.engine, request, self._settings.max_horizon_steps)

        def forecast(slot: int) -> pb.ForecastResponse:
            y = session.engine.forecast(slot, request.horizon_steps, future)
            return pb.ForecastResponse(next_step_index=session.next_step_index, y=y.reshape(-1).tolist())

        response: pb.ForecastResponse = await self._run_control(session, forecast, request.horizon_steps)
        return response

    async def fork_session(self, request: pb.ForkSessionRequest, call: Call) -> pb.ForkSessionResponse:
        """Answers ForkSession."""
        original, raw = await self._snapshot(request.session_id, call)
        if request.new_session_id == original.session_id:
            raise errors.refusal(Reason.SESSION_EXISTS, session_id=original.session_id)
        copied = snapshot.decode(raw)
        return pb.ForkSessionResponse(session=await self._restore(copied, request.new_session_id, call))

    async def snapshot_session(
        self, request: pb.SnapshotSessionRequest, call: Call
    ) -> pb.SnapshotSessionResponse:
        """Answers SnapshotSession."""
        session, raw = await self._snapshot(request.session_id, call)
        return pb.SnapshotSessionResponse(snapshot=self._snapshot_keys.sign(raw), session=session)

    async def restore_session(
        self, request: pb.RestoreSessionRequest, call: Call
    ) -> pb.RestoreSessionResponse:
        """Answers RestoreSession."""
        try:
            session = snapshot.decode_foreign(self._snapshot_keys.verified(request.snapshot))
        except SnapshotError as error:
            raise errors.refusal(Reason.SNAPSHOT_REJECTED, problem=str(error)) from None
        session_id = request.session_id or session.session_id
        return pb.RestoreSessionResponse(session=await self._restore(session, session_id, call))

    async def _snapshot(self, session_id: str, call: Call) -> tuple[pb.Session, bytes]:
        session = await self._catalog.fetch(call.principal, session_id)

        def export(slot: int) -> tuple[pb.Session, bytes]:
            ((record,), _) = session.engine.residents.export(np.array([slot], np.int64))
            return self._session_message(session), record

        exported: tuple[pb.Session, bytes] = await self._run_control(session, export)
        return exported

    async def _restore(self, session: Snapshot, session_id: str, call: Call) -> pb.Session:
        return self._session_message(await self._catalog.restore(call.principal, session_id, session))

    def stream(self, stream: Stream, call: Call) -> StepStream:
        """Begins a Stream."""
        return StepStream(stream, call, self._catalog, self._settings)

    async def _session_after_queue(self, session: SessionRef) -> pb.Session:
        """Returns a session as it is once the work queued before this call is done."""

        def read(_: int) -> pb.Session:
            return self._session_message(session)

        message: pb.Session = await self._run_control(session, read)
        return message

    def _session_message(self, session: SessionRef) -> pb.Session:
        return convert.session_message(session, self._settings.session_ttl_seconds)

    async def _run_control(
        self, session: SessionRef, action: Callable[[int], Any], num_steps: int = 1
    ) -> Any:
        """Runs an action on a session's slot after the session's earlier work, and returns the result.

        The action counts as `num_steps` steps.
        """
        done = asyncio.get_running_loop().create_future()
        control = Control(
            session.slot,
            session.generation,
            action,
            arrived_ns=session.engine.now(),
            on_done=futures.sets(done),
            num_steps=num_steps,
        )
        return (await _submit_and_wait(session, control, done)).result


async def _submit_and_wait(session: SessionRef, work: _Work, done: "asyncio.Future[None]") -> _Work:
    """Submits work at once, and returns it once `done` is set.

    Raises:
        StreamcellError: the queue is full, or the work failed.
    """
    session.engine.submit(work)
    return await _wait(session, work, done)


async def _submit_in_turn(session: SessionRef, work: Step | Block, call: Call) -> None:
    """Submits work when it is the caller's turn.

    Raises:
        NotResident: the session has left its place meanwhile.
        StreamcellError: the queue is full.
    """

    def submit() -> None:
        if not session.is_live:
            raise NotResident([])
        session.engine.submit(work)

    await in_turn(session.engine, call.account_number, submit)


async def _wait(session: SessionRef, work: _Work, done: "asyncio.Future[None]") -> _Work:
    """Returns submitted work once `done` is set; a call that is cancelled withdraws work not yet begun.

    Raises:
        StreamcellError: the work failed.
    """
    try:
        await done
    except asyncio.CancelledError:
        session.engine.withdraw(work)
        raise
    if work.error is not None:
        raise work.error
    return work

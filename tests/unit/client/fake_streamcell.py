"""A Streamcell server for tests: the API over a tiny recurrence, with faults that a test scripts.

The model is h = h / 2 + sum(x), y = (h, step_index). It stores times and does nothing else with them. The
hooks `before` and `after` run around each step; a Fault raised in `after` leaves the step applied and
unanswered. With a store, the steps of a session that were written survive `crash()`, and another server can
take the session over. Knows nothing of the client library.
"""

# ruff: noqa: D102, D103, N802, N818 - methods and faults are the API's own, and described there

import asyncio
import contextlib
import dataclasses
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
from fake_store import FakeStore
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as pb_grpc

SECOND_NS = 1_000_000_000


class Fault(Exception):
    """An error in the words of the API; on a stream it is a message unless it `breaks` the stream."""

    def __init__(self, code, reason="", message="scripted", *, metadata=None, retry_delay=0.0, breaks=False):
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = metadata or {}
        self.retry_delay = retry_delay
        self.breaks = breaks


def broken():
    """A fault that ends the stream or call as if the connection were lost."""
    return Fault("UNAVAILABLE", message="connection reset", breaks=True)


def draining():
    return Fault("UNAVAILABLE", "DRAINING", "this server is stopping")


def store_unavailable(retry_delay=0.0):
    return Fault("UNAVAILABLE", "STORE_UNAVAILABLE", "the store is away", retry_delay=retry_delay)


def fenced():
    return Fault("ABORTED", "SESSION_FENCED", "another server took the session over")


def overloaded(retry_delay):
    return Fault("RESOURCE_EXHAUSTED", "OVERLOADED", "the queue is full", retry_delay=retry_delay)


@dataclasses.dataclass
class FakeSession:
    """A session on the fake server."""

    session_id: str
    model: str = "tiny"
    applied: list = dataclasses.field(default_factory=list)  # (x, time_ns, y)
    epoch: int = 1
    num_durable_steps: int = 0
    durable: bool = False

    @property
    def h(self):
        return self.applied[-1][2][0] if self.applied else 0.0

    @property
    def last_time_ns(self):
        times = [time_ns for _, time_ns, _ in self.applied if time_ns is not None]
        return times[-1] if times else 0

    def message(self):
        return pb.Session(
            last_time_ns=self.last_time_ns,
            session_id=self.session_id, model_name=self.model, model_version="1", epoch=self.epoch,
            next_step_index=len(self.applied), num_durable_steps=self.num_durable_steps, durable=self.durable,
        )  # fmt: skip


Hook = Callable[[pb.StepRequest], Awaitable[None]]


async def _nothing(request):
    return None


def model_step(h, x):
    """The next h, in float32 as it goes over the wire."""
    return struct.unpack("f", struct.pack("f", h / 2 + sum(x)))[0]


def expected(rows):
    """The values of h that the fake model gives for rows of a fresh session."""
    h, out = 0.0, []
    for row in rows:
        h = model_step(h, row)
        out.append(h)
    return out


class FakeServer(pb_grpc.StreamcellServiceServicer):
    """A real gRPC server on 127.0.0.1 over the fake model."""

    def __init__(self, store: FakeStore | None = None):
        self.store = store
        self.is_draining = False
        self.num_replies = 8
        self.stores_resets = False  # before it answers them
        self.fenced: set[str] = set()
        self.sessions: dict[str, FakeSession] = {}
        self.calls: list[tuple[str, object]] = []
        self.peers: list[str] = []  # where each of the calls came from: one connection, one peer
        self.metadata: list[tuple[str, dict[str, str]]] = []  # of each call, streams too
        self.arrived: list[int] = []  # indexes of the steps read from streams
        self.applied: list[tuple[str, int]] = []
        self.before: Hook = _nothing
        self.after: Hook = _nothing
        self.before_call: dict[str, Hook] = {}  # by method
        self.max_message_steps = 1 << 20
        self.inputs = ("value",)
        self.uses_time = True
        self.port = 0
        self.num_streams = 0
        self._owner = object()
        self._server: grpc.aio.Server | None = None
        self._changed = asyncio.Event()

    @property
    def target(self):
        return f"127.0.0.1:{self.port}"

    async def start(self):
        self._server = grpc.aio.server(options=[("grpc.max_receive_message_length", 1 << 20)])
        pb_grpc.add_StreamcellServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self):
        await self._server.stop(None)

    def crash(self):
        """Forgets everything that is not in the store; a test then raises `broken()` to break the calls."""
        self.sessions.clear()
        self.fenced.clear()
        self._owner = object()

    def fence(self, session_id):
        """Gives a session to a server elsewhere."""
        self.store.claim(session_id, object())

    def drain(self):
        """Writes the sessions, releases them and refuses every call from now on."""
        self.is_draining = True
        for session in self.sessions.values():
            if self.store is not None and self.store.write(session, self._owner, len(session.applied)):
                self.store.rows[session.session_id].owner = None
        self.sessions.clear()

    async def until(self, condition):
        """Returns once the condition holds, which depends on the steps that arrived or were applied."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def named(self, method):
        """The requests of one method, in order."""
        return [request for name, request in self.calls if name == method]

    async def ListModels(self, request, context):
        async with self._answering("ListModels", request, context):
            model = pb.Model(
                name="tiny", version="1", description="halves and adds", uses_time=self.uses_time,
                inputs=[pb.Variable(name=name) for name in self.inputs],
                outputs=[pb.Variable(name="h", target="value", role="mean"), pb.Variable(name="index")],
                step_interval_seconds=60.0, state_bytes=4, manifest_json="{}", status=pb.MODEL_STATUS_SERVING,
            )  # fmt: skip
            return pb.ListModelsResponse(models=[model])

    async def OpenSession(self, request, context):
        async with self._answering("OpenSession", request, context):
            if request.model.split("/")[0] not in ("", "tiny"):
                raise Fault("NOT_FOUND", "MODEL_NOT_FOUND", f"no model {request.model}")
            session = self._take(request.session_id)
            created = session is None
            if created and request.mode == pb.OPEN_MODE_RESUME:
                raise _no_session(request.session_id)
            if not created and request.mode == pb.OPEN_MODE_CREATE:
                raise Fault("ALREADY_EXISTS", "SESSION_EXISTS", f"{request.session_id} is in use")
            session = session or self._create(request.session_id, request.durable)
            limits = pb.Limits(num_replies_kept=self.num_replies)
            return pb.OpenSessionResponse(session=session.message(), created=created, limits=limits)

    async def GetSession(self, request, context):
        async with self._answering("GetSession", request, context):
            return pb.GetSessionResponse(session=self._find(request.session_id).message())

    async def ResetSession(self, request, context):
        async with self._answering("ResetSession", request, context):
            session = self._find(request.session_id)
            session.applied, session.num_durable_steps = [], 0  # in the store only with the steps after it
            if self.stores_resets and self.store is not None:
                self.store.rows[session.session_id].applied = []
            return pb.ResetSessionResponse(session=session.message())

    async def CloseSession(self, request, context):
        async with self._answering("CloseSession", request, context):
            session = self.sessions.pop(request.session_id, None)
            if self.store is not None:
                self.store.rows.pop(request.session_id, None)
            return pb.CloseSessionResponse(num_steps=len(session.applied) if session else 0)

    async def Step(self, request, context):
        async with self._answering("Step", request, context):
            return await self._step(request)

    async def Prime(self, request, context):
        async with self._answering("Prime", request, context):
            width = len(self.inputs)
            values = struct.unpack(f"<{len(request.x_raw) // 4}f", request.x_raw)
            num_steps = len(values) // width
            times = struct.unpack(f"<{len(request.time_raw) // 8}q", request.time_raw)
            if num_steps > self.max_message_steps:
                raise Fault("INVALID_ARGUMENT", "TOO_MANY_STEPS", "too many steps")
            for step in range(num_steps):
                reply = await self._step(pb.StepRequest(
                    session_id=request.session_id, x=values[step * width : (step + 1) * width],
                    step_index=request.step_index + step, time_ns=times[step] if times else None,
                ), is_prime=True)  # fmt: skip
            return pb.PrimeResponse(
                step_index=reply.step_index, y=reply.y, num_durable_steps=reply.num_durable_steps
            )

    async def Forecast(self, request, context):
        async with self._answering("Forecast", request, context):
            session = self._find(request.session_id)
            y = [value for ahead in range(request.horizon_steps) for value in (session.h, ahead)]
            return pb.ForecastResponse(next_step_index=len(session.applied), y=y)

    async def Stream(self, request_iterator, context):
        self.num_streams += 1
        self.metadata.append(("Stream", dict(context.invocation_metadata())))
        requests: asyncio.Queue = asyncio.Queue()
        reader = asyncio.create_task(self._read(request_iterator, requests))
        try:
            while (message := await requests.get()) is not None:
                response = pb.StreamResponse(request_id=message.request_id)
                response.session_id = message.step.session_id
                try:
                    response.step.CopyFrom(await self._step(message.step))
                except Fault as fault:
                    if fault.breaks:
                        await _abort(context, fault)
                    response.error.CopyFrom(_stream_error(fault))
                yield response
        finally:
            reader.cancel()

    async def _read(self, request_iterator: AsyncIterator[pb.StreamRequest], requests: asyncio.Queue):
        async for message in request_iterator:
            self.arrived.append(message.step.step_index)
            self._changed.set()
            requests.put_nowait(message)
        requests.put_nowait(None)

    async def _step(self, request, *, is_prime=False):
        await self.before(request)
        if self.is_draining:
            raise draining()
        if request.session_id in self.fenced:
            raise fenced()
        session = self.sessions.get(request.session_id) or self._take(request.session_id)
        if session is None and request.step_index == 0 and not is_prime:  # as the API has it
            session = self._create(request.session_id)
        if session is None:
            raise _no_session(request.session_id)
        reply = self._apply(session, request, is_prime)
        await self.after(request)
        return reply

    def _create(self, session_id, durable=False):
        if self.store is not None:
            self.store.create(session_id, self._owner)
        session = self.sessions[session_id] = FakeSession(session_id, durable=durable)
        return session

    def _take(self, session_id):
        """The session, taken over if another server had it; None if there is none."""
        self.fenced.discard(session_id)
        session = self.sessions.get(session_id)
        if self.store is None:
            return session
        row = self.store.rows.get(session_id)
        if row is not None and (session is None or row.owner is not self._owner):
            row = self.store.claim(session_id, self._owner)
            session = self.sessions[session_id] = FakeSession(
                session_id, applied=row.applied[:], epoch=row.epoch, num_durable_steps=len(row.applied)
            )
        return session

    def _apply(self, session, request, is_prime):
        x, time_ns = list(request.x), request.time_ns if request.HasField("time_ns") else None
        index, count = request.step_index, len(session.applied)
        if any(value != value for value in x):
            raise Fault("INVALID_ARGUMENT", "INVALID_ARGUMENT", "x: not finite", metadata={"field": "x"})
        if index > count:
            raise Fault(
                "FAILED_PRECONDITION", "STEP_GAP", "gap", metadata={"expected_step_index": str(count)}
            )
        if index == count:
            session.applied.append((x, time_ns, (model_step(session.h, x), float(index))))
            self.applied.append((session.session_id, index))
            self._changed.set()
            self._write(session)
        if index < len(session.applied) - self.num_replies and not is_prime:
            raise Fault("OUT_OF_RANGE", "STEP_FORGOTTEN", "its reply is no longer kept")
        applied_x, applied_time_ns, y = session.applied[index]
        if (applied_x, applied_time_ns) != (x, time_ns):
            raise Fault("ALREADY_EXISTS", "STEP_CONFLICT", "another input")
        return pb.StepResponse(step_index=index, y=y, num_durable_steps=session.num_durable_steps)

    def _write(self, session):
        """Writes to the store as far as its lag allows; drops a session that another server took over."""
        if self.store is not None and not self.store.write(session, self._owner):
            del self.sessions[session.session_id]
            self.fenced.add(session.session_id)
            raise fenced()

    def _find(self, session_id):
        """The session, if this server has it or no other server has it."""
        row = self.store.rows.get(session_id) if self.store is not None else None
        if row is not None and row.owner is not self._owner and row.owner is not None:
            raise fenced()
        session = self._take(session_id)
        if session is None:
            raise _no_session(session_id)
        return session

    @contextlib.asynccontextmanager
    async def _answering(self, method, request, context):
        self.calls.append((method, request))
        self.peers.append(context.peer())
        self.metadata.append((method, dict(context.invocation_metadata())))
        try:
            await self.before_call.get(method, _nothing)(request)
            if self.is_draining:
                raise draining()
            yield
        except Fault as fault:
            await _abort(context, fault)


def _no_session(session_id):
    return Fault("NOT_FOUND", "SESSION_NOT_FOUND", f"no session {session_id}")


async def _abort(context, fault):
    code = getattr(grpc.StatusCode, fault.code)
    trailers = []
    if fault.reason:
        trailers.append(("grpc-status-details-bin", grpc_details(fault).SerializeToString()))
    if fault.reason == "DRAINING":
        trailers.append(("grpc-retry-pushback-ms", "-1"))
    elif fault.retry_delay:
        trailers.append(("grpc-retry-pushback-ms", str(round(fault.retry_delay * 1000))))
    context.set_trailing_metadata(tuple(trailers))
    await context.abort(code, fault.message)


def grpc_details(fault, domain="streamcell"):
    """The google.rpc.Status that stands for a fault."""
    details = [any_pb2.Any(), any_pb2.Any()]
    details[0].Pack(error_details_pb2.ErrorInfo(reason=fault.reason, domain=domain, metadata=fault.metadata))
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(round(fault.retry_delay * 1000))
    details[1].Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(
        code=code_pb2.Code.Value(fault.code), message=fault.message,
        details=details if fault.retry_delay else details[:1],
    )  # fmt: skip


def _stream_error(fault):
    return pb.StreamError(
        code=code_pb2.Code.Value(fault.code), reason=fault.reason, message=fault.message,
        metadata=fault.metadata, retry_delay_seconds=fault.retry_delay,
    )  # fmt: skip


class Gate:
    """A hook that stops every call until the gate is opened; `arrived` is set when the first call comes."""

    def __init__(self):
        self.arrived = asyncio.Event()
        self._opened = asyncio.Event()

    async def __call__(self, request):
        self.arrived.set()
        await self._opened.wait()

    def open(self):
        self._opened.set()


def once(*faults):
    """A hook that raises one fault each time, in order, and then none."""
    left = list(faults)

    async def hook(request):
        fault = left.pop(0) if left else None
        if fault is not None:
            raise fault

    return hook


def at_step(index, *faults):
    """A hook that raises one of its faults each time this step arrives, in order, and then none."""
    left = list(faults)

    async def hook(request):
        if request.step_index == index and left:
            raise left.pop(0)

    return hook


def at_steps(indexes, act):
    """A hook that calls `act` and breaks the call when one of these steps comes, as often as it is named."""
    left = list(indexes)

    async def hook(request):
        if request.step_index in left:
            left.remove(request.step_index)
            act()
            raise broken()

    return hook


class FakeTime:
    """A clock that moves only while something sleeps, and that records the sleeps."""

    def __init__(self):
        self.now_seconds = 0.0
        self.sleeps: list[float] = []
        self.on_sleep: Callable[[], Awaitable[None]] | None = None

    def now(self):
        return self.now_seconds

    async def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.now_seconds += seconds
        if self.on_sleep is not None:
            await self.on_sleep()

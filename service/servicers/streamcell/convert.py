"""Between the API's messages and the engine's work: checks every value and names the field at fault."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from streamcell.v1 import streamcell_pb2 as pb

from service import errors
from service.arrays import Float32s, Int64s
from service.catalog.catalog import session_id_of
from service.engine.admission import first_time_missing
from service.engine.engine import Engine
from service.engine.session_table import TIME_ABSENT
from service.engine.work import INDEX_NEXT, Block, Step
from service.errors import Reason, StreamcellError
from service.runtime.manifest import Variable
from service.servicers import values


def step(
    engine: Engine,
    slot: int,
    generation: int,
    request: pb.StepRequest,
    x: bytes,
    on_done: Callable[[Step], None],
) -> Step:
    """Returns the work that a step request asks for; `x` is its row, checked by `row`."""
    return Step(
        slot,
        generation,
        x,
        values.time(request.time_ns) if request.HasField("time_ns") else TIME_ABSENT,
        request.step_index if request.HasField("step_index") else INDEX_NEXT,
        engine.now(),
        on_done,
    )


def check_first_time(engine: Engine, request: pb.StepRequest) -> None:
    """Checks that a session's first step has a time, where the model uses it.

    Raises:
        StreamcellError: INVALID_ARGUMENT.
    """
    if engine.manifest.uses_time and not request.HasField("time_ns"):
        raise first_time_missing("time_ns")


def response_of(engine: Engine, work: Step) -> pb.StepResponse:
    """Returns the response to a step that was applied, now or before."""
    return pb.StepResponse(
        step_index=work.step_index, y=work.y, num_durable_steps=num_durable_of(engine, work)
    )


def num_durable(engine: Engine, slot: int) -> int:
    """Returns how many steps of a session are in the store; 0 where there is none."""
    return engine.sessions.num_durable.item(slot) if engine.sessions.is_stored else 0


def num_durable_of(engine: Engine, work: Step) -> int:
    """Returns how many steps of a step's session are in the store, wherever the session is now."""
    engine, slot, _ = engine.whereabouts(work.slot, work.generation)
    return num_durable(engine, slot)


def num_durable_now(engine: Engine, slots: Int64s, generations: Int64s) -> list[int]:
    """Returns how many steps of each of these sessions are in the store, wherever they are now."""
    if not engine.was_superseded:
        return [num_durable(engine, slot) for slot in slots.tolist()]
    sessions = zip(slots.tolist(), generations.tolist(), strict=True)
    return [num_durable(there, at) for there, at, _ in itertools.starmap(engine.whereabouts, sessions)]


class StepReply:
    """Encodes responses to steps of a stream, in one message used over: a third of a new one's cost."""

    def __init__(self) -> None:
        self._message = pb.StreamResponse()
        self._step = self._message.step
        self._y = self._step.y

    def encode(self, request: pb.StreamRequest, work: Step, num_durable: int) -> bytes:
        """Returns the bytes of the response to a step that was applied, now or before."""
        message, asked = self._message, request.step
        message.request_id = request.request_id
        message.session_id = asked.session_id
        message.session = 0 if asked.session_id else asked.session
        self._step.step_index = work.step_index
        self._step.num_durable_steps = num_durable
        self._y.clear()
        self._y.extend(work.y)
        return message.SerializeToString()


def rows(engine: Engine, field: str, raw: bytes, listed: Sequence[float], max_rows: int) -> Float32s:
    """Returns input rows [N, F] given packed in `raw` (`field` + "_raw") or in `listed`.

    Raises:
        StreamcellError: INVALID_ARGUMENT, both or none are given, there is no whole number of rows, or a
            value is not finite; TOO_MANY_STEPS.
    """
    width = len(engine.manifest.inputs)
    if bool(raw) == bool(listed):
        raise errors.invalid_argument(
            f"{field}_raw", f"give one of {field}_raw and {field}, with a row at least"
        )
    if raw and len(raw) % (4 * width):
        message = f"{len(raw)} bytes are not rows of {width} float32: {values.names(engine.manifest.inputs)}"
        raise errors.invalid_argument(f"{field}_raw", message)
    if len(listed) % width:
        raise values.wrong_width(field, len(listed), engine)
    num_rows = (len(raw) // 4 or len(listed)) // width
    if num_rows > max_rows:
        raise errors.refusal(Reason.TOO_MANY_STEPS, got=num_rows, max_message_steps=max_rows)
    x = np.frombuffer(raw, "<f4") if raw else np.fromiter(listed, np.float32, len(listed))
    return values.finite(engine, f"{field}_raw" if raw else field, x.reshape(num_rows, width))


def prime_block(
    engine: Engine, slot: int, request: pb.PrimeRequest, max_steps: int, on_done: Callable[[Block], None]
) -> Block:
    """Returns the work that a prime request asks for: one entry, of which the last reply is wanted.

    Raises:
        StreamcellError: INVALID_ARGUMENT or TOO_MANY_STEPS.
    """
    x = rows(engine, "x", request.x_raw, request.x, max_steps)
    index = min(request.step_index, values.LARGEST_INDEX) if request.HasField("step_index") else INDEX_NEXT
    return Block(
        np.array([slot], np.int64),
        engine.sessions.generation[[slot]],
        np.array([len(x)], np.int64),
        x,
        values.times("time_raw", request.time_raw, request.time_ns, len(x)),
        np.array([index], np.int64),
        len(engine.manifest.outputs),
        wants_replies=False,
        arrived_ns=engine.now(),
        on_done=on_done,
    )


def future_rows(engine: Engine, request: pb.ForecastRequest, max_horizon: int) -> Float32s:
    """Returns the known future values [H, K] of a forecast request.

    Raises:
        StreamcellError: INVALID_ARGUMENT.
    """
    horizon, known = request.horizon_steps, engine.manifest.future
    if not 1 <= horizon <= max_horizon:
        raise errors.invalid_argument("horizon_steps", f"must be 1 to {max_horizon}, not {horizon}")
    if len(request.future) != horizon * len(known):
        message = f"{len(request.future)} values; {horizon} rows of {len(known)} are needed"
        raise errors.invalid_argument("future", message + (f": {values.names(known)}" if known else ""))
    future = np.fromiter(request.future, np.float32, len(request.future)).reshape(horizon, len(known))
    if not np.isfinite(future).all():
        raise errors.invalid_argument("future", "a value is not finite")
    return future


def session(engine: Engine, slot: int, ttl_seconds: float) -> pb.Session:
    """Returns a session as it stands."""
    return pb.Session(
        session_id=session_id_of(engine, slot),
        model_name=engine.name,
        model_version=engine.version,
        next_step_index=int(engine.sessions.next_step[slot]),
        last_time_ns=int(engine.sessions.last_time[slot]),
        ttl_seconds=ttl_seconds,
        num_durable_steps=num_durable(engine, slot),
        durable=bool(engine.sessions.is_durable[slot]),
        epoch=int(engine.sessions.epoch[slot]) if engine.sessions.is_stored else 1,
    )


def model(engine: Engine) -> pb.Model:
    """Returns a model as the API shows it."""
    about = engine.manifest
    return pb.Model(
        name=engine.name,
        version=engine.version,
        description=about.description,
        inputs=[_variable(part) for part in about.inputs],
        outputs=[_variable(part) for part in about.outputs],
        future=[_variable(part) for part in about.future],
        uses_time=about.uses_time,
        step_interval_seconds=about.step_interval_seconds,
        state_bytes=4 * about.state_size,
        manifest_json=about.text,
        num_sessions=len(engine.sessions),
        status=pb.MODEL_STATUS_RETIRING if engine.is_retiring else pb.MODEL_STATUS_SERVING,
    )


def stream_error(error: StreamcellError) -> pb.StreamError:
    """Returns an error as a message of a stream."""
    return pb.StreamError(
        code=error.code,
        reason=error.reason,
        message=error.message,
        metadata=error.metadata,
        retry_delay_seconds=error.retry_delay_seconds,
    )


def _variable(part: Variable) -> pb.Variable:
    return pb.Variable(
        name=part.name, unit=part.unit, target=part.target, role=part.role, quantile=part.quantile
    )

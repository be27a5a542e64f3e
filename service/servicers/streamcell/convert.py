"""Converts the API's messages into the engine's work, and results into messages.

Every value is checked, and an error names the field at fault. Does not know streams, nor where sessions are
stored.
"""

from collections.abc import Callable, Sequence

import numpy as np
from streamcell.v1 import streamcell_pb2 as pb

from service import errors
from service.arrays import Float32s, Int64s
from service.engine.admission import first_time_missing
from service.engine.engine import Engine
from service.engine.progress import TIME_ABSENT
from service.engine.session_ref import SessionRef
from service.engine.work import INDEX_NEXT, Block, Step
from service.errors import Reason, StreamcellError
from service.runtime.manifest import Variable
from service.servicers import values


def step_work(
    session: SessionRef, request: pb.StepRequest, x: bytes, on_done: Callable[[Step], None]
) -> Step:
    """Returns the work that a step request asks for; `x` is the request's row, packed by `values.row`.

    Raises:
        StreamcellError: INVALID_ARGUMENT, the time is out of range.
    """
    return Step(  # no keywords: they would double the cost, which every single step pays
        session.slot,
        session.generation,
        x,
        values.time(request.time_ns) if request.HasField("time_ns") else TIME_ABSENT,
        request.step_index if request.HasField("step_index") else INDEX_NEXT,
        session.engine.now(),
        on_done,
    )


def check_first_time(engine: Engine, request: pb.StepRequest) -> None:
    """Checks that a session's first step has a time if the model uses times.

    Raises:
        StreamcellError: INVALID_ARGUMENT, the time is missing.
    """
    if engine.manifest.uses_time and not request.HasField("time_ns"):
        raise first_time_missing("time_ns")


def step_response(session: SessionRef, work: Step) -> pb.StepResponse:
    """Returns the response to a step that was applied, now or earlier."""
    return pb.StepResponse(
        step_index=work.step_index, y=work.y, num_durable_steps=session.current.num_durable_steps
    )


def num_durable_steps(engine: Engine, slots: Int64s, generations: Int64s) -> Int64s:
    """Returns how many steps of each session [N] are in the store; a session that moved is followed."""
    if not engine.succession.has_begun:
        return engine.sessions.durability.num_durable[slots]
    sessions = zip(slots.tolist(), generations.tolist(), strict=True)
    return np.array([SessionRef(engine, *each).current.num_durable_steps for each in sessions], np.int64)


class StepResponseEncoder:
    """Encodes the responses to a stream's steps in one reused message: a third of the cost of new ones."""

    def __init__(self) -> None:
        self._message = pb.StreamResponse()
        self._step = self._message.step
        self._y = self._step.y

    def encode(self, request: pb.StreamRequest, work: Step, num_durable: int) -> bytes:
        """Returns the response to a step that was applied, now or earlier, as bytes."""
        message, asked = self._message, request.step
        message.request_id = request.request_id
        message.session_id = asked.session_id
        message.session = 0 if asked.session_id else asked.session
        self._step.step_index = work.step_index
        self._step.num_durable_steps = num_durable
        self._y.clear()
        self._y.extend(work.y)
        return message.SerializeToString()


def input_rows(engine: Engine, field: str, *, raw: bytes, listed: Sequence[float], max_rows: int) -> Float32s:
    """Returns a request's input rows [N, F], from its field `{field}_raw` (`raw`) or `field` (`listed`).

    Raises:
        StreamcellError: INVALID_ARGUMENT, both fields or neither are given, the values are no whole number of
            rows, or a value is not finite; TOO_MANY_STEPS.
    """
    width = len(engine.manifest.inputs)
    if bool(raw) == bool(listed):
        raise errors.invalid_argument(
            f"{field}_raw", f"give one of {field}_raw and {field}, with at least one row"
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
    session: SessionRef, request: pb.PrimeRequest, max_steps: int, on_done: Callable[[Block], None]
) -> Block:
    """Returns the work that a prime request asks for: a block of one entry that keeps the last prediction.

    Raises:
        StreamcellError: INVALID_ARGUMENT or TOO_MANY_STEPS.
    """
    engine = session.engine
    x = input_rows(engine, "x", raw=request.x_raw, listed=request.x, max_rows=max_steps)
    index = min(request.step_index, values.LARGEST_INDEX) if request.HasField("step_index") else INDEX_NEXT
    return Block(
        slots=np.array([session.slot], np.int64),
        generations=np.array([session.generation], np.int64),
        counts=np.array([len(x)], np.int64),
        x=x,
        times=values.times("time_raw", request.time_raw, request.time_ns, len(x)),
        indexes=np.array([index], np.int64),
        num_outputs=len(engine.manifest.outputs),
        wants_replies=False,
        arrived_ns=engine.now(),
        on_done=on_done,
    )


def future_rows(engine: Engine, request: pb.ForecastRequest, max_horizon: int) -> Float32s:
    """Returns the known future values [H, K] of a forecast request.

    Raises:
        StreamcellError: INVALID_ARGUMENT, the horizon is out of range, there are too few or too many values,
            or a value is not finite.
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


def session_message(session: SessionRef, ttl_seconds: float) -> pb.Session:
    """Returns a session, as it is now, as the API shows it."""
    return pb.Session(
        session_id=session.session_id,
        model_name=session.engine.name,
        model_version=session.engine.version,
        next_step_index=session.next_step_index,
        last_time_ns=session.last_time_ns,
        ttl_seconds=ttl_seconds,
        num_durable_steps=session.num_durable_steps,
        durable=session.is_durable,
        epoch=session.epoch,
    )


def model_message(engine: Engine, account: int) -> pb.Model:
    """Returns a model as the API shows it to the owner of an account."""
    manifest = engine.manifest
    return pb.Model(
        name=engine.name,
        version=engine.version,
        description=manifest.description,
        inputs=[_variable_message(each) for each in manifest.inputs],
        outputs=[_variable_message(each) for each in manifest.outputs],
        future=[_variable_message(each) for each in manifest.future],
        uses_time=manifest.uses_time,
        step_interval_seconds=manifest.step_interval_seconds,
        state_bytes=4 * manifest.state_size,
        manifest_json=manifest.text,
        num_sessions=engine.sessions.num_of(account),
        status=pb.MODEL_STATUS_RETIRING if engine.succession.is_retiring else pb.MODEL_STATUS_SERVING,
    )


def stream_error(error: StreamcellError) -> pb.StreamError:
    """Returns an error as a stream's messages carry it."""
    return pb.StreamError(
        code=error.code,
        reason=error.reason,
        message=error.message,
        metadata=error.metadata,
        retry_delay_seconds=error.retry_delay_seconds,
    )


def _variable_message(variable: Variable) -> pb.Variable:
    return pb.Variable(
        name=variable.name,
        unit=variable.unit,
        target=variable.target,
        role=variable.role,
        quantile=variable.quantile,
    )

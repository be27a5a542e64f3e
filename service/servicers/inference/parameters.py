"""The parameters of an inference request: its model, its place in a sequence and its time-out, all checked.

Also makes the engine's work of them. Does not know which sequences are live, nor when anything runs.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from streamcell.inference import open_inference_pb2 as pb

from service import errors
from service.accounts import number_of
from service.catalog.catalog import Catalog
from service.engine.engine import Engine
from service.engine.progress import TIME_ABSENT
from service.engine.session_key import is_session_id, key_of
from service.engine.session_ref import SessionRef
from service.engine.work import INDEX_NEXT, Block, Step
from service.errors import Reason
from service.servicers import values
from service.servicers.inference import tensors
from service.servicers.inference.tensors import Rows

_NUMBERS = ("int64_param", "uint64_param")
_KINDS: Mapping[str, tuple[str, ...]] = {
    "sequence_id": (*_NUMBERS, "string_param"),
    "sequence_start": ("bool_param",),
    "sequence_end": ("bool_param",),
    "step_index": _NUMBERS,
    "timeout": _NUMBERS,
}


class RequestParameters(NamedTuple):
    """What an inference request asks to be done with its steps."""

    engine: Engine
    """The engine for which the request was read; its sequence may run on another version."""
    version: str
    """The version of the model, as the request gives it."""
    principal: str
    """The caller."""
    sequence: int | str
    """The sequence's id; 0 or "" for steps on their own."""
    session_id: str
    """The session that stands for the sequence; empty for steps on their own."""
    key: str
    """The catalog's key of that session; empty for steps on their own."""
    is_start: bool
    is_end: bool
    first_index: int
    """The index of the first step, or INDEX_NEXT."""
    timeout_microseconds: int
    """0: no limit."""

    @property
    def account(self) -> int:
        """The number of the caller's account."""
        return number_of(self.principal)

    @property
    def model(self) -> str:
        """The model's name and version."""
        return f"{self.engine.name}/{self.engine.version}"

    @property
    def model_asked(self) -> str:
        """The model as the request names it."""
        return f"{self.engine.name}/{self.version}" if self.version else self.engine.name

    @property
    def may_start(self) -> bool:
        """Whether the steps may be the first of a session."""
        return self.is_start or not self.session_id


def choose_engine(catalog: Catalog, name: str, version: str, *, field: str = "model_name") -> Engine:
    """Returns the engine of a model: of the leading version if the request names none.

    Args:
        field: the request's field for the name, for the error.

    Raises:
        NotLoaded: the version can be loaded.
        StreamcellError: INVALID_ARGUMENT, no name; MODEL_NOT_FOUND.
    """
    if not name:
        raise errors.invalid_argument(field, "is required: the name of a model")
    asked = f"{name}/{version}" if version else name
    engine = catalog.versions.choose(asked)
    if engine.name != name:  # the version was given in the name
        served = ", ".join(str(each.model) for each in catalog.versions.engines)
        raise errors.refusal(Reason.MODEL_NOT_FOUND, model=asked, served=served)
    return engine


def read_parameters(engine: Engine, message: pb.ModelInferRequest, principal: str = "") -> RequestParameters:
    """Returns what a request asks to be done with its steps.

    Raises:
        StreamcellError: INVALID_ARGUMENT, which names the parameter.
    """
    given = _given_parameters(message)
    sequence = given.get("sequence_id", 0)
    is_start, is_end = given.get("sequence_start", False), given.get("sequence_end", False)
    index = min(given["step_index"], values.LARGEST_INDEX) if "step_index" in given else INDEX_NEXT
    _check_combination(sequence, is_start, is_end, index)
    session_id = session_id_of(engine.name, message.model_version, sequence) if sequence else ""
    return RequestParameters(
        engine=engine,
        version=message.model_version,
        principal=principal,
        sequence=sequence,
        session_id=session_id,
        key=key_of(principal, session_id) if session_id else "",
        is_start=is_start,
        is_end=is_end,
        first_index=index,
        timeout_microseconds=given.get("timeout", 0),
    )


def read_rows(
    parameters: RequestParameters, message: pb.ModelInferRequest, max_steps: int, engine: Engine
) -> Rows:
    """Returns a request's steps, as an engine takes them.

    Raises:
        StreamcellError: INVALID_ARGUMENT, which names the tensor; TOO_MANY_STEPS.
    """
    rows = tensors.read_rows(engine, message, max_steps)
    if engine.manifest.uses_time and parameters.may_start and rows.times is None:
        raise tensors.first_time_missing()
    return rows


def build_work(
    parameters: RequestParameters,
    rows: Rows,
    session: SessionRef,
    *,
    arrived_ns: int,
    on_done: "Callable[[Any], None]",
) -> Step | Block:
    """Returns the engine's work for a request, on the session that stands for its sequence."""
    index = parameters.first_index
    if rows.x is None:
        time = TIME_ABSENT if rows.times is None else int(rows.times[0])
        # For every request: keywords would add 0.15 µs.
        return Step(session.slot, session.generation, rows.row, time, index, arrived_ns, on_done)
    block = Block(
        np.array([session.slot], np.int64),
        np.array([session.generation], np.int64),
        counts=np.array([rows.num_steps], np.int64),
        x=rows.x,
        times=rows.times,
        indexes=np.array([index], np.int64),
        num_outputs=session.engine.model.num_outputs,
        wants_replies=True,
        arrived_ns=arrived_ns,
        on_done=on_done,
    )
    block.is_whole = True
    return block


@functools.lru_cache(maxsize=65_536)
def session_id_of(name: str, version: str, sequence: int | str) -> str:
    """Returns the id of the session that stands for a sequence of a model.

    The id is "inference:NAME/VERSION:int:7" if the requests give a version. Without one it is
    "inference:NAME:str:seven", which starts on the version that leads then. A SHA-256 stands in for an id
    that breaks the rules of session ids or could be another sequence's.
    """
    kind = "int" if isinstance(sequence, int) else "str"
    model = f"{name}/{version}" if version else name
    plain = f"inference:{model}:{kind}:{sequence}"
    if is_session_id(plain) and ":" not in name + version:
        return plain
    parts = "\0".join((name, version, kind, str(sequence)))
    return f"inference:sha256:{hashlib.sha256(parts.encode()).hexdigest()}"


def _given_parameters(message: pb.ModelInferRequest) -> dict[str, Any]:
    """Returns the parameters that have a meaning here, by name; all others are ignored."""
    given: dict[str, Any] = {}
    parameters = message.parameters
    for name in parameters:  # items() would make a generator and a view of the map
        kinds = _KINDS.get(name)
        if kinds is None:
            continue
        parameter = parameters[name]
        kind = parameter.WhichOneof("parameter_choice")
        if kind not in kinds:
            raise errors.invalid_argument(name, f"is given as {kind}; {' or '.join(kinds)} is expected")
        value = getattr(parameter, kind)
        if kind == "int64_param" and value < 0 and name != "sequence_id":
            raise errors.invalid_argument(name, f"is {value}; at least 0 is expected")
        given[name] = value
    return given


def _check_combination(sequence: int | str, is_start: bool, is_end: bool, index: int) -> None:
    """Checks that the flags and the step index fit each other and the sequence.

    Raises:
        StreamcellError: INVALID_ARGUMENT.
    """
    if sequence:
        if is_start and index > 0:
            raise errors.invalid_argument(
                "step_index", f"is {index} with sequence_start; a sequence starts at step_index 0"
            )
        return
    for name, is_set in (("sequence_start", is_start), ("sequence_end", is_end)):
        if is_set:
            raise errors.invalid_argument(name, "needs a sequence_id other than 0 and the empty string")
    if index > 0:
        raise errors.invalid_argument(
            "step_index", f"is {index} without a sequence_id; steps on their own start at 0"
        )

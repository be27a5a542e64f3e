"""What an inference request asks for: its model, its place in a sequence and its steps, all checked.

Knows the protocol's parameters; not which sequences are live, nor when anything runs.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from streamcell.inference import open_inference_pb2 as pb

from service import errors
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


class Ask(NamedTuple):
    """What an inference request asks to be done with its steps."""

    engine: Engine
    """By which they were read; the sequence may run on another version."""
    version: str
    """Of the model, as the request gives it."""
    sequence: int | str
    """The sequence's id; 0 or "" for steps on their own."""
    session_id: str
    """The session that stands for the sequence; empty for steps on their own."""
    key: str
    """What the catalog knows that session by; empty for steps on their own."""
    is_start: bool
    is_end: bool
    first_index: int
    """Of the first step, or INDEX_NEXT."""
    timeout_microseconds: int
    """0: none."""

    @property
    def model(self) -> str:
        """The model's name and version."""
        return f"{self.engine.name}/{self.engine.version}"

    @property
    def asked(self) -> str:
        """The model as the request names it."""
        return f"{self.engine.name}/{self.version}" if self.version else self.engine.name

    @property
    def may_begin(self) -> bool:
        """Whether the steps may be the first of a sequence."""
        return self.is_start or not self.session_id


def choose(catalog: Catalog, name: str, version: str, field: str = "model_name") -> Engine:
    """Returns the engine of a model, the newest version where none is said.

    Raises:
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


def ask_of(engine: Engine, request: pb.ModelInferRequest, principal: str = "") -> Ask:
    """Returns what a request asks to be done with its steps.

    Raises:
        StreamcellError: INVALID_ARGUMENT, which names the parameter.
    """
    given = _parameters(request)
    sequence = given.get("sequence_id", 0)
    is_start, is_end = given.get("sequence_start", False), given.get("sequence_end", False)
    index = min(given["step_index"], values.LARGEST_INDEX) if "step_index" in given else INDEX_NEXT
    _check_flags(sequence, is_start, is_end, index)
    session_id = session_id_of(engine.name, request.model_version, sequence) if sequence else ""
    return Ask(
        engine,
        request.model_version,
        sequence,
        session_id,
        key_of(principal, session_id) if session_id else "",
        is_start,
        is_end,
        index,
        given.get("timeout", 0),
    )


def rows_of(ask: Ask, request: pb.ModelInferRequest, max_steps: int, engine: Engine) -> Rows:
    """Returns a request's steps, as an engine takes them.

    Raises:
        StreamcellError: INVALID_ARGUMENT, which names the tensor; TOO_MANY_STEPS.
    """
    rows = tensors.read(engine, request, max_steps)
    if engine.manifest.uses_time and ask.may_begin and rows.times is None:
        raise tensors.first_time_missing()
    return rows


def step_of(
    ask: Ask,
    rows: Rows,
    session: SessionRef,
    *,
    arrived_ns: int,
    on_done: "Callable[[Any], None]",
) -> Step | Block:
    """Returns the work that a request asks for, on the session that stands for its sequence."""
    if rows.x is None:
        time = TIME_ABSENT if rows.times is None else int(rows.times[0])
        return Step(session.slot, session.generation, rows.row, time, ask.first_index, arrived_ns, on_done)
    block = Block(
        np.array([session.slot], np.int64),
        np.array([session.generation], np.int64),
        counts=np.array([rows.num_steps], np.int64),
        x=rows.x,
        times=rows.times,
        indexes=np.array([ask.first_index], np.int64),
        num_outputs=session.engine.model.num_outputs,
        wants_replies=True,
        arrived_ns=arrived_ns,
        on_done=on_done,
    )
    block.is_whole = True
    return block


@functools.lru_cache(maxsize=65_536)
def session_id_of(name: str, version: str, sequence: int | str) -> str:
    """Returns the id of the session that stands for a sequence of a model; `version` as requests give it.

    "inference:NAME/VERSION:int:7" or "inference:NAME:str:seven", which goes on whichever version leads then;
    where that would be no session's id, or could be another sequence's, its SHA-256 stands in.
    """
    kind = "int" if isinstance(sequence, int) else "str"
    model = f"{name}/{version}" if version else name
    plain = f"inference:{model}:{kind}:{sequence}"
    if is_session_id(plain) and ":" not in name + version:
        return plain
    parts = "\0".join((name, version, kind, str(sequence)))
    return f"inference:sha256:{hashlib.sha256(parts.encode()).hexdigest()}"


def _parameters(request: pb.ModelInferRequest) -> dict[str, Any]:
    """Returns the parameters that mean something here; all others are ignored."""
    given: dict[str, Any] = {}
    parameters = request.parameters
    for name in parameters:  # not items(), which makes a generator and a view of it
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


def _check_flags(sequence: int | str, is_start: bool, is_end: bool, index: int) -> None:
    if sequence:
        if is_start and index > 0:
            raise errors.invalid_argument(
                "step_index", f"is {index} with sequence_start; a sequence starts at step_index 0"
            )
        return
    for name, is_set in (("sequence_start", is_start), ("sequence_end", is_end)):
        if is_set:
            raise errors.invalid_argument(name, "goes with a sequence_id other than 0 and the empty string")
    if index > 0:
        raise errors.invalid_argument(
            "step_index", f"is {index} without a sequence_id; steps on their own start at 0"
        )

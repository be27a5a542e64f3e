"""The Open Inference Protocol's tensors: names, types, shapes and elements, checked and read as rows.

Knows a model's manifest and the messages. Does not know sequences or parameters.
"""

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from streamcell.inference import open_inference_pb2 as pb

from service import errors
from service.arrays import Float32s, Int64s
from service.engine.engine import Engine
from service.errors import Reason, StreamcellError
from service.servicers import values

X, TIME, Y = "x", "time", "y"
FP32, INT64 = "FP32", "INT64"
_CONTENTS = {FP32: "fp32_contents", INT64: "int64_contents"}
_BYTES = {FP32: 4, INT64: 8}
_SHARED_MEMORY = "shared_memory_region"
_MAX_SHOWN = 8  # of a shape's dimensions, in a message

_Tensor = pb.ModelInferRequest.InferInputTensor


class GivenInput(NamedTuple):
    """An input as a request gives it."""

    tensor: _Tensor
    raw: bytes | None
    """The input's entry in raw_input_contents; None if the request has no such entries."""


class Rows(NamedTuple):
    """The steps of a request: one as bytes, or several as rows."""

    num_steps: int
    is_row: bool
    """Whether x was [1, F] and y is [1, O]; otherwise x was [1, T, F] and y is [1, T, O]."""
    row: bytes
    """A single step: F little-endian float32. Empty for several steps."""
    x: Float32s | None
    """Several steps, [T, F]. None for a single step."""
    times: Int64s | None
    """[T], as given."""


UNREAD = Rows(num_steps=1, is_row=False, row=b"", x=None, times=None)
"""Stands for the steps of a request until they are read."""


def read_rows(engine: Engine, message: pb.ModelInferRequest, max_steps: int) -> Rows:
    """Returns the steps that a request's inputs hold.

    Raises:
        StreamcellError: INVALID_ARGUMENT, which names the tensor and what was expected; TOO_MANY_STEPS.
    """
    if len(message.outputs):
        _check_outputs(message.outputs)
    row = _plain_row(engine, message)
    if row:
        return single_row(row)
    given = _inputs_by_name(engine, message)
    if X not in given:
        raise errors.invalid_argument(X, f"is not among the inputs; {_listed_inputs(engine)}")
    x = given[X]
    shape = list(x.tensor.shape)
    width = len(engine.manifest.inputs)
    if shape == [1, width]:
        num_steps = 1
    elif len(shape) == 3 and shape[0] == 1 and shape[1] >= 1 and shape[2] == width:
        num_steps = shape[1]
    else:
        raise _wrong_shape(X, shape, f"[1, {width}] for one step or [1, T, {width}] for T of them")
    if num_steps > max_steps:
        raise errors.refusal(Reason.TOO_MANY_STEPS, got=num_steps, max_message_steps=max_steps)
    times = _times(given[TIME], num_steps) if TIME in given else None
    if num_steps == 1:
        return Rows(1, len(shape) == 2, _row(engine, x), x=None, times=times)
    return Rows(num_steps, False, b"", x=_rows(engine, x, num_steps), times=times)


def single_row(row: bytes) -> Rows:
    """Returns the steps of a request that is one row in raw form, without a time."""
    return Rows(1, True, row, None, None)


def check_width(engine: Engine, rows: Rows) -> None:
    """Checks that an engine takes rows that were read for another version.

    Raises:
        StreamcellError: INVALID_ARGUMENT.
    """
    got, expected = len(rows.row) // 4 if rows.x is None else rows.x.shape[1], len(engine.manifest.inputs)
    if got != expected:
        version = f"{engine.name}/{engine.version}"
        raise errors.invalid_argument(
            X, f"has {got} values a step; its sequence is on {version}, which takes {expected}"
        )


def first_time_missing() -> StreamcellError:
    """Returns the error for a first step without a time, on a model that uses time."""
    return errors.invalid_argument(
        TIME,
        "this model uses time, so the first step of a sequence, and steps on their own, must give it: "
        "INT64, Unix ns",
    )


def inputs_of(engine: Engine) -> dict[str, tuple[str, int]]:
    """Returns the datatype of each of a model's inputs, and its number of elements in a step, in order."""
    inputs = {X: (FP32, len(engine.manifest.inputs))}
    return inputs | {TIME: (INT64, 1)} if engine.manifest.uses_time else inputs


def _listed_inputs(engine: Engine) -> str:
    listed = ", ".join(f"{name} ({kind})" for name, (kind, _) in inputs_of(engine).items())
    return f"{engine.name}/{engine.version} takes {listed}"


def _check_outputs(outputs: Iterable[pb.ModelInferRequest.InferRequestedOutputTensor]) -> None:
    """Checks that a request asks for no output but y, and for y as it is."""
    for output in outputs:
        if output.name != Y:
            raise errors.invalid_argument(
                "outputs", f"there is no output {errors.brief(output.name)}; the only one is {Y!r}"
            )
        for name in (_SHARED_MEMORY, "classification"):
            if name in output.parameters:
                raise errors.invalid_argument(Y, f"{name} is not offered; leave it out")


def _plain_row(engine: Engine, message: pb.ModelInferRequest) -> bytes:
    """Returns the row of a request that is one row in raw form and no more; empty for any other request.

    Nearly every request has just one row. The checks are those of the long way, at a third of the cost. A
    request that fails here takes the long way, which says what is wrong.
    """
    tensors, raws = message.inputs, message.raw_input_contents
    if len(tensors) != 1 or len(raws) != 1:
        return b""
    raw = raws[0]
    is_valid = (
        len(raw) == engine.row.size
        and tensors[0] == _row_tensor(len(raw) // 4)
        and math.isfinite(sum(engine.row.unpack(raw)))
    )
    return raw if is_valid else b""


@functools.lru_cache
def _row_tensor(width: int) -> _Tensor:
    """Returns the tensor of one row: to compare with it is a third of the cost of reading its fields."""
    return _Tensor(name=X, datatype=FP32, shape=[1, width])


def _inputs_by_name(engine: Engine, message: pb.ModelInferRequest) -> dict[str, GivenInput]:
    """Returns the inputs by name, each checked for its datatype and for contents in one place only."""
    tensors, raws = message.inputs, message.raw_input_contents
    is_raw = len(raws) > 0
    if is_raw and len(raws) != len(tensors):
        raise errors.invalid_argument(
            "raw_input_contents", f"{len(raws)} entries for {len(tensors)} inputs; one for each is expected"
        )
    known, found = inputs_of(engine), dict[str, GivenInput]()
    for number, tensor in enumerate(tensors):
        name = tensor.name
        if name not in known:
            raise errors.invalid_argument(
                "inputs", f"there is no input {errors.brief(name)}; {_listed_inputs(engine)}"
            )
        if name in found:
            raise errors.invalid_argument(name, "is given twice among the inputs; once is expected")
        _check_tensor(tensor, known[name][0], is_raw)
        found[name] = GivenInput(tensor, raws[number] if is_raw else None)
    return found


def _check_tensor(tensor: _Tensor, datatype: str, is_raw: bool) -> None:
    name = tensor.name
    if tensor.datatype != datatype:
        found = errors.brief(tensor.datatype)
        raise errors.invalid_argument(name, f"datatype is {found}; {datatype} is expected")
    if len(tensor.parameters) and _SHARED_MEMORY in tensor.parameters:
        raise errors.invalid_argument(name, "shared memory is not offered; send the contents")
    if is_raw:
        if tensor.HasField("contents") and tensor.contents.ByteSize():
            raise errors.invalid_argument(
                name, "contents are given twice, in contents and in raw_input_contents; one is expected"
            )
        return
    fields = [field.name for field, _ in tensor.contents.ListFields()]
    wanted = _CONTENTS[datatype]
    if fields != [wanted]:
        found = f"are in {', '.join(fields)}" if fields else "are not given"
        raise errors.invalid_argument(
            name, f"contents {found}; {datatype} is expected in {wanted} or in raw_input_contents"
        )


def _row(engine: Engine, x: GivenInput) -> bytes:
    """Returns the one step of x."""
    if x.raw is None:
        return values.row(engine, x.tensor.contents.fp32_contents)
    _check_size(X, FP32, len(x.raw), len(engine.manifest.inputs), x.tensor)
    if not math.isfinite(sum(engine.row.unpack(x.raw))):  # the same test as in values.row
        values.finite(engine, X, np.frombuffer(x.raw, "<f4")[None])
    return x.raw


def _rows(engine: Engine, x: GivenInput, num_steps: int) -> Float32s:
    """Returns the steps of x, [T, F]."""
    width = len(engine.manifest.inputs)
    if x.raw is None:
        listed = x.tensor.contents.fp32_contents
        _check_count(X, len(listed), num_steps * width, x.tensor)
        column = np.fromiter(listed, np.float32, len(listed))
    else:
        _check_size(X, FP32, len(x.raw), num_steps * width, x.tensor)
        column = np.frombuffer(x.raw, "<f4")
    return values.finite(engine, X, column.reshape(num_steps, width))


def _times(time: GivenInput, num_steps: int) -> Int64s | None:
    """Returns the times, [T]."""
    shape = list(time.tensor.shape)
    if shape not in ([1, num_steps], [1, num_steps, 1]):
        expected = f"[1, {num_steps}] or [1, {num_steps}, 1], a time for each step of x"
        raise _wrong_shape(TIME, shape, expected)
    if time.raw is None:
        listed = time.tensor.contents.int64_contents
        _check_count(TIME, len(listed), num_steps, time.tensor)
        return values.times(TIME, b"", listed, num_steps)
    _check_size(TIME, INT64, len(time.raw), num_steps, time.tensor)
    return values.times(TIME, time.raw, (), num_steps)


def _check_count(name: str, got: int, expected: int, tensor: _Tensor) -> None:
    if got != expected:
        raise errors.invalid_argument(
            name, f"{got} elements in contents; {expected} are expected for shape {list(tensor.shape)}"
        )


def _check_size(name: str, datatype: str, got: int, num_elements: int, tensor: _Tensor) -> None:
    expected = num_elements * _BYTES[datatype]
    if got != expected:
        message = f"{got} bytes in raw_input_contents; {expected} are expected for {datatype}"
        raise errors.invalid_argument(name, f"{message} of shape {list(tensor.shape)}")


def _wrong_shape(name: str, shape: list[int], expected: str) -> StreamcellError:
    shown = ", ".join(map(str, shape[:_MAX_SHOWN])) + (", …" if len(shape) > _MAX_SHOWN else "")
    return errors.invalid_argument(name, f"shape is [{shown}]; expected is {expected}")

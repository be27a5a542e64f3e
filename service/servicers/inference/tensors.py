"""The Open Inference Protocol's tensors: names, types, shapes and elements, checked and read as rows.

Knows a model's manifest and the messages; not sequences, parameters, nor what becomes of the rows.
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


class Given(NamedTuple):
    """An input as a request gives it; `raw` is its entry in raw_input_contents, None where there are none."""

    tensor: _Tensor
    raw: bytes | None


class Rows(NamedTuple):
    """The steps of a request: one as bytes, or several as rows."""

    num_steps: int
    is_row: bool
    """Whether x was [1, F]: y is then [1, O], else [1, T, O]."""
    row: bytes
    """Of a single step: F little-endian float32."""
    x: Float32s | None
    """Of several: [T, F]."""
    times: Int64s | None
    """[T], as given."""


UNREAD = Rows(1, False, b"", None, None)
"""In place of steps that are read later."""


def read(engine: Engine, request: pb.ModelInferRequest, max_steps: int) -> Rows:
    """Returns the steps that a request's inputs hold.

    Raises:
        StreamcellError: INVALID_ARGUMENT, which names the tensor and what was expected; TOO_MANY_STEPS.
    """
    if len(request.outputs):
        _check_outputs(request.outputs)
    row = _only_row(engine, request)
    if row:
        return one(row)
    given = _by_name(engine, request)
    if X not in given:
        raise errors.invalid_argument(X, f"is not among the inputs; {_takes(engine)}")
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
        return Rows(1, len(shape) == 2, _row(engine, x), None, times)
    return Rows(num_steps, False, b"", _rows(engine, x, num_steps), times)


def one(row: bytes) -> Rows:
    """Returns the steps of a request whose x is one row in raw form, without a time."""
    return Rows(1, True, row, None, None)


def check_width(engine: Engine, rows: Rows) -> None:
    """Checks that an engine takes rows that were read for another version.

    Raises:
        StreamcellError: INVALID_ARGUMENT.
    """
    got, takes = len(rows.row) // 4 if rows.x is None else rows.x.shape[1], len(engine.manifest.inputs)
    if got != takes:
        on = f"{engine.name}/{engine.version}"
        message = f"has {got} values a step; its sequence is on {on}, which takes {takes}"
        raise errors.invalid_argument(X, message)


def first_time_missing() -> StreamcellError:
    """Returns the error for steps that begin without a time, on a model that uses it."""
    return errors.invalid_argument(
        TIME,
        "this model uses time, so the first step of a sequence, and steps on their own, must give it: "
        "INT64, Unix ns",
    )


def takes(engine: Engine) -> dict[str, tuple[str, int]]:
    """Returns the type and the size of a step of each input that a model takes, in order."""
    inputs = {X: (FP32, len(engine.manifest.inputs))}
    return inputs | {TIME: (INT64, 1)} if engine.manifest.uses_time else inputs


def _takes(engine: Engine) -> str:
    listed = ", ".join(f"{name} ({kind})" for name, (kind, _) in takes(engine).items())
    return f"{engine.name}/{engine.version} takes {listed}"


def _check_outputs(outputs: Iterable[pb.ModelInferRequest.InferRequestedOutputTensor]) -> None:
    for output in outputs:
        if output.name != Y:
            raise errors.invalid_argument(
                "outputs", f"there is no output {errors.brief(output.name)}; the only one is {Y!r}"
            )
        for name in (_SHARED_MEMORY, "classification"):
            if name in output.parameters:
                raise errors.invalid_argument(Y, f"{name} is not offered; leave it out")


def _only_row(engine: Engine, request: pb.ModelInferRequest) -> bytes:
    """Returns what nearly every request holds, one row in raw form and no more; empty for any other.

    It checks all that the long way does, at a third of the cost, and leaves it to that to say what is wrong.
    """
    tensors, raws = request.inputs, request.raw_input_contents
    if len(tensors) != 1 or len(raws) != 1:
        return b""
    raw = raws[0]
    is_plain = (
        len(raw) == engine.row.size
        and tensors[0] == _plain(len(raw) // 4)
        and math.isfinite(sum(engine.row.unpack(raw)))
    )
    return raw if is_plain else b""


@functools.lru_cache
def _plain(width: int) -> _Tensor:
    """Returns what a row's tensor says, which to compare is a third of the cost of reading it."""
    return _Tensor(name=X, datatype=FP32, shape=[1, width])


def _by_name(engine: Engine, request: pb.ModelInferRequest) -> dict[str, Given]:
    """Returns the inputs by name, each of the right type and with its contents in one place."""
    tensors, raws = request.inputs, request.raw_input_contents
    is_raw = len(raws) > 0
    if is_raw and len(raws) != len(tensors):
        raise errors.invalid_argument(
            "raw_input_contents", f"{len(raws)} entries for {len(tensors)} inputs; one for each is expected"
        )
    known, found = takes(engine), dict[str, Given]()
    for at, tensor in enumerate(tensors):
        name = tensor.name
        if name not in known:
            raise errors.invalid_argument(
                "inputs", f"there is no input {errors.brief(name)}; {_takes(engine)}"
            )
        if name in found:
            raise errors.invalid_argument(name, "stands twice among the inputs; once is expected")
        _check_tensor(tensor, known[name][0], is_raw)
        found[name] = Given(tensor, raws[at] if is_raw else None)
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


def _row(engine: Engine, x: Given) -> bytes:
    """Returns the one step of x."""
    if x.raw is None:
        return values.row(engine, x.tensor.contents.fp32_contents)
    _check_size(X, FP32, len(x.raw), len(engine.manifest.inputs), x.tensor)
    if not math.isfinite(sum(engine.row.unpack(x.raw))):  # as values.row tells it
        values.finite(engine, X, np.frombuffer(x.raw, "<f4")[None])
    return x.raw


def _rows(engine: Engine, x: Given, num_steps: int) -> Float32s:
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


def _times(time: Given, num_steps: int) -> Int64s | None:
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

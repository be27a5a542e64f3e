"""Errors of the catalog's and the engine's in the words of the Open Inference Protocol."""

from service import errors
from service.errors import Reason, StreamcellError
from service.servicers.inference import tensors
from service.servicers.inference.parameters import Ask

_FIELDS = {"time_ns": tensors.TIME, "time_raw": tensors.TIME, "x_raw": tensors.X}
_BEGIN = "begin it with sequence_start"
_ABOUT_SEQUENCES = {
    Reason.SESSION_NOT_FOUND: f"is not live: {_BEGIN}",
    Reason.SESSION_EXPIRED: f"expired because it was idle: {_BEGIN}",
    Reason.SESSION_FENCED: "is another server's: go on there, or begin it anew here with sequence_start. One"
    " that this server has not lost to another is taken over by a request with its step_index",
}


def worded(error: StreamcellError, ask: Ask) -> StreamcellError:
    """Returns an error that a request is answered with in words that its caller knows."""
    about = _ABOUT_SEQUENCES.get(error.reason) if ask.session_id else None
    if about is not None:
        message = f"sequence {errors.brief(str(ask.sequence))} of {ask.model} {about}"
        return StreamcellError(error.reason, message, metadata=error.metadata)
    field = error.metadata.get("field", "")
    name = _FIELDS.get(field)
    if name is None:
        return error
    message = f"{name}: {error.message.removeprefix(f'{field}: ')}"
    return StreamcellError(error.reason, message, metadata={**error.metadata, "field": name})

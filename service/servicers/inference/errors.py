"""Errors of the catalog and the engine in the terms of the Open Inference Protocol."""

from service import errors
from service.errors import Reason, StreamcellError
from service.servicers.inference import tensors
from service.servicers.inference.parameters import RequestParameters

_FIELDS = {"time_ns": tensors.TIME, "time_raw": tensors.TIME, "x_raw": tensors.X}
_START = "begin it with sequence_start"
_OF_SEQUENCES = {
    Reason.SESSION_NOT_FOUND: f"is not live: {_START}",
    Reason.SESSION_EXPIRED: f"expired because it was idle: {_START}",
    Reason.SESSION_FENCED: "is another server's: go on there, or begin it anew here with sequence_start. If"
    " this server has not lost it to another server, a request with its step_index takes it over",
}


def in_protocol_terms(error: StreamcellError, parameters: RequestParameters) -> StreamcellError:
    """Returns a request's error in terms of sequences and tensors, not of sessions and their fields."""
    about = _OF_SEQUENCES.get(error.reason) if parameters.session_id else None
    if about is not None:
        message = f"sequence {errors.brief(str(parameters.sequence))} of {parameters.model} {about}"
        return StreamcellError(error.reason, message, metadata=error.metadata)
    field = error.metadata.get("field", "")
    name = _FIELDS.get(field)
    if name is None:
        return error
    message = f"{name}: {error.message.removeprefix(f'{field}: ')}"
    return StreamcellError(error.reason, message, metadata={**error.metadata, "field": name})

"""Faults of the server's own: the log gets the whole fault, the caller gets an id. Does not know calls."""

import uuid

from service import errors
from service.errors import Reason, StreamcellError
from service.telemetry import log


def report(exception: BaseException) -> StreamcellError:
    """Logs an unexpected exception with its traceback, and returns an error with the log entry's id."""
    error_id = uuid.uuid4().hex[:12]
    log.failure("fault", exception, error_id=error_id)
    return errors.refusal(Reason.INTERNAL, error_id=error_id)

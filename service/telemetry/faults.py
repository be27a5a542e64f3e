"""Faults of the server's own: the log gets all of it, the caller an id."""

from service import errors
from service.errors import StreamcellError
from service.telemetry import log


def report(exception: BaseException) -> StreamcellError:
    """Logs an unexpected exception with its traceback and returns what the caller is told of it."""
    error = errors.internal()
    log.failure("fault", exception, error_id=error.metadata["error_id"])
    return error

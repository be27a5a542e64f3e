"""The server's log: JSON lines on standard error, one for each change of the server's life, none per step.

Does not know what the events mean.
"""

import json
import logging
import sys
from typing import Any

_LOGGER = logging.getLogger("streamcell")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"event": record.getMessage()}
        line.update(getattr(record, "fields", {}))
        line["level"] = record.levelname.lower()
        line["time"] = self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z")
        if record.name != _LOGGER.name:
            line["logger"] = record.name
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up() -> None:
    """Sends all logging of the process, warnings included, to standard error as JSON lines."""
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(_JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[lines], force=True)
    logging.captureWarnings(capture=True)


def info(event: str, **fields: Any) -> None:
    """Logs a change of the server's life: start, ready, open, drain, stop."""
    _LOGGER.info(event, extra={"fields": fields})


def warning(event: str, **fields: Any) -> None:
    """Logs an event that the operators of the server should know of."""
    _LOGGER.warning(event, extra={"fields": fields})


def failure(event: str, exception: BaseException, **fields: Any) -> None:
    """Logs a fault of the server's own, with its traceback."""
    _LOGGER.error(event, extra={"fields": fields}, exc_info=exception)

"""The log, one JSON object a line; and faults, with an id that caller and log share."""

import io
import json
import logging
import sys
import warnings

import pytest

from service.errors import Reason
from service.telemetry import faults, log


@pytest.fixture
def lines(monkeypatch):
    """Sets the log up on a standard error of its own. Returns a function that reads the lines."""
    root = logging.getLogger()
    level, written = root.level, io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(root, "handlers", [])
    log.set_up()
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    logging.captureWarnings(capture=False)
    root.setLevel(level)


class TestLog:
    """One JSON object a line."""

    def test_an_event_is_one_line_of_json(self, lines):
        """Name, fields, level and time are in the line. The server's own logger is not named."""
        log.info("serving", listen="127.0.0.1:1", text="two\nlines")
        (line,) = lines()
        assert line.pop("time")
        assert line == {"event": "serving", "listen": "127.0.0.1:1", "text": "two\nlines", "level": "info"}

    def test_values_without_json_are_written_as_text(self, lines):
        """An event is logged even with a field of a type that JSON does not know."""
        log.warning("odd", value={1}.__class__)
        (line,) = lines()
        assert (line["value"], line["level"]) == ("<class 'set'>", "warning")

    def test_other_loggers_are_named(self, lines):
        """Lines of libraries have the same form, and the library's name."""
        logging.getLogger("some.library").warning("watch %s", "out")
        (line,) = lines()
        assert (line["event"], line["logger"]) == ("watch out", "some.library")

    def test_warnings_are_logged(self, lines):
        """A Python warning is a line of the log."""
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning("old ways", DeprecationWarning, "a.py", 1)
        (line,) = lines()
        assert line["logger"] == "py.warnings"
        assert "old ways" in line["event"]


class TestFaults:
    """The log gets the whole fault, the caller gets an id."""

    def test_a_fault_is_in_the_log_under_the_callers_id(self, lines):
        """The caller gets INTERNAL and an id. One line of the log has the same id and the traceback."""
        try:
            raise ZeroDivisionError("the sealed cause")
        except ZeroDivisionError as exception:
            error = faults.report(exception)
        (line,) = lines()
        assert error.reason is Reason.INTERNAL
        assert line["error_id"] == error.metadata["error_id"]
        assert "ZeroDivisionError: the sealed cause" in line["traceback"]
        assert "sealed" not in error.message + str(error.metadata)

    def test_faults_have_an_id_each(self):
        """Two faults have two ids; the caller gets an id in the message and in the metadata."""
        first, second = faults.report(ValueError()), faults.report(ValueError())
        assert first.metadata["error_id"] != second.metadata["error_id"]
        assert first.metadata["error_id"] in first.message

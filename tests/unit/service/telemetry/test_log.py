"""The log and faults: one JSON object a line, and a caller's id that the log has too."""

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
    """Sets the log up on a standard error of its own, and gives a reader of its lines."""
    root = logging.getLogger()
    level, written = root.level, io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(root, "handlers", [])
    log.set_up()
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    logging.captureWarnings(capture=False)
    root.setLevel(level)


def test_an_event_is_one_line_of_json(lines):
    """Name, fields, level and time are in the line; the server's own logger is not worth naming."""
    log.info("serving", listen="127.0.0.1:1", text="two\nlines")
    (line,) = lines()
    assert line.pop("time")
    assert line == {"event": "serving", "listen": "127.0.0.1:1", "text": "two\nlines", "level": "info"}


def test_values_without_json_are_written_as_text(lines):
    """A field that JSON does not know cannot keep an event out of the log."""
    log.warning("odd", value={1}.__class__)
    (line,) = lines()
    assert (line["value"], line["level"]) == ("<class 'set'>", "warning")


def test_other_loggers_are_named(lines):
    """Lines of libraries have the same form and say whose they are."""
    logging.getLogger("some.library").warning("watch %s", "out")
    (line,) = lines()
    assert (line["event"], line["logger"]) == ("watch out", "some.library")


def test_warnings_are_logged(lines):
    """A Python warning is a line like any other."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning("old ways", DeprecationWarning, "a.py", 1)
    (line,) = lines()
    assert line["logger"] == "py.warnings"
    assert "old ways" in line["event"]


def test_a_fault_is_in_the_log_under_the_callers_id(lines):
    """The caller gets INTERNAL and an id; the log's line has that id and the traceback, all in one line."""
    try:
        raise ZeroDivisionError("the sealed cause")
    except ZeroDivisionError as exception:
        error = faults.report(exception)
    (line,) = lines()
    assert error.reason is Reason.INTERNAL
    assert line["error_id"] == error.metadata["error_id"]
    assert "ZeroDivisionError: the sealed cause" in line["traceback"]
    assert "sealed" not in error.message + str(error.metadata)


def test_faults_have_an_id_each():
    """Two faults have two ids; the caller gets an id in the message and in the metadata."""
    first, second = faults.report(ValueError()), faults.report(ValueError())
    assert first.metadata["error_id"] != second.metadata["error_id"]
    assert first.metadata["error_id"] in first.message

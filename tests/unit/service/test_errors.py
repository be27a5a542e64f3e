"""The error table: complete, the same as in the proto, and messages of bounded size."""

import pathlib
import re

import pytest
from google.rpc import code_pb2

from service import errors
from service.errors import CODES, Code, Reason

PROTO = pathlib.Path(__file__).parents[3] / "protos" / "streamcell" / "v1" / "streamcell.proto"
# Answered by the health service, by channelz and by the Open Inference Protocol, which the proto has not.
OF_OTHER_SERVICES = {Reason.SERVICE_NOT_FOUND, Reason.CHANNELZ_NOT_FOUND, Reason.TIMED_OUT}


def proto_table() -> dict[str, str]:
    """Returns reason -> code as the proto's header comment lists them."""
    header = PROTO.read_text().split("Reasons and codes:")[1].split("CANCELLED and DEADLINE_EXCEEDED")[0]
    return dict(re.findall(r"^// {16}([A-Z_]+) +([A-Z_]+)", header, re.MULTILINE))


def test_every_reason_has_a_code():
    """No reason is without its canonical code, and none that does not exist has one."""
    assert set(CODES) == set(Reason)


def test_the_table_is_the_protos():
    """Reasons and codes are those that the API's own documentation promises."""
    ours = {reason.value: code.name for reason, code in CODES.items() if reason not in OF_OTHER_SERVICES}
    assert proto_table() == ours
    assert len(ours) == 20


def test_codes_are_numbered_as_googles():
    """Each code has the number that google.rpc.Code gives its name."""
    assert {code.name: int(code) for code in Code} == {
        code.name: code_pb2.Code.Value(code.name) for code in Code
    }


LONG = "ü" * 100_000


@pytest.mark.parametrize(
    "error",
    [
        errors.session_not_found(LONG),
        errors.session_expired(LONG),
        errors.session_exists(LONG),
        errors.model_not_found(LONG, "a, b"),
        errors.model_changed(LONG, LONG, "a/1"),
    ],
    ids=lambda error: error.reason,
)
def test_long_texts_of_callers_are_cut(error):
    """Statuses travel as headers: what a caller sent comes back cut to 128 characters."""
    assert len(error.message) < 500
    assert all(len(value) <= 128 for value in error.metadata.values())
    assert "…" in error.message


def test_texts_of_callers_are_quoted():
    """A caller's text cannot break a message into lines."""
    assert "\n" not in errors.session_not_found("a\nb").message
    assert errors.brief("x" * 128) == repr("x" * 128)
    assert len(errors.brief("x" * 129)) == 128 + len("…''")


@pytest.mark.parametrize(
    ("error", "reason", "metadata", "says"),
    [
        (errors.invalid_argument("x", "is odd"), Reason.INVALID_ARGUMENT, {"field": "x"}, "x: is odd"),
        (errors.step_gap(5, 9), Reason.STEP_GAP, {"expected_step_index": "5"}, "step 5 next"),
        (errors.step_conflict(3), Reason.STEP_CONFLICT, {"step_index": "3"}, "step_index 3"),
        (errors.step_forgotten(3, 9), Reason.STEP_FORGOTTEN, {"expected_step_index": "9"}, "step 9"),
        (errors.sessions_full(7), Reason.SESSIONS_FULL, {"max_resident_sessions": "7"}, "7 sessions"),
        (errors.too_many_steps(9, 8), Reason.TOO_MANY_STEPS, {"max_message_steps": "8"}, "the most is 8"),
        (errors.message_too_large(9, 8), Reason.MESSAGE_TOO_LARGE, {"max_message_bytes": "8"}, "9 bytes"),
        (
            errors.model_changed("s", "b", "a/1"),
            Reason.MODEL_CHANGED,
            {"session_id": "s", "model": "a/1"},
            "on a/1",
        ),
        (errors.model_not_found("b", "a"), Reason.MODEL_NOT_FOUND, {"model": "b"}, "served: a"),
        (errors.draining(), Reason.DRAINING, {}, "stopping"),
    ],
    ids=lambda value: value.reason if isinstance(value, errors.StreamcellError) else "",
)
def test_an_error_tells_people_and_machines(error, reason, metadata, says):
    """Each error has its reason, the facts that a program may use, and a sentence with what is wrong."""
    assert (error.reason, error.metadata) == (reason, metadata)
    assert says in error.message
    assert error.code is CODES[reason]
    assert str(error) == error.message


def test_only_overloaded_asks_to_wait():
    """OVERLOADED says when to come again; others say nothing of it."""
    assert errors.overloaded(8, 0.25).retry_delay_seconds == 0.25
    assert "0.25 s" in errors.overloaded(8, 0.25).message
    assert errors.sessions_full(1).retry_delay_seconds == 0.0


def test_internal_errors_have_an_id_each():
    """Two faults have two ids, told in message and metadata alike."""
    first, second = errors.internal(), errors.internal()
    assert first.metadata["error_id"] != second.metadata["error_id"]
    assert first.metadata["error_id"] in first.message

"""The status with which a call ends: code, message, details, and advice to clients that repeat calls."""

import dataclasses
import json

import grpc
import pytest
from grpc_status import rpc_status

from service import errors
from service.errors import Reason, StreamcellError
from service.rpc.statuses import status_of
from tests.fakes import Refusal


@dataclasses.dataclass
class EndedCall:
    """A call as grpc_status wants it."""

    status: object

    def trailing_metadata(self):
        """Returns the details."""
        return (("grpc-status-details-bin", self.status.details),)

    def code(self):
        """Returns gRPC's own code."""
        return next(code for code in grpc.StatusCode if code.value[0] == self.status.code)

    def details(self):
        """Returns the sentence."""
        return self.status.message


class TestDetails:
    """The details of a status, for machines."""

    def test_a_status_decodes_with_the_standard_library(self):
        """grpc_status reads code, sentence, reason, facts and delay out of the details."""
        status = status_of(errors.refusal(Reason.OVERLOADED, queued_steps=9, retry_delay_seconds=1.25))
        decoded = rpc_status.from_call(EndedCall(status))
        assert decoded.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert decoded.message == status.message
        assert Refusal.of(status).retry_delay_seconds == 1.25

    @pytest.mark.parametrize("reason", list(Reason))
    def test_every_reason_makes_a_status(self, reason):
        """The status of every reason has the reason's code, a domain and the facts."""
        found = Refusal.of(status_of(StreamcellError(reason, "why", metadata={"a": "b"})))
        assert found == Refusal(errors.REASONS[reason].code, reason, "why", {"a": "b"})

    def test_nothing_of_a_status_is_unprintable(self):
        """Statuses travel as headers: text of a caller is quoted in the message."""
        status = status_of(errors.refusal(Reason.SESSION_NOT_FOUND, session_id="a\r\nb\0"))
        assert status.message.isprintable()
        assert json.dumps(status.message)


class TestRetryPushback:
    """The trailer that gRPC clients obey when they repeat calls by themselves."""

    @pytest.mark.parametrize(
        ("error", "pushback_ms"),
        [
            (errors.refusal(Reason.DRAINING), -1),
            (errors.refusal(Reason.OVERLOADED, queued_steps=9, retry_delay_seconds=1.25), 1250),
            (errors.refusal(Reason.OVERLOADED, queued_steps=9, retry_delay_seconds=0.0001), 1),
            (errors.refusal(Reason.STEP_GAP, expected_step_index=1, got=2), None),
        ],
    )
    def test_a_status_says_when_to_repeat_the_call(self, error, pushback_ms):
        """Not here, after a delay, or nothing; a delay is never rounded down to none."""
        assert status_of(error).retry_pushback_ms == pushback_ms

"""Errors: every reason of the API has a class, from a status and from a stream's message alike."""

import pathlib
import re

import grpc
import pytest
import streamcell
from fake_streamcell import Fault, grpc_details
from google.rpc import code_pb2
from streamcell import errors
from streamcell.v1 import streamcell_pb2 as pb

PROTO = pathlib.Path(__file__).parents[3] / "protos/streamcell/v1/streamcell.proto"
REASONS = re.findall(r"^//  +([A-Z_]+) +([A-Z_]+)\b", PROTO.read_text(), re.MULTILINE)


def rpc_error(fault, domain="streamcell", raw=None, message=None):
    """The error that grpc.aio raises for a fault."""
    details = grpc_details(fault, domain).SerializeToString() if raw is None else raw
    return grpc.aio.AioRpcError(
        getattr(grpc.StatusCode, fault.code),
        grpc.aio.Metadata(),
        grpc.aio.Metadata(("grpc-status-details-bin", details)),
        fault.message if message is None else message,
    )


def plain_error(code, message="what happened"):
    """The error that grpc.aio raises for a status without details."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), message)


class TestReasons:
    """Every reason of the API has a class of its own."""

    def test_the_table_of_the_api_was_found(self):
        """The proto's table is what the next tests go by."""
        assert len(REASONS) == 24

    @pytest.mark.parametrize(("reason", "code"), REASONS)
    def test_each_reason_has_a_class_of_its_own(self, reason, code):
        """A status and a stream's message with the reason become the same class, with code and message."""
        from_status = errors.from_rpc_error(rpc_error(Fault(code, reason, "why", metadata={"field": "x"})))
        number = code_pb2.Code.Value(code)
        message = pb.StreamError(code=number, reason=reason, message="why", metadata={"field": "x"})
        from_stream = errors.from_stream_error(message)
        assert type(from_status) is type(from_stream)
        assert type(from_status) not in errors._BY_CODE.values() or type(from_status).__name__ in (
            "InvalidArgument", "StepForgotten", "Fenced", "NotImplementedByServer", "ServerInternal"
        )  # fmt: skip
        for error in (from_status, from_stream):
            assert error.code is getattr(grpc.StatusCode, code)
            assert (error.reason, error.message, str(error)) == (reason, "why", "why")
            assert error.metadata == {"field": "x"}
        assert type(from_status).__name__ in errors.__doc__

    def test_no_two_reasons_share_a_class(self):
        """Callers can tell every reason by its class."""
        kinds = [type(errors.from_rpc_error(rpc_error(Fault(code, reason)))) for reason, code in REASONS]
        assert len(set(kinds)) == len(REASONS)

    def test_facts_for_machines_are_properties(self):
        """The field, the expected index, the delay and the error's id are read from the details."""
        gap = errors.from_rpc_error(
            rpc_error(Fault("FAILED_PRECONDITION", "STEP_GAP", metadata={"expected_step_index": "7"}))
        )
        assert gap.expected_step_index == 7
        assert errors.StepGap("no index").expected_step_index is None
        busy = errors.from_rpc_error(rpc_error(Fault("RESOURCE_EXHAUSTED", "OVERLOADED", retry_delay=1.25)))
        assert busy.retry_delay_seconds == 1.25
        busy = errors.from_stream_error(pb.StreamError(reason="OVERLOADED", code=8, retry_delay_seconds=0.5))
        assert busy.retry_delay_seconds == 0.5
        broken = errors.from_rpc_error(rpc_error(Fault("INTERNAL", "INTERNAL", metadata={"error_id": "e1"})))
        assert broken.error_id == "e1"

    @pytest.mark.parametrize(
        ("code", "kind"),
        [
            ("NOT_FOUND", errors.NotFound),
            ("ALREADY_EXISTS", errors.AlreadyExists),
            ("RESOURCE_EXHAUSTED", errors.ResourceExhausted),
            ("UNAVAILABLE", errors.Unavailable),
            ("DATA_LOSS", errors.StreamcellError),
        ],
    )
    def test_an_unknown_reason_becomes_the_class_of_its_code(self, code, kind):
        """A server newer than this library is understood by its code."""
        error = errors.from_rpc_error(rpc_error(Fault(code, "NEW_REASON", "why")))
        assert type(error) is kind
        assert error.reason == "NEW_REASON"
        message = pb.StreamError(code=code_pb2.Code.Value(code), reason="NEW_REASON")
        assert type(errors.from_stream_error(message)) is kind
        assert type(errors.from_stream_error(pb.StreamError(code=99))) is errors.StreamcellError


class TestPlainStatus:
    """A status without a reason of the API is understood by its code."""

    @pytest.mark.parametrize(
        ("code", "message", "kind"),
        [
            ("UNAVAILABLE", "connection refused", errors.ConnectionLost),
            ("CANCELLED", "cut by the server", errors.ConnectionLost),
            ("INTERNAL", "Received RST_STREAM with error code 2", errors.ConnectionLost),
            ("INTERNAL", "Internal error from Core", errors.ConnectionLost),
            ("UNKNOWN", "Stream removed", errors.ConnectionLost),
            ("INTERNAL", "something else", errors.ServerInternal),
            ("DEADLINE_EXCEEDED", "Deadline Exceeded", errors.DeadlineExceeded),
            ("RESOURCE_EXHAUSTED", "Received message larger than max (5 vs. 4)", errors.MessageTooLarge),
            ("UNAUTHENTICATED", "who?", errors.AccessDenied),
            ("PERMISSION_DENIED", "no", errors.AccessDenied),
            ("UNIMPLEMENTED", "no method", errors.NotImplementedByServer),
            ("UNKNOWN", "what", errors.StreamcellError),
        ],
    )
    def test_a_plain_status_is_understood_by_its_code(self, code, message, kind):
        """Statuses that gRPC or a proxy made have no reason; broken connections are told apart."""
        error = errors.from_rpc_error(plain_error(getattr(grpc.StatusCode, code), message))
        assert type(error) is kind
        assert (error.message, error.reason) == (message, "")

    def test_foreign_or_broken_details_are_ignored(self):
        """Another domain's reason, broken bytes and a status that contradicts itself are no details."""
        fault = Fault("NOT_FOUND", "SESSION_NOT_FOUND", "why")
        for error in (
            rpc_error(fault, domain="elsewhere"),
            rpc_error(fault, raw=b"\xff\xff"),
            rpc_error(fault, message="another message"),
        ):
            assert type(errors.from_rpc_error(error)) is errors.NotFound


class TestTree:
    """The classes as callers see them."""

    def test_wrong_arguments_are_value_errors_too(self):
        """Code that catches ValueError or RuntimeError sees the library's own kinds of them."""
        error = errors.invalid("time", "is wrong")
        assert isinstance(error, ValueError)
        assert (error.field, str(error)) == ("time", "time: is wrong")
        assert issubclass(streamcell.NotOpen, RuntimeError)

    def test_every_public_error_is_in_the_tree_of_the_docstring(self):
        """The docstring is the documentation of the tree, and leaves nothing out."""
        kinds = [
            kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)
        ]
        for kind in kinds:
            if issubclass(kind, errors.StreamcellError):
                assert re.search(rf"\b{kind.__name__}\b", errors.__doc__), kind
                assert getattr(streamcell, kind.__name__) is kind

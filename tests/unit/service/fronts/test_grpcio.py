"""The grpcio front's own business: which lines of the library are passed on to the log."""

import logging

import pytest
from grpc._cython import cygrpc

from service.fronts.grpcio import GrpcioFront
from tests.integration.conftest import settings
from tests.integration.echo_service import router


@pytest.mark.parametrize(
    ("error", "is_logged"), [(cygrpc.ExecuteBatchError("send", ()), False), (ValueError("a fault"), True)]
)
async def test_an_answer_to_an_ended_call_is_no_line_in_the_log(caplog, error, is_logged):
    """Any other fault in the library's part of a call is."""
    given = settings(front="grpcio")
    GrpcioFront(router(given), given)
    try:
        raise error
    except Exception:
        logging.getLogger("grpc._cython.cygrpc").exception("raised by servicer method")
    assert bool(caplog.records) is is_logged

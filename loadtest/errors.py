"""What ends a load test before it measures, and the reason of a call that failed.

Knows gRPC's error, not what the calls were for.
"""

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status


class LoadtestError(Exception):
    """The test cannot run; the message is one line that says why."""


class OptionError(LoadtestError):
    """An option is wrong; the message begins with its name."""


def reason_of(error: grpc.aio.AioRpcError) -> tuple[str, bool]:
    """Returns why a call failed, and whether it was the server's own word: a reason of its API.

    Without one (no connection, a deadline, a proxy's refusal) it is the name of gRPC's status.
    """
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it reads what both kinds of call have
    for detail in status.details if status is not None else ():
        info = ErrorInfo()
        if detail.Unpack(info):
            return info.reason, True
    return error.code().name, False


def one_line(error: grpc.aio.AioRpcError) -> str:
    """Returns a failed call's message on one line, with its reason."""
    text = " ".join((error.details() or "").split())
    return f"{reason_of(error)[0]}: {text}" if text else reason_of(error)[0]

"""The errors of a load test, and the reason of a call that failed.

Knows gRPC's error, not what the calls were for.
"""

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status


class LoadtestError(Exception):
    """The test cannot run. The message is one line that says why."""


class OptionError(LoadtestError):
    """An option is wrong. The message begins with its name."""


def reason_of(error: grpc.aio.AioRpcError) -> tuple[str, bool]:
    """Returns why a call failed, and whether the server itself gave the reason.

    Without a reason of the server's API (no connection, a deadline, a proxy's refusal) the name of gRPC's
    status stands for it.
    """
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it reads only what both kinds of call have
    for detail in status.details if status is not None else ():
        info = ErrorInfo()
        if detail.Unpack(info):
            return info.reason, True
    return error.code().name, False


def one_line(error: grpc.aio.AioRpcError) -> str:
    """Returns a failed call's message on one line, with its reason."""
    text = " ".join((error.details() or "").split())
    return f"{reason_of(error)[0]}: {text}" if text else reason_of(error)[0]

"""The standard service that lists connections and their calls (grpc.channelz.v1).

Answers come from grpcio, which keeps the counts. Does not know sessions or models.
"""

from typing import Any

from grpc_channelz.v1 import channelz_pb2 as pb
from grpc_channelz.v1.channelz import ChannelzServicer  # type: ignore[attr-defined]  # its stub lacks it

from service import errors
from service.errors import Reason
from service.rpc.methods import Call, Streaming, Unary

_DESCRIPTOR = pb.DESCRIPTOR.services_by_name["Channelz"]
SERVICE = _DESCRIPTOR.full_name


def methods() -> list[Unary[Any] | Streaming]:
    """Returns the service's methods."""
    return [_method(each.name, getattr(pb, each.input_type.name)) for each in _DESCRIPTOR.methods]


def _method(name: str, request_type: type[Any]) -> Unary[Any]:
    query = getattr(ChannelzServicer, name)

    async def answer(request: Any, call: Call) -> Any:
        return query(request, _Context())

    return Unary(f"/{SERVICE}/{name}", request_type, answer, is_work=False)


class _Context:
    """Stands in for a call's context, by which grpcio's servicer reports that it found nothing."""

    def set_code(self, code: Any) -> None:
        """Ignores the code: it follows from the reason that `set_details` raises."""

    def set_details(self, details: str) -> None:
        """Ends the call.

        Raises:
            StreamcellError: CHANNELZ_NOT_FOUND.
        """
        raise errors.refusal(Reason.CHANNELZ_NOT_FOUND, problem=details)

"""The standard service that tells of connections and calls (grpc.channelz.v1), as grpcio counts them."""

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
    ask = getattr(ChannelzServicer, name)

    async def answer(request: Any, call: Call) -> Any:
        return ask(request, _Context())

    return Unary(f"/{SERVICE}/{name}", request_type, answer, is_work=False)


class _Context:
    """What the servicer takes for a call's context: it says there that it found nothing."""

    def set_code(self, code: Any) -> None:
        """Takes the code, which the reason gives."""

    def set_details(self, details: str) -> None:
        """Ends the call."""
        raise errors.refusal(Reason.CHANNELZ_NOT_FOUND, problem=details)

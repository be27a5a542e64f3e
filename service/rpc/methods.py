"""Methods without a transport: a path, and a behaviour over messages.

A unary behaviour is a coroutine. A streaming method opens a conversation for each client. Does not know which
methods a server has, nor any server library.
"""

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from service import errors
from service.accounts import Account, number_of
from service.rpc.stream import Conversation, Stream

Request = TypeVar("Request", bound=Message)


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """What a behaviour may know of the caller; `principal` is empty where callers need not show it."""

    principal: str = ""
    account: Account | None = None
    """What the principal uses of the server; None where callers have no principal."""

    @property
    def account_number(self) -> int:
        """The number of the principal's account."""
        return number_of(self.principal)


ANONYMOUS = Call()


def parse(request_type: type[Request], raw: bytes) -> Request:
    """Returns the message that `raw` encodes.

    Raises:
        StreamcellError: INVALID_ARGUMENT, `raw` does not encode a message of this type.
    """
    try:
        return request_type.FromString(raw)
    except DecodeError:
        name = request_type.DESCRIPTOR.full_name
        raise errors.invalid_argument("message", f"not a {name}: its bytes cannot be parsed") from None


class Unary(Generic[Request]):
    """A method with one request and one response.

    Args:
        is_work: whether a server that drains refuses the method. Methods that report on the server itself are
            no work: the server answers them until its end.
        is_public: whether a caller need not show who it is, as whoever polls a server's health cannot.
    """

    def __init__(
        self,
        path: str,
        request_type: type[Request],
        behaviour: Callable[[Request, Call], Awaitable[Message]],
        *,
        is_work: bool = True,
        is_public: bool = False,
    ) -> None:
        self.path = path
        self.is_work = is_work
        self.is_public = is_public
        self._request_type = request_type
        self._behaviour = behaviour

    async def answer(self, raw: bytes, call: Call) -> bytes:
        """Returns the response's bytes for a request's bytes. Raises whatever the behaviour raises."""
        return (await self._behaviour(parse(self._request_type, raw), call)).SerializeToString()


@dataclasses.dataclass(frozen=True, slots=True)
class Streaming:
    """A method whose client and server both stream; `open` begins the method's behaviour for one client."""

    path: str
    open: Callable[[Stream, Call], Conversation]
    is_public: bool = False

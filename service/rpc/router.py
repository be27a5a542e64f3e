"""Remote calls without a transport: methods as paths and behaviours over bytes, and streams.

A front (layer 5) carries bytes between clients and this module; servicers (layer 4) say what a method does.
A unary behaviour is a coroutine. A stream's behaviour is pushed to, message by message, and answers by
`Stream.send` whenever it is ready, so that neither side waits for the other's pace; what is received and not
yet answered is bounded. Does not know the engine nor any server library.
"""

import dataclasses
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

from service import errors
from service.errors import Reason, StreamcellError
from service.rpc.statuses import RefusedError, Status, status_of
from service.telemetry import faults

Request = TypeVar("Request", bound=Message)
CountError = Callable[[str, StreamcellError], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """What a behaviour may know of the caller; `principal` is empty for callers without a certificate."""

    principal: str = ""


def parse(request_type: type[Request], raw: bytes) -> Request:
    """Returns the message in `raw`.

    Raises:
        StreamcellError: INVALID_ARGUMENT, it is not one.
    """
    try:
        return request_type.FromString(raw)
    except DecodeError:
        name = request_type.DESCRIPTOR.full_name
        raise errors.invalid_argument("message", f"not a {name}: its bytes cannot be parsed") from None


class Unary(Generic[Request]):
    """A method with one request and one response.

    Args:
        is_work: whether a server on its way out refuses it; what tells of the server is answered to the end.
    """

    def __init__(
        self,
        path: str,
        request_type: type[Request],
        behaviour: Callable[[Request, Call], Awaitable[Message]],
        *,
        is_work: bool = True,
    ) -> None:
        self.path = path
        self.is_work = is_work
        self._request_type = request_type
        self._behaviour = behaviour

    async def answer(self, raw: bytes, call: Call) -> bytes:
        """Returns the response's bytes to a request's. Raises whatever the behaviour raises."""
        return (await self._behaviour(parse(self._request_type, raw), call)).SerializeToString()


class Conversation(Protocol):
    """A stream's behaviour."""

    def receive(self, raw: bytes) -> None:
        """Takes the client's next message. A StreamcellError raised ends the stream with it."""

    def stop(self, error: StreamcellError | None) -> None:
        """Takes no more messages: ends the stream, with `error` if any, once everything asked is answered."""

    def cancel(self) -> None:
        """The client is gone: withdraws what has not begun. Nothing can be sent any more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Streaming:
    """A method whose client and server both stream; `open` begins its behaviour for one client."""

    path: str
    open: Callable[["Stream", Call], Conversation]


class Stream:
    """One client's stream, between the front that carries it and the behaviour that answers.

    The front calls `receive`, `half_close` and `cancel`, sends what `take` returns, and ends the call with
    `status` when the stream `is_over`. The behaviour calls `send` and `end`. Whenever one of them did what
    the front may want to act on, `on_change` is called: a message to send, room to read on, the end.
    """

    def __init__(
        self, path: str, max_unanswered: int, max_message_bytes: int, count_error: CountError
    ) -> None:
        self.path = path
        self.status: Status | None = None
        self.conversation: Conversation | None = None
        self.on_change: Callable[[], None] = _ignore
        self._max_unanswered = max_unanswered
        self._max_message_bytes = max_message_bytes
        self._count_error = count_error
        self._outgoing: deque[bytes] = deque()
        self._num_unanswered = 0
        self._is_ended = False
        self._is_paused = False

    # -- For fronts --------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether the front must not read on: paused, or too much is unanswered."""
        return (self._is_paused or self._num_unanswered >= self._max_unanswered) and not self._is_ended

    @property
    def is_over(self) -> bool:
        """Whether the call is to end with `status`, all that was to be sent being taken."""
        return self._is_ended and not self._outgoing

    def receive(self, raw: bytes) -> None:
        """Hands a message of the client's to the behaviour."""
        if self._is_ended or self.conversation is None:
            return
        self._num_unanswered += 1
        self.guard(_receive, self.conversation, raw, self._max_message_bytes)

    def half_close(self) -> None:
        """The client will send no more."""
        if self.conversation is not None:
            self.conversation.stop(None)

    def cancel(self) -> None:
        """The call is over, whatever ended it."""
        self._is_ended = True
        if self.conversation is not None:
            self.conversation.cancel()
        self.on_change()

    def take(self) -> bytes | None:
        """Returns the next message to send, None while there is none. It counts as answered."""
        if not self._outgoing:
            return None
        self._num_unanswered -= 1
        return self._outgoing.popleft()

    # -- For behaviours ----------------------------------------------------------------------------

    def send(self, raw: bytes) -> None:
        """Sends a message, soon."""
        self._outgoing.append(raw)
        self.on_change()

    def guard(self, function: Callable[..., None], *arguments: object) -> None:
        """Calls a function; what it raises ends the stream."""
        try:
            function(*arguments)
        except StreamcellError as error:
            self._break_off(error)
        except Exception as exception:
            self._break_off(faults.report(exception))

    def _break_off(self, error: StreamcellError) -> None:
        if self.conversation is not None:
            self.conversation.cancel()
        self.end(error)

    def pause(self) -> None:
        """Has the front read no further messages; what it has read is received still."""
        self._is_paused = True

    def resume(self) -> None:
        """Ends a pause."""
        self._is_paused = False
        self.on_change()

    def end(self, error: StreamcellError | None = None) -> None:
        """Ends the call after what was sent: with OK, or with an error."""
        if self._is_ended:
            return
        self._is_ended = True
        if error is not None:
            self.status = status_of(error)
            self.count(error)
        self.on_change()

    def count(self, error: StreamcellError) -> None:
        """Counts an error that is answered within the stream."""
        self._count_error(self.path, error)


def _ignore() -> None:
    pass


def _receive(conversation: Conversation, raw: bytes, max_bytes: int) -> None:
    _check_size(raw, max_bytes)
    conversation.receive(raw)


def _check_size(raw: bytes, most: int) -> None:
    if len(raw) > most:
        raise errors.refusal(Reason.MESSAGE_TOO_LARGE, got_bytes=len(raw), max_message_bytes=most)


class Router:
    """All methods of a server, by path, with what is common to them: size bound, errors, open streams.

    Args:
        methods: what is served.
        max_message_bytes: the largest request.
        max_stream_messages: messages of one stream that may be unanswered.
        count_error: told the path and error of each call that ends with one.
        count_streams: told how many streams are open.
    """

    def __init__(
        self,
        methods: "Iterable[Unary[Message] | Streaming]",
        max_message_bytes: int,
        max_stream_messages: int,
        count_error: CountError,
        count_streams: Callable[[int], None],
    ) -> None:
        self.methods: Mapping[str, Unary[Message] | Streaming] = {method.path: method for method in methods}
        self._max_message_bytes = max_message_bytes
        self._max_stream_messages = max_stream_messages
        self._count_error = count_error
        self._count_streams = count_streams
        self._streams: set[Stream] = set()
        self._is_draining = False

    def admit(self, method: "Unary[Message]") -> None:
        """Lets a unary call begin. `answer` asks too, for fronts that cannot before they have the request.

        Raises:
            RefusedError: DRAINING, it is work for a server on its way out.
        """
        if self._is_draining and method.is_work:
            raise self.refuse(method.path, errors.refusal(Reason.DRAINING))

    async def answer(self, method: "Unary[Message]", raw: bytes, call: Call) -> bytes:
        """Returns a unary response.

        Raises:
            RefusedError: the call ends with an error.
        """
        self.admit(method)
        try:
            self.check_size(raw)
            return await method.answer(raw, call)
        except StreamcellError as error:
            raise self.refuse(method.path, error) from None
        except Exception as exception:
            raise self.refuse(method.path, faults.report(exception)) from None

    def check_size(self, raw: bytes) -> None:
        """Checks a request's size, in whatever form it came.

        Raises:
            StreamcellError: RESOURCE_EXHAUSTED, it is too large.
        """
        _check_size(raw, self._max_message_bytes)

    def open(self, method: Streaming, call: Call) -> Stream:
        """Begins a stream (in a drain it ends at once); the front must call `close` when the call is over."""
        stream = Stream(method.path, self._max_stream_messages, self._max_message_bytes, self._count_error)
        stream.conversation = method.open(stream, call)
        self._streams.add(stream)
        self._count_streams(len(self._streams))
        if self._is_draining:
            stream.conversation.stop(errors.refusal(Reason.DRAINING))
        return stream

    def close(self, stream: Stream) -> None:
        """Ends a stream's life, whatever ended the call."""
        stream.cancel()
        self._streams.discard(stream)
        self._count_streams(len(self._streams))

    def drain(self) -> None:
        """Refuses new work and ends every stream, once what it was asked is answered, with DRAINING."""
        self._is_draining = True
        for stream in list(self._streams):
            if stream.conversation is not None:
                stream.conversation.stop(errors.refusal(Reason.DRAINING))

    def refuse(self, path: str, error: StreamcellError) -> RefusedError:
        """Counts an error that ends a call, and returns that end."""
        self._count_error(path, error)
        return RefusedError(status_of(error))

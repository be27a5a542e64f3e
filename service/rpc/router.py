"""All methods of a server by path, and what they have in common: bounds, errors, open streams, drain.

A front moves bytes between clients and this module; servicers say what a method does. Does not know the
engine nor any server library.
"""

from collections.abc import Callable, Iterable, Mapping

from google.protobuf.message import Message

from service import errors
from service.accounts import Account
from service.config import LARGEST
from service.errors import Reason, StreamcellError
from service.rpc.limits import check_message_size
from service.rpc.methods import ANONYMOUS, Call, Streaming, Unary
from service.rpc.request_bytes import LARGE_BYTES, RequestBytes
from service.rpc.statuses import RefusedError, status_of
from service.rpc.stream import CountError, Stream
from service.telemetry import faults

_RESERVED_CALLS = 64  # above the bound, for questions about the server itself: health, above all
_RETRY_SECONDS = 1.0  # after which a client may find room for its call

CallerOf = Callable[[bytes | None, bytes | None], Call]
"""Returns who calls, for a certificate in PEM and an `authorization` header; may raise StreamcellError."""


class Router:
    """The methods of a server.

    Args:
        methods: the methods, unary and streaming.
        max_message_bytes: the largest request.
        max_stream_messages: the most messages of one stream that may lack an answer.
        count_error: called with the path and the error of each call that ends with one.
        count_streams: called with the number of open streams when it changes.
        caller_of: returns who calls; None where callers need not show it.
        max_active_calls: the most calls under way on the front.
        request_bytes: where large requests without an answer are counted.
    """

    def __init__(
        self,
        methods: "Iterable[Unary[Message] | Streaming]",
        *,
        max_message_bytes: int,
        max_stream_messages: int,
        count_error: CountError,
        count_streams: Callable[[int], None],
        caller_of: CallerOf | None = None,
        max_active_calls: int = LARGEST,
        request_bytes: RequestBytes | None = None,
    ) -> None:
        self.methods: Mapping[str, Unary[Message] | Streaming] = {method.path: method for method in methods}
        self._max_message_bytes = max_message_bytes
        self._max_stream_messages = max_stream_messages
        self._count_error = count_error
        self._count_streams = count_streams
        self._caller_of = caller_of
        self._max_active_calls = max_active_calls
        self.request_bytes = request_bytes or RequestBytes(LARGEST)
        self._streams: dict[Stream, Account | None] = {}  # with who counts each; in the order of opening
        self._is_draining = False

    @property
    def asks_who_calls(self) -> bool:
        """Whether callers must show who they are."""
        return self._caller_of is not None

    def caller(
        self, method: "Unary[Message] | Streaming", certificate: bytes | None, authorization: bytes | None
    ) -> Call:
        """Returns who calls a method. A public method's caller is nobody, whatever it shows.

        Args:
            method: the method.
            certificate: the client's certificate in PEM; None without one.
            authorization: the value of the header `authorization`; None without one.

        Raises:
            RefusedError: UNAUTHENTICATED, the caller does not show who it is.
        """
        if self._caller_of is None or method.is_public:
            return ANONYMOUS
        try:
            return self._caller_of(certificate, authorization)
        except StreamcellError as error:
            raise self.refuse(method.path, error) from None

    def admit(self, method: "Unary[Message]") -> None:
        """Checks that a unary call may begin, for fronts that want to know before they have the request.

        Raises:
            RefusedError: DRAINING, the method is work and the server drains.
        """
        if self._is_draining and method.is_work:
            raise self.refuse(method.path, errors.refusal(Reason.DRAINING))

    def admit_call(self, method: "Unary[Message] | Streaming", num_active: int) -> None:
        """Checks that a front may begin a call while so many are active.

        Raises:
            RefusedError: OVERLOADED, as many calls are active as may be.
        """
        if num_active < self._max_active_calls:
            return
        is_work = isinstance(method, Streaming) or method.is_work
        if is_work or num_active >= self._max_active_calls + _RESERVED_CALLS:
            error = errors.refusal(
                Reason.OVERLOADED, case="calls", num_calls=num_active, retry_delay_seconds=_RETRY_SECONDS
            )
            raise self.refuse(method.path, error)

    def give_way(self, path: str) -> RefusedError:
        """Returns the refusal of a call whose message has arrived in part, as others' bytes need the room."""
        error = errors.refusal(Reason.OVERLOADED, case="bytes", retry_delay_seconds=_RETRY_SECONDS)
        return self.refuse(path, error)

    async def answer(self, method: "Unary[Message]", raw: bytes, call: Call) -> bytes:
        """Returns the response's bytes for a unary request, if the call may begin.

        Raises:
            RefusedError: the call ends with an error.
        """
        self.admit(method)
        try:
            self.check_size(raw)
            if call.account is not None and method.is_work:
                call.account.check()
                call.account.take_message(len(raw))
            if len(raw) < LARGE_BYTES:
                return await method.answer(raw, call)
            with self.request_bytes.held(len(raw)):
                return await method.answer(raw, call)
        except StreamcellError as error:
            raise self.refuse(method.path, error) from None
        except Exception as exception:
            raise self.refuse(method.path, faults.report(exception)) from None

    def check_size(self, raw: bytes) -> None:
        """Checks the size of a request, be it encoded as protobuf or as JSON.

        Raises:
            StreamcellError: RESOURCE_EXHAUSTED, the request is too large.
        """
        check_message_size(raw, self._max_message_bytes)

    def open(self, method: Streaming, call: Call) -> Stream:
        """Begins a stream, which ends at once if the server drains.

        The front must call `close` when the call is over.
        """
        stream = Stream(
            method.path,
            max_unanswered=self._max_stream_messages,
            max_message_bytes=self._max_message_bytes,
            count_error=self._count_error,
            account=call.account,
            request_bytes=self.request_bytes,
        )
        stream.conversation = method.open(stream, call)
        excess = None if call.account is None else call.account.open_stream()
        self._streams[stream] = None if excess else call.account
        self._count_streams(len(self._streams))
        if excess is not None:
            stream.conversation.stop(excess)
        elif self._is_draining:
            stream.conversation.stop(errors.refusal(Reason.DRAINING))
        return stream

    def close(self, stream: Stream) -> None:
        """Cancels a stream, if it has not ended, and forgets it."""
        stream.cancel()
        account = self._streams.pop(stream, None)
        if account is not None:
            account.close_stream()
        self._count_streams(len(self._streams))

    def drain(self) -> None:
        """Refuses new work, and ends every stream with DRAINING once every request in it is answered."""
        self._is_draining = True
        for stream in list(self._streams):
            if stream.conversation is not None:
                stream.conversation.stop(errors.refusal(Reason.DRAINING))

    def refuse(self, path: str, error: StreamcellError) -> RefusedError:
        """Counts an error that ends a call, and returns the exception that says how the call ends."""
        self._count_error(path, error)
        return RefusedError(status_of(error))

"""A client's stream without a transport, between the front that moves its bytes and its behaviour.

Owns a stream's outgoing messages, its end, and the bounds on messages without an answer and on their bytes.
Does not know which methods there are, nor any server library.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

from service.accounts import Account
from service.errors import StreamcellError
from service.rpc.limits import HARD_LIMIT_FACTOR, check_message_size
from service.rpc.request_bytes import LARGE_BYTES, LargeMessages, RequestBytes
from service.rpc.statuses import Status, status_of
from service.telemetry import faults

CountError = Callable[[str, StreamcellError], None]


class Conversation(Protocol):
    """A stream's behaviour."""

    def receive(self, raw: bytes) -> None:
        """Takes the client's next message. A StreamcellError raised here ends the stream with it."""

    def stop(self, error: StreamcellError | None) -> None:
        """Takes no more messages: ends the stream, with `error` if any, once every request is answered."""

    def cancel(self) -> None:
        """Withdraws work that has not begun. The client is gone, so nothing can be sent any more."""


class Stream:
    """One client's stream.

    The front calls `receive`, `half_close` and `cancel`, sends the messages that `take` returns, and ends the
    call with `status` when the stream `is_over`. The behaviour calls `send` and `end`. Neither waits for the
    other: `on_change` is called when there is a message to send, room to read on, or the end.

    Args:
        path: the method's path.
        max_unanswered: the most messages that may be received without an answer.
        max_message_bytes: the largest message of the client. The front stops reading while large messages of
            four times as many bytes lack an answer.
        count_error: called with the path and each error that is answered.
        request_bytes: where large messages without an answer are counted.
        account: counts the client's messages; the stream is full while the account owes something.
    """

    def __init__(
        self,
        path: str,
        *,
        max_unanswered: int,
        max_message_bytes: int,
        count_error: CountError,
        request_bytes: RequestBytes,
        account: Account | None = None,
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
        self._num_received = 0
        self._num_sent = 0
        self._large = LargeMessages(request_bytes)
        self._is_ended = False
        self._is_paused = False
        self._account = account
        self._waits_until_paid = False

    # -- For fronts --------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether the front must stop reading.

        The stream is paused, too much of it lacks an answer, or the client's account owes something.
        """
        return not self._is_ended and (
            self._is_paused
            or self._num_unanswered >= self._max_unanswered
            or self._large.num_bytes >= HARD_LIMIT_FACTOR * self._max_message_bytes
            or (self._account is not None and self._owes(self._account))
        )

    @property
    def is_over(self) -> bool:
        """Whether the front should end the call with `status`, as the stream has ended and sent all."""
        return self._is_ended and not self._outgoing

    def receive(self, raw: bytes) -> None:
        """Passes a message of the client to the behaviour."""
        if self._is_ended or self.conversation is None:
            return
        self._num_unanswered += 1
        if self._account is not None:
            self._account.take_message(len(raw))
        self._num_received += 1
        if len(raw) >= LARGE_BYTES:
            self._large.add(self._num_received, len(raw))
        self.guard(_receive, self.conversation, raw, self._max_message_bytes)

    def _owes(self, account: Account) -> bool:
        """Returns whether the client's account owes something; the stream then goes on when it is paid."""
        if not account.debt_seconds:
            return False
        if not self._waits_until_paid:
            self._waits_until_paid = True
            account.when_paid(self._on_paid)
        return True

    def _on_paid(self) -> None:
        self._waits_until_paid = False
        if not self._is_ended:
            self.on_change()

    def half_close(self) -> None:
        """Stops the behaviour, as the client sends no more messages."""
        if self.conversation is not None:
            self.conversation.stop(None)

    def cancel(self) -> None:
        """Ends the stream because the call is over, for any reason."""
        self._is_ended = True
        self._large.release_all()
        if self.conversation is not None:
            self.conversation.cancel()
        self.on_change()

    def break_off(self, status: Status) -> None:
        """Ends the stream with a status of the front's own: a message is not what the wire's rules ask."""
        if not self._is_ended:
            self.status = status
            self.cancel()

    def take(self) -> bytes | None:
        """Returns the next message to send and counts it as an answer; None if there is no message."""
        if not self._outgoing:
            return None
        self._num_unanswered -= 1
        return self._outgoing.popleft()

    # -- For behaviours ----------------------------------------------------------------------------

    def send(self, raw: bytes) -> None:
        """Queues a message for the client."""
        self._outgoing.append(raw)
        self._num_sent += 1
        if self._large.num_bytes:
            self._large.release(self._num_sent)
        self.on_change()

    def guard(self, function: Callable[..., None], *arguments: object) -> None:
        """Calls a function and ends the stream if the function raises."""
        try:
            function(*arguments)
        except StreamcellError as error:
            self._abort(error)
        except Exception as exception:
            self._abort(faults.report(exception))

    def _abort(self, error: StreamcellError) -> None:
        if self.conversation is not None:
            self.conversation.cancel()
        self.end(error)

    def pause(self) -> None:
        """Stops the front from reading further messages; messages that it has read are still received."""
        self._is_paused = True

    def resume(self) -> None:
        """Ends a pause."""
        self._is_paused = False
        self.on_change()

    def end(self, error: StreamcellError | None = None) -> None:
        """Ends the call once every queued message is sent: with OK, or with an error."""
        if self._is_ended:
            return
        self._is_ended = True
        self._large.release_all()
        if error is not None:
            self.status = status_of(error)
            self.count(error)
        self.on_change()

    def count(self, error: StreamcellError) -> None:
        """Counts an error that is answered within the stream."""
        self._count_error(self.path, error)


def _ignore() -> None:
    pass


def _receive(conversation: Conversation, raw: bytes, max_message_bytes: int) -> None:
    check_message_size(raw, max_message_bytes)
    conversation.receive(raw)

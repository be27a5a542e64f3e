"""What streams of requests share: back-pressure while a queue has no room, and an end once all is answered.

Does not know what a request asks.
"""

import functools
from collections.abc import Callable

from service.accounts import NOBODY
from service.engine.engine import Engine
from service.errors import StreamcellError
from service.rpc.stream import Stream


class Backpressure:
    """Stops reading a client's stream while the queue that took, or refused, its last request has no room.

    Reading messages only to refuse them would take time that the queued steps need, and reading more of one
    caller than its share would take the other callers' time. Streams that wait continue in order, one message
    each as the queue gets room, and callers take turns.

    Args:
        stream: the client's stream.
        handle: begins what a message asks.
        account: the client's account.
    """

    def __init__(self, stream: Stream, handle: Callable[[bytes], None], account: int) -> None:
        self._stream = stream
        self._handle = handle
        self._account = account
        self._engine: Engine | None = None  # that is asked for room
        self._num_refused = 0  # steps that it had no room for

    def receive(self, raw: bytes) -> None:
        """Handles a message: now, or once the engine has room."""
        engine = self._engine
        if engine is not None:
            if not engine.has_room(self._num_refused, self._account):
                self._stream.pause()
                later = functools.partial(self._handle_later, raw)
                engine.when_room(self._num_refused, later, self._account)
                return
            self._engine, self._num_refused = None, 0
        self._handle(raw)

    def record(self, engine: Engine) -> None:
        """Records that an engine's queue took a request, if callers take turns there."""
        if self._account != NOBODY:
            self._engine = engine

    def record_refusal(self, engine: Engine, num_steps: int) -> None:
        """Records that an engine's queue had no room for a request of `num_steps` steps."""
        self._engine, self._num_refused = engine, num_steps

    def _handle_later(self, raw: bytes) -> None:
        self._stream.guard(self._handle, raw)
        self._stream.resume()


class StreamEnd:
    """Ends a stream once every message received is answered.

    Args:
        stream: the client's stream.
        is_done: returns whether every message received is answered.
    """

    def __init__(self, stream: Stream, is_done: Callable[[], bool]) -> None:
        self._stream = stream
        self._is_done = is_done
        self._error: StreamcellError | None = None
        self.has_begun = False
        """Whether the stream takes no further message."""

    def begin(self, error: StreamcellError | None) -> None:
        """Stops taking messages, and ends the stream once all are answered: with `error`, or OK for None."""
        if not self.has_begun:  # a client that half-closed before a drain still gets OK
            self._error = error
        self.has_begun = True
        self.end_if_done()

    def abandon(self) -> None:
        """Stops taking messages: the client is gone."""
        self.has_begun = True

    def end_if_done(self) -> None:
        """Ends the stream if `begin` was called and every message is answered."""
        if self.has_begun and self._is_done():
            self._stream.end(self._error)

"""What streams of requests share: back-pressure while a queue is full, and an end once all is answered.

Does not know what a request asks.
"""

import functools
from collections.abc import Callable

from service.engine.engine import Engine
from service.errors import StreamcellError
from service.rpc.stream import Stream


class Backpressure:
    """Stops reading a client's stream while the queue that refused the stream's last request is full.

    Reading messages only to refuse them would take time that the queued steps need. Streams that wait
    continue in order, one message each as the queue gets room.

    Args:
        stream: the client's stream.
        handle: begins what a message asks.
        account: the client's account.
    """

    def __init__(self, stream: Stream, handle: Callable[[bytes], None], account: int) -> None:
        self._stream = stream
        self._handle = handle
        self._account = account
        self._refused_by: tuple[Engine, int] | None = (
            None  # the engine, and the steps that it had no room for
        )

    def receive(self, raw: bytes) -> None:
        """Handles a message: now, or once the engine that refused the last message has room."""
        if self._refused_by is not None:
            engine, num_steps = self._refused_by
            if not engine.has_room(num_steps, self._account):
                self._stream.pause()
                engine.when_room(num_steps, functools.partial(self._handle_later, raw), self._account)
                return
            self._refused_by = None
        self._handle(raw)

    def record_refusal(self, engine: Engine, num_steps: int) -> None:
        """Records that an engine's queue had no room for a request of `num_steps` steps."""
        self._refused_by = engine, num_steps

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

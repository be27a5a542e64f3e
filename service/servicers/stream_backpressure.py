"""What streams of requests have in common: turns while a queue is full, and the end once all is answered.

Does not know what a request asks.
"""

import functools
from abc import ABC, abstractmethod

from service.engine.engine import Engine
from service.errors import StreamcellError
from service.rpc.stream import Stream


class Turns(ABC):
    """A client's stream, as its front tells of it; what is asked is its subclasses' business."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._is_stopping = False
        self._refused: tuple[Engine, int] | None = None  # by whom, and how many steps: turns are taken there
        self._last_error: StreamcellError | None = None

    def receive(self, raw: bytes) -> None:
        """Takes one request: at once, or in its turn after one that the queue had no room for.

        To read on, only to refuse, would take time that the steps in the queue need.
        """
        if self._refused is not None:
            engine, num_steps = self._refused
            if not engine.has_room(num_steps):
                self._stream.pause()
                engine.when_room(num_steps, functools.partial(self._take_turn, raw))
                return
            self._refused = None
        self._take(raw)

    def stop(self, error: StreamcellError | None) -> None:
        """Ends the stream once everything received is answered."""
        if not self._is_stopping:  # a client that was done before a drain is not sent elsewhere
            self._last_error = error
        self._is_stopping = True
        self._end_if_done()

    def _take_turn(self, raw: bytes) -> None:
        self._stream.guard(self._take, raw)
        self._stream.resume()

    def _end_if_done(self) -> None:
        if self._is_done():
            self._stream.end(self._last_error)

    @abstractmethod
    def _take(self, raw: bytes) -> None:
        """Begins what a request asks, unless the stream is stopping."""

    @abstractmethod
    def _is_done(self) -> bool:
        """Tells whether everything is answered."""

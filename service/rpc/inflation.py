"""Compressed messages, and what they inflate to: up to a bound for each, in turns, within a bound on all.

A few kilobytes can stand for thousands of times as many bytes, and inflating them takes the time of everyone
else's steps. So after each MiB the messages that wait let others have a turn, and they wait as well while
large requests without an answer hold as many bytes as may be. Does not know calls nor their wire.
"""

import time
import zlib
from collections import deque
from collections.abc import Callable

from service.errors import Code
from service.rpc.request_bytes import RequestBytes
from service.rpc.statuses import RefusedError, Status

WINDOW_BITS = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
"""Zlib's window, by the name of an encoding."""
_TURN_BYTES = 1 << 20
_TURN_SECONDS = 0.01
_LARGEST_RATIO = 1032  # of deflate: a byte becomes so many at most
_ZLIB_STARTS = (b"x\x01", b"x\x5e", b"x\x9c", b"x\xda")

CallLater = Callable[[float, Callable[[], None]], object]
OnInflated = Callable[["bytes | RefusedError"], None]


class Packed:
    """A compressed message.

    Args:
        raw: the compressed bytes.
        window_bits: zlib's, which says the encoding.
        is_sure: whether bytes that do not inflate are an error; otherwise they are a message as they are.
    """

    __slots__ = ("is_dropped", "is_sure", "raw", "window_bits")

    def __init__(self, raw: bytes, window_bits: int, *, is_sure: bool = True) -> None:
        self.raw = raw
        self.window_bits = window_bits
        self.is_sure = is_sure
        self.is_dropped = False
        """Whether the call has ended, so that nobody wants the message."""

    def __len__(self) -> int:
        return len(self.raw)


def recognised(raw: bytes) -> Packed | None:
    """Returns a compressed message as such, known by its first bytes; None for any other message.

    No protobuf message begins as gzip does, with a field of wire type 7. A field 15 begins as zlib does: no
    request has one, and what does not inflate is taken as it is.
    """
    if raw[:1] == b"x":
        return Packed(raw, zlib.MAX_WBITS, is_sure=False) if raw[:2] in _ZLIB_STARTS else None
    return Packed(raw, 16 + zlib.MAX_WBITS) if raw[:1] == b"\x1f" and raw[1:2] == b"\x8b" else None


class Inflation:
    """Inflates the messages of all calls, in turns.

    Args:
        max_message_bytes: the largest message, inflated.
        request_bytes: while full, messages wait.
        call_later: calls a function after some seconds.
        clock: the time in seconds, monotonic.
    """

    def __init__(
        self,
        max_message_bytes: int,
        request_bytes: RequestBytes,
        call_later: CallLater,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_message_bytes = max_message_bytes
        self._request_bytes = request_bytes
        self._call_later = call_later
        self._clock = clock
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_scheduled = False
        self._turn_began = -_TURN_SECONDS
        self._num_turn_bytes = 0

    def inflate(self, packed: Packed, on_inflated: OnInflated) -> None:
        """Inflates a message and calls `on_inflated` with it or a refusal: now, or when its turn comes."""

        def run() -> None:
            if not packed.is_dropped:
                found = self._inflated(packed)
                self._charge(len(found) if isinstance(found, bytes) else self._max_message_bytes)
                on_inflated(found)

        self._submit(run)

    def reserve(self, num_packed_bytes: int, on_turn: Callable[[], None]) -> None:
        """Calls `on_turn` when someone else may inflate so many bytes: now, or when their turn comes."""

        def run() -> None:
            self._charge(min(self._max_message_bytes, _LARGEST_RATIO * num_packed_bytes))
            on_turn()

        self._submit(run)

    def _submit(self, run: Callable[[], None]) -> None:
        if not self._waiting and self._has_room():
            run()
            return
        self._waiting.append(run)
        self._schedule()

    def _charge(self, num_bytes: int) -> None:
        """Counts bytes of this turn. A turn that is used up lasts on, so that others get their time."""
        self._num_turn_bytes += num_bytes
        if self._num_turn_bytes >= _TURN_BYTES:
            self._turn_began = self._clock()

    def _has_room(self) -> bool:
        now = self._clock()
        if now - self._turn_began >= _TURN_SECONDS:
            self._turn_began, self._num_turn_bytes = now, 0
        return self._num_turn_bytes < _TURN_BYTES and not self._request_bytes.is_full

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._call_later(_TURN_SECONDS, self._take_turn)

    def _take_turn(self) -> None:
        self._is_scheduled = False
        try:
            while self._waiting and self._has_room():
                self._waiting.popleft()()
        finally:
            if self._waiting:
                self._schedule()

    def _inflated(self, packed: Packed) -> bytes | RefusedError:
        unpacker = zlib.decompressobj(packed.window_bits)
        try:
            message = unpacker.decompress(packed.raw, self._max_message_bytes + 1)
        except zlib.error:
            return packed.raw if not packed.is_sure else _refused("a message cannot be decompressed")
        if len(message) > self._max_message_bytes:
            most = self._max_message_bytes
            text = f"Received message larger than max (more than {most} bytes when decompressed)"
            return RefusedError(Status(int(Code.RESOURCE_EXHAUSTED), text, b""))
        if not unpacker.eof:
            too_soon = "a message cannot be decompressed: it ends too soon"
            return packed.raw if not packed.is_sure else _refused(too_soon)
        return message


def _refused(message: str) -> RefusedError:
    return RefusedError(Status(int(Code.INTERNAL), message, b""))

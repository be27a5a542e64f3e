"""The calls whose message has arrived in part: for how long, and with how many bytes.

A call that takes too long ends. When all bytes together exceed their bound, the call that has been arriving
for longest gives way: who sends its message without a pause is let in. Does not know how calls read.
"""

import itertools
import time
from collections.abc import Callable

from service.errors import Code
from service.fronts.envoy import wire
from service.fronts.envoy.asgi import ActiveCall
from service.rpc.router import Router


class Arrivals:
    """The calls whose message is not complete, the oldest first.

    Args:
        router: counts the bytes, and says how a call ends that gives way.
        timeout_seconds: the longest that a message may take to arrive.
        clock: the time in seconds, monotonic.
    """

    def __init__(
        self, router: Router, timeout_seconds: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._router = router
        self._total = router.request_bytes
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._awaited: dict[ActiveCall, float] = {}  # since when; nothing of their message is here
        self._partial: dict[ActiveCall, tuple[float, int]] = {}  # since when, and bytes

    def expect(self, call: ActiveCall) -> None:
        """Begins the time of a call whose message must come."""
        self._awaited[call] = self._clock()

    def note(self, call: ActiveCall, num_bytes: int) -> None:
        """Records how many bytes of an incomplete message a call has; may end calls, this one included."""
        self._awaited.pop(call, None)
        since, before = self._partial.get(call) or (self._clock(), 0)
        self._partial[call] = since, num_bytes
        self._total.num_bytes += num_bytes - before
        while self._total.num_bytes > self._total.max_bytes and self._partial:
            oldest = next(iter(self._partial))
            self.forget(oldest)
            oldest.abort(self._router.give_way(oldest.path).status)

    def forget(self, call: ActiveCall) -> None:
        """Forgets a call whose message is complete, or that has ended."""
        self._awaited.pop(call, None)
        if (found := self._partial.pop(call, None)) is not None:
            self._total.num_bytes -= found[1]

    def end_late(self) -> None:
        """Ends the calls whose message takes too long; time in which a call reads nothing does not count."""
        latest = self._clock() - self._timeout_seconds
        late = list(itertools.takewhile(lambda call: self._awaited[call] <= latest, self._awaited))
        late += itertools.takewhile(lambda call: self._partial[call][0] <= latest, self._partial)
        text = f"the message did not arrive whole within {self._timeout_seconds:g} s"
        for call in late:
            held = self._partial.get(call)
            self.forget(call)
            if held is not None and not call.is_reading:
                self.note(call, held[1])
                continue
            call.abort(wire.refused(Code.DEADLINE_EXCEEDED, text).status)

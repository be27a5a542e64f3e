"""The tail of a session: the steps that were sent and are not known to be in the server's store.

Uses no clock, no event loop and no connection. The tail is made of chunks of packed values, which take a few
bytes a step beside the values themselves. It is bounded: beyond the bound the oldest steps are dropped. Knows
nothing of replies.
"""

import dataclasses
from array import array
from collections import deque
from collections.abc import Iterator

from streamcell.convert import History

_CHUNK_STEPS = 1024  # single steps are gathered up to this many


@dataclasses.dataclass(slots=True)
class _Chunk:
    """Steps from `first_step_index` on, all of one width, and either all or none with a time."""

    first_step_index: int
    num_steps: int
    x: "array[float]"  # [num_steps, width]
    time: "array[int] | None"  # [num_steps]

    @property
    def end(self) -> int:
        return self.first_step_index + self.num_steps

    def takes(self, x: "array[float]", time: "array[int] | None", num_steps: int) -> bool:
        """Returns whether these steps have this chunk's width and kind of time, and fit into it."""
        return (
            self.num_steps + num_steps <= _CHUNK_STEPS
            and (self.time is None) == (time is None)
            and len(self.x) * num_steps == len(x) * self.num_steps
        )

    def extend(self, x: "array[float]", time: "array[int] | None", num_steps: int) -> None:
        self.x.extend(x)
        if self.time is not None and time is not None:
            self.time.extend(time)
        self.num_steps += num_steps

    def cut(self, end: int) -> None:
        """Drops the steps from `end` on."""
        width = len(self.x) // self.num_steps
        self.num_steps = end - self.first_step_index
        del self.x[self.num_steps * width :]
        if self.time is not None:
            del self.time[self.num_steps :]

    def between(self, start: int, stop: int) -> History:
        low, high = max(start - self.first_step_index, 0), min(stop, self.end) - self.first_step_index
        return History(self.x, self.time, self.num_steps).between(low, high)


class Tail:
    """The steps from `first_step_index` up to before `next_step_index`, at most `max_steps` of them.

    A server that crashed may have lost them; then the client sends them again.
    """

    def __init__(self, step_index: int, max_steps: int) -> None:
        self.first_step_index = step_index
        self.next_step_index = step_index
        self._max_steps = max_steps
        self._chunks: deque[_Chunk] = deque()

    def append(self, step_index: int, history: History) -> None:
        """Adds a copy of the steps sent from `step_index` on; ignores steps that the tail has already."""
        num_known = self.next_step_index - step_index
        assert num_known >= 0, "a step was sent before its turn"  # noqa: S101 - a mistake of the caller
        if num_known >= history.num_steps:
            return
        if num_known:
            history = history.between(num_known, history.num_steps)
        x, time, num_steps = history.x, history.time, history.num_steps
        if self._chunks and self._chunks[-1].takes(x, time, num_steps):
            self._chunks[-1].extend(x, time, num_steps)
        else:
            time = None if time is None else time[:]
            self._chunks.append(_Chunk(self.next_step_index, num_steps, x=x[:], time=time))
        self.next_step_index += num_steps
        self.trim(self.next_step_index - self._max_steps)

    def trim(self, first_step_index: int) -> None:
        """Drops the steps before this one: they are in the store."""
        self.first_step_index = max(self.first_step_index, min(first_step_index, self.next_step_index))
        while self._chunks and self._chunks[0].end <= self.first_step_index:
            self._chunks.popleft()

    def move_to(self, next_step_index: int) -> None:
        """Drops the steps from this one on, or all steps if the tail does not reach to this one."""
        if not self.first_step_index <= next_step_index <= self.next_step_index:
            self._chunks.clear()
            self.first_step_index = next_step_index
        self.next_step_index = next_step_index
        while self._chunks and self._chunks[-1].first_step_index >= next_step_index:
            self._chunks.pop()
        if self._chunks and self._chunks[-1].end > next_step_index:
            self._chunks[-1].cut(next_step_index)

    def histories(self, start: int, stop: int) -> Iterator[History]:
        """Yields the steps from `start`, which the tail has, up to before `stop`.

        Steps that can be packed together come in one history. The tail may grow and be trimmed meanwhile.
        """
        for chunk in list(self._chunks):
            if chunk.end > start < stop and chunk.first_step_index < stop:
                yield chunk.between(start, stop)

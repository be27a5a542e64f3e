"""Which version follows an engine's, and where the sessions went that have moved there.

Moves nothing itself.
"""

from typing import Generic, TypeVar

_Owner = TypeVar("_Owner")  # an engine, which this module does not know


class Succession(Generic[_Owner]):
    """What becomes of an engine when another version of its model leads."""

    def __init__(self) -> None:
        self.is_retiring = False
        """Whether another version leads: the engine leaves memory after its last session."""
        self.successor: _Owner | None = None
        """The version that sessions move to, if they do."""
        self.has_begun = False
        """Whether sessions have ever moved to another version: a remembered slot may be out of date."""
        self.num_arriving = 0
        """Sessions that are about to enter; the engine stays in memory for them."""
        self.has_left = False
        """Whether the engine is out of memory: nothing may be asked of it."""
        self._forwards: dict[tuple[int, int], tuple[_Owner, int, int]] = {}
        self._vacated: list[int] = []

    def begin(self, successor: _Owner | None) -> None:
        """Another version leads from now on; with a `successor`, sessions move there."""
        self.is_retiring = True
        self.successor = successor
        self.has_begun |= successor is not None

    def end(self) -> list[int]:
        """The engine's own version leads again; returns the slots that are free for use again."""
        self.is_retiring, self.successor = False, None
        vacated, self._vacated = self._vacated, []
        return vacated

    def leave(self) -> None:
        """Records that the engine is out of memory."""
        self.has_left = True

    def arrive(self, change: int) -> None:
        """Counts a session that is about to enter (1), or that has entered or given up (-1)."""
        self.num_arriving += change

    def record_move(self, slot: int, generation: int, to: tuple[_Owner, int, int]) -> None:
        """Records where a session went: its engine, its slot there and the slot's generation."""
        self._forwards[slot, generation] = to
        self._vacated.append(slot)

    def next_place(self, slot: int, generation: int) -> tuple[_Owner, int, int] | None:
        """Returns where a session went from here; None if it has not moved."""
        return self._forwards.get((slot, generation))

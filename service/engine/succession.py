"""Which version succeeds an engine's version, and where the sessions that moved are now.

Does not move sessions, and does not know engines.
"""

from typing import Generic, TypeVar

_Engine = TypeVar("_Engine")


class Succession(Generic[_Engine]):
    """One engine's place among the versions of its model, and the new places of sessions that left it."""

    def __init__(self) -> None:
        self.is_retiring = False
        """Whether another version leads; the engine is then unloaded after its last session."""
        self.successor: _Engine | None = None
        """The engine that sessions move to; None if they stay."""
        self.has_begun = False
        """Whether there ever was a successor, so that a remembered slot may be out of date."""
        self.num_arriving = 0
        """How many sessions are about to enter; the engine stays loaded for them."""
        self.is_unloaded = False
        """Whether the engine's model and states are freed; no work may be submitted then."""
        self._places: dict[tuple[int, int], tuple[_Engine, int, int]] = {}
        """By slot and generation here: the engine, slot and generation of a session that moved."""
        self._vacated: list[int] = []

    def begin(self, successor: _Engine | None) -> None:
        """Records that another version leads; sessions move to the `successor`, if there is one."""
        self.is_retiring = True
        self.successor = successor
        self.has_begun |= successor is not None

    def end(self) -> list[int]:
        """Records that the engine's version leads again; returns the slots that moved sessions had."""
        self.is_retiring, self.successor = False, None
        vacated, self._vacated = self._vacated, []
        return vacated

    def unload(self) -> None:
        """Records that the engine's model and states are freed."""
        self.is_unloaded = True

    def arrive(self, change: int) -> None:
        """Counts a session that is about to enter (1), or that has entered or failed to (-1)."""
        self.num_arriving += change

    def record_move(self, slot: int, generation: int, to: tuple[_Engine, int, int]) -> None:
        """Records the engine, slot and generation that a session moved to."""
        self._places[slot, generation] = to
        self._vacated.append(slot)

    def next_place(self, slot: int, generation: int) -> tuple[_Engine, int, int] | None:
        """Returns the engine, slot and generation that a session moved to; None if it has not moved."""
        return self._places.get((slot, generation))

"""Why sessions ended, remembered for a while for clients that come back. Does not know live sessions."""

from collections import OrderedDict
from collections.abc import Container

from service.errors import Reason

_MAX_REMEMBERED = 10_000  # keys


class Endings:
    """Ends that no client asked for: of the latest sessions by key, and of each slot's last session."""

    def __init__(self) -> None:
        self._by_key: OrderedDict[str, Reason] = OrderedDict()
        self._by_slot: dict[int, Reason] = {}

    def of(self, key: str) -> Reason | None:
        """Returns why the last session of a key ended; None if its client closed it, or it ended long ago."""
        return self._by_key.get(key)

    def in_slot(self, slot: int) -> Reason | None:
        """Returns why the last session in a slot ended; None if its client closed it."""
        return self._by_slot.get(slot)

    def remember(self, key: str, reason: Reason, slot: int | None = None) -> None:
        """Remembers why the session of a key ended, and that it was in `slot`, if it was in memory."""
        self._by_key[key] = reason
        if len(self._by_key) > _MAX_REMEMBERED:
            self._by_key.popitem(last=False)
        if slot is not None:
            self._by_slot[slot] = reason

    def remember_all(self, source: "Endings", live: Container[str]) -> None:
        """Takes over the ends of another version's sessions, except for keys of live sessions."""
        for key, reason in source._by_key.items():
            if key not in live:
                self.remember(key, reason)

    def forget(self, key: str) -> None:
        """Forgets how the last session of a key ended, because the key has a new session."""
        self._by_key.pop(key, None)

    def forget_slot(self, slot: int) -> None:
        """Forgets why the last session in a slot ended, because a later one was closed there."""
        self._by_slot.pop(slot, None)

"""Why sessions ended, remembered for a while: the client that comes back is told. Knows no live sessions."""

from collections import OrderedDict
from collections.abc import Container

from service.errors import Reason

_MAX_REMEMBERED = 10_000  # keys


class Endings:
    """The ends that no client asked for: by key of the last sessions, and by slot of each slot's last."""

    def __init__(self) -> None:
        self._by_key: OrderedDict[str, Reason] = OrderedDict()
        self._by_slot: dict[int, Reason] = {}

    def of(self, key: str) -> Reason | None:
        """Returns why the last session of a key ended; None if its client closed it, or long ago."""
        return self._by_key.get(key)

    def in_slot(self, slot: int) -> Reason | None:
        """Returns why the last session in a slot ended; None if its client closed it."""
        return self._by_slot.get(slot)

    def remember(self, key: str, reason: Reason, slot: int | None = None) -> None:
        """Remembers why the session of a key ended; `slot` is where the session was, if it was in memory."""
        self._by_key[key] = reason
        if len(self._by_key) > _MAX_REMEMBERED:
            self._by_key.popitem(last=False)
        if slot is not None:
            self._by_slot[slot] = reason

    def remember_all(self, others: "Endings", live: Container[str]) -> None:
        """Remembers the ends of another version's sessions, too, except for keys of live sessions."""
        for key, reason in others._by_key.items():
            if key not in live:
                self.remember(key, reason)

    def forget(self, key: str) -> None:
        """Forgets the end of a key: a new session has it."""
        self._by_key.pop(key, None)

    def forget_slot(self, slot: int) -> None:
        """Forgets why the last session in a slot ended: another one has been there, and closed."""
        self._by_slot.pop(slot, None)

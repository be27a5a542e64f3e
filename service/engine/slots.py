"""Which rows of the state pool are free. Knows neither sessions nor tensors."""


class Slots:
    """Hands out the numbers 0..capacity-1, the one given back last first.

    Low numbers go first and used ones come back soon, so that memory touched stays near what is in use.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._returned: list[int] = []
        self._fresh = 0  # slots from here on were never taken

    @property
    def num_taken(self) -> int:
        """How many slots are in use."""
        return self._fresh - len(self._returned)

    def take(self) -> int | None:
        """Returns a free slot, which is now taken; None when there is none."""
        if self._returned:
            return self._returned.pop()
        if self._fresh == self.capacity:
            return None
        self._fresh += 1
        return self._fresh - 1

    def give_back(self, slot: int) -> None:
        """Frees a slot that was taken."""
        self._returned.append(slot)

"""Which rows of the state pool are free. Does not know sessions or tensors."""


class Slots:
    """Allocates the numbers 0 .. capacity-1, first those given back, the latest of them first.

    Low numbers go first and used ones are used again, so that the memory touched stays near what is in use.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._returned: list[int] = []
        self._fresh = 0  # slots from this one on were never taken

    @property
    def num_taken(self) -> int:
        """How many slots are in use."""
        return self._fresh - len(self._returned)

    def take(self) -> int | None:
        """Takes a free slot and returns it; None if there is none."""
        if self._returned:
            return self._returned.pop()
        if self._fresh == self.capacity:
            return None
        self._fresh += 1
        return self._fresh - 1

    def give_back(self, slot: int) -> None:
        """Frees a taken slot."""
        self._returned.append(slot)

"""Which accounts want something of an engine at the same time.

Does not know how much they want, nor who is to wait.
"""

_MEMORY = 256  # iterations after which an account that wants nothing more may be forgotten


class Rivals:
    """The accounts that queued work lately: in the last 256 iterations, and some of the 256 before."""

    def __init__(self) -> None:
        self.count = 0
        """How many accounts there are."""
        self._newest: set[int] = set()
        self._older: set[int] = set()
        self._num_iterations = 0

    def note(self, account: int) -> None:
        """Notes that an account queued work."""
        if account not in self._newest:
            self._newest.add(account)
            self.count += account not in self._older

    def pass_iteration(self) -> None:
        """Counts an iteration, and forgets accounts now and then."""
        self._num_iterations += 1
        if self._num_iterations % _MEMORY == 0:
            self._older, self._newest = self._newest, set()
            self.count = len(self._older)

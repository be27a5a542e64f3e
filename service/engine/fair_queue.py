"""A queue in which callers take turns: whoever has much waiting does not keep the others waiting.

Does not know what waits, nor how much of it a turn may take.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

_Item = TypeVar("_Item")


class FairQueue(Generic[_Item]):
    """A queue of items, each of an account. Items of one account keep their order; accounts take turns.

    Args:
        account_of: returns the number of an item's account.
    """

    def __init__(self, account_of: Callable[[_Item], int]) -> None:
        self._account_of = account_of
        self._queues: dict[int, deque[_Item]] = {}  # of accounts with items
        self._turns: deque[int] = deque()  # the accounts with items; the first one is next
        self._num_items = 0

    def __len__(self) -> int:
        return self._num_items

    def __iter__(self) -> Iterator[_Item]:
        return (item for queue in self._queues.values() for item in queue)

    @property
    def num_accounts(self) -> int:
        """How many accounts have items."""
        return len(self._turns)

    @property
    def first(self) -> _Item:
        """The item that `popleft` would take; there is one."""
        return self._queues[self._turns[0]][0]

    def pass_turn(self) -> None:
        """Gives the turn to the next account."""
        self._turns.rotate(-1)

    def append(self, item: _Item) -> None:
        """Puts an item behind the other items of its account."""
        account = self._account_of(item)
        queue = self._queues.get(account)
        if queue is None:
            queue = self._queues[account] = deque()
            self._turns.append(account)
        queue.append(item)
        self._num_items += 1

    def popleft(self) -> _Item:
        """Takes the first item of the account whose turn it is; the next turn is the next account's.

        Raises:
            IndexError: the queue is empty.
        """
        turns = self._turns
        account = turns[0]
        queue = self._queues[account]
        item = queue.popleft()
        if queue:
            turns.rotate(-1)
        else:
            turns.popleft()
            del self._queues[account]
        self._num_items -= 1
        return item

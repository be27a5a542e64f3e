"""Claims that wait for the store, with the callers who made them. Does not know when the store is asked."""

import asyncio

from service.errors import StreamcellError
from service.store.base import Claim, Claimed

_MAX_CLAIMS = 512  # in one call to the store

Pending = tuple[Claim, asyncio.Future[Claimed]]


class PendingClaims:
    """Claims in the order in which they came, and a future for each."""

    def __init__(self) -> None:
        self._claims: list[Pending] = []

    def __len__(self) -> int:
        return len(self._claims)

    def add(self, claim: Claim) -> asyncio.Future[Claimed]:
        """Adds a claim, and returns the future of its outcome."""
        future: asyncio.Future[Claimed] = asyncio.get_running_loop().create_future()
        self._claims.append((claim, future))
        return future

    def take(self) -> list[Pending]:
        """Takes out the claims for the next call."""
        batch, self._claims = self._claims[:_MAX_CLAIMS], self._claims[_MAX_CLAIMS:]
        return batch

    def put_back(self, batch: list[Pending]) -> None:
        """Puts claims back whose call failed, before all others."""
        self._claims = batch + self._claims

    def refuse_all(self, error: StreamcellError) -> None:
        """Answers every caller with an error."""
        for _, future in self._claims:
            if not future.done():  # its caller may have gone away
                future.set_exception(error)
        self._claims = []


def resolve(batch: list[Pending], outcomes: list[Claimed]) -> None:
    """Answers the callers of a batch with the outcomes of their claims."""
    for (_, future), outcome in zip(batch, outcomes, strict=True):
        if not future.done():
            future.set_result(outcome)

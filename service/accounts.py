"""What each principal uses of a server: streams, steps and bytes, and whether it may use more now.

An account may fall into debt: a message is taken when nothing is owed, however large the message is, and
the next one waits until the debt is paid. So a message that is larger than a second's share is served, too,
and on average no account uses more than its rates. Does not know sessions, models or transports.
"""

import functools
import hashlib
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from service import errors
from service.errors import Reason, StreamcellError

NOBODY = 0
"""The number of callers without a principal."""
_FORGET_AT = 4096  # accounts; then those that use nothing are forgotten
RETRY_SECONDS = 1.0
"""When to come again where no rate tells it."""


@functools.lru_cache(maxsize=65_536)
def number_of(principal: str) -> int:
    """Returns the number of a principal's account, the same on every server; NOBODY for no principal."""
    if not principal:
        return NOBODY
    digest = hashlib.blake2b(principal.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 1) or 1  # fits a column of int64


class AccountLimits(NamedTuple):
    """What one principal may use; 0: no limit."""

    max_streams: int = 0
    steps_per_second: float = 0.0
    bytes_per_second: float = 0.0


class TokenBucket:
    """A rate with one second's worth in reserve.

    Args:
        rate: units a second; 0: no limit.
    """

    __slots__ = ("_level", "_seen", "rate")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self._level = rate
        self._seen = now

    def take(self, amount: float, now: float) -> None:
        """Uses an amount, be it there or not."""
        if self.rate:
            self._fill(now)
            self._level -= amount

    def debt_seconds(self, now: float) -> float:
        """Returns the seconds until nothing is owed; 0 if nothing is."""
        if not self.rate or self._level >= 0:
            return 0.0
        self._fill(now)
        return max(0.0, -self._level / self.rate)

    def is_full(self, now: float) -> bool:
        """Returns whether the whole reserve is there."""
        self._fill(now)
        return self._level >= self.rate

    def _fill(self, now: float) -> None:
        elapsed = max(0.0, now - self._seen)
        self._level = min(self.rate, self._level + elapsed * self.rate)
        self._seen = now


class CallLater(Protocol):
    """The part of an event loop that accounts use."""

    def __call__(self, delay: float, function: Callable[[], None], /) -> object:
        """Calls a function in `delay` seconds."""


class Account:
    """What one principal uses of this server now.

    Args:
        limits: what the principal may use.
        call_later: calls a function after a delay.
        clock: monotonic seconds.
    """

    def __init__(self, limits: AccountLimits, call_later: CallLater, *, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._call_later = call_later
        self._clock = clock
        self._steps = TokenBucket(limits.steps_per_second, clock())
        self._bytes = TokenBucket(limits.bytes_per_second, clock())
        self._num_streams = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is lost when the account is forgotten."""
        now = self._clock()
        return not self._num_streams and self._steps.is_full(now) and self._bytes.is_full(now)

    def open_stream(self) -> StreamcellError | None:
        """Counts a stream that begins; returns the error that it must end with, if there is one too many.

        A stream with an error is not counted.
        """
        most = self._limits.max_streams
        if most and self._num_streams >= most:
            return errors.refusal(
                Reason.QUOTA_EXCEEDED,
                limit="streams",
                problem=f"{most} streams are open, as many as one principal may have",
                retry_delay_seconds=RETRY_SECONDS,
            )
        self._num_streams += 1
        return None

    def close_stream(self) -> None:
        """Counts a stream that ended."""
        self._num_streams -= 1

    def take_steps(self, count: int) -> None:
        """Counts steps that were queued."""
        self._steps.take(count, self._clock())

    def take_message(self, num_bytes: int) -> None:
        """Counts a message that came."""
        self._bytes.take(num_bytes, self._clock())

    def check(self) -> None:
        """Checks that the principal may use more now.

        Raises:
            StreamcellError: QUOTA_EXCEEDED, with when to come again.
        """
        now = self._clock()
        for unit, bucket in (("steps", self._steps), ("bytes", self._bytes)):
            if seconds := bucket.debt_seconds(now):
                raise errors.refusal(
                    Reason.QUOTA_EXCEEDED,
                    limit=f"{unit}_per_second",
                    problem=f"more than {bucket.rate:g} {unit} a second",
                    retry_delay_seconds=seconds,
                )

    @property
    def debt_seconds(self) -> float:
        """The seconds until the principal may use more; 0 for at once."""
        now = self._clock()
        return max(self._steps.debt_seconds(now), self._bytes.debt_seconds(now))

    def when_paid(self, function: Callable[[], None]) -> None:
        """Calls a function when nothing is owed any more, as far as is known now."""
        self._call_later(self.debt_seconds, function)


class Accounts:
    """The accounts of all principals that use something now.

    Args:
        limits: what each principal may use.
        call_later: calls a function after a delay.
        clock: monotonic seconds.
    """

    def __init__(
        self, limits: AccountLimits, call_later: CallLater, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._call_later = call_later
        self._clock = clock
        self._accounts: dict[int, Account] = {}
        self._forget_at = _FORGET_AT

    def __len__(self) -> int:
        return len(self._accounts)

    def of(self, principal: str) -> Account:
        """Returns a principal's account."""
        number = number_of(principal)
        account = self._accounts.get(number)
        if account is None:
            if len(self._accounts) >= self._forget_at:
                self._forget_idle()
            account = Account(self._limits, self._call_later, clock=self._clock)
            self._accounts[number] = account
        return account

    def take_steps(self, number: int, count: int) -> None:
        """Counts steps that were queued for an account."""
        account = self._accounts.get(number)
        if account is not None:
            account.take_steps(count)

    def _forget_idle(self) -> None:
        self._accounts = {number: each for number, each in self._accounts.items() if not each.is_idle}
        self._forget_at = max(_FORGET_AT, 2 * len(self._accounts))

"""What each principal uses, and may use."""

import pytest

from service.accounts import NOBODY, Account, AccountLimits, Accounts, TokenBucket, number_of
from service.errors import Reason, StreamcellError


class Rig:
    """An account over a clock moved by hand; `later` has the calls that it asked for."""

    def __init__(self, **limits):
        self.now, self.later = 100.0, []
        self.limits = AccountLimits(**limits)
        self.account = Account(self.limits, self.call_later, clock=self.clock)

    def clock(self):
        """The time."""
        return self.now

    def call_later(self, delay, function):
        """Records a call."""
        self.later.append((delay, function))

    def refusal(self):
        """Why the account may use no more now; None if it may."""
        try:
            self.account.check()
        except StreamcellError as error:
            limit = error.metadata["limit"] if error.reason is Reason.QUOTA_EXCEEDED else error.reason
            return limit, error.retry_delay_seconds, error.message
        return None


class TestNumbers:
    """An account's number."""

    def test_a_number_is_the_same_everywhere_and_fits_a_column(self):
        """Nobody has 0; the others have numbers of int64 that differ."""
        assert number_of("") == NOBODY == 0
        assert number_of("alice") == 4966672586037949734
        numbers = {number_of(f"principal {each}") for each in range(10_000)}
        assert len(numbers) == 10_000
        assert 0 < min(numbers) <= max(numbers) < 2**63
        assert number_of("\ud800") > 0


class TestBucket:
    """Rates."""

    def test_a_second_of_the_rate_is_in_reserve_and_no_more(self):
        """After a day of quiet as after a second."""
        bucket = TokenBucket(10.0, now=0.0)
        bucket.take(10, now=86_400.0)
        assert bucket.debt_seconds(86_400.0) == 0
        bucket.take(5, now=86_400.0)
        assert bucket.debt_seconds(86_400.0) == 0.5
        assert bucket.debt_seconds(86_400.25) == 0.25
        assert bucket.debt_seconds(86_400.5) == 0

    def test_a_clock_that_stands_or_falls_pays_nothing(self):
        """And costs nothing."""
        bucket = TokenBucket(10.0, now=50.0)
        bucket.take(20, now=50.0)
        assert bucket.debt_seconds(49.0) == 1.0
        assert bucket.debt_seconds(50.0) == 0.0  # a second after 49

    def test_no_rate_is_no_limit(self):
        """Whatever is taken."""
        bucket = TokenBucket(0.0, now=0.0)
        bucket.take(1e12, now=0.0)
        assert bucket.debt_seconds(0.0) == 0
        assert bucket.is_full(0.0)


class TestAccount:
    """One principal."""

    def test_streams_are_bounded_and_an_ended_one_makes_room(self):
        """The error names the limit and says when to come again."""
        account = Rig(max_streams=2).account
        assert [account.open_stream() for _ in range(2)] == [None, None]
        error = account.open_stream()
        assert (error.reason, error.metadata, error.retry_delay_seconds) == (
            Reason.QUOTA_EXCEEDED,
            {"limit": "streams"},
            1.0,
        )
        account.close_stream()
        assert account.open_stream() is None

    def test_a_large_message_is_taken_and_paid_afterwards(self):
        """Steps and bytes each have a rate; the delay is exact."""
        rig = Rig(steps_per_second=100.0, bytes_per_second=1000.0)
        rig.account.take_steps(300)
        assert rig.refusal()[:2] == ("steps_per_second", 2.0)
        assert "more than 100 steps a second; come again in 2 s" in rig.refusal()[2]
        rig.now += 2.0
        assert rig.refusal() is None
        rig.account.take_message(5000)
        assert rig.refusal()[:2] == ("bytes_per_second", 4.0)
        assert rig.account.debt_seconds == 4.0

    def test_over_time_no_more_than_the_rate_is_used(self):
        """A caller that sends whenever it may gets its rate, and one second's reserve."""
        rig, num_steps = Rig(steps_per_second=50.0), 0
        for _ in range(1000):
            if rig.refusal() is None:
                rig.account.take_steps(7)
                num_steps += 7
            else:
                rig.now += 0.01
        seconds = rig.now - 100.0
        assert 50 * seconds <= num_steps <= 50 * seconds + 50 + 7

    def test_whoever_waits_is_called_when_nothing_is_owed(self):
        """After the delay that is owed now."""
        rig = Rig(steps_per_second=10.0)
        rig.account.take_steps(25)
        rig.account.when_paid(print)
        assert rig.later == [(1.5, print)]


class TestAccounts:
    """All principals."""

    def test_an_account_is_found_again_and_counts_steps_by_its_number(self):
        """Steps of an account that is not known are not counted."""
        rig = Rig()
        accounts = Accounts(AccountLimits(steps_per_second=10.0), rig.call_later, clock=rig.clock)
        alice = accounts.of("alice")
        assert accounts.of("alice") is alice
        assert accounts.of("bob") is not alice
        accounts.take_steps(number_of("alice"), 20)
        accounts.take_steps(number_of("carol"), 20)
        assert (alice.debt_seconds, accounts.of("bob").debt_seconds) == (1.0, 0.0)

    def test_accounts_that_use_nothing_are_forgotten(self):
        """Those with a stream or a debt are kept."""
        rig = Rig()
        accounts = Accounts(AccountLimits(steps_per_second=10.0), rig.call_later, clock=rig.clock)
        streaming, owing = accounts.of("streaming"), accounts.of("owing")
        streaming.open_stream()
        owing.take_steps(15)
        for each in range(10_000):
            accounts.of(f"principal {each}")
        assert len(accounts) < 5000
        assert accounts.of("streaming") is streaming
        assert accounts.of("owing") is owing


@pytest.mark.parametrize("limit", ["steps_per_second", "bytes_per_second"])
def test_without_a_limit_nothing_is_owed(limit):
    """The other limit counts alone."""
    rig = Rig(**{limit: 10.0})
    (rig.account.take_message if limit == "steps_per_second" else rig.account.take_steps)(10**9)
    assert rig.refusal() is None

"""A server's start while its store is away: the wait, its bound, and what is wrong for good."""

import pytest

from service.errors import ConfigError
from service.persistence.availability import Availability
from service.persistence.opening import until_open
from service.store.base import StoreError
from service.telemetry.metrics import Metrics
from tests.fake_store import FakeStore

AWAY = StoreError("redis://there cannot be reached: see that it runs")
WRONG = ConfigError("--store: redis://there is a cluster")


class Rig:
    """A store that opens with the next of `outcomes`, an error or None; its clock moves while one sleeps."""

    def __init__(self, *outcomes):
        self._outcomes = list(outcomes)
        self.availability = Availability(FakeStore(), lambda: [], Metrics().of_store())
        self.ns, self.num_opened, self.troubles_at_wait = 0, 0, []

    async def open(self, max_wait_seconds):
        """Opens the store as a server's start does."""
        await until_open(
            self._open,
            self.availability,
            max_wait_seconds=max_wait_seconds,
            on_wait=self._on_wait,
            clock=lambda: self.ns,
            sleep=self._sleep,
        )

    async def _open(self):
        self.num_opened += 1
        outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        if outcome is not None:
            raise outcome

    async def _on_wait(self):
        self.troubles_at_wait.append(self.availability.trouble)

    async def _sleep(self, seconds):
        self.ns += round(seconds * 1e9)


def events(caplog):
    """Returns the events in the log."""
    return [record.getMessage() for record in caplog.records]


async def test_a_store_that_is_there_is_opened_without_a_word(caplog):
    """Nobody waits, and nothing is logged."""
    caplog.set_level("INFO")
    rig = Rig(None)
    await rig.open(60)
    assert (rig.num_opened, rig.troubles_at_wait, events(caplog)) == (1, [], [])


async def test_a_store_that_is_away_is_waited_for(caplog):
    """One line when the wait begins and one when the store is there; claims are refused in between."""
    caplog.set_level("INFO")
    rig = Rig(AWAY, AWAY, AWAY, None)
    await rig.open(60)
    assert rig.num_opened == 4
    assert rig.troubles_at_wait == [str(AWAY)], "the server hears of the wait once, and knows why"
    assert rig.availability.trouble == ""
    assert events(caplog) == ["waiting_for_store", "store_there"]
    assert caplog.records[0].fields["why"] == str(AWAY)
    assert caplog.records[0].fields["max_seconds"] == 60


@pytest.mark.parametrize("max_wait_seconds", [0.0, 5.0])
async def test_the_wait_has_a_bound(max_wait_seconds):
    """Then the server does not start, and says what it says without a wait."""
    rig = Rig(AWAY)
    with pytest.raises(ConfigError, match=r"^--store: redis://there cannot be reached: see that it runs$"):
        await rig.open(max_wait_seconds)
    assert rig.ns == max_wait_seconds * 1e9


@pytest.mark.parametrize("outcomes", [(WRONG,), (AWAY, AWAY, WRONG)])
async def test_a_store_that_is_wrong_for_good_is_not_waited_for(outcomes):
    """At once, and also when it turns out during the wait."""
    rig = Rig(*outcomes)
    with pytest.raises(ConfigError, match="is a cluster"):
        await rig.open(60)
    assert rig.num_opened == len(outcomes)

"""The ASGI application's own business: the check of clients goes on after a fault."""

import asyncio
import functools

from service.background import BackgroundTask
from service.fronts.envoy import application
from service.fronts.envoy.application import EnvoyFront
from tests.integration.conftest import settings
from tests.integration.echo_service import router

BOUND_SECONDS = 60.0


class FakeCall:
    """An active call; the test gives its check of the client."""

    def __init__(self, check):
        self.check_client = check

    def abort(self, status):
        """Does nothing: there is no client to answer."""


async def test_a_fault_in_the_check_of_clients_is_counted_and_the_check_goes_on(monkeypatch, caplog):
    """The log has the fault, and the next check runs."""
    monkeypatch.setattr(application, "_CHECK_SECONDS", 0)
    impatient = functools.partial(BackgroundTask, pause_seconds=0)
    monkeypatch.setattr(application, "BackgroundTask", impatient)
    counted, checked, outcomes = [], asyncio.Event(), [MemoryError("a fault"), None]

    def check():
        outcome = outcomes.pop(0) if outcomes else None
        if outcome is not None:
            raise outcome
        checked.set()

    given = settings(front="envoy")
    front = EnvoyFront(router(given), given, count_fault=counted.append)
    front._calls.add(FakeCall(check))
    await front.start()
    async with asyncio.timeout(BOUND_SECONDS):
        await checked.wait()
    await front.stop(0)
    assert counted == ["client_check"]
    assert "fault" in [record.getMessage() for record in caplog.records]

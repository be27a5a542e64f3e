"""Rows of sessions that nobody used for too long."""

import time

from tests.unit.service.persistence.sessions import step, until, until_stored

TTL_SECONDS = 3600


async def test_the_row_of_an_idle_session_expires(serve):
    """The next request gets SESSION_EXPIRED."""
    served = await serve(max_resident_sessions=1, session_ttl_seconds=TTL_SECONDS)
    await served.open("s")
    await served.ask("Step", step("s"))
    await served.open("t")  # evicts s
    served.write_behind.wall_clock.now_ns = lambda: time.monotonic_ns() + 2 * TTL_SECONDS * 10**9
    await until(lambda: "\0s" not in served.store.rows)
    assert (await served.refused("Step", step("s", 1))).reason == "SESSION_EXPIRED"


async def test_no_row_expires_before_the_server_has_run_for_as_long(serve):
    """The client may come back to a server that was down for longer than sessions may be idle."""
    first = await serve()
    await first.open("s")
    assert await first.write_behind.stop()
    first.store.rows["\0s"].used_at = 0.0
    second = await serve(session_ttl_seconds=TTL_SECONDS)
    await second.open("t")
    await second.ask("Step", step("t"))
    await until_stored(second, "t", 1)  # a sweep comes before each write of what changed
    assert "\0s" in second.store.rows

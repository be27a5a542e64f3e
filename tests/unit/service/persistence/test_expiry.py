"""Rows of sessions that nobody used for too long."""

from tests.unit.service.persistence.sessions import step, until


async def test_the_row_of_an_idle_session_expires(serve):
    """The next request gets SESSION_EXPIRED."""
    served = await serve(max_resident_sessions=1, session_ttl_seconds=0.2)
    await served.open("s")
    await served.ask("Step", step("s"))
    await served.open("t")
    await until(lambda: "\0s" not in served.store.rows)
    assert (await served.refused("Step", step("s", 1))).reason == "SESSION_EXPIRED"

"""What a balancer between client and servers sees of a session: metadata with every call."""

from fake_streamcell import Fault, draining, once

CALLS = ["OpenSession", "Step", "Stream", "Prime", "Forecast", "GetSession", "ResetSession", "CloseSession"]


async def use(session):
    """Makes every kind of call on a session."""
    await session.step([1.0])
    assert len([reply async for reply in session.stream([[2.0], [3.0]])]) == 2
    await session.prime([[4.0]])
    await session.forecast(2)
    await session.refresh()
    await session.reset()


async def test_every_call_of_a_session_has_its_id(server, connect):
    """Also a random one, from the first call on; what the client itself asks belongs to no session."""
    async with connect(metadata={"authorization": "Bearer t"}) as client:
        async with client.session() as unnamed:
            await use(unnamed)
        async with client.session(session_id="mine") as named:
            await use(named)
        await client.models()
    sent = [(method, metadata.get("x-session-id")) for method, metadata in server.metadata]
    assert sent == [
        *((method, unnamed.session_id) for method in CALLS),
        *((method, "mine") for method in CALLS),
        ("ListModels", None),
    ]
    assert {metadata["authorization"] for _, metadata in server.metadata} == {"Bearer t"}


async def test_a_recovery_goes_the_same_way(server, client):
    """The calls that find the session again, and bring the server up to date."""
    async with client.session(session_id="mine") as session:
        await session.step([1.0])
        server.crash()
        server.before_call["Step"] = once(Fault("NOT_FOUND", "SESSION_NOT_FOUND"), draining())
        await session.step([2.0])
    methods = {method for method, _ in server.calls}
    assert methods >= {"OpenSession", "Prime", "Step"}
    assert {metadata["x-session-id"] for _, metadata in server.metadata} == {"mine"}


async def test_a_session_has_metadata_of_its_own(server, client):
    """Beside the client's; a key for the balancer takes the place of the id."""
    metadata = {"x-session-id": "lane-7", "x-tenant": "a"}
    async with client.session(session_id="mine", metadata=metadata) as session:
        await use(session)
    sent = {(metadata["x-session-id"], metadata["x-tenant"]) for _, metadata in server.metadata}
    assert sent == {("lane-7", "a")}

"""Messages that arrive in part, or compressed, on the real envoy front: time, bytes, turns."""

import asyncio
import contextlib
import dataclasses
import gzip

import pytest

from service.fronts.envoy.wire import frame
from tests.integration.conftest import settings
from tests.integration.echo_service import EnvoyEchoServer
from tests.integration.raw import RawClient, message
from tests.integration.web import request

MAX_BYTES = 10_000
SETTINGS = settings(front="envoy", max_message_bytes=MAX_BYTES, max_arriving_bytes=MAX_BYTES)


@pytest.fixture(scope="module")
def address_with(server_loop):
    """Returns the address of a server with some settings, which ends after the tests of this file."""
    servers = {}

    def address_with(**changes):
        key = tuple(sorted(changes.items()))
        if key not in servers:
            server = EnvoyEchoServer()
            servers[key] = server, server_loop.run(server.start(dataclasses.replace(SETTINGS, **changes)))
        return servers[key][1]

    yield address_with
    for server, _ in servers.values():
        server_loop.run(server.stop())


@pytest.fixture
async def connect(address_with):
    """Returns the address of a server with the test's settings, and a client of bare frames."""
    async with contextlib.AsyncExitStack() as running:

        async def connect(**changes):
            address = await asyncio.to_thread(address_with, **changes)
            client = await RawClient.connect(address)
            running.push_async_callback(client.close)
            return address, client

        yield connect


class TestTime:
    """Messages that take too long."""

    @pytest.mark.parametrize("sent", [b"", message("x" * 100)[:50], message("whole")])
    async def test_a_call_whose_request_does_not_end_is_ended(self, connect, sent):
        """Whether nothing, a part or all of its message is here, as its client does not half-close."""
        _, client = await connect(arrival_timeout_seconds=0.1)
        stream = client.open("/t/Echo")
        if sent:
            client.send(stream, sent)
        assert (await client.answer(stream)).outcome == ("200", "4")
        assert (await client.call("/t/Echo", message("after"))).texts == ["after"]

    async def test_a_stream_ends_with_its_incomplete_message_alone(self, connect):
        """A stream that is silent between messages stays."""
        _, client = await connect(arrival_timeout_seconds=0.1)
        silent, half = client.open("/t/Talk"), client.open("/t/Talk")
        client.send(silent, message("say a"))
        client.send(half, message("say b") + message("say c")[:-1])
        answer = await client.answer(half)
        assert (answer.texts, answer.headers["grpc-status"]) == (["say b"], "4")
        client.send(silent, message("say d"), end=True)
        assert (await client.answer(silent)).texts == ["say a", "say d"]

    async def test_a_web_request_that_does_not_end_is_ended(self, connect):
        """Connect's way to say so."""
        _, client = await connect(arrival_timeout_seconds=0.1)
        stream = client.open("/t/Echo", content_type="application/json")
        client.send(stream, b'"half')
        answer = await client.answer(stream)
        assert answer.outcome[0] == "504"
        assert b"deadline_exceeded" in answer.data


class TestBytes:
    """More bytes than may be in arrival."""

    async def test_the_oldest_gives_way(self, connect):
        """With a reason and a delay; the newer message is served."""
        # A server of its own: what another test left there would be older, and give way first.
        _, client = await connect(max_arriving_bytes=MAX_BYTES + 1)
        text = "x" * 6000
        old, new = client.open("/t/Echo"), client.open("/t/Talk")
        client.send(old, message(text)[:-1])
        assert (await client.call("/t/Echo", message("x"))).texts == ["x"]  # `old` has been read by now
        whole = message(f"say {text}")
        client.send(new, whole[:-1])
        answer = await client.answer(old)
        assert answer.outcome == ("200", "8")
        assert "needed its room" in answer.headers["grpc-message"]
        assert answer.headers["grpc-retry-pushback-ms"] == "1000"
        client.send(new, whole[-1:], end=True)
        assert (await client.answer(new)).texts == [f"say {text}"]


class TestCompression:
    """Messages that inflate."""

    async def test_compressed_messages_keep_their_order(self, connect):
        """Among messages that are not compressed, also when they wait for a turn."""
        _, client = await connect()
        texts = [f"say {number} {'x' * 9000}" for number in range(250)]
        chunk = b"".join(
            message(text) if number % 5 == 0 else packed(text) for number, text in enumerate(texts)
        )
        stream = client.open("/t/Talk", grpc_encoding="gzip")
        for at in range(0, len(chunk), 16_000):
            await client.until(lambda: client.room(stream) >= 16_000)
            client.send(stream, chunk[at : at + 16_000])
        client.send(stream, b"", end=True)
        assert (await client.answer(stream)).texts == texts

    async def test_a_message_above_the_bound_ends_its_stream(self, connect):
        """The messages before it are answered; those behind it are not read."""
        _, client = await connect()
        stream = client.open("/t/Talk", grpc_encoding="gzip")
        client.send(stream, packed("say a") + packed("x" * MAX_BYTES) + packed("say b"))
        answer = await client.answer(stream)
        assert (answer.texts, answer.headers["grpc-status"]) == (["say a"], "8")

    async def test_a_web_request_above_the_bound_is_refused(self, connect):
        """What it inflates to counts."""
        address, _ = await connect()
        body = gzip.compress(b'"' + b"x" * (2 * MAX_BYTES) + b'"')
        found = await request(
            address, "/t/Echo", body, content_type="application/json", content_encoding="gzip"
        )
        assert found.status == 429
        assert b"resource_exhausted" in found.body


def packed(text):
    """Returns a frame with a compressed message."""
    whole = gzip.compress(message(text)[5:])
    return b"\1" + frame(whole)[1:]

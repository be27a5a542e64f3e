"""Calls that run out of time, and clients that go: each is the caller's business, and no line in the log."""

import asyncio
import contextlib
import itertools
import json

import grpc
import pytest
from grpc import aio
from streamcell.v1 import streamcell_pb2 as pb

from tests.e2e.conftest import BOUND_SECONDS

SERVICE = "/streamcell.v1.StreamcellService"
NUM_CALLS = 60  # of each kind, at the same time
CODES = {"DEADLINE_EXCEEDED", "CANCELLED", "OK", "INTERNAL"}  # the last two: the race between both sides
STEP = {"sessionId": "web", "model": "mackey-glass", "x": [0.5], "stepIndex": 0}


def step(number):
    """Returns a request for a step, as bytes."""
    return pb.StepRequest(
        session_id=f"s{number}", model="mackey-glass", x=[0.5], step_index=0
    ).SerializeToString()


async def outcome(call):
    """Returns how a call ended."""
    try:
        async for _ in call:
            pass
    except grpc.RpcError as error:
        return error.code().name
    except asyncio.CancelledError:
        return "CANCELLED"
    return "OK"


async def unfinished(first=b""):
    """Sends a message, if there is one, and then nothing for as long as the call lasts."""
    if first:
        yield first
    await asyncio.Event().wait()


async def late_calls(channel, method, request):
    """Makes calls with deadlines of 1 to 8 ms, and returns how they ended."""
    start = channel.stream_stream(f"{SERVICE}/{method}")
    calls = [start(request(number), timeout=0.001 * (1 + number % 8)) for number in range(NUM_CALLS)]
    return await asyncio.gather(*map(outcome, calls))


async def cancelled_calls(channel, method, request):
    """Makes calls that the client gives up, each a little later than the one before."""
    start = channel.stream_stream(f"{SERVICE}/{method}")
    calls = [start(request(number), timeout=BOUND_SECONDS) for number in range(NUM_CALLS)]
    loop = asyncio.get_running_loop()
    for number, call in enumerate(calls):
        loop.call_later(0.001 * (number % 8), call.cancel)
    return await asyncio.gather(*map(outcome, calls))


REQUESTS = {
    "nothing is sent": lambda number: unfinished(),
    "a message is sent": lambda number: unfinished(step(number)),
    "a stream's message is sent": lambda number: unfinished(
        pb.StreamRequest(step=pb.StepRequest.FromString(step(number))).SerializeToString()
    ),
}


# grpcio's client, in this process, leaves a request's generator running when its call ends.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("make_calls", [late_calls, cancelled_calls])
def test_late_and_cancelled_calls_are_no_line_in_the_log(start_server, make_calls):
    """Unary calls and streams, before their request is complete and after."""
    server = start_server("--max-early-resets", "1000000")
    listen = server.event("serving")["listen"]

    async def call():
        async with aio.insecure_channel(listen) as channel:
            for what, request in REQUESTS.items():
                method = "Stream" if "stream" in what else "Step"
                ended = await make_calls(channel, method, request)
                assert set(ended) <= CODES, (what, ended)
                assert "DEADLINE_EXCEEDED" in ended or "CANCELLED" in ended, (what, ended)

    asyncio.run(call())
    assert_quiet(server)


class TestWebDoor:
    """The same over Connect and gRPC-Web, on the front that speaks them."""

    @pytest.fixture
    def front(self):
        """Returns the front with the web door."""
        return "envoy"

    def test_late_and_cut_calls_are_no_line_in_the_log(self, start_server):
        """The request is complete or not; its deadline passes, or the client hangs up."""
        server = start_server("--max-early-resets", "1000000")
        address = server.event("serving")["listen"].split(":")
        kinds = itertools.product(("connect", "grpc-web"), (True, False), (True, False))

        async def call_all():
            async with asyncio.timeout(BOUND_SECONDS):
                for protocol, is_complete, is_cut in kinds:
                    text = web_request(protocol, is_complete=is_complete, has_deadline=not is_cut)
                    calls = (
                        web_call(address, text, number if is_cut else None) for number in range(NUM_CALLS)
                    )
                    await asyncio.gather(*calls)

        asyncio.run(call_all())
        assert_quiet(server)


async def web_call(address, text, milliseconds):
    """Sends a request and reads the answer's first line, or hangs up after some milliseconds if given."""
    reader, writer = await asyncio.open_connection(*address)
    with contextlib.suppress(ConnectionError):
        writer.write(text)
        await writer.drain()
        if milliseconds is None:
            assert (await reader.readline()).startswith(b"HTTP/1.1 ")
        else:
            await asyncio.sleep(0.001 * (milliseconds % 8))
    writer.transport.abort()


def web_request(protocol, *, is_complete, has_deadline):
    """Returns the bytes of a request for a step over HTTP/1.1; an incomplete one lacks its last byte."""
    body, deadline = json.dumps(STEP).encode(), "connect-timeout-ms: 3"
    kind = "application/json"
    if protocol == "grpc-web":
        message = step(0)
        body, kind = b"\0" + len(message).to_bytes(4, "big") + message, "application/grpc-web+proto"
        deadline = "grpc-timeout: 3m"
    head = [
        f"POST {SERVICE}/Step HTTP/1.1",
        "host: test",
        f"content-type: {kind}",
        f"content-length: {len(body)}",
        *([deadline] if has_deadline else []),
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + (body if is_complete else body[:-1])


def assert_quiet(server):
    """Ends the server and checks that its log has its life alone."""
    server.signal()
    status = server.wait()
    said = [json.loads(line) for line in server.lines]
    life = {"model_loaded", "serving", "draining", "stopped"}
    assert [each for each in said if each["event"] not in life or each["level"] != "info"] == []
    assert status == 0

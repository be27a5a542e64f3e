"""The echo of the envoy front: what it answers, and a real one within Envoy."""

import asyncio

import pytest

from bench import envoy_echo, raw, replies
from bench.http2 import message
from bench.processes import running
from loadtest.options import Options
from loadtest.run import run
from loadtest.server_side import process_tree
from service.fronts.envoy import launch

STEP = message(b"\x12\x34")


class Request:
    """A request whose body comes in pieces. `sent`: the events of the answer."""

    def __init__(self, path, *pieces):
        self.scope = {"type": "http", "path": path}
        self._events = [
            {"type": "http.request", "body": piece, "more_body": more}
            for piece, more in zip(pieces, [True] * (len(pieces) - 1) + [False], strict=True)
        ]
        self.sent = []

    async def receive(self):
        """Returns the next piece; after the last, the client's disconnection."""
        return self._events.pop(0) if self._events else {"type": "http.disconnect"}

    def send(self, event):
        """Records an event when it is called, without being awaited, as pyvoy sends it."""
        self.sent.append(event)

    async def answer(self):
        """Runs the application and returns the body that it sent, and its last event."""
        await envoy_echo.application(self.scope, self.receive, self.send)
        return b"".join(event.get("body", b"") for event in self.sent), self.sent[-1] if self.sent else None


@pytest.mark.parametrize("name", replies.UNARY)
async def test_every_method_has_its_answer(name):
    """The answer is sent when the request is complete, and the status after it."""
    body, last = await Request(f"/{replies.SERVICE}/{name}", STEP, b"").answer()
    assert body == message(replies.UNARY[name])
    assert last == {"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")]}


async def test_stream_answers_each_message():
    """The first as a configuration, the others as steps, wherever the bytes are cut."""
    three = STEP * 3
    body, last = await Request(f"/{replies.SERVICE}/Stream", STEP, three[:4], three[4:], b"").answer()
    assert body == message(replies.CONFIGURED) + 3 * message(replies.STREAM_STEP)
    assert last["type"] == "http.response.trailers"


async def test_unknown_method_is_unimplemented():
    """The status is in the first headers, and no trailers follow."""
    request = Request("/no.Such/Method", b"")
    await request.answer()
    assert (b"grpc-status", b"12") in request.sent[0]["headers"]


@pytest.mark.parametrize("path", ["Stream", "Step"])
async def test_client_that_is_gone_gets_nothing_more(path):
    """The call ends without trailers."""
    request = Request(f"/{replies.SERVICE}/{path}", STEP)
    request._events[0]["more_body"] = True
    _, last = await request.answer()
    assert last is None or last["type"] != "http.response.trailers"


def test_split_counts_complete_messages():
    """It returns the bytes after them, also where they are only a part of a prefix."""
    assert envoy_echo.split(b"") == (0, b"")
    assert envoy_echo.split(STEP * 2) == (2, b"")
    assert envoy_echo.split(STEP + STEP[:6]) == (1, STEP[:6])
    assert envoy_echo.split(STEP[:3]) == (0, STEP[:3])


@pytest.mark.skipif(bool(launch.why_unavailable()), reason=launch.why_unavailable() or "Envoy is there")
@pytest.mark.parametrize("mode", ["stream", "unary"])
async def test_both_generators_can_drive_it(mode):
    """The echo is two processes, both counted, and it ends when the block does."""
    with running("bench.envoy_echo", cores=()) as echo:
        assert len(process_tree(echo.pid)) == 2
        assert echo.peak_memory_bytes() > 32 << 20
        options = Options(
            target=echo.listen, mode=mode, streams=3, seconds=60.0, warm_up=0.0, max_steps=30,
            server_pid=echo.pid,
        )  # fmt: skip
        for result in (await asyncio.to_thread(raw.run, options), await run(options, asyncio.Event())):
            assert result.tally.num_errors == 0
            assert result.tally.num_steps == 30

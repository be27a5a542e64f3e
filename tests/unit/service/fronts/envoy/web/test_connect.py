"""The door for curl and browsers, as an ASGI application without a network."""

import asyncio
import json
import subprocess
import sys

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from streamcell.v1 import streamcell_pb2 as pb

from service.errors import StreamcellError
from service.fronts.envoy.application import EnvoyFront
from service.fronts.envoy.web.cors import Origins
from service.fronts.envoy.web.encoding import from_json, to_json
from tests.integration import echo_service as house
from tests.integration.conftest import settings


class Exchange:
    """One request and what is answered, as pyvoy has it: `send` and `receive` return futures."""

    def __init__(self, path, body, content_type="application/json", **headers):
        given = {
            "content-type": content_type,
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        self.scope = {
            "type": "http", "method": "POST", "path": path, "root_path": "", "scheme": "http", "client": None,
            "headers": [(name.encode(), value.encode()) for name, value in given.items()], "extensions": {},
        }  # fmt: skip
        self._events = [{"type": "http.request", "body": body, "more_body": False}]
        self._loop = asyncio.get_running_loop()
        self.is_gone = False
        self.sent = []

    def receive(self):
        """Returns what is there at once, once the request is complete."""
        future = self._loop.create_future()
        gone = {"type": "http.disconnect"}
        still = {"type": "http.request", "body": b"", "more_body": False}
        future.set_result(self._events.pop(0) if self._events else gone if self.is_gone else still)
        return future

    def send(self, event):
        """Takes an event; a client that is gone takes none."""
        future = self._loop.create_future()
        if self.is_gone:
            future.set_exception(RuntimeError("the client is gone"))
        else:
            self.sent.append(event)
            future.set_result(None)
        return future

    @property
    def answer(self):
        """Returns the status and the JSON that came."""
        return self.sent[0]["status"], json.loads(b"".join(event["body"] for event in self.sent[1:]))


@pytest.fixture
def router():
    """A house's methods."""
    return house.router(settings(front="envoy"))


@pytest.fixture
async def front(router):
    """The application over a house."""
    front = EnvoyFront(router, settings(front="envoy"))
    await front.start()
    yield front
    await front.stop(0)


def test_an_install_without_the_extra_has_the_workers_module_all_the_same():
    """Workers of the grpcio front import it too, and neither package is there."""
    code = "import sys; sys.modules.update(connectrpc=None, pyvoy=None); import service.worker"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


async def test_a_request_while_the_server_stops_is_sent_elsewhere(front, router):
    """UNAVAILABLE with DRAINING, as over gRPC."""
    router.drain()
    exchange = Exchange("/t/Echo", b'"hi"')
    await front(exchange.scope, exchange.receive, exchange.send)
    status, error = exchange.answer
    assert (status, error["code"]) == (503, "unavailable")
    assert error["details"][0]["debug"]["reason"] == "DRAINING"


async def test_headers_too_large_are_refused(front):
    """By the same bound as gRPC's metadata, in Connect's form."""
    exchange = Exchange("/t/Echo", b'"hi"', x_big="v" * 20_000)
    await front(exchange.scope, exchange.receive, exchange.send)
    status, error = exchange.answer
    assert (status, error["code"]) == (429, "resource_exhausted")


async def test_a_client_that_is_gone_is_nobodys_fault(front, capsys):
    """Its call is cancelled at the next question, and nothing is logged of what it could not be sent."""
    exchange = Exchange("/t/Wait", b'"x"')
    exchange.is_gone = True
    await asyncio.wait_for(front(exchange.scope, exchange.receive, exchange.send), 10)
    assert exchange.sent == []
    told = Exchange("/t/Told", b'""')
    await front(told.scope, told.receive, told.send)
    assert told.answer == (200, "waits x,left x")
    assert "fault" not in capsys.readouterr().err


NAMES = [*pb.StepRequest.DESCRIPTOR.fields_by_name, "sessionId", "?"]
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner),
    max_leaves=8,
)


@hypothesis_settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=60), VALUES.map(lambda value: json.dumps(value).encode())))
def test_any_text_is_a_message_or_an_invalid_argument(text):
    """Nothing else comes of what a caller may send."""
    code, message = 0, ""
    try:
        pb.StepRequest.FromString(asyncio.run(from_json(text, pb.StepRequest)))
    except StreamcellError as error:
        code, message = error.code, error.message
    assert code in (0, 3)
    assert len(message) < 500


@pytest.mark.parametrize("size", [10, 100_000])
async def test_large_and_small_messages_are_converted_alike(size):
    """In the loop or in a thread, and back to the same."""
    raw = StringValue(value="x" * size).SerializeToString()
    assert await from_json(await to_json(raw, StringValue), StringValue) == raw


@pytest.mark.parametrize(
    ("flag", "origin", "allowed"),
    [
        ("*", b"https://any.example", b"*"),
        ("https://a, https://b", b"https://b", b"https://b"),
        ("https://a", b"https://a.evil", None),
        ("https://a", b"null", None),
    ],
)
def test_which_origins_are_allowed(flag, origin, allowed):
    """Whole origins, or all; a refused one is told nothing but that it depends."""
    asked = {b"origin": origin, b"access-control-request-method": b"POST"}
    assert dict(Origins(flag).preflight("OPTIONS", asked)).get(b"access-control-allow-origin") == allowed
    assert Origins(flag).preflight("POST", asked) is None
    assert Origins("").preflight("OPTIONS", asked) is None

"""The web protocols for curl and browsers, as an ASGI application without a network."""

import asyncio
import json
import subprocess
import sys

import pytest

from service.fronts.envoy.application import EnvoyFront
from tests.integration import echo_service
from tests.integration.conftest import BOUND_SECONDS, settings


class Exchange:
    """One request and its answer, as pyvoy has it: `send` and `receive` return futures."""

    def __init__(self, path, body, content_type="application/json", **headers):
        fields = {
            "content-type": content_type,
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        self.scope = {
            "type": "http", "method": "POST", "path": path, "root_path": "", "scheme": "http", "client": None,
            "headers": [(name.encode(), value.encode()) for name, value in fields.items()], "extensions": {},
        }  # fmt: skip
        self._events = [{"type": "http.request", "body": body, "more_body": False}]
        self._loop = asyncio.get_running_loop()
        self.is_gone = False
        self.sent = []

    def receive(self):
        """Returns the next event; after a complete request, at once whether the client is still connected."""
        future = self._loop.create_future()
        gone = {"type": "http.disconnect"}
        still = {"type": "http.request", "body": b"", "more_body": False}
        future.set_result(self._events.pop(0) if self._events else gone if self.is_gone else still)
        return future

    def send(self, event):
        """Records an event, or fails if the client is gone."""
        future = self._loop.create_future()
        if self.is_gone:
            future.set_exception(RuntimeError("the client is gone"))
        else:
            self.sent.append(event)
            future.set_result(None)
        return future

    @property
    def answer(self):
        """The answer's status and JSON."""
        return self.sent[0]["status"], json.loads(b"".join(event["body"] for event in self.sent[1:]))


@pytest.fixture
def router():
    """The echo service's methods."""
    return echo_service.router(settings(front="envoy"))


@pytest.fixture
async def front(router):
    """The application over the echo service."""
    front = EnvoyFront(router, settings(front="envoy"))
    await front.start()
    yield front
    await front.stop(0)


def test_an_install_without_the_extra_has_the_workers_module_all_the_same():
    """Workers of the grpcio front import the module too, without either package."""
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
    """The next check of the client cancels the call; an answer that cannot be sent is no fault."""
    exchange = Exchange("/t/Wait", b'"x"')
    exchange.is_gone = True
    await asyncio.wait_for(front(exchange.scope, exchange.receive, exchange.send), BOUND_SECONDS)
    assert exchange.sent == []
    events = Exchange("/t/Events", b'""')
    await front(events.scope, events.receive, events.send)
    assert events.answer == (200, "waits x,left x")
    assert "fault" not in capsys.readouterr().err

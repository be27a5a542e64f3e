"""One server over a store in memory; each input begins with the same sessions, in several states."""

import asyncio
import atexit
import logging

from streamcell.v1 import streamcell_pb2 as pb

from service.engine.engine import Engine
from service.engine.session_ref import SessionRef
from service.errors import Code
from service.rpc.methods import Call, Unary
from service.rpc.statuses import RefusedError
from service.runtime.runner import Runner
from service.store.base import Claim
from tests import fakes
from tests.fake_store import FakeStore, Row
from tests.fakes.models import FAULT_TEXT

_BOUND_SECONDS = 60.0  # for what takes milliseconds: a call that is never answered fails here
_MAX_RUNS = 500  # then a new server, so that nothing grows
T0 = 1_700_000_000 * 10**9
SETTINGS = {
    "max_resident_sessions": 16, "max_hold_seconds": 0.0, "checkpoint_interval_seconds": 3600,
    "session_ttl_seconds": 0, "max_message_bytes": 1 << 16,
}  # fmt: skip


class _Faults(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.texts = []

    def emit(self, record):
        formatter = logging.Formatter()
        text = formatter.formatException(record.exc_info) if record.exc_info else record.getMessage()
        if FAULT_TEXT not in text:  # the model raises on one input, by design
            self.texts.append(text)


def check(refusal):
    """Checks that a call was refused in words, and not by a fault."""
    assert refusal.status.code != Code.INTERNAL, refusal.status.message


class World:
    """A server that takes one input after another; `run` raises if a fault was logged or nothing answered."""

    def __init__(self):
        self._runner = None
        self._num_runs = 0
        # Made once: torch never gives back what it compiles.
        models = fakes.recurrence(num_future=1), fakes.renamed(fakes.recurrence(True), "timed", "1")
        self._runners = [(model, Runner(model, SETTINGS["max_resident_sessions"])) for model in models]
        self._faults = _Faults()
        logging.getLogger("streamcell").addHandler(self._faults)
        atexit.register(self.close)

    def run(self, behaviour):
        """Runs a coroutine function over the server, with fresh sessions, and then uses every session."""
        if self._runner is None or self._num_runs >= _MAX_RUNS:
            self._renew()
        self._num_runs += 1
        try:
            self._runner.run(self._run(behaviour))
        except BaseException as error:
            self._num_runs = _MAX_RUNS
            error.add_note("\n".join(self._faults.texts))
            raise

    def _renew(self):
        self.close()
        self._num_runs = 0
        self._runner = asyncio.Runner()
        loop = self._runner.get_loop()
        loop.set_exception_handler(lambda _, context: self._faults.texts.append(str(context)))
        self._runner.run(self._start())

    async def _start(self):
        clock, loop = fakes.ManualClock(), asyncio.get_running_loop()

        def engines(settings, metrics):
            return [
                Engine(runner, settings, metrics.of_model(model.name, model.version), loop=loop, clock=clock)
                for model, runner in self._runners
            ]

        self.store = FakeStore()
        self.served = fakes.Served(engines=engines, clock=clock, store=self.store, **SETTINGS)
        await self.served.write_behind.start()

    def close(self):
        """Ends the server."""
        if self._runner is not None:
            self._runner.run(self.served.write_behind.abandon())
            self._runner.close()
            self._runner = None

    async def _run(self, behaviour):
        self._faults.texts.clear()
        async with asyncio.timeout(_BOUND_SECONDS):
            await self._begin()
            await behaviour(self)
            await self._use_all()
        if self.store.trouble or self.served.write_behind.trouble:
            self._num_runs = _MAX_RUNS  # a server asks only twice a second whether its store is back
        assert not self._faults.texts, "\n".join(self._faults.texts)

    async def _begin(self):
        for engine in self.served.engines:
            for slot in engine.sessions.all_slots().tolist():
                engine.residents.close(slot)
        await self.served.write_behind.claim(
            Claim("\0none", False, True, False)
        )  # all deletions go before it
        self.store.rows.clear()
        self.store.ended.clear()
        await self.served.open("live", "stored", "theirs", model="recurrence")
        await self.served.open("timed", model="timed")
        durable = pb.OpenSessionRequest(session_id="durable", model="recurrence", durable=True)
        await self.served.ask("OpenSession", durable)
        for name in ("live", "stored", "theirs"):
            await self.served.ask("Step", pb.StepRequest(session_id=name, x=[1.0, 2.0]))
        await self.served.ask("Step", pb.StepRequest(session_id="timed", x=[1.0, 2.0], time_ns=T0))
        session = self.served.catalog.find("", "stored")
        await self.served.catalog.persistence.wait_until_stored(session)
        session.engine.residents.evict(session.slot)
        row = self.store.rows["\0theirs"]
        self.store.rows["\0theirs"] = Row(row.epoch + 1, "another's", row.used_at, row.record)

    async def _use_all(self):
        """Uses every session: what was accepted must go on working, or be refused in words."""
        keys = [session.session_id for session in self._sessions()]
        for name in keys:
            await self.answer("GetSession", pb.GetSessionRequest(session_id=name))
            await self.answer("Forecast", pb.ForecastRequest(session_id=name, horizon_steps=2))
            await self.answer("Step", pb.StepRequest(session_id=name, x=[0.5, 0.25]))
            await self.answer("SnapshotSession", pb.SnapshotSessionRequest(session_id=name))

    def _sessions(self):
        for engine in self.served.engines:
            for slot in engine.sessions.all_slots().tolist():
                if engine.sessions.key(slot).startswith("\0"):
                    yield SessionRef.at(engine, slot)

    async def answer(self, name, request):
        """Returns the response to a unary request, None if it is refused."""
        try:
            return await self.served.ask(name, request)
        except RefusedError as refusal:
            check(refusal)
            return None

    async def answer_raw(self, path, raw):
        """Asks a unary method with any bytes."""
        method = self.served.router.methods[path]
        assert isinstance(method, Unary)
        try:
            await self.served.router.answer(method, raw, Call())
        except RefusedError as refusal:
            check(refusal)

    async def converse(self, path, messages):
        """Sends a stream's messages, as a front would, and reads to the stream's end."""
        stream = self.served.stream(path)
        try:
            for raw in messages:
                while stream.is_full and not stream.is_over:
                    await fakes.next_message(stream)
                stream.receive(raw)
            if path.endswith("/Watch"):  # it goes on until its client leaves
                return
            stream.half_close()
            while await fakes.next_message(stream) is not None:
                pass
            if stream.status is not None:
                check(RefusedError(stream.status))
        finally:
            self.served.router.close(stream)

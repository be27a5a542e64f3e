"""Clients that speak the protocol by hand, and know little of it.

`Plain` gives no step index, goes from server to server, and opens the session again when it is refused.
`Indexed` numbers its steps, keeps them, and sends steps a second time. `Frames` sends frames of several
sessions on a stream. Does not know the client library.
"""

import asyncio

import grpc
import numpy as np
from google.rpc import status_pb2
from google.rpc.error_details_pb2 import ErrorInfo
from streamcell.v1 import streamcell_pb2 as pb

_LAST_CALLS = 4  # after the troubles
_MAX_LAST_CALLS = 20  # until one is answered
_LAST_PAUSE_SECONDS = 0.3
_PATIENCE_SECONDS = 30.0
_GRACE_SECONDS = 3.0
_PASSING = {"", "STORE_UNAVAILABLE", "DRAINING", "OVERLOADED", "SESSION_EXISTS"}


def reason_of(error):
    """Returns the reason and the metadata of a refusal; "" for an error of the connection."""
    for key, value in error.trailing_metadata():
        if key == "grpc-status-details-bin":
            info = ErrorInfo()
            status_pb2.Status.FromString(value).details[0].Unpack(info)
            return info.reason, dict(info.metadata)
    return "", {}


class ByHand:
    """What these clients share: stubs of all servers, and calls that may fail."""

    def __init__(self, world, name, number):
        self.world = world
        self.name = name
        self.label = f"client{number}"
        self.random = world.seeded(f"client {number}")
        self.waits_for = "to begin"
        self.names = [host.name for host in world.hosts]
        self.stubs = {}
        self.host = self.random.choice(self.names)
        self.is_durable = name.startswith("d")

    def stub(self):
        """Returns a stub of the present server."""
        if self.host not in self.stubs:
            self.stubs[self.host] = self.world.network.stub(self.host)
        return self.stubs[self.host]

    def move(self):
        """Goes to another server, perhaps."""
        self.host = self.random.choice(self.names)

    async def call(self, method, request, seconds=_PATIENCE_SECONDS):
        """Makes a call; returns the reply and None, or None with reason and metadata."""
        self.waits_for = f"{self.label} for {method} at {self.host}"
        began = self.world.loop.time()
        try:
            return await getattr(self.stub(), method)(request, timeout=seconds), None
        except grpc.aio.AioRpcError as error:
            reason, metadata = reason_of(error)
            is_slow = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and seconds >= _PATIENCE_SECONDS
            if is_slow:
                self.world.fail(f"{self.label}: {method} was not answered in {seconds:g} s")
            elif (
                reason in _PASSING
                and began > self.world.calm_at + _GRACE_SECONDS
                and reason != "SESSIONS_FULL"
            ):
                self.world.fail(
                    f"{self.label}: {method} failed although all is well: {reason} {error.details()}"
                )
            self.world.note(self.label, f"{method} at {self.host}: {reason or error.details()}")
            return None, (reason, metadata)

    async def open(self, name):
        """Opens a session, or finds it; returns where it stands, None if that fails."""
        reply, _ = await self.call(
            "OpenSession", pb.OpenSessionRequest(session_id=name, durable=self.is_durable)
        )
        return None if reply is None else reply.session.next_step_index

    async def run(self):
        """Runs to the end of the troubles, and a few calls more."""
        num_last = 0
        while num_last < _LAST_CALLS:
            num_last += self.world.is_calm
            if self.random.random() < 0.3:
                self.move()
            await self.act()
            await self.think()
        await self.finish()
        self.waits_for = ""

    async def think(self):
        """Pauses, now and then for so long that the session is idle."""
        seconds = self.random.choice((1.2, 2.0, 4.0)) if self.random.random() < 0.12 else 0.25
        await asyncio.sleep(self.random.random() * seconds)

    async def act(self):
        """Makes some calls."""

    async def finish(self):
        """Makes sure that all works at the end."""


class Plain(ByHand):
    """Sends steps without an index; all inputs are the same."""

    def __init__(self, world, name, number):
        super().__init__(world, name, number)
        self.session = world.oracle.add(name, is_constant=True, is_durable=self.is_durable)
        self.low = self.high = 0  # steps that are applied for certain, and perhaps
        self.seen = 0  # takeovers of the session, losses and crashes up to the last answer
        self.num_answered = 0
        self.num_stale = 0
        self.trusts = True  # whether what it knows does not come from an old copy
        self.is_open = False

    async def act(self):
        """Opens the session if it has to, and steps."""
        before = self._events()
        if not self.is_open:
            found = await self.open(self.name)
            if found is None:
                return
            if self._is_stale():
                self.trusts = False
            else:
                if self.trusts:
                    self._check(found)
                self.trusts = True
            self._know(found, before)
            self.is_open = True
            before = self._events()
        self.high += 1
        request = pb.StepRequest(session_id=self.name, x=[self.session.truth.x(0)])
        reply, refusal = await self.call("Step", request)
        if reply is not None and self._is_stale():
            self.is_open = self.trusts = False
        elif reply is not None:
            if self.trusts:
                self._check(reply.step_index, is_step=True)
            self.trusts = True
            self._know(reply.step_index + 1, before)
            self.num_answered += 1
        elif refusal[0] in ("SESSION_FENCED", "SESSION_NOT_FOUND"):
            self.is_open = False
        elif not refusal[0]:
            self.move()

    def _is_stale(self):
        """Returns whether an answer came from an old copy: positions say little until the next opening."""
        was, self.num_stale = self.num_stale, self.session.num_stale
        return was != self.num_stale

    def _know(self, num_steps, events):
        self.low = self.high = num_steps
        self.seen = events

    def _events(self):
        """Returns what can take steps that were not told as stored."""
        spec = self.session
        return spec.takeovers, spec.lost_at, len(self.world.oracle.crashes)

    def _check(self, index, *, is_step=False):
        if self.session.lost_at >= 0 and self._events() != self.seen:
            return  # an older copy may come back, or a newer one
        most = self.high - 1 if is_step else self.high
        if index > most:
            self.world.fail(f"{self.label}: {self.name} is at {index}; only {self.high} were sent")
        elif index < self.low and self._events() == self.seen and self.is_open:
            self.world.fail(f"{self.label}: {self.name} is at {index} after {self.low}, and nothing happened")

    async def finish(self):
        """Steps until a step is answered."""
        for _ in range(_MAX_LAST_CALLS):
            before = self.num_answered
            await self.act()
            if self.num_answered > before:
                return
            await asyncio.sleep(_LAST_PAUSE_SECONDS)
        self.world.fail(f"{self.label}: no step of {self.name} is answered at the end")


class Indexed(ByHand):
    """Numbers its steps, sends any of them again, and follows what servers say to expect."""

    def __init__(self, world, name, number):
        super().__init__(world, name, number)
        self.session = world.oracle.add(name, is_durable=self.is_durable)
        self.next = 0
        self.is_open = False

    async def act(self):
        """Sends the next step, or one again."""
        if not self.is_open:
            found = await self.open(self.name)
            if found is None:
                return
            self.next, self.is_open = found, True
        draw = self.random.random()
        if draw < 0.08:
            await self._look()
            return
        back = 0 if draw < 0.7 else self.random.randint(1, 10)
        await self._step(max(0, self.next - back))

    async def _look(self):
        request = pb.GetSessionRequest(session_id=self.name)
        reply, refusal = await self.call("GetSession", request)
        if reply is not None:
            self.next = reply.session.next_step_index
        else:
            self._follow(refusal)

    async def _step(self, index):
        x = self.session.truth.x(index)
        request = pb.StepRequest(session_id=self.name, x=[x], step_index=index)
        is_impatient = self.random.random() < 0.05
        reply, refusal = await self.call("Step", request, 0.05 if is_impatient else _PATIENCE_SECONDS)
        if reply is not None:
            self.next = max(self.next, index + 1)
        else:
            self._follow(refusal)

    def _follow(self, refusal):
        reason, metadata = refusal
        if "expected_step_index" in metadata:
            self.next = int(metadata["expected_step_index"])
        elif reason in ("SESSION_FENCED", "SESSION_NOT_FOUND"):
            self.is_open = False
        else:
            self.move()

    async def finish(self):
        """Steps until the next step is answered."""
        for _ in range(_MAX_LAST_CALLS):
            if not self.is_open:
                await self.act()
                await asyncio.sleep(_LAST_PAUSE_SECONDS)
                continue
            before = self.next
            await self._step(before)
            if self.next == before + 1:
                return
            await asyncio.sleep(_LAST_PAUSE_SECONDS)
        self.world.fail(f"{self.label}: no step of {self.name} is answered at the end")


class Frames(ByHand):
    """Sends frames with a step each of three sessions on a stream, by number or by id."""

    def __init__(self, world, name, number):
        super().__init__(world, name, number)
        self.sessions = [world.oracle.add(f"{name}-{letter}", is_durable=self.is_durable) for letter in "xyz"]
        self.next = {session.name: 0 for session in self.sessions}
        self.num_answered = 0

    async def act(self):
        """Opens the sessions and a stream, and sends frames until something breaks."""
        for session in self.sessions:
            found = await self.open(session.name)
            if found is None:
                self.move()
                return
            self.next[session.name] = found
        self.waits_for = f"{self.label} for a stream at {self.host}"
        call = self.stub().Stream()
        try:
            await self._converse(call)
        except grpc.aio.AioRpcError as error:
            self.world.note(self.label, f"the stream broke: {error.details()}")
            self.move()
        finally:
            call.cancel()

    async def _converse(self, call):
        config = pb.StreamConfig(session_ids=[session.name for session in self.sessions])
        await call.write(pb.StreamRequest(request_id=1, config=config))
        reply = await call.read()
        if not isinstance(reply, pb.StreamResponse) or reply.WhichOneof("response") == "error":
            return
        for number in range(2, 2 + self.random.randint(3, 15)):
            await call.write(pb.StreamRequest(request_id=number, frame=self._frame()))
            reply = await call.read()
            if not isinstance(reply, pb.StreamResponse):
                return
            if not self._follow(reply):
                return
            await self.think()

    def _frame(self):
        indexes = [self.next[session.name] for session in self.sessions]
        if self.random.random() < 0.2:
            indexes = [max(0, index - 1) for index in indexes]
        x = [session.truth.x(index) for session, index in zip(self.sessions, indexes, strict=True)]
        ids = [session.name for session in self.sessions] if self.random.random() < 0.5 else []
        return pb.Frame(
            session_ids=ids,
            x_raw=np.array(x, "<f4").tobytes(),
            step_index_raw=np.array(indexes, "<u8").tobytes(),
        )

    def _follow(self, reply):
        """Takes note of an answer; returns whether to go on with the stream."""
        if reply.WhichOneof("response") == "error":
            self.world.note(self.label, f"the frame failed: {reply.error.reason}")
            return False
        failed = {each.entry: each.error for each in reply.frame.errors}
        indexes = np.frombuffer(reply.frame.step_index_raw, "<u8").tolist()
        for entry, session in enumerate(self.sessions):
            if entry not in failed:
                self.next[session.name] = max(self.next[session.name], indexes[entry] + 1)
                self.num_answered += 1
            elif "expected_step_index" in failed[entry].metadata:
                self.next[session.name] = int(failed[entry].metadata["expected_step_index"])
        return all(error.reason in ("STEP_GAP", "STEP_FORGOTTEN", "OVERLOADED") for error in failed.values())

    async def finish(self):
        """Sends frames until entries are answered."""
        for _ in range(_MAX_LAST_CALLS):
            before = self.num_answered
            await self.act()
            if self.num_answered > before:
                return
            await asyncio.sleep(_LAST_PAUSE_SECONDS)
        self.world.fail(f"{self.label}: no frame of {self.name} is answered at the end")

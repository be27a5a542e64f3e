"""Clients that use the client library: they step, stream, prime, forecast, reset, cancel, move, and give up.

What a program checks is what a user sees: that predictions come in order, that no answered step is missing,
and that an error is one that the troubles excuse. The bits are the oracle's affair. Does not know servers.
"""

import asyncio

from streamcell import (
    Client,
    DeadlineExceeded,
    Fenced,
    InvalidArgument,
    Limits,
    Overloaded,
    RetryPolicy,
    SessionExists,
    SessionNotFound,
    SessionsFull,
    Sources,
    StepConflict,
    StepForgotten,
    StepGap,
    StreamcellError,
    StreamInterrupted,
    Timeout,
    Unavailable,
)

_GRACE_SECONDS = 3.0  # after the troubles, until which an operation may still suffer from them
_LAST_CALLS = 3  # after the troubles


class Program:
    """What all clients of the library share: a session, and how far it has come for certain.

    `low` steps are answered; up to `high` may be applied.
    """

    is_alone = True
    choices = (
        ("step", 8), ("steps", 4), ("stream", 5), ("prime", 3), ("forecast", 2), ("refresh", 2), ("reset", 1),
        ("cancelled", 4), ("pause", 4), ("reopen", 2), ("close", 1),
    )  # fmt: skip

    def __init__(self, world, name, number):
        self.world = world
        self.name = name
        self.random = world.seeded(f"client {number}")
        self.spec = world.oracle.sessions.get(name) or world.oracle.add(
            name, is_durable=name.startswith("d"), is_constant=False
        )
        self.truth = self.spec.truth
        self.label = f"client{number}"
        self.low = self.high = 0
        self.session = None
        self.waits_for = "to begin"
        self.lost_before = -1.0  # losses of the store up to then are accounted for
        self.takeovers = 0
        self.num_stale = 0  # answers from old copies up to the last opening
        self.base = 0
        self.is_weak = False  # whether answered steps may be missing, because this client never sent them

    # -- The run ---------------------------------------------------------------------------------

    async def run(self):
        """Runs to the end of the troubles, and a few calls more."""
        hosts = [host.name for host in self.world.hosts]
        self.random.shuffle(hosts)
        uniform = self.random.uniform
        client = Client(
            ",".join(hosts[: self.random.choice((1, 2, 3))]),
            timeout=Timeout(connect_seconds=4.0, call_seconds=self.random.choice((1.0, 5.0, 20.0))),
            retry=RetryPolicy(max_total_seconds=self.random.choice((3.0, 15.0, 60.0))),
            limits=Limits(window_steps=self.random.choice((1, 4, 8)), message_steps=16),
            sources=Sources(self.world.loop.time, asyncio.sleep, uniform),
        )
        async with client:
            num_last = 0
            while num_last < _LAST_CALLS:
                if self.world.is_calm:
                    num_last += 1
                try:
                    await self._with_session(client)
                except StreamcellError as error:
                    await self._go_on_after(error, "open")
            await self._finish(client)
        self.waits_for = ""

    async def _finish(self, client):
        """Makes sure that the session is whole."""
        async with self._opened(client) as self.session:
            await self.session.refresh()
            self._adopt(self.session.next_step_index)
            for call in ("step", "steps", "forecast"):
                await self._do(call)
        self.world.note(self.label, "finished")

    def _opened(self, client):
        self.waits_for = f"{self.label} to open {self.name}"
        return client.session(session_id=self.name, durable=self.spec.is_durable, keep=True)

    async def _with_session(self, client):
        """Opens the session and makes some calls."""
        async with self._opened(client) as self.session:
            found = self.session.next_step_index
            self.world.note(self.label, f"opened at {found}, {self.low} to {self.high} are known")
            self.is_weak = True  # a new session object has no tail
            self._check_position(found)
            is_doubtful = bool(self.truth.life and found and not self._is_sure)  # perhaps from before a reset
            self.num_stale = self.spec.num_stale
            self._adopt(found)
            self.base = found  # of the steps before this one, nothing is known to be in the store
            self._learn_stored(0)
            if is_doubtful:
                await self._begin_anew()
            for _ in range(self.random.randint(1, 8)):
                call = self._draw()
                if call == "reopen":
                    break
                if call == "close":
                    await self._close(client)
                    break
                if not await self._do(call):
                    break
                await asyncio.sleep(self.random.expovariate(4.0))

    def _draw(self):
        names, weights = zip(*self.choices, strict=True)
        call = self.random.choices(names, weights)[0]
        # A store that goes back behind a reset brings back the steps before it: nobody can tell.
        return "step" if call == "reset" and self.world.plan.loses_rows else call

    async def _do(self, call):
        """Makes one call; returns whether to go on with the session."""
        self.waits_for = f"{self.label} {self.name} to {call}"
        began = self.world.loop.time()
        self.world.note(self.label, f"{call} from {self.low} to {self.high}")
        try:
            await getattr(self, f"_{call}")()
        except StreamcellError as error:
            self._judge(error, call, began)
            return await self._refresh_after(error)
        return True

    # -- Calls -----------------------------------------------------------------------------------

    def _rows(self, count):
        first = self.session.next_step_index
        return [[self.truth.x(index)] for index in range(first, first + count)]

    def _learn_stored(self, num_steps):
        """Takes note of how many steps are stored: with the tail of this object, none can be missing then."""
        if num_steps >= self.base:
            self.is_weak = False

    @property
    def _is_sure(self):
        """Whether this client alone moves the session; the store lost nothing, and no old copy answered."""
        # After a loss, an older copy on a server may take the session over, or a newer one.
        is_lost = self.spec.lost_at > self.lost_before
        is_lost |= self.spec.lost_at >= 0 and self.spec.takeovers != self.takeovers
        return self.is_alone and self.spec.num_stale == self.num_stale and not is_lost

    def _sent(self, count):
        self.high = max(self.high, self.session.next_step_index + count)

    def _got(self, index):
        """Takes note of an answered step."""
        if self._is_sure and not self.low <= index <= self.high:
            self.world.fail(f"{self.label}: got step {index}, with {self.low} to {self.high} known")
        self.low = index + 1
        self.high = max(self.high, self.low)

    async def _step(self):
        rows = self._rows(1)
        self._sent(1)
        prediction = await self.session.step(rows[0])
        self._got(prediction.step_index)
        self._learn_stored(prediction.num_durable_steps)
        self.high = self.low

    async def _steps(self):
        for _ in range(self.random.randint(2, 5)):
            await self._step()

    async def _stream(self):
        rows = self._rows(self.random.randint(1, 12))
        self._sent(len(rows))
        expected = self.session.next_step_index
        stream = self.session.stream(self._slowly(rows))
        try:
            async for prediction in stream:
                index = prediction.step_index
                if index != expected:
                    self.world.fail(f"{self.label}: streamed step {index} where {expected} was due")
                self._got(index)
                expected += 1
        finally:
            await stream.aclose()  # a stream that is left open goes on
        self.high = self.low

    async def _slowly(self, rows):
        is_slow = self.random.random() < 0.3
        for row in rows:
            if is_slow:
                await asyncio.sleep(self.random.random() * 0.5)
            yield row

    async def _prime(self):
        rows = self._rows(self.random.randint(1, 20))
        self._sent(len(rows))
        index = (await self.session.prime(rows)).step_index
        if self._is_sure and not self.low <= index < self.high:
            self.world.fail(f"{self.label}: primed up to {index}, with {self.low} to {self.high} known")
        self.low = self.high = index + 1

    async def _forecast(self):
        count = self.session.next_step_index
        if count and self.low == self.high:
            await self.session.forecast(3)

    async def _refresh(self):
        info = await self.session.refresh()
        self._check_position(info.next_step_index)
        is_doubtful = bool(self.truth.life and info.next_step_index and not self._is_sure)
        self._adopt(info.next_step_index)
        self._learn_stored(info.num_durable_steps)

        if is_doubtful:
            await self._begin_anew()

    async def _begin_anew(self):
        """Resets the session, whatever it takes: it is not known from which life its state is."""
        self.spec.unsure += 1
        self.truth.life += 1
        self.low = 0
        await self._reset_until_done()

    async def _reset(self):
        spec = self.spec
        spec.unsure += 1
        self.truth.life += 1
        self.low = 0
        await self.session.reset()
        spec.unsure -= 1
        self.low = self.high = self.base = 0
        self.is_weak = False

    async def _pause(self):
        await asyncio.sleep(self.random.choice((0.3, 0.8, 1.5, 3.0)))

    async def _cancelled(self):
        """Gives a call up while it is under way, and asks where the session stands."""
        call = self.random.choice((self._steps, self._stream, self._prime, self._forecast))
        try:
            async with asyncio.timeout(self.random.random() ** 3):
                await call()
        except TimeoutError:
            self.world.note(self.label, "gave up")
        await self._refresh()

    async def _close(self, client):
        """Ends the session for good."""
        self.waits_for = f"{self.label} to close {self.name}"
        self.spec.unsure += 1
        self.low = 0
        closing = client.session(session_id=self.name, keep=False)
        closing._created = True  # as if this object had created it: the library closes only what it created
        try:
            async with closing:
                pass
        finally:
            self.spec.unsure -= 1
        self.is_weak = True

    # -- Errors ----------------------------------------------------------------------------------

    def _judge(self, error, call, began):
        """Checks that the troubles excuse an error."""
        kind = type(error).__name__
        self.world.note(self.label, f"{call}: {kind}: {error}")
        if isinstance(error, Unavailable | DeadlineExceeded | Overloaded | Fenced | SessionExists):
            if began > self.world.calm_at + _GRACE_SECONDS:
                self.world.fail(f"{self.label}: {call} failed although all is well: {kind}: {error}")
        elif isinstance(error, StepGap | SessionNotFound):
            self._check_excuse(f"{call}: {kind}: {error}")
        elif isinstance(error, SessionsFull):
            pass  # the oracle knows whether it is true
        elif not self._excuses(error):
            self.world.fail(f"{self.label}: {call}: {kind}: {error}")

    def _excuses(self, error):
        """Returns whether a program of this kind may meet an error."""
        if isinstance(error, InvalidArgument):  # a session without a step has no forecast: the oracle knows
            return True
        is_lost = not self._is_sure or self.spec.lost_at >= 0
        is_elsewhere = isinstance(error, StepForgotten | StepConflict) and is_lost
        return isinstance(error, StreamInterrupted) or is_elsewhere

    def _check_excuse(self, what):
        """Checks that answered steps may be missing: the store lost the row, or they were another's."""
        if self._is_sure and not self.is_weak and self.spec.lost_at < 0:
            self.world.fail(f"{self.label}: {what}; nothing took the session's steps")

    def _check_position(self, next_step):
        """Checks that a session stands where this client left it."""
        if not self._is_sure or self.low <= next_step <= self.high:
            return
        if next_step > self.high and self.spec.lost_at < 0:  # else a copy of before the loss may have won
            self.world.fail(f"{self.label}: stands at {next_step}; {self.high} were sent")
        elif self.session is not None and not self.is_weak:
            self._check_excuse(f"stands at {next_step}, {self.low} were answered")

    def _adopt(self, next_step):
        self.low = self.high = next_step
        self.lost_before = self.spec.lost_at
        self.takeovers = self.spec.takeovers

    async def _refresh_after(self, error):
        """Asks where the session stands; returns whether to go on with it."""
        if self.spec.unsure and self.is_alone:
            return await self._reset_until_done()
        try:
            await self._refresh()
        except StreamcellError as again:
            await self._go_on_after(again, "refresh")
            return False
        return True

    async def _reset_until_done(self):
        """Repeats a reset of which it is not known whether it was done."""
        while True:
            began = self.world.loop.time()
            self.waits_for = f"{self.label} {self.name} to reset again"
            try:
                await self.session.reset()
            except SessionNotFound:
                self.spec.unsure -= 1
                return False
            except StreamcellError as error:
                self._judge(error, "reset", began)
                await asyncio.sleep(0.2)
            else:
                self.spec.unsure -= 1
                self.low = self.high = self.base = 0
                self.is_weak = False
                return True

    async def _go_on_after(self, error, call):
        self._judge(error, call, min(self.world.loop.time(), self.world.calm_at))
        await asyncio.sleep(0.1 + self.random.random() * 0.5)


class Alone(Program):
    """The only client of its session."""


class Shared(Program):
    """One of several clients of one session: each sends the same input under the same index."""

    is_alone = False
    choices = (
        ("step", 8), ("steps", 4), ("stream", 5), ("prime", 3), ("forecast", 2), ("refresh", 2),
        ("cancelled", 4), ("pause", 4), ("reopen", 2),
    )  # fmt: skip

    def _excuses(self, error):
        """Returns whether a program of this kind may meet an error."""
        # The other client is ahead by more than the server keeps, or has begun anew.
        return isinstance(error, StreamInterrupted | StepForgotten | InvalidArgument)

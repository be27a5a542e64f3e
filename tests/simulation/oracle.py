"""Knows what is true, and holds every answer against it, at the moment when a server gives it.

The oracle sees the rows of the store as they change, what servers hear from the store, and every request
and response. Each wrong answer is a `fault`. It trusts nothing that a server remembers, but for when a
session was last used there. Does not know how clients go on.

What is promised as stored counts unless the scenario took it: `is_settled` says when it counts again.
"""

import numpy as np
from google.rpc import status_pb2
from google.rpc.error_details_pb2 import ErrorInfo
from streamcell.v1 import streamcell_pb2 as pb

from service.engine import snapshot
from service.engine.session_key import key_of
from service.store.base import ClaimStatus, WriteKind, WriteStatus
from tests.simulation.model import Truth, forecast_of

_REQUESTS = {
    "OpenSession": (pb.OpenSessionRequest, pb.OpenSessionResponse),
    "GetSession": (pb.GetSessionRequest, pb.GetSessionResponse),
    "ResetSession": (pb.ResetSessionRequest, pb.ResetSessionResponse),
    "CloseSession": (pb.CloseSessionRequest, pb.CloseSessionResponse),
    "Step": (pb.StepRequest, pb.StepResponse),
    "Prime": (pb.PrimeRequest, pb.PrimeResponse),
    "Forecast": (pb.ForecastRequest, pb.ForecastResponse),
}
# After trouble with the store a server may refuse for so long: a pause, a probe, and its patience.
_AFTERMATH_SECONDS = 4.0
# A server in use finds out that it lost a session within an interval and a slow write.
_NOTICE_SECONDS = 5.0
# What a server may always answer.
_PLAIN = {"DRAINING", "OVERLOADED"}


class Fault(AssertionError):  # noqa: N818 (a fault of the servers, not of the simulation)
    """A server told something that is not so."""


def steps_in(record):
    """Returns how many steps a snapshot has."""
    return int(np.frombuffer(record[: snapshot._HEAD.itemsize], snapshot._HEAD)[0]["next_step"])


class Session:
    """What is true of one session."""

    def __init__(self, name, is_constant, is_durable):
        self.name = name
        self.key = key_of("", name)
        self.truth = Truth(name, is_constant=is_constant)
        self.is_durable = is_durable
        self.is_durable_now = False  # on the servers, as its last opening said
        self.owners = []  # (instant, owner or None, epoch), one for each change of either
        self.promised = 0  # steps that were told as stored
        self.most_stored = 0  # steps that the store had at any time, since the last reset
        self.lost_at = -1.0  # when the store last lost or changed the row behind the servers' backs
        self.num_losses = 0
        self.rightful = ""  # who owned the row then; "" if that is not known
        self.unsure = 0  # resets and closes that may be under way
        self.takeovers = 0
        self.num_stale = 0  # answers of servers that did not know yet that another one had the session

    def owned_between(self, owner, start):
        """Returns whether a server owned the row at some time since an instant."""
        for instant, who, _ in reversed(self.owners):
            if who == owner:
                return True
            if instant <= start:
                return False
        return False

    def was_absent_since(self, start):
        """Returns whether there was no row at some time since an instant."""
        for instant, _, epoch in reversed(self.owners):
            if epoch == 0:
                return True
            if instant <= start:
                return False
        return True

    def was_present_since(self, start):
        """Returns whether there was a row at some time since an instant."""
        for instant, _, epoch in reversed(self.owners):
            if epoch:
                return True
            if instant <= start:
                return False
        return False

    def was_anothers_since(self, owner, start):
        """Returns whether another server owned the row at some time since an instant."""
        for instant, who, _ in reversed(self.owners):
            if who not in (None, owner):
                return True
            if instant <= start:
                return False
        return False


class Oracle:
    """The truth about all sessions, and the checks."""

    def __init__(self, world):
        self._world = world
        self._loop = world.loop
        self.sessions = {}
        self._by_key = {}
        self.confirmed = {}  # (server, key): when the server last heard that the row is its own
        self.touched = {}  # (server, key): when it last wrote the row, or took it over
        self.failed_at = {}  # by server: when a call to the store last failed
        self.crashes = []  # instants at which a server left without having written everything

    def add(self, name, *, is_constant=False, is_durable=False):
        """Adds a session; returns it."""
        session = Session(name, is_constant, is_durable)
        self.sessions[name] = self._by_key[session.key] = session
        return session

    def fault(self, text):
        """Ends the seed: something is wrong."""
        self._world.fail(text)

    # -- What happens to the store -------------------------------------------------------------------

    def journal(self, key, row):
        """Hears that a row changed."""
        session, now = self._by_key[key], self._loop.time()
        owner = None if row is None or row.is_released else row.owner
        epoch = 0 if row is None else row.epoch
        before = session.owners[-1][1:] if session.owners else (None, 0)
        if (owner, epoch) != before:
            session.owners.append((now, owner, epoch))
            was_released = before[0] is None and before[1] > 0  # with every step, so nothing can be missing
            session.takeovers += owner is not None and not was_released
            self._world.note("store", f"{session.name} is {owner or 'free'}, epoch {epoch}")
        if row is not None and row.record:
            session.most_stored = max(session.most_stored, steps_in(row.record))

    def lose(self, rows):
        """Hears that the store lost rows, by key, or put older ones in their place."""
        for key, row in rows.items():
            session = self._by_key[key]
            is_known = self.is_settled(session) and row is not None and not row.is_released
            session.rightful = row.owner if is_known else ""
            session.lost_at = self._loop.time()
            session.num_losses += 1
            session.promised = 0
            if key not in self._world.database.rows:
                session.is_durable_now = False  # a step of index 0 opens it anew, and not as durable

    def heard(self, server, asked, outcome, instant):
        """Hears what a server hears from the store, and when that was so."""
        now = self._loop.time()
        if asked is None:
            self.failed_at[server.name] = now
            return
        at = server.name, asked.key
        if outcome.status in (ClaimStatus.CREATED, ClaimStatus.TAKEN):
            self.confirmed[at], self.touched[at] = now, instant
        elif outcome.status is WriteStatus.DONE:
            self.confirmed[at] = now
            if asked.kind in (WriteKind.SAVE, WriteKind.RELEASE) and asked.record is not None:
                self.touched[at] = instant

    def left(self, server):
        """Hears that a server is gone; steps that it had not written are lost to others."""
        if not server.is_dead:
            self.crashes.append(self._loop.time())

    def drained(self, server, is_written):
        """Hears that a server has drained."""
        now = self._loop.time()
        has_trouble = self._has_trouble(server, now - 10.0)
        if not is_written and not has_trouble and now - server.thawed_at > 10.0:
            self.fault(f"{server.name} drained and did not write everything")
        if is_written:
            self._check_written(server, "has drained")

    def audit(self, idle_seconds):
        """Checks that live servers have written every session that has been idle for so long."""
        for server in self._world.servers:
            if not server.is_dead:
                self._check_written(server, "is idle", idle_seconds)

    def _check_written(self, server, what, idle_seconds=0.0):
        """Checks that the store has the sessions that a server owns as they are in memory."""
        used_before = self._loop.time_ns() - idle_seconds * 1e9
        for session in self.sessions.values():
            slot, row = server.engine.sessions.find(session.key), self._world.database.rows.get(session.key)
            if slot is None or row is None or row.owner != server.name:
                continue
            if server.engine.sessions.last_used[slot] > used_before:
                continue
            has = server.engine.sessions.progress.next_step.item(slot)
            if self.knows(server, session) and steps_in(row.record) != has:
                self.fault(
                    f"{server.name} {what}: {session.name} has {has} steps, the store {steps_in(row.record)}"
                )

    # -- Requests and responses ----------------------------------------------------------------------

    def visit(self, server, path, raw):
        """Hears a unary request arrive; returns what hears its end."""
        method = path.rsplit("/", 1)[1]
        request = _REQUESTS[method][0].FromString(raw)
        visit = Visit(self, server, method, request)
        if method in ("ResetSession", "CloseSession"):
            session = visit.session
            session.promised = 0
        return visit

    def visit_stream(self, server, request, bound):
        """Hears a request on a stream; `bound` are the ids of the sessions that the stream has bound."""
        kind = request.WhichOneof("request")
        if kind == "step":
            return Visit(self, server, "Step", request.step)
        return GroupVisit(self, server, request, bound)

    def is_settled(self, session):
        """Returns whether promises count again after the store lost the row.

        They do once the owner of that time has written the session anew: its epoch is the highest. If it is
        gone, no server may have a copy from before.
        """
        if session.lost_at < 0:
            return True
        if self.touched.get((session.rightful, session.key), -1.0) > session.lost_at:
            return True
        for server in self._world.servers:
            is_live = not server.is_dead and server.engine.sessions.find(session.key) is not None
            if is_live and self.touched.get((server.name, session.key), -1.0) <= session.lost_at:
                return False
        return True

    def knows(self, server, session):
        """Returns whether a server has written or claimed a row since the store lost it."""
        return self.touched.get((server.name, session.key), -1.0) > session.lost_at

    def _has_trouble(self, server, since):
        """Returns whether a server may say that the store is away, or go on without asking it."""
        if server.thawed_at >= since - _AFTERMATH_SECONDS:  # time in which it could not look again
            since = min(since, server.frozen_at)
        return self.failed_at.get(server.name, -1e9) >= since - _AFTERMATH_SECONDS


class Visit:
    """One request on one session, from its arrival to the answer."""

    def __init__(self, oracle, server, method, request):
        self._oracle = oracle
        self._world = server.world
        self._server = server
        self.method = method
        self.request = request
        self.session = oracle.sessions[request.session_id]
        self.began = self._world.loop.time()
        self.promised = self.session.promised
        self._was_idle = self._is_idle()

    def _is_idle(self):
        """Returns whether the server has not used the session for so long that it has to ask the store."""
        engine = self._server.engine
        slot = engine.sessions.find(self.session.key)
        if slot is None:
            return True
        since_ns = self._world.loop.time_ns() - self._server.write_behind.confirm_after_ns
        return bool(engine.sessions.last_used[slot] < since_ns) and not engine.is_busy(slot)

    def _note(self, what):
        self._world.note(self._server.name, f"{self.method} {self.session.name}: {what}")

    def fault(self, what):
        """Ends the seed."""
        self._oracle.fault(f"{self._server.name} {self.method} {self.session.name}: {what}")

    # -- Ends ----------------------------------------------------------------------------------------

    def answered(self, raw):
        """Hears the answer."""
        response = _REQUESTS[self.method][1].FromString(raw)
        getattr(self, f"_check_{self.method}")(response)

    def streamed(self, response):
        """Hears the answer on a stream."""
        if response.WhichOneof("response") == "error":
            self.refused_for(response.error.reason, dict(response.error.metadata))
        else:
            self._check_Step(response.step)

    def refused(self, error):
        """Hears the refusal."""
        status = status_pb2.Status.FromString(error.status.details)
        info = ErrorInfo()
        status.details[0].Unpack(info)
        self.refused_for(info.reason, dict(info.metadata))

    # -- Answers -------------------------------------------------------------------------------------

    def _check_OpenSession(self, response):  # noqa: N802 (the method's name)
        self._note(f"stands at {response.session.next_step_index}, created {response.created}")
        if response.created:
            if not self.session.was_absent_since(self.began):
                self.fault("was created although the row was there")
        elif not self.session.was_present_since(self.began) and not self._has_copy():
            self.fault("was found although there is none")
        self._check_position(response.session)
        if self.session.is_durable and not response.session.durable and self.request.durable:
            self.fault("is not durable although that was asked for")
        self.session.is_durable_now = response.session.durable

    def _check_GetSession(self, response):  # noqa: N802
        self._note(f"stands at {response.session.next_step_index}")
        self._check_position(response.session)

    def _check_ResetSession(self, response):  # noqa: N802
        self._note("done")
        if response.session.next_step_index:
            self.fault(f"stands at {response.session.next_step_index} after a reset")
        self._check_owner()
        self.session.most_stored = 0
        self.session.promised = 0

    def _check_CloseSession(self, response):  # noqa: N802
        self._note(f"done after {response.num_steps} steps")
        self.session.promised = 0

    def _check_Step(self, response):  # noqa: N802
        index = response.step_index
        self._note(f"step {index}, {response.num_durable_steps} stored")
        if self.request.HasField("step_index") and index != self.request.step_index:
            self.fault(f"answered step {index} where {self.request.step_index} was asked")
        elif not self.request.HasField("step_index") and self._counts() and index < self.promised:
            self.fault(f"took step {index} after {self.promised} were told as stored")
        self.check_y(index, self.request.x[0], tuple(response.y))
        self._check_applied(index + 1, response.num_durable_steps)

    def _check_Prime(self, response):  # noqa: N802
        index = response.step_index
        self._note(f"up to step {index}, {response.num_durable_steps} stored")
        rows = np.frombuffer(self.request.x_raw, "<f4")
        self.check_y(index, rows[-1].item(), tuple(response.y))
        self._check_applied(index + 1, response.num_durable_steps)

    def _check_Forecast(self, response):  # noqa: N802
        self._note(f"from step {response.next_step_index}")
        truth, count = self.session.truth, response.next_step_index
        horizon = self.request.horizon_steps
        y = tuple(zip(response.y[::2], response.y[1::2], strict=True))
        lives = [0] if truth.is_constant else range(truth.life + 1)
        if len(y) != horizon or all(y != _forecast_in(truth, life, count, horizon) for life in lives):
            self.fault(f"wrong forecast from step {count}")
        self._check_owner()
        self._check_promise(count)

    def check_y(self, index, x, y):
        """Checks a prediction against the session alone."""
        life = self.session.truth.life_of(index, x)
        if life is None:
            self.fault(f"the client sent a wrong input for step {index}")
        elif y != self.session.truth.y(index, life):
            self.fault(f"step {index} has the wrong bits {y}, not {self.session.truth.y(index, life)}")

    def _check_position(self, message):
        self._check_owner()
        self._check_promise(message.next_step_index)
        self._learn_stored(message.num_durable_steps)
        if message.num_durable_steps > message.next_step_index:
            self.fault(f"{message.num_durable_steps} stored of {message.next_step_index}")

    def _check_applied(self, num_steps, num_stored):
        self._check_owner()
        session = self.session
        if session.is_durable_now and self._oracle.knows(self._server, session):
            if session.most_stored < num_steps and not session.unsure:
                self.fault(f"step {num_steps - 1} is answered as durable; {session.most_stored} are stored")
            num_stored = max(num_stored, num_steps)
        self._learn_stored(num_stored)

    def _check_promise(self, next_step):
        """Checks that nothing is missing of what was told as stored, if the server speaks as the owner."""
        if self._counts() and next_step < self.promised:
            self.fault(f"stands at {next_step} after {self.promised} were told as stored")

    def _counts(self):
        """Returns whether promises count for this answer."""
        session, oracle = self.session, self._oracle
        is_owner = session.owned_between(self._server.name, self.began)
        return is_owner and not session.unsure and session.lost_at < self.began and oracle.is_settled(session)

    def _learn_stored(self, num_steps):
        """Checks a promise, and remembers it."""
        session, oracle = self.session, self._oracle
        row = self._world.database.rows.get(session.key)
        if session.unsure or row is None or row.owner != self._server.name:
            return
        if not (oracle.knows(self._server, session) and oracle.is_settled(session)):
            return
        stored = steps_in(row.record)
        if num_steps > stored:
            self.fault(f"{num_steps} steps are told as stored; the store has {stored}")
        session.promised = max(session.promised, num_steps)

    def _check_owner(self):
        """Checks that the server may answer: it owns the session, or cannot know better yet."""
        session, server, oracle = self.session, self._server, self._oracle
        if session.owned_between(server.name, self.began):
            return
        session.num_stale += 1
        self._note("from an old copy")
        if oracle._has_trouble(server, self.began):
            return
        if session.lost_at >= self.began - _NOTICE_SECONDS or not oracle.knows(server, session):
            return
        confirm_seconds = server.write_behind.confirm_after_ns * 1e-9
        confirmed = oracle.confirmed.get((server.name, session.key), -1e9)
        if self._was_idle and confirmed < self.began - confirm_seconds - 1e-6:
            self.fault(f"answers from an old copy: {session.owners[-1]}, not asked since {confirmed:.3f}")
        since = max(confirmed, server.thawed_at)
        if self.began - since > confirm_seconds + _NOTICE_SECONDS:
            self.fault(f"goes on with an old copy: {session.owners[-1]}, not asked since {confirmed:.3f}")

    def _has_copy(self):
        return self._server.engine.sessions.find(self.session.key) is not None

    # -- Refusals ------------------------------------------------------------------------------------

    def refused_for(self, reason, metadata):
        """Checks that a refusal is true."""
        self._note(f"{reason} {metadata}")
        check = getattr(self, f"_check_{reason}", None)
        if check is not None:
            check(metadata)
        elif reason not in _PLAIN:
            self.fault(f"{reason} {metadata}")

    def _check_STORE_UNAVAILABLE(self, metadata):  # noqa: N802
        if not self._oracle._has_trouble(self._server, self.began):
            self.fault("the store is told to be away, and is there")

    def _check_SESSION_NOT_FOUND(self, metadata):  # noqa: N802
        # A stream that has bound a number takes a row that fell back, below its epoch, for another session's.
        has_fallen = self.session.lost_at >= 0 and isinstance(self.request, _Entry)
        if not has_fallen and not self.session.was_absent_since(self.began):
            self.fault(f"is told as not found: {self.session.owners[-1]}")

    def _check_SESSION_EXPIRED(self, metadata):  # noqa: N802
        if not self._world.plan.settings["session_ttl_seconds"]:
            self.fault("sessions never expire here")

    def _check_SESSION_EXISTS(self, metadata):  # noqa: N802
        if not self.session.was_present_since(self.began) and not self._has_copy():
            self.fault("is told to exist, and does not")

    def _check_SESSION_FENCED(self, metadata):  # noqa: N802
        # After two losses a server may meet a row of its own that is further, and takes it for the newer one.
        is_confused = self.session.num_losses > 1 and self.session.lost_at >= self._server.began
        if not is_confused and not self.session.was_anothers_since(self._server.name, self._server.began):
            self.fault("no other server has had the session")

    def _check_INVALID_ARGUMENT(self, metadata):  # noqa: N802
        if self.method != "Forecast":
            self.fault(f"the request is right: {metadata}")
        self._check_owner()  # a session without a step has no forecast
        self._check_promise(0)

    def _check_SESSIONS_FULL(self, metadata):  # noqa: N802
        if self._world.plan.settings["max_resident_sessions"] > len(self._oracle.sessions):
            self.fault("there is room for all sessions")

    def _check_STEP_GAP(self, metadata):  # noqa: N802
        expected = int(metadata["expected_step_index"])
        asked = self.asked_index()
        if asked is None or asked <= expected:
            self.fault(f"{asked} is no gap where {expected} is expected")
        self._check_owner()
        self._check_promise(expected)

    def _check_STEP_FORGOTTEN(self, metadata):  # noqa: N802
        expected, asked = int(metadata["expected_step_index"]), self.asked_index()
        kept = self._world.plan.settings["replies_kept"]
        last = asked + self.num_rows() - 1
        if self.method == "Prime":
            asked = last
        if asked >= expected - kept:
            self.fault(f"forgot step {asked}, kept are {kept}, expected is {expected}")
        self._check_owner()
        self._check_promise(expected)

    def _check_STEP_CONFLICT(self, metadata):  # noqa: N802
        if not self.session.unsure and self.session.truth.is_constant:
            self.fault("every input is the same")
        if not self.session.truth.life:
            self.fault("the step was never sent with another input")

    def asked_index(self):
        """Returns the index that the request gives; None if it gives none."""
        return self.request.step_index if self.request.HasField("step_index") else None

    def num_rows(self):
        """Returns how many rows the request has."""
        return len(self.request.x_raw) // 4 if self.method == "Prime" else 1


def _forecast_in(truth, life, count, horizon):
    state = truth.y(count - 1, life)
    return tuple(tuple(map(float, forecast_of(*state, ahead))) for ahead in range(horizon))


class _Entry:
    """An entry of a frame, as a request of one step."""

    def __init__(self, session_id, index, x):
        self.session_id = session_id
        self.step_index = index
        self.x = [x]

    def HasField(self, name):  # noqa: N802 (as messages have it)
        """Returns whether the entry has a field."""
        return True


class GroupVisit:
    """A configuration or a frame, which names several sessions; frames give ids, and one step for each."""

    def __init__(self, oracle, server, request, bound):
        self._oracle, self._server, self._request, self._bound = oracle, server, request, bound
        if request.WhichOneof("request") == "config":
            names = request.config.session_ids
            self._visits = [
                Visit(oracle, server, "GetSession", pb.GetSessionRequest(session_id=name)) for name in names
            ]
        else:
            indexes = np.frombuffer(request.frame.step_index_raw, "<u8").tolist()
            rows = np.frombuffer(request.frame.x_raw, "<f4").tolist()
            parts = zip(request.frame.session_ids or bound, indexes, rows, strict=True)
            self._visits = [Visit(oracle, server, "Step", _Entry(*part)) for part in parts]

    def streamed(self, response):
        """Hears the response."""
        kind = response.WhichOneof("response")
        if kind == "error":
            self._check_error(response.error)
        elif kind == "config":
            for visit, session in zip(self._visits, response.config.sessions, strict=True):
                visit._check_GetSession(pb.GetSessionResponse(session=session))
                self._bound.append(session.session_id)
        else:
            self._check_frame(response.frame)

    def _check_frame(self, frame):
        y = np.frombuffer(frame.y_raw, "<f4").reshape(-1, 2).tolist()
        indexes = np.frombuffer(frame.step_index_raw, "<u8").tolist()
        stored = np.frombuffer(frame.num_durable_steps_raw, "<u8").tolist()
        failed = {each.entry: each.error for each in frame.errors}
        for entry, visit in enumerate(self._visits):
            if entry in failed:
                visit.refused_for(failed[entry].reason, dict(failed[entry].metadata))
            else:
                reply = pb.StepResponse(
                    step_index=indexes[entry], y=y[entry], num_durable_steps=stored[entry]
                )
                visit._check_Step(reply)

    def _check_error(self, error):
        """Checks an error of the whole message: true of one of its sessions at least."""
        name = error.metadata.get("session_id")
        chosen = [visit for visit in self._visits if visit.session.name == name] or self._visits[:1]
        chosen[0].refused_for(error.reason, dict(error.metadata))

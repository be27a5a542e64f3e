"""A load of single steps that a server cannot outrun: bare HTTP/2, the same bytes again and again.

`python -m bench.raw` takes loadtest's options, of modes stream and unary, and prints its JSON. loadtest
is a gRPC client like any other: on one core it saturates before a server does, which then idles and wakes up
for every message, at several times the cost. Here a message costs a tenth.

Owns when messages are due and what is counted.
"""

import contextlib
import gc
import json
import select
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator

import grpc
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as pb_grpc

from bench.wire import Callers, Connection, Senders, Streams
from loadtest import report
from loadtest.errors import LoadtestError, OptionError
from loadtest.options import Options, parse
from loadtest.plan import Window
from loadtest.run import Result
from loadtest.server_side import Reading, cost, family, read_process
from loadtest.tally import Tally

_LAST_REPLIES_NS = 10_000_000_000  # for what is under way at the end
_BOUND_SECONDS = 30.0  # for what is prepared


class Load:
    """One run; in a closed loop everyone sends when answered, in an open one by a plan, in turn."""

    def __init__(self, options: Options, connections: list[Connection], senders: Senders) -> None:
        self._options = options
        self._connections = connections
        self._by_socket = {each.socket: each for each in connections}
        self._senders = senders
        self._interval_ns = 1e9 / options.rate if options.rate else 0.0
        self._num_planned = 0
        self._due: dict[int, int] = {}  # since when each message under way counts, by sender
        self._waiting: list[deque[int]] = [deque() for _ in range(options.streams)]  # due, and not sent yet
        self._tally = Tally()
        self._window: Window
        self._cpu: list[tuple[float, Reading | None]] = []  # the generator's and the server's, at both ends

    def open(self, session_ids: list[str]) -> None:
        """Prepares all senders.

        Raises:
            LoadtestError: the server does not answer.
        """
        for number, session_id in enumerate(session_ids):
            self._senders.open(number, session_id)
        missing, bound = len(session_ids), time.monotonic() + _BOUND_SECONDS
        while missing:
            if (left := bound - time.monotonic()) <= 0:
                raise LoadtestError("the server does not answer")
            missing -= len(self._answers(left))
        gc.collect()
        gc.freeze()  # what is prepared lives to the end: the collector need not look at it again

    def run(self) -> Result:
        """Sends until the window ends; what is under way then is waited for."""
        options = self._options
        pids = family(options.server_pid) if options.server_pid else ()
        self._window = window = Window.after(time.monotonic_ns(), options.warm_up, options.seconds)
        if not options.rate:
            for number in range(options.streams):
                self._send(number, window.start)
        self._until(window.begin)
        self._read(pids)
        self._until(window.end)
        self._read(pids)
        self._tally.unsent_steps = sum(map(len, self._waiting))
        self._finish()
        return self._result()

    def _until(self, end: int) -> None:
        """Sends and counts until an instant."""
        while (now := time.monotonic_ns()) < end:
            for number, at in self._answers(self._plan(now, end)):
                self._count(number, at)
                self._go_on(number, at)

    def _plan(self, now: int, end: int) -> float:
        """Sends what is due in an open loop; returns the seconds until more is."""
        if not self._interval_ns:
            return (end - now) * 1e-9
        start, streams = self._window.start, self._options.streams
        while (due := start + round(self._num_planned * self._interval_ns)) <= now:
            number = self._num_planned % streams
            self._num_planned += 1
            if number in self._due:
                self._waiting[number].append(due)
            else:
                self._send(number, due)
        return (min(due, end) - now) * 1e-9

    def _go_on(self, number: int, now: int) -> None:
        """Sends an answered sender's next message, where there is one."""
        if not self._interval_ns:
            self._send(number, now)
        elif self._waiting[number]:
            self._send(number, self._waiting[number].popleft())

    def _send(self, number: int, due: int) -> None:
        self._senders.send(number)
        self._due[number] = due
        if len(self._cpu) == 1:
            self._tally.num_sent_steps += 1

    def _answers(self, seconds: float) -> list[tuple[int, int]]:
        """Sends what is to be sent and waits; returns who was answered, and when."""
        for connection in self._connections:
            connection.flush()
        found = []
        readable, _, _ = select.select(self._by_socket, (), (), max(0.0, seconds))
        for each in readable:
            connection = self._by_socket[each]
            frames = connection.receive()
            now = time.monotonic_ns()
            numbers = (self._senders.answered(connection, frame) for frame in frames)
            found += [(number, now) for number in numbers if number is not None]
        return found

    def _count(self, number: int, now: int) -> None:
        """Counts an answer by its own instant; an open loop's latency by the message's, as loadtest does."""
        due, window = self._due.pop(number), self._window
        is_within = window.begin <= now < window.end
        self._tally.num_steps += is_within
        if window.begin <= due < window.end if self._interval_ns else is_within:
            self._tally.latencies.record(now - due)

    def _read(self, pids: tuple[int, ...]) -> None:
        self._cpu.append((time.process_time(), read_process(*pids) if pids else None))

    def _finish(self) -> None:
        bound = self._window.end + _LAST_REPLIES_NS
        while self._due and time.monotonic_ns() < bound:
            for number, at in self._answers((bound - time.monotonic_ns()) * 1e-9):
                self._count(number, at)
        if self._due:
            self._tally.errors["NO_REPLY"] = len(self._due)

    def _result(self) -> Result:
        tally = self._tally
        (own_before, before), (own_after, after) = self._cpu
        tally.num_messages = tally.num_steps
        tally.seconds = self._options.seconds
        tally.cpu_seconds = [own_after - own_before]
        server = cost(before, after, tally.num_steps) if before is not None and after is not None else None
        return Result(self._options, tally, server, is_interrupted=False)


@contextlib.contextmanager
def sessions(target: str, ids: list[str], model: str = "") -> Iterator[None]:
    """Opens sessions for as long as the block lasts.

    Raises:
        LoadtestError: the server refuses, or there is none.
    """
    with grpc.insecure_channel(target) as channel:
        stub = pb_grpc.StreamcellServiceStub(channel)
        try:
            for each in ids:
                stub.OpenSession(pb.OpenSessionRequest(session_id=each, model=model), timeout=_BOUND_SECONDS)
            yield
        except grpc.RpcError as error:
            raise LoadtestError(f"{target}: {error.details()}") from None
        finally:
            with contextlib.suppress(grpc.RpcError):  # a server that is gone has none left
                for each in ids:
                    stub.CloseSession(pb.CloseSessionRequest(session_id=each), timeout=_BOUND_SECONDS)


def run(options: Options) -> Result:
    """Runs a load.

    Raises:
        LoadtestError: it could not begin, or the server broke it off.
    """
    if options.mode not in ("stream", "unary"):
        raise OptionError(f"--mode: {options.mode} is for loadtest: this sends single steps")
    prefix = f"bench-{uuid.uuid4().hex[:8]}"
    ids = [f"{prefix}-{number}" for number in range(options.streams)]
    return run_as(options, ids, Streams if options.mode == "stream" else Callers)


def run_as(
    options: Options, session_ids: list[str], senders: Callable[[list[Connection]], Senders]
) -> Result:
    """Runs a load of some senders, on sessions that are opened for it.

    Raises:
        LoadtestError: it could not begin, or the server broke it off.
    """
    with sessions(options.target, session_ids, options.model), contextlib.ExitStack() as stack:
        connections = [Connection(options.target) for _ in range(options.num_connections)]
        for each in connections:
            stack.enter_context(each.socket)
        load = Load(options, connections, senders(connections))
        load.open(session_ids)
        return load.run()


def main(run: Callable[[Options], Result] = run) -> int:
    """Runs the command and returns its exit status: loadtest's."""
    try:
        result = run(parse(sys.argv[1:]))
    except (LoadtestError, OSError) as error:
        sys.stderr.write(f"bench.raw: {error}\n")
        return 2
    sys.stdout.write(json.dumps(report.to_json(result)) + "\n")
    return 1 if result.tally.num_errors else 0


if __name__ == "__main__":
    sys.exit(main())

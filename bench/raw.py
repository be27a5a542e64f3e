"""A load of single steps over bare HTTP/2, for servers that a gRPC client cannot keep busy.

`python -m bench.raw` takes loadtest's options, with the modes stream and unary, and prints loadtest's JSON.
loadtest is a gRPC client like any other: on one core it saturates before a server does. The server then idles
and wakes up for every message, at several times the cost. Here a message costs a tenth.

Drives loadtest's generator over raw senders: owns the clock, and the waiting for sockets. It waits by
`select`, whose timeouts are exact to microseconds; an event loop's are exact to a millisecond.
"""

import contextlib
import gc
import heapq
import json
import select
import sys
import time
import uuid
from collections.abc import Callable, Iterator

import grpc
from streamcell.access import Access
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as pb_grpc

from bench.channel import failure, metadata_of, open_channel
from bench.wire import STEPS, Callers, Connection, Senders, Streams
from loadtest import report
from loadtest.driver import LAST_REPLIES_SECONDS
from loadtest.errors import LoadtestError, OptionError
from loadtest.generator import Generator
from loadtest.options import Options, parse
from loadtest.plan import Window
from loadtest.run import Result
from loadtest.server_side import Reading, cost, process_tree, read_process

_PREPARE_SECONDS = 30.0  # timeout of what precedes the load
MakeSenders = Callable[[list[Connection]], Senders]


class Poller:
    """Waits for the answers to some senders, on all connections."""

    def __init__(self, connections: list[Connection], senders: Senders) -> None:
        self._connections = {each.socket: each for each in connections}
        self._senders = senders

    def answers(self, seconds: float) -> list[tuple[int, int]]:
        """Flushes what is to be sent and waits for answers; returns each one's sender and instant.

        Raises:
            LoadtestError: an answer reports an error, or a connection broke.
        """
        for connection in self._connections.values():
            connection.flush()
        found = []
        readable, _, _ = select.select(self._connections, (), (), max(0.0, seconds))
        for socket in readable:
            connection = self._connections[socket]
            frames = connection.receive()
            now = time.monotonic_ns()
            numbers = (self._senders.answered(connection, frame) for frame in frames)
            found += [(number, now) for number in numbers if number is not None]
        return found


class Driver:
    """One run of a generator over raw senders, each with one message outstanding at most. It starts now."""

    def __init__(self, options: Options, poller: Poller, senders: Senders) -> None:
        self._options = options
        self._poller = poller
        self._senders = senders
        self._server_pids = process_tree(options.server_pid) if options.server_pid else ()
        self._window = Window.after(time.monotonic_ns(), options.warm_up, options.seconds)
        self._generator = Generator(options, self._window)
        self._due = [0] * options.streams  # of the outstanding message, by sender
        self._scheduled: list[tuple[int, int]] = []  # a heap of due times to come, each with its sender

    def run(self) -> Result:
        """Sends until the window ends or `max_steps` are answered, then waits for the outstanding answers.

        Raises:
            LoadtestError: a step failed, or a connection broke.
        """
        options, window = self._options, self._window
        for number in range(options.streams):
            self._go_on(number, window.start)
        self._send_until(window.begin)
        own_before, before = _cpu(self._server_pids)
        self._send_until(window.end)
        own_after, after = _cpu(self._server_pids)
        self._await_answers(window.end + round(LAST_REPLIES_SECONDS * 1e9))
        tally = self._generator.finish(time.monotonic_ns())
        tally.cpu_seconds = [own_after - own_before]
        server = cost(before, after, tally.num_steps) if before is not None and after is not None else None
        return Result(options, tally, server, is_interrupted=False)

    def _send_until(self, end: int) -> None:
        """Sends what is due, and counts answers, until an instant or until nothing is left to do."""
        scheduled, generator = self._scheduled, self._generator
        while (now := time.monotonic_ns()) < end and (scheduled or generator.num_unanswered):
            while scheduled and scheduled[0][0] <= now:
                due, number = heapq.heappop(scheduled)
                self._send(number, due, now)
            until = min(scheduled[0][0], end) if scheduled else end
            for number, at in self._poller.answers((until - now) * 1e-9):
                generator.answered(self._due[number], at)
                self._go_on(number, at)

    def _go_on(self, number: int, now: int) -> None:
        """Sends a sender's next message if it is due, and notes when it will be if it is not."""
        due = self._generator.next_due(number, now)
        if due is None:
            return
        if due <= now:
            self._send(number, due, now)
        else:
            heapq.heappush(self._scheduled, (due, number))

    def _send(self, number: int, due: int, now: int) -> None:
        self._senders.send(number)
        self._due[number] = due
        self._generator.sent(now)

    def _await_answers(self, bound: int) -> None:
        """Counts the outstanding answers that come before an instant."""
        while self._generator.num_unanswered and (left := bound - time.monotonic_ns()) > 0:
            for number, at in self._poller.answers(left * 1e-9):
                self._generator.answered(self._due[number], at)


def _cpu(pids: tuple[int, ...]) -> tuple[float, Reading | None]:
    """Returns the CPU seconds of this process, and the server's reading if it is on this machine."""
    return time.process_time(), read_process(*pids) if pids else None


@contextlib.contextmanager
def sessions(options: Options, ids: list[str]) -> Iterator[None]:
    """Opens sessions for as long as the block lasts.

    Raises:
        LoadtestError: the server refuses, or there is none.
    """
    access = options.access()
    with open_channel(options.target, access) as channel:
        stub = pb_grpc.StreamcellServiceStub(channel)
        try:
            for each in ids:
                request = pb.OpenSessionRequest(session_id=each, model=options.model)
                stub.OpenSession(request, timeout=_PREPARE_SECONDS, metadata=metadata_of(access))
            yield
        except grpc.RpcError as error:
            raise failure(options.target, access, error) from None
        finally:
            _close(stub, ids, access)


def _close(stub: pb_grpc.StreamcellServiceStub, ids: list[str], access: Access) -> None:
    """Closes sessions, if the server is still there: one that is gone has none left."""
    with contextlib.suppress(grpc.RpcError):
        for each in ids:
            request = pb.CloseSessionRequest(session_id=each)
            stub.CloseSession(request, timeout=_PREPARE_SECONDS, metadata=metadata_of(access))


def run(options: Options) -> Result:
    """Runs a load of single steps, on streams or by unary calls.

    Raises:
        OptionError: the mode is another one.
        LoadtestError: the load could not begin, or the server ended it.
    """
    if options.mode not in ("stream", "unary"):
        raise OptionError(f"--mode: {options.mode} is for loadtest; bench.raw sends single steps")
    prefix = f"bench-{uuid.uuid4().hex[:8]}"
    ids = [f"{prefix}-{number}" for number in range(options.streams)]
    if options.mode == "unary":
        return drive(options, ids, Callers)
    return drive(options, ids, lambda connections: Streams(connections, STEPS))


def drive(options: Options, session_ids: list[str], make_senders: MakeSenders) -> Result:
    """Runs a load over some senders, on sessions that are opened for it.

    Raises:
        LoadtestError: the load could not begin, or the server ended it.
    """
    with sessions(options, session_ids), contextlib.ExitStack() as stack:
        connections = [Connection.to(options) for _ in range(options.num_connections)]
        for each in connections:
            stack.enter_context(each.socket)
        senders = make_senders(connections)
        poller = Poller(connections, senders)
        prepare(senders, poller, session_ids)
        return Driver(options, poller, senders).run()


def prepare(senders: Senders, poller: Poller, session_ids: list[str]) -> None:
    """Prepares a sender for each session.

    Raises:
        LoadtestError: the server does not answer.
    """
    for number, session_id in enumerate(session_ids):
        senders.open(number, session_id)
    missing, bound = len(session_ids), time.monotonic() + _PREPARE_SECONDS
    while missing:
        if (left := bound - time.monotonic()) <= 0:
            raise LoadtestError("the server does not answer")
        missing -= len(poller.answers(left))
    gc.collect()
    gc.freeze()  # what is prepared lives to the end: the collector need not look at it again


def main(run: Callable[[Options], Result] = run) -> int:
    """Runs the command and returns its exit status, which is loadtest's."""
    try:
        result = run(parse(sys.argv[1:]))
    except (LoadtestError, OSError) as error:
        sys.stderr.write(f"bench.raw: {error}\n")
        return 2
    sys.stdout.write(json.dumps(report.to_json(result)) + "\n")
    return 1 if result.tally.num_errors else 0


if __name__ == "__main__":
    sys.exit(main())

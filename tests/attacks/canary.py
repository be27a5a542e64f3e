"""A client that steps without a pause and times every answer, as a process of its own.

The argument is HOST:PORT. It steps on a stream and by a unary call in turn, until its standard input ends.
For each answer it prints JSON: [start, seconds, error]; `start` is on the machine's monotonic clock.
"""

import json
import queue
import sys
import threading
import time

import grpc
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

_PAUSE_SECONDS = 0.002
_DEADLINE_SECONDS = 120.0


class Canary:
    """The two clients, on one connection."""

    def __init__(self, channel):
        self._stub = stubs.StreamcellServiceStub(channel)
        self._requests = queue.SimpleQueue()
        for name in ("canary-stream", "canary-unary"):
            self._stub.OpenSession(pb.OpenSessionRequest(session_id=name, model="mackey-glass"))
        self._replies = self._stub.Stream(iter(self._requests.get, None))

    def step_on_stream(self):
        """Makes a step on the stream."""
        self._requests.put(pb.StreamRequest(step=pb.StepRequest(session_id="canary-stream", x=[0.5])))
        assert not next(self._replies).error.reason

    def step_by_call(self):
        """Makes a step by a unary call."""
        self._stub.Step(pb.StepRequest(session_id="canary-unary", x=[0.5]), timeout=_DEADLINE_SECONDS)

    def close(self):
        """Ends the stream."""
        self._requests.put(None)


def main(target):
    """Times answers until standard input ends."""
    ending = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ending.set()), daemon=True).start()
    num_answers = 0
    with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        canary = Canary(channel)
        steps = [canary.step_on_stream, canary.step_by_call]
        print("ready", flush=True)  # noqa: T201
        while not ending.is_set():
            start, error = time.monotonic(), ""
            try:
                steps[num_answers % 2]()
            except (grpc.RpcError, AssertionError, StopIteration) as trouble:
                error = repr(trouble)[:300]
            num_answers += 1
            print(json.dumps((start, time.monotonic() - start, error)), flush=True)  # noqa: T201
            if error:
                break
            time.sleep(_PAUSE_SECONDS)
        canary.close()


if __name__ == "__main__":
    main(sys.argv[1])

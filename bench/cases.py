"""What is measured: the cases in the order in which a round takes them, and their labels.

A case stands beside the case that it is compared with, so that a noisy moment meets both.
"""

import dataclasses

from bench.servers import ECHO, ECHO_BATCH, ENVOY, ENVOY_ECHO, SERVERS, SERVICE, SMALL_QUEUE, STORED

NUM_INPUTS = 8
HIDDEN_SIZE = 128
CELL_BATCHES = (1, 8, 64, 256)
ENGINE_BATCHES = (1, 8, 64, 256)
# The commands that generate loads, the last one by the Open Inference Protocol.
LOADTEST, RAW, INFER = "loadtest", "bench.raw", "bench.infer"


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A load on one of the servers.

    `module`: the command that generates it. It is a raw one where a server answers more than loadtest can
    send: loadtest's own queue would then be the latency. `num_steps`: measured over this many steps and not
    by time, where few messages fit into a window. `rate`: an open loop's offered load in steps a second; or
    it is `rate_share` times the rate that `rate_of`, an earlier case, reached in the same round.
    `background`: another load that runs as long as this one. `max_rounds`: the number of rounds that measure
    the case; 0: all.
    """

    name: str
    label: str
    mode: str
    streams: int
    _: dataclasses.KW_ONLY
    frame_steps: int = 0
    server: str = SERVICE
    module: str = LOADTEST
    num_steps: int = 0
    rate: float = 0.0
    rate_of: str = ""
    rate_share: float = 0.0
    in_flight: int = 0
    horizon: int = 0
    background: "Case | None" = None
    max_rounds: int = 0
    seconds: float = 0.0
    may_refuse: bool = False

    def arguments(self, rate: float = 0.0) -> list[str]:
        """Returns the load as options of loadtest; with a rate it is an open loop."""
        options = {
            "--frame-steps": self.frame_steps,
            "--in-flight": self.in_flight,
            "--horizon": self.horizon,
            "--rate": rate or self.rate,
        }
        given = [text for name, value in options.items() if value for text in (name, str(value))]
        return ["--mode", self.mode, "--streams", str(self.streams), *given]


# Calls of 25,000 steps, because 8 of 50,000 would not fit into the queue of 262,144 steps. Each client's
# messages prime 100,000 steps, and then come again, until the single steps have been measured.
_PRIMING = Case("priming", "8 clients priming", "prime", 8, frame_steps=25_000)

CASES = (
    Case(
        "echo_batch_stream_64", "echo with SCHED_BATCH: stream, 64", "stream", 64,
        server=ECHO_BATCH, module=RAW, max_rounds=3,
    ),
    Case("stored_stream_64", "with a store: steps on 64 streams", "stream", 64, server=STORED, module=RAW),
    Case("echo_stream_64", "empty echo: stream, 64", "stream", 64, server=ECHO, module=RAW),
    Case("stream_64", "steps on 64 streams", "stream", 64, module=RAW),
    Case("infer_64", "steps on 64 streams, by OIP", "stream", 64, module=INFER),
    Case("envoy_infer_64", "envoy: steps on 64 streams, by OIP", "stream", 64, server=ENVOY, module=INFER),
    Case("envoy_stream_64", "envoy: steps on 64 streams", "stream", 64, server=ENVOY, module=RAW),
    Case(
        "envoy_echo_stream_64", "envoy's empty echo: stream, 64", "stream", 64,
        server=ENVOY_ECHO, module=RAW,
    ),
    Case(
        "half_64", "64 streams at half that rate", "stream", 64,
        module=RAW, rate_of="stream_64", rate_share=0.5,
    ),
    Case(
        "echo_half_64", "empty echo: at that rate, 64", "stream", 64,
        server=ECHO, module=RAW, rate_of="stream_64", rate_share=0.5,
    ),
    Case(
        "echo_batch_unary_64", "echo with SCHED_BATCH: unary, 64", "unary", 64,
        server=ECHO_BATCH, module=RAW, max_rounds=3,
    ),
    Case("echo_unary_64", "empty echo: unary, 64", "unary", 64, server=ECHO, module=RAW),
    Case("unary_64", "unary steps, 64 callers", "unary", 64, module=RAW),
    Case("envoy_unary_64", "envoy: unary steps, 64 callers", "unary", 64, server=ENVOY, module=RAW),
    Case("envoy_echo_unary_64", "envoy's empty echo: unary, 64", "unary", 64, server=ENVOY_ECHO, module=RAW),
    Case("stream_1", "steps on 1 stream", "stream", 1),
    Case("prime_10000", "priming, 10,000 steps", "prime", 1, frame_steps=10_000, num_steps=30_000),
    Case("stream_8", "steps on 8 streams", "stream", 8, max_rounds=3),
    Case("echo_stream_256", "empty echo: stream, 256", "stream", 256, server=ECHO, module=RAW),
    Case("envoy_stream_256", "envoy: steps on 256 streams", "stream", 256, server=ENVOY, module=RAW),
    Case("stream_256", "steps on 256 streams", "stream", 256, module=RAW),
    # A closed loop would compare each front at its own maximum. Here both have the same offered load.
    Case(
        "half_256", "256 streams at half that rate", "stream", 256,
        module=RAW, rate_of="stream_256", rate_share=0.5,
    ),
    Case(
        "envoy_half_256", "envoy: 256 streams at that rate", "stream", 256,
        server=ENVOY, module=RAW, rate_of="stream_256", rate_share=0.5,
    ),
    Case("forecast_48", "forecasts of 48, each as one, 8", "forecast", 8, horizon=48, max_rounds=3),
    Case("idle_4", "4 streams at 200/s, otherwise idle", "stream", 4, rate=200.0, max_rounds=3, seconds=4.0),
    Case(
        "primed_4", "4 streams at 200/s, 8 clients prime", "stream", 4,
        rate=200.0, max_rounds=3, seconds=4.0, background=_PRIMING,
    ),
    Case("frame_16", "frames of 16, 2 streams", "frame", 2, frame_steps=16, max_rounds=3),
    Case("frame_1024", "frames of 1,024, 2 streams", "frame", 2, frame_steps=1024),
    Case(
        "stored_frame_256", "with a store: frames of 256, 2 streams", "frame", 2,
        frame_steps=256, server=STORED,
    ),
    Case("envoy_frame_256", "envoy: frames of 256, 2 streams", "frame", 2, frame_steps=256, server=ENVOY),
    Case("frame_256", "frames of 256, 2 streams", "frame", 2, frame_steps=256),
    # Many streams, because flow control stops a stream that the server does not read: it then offers less.
    Case(
        "overload", "frames of 256 at 5 times their rate", "frame", 64, frame_steps=256,
        server=SMALL_QUEUE, rate_of="frame_256", rate_share=5.0, in_flight=64, max_rounds=3, may_refuse=True,
    ),
    Case(
        "open_2000", "2,000 streams at 1 step/s each", "stream", 2000,
        rate=2000.0, max_rounds=1, seconds=5.0,
    ),
)  # fmt: skip
ENVOY_CASES = frozenset(case.name for case in CASES if SERVERS[case.server].needs_envoy)
CELL_AFTER = "frame_256"  # the case that is compared with the cell, which is measured right after it
_LARGEST = CELL_BATCHES[-1]
# One process measures each group, in this order.
CELL_LABELS = {
    f"sgemm_{_LARGEST}": f"its sgemm alone, batch {_LARGEST}",
    f"step_{_LARGEST}": f"cell without its rows, batch {_LARGEST}",
    **{f"cell_{batch}": f"cell alone, batch {batch}" for batch in reversed(CELL_BATCHES)},
}
ENGINE_LABELS = {f"engine_{batch}": f"engine in process, {batch} at a time" for batch in ENGINE_BATCHES}
RESIDENT = "resident"
START = "start"
RESIDENT_LABEL = "engine, all resident sessions in turn"
FLOORS = (*(case.name for case in CASES if case.server in (ECHO, ECHO_BATCH, ENVOY_ECHO)), *CELL_LABELS)

_OF_ECHO = (
    *("echo_stream_64", "echo_stream_256", "echo_half_64", "echo_unary_64"),
    *("echo_batch_stream_64", "echo_batch_unary_64", "envoy_echo_stream_64", "envoy_echo_unary_64"),
)
_OF_INFER = ("infer_64", "envoy_infer_64")
_OF_ENVOY = ("envoy_stream_64", "envoy_stream_256", "envoy_half_256", "envoy_unary_64", "envoy_frame_256")
_OF_SINGLES = ("stream_1", "stream_8", "stream_64", "stream_256", "unary_64")
_OF_MANY = ("frame_16", "frame_256", "frame_1024", "prime_10000", "forecast_48")
_OF_STORE = ("stored_stream_64", "stored_frame_256")
_OF_TROUBLE = ("half_64", "half_256", "open_2000", "idle_4", "primed_4", "overload")
_OF_CELL = (*(f"cell_{batch}" for batch in CELL_BATCHES), f"step_{_LARGEST}", f"sgemm_{_LARGEST}")
GROUPS = (
    _OF_ECHO,
    _OF_CELL,
    (*ENGINE_LABELS, RESIDENT),
    _OF_SINGLES,
    _OF_ENVOY,
    _OF_INFER,
    _OF_MANY,
    _OF_STORE,
    _OF_TROUBLE,
)


def labels() -> dict[str, str]:
    """Returns every case's label in the order of `GROUPS`, in which they are shown: floors first."""
    known = {case.name: case.label for case in CASES} | CELL_LABELS | ENGINE_LABELS
    known[RESIDENT] = RESIDENT_LABEL
    return {name: known[name] for group in GROUPS for name in group}

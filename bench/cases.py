"""What is measured: the cases in the order in which a round takes them, and the ratios between them.

A case and the one it is compared with stand side by side, so that a noisy moment meets both.
"""

import dataclasses

NUM_INPUTS = 8
HIDDEN_SIZE = 128
CELL_BATCHES = (1, 8, 64, 256)


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A load on one of the servers; `is_floor`: on the empty echo.

    `num_steps`: measured over so many steps and not by time, where few messages fit into a window.
    """

    name: str
    label: str
    mode: str
    streams: int
    frame_steps: int = 0
    is_floor: bool = False
    num_steps: int = 0

    def arguments(self) -> list[str]:
        """Returns the load as options of loadtest."""
        size = ["--frame-steps", str(self.frame_steps)] if self.frame_steps else []
        return ["--mode", self.mode, "--streams", str(self.streams), *size]


@dataclasses.dataclass(frozen=True, slots=True)
class Ratio:
    """One case's figure over another's, both of the same round."""

    name: str
    label: str
    figure: str
    over: str
    under: str


CASES = (
    Case("echo_stream_64", "empty echo: stream, 64", "stream", 64, is_floor=True),
    Case("stream_64", "steps on 64 streams", "stream", 64),
    Case("echo_unary_64", "empty echo: unary, 64", "unary", 64, is_floor=True),
    Case("unary_64", "unary steps, 64 callers", "unary", 64),
    Case("stream_1", "steps on 1 stream", "stream", 1),
    Case("stream_8", "steps on 8 streams", "stream", 8),
    Case("stream_256", "steps on 256 streams", "stream", 256),
    Case("prime_10000", "priming, 10,000 steps", "prime", 1, 10_000, num_steps=30_000),
    Case("frame_16", "frames of 16, 2 streams", "frame", 2, 16),
    Case("frame_1024", "frames of 1,024, 2 streams", "frame", 2, 1024),
    Case("frame_256", "frames of 256, 2 streams", "frame", 2, 256),
)
# Measured by one process after frame_256, in this order.
CELL_LABELS = {
    **{f"cell_{batch}": f"cell alone, batch {batch}" for batch in reversed(CELL_BATCHES)},
    f"sgemm_{CELL_BATCHES[-1]}": f"its sgemm alone, batch {CELL_BATCHES[-1]}",
}
FLOORS = (*(case.name for case in CASES if case.is_floor), *CELL_LABELS)

RATIOS = (
    Ratio(
        "stream_to_echo", "stream: CPU a step / the echo's", "cpu_us_per_step", "stream_64", "echo_stream_64"
    ),
    Ratio("unary_to_echo", "unary: CPU a step / the echo's", "cpu_us_per_step", "unary_64", "echo_unary_64"),
    Ratio("frame_to_cell", "frames of 256: rate / the cell's", "steps_per_second", "frame_256", "cell_256"),
)


def labels() -> dict[str, str]:
    """Returns every case's label, floors first, in the order in which they are shown."""
    shown = [case for case in CASES if case.is_floor]
    of_service = ("stream_1", "stream_8", "stream_64", "stream_256", "unary_64")
    of_many = ("frame_16", "frame_256", "frame_1024", "prime_10000")
    by_name = {case.name: case.label for case in CASES}
    cell = {name: CELL_LABELS[name] for name in (*(f"cell_{batch}" for batch in CELL_BATCHES), "sgemm_256")}
    service = {name: by_name[name] for name in (*of_service, *of_many)}
    return {case.name: case.label for case in shown} | cell | service

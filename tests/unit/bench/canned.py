"""Known figures, as a round measures them."""

from bench import report
from bench.cases import CASES, CELL_LABELS, ENGINE_LABELS, RESIDENT, START
from bench.loads import Lengths
from bench.rounds import QUICK

ABOUT = report.About("2030-01-02", {"cpu": "A CPU", "cores": "2", "python": "3.11"}, "pinned", QUICK)
LENGTHS = Lengths(2.0, 0.5)


def figures(rate=1000.0, cpu=100.0, share=0.5, p99=0.002):
    """Returns the figures of a load in one round."""
    return {
        "steps_per_second": rate,
        "asked_steps_per_second": 2 * rate,
        "sent_steps_per_second": 1.5 * rate,
        "p50_seconds": 0.001,
        "p99_seconds": p99,
        "p99_9_seconds": 0.003,
        "cpu_us_per_step": cpu,
        "steps_per_core_second": 1e6 / cpu if cpu else None,
        "server_core_share": 0.25,
        "server_steps_per_second": 3 * rate,
        "peak_memory_bytes": 256 << 20,
        "generator_core_share": share,
        "num_refused": 7.0,
    }


def one_round(stream_cpu=150.0, echo_cpu=100.0, **changes):
    """Returns a round of all cases."""
    found = {case.name: figures() for case in CASES}
    alone = {"steps_per_second": 4000.0, "cpu_us_per_step": 4.0}
    found |= dict.fromkeys(CELL_LABELS, alone)
    found |= dict.fromkeys(ENGINE_LABELS, alone | {"p50_seconds": 0.0001, "p99_seconds": 0.0002})
    found[RESIDENT] = {
        "num_sessions": 1000, "bytes_per_session": 300.0, "open_us": 12.5, "steps_per_second": 9000.0,
        "peak_memory_bytes": 1 << 30,
    }  # fmt: skip
    found[START] = {"start_seconds": 3.0}
    found["stream_64"] = figures(cpu=stream_cpu)
    found["echo_stream_64"] = figures(cpu=echo_cpu)
    return found | changes

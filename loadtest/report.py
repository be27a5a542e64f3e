"""A result as a table for people and as JSON for programs. Does not know how it was measured."""

import dataclasses
from typing import Any

from loadtest.run import Result

_BUSY = 0.9  # of a core: beyond it every latency includes the generator's own queue
_ON_TIME = 0.99  # of the offered load: a smaller answered rate is a warning
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9}


def to_json(result: Result) -> dict[str, Any]:
    """Returns the result as plain values; latencies in seconds."""
    tally = result.tally
    return {
        "options": dataclasses.asdict(result.options),
        "seconds": tally.seconds,
        "steps": tally.num_steps,
        "messages": tally.num_messages,
        "steps_per_second": tally.steps_per_second,
        "sent_steps_per_second": tally.sent_steps_per_second,
        "errors": dict(tally.errors),
        "num_errors": tally.num_errors,
        "unsent_steps": tally.unsent_steps,
        "latency_seconds": _latencies(result),
        "generator_core_share": tally.busiest_core,
        "server": dataclasses.asdict(result.server) if result.server is not None else None,
        "warnings": warnings(result),
        "interrupted": result.is_interrupted,
    }


def _latencies(result: Result) -> dict[str, float]:
    latencies = result.tally.latencies
    values = {name: latencies.percentile_seconds(percent) for name, percent in PERCENTILES.items()}
    return values | {"max": latencies.max_seconds}


def warnings(result: Result) -> list[str]:
    """Returns what a reader of the figures must know, a sentence each."""
    tally, found = result.tally, []
    if tally.busiest_core > _BUSY:
        found.append(
            f"the generator used {tally.busiest_core:.0%} of a core: it was the limit, not the server alone; "
            "give it a core of its own, or use --processes"
        )
    offered = result.options.rate
    if offered and tally.steps_per_second < _ON_TIME * offered and not result.options.max_steps:
        found.append(
            f"{offered:,.0f} steps a second were to be offered and {tally.steps_per_second:,.0f} were "
            f"answered; {tally.unsent_steps:,} scheduled steps had not been sent at the end"
        )
    if not tally.num_steps:
        found.append("no step was answered in the measured window")
    if result.is_interrupted:
        found.append("interrupted: the figures are those until then")
    return found


def table(result: Result) -> str:
    """Returns the result as lines of text."""
    lines = [_headline(result), ""]
    lines += [f"  {name:<22}{value}" for name, value in _rows(result)]
    lines += [f"\nWARNING: {warning}" for warning in warnings(result)]
    return "\n".join(lines)


def _headline(result: Result) -> str:
    options = result.options
    size = f" of {options.steps_per_message:,} steps"
    what = {
        "stream": "single steps on streams",
        "unary": "unary steps",
        "frame": "frames" + size,
        "prime": "priming calls" + size,
        "forecast": f"forecasts of {options.horizon_steps:,} steps, each counted as one",
    }[options.mode]
    pace = f"open loop at {options.rate:,.0f} steps/s" if options.rate else "closed loop"
    return (
        f"{options.target}: {what}, {options.streams:,} at a time, {pace}, "
        f"{result.tally.seconds:.1f} s after {options.warm_up:g} s"
    )


def _rows(result: Result) -> list[tuple[str, str]]:
    tally, options = result.tally, result.options
    what = "forecast" if options.mode == "forecast" else "step"
    rows = [(f"{what}s", f"{tally.num_steps:,}"), (f"{what}s/s", f"{tally.steps_per_second:,.0f}")]
    if options.steps_per_message > 1:
        rows.insert(1, ("messages", f"{tally.num_messages:,}"))
    if options.rate:
        rows.append(("sent", f"{tally.sent_steps_per_second:,.0f} {what}s/s"))
    rows.append(("errors", _errors(result)))
    latencies = [(f"latency {name}", milliseconds(value)) for name, value in _latencies(result).items()]
    (first_name, first), *others = latencies
    meaning = "scheduled time to reply" if options.rate else "of a message"
    rows += [(first_name, f"{first}   ({meaning})"), *others]
    rows.append(("generator", f"{tally.busiest_core:.0%} of a core" + _several(options.processes)))
    if result.server is not None:
        rows.append(("server CPU", f"{result.server.cpu_us_per_step:,.1f} µs a {what}"))
        if result.server.p50_seconds is not None and result.server.p99_seconds is not None:
            own = (result.server.p50_seconds, result.server.p99_seconds)
            rows.append(("server's own p50, p99", ", ".join(milliseconds(value).strip() for value in own)))
    return rows


def _several(processes: int) -> str:
    return f", the busiest of {processes} processes" if processes > 1 else ""


def _errors(result: Result) -> str:
    tally = result.tally
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in tally.errors.most_common())
    return f"{tally.num_errors:,}" + (f" ({reasons})" if reasons else "")


def milliseconds(seconds: float) -> str:
    """Returns a duration in ms, with two decimals below 100 ms."""
    value = seconds * 1e3
    return f"{value:,.2f} ms" if value < 100 else f"{value:,.0f} ms"

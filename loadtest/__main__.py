"""The command `python -m loadtest`: options in; a table, JSON and an exit status out."""

import asyncio
import json
import pathlib
import signal
import sys

import uvloop

from loadtest import options as options_of
from loadtest import report
from loadtest.errors import LoadtestError
from loadtest.options import Options
from loadtest.run import Result, run


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status. An error is one line on standard error."""
    try:
        options = options_of.parse(sys.argv[1:] if arguments is None else arguments)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            result = runner.run(_run(options))
        _show(result)
    except LoadtestError as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 2
    if result.is_interrupted:
        return 130
    if result.tally.num_errors:
        print(f"loadtest: {result.tally.num_errors:,} messages failed", file=sys.stderr)
        return 1
    return 0 if result.tally.num_steps else 1


async def _run(options: Options) -> Result:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return await run(options, stop)


def _show(result: Result) -> None:
    path = result.options.json
    text = json.dumps(report.to_json(result), indent=2)
    if path == "-":  # nothing but the JSON, so that a program can read it
        print(text)
        return
    print(report.table(result))
    if path:
        try:
            pathlib.Path(path).write_text(text + "\n")
        except OSError as error:
            raise LoadtestError(f"--json: cannot write {path}: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())

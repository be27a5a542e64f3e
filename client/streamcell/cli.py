"""The command `streamcell`: its options, its exit status, and one line for each error.

Exit status 0: done; 1: an error, described in one line on standard error; 2: wrong usage; 130: interrupted;
141: the program that read the output ended. Knows nothing of CSV.
"""

import argparse
import asyncio
import contextlib
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TextIO

from streamcell import access
from streamcell.access import AccessError
from streamcell.client import Client
from streamcell.errors import StreamcellError
from streamcell.lines import read_lines
from streamcell.predict import Pipe, find_model
from streamcell.session import Session
from streamcell.table import CsvError
from streamcell.values import Model, Variable

_PREDICT = """\
Pipes a CSV series through a model, line by line, and writes CSV: the time, the step's index, the inputs as
the file has them, and predicted_OUTPUT, the prediction for this row from the rows before it.
"""
_CSV = """\
The file has commas and a header. The time is in the column named timestamp, time, datetime, date or ds, or
in the first that begins with a date: ISO 8601, taken as UTC where no offset is given, or Unix seconds. Times
must rise. The model's inputs are found by name if the header has all of them, and otherwise taken in order
if their number is right.
Example: tail -n +1 -f sensor.csv | streamcell predict --model nyc-taxi
"""


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        asyncio.run(options.command(options))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Buffered output has no reader either; without this the interpreter would complain when it exits.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (StreamcellError, CsvError, AccessError) as error:
        return _fail(options, error)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _complain(f"{name}{error.strerror or error}")
    return 0


async def predict(options: argparse.Namespace) -> None:
    """Pipes a series through a session."""
    with contextlib.ExitStack() as stack:
        descriptor = _open_input(options.csv, stack)
        out = _open_output(options.out, stack)
        async with _client(options) as client:
            keep = options.session is not None  # somebody who names a session means to go on with it
            opening = client.session(model=options.model, session_id=options.session, keep=keep)
            async with opening as session:
                pipe = await _pipe(client, session, options, out)
                await pipe.run(read_lines(descriptor), options.horizon)
        if pipe.num_skipped:
            _note(f"{pipe.num_skipped} rows left out: session {options.session} has them already")


async def _pipe(client: Client, session: Session, options: argparse.Namespace, out: TextIO) -> Pipe:
    """Returns a pipe that goes on where the session stands."""
    model = await find_model(client, session)
    known_until_ns = None
    if model.uses_time and session.next_step_index:
        known_until_ns = (await session.refresh()).last_time_ns
    file_name = "standard input" if options.csv == "-" else options.csv
    return Pipe(session, model, file_name=file_name, out=out, known_until_ns=known_until_ns)


async def models(options: argparse.Namespace) -> None:
    """Lists the models that the server serves."""
    async with _client(options) as client:
        rows = [_describe(model) for model in await client.models()]
    titles = ("MODEL", "SESSIONS", "INTERVAL", "INPUTS", "OUTPUTS", "DESCRIPTION")
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in (titles, *rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="streamcell", description="Streams time steps through a model on a Streamcell server."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    piping = commands.add_parser(
        "predict", help="pipe a CSV series through a model", description=_PREDICT, epilog=_CSV,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    piping.set_defaults(command=predict)
    _add_server_options(piping)
    piping.add_argument("--model", metavar="NAME", help="NAME or NAME/VERSION (the only one served)")
    piping.add_argument("--session", metavar="ID", help="find or open this session and leave it (a new one)")
    piping.add_argument("--csv", metavar="FILE", default="-", help="the series; - is standard input (-)")
    piping.add_argument("--out", metavar="FILE", help="where predictions go (standard output)")
    piping.add_argument(
        "--horizon", metavar="N", type=_count, default=0, help="forecast so many steps ahead at the end (0)"
    )
    listing = commands.add_parser("models", help="list the models served")
    listing.set_defaults(command=models)
    _add_server_options(listing)
    return parser


def _add_server_options(parser: argparse.ArgumentParser) -> None:
    target = os.environ.get("STREAMCELL_TARGET") or "localhost:50051"
    parser.add_argument(
        "--target",
        metavar="HOST:PORT",
        default=target,
        help=f"the server, or several with commas between, or STREAMCELL_TARGET ({target})",
    )
    access.add_options(parser)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of steps")
    return int(text)


def _client(options: argparse.Namespace) -> Client:
    allowed = access.access_of(options, target=options.target)
    return Client(options.target, tls=allowed.tls, token=allowed.token)


def _open_input(name: str, stack: contextlib.ExitStack) -> int:
    if name == "-":
        return sys.stdin.fileno()
    descriptor = os.open(name, os.O_RDONLY)
    stack.callback(os.close, descriptor)
    return descriptor


def _open_output(name: str | None, stack: contextlib.ExitStack) -> TextIO:
    if name is None:
        return sys.stdout
    return stack.enter_context(pathlib.Path(name).open("w", encoding="utf-8", newline=""))


def _describe(model: Model) -> tuple[str, ...]:
    interval = f"{model.step_interval_seconds:g} s" if model.step_interval_seconds else "-"
    return (
        f"{model.name}/{model.version}" + (" (retiring)" if model.retiring else ""),
        str(model.num_sessions),
        interval,
        ", ".join(map(_with_unit, model.inputs)),
        ", ".join(map(_with_unit, model.outputs)),
        model.description,
    )


def _with_unit(variable: Variable) -> str:
    return f"{variable.name} [{variable.unit}]" if variable.unit else variable.name


def _fail(options: argparse.Namespace, error: Exception) -> int:
    if isinstance(error, StreamcellError):
        return _complain(f"{options.target}: {error.message}")
    return _complain(str(error))


def _complain(what: str) -> int:
    _note(what)
    return 1


def _note(what: str) -> None:
    sys.stderr.write(f"streamcell: {' '.join(what.split())}\n")

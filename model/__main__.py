"""Owns the command line `python -m model`, and prints what a command returns.

Knows nothing of what a command does: a module with the command's name declares its options and runs it.
"""

import argparse
import importlib
import os
import sys

from model.errors import ModelError

COMMANDS = {
    "train": "train a network on a series, and write its artifact and a report",
    "evaluate": "stream a series through an artifact, and compare its forecasts with simple ones",
    "export": "write an artifact from a checkpoint, from an older artifact, or for benchmarks",
    "inspect": "print an artifact's manifest",
    "memory": "compare how long each kind of cell remembers, by two tasks and by the gradient",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its status: 2 for a ModelError, which is one line on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m model",
        description="Trains, evaluates and exports recurrent networks.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    modules = {name: importlib.import_module(f"model.{name}") for name in COMMANDS}
    for name, purpose in COMMANDS.items():
        modules[name].add_arguments(
            commands.add_parser(name, help=purpose, description=purpose.capitalize() + ".")
        )
    options = parser.parse_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else arguments
    try:
        print(modules[options.command].run(options), flush=True)
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader is gone; the text still buffered must not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell reports a process ended by SIGPIPE
    return 0


if __name__ == "__main__":
    sys.exit(main())

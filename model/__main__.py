"""Owns the command line `python -m model`; each command lives in its own module."""

import argparse
import importlib
import os
import sys

from model.errors import ModelError

COMMANDS = {
    "train": "train a network on a series and write its artifact and report",
    "evaluate": "stream a series through an artifact and compare it with simple baselines",
    "export": "write an artifact from a checkpoint, or the reference artifact",
    "inspect": "print an artifact's manifest",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; what the caller got wrong becomes one line on standard error and status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m model", description="Trains, judges and exports networks."
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
    except BrokenPipeError:  # whoever read, has read enough; nothing more can be said to them
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


if __name__ == "__main__":
    sys.exit(main())

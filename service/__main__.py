"""The command `python -m service`: settings in, a server until a signal, an exit status out."""

import asyncio
import os
import sys

import uvloop

from service import config, log, server
from service.errors import ConfigError


def main() -> int:
    """Runs the server and returns the exit status; 2 when a setting is wrong."""
    log.set_up()
    try:
        settings = config.from_command(sys.argv[1:], os.environ)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(server.run(settings))
    except ConfigError as error:
        print(f"streamcell: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

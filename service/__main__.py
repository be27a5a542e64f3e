"""The command `python -m service`: reads the settings, serves until a signal, and returns an exit status."""

import asyncio
import dataclasses
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from service import addresses, config, exposure, settings_report
from service.commands import snapshot_key, token
from service.config import Config
from service.errors import ConfigError
from service.fronts.envoy import launch
from service.processes import tuning
from service.telemetry import log

_COMMANDS = {"token": token.main, "snapshot-key": snapshot_key.main}
_OTHER_FILES = 1000  # beside connections: libraries, stores, models, pipes


def main() -> int:
    """Runs the server, or a command beside it, and returns the exit status; 2 if a setting is wrong."""
    command = _COMMANDS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if command is not None:
        return command(sys.argv[2:])
    log.set_up()
    tuning.make_products_reproducible(os.environ)
    try:
        settings = _with_addresses(_with_front(config.from_command(sys.argv[1:], os.environ)))
        for name, nearest in settings_report.unknown_variables(os.environ).items():
            log.warning("unknown_variable", variable=name, **({"nearest": nearest} if nearest else {}))
        exposure.check(settings)
        if settings.cpu_scheduling == "batch":
            tuning.schedule_in_batches()
        if not tuning.allow_open_files(settings.max_connections + _OTHER_FILES):
            log.warning("few_open_files", effect="--max-connections exceeds what `ulimit -n` allows")
        run = _run_of(settings)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run(settings))
    except ConfigError as error:
        print(f"streamcell: {config.as_given(str(error), sys.argv[1:], os.environ)}", file=sys.stderr)
        return 2


def _with_front(settings: Config) -> Config:
    """Returns the settings with a front in place of `auto`, chosen as docs/adr/0009 decides."""
    if settings.front != "auto":
        return settings
    is_grpcio = settings.channelz or bool(launch.why_unavailable())
    return dataclasses.replace(settings, front="grpcio" if is_grpcio else "envoy")


def _with_addresses(settings: Config) -> Config:
    """Returns the settings with numbers in place of host names, so that all processes have the same."""
    return dataclasses.replace(
        settings,
        listen=addresses.resolved(settings.listen, "--listen"),
        metrics_listen=addresses.resolved(settings.metrics_listen, "--metrics-listen"),
    )


def _run_of(settings: Config) -> Callable[[Config], Coroutine[Any, Any, int]]:
    # Imported here, as each needs what the other does not: the server torch and grpcio, the supervisor Envoy.
    if settings.front == "envoy" or settings.workers > 1:
        from service.processes import supervisor

        return supervisor.run
    from service import server

    return server.run


if __name__ == "__main__":
    sys.exit(main())

"""The servers of a benchmark, all up at once, because those without load cost nothing.

Knows how each is started, not what is measured on it.
"""

import dataclasses
import pathlib

SERVICE, SMALL_QUEUE, ECHO, ECHO_BATCH = "service", "small queue", "echo", "echo, batch"
ENVOY, ENVOY_ECHO = "envoy", "envoy echo"
STORED = "stored"
SMALL_QUEUE_STEPS = 8192  # of the server that is overloaded: it is then full within a tenth of a second
_FREE = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
_SERVED = ("--device", "cpu", "--models", "{folder}/models", *_FREE)


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """A module of this project that serves, with its options; "{folder}" in them: one for the whole run."""

    module: str
    options: tuple[str, ...] = ()
    needs_envoy: bool = False

    def arguments(self, folder: pathlib.Path) -> list[str]:
        """Returns the options, where the run's folder is this one."""
        return [option.format(folder=folder) for option in self.options]


SERVERS = {
    SERVICE: Kind("service", (*_SERVED, "--front", "grpcio")),
    STORED: Kind("service", (*_SERVED, "--front", "grpcio", "--store", "sqlite:{folder}/sessions.db")),
    ECHO: Kind("bench.echo"),
    ECHO_BATCH: Kind("bench.echo", ("--batch",)),
    SMALL_QUEUE: Kind(
        "service", (*_SERVED, "--front", "grpcio", "--max-queue-steps", str(SMALL_QUEUE_STEPS))
    ),
    ENVOY: Kind("service", (*_SERVED, "--front", "envoy"), needs_envoy=True),
    ENVOY_ECHO: Kind("bench.envoy_echo", needs_envoy=True),
}

"""The servers of a benchmark. All run at once, because a server without load costs nothing.

Owns how each is started. Does not know what is measured on it.
"""

import dataclasses
import pathlib

SERVICE, SMALL_QUEUE, ECHO, ECHO_BATCH = "service", "small queue", "echo", "echo, batch"
ENVOY, ENVOY_ECHO = "envoy", "envoy echo"
STORED = "stored"
SMALL_QUEUE_STEPS = 8192  # of the overloaded server: its queue is full within a tenth of a second
_FREE = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
_SERVED = ("--device", "cpu", "--models", "{folder}/models", *_FREE)


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """A module that serves, and its options, in which "{folder}" stands for the folder of the whole run."""

    module: str
    options: tuple[str, ...] = ()
    needs_envoy: bool = False

    def arguments(self, folder: pathlib.Path) -> list[str]:
        """Returns the options for a folder of the run."""
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

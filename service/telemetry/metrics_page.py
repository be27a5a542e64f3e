"""The page that Prometheus reads: its listener, and one page joined from several processes' pages.

Does not know the instruments.
"""

import errno
import threading
from collections.abc import Iterable, Mapping

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from service.config import Address
from service.errors import ConfigError
from service.telemetry.page_server import PageServer

_MAX_PICKS = 32  # of a port that is free on every host


class MetricsPage:
    """Serves a registry's page, on a listener and a thread of its own for each host of an address."""

    def __init__(self, address: Address, registry: CollectorRegistry) -> None:
        self._listeners: list[tuple[PageServer, threading.Thread]] = []
        num_left = 1 if address.port else _MAX_PICKS
        while not self._listeners:
            num_left -= 1
            try:
                self._listen(address, registry)
            except OSError as error:
                self.close()
                if error.errno != errno.EADDRINUSE or not num_left:
                    raise ConfigError(
                        f"--metrics-listen: cannot listen on {address}: {error.strerror}"
                    ) from None
        self.address = Address(address.host, self._listeners[0][0].server_port)

    def _listen(self, address: Address, registry: CollectorRegistry) -> None:
        """Listens on each host, all on one port."""
        port = address.port
        for host in address.hosts:
            http = PageServer(host, port, registry)
            thread = threading.Thread(target=http.serve_forever, name="metrics", daemon=True)
            thread.start()
            self._listeners.append((http, thread))
            port = self._listeners[0][0].server_port

    def close(self) -> None:
        """Closes the listeners, and returns when their threads have ended."""
        while self._listeners:
            http, thread = self._listeners.pop()
            http.shutdown()
            http.server_close()
            thread.join()


def joined(pages: Mapping[str, str]) -> Iterable[Metric]:
    """Returns the families of several processes' pages, each sample with its process as the label `worker`.

    Nothing is added up. A restarted process begins its counters at 0, which Prometheus can take the rate of
    for each worker alone. Memory and CPU time belong to one process.
    """
    families: dict[str, Metric] = {}
    for worker, page in pages.items():
        for found in text_string_to_metric_families(page):
            family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
            for sample in found.samples:
                family.add_sample(sample.name, {**sample.labels, "worker": worker}, sample.value)
    return families.values()

"""The page that Prometheus reads: its listener, and one page joined from several processes' pages.

Does not know the instruments.
"""

from collections.abc import Iterable, Mapping

from prometheus_client import start_http_server
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from service.config import Address
from service.errors import ConfigError


class MetricsPage:
    """Serves a registry's page, on a listener and a thread of its own."""

    def __init__(self, address: Address, registry: CollectorRegistry) -> None:
        try:
            self._http, self._thread = start_http_server(address.port, address.host, registry)
        except OSError as error:
            raise ConfigError(f"--metrics-listen: cannot listen on {address}: {error.strerror}") from None
        self.address = Address(address.host, self._http.server_port)

    def close(self) -> None:
        """Closes the listener, and returns when its thread has ended."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


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

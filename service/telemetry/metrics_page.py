"""Prometheus' page: its listener, and one page made of those of several processes. Knows no instrument."""

from collections.abc import Iterable, Mapping

from prometheus_client import start_http_server
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from service.config import Address
from service.errors import ConfigError


class MetricsPage:
    """A registry's page, on a listener and a thread of its own."""

    def __init__(self, address: Address, registry: CollectorRegistry) -> None:
        try:
            self._http, self._thread = start_http_server(address.port, address.host, registry)
        except OSError as error:
            raise ConfigError(f"--metrics-listen: cannot listen on {address}: {error.strerror}") from None
        self.address = Address(address.host, self._http.server_port)

    def close(self) -> None:
        """Ends the listener."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def joined(pages: Mapping[str, str]) -> Iterable[Metric]:
    """Returns the families of several processes' pages as one, each sample with its process as `worker`.

    Nothing is added up: counters that begin anew with a restarted process stay what Prometheus can take the
    rate of, and what is of one process (memory, CPU time) stays its own.
    """
    families: dict[str, Metric] = {}
    for worker, page in pages.items():
        for found in text_string_to_metric_families(page):
            family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
            for sample in found.samples:
                family.add_sample(sample.name, {**sample.labels, "worker": worker}, sample.value)
    return families.values()

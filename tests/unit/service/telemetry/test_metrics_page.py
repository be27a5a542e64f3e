"""The page that Prometheus reads: joined from several processes' pages, and served."""

import socket
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from service.config import Address
from service.errors import ConfigError
from service.telemetry.metrics_page import MetricsPage, joined


class Pages:
    """A collector that joins pages."""

    def __init__(self, pages):
        self.pages = pages

    def collect(self):
        """Returns the joined families."""
        return joined(self.pages)


def page(count):
    """Returns the page of one process."""
    registry = CollectorRegistry()
    counter = Counter("steps", "Steps.", ["model"], registry=registry)
    counter.labels('a "b"\\').inc(count)
    Gauge("memory_bytes", "Memory.", registry=registry).set(count * 10)
    Histogram("wait_seconds", "Waits.", buckets=(1.0, 2.0), registry=registry).observe(count)
    return generate_latest(registry).decode()


def test_every_sample_is_there_with_its_worker():
    """Counters, gauges and buckets are there, odd characters in labels too, with one header per family."""
    registry = CollectorRegistry()
    registry.register(Pages({"0": page(1), "1": page(2)}))
    sample = registry.get_sample_value
    assert [sample("steps_total", {"model": 'a "b"\\', "worker": worker}) for worker in "01"] == [1, 2]
    assert [sample("memory_bytes", {"worker": worker}) for worker in "01"] == [10, 20]
    assert [sample("wait_seconds_bucket", {"le": "1.0", "worker": worker}) for worker in "01"] == [1, 0]
    text = generate_latest(registry).decode()
    assert text.count("# TYPE steps_total counter") == 1
    assert text.count("# TYPE wait_seconds histogram") == 1


def test_a_page_is_served_until_it_is_closed():
    """The page has its own port. A port that is taken is refused with the flag's name."""
    registry = CollectorRegistry()
    Gauge("here", "Here.", registry=registry).set(7)
    shown = MetricsPage(Address("127.0.0.1", 0), registry)
    with urllib.request.urlopen(f"http://{shown.address}/metrics", timeout=30) as response:
        assert b"here 7.0" in response.read()
    with pytest.raises(ConfigError, match="--metrics-listen: cannot listen on"):
        MetricsPage(shown.address, registry)
    shown.close()


def test_a_page_is_served_on_every_host_of_its_address():
    """On one port, whether it was given or picked; a host on which the port is taken leaves none open."""
    registry = CollectorRegistry()
    shown = MetricsPage(Address("127.0.0.1,127.0.0.2", 0), registry)
    assert shown.address.host == "127.0.0.1,127.0.0.2"
    for host in shown.address.hosts:
        with urllib.request.urlopen(f"http://{host}:{shown.address.port}/metrics", timeout=30) as response:
            assert response.status == 200
    with pytest.raises(ConfigError, match="--metrics-listen: cannot listen on"):
        MetricsPage(Address("127.0.0.3,127.0.0.2", shown.address.port), registry)
    with socket.socket() as free:
        free.bind(("127.0.0.3", shown.address.port))
    shown.close()

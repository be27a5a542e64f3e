"""The servers: which there are, how each is started, and what is left out where Envoy cannot be had."""

import pytest

from bench.cases import CASES
from bench.servers import ENVOY, SERVERS, SERVICE
from service.errors import ConfigError
from service.fronts.envoy import launch


def test_every_server_has_cases():
    """And every case a server."""
    assert {case.on for case in CASES} == set(SERVERS)


@pytest.mark.parametrize(("name", "front"), [(SERVICE, "grpcio"), (ENVOY, "envoy")])
def test_front_is_named_whichever_is_the_default(tmp_path, name, front):
    """And options may name the run's folder."""
    arguments = SERVERS[name].arguments(tmp_path)
    assert arguments[arguments.index("--front") + 1] == front
    assert arguments[arguments.index("--models") + 1] == f"{tmp_path}/models"
    assert SERVERS[name].needs_envoy == (front == "envoy")


def test_envoy_that_cannot_be_had_is_no_failure(monkeypatch):
    """The reason is the server's own, without the option that it names."""

    def fail():
        raise ConfigError("--front: envoy needs a thing")

    monkeypatch.setattr(launch, "environment", fail)
    assert launch.why_unavailable() == "envoy needs a thing"
    monkeypatch.setattr(launch, "environment", dict)
    assert launch.why_unavailable() == ""

"""The servers: how each is started, and what is left out where Envoy does not run."""

import pytest

from bench.cases import CASES
from bench.servers import ENVOY, SERVERS, SERVICE
from service.errors import ConfigError
from service.fronts.envoy import launch


def test_every_server_has_cases():
    """And every case has a server."""
    assert {case.server for case in CASES} == set(SERVERS)


@pytest.mark.parametrize(("name", "front"), [(SERVICE, "grpcio"), (ENVOY, "envoy")])
def test_front_is_named_whichever_is_the_default(tmp_path, name, front):
    """The options contain the folder of the run."""
    arguments = SERVERS[name].arguments(tmp_path)
    assert arguments[arguments.index("--front") + 1] == front
    assert arguments[arguments.index("--models") + 1] == f"{tmp_path}/models"
    assert SERVERS[name].needs_envoy == (front == "envoy")


def test_missing_envoy_is_no_failure(monkeypatch):
    """The reason is the server's error without the name of the option."""

    def fail():
        raise ConfigError("--front: envoy needs a thing")

    monkeypatch.setattr(launch, "environment", fail)
    assert launch.why_unavailable() == "envoy needs a thing"
    monkeypatch.setattr(launch, "environment", dict)
    assert launch.why_unavailable() == ""

"""What is said about settings."""

import pytest

from service.config import Address, Config, from_command
from service.settings_report import not_default, unknown_variables
from tests.unit.service.test_config import COMPANIONS, FIELDS

PASSWORD = "hunter2"  # noqa: S105


class TestNotDefault:
    """The settings that are not their defaults."""

    def test_defaults_are_not_told(self):
        """Nor is the front, which is always replaced."""
        assert not_default(Config()) == {}
        assert not_default(Config(front="grpcio", threads=1)) == {}

    @pytest.mark.parametrize(("name", "flag", "text", "value"), FIELDS)
    def test_each_setting_is_told_as_its_flag_would_have_it(self, name, flag, text, value):
        """In the form in which it is given."""
        found = not_default(from_command([flag, text, *COMPANIONS.get(name, [])], {}))
        assert found.get(name) == (None if name == "front" else text)

    @pytest.mark.parametrize(
        ("store", "shown"),
        [
            (f"redis://:{PASSWORD}@host:6379/0", "redis://***@host:6379/0"),
            (f"rediss://name:{PASSWORD}@host", "rediss://***@host"),
            (f"redis://name:p@ss/{PASSWORD}@host/1", "redis://***@host/1"),
            (f"unix:///run/redis.sock?password={PASSWORD}", "unix:///run/redis.sock?***"),
            (f"redis://name:{PASSWORD}@host?password={PASSWORD}", "redis://***@host?***"),
            ("sqlite:/data/sessions.db", "sqlite:/data/sessions.db"),
            ("redis://host:6379/0", "redis://host:6379/0"),
        ],
    )
    def test_a_stores_secrets_are_not_told(self, store, shown):
        """Neither the name and password nor the parameters, which may have them too."""
        assert not_default(Config(store=store)) == {"store": shown}


class TestUnknownVariables:
    """Variables with the server's prefix that set nothing."""

    def test_a_misspelt_variable_is_told_with_the_nearest(self):
        """A name that is near none is told alone."""
        found = unknown_variables(["STREAMCELL_LISTN", "STREAMCELL_XYZZY", "PATH", "STREAMCELL_LISTEN"])
        assert found == {"STREAMCELL_LISTN": "STREAMCELL_LISTEN", "STREAMCELL_XYZZY": ""}

    @pytest.mark.parametrize(("name", "flag", "text", "value"), FIELDS)
    def test_settings_are_known(self, name, flag, text, value):
        """Every one."""
        assert unknown_variables([f"STREAMCELL_{name.upper()}"]) == {}

    @pytest.mark.parametrize(
        "name",
        [
            "STREAMCELL_TARGET", "STREAMCELL_PORT", "STREAMCELL_SERVICE_HOST", "STREAMCELL_SERVICE_PORT_GRPC",
            "STREAMCELL_PORT_50051_TCP_ADDR", "STREAMCELL_PORT_50051_TCP", "STREAMCELL_REDIS_SERVICE_PORT",
        ],
    )  # fmt: skip
    def test_what_others_set_or_read_is_no_mistake(self, name):
        """The client's variable, and those that Kubernetes sets for services."""
        assert unknown_variables([name]) == {}


def test_an_address_is_told_as_it_is_given():
    """In the form of the flag."""
    assert not_default(Config(listen=Address("::1,127.0.0.1", 1))) == {"listen": "[::1],127.0.0.1:1"}

"""Plain text on addresses that other machines can reach: refused, or loud."""

import logging

import pytest

from service import exposure
from service.config import Address, Config
from service.errors import ConfigError

LOOPBACK = ["127.0.0.1", "::1", "127.0.0.1,::1"]
OTHERS = ["0.0.0.0", "::", "10.1.2.3", "127.0.0.1,10.1.2.3"]  # noqa: S104
TLS = {"tls_cert": "cert.pem", "tls_key": "key.pem"}


@pytest.mark.parametrize("host", OTHERS)
def test_plain_text_that_others_can_reach_is_refused(host):
    """The message says what to do."""
    with pytest.raises(ConfigError, match=r"^--listen: .*: give --tls-cert and --tls-key, or --insecure"):
        exposure.check(Config(listen=Address(host, 80)))


@pytest.mark.parametrize("host", OTHERS)
def test_insecure_allows_it_loudly(host, caplog):
    """A warning says what it means."""
    exposure.check(Config(listen=Address(host, 80), insecure=True))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "insecure"
    assert record.fields["means"].startswith("NO TLS: ")


@pytest.mark.parametrize(
    "asked", [{"tokens": "tokens.txt"}, {"jwt_keys": "keys.json", "jwt_audience": "streamcell"}]
)
def test_where_tokens_are_asked_for_the_tokens_are_at_risk(asked, caplog):
    """An id alone opens nothing there, and nobody is told that it does."""
    exposure.check(Config(listen=Address(OTHERS[0], 80), insecure=True, **asked))
    with pytest.raises(ConfigError) as caught:
        exposure.check(Config(listen=Address(OTHERS[0], 80), **asked))
    for said in (caplog.records[0].fields["means"], str(caught.value)):
        assert "read and change everything, and use the callers' tokens" in said
        assert "session whose id they know" not in said


@pytest.mark.parametrize("insecure", [True, False])
@pytest.mark.parametrize(
    "given",
    [*({"listen": Address(host, 80)} for host in LOOPBACK), {"listen": Address("10.1.2.3", 80), **TLS}],
)
def test_what_others_cannot_read_is_nothing_to_say(given, insecure, caplog):
    """Loopback, or TLS. The page of metrics has no sessions and is always plain text."""
    exposure.check(Config(**given, insecure=insecure, metrics_listen=Address("10.1.2.3", 90)))
    assert caplog.records == []

"""The alert rules for Prometheus: they look at what the server shows."""

import pathlib
import re

from service.errors import Code, Reason
from service.telemetry.metrics import Metrics

ROOT = pathlib.Path(__file__).parents[3]
TEXT = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text()
EXPRESSIONS = re.findall(r"^ +expr: (.*)$", TEXT, re.MULTILINE)


def shown():
    """The names that are on a server's page; the supervisor adds its own to those of a worker."""
    metrics = Metrics()
    metrics.of_store()
    metrics.of_certificates()
    families = metrics.registry.collect()
    names = {f"{each.name}_total" if each.type == "counter" else each.name for each in families}
    return names | {"streamcell_worker_restarts_total"}


def test_alerts_look_at_metrics_that_there_are():
    """A misspelt one would never fire, and nobody would see that."""
    assert len(EXPRESSIONS) == TEXT.count("- alert: ") >= 10
    for expression in EXPRESSIONS:
        (name,) = re.findall(r"streamcell_\w+", expression)
        assert name in shown(), name


def test_alerts_look_for_reasons_and_codes_that_there_are():
    """As the errors' table has them."""
    for label, value in re.findall(r'(\w+)="(\w+)"', "".join(EXPRESSIONS)):
        assert value in {"reason": set(Reason), "code": {each.name for each in Code}}[label]


def test_a_certificates_end_is_told_two_weeks_and_two_days_before():
    """By the metric of its end, in seconds."""
    ends = [each for each in EXPRESSIONS if "streamcell_tls_certificate_expiry_timestamp_seconds" in each]
    assert [re.search(r"- time\(\) < (\d+) \* 86400$", each)[1] for each in ends] == ["14", "2"]

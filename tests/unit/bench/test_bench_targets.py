"""Whether a figure meets its target, in words and on a scale."""

import math

import pytest

from bench.cases import RESIDENT, START, labels
from bench.targets import TARGETS, Ratio, Target, Value, outcome, strain

AT_MOST = Target("least", "a cost", Value("cost", "case"), goal=2.0, stretch=1.0)
AT_LEAST = Target("most", "a rate", Value("rate", "case"), goal=20.0, stretch=60.0, at_least=True)
NO_STRETCH = Target("plain", "a cost", Value("cost", "case"), goal=5.0)


@pytest.mark.parametrize(
    ("target", "value", "said"),
    [
        (AT_MOST, 0.5, "stretch"), (AT_MOST, 1.0, "stretch"), (AT_MOST, 1.01, "met"), (AT_MOST, 2.0, "met"),
        (AT_MOST, 2.5, "missed by 25 %"), (AT_MOST, 2.001, "missed by under 1 %"),
        (AT_LEAST, 60.0, "stretch"), (AT_LEAST, 59.0, "met"), (AT_LEAST, 20.0, "met"),
        (AT_LEAST, 15.0, "missed by 25 %"), (AT_LEAST, 0.0, "missed by 100 %"),
        (NO_STRETCH, 0.1, "met"), (NO_STRETCH, 50.0, "missed by 900 %"),
    ],
)  # fmt: skip
def test_outcome_says_how_far(target, value, said):
    """A goal that is just reached is met. A miss is given in percent of the goal."""
    assert str(outcome(target, value)) == said
    assert outcome(target, value).is_met == (not said.startswith("missed"))


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_target_that_was_not_measured_is_not_met(value):
    """A check without a figure has not passed."""
    assert str(outcome(AT_MOST, value)) == "not measured"
    assert not outcome(AT_MOST, value).is_met


def test_strain_is_over_one_where_a_target_is_missed():
    """Whether larger or smaller figures are better, so that one scale shows all targets."""
    assert strain(AT_MOST, 3.0) == 1.5
    assert strain(AT_LEAST, 10.0) == 2.0
    assert strain(AT_LEAST, 40.0) == 0.5
    assert strain(AT_LEAST, 0.0) == math.inf


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_target_has_cases_that_are_measured(target):
    """Its stretch goal lies beyond the goal."""
    source = target.source
    cases = {source.over, source.under} if isinstance(source, Ratio) else {source.case}
    assert cases <= {*labels(), RESIDENT, START}
    if target.stretch is not None:
        assert strain(target, target.stretch) < 1


def test_no_two_targets_have_the_same_name():
    """A summary finds them by name."""
    assert len({target.name for target in TARGETS}) == len(TARGETS)

"""The calendar table."""

import numpy as np
import pytest

from model.calendar_features import DAY_HARMONICS, DAY_NS, NUM_FEATURES, WEEK_NS, calendar_table, slot_ns_of

MINUTE_NS = 60 * 10**9


@pytest.mark.parametrize(
    ("interval_minutes", "slot_minutes"),
    [(0.01, 5), (1, 5), (5, 5), (7, 6.6667), (30, 30), (60, 60), (1440, 1440), (10_000, 1440)],
)
def test_slots_divide_the_day(interval_minutes, slot_minutes):
    """A slot is as wide as an interval that divides a day, otherwise a little narrower, within bounds."""
    slot_ns = slot_ns_of(int(interval_minutes * MINUTE_NS))
    assert DAY_NS % slot_ns == 0
    assert slot_ns / MINUTE_NS == pytest.approx(slot_minutes, rel=1e-4)


def test_table_holds_daily_and_weekly_waves():
    """The first daily wave repeats every day, the first weekly wave every week; all are sines and cosines."""
    table = calendar_table(slot_ns_of(30 * MINUTE_NS))
    assert table.shape == (WEEK_NS // (30 * MINUTE_NS), NUM_FEATURES)
    half = NUM_FEATURES // 2
    np.testing.assert_allclose(table[:, :half] ** 2 + table[:, half:] ** 2, 1.0, atol=1e-6)
    day = table[:, 0].reshape(7, 48)
    np.testing.assert_allclose(day, np.tile(np.sin(2 * np.pi * np.arange(48) / 48), (7, 1)), atol=1e-6)
    weekly = table[:, DAY_HARMONICS]
    np.testing.assert_allclose(weekly, np.sin(2 * np.pi * np.arange(336) / 336), atol=1e-6)


def test_no_two_slots_of_a_week_look_alike():
    """Every half hour of the week has features of its own."""
    table = calendar_table(slot_ns_of(30 * MINUTE_NS))
    distances = np.abs(table[:, None] - table[None]).max(axis=2) + np.eye(len(table))
    assert distances.min() > 0.01

"""Owns the calendar features: where a time lies in its day and its week, as sines and cosines in a table.

Knows nothing of networks or series, and imports no torch.

The script looks the features up in a table: one operation per step instead of ten small ones for the sines.
"""

import numpy as np
from numpy.typing import NDArray

DAY_NS = 86_400 * 10**9
WEEK_NS = 7 * DAY_NS
DAY_HARMONICS = 4
WEEK_HARMONICS = 6
NUM_FEATURES = 2 * (DAY_HARMONICS + WEEK_HARMONICS)
FINEST_SLOT_NS = 300 * 10**9
"""A finer table would outgrow the network, and in five minutes a daily wave moves by two per cent at most."""


def slot_ns_of(interval_ns: int) -> int:
    """Returns the width of a slot of the table: a divisor of a day, no wider than the interval.

    A slot is never narrower than about FINEST_SLOT_NS, and never wider than a day.
    """
    wanted = min(max(interval_ns, FINEST_SLOT_NS), DAY_NS)
    slots_per_day = -(-DAY_NS // wanted)
    while DAY_NS % slots_per_day:
        slots_per_day += 1
    return DAY_NS // slots_per_day


def calendar_table(slot_ns: int) -> NDArray[np.float32]:
    """Returns sines and cosines of the first harmonics of day and week: (slots of a week, NUM_FEATURES).

    A slot has the features of its beginning. Weeks begin as 1970-01-01 did, on Thursdays, at 0:00 UTC.
    """
    start_ns = np.arange(WEEK_NS // slot_ns, dtype=np.float64) * slot_ns  # (slots)
    daily = np.outer(start_ns / DAY_NS, np.arange(1, DAY_HARMONICS + 1))
    weekly = np.outer(start_ns / WEEK_NS, np.arange(1, WEEK_HARMONICS + 1))
    angles = 2.0 * np.pi * np.concatenate([daily, weekly], axis=1)  # (slots, harmonics)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)

"""The model of the simulation: a hash of all inputs in their order, exact in float32.

A step that is lost, taken twice or out of order changes every later prediction, for good. `Truth` has the
predictions of a session to which nothing happens.
"""

import json
import types
import zlib

import numpy as np

from service.runtime import manifest

MODULUS = 1_048_573  # prime; all numbers stay below 2**23, so float32 is exact
MODEL, VERSION = "hash", "1"

_VARIABLE = {"name": "hash", "target": "x", "role": "mean", "quantile": None, "unit": "", "horizon_steps": 1}
ABOUT = manifest.parse(
    json.dumps(
        {
            "format_version": 1,
            "name": MODEL,
            "version": VERSION,
            "description": "A hash of its inputs.",
            "inputs": [{"name": "x", "unit": ""}],
            "outputs": [_VARIABLE, _VARIABLE | {"name": "count"}],
            "future": [],
            "state": {
                "size": 2,
                "layout": [
                    {"name": "hash", "offset": 0, "size": 1},
                    {"name": "count", "offset": 1, "size": 1},
                ],
            },
            "uses_time": False,
            "step_interval_seconds": 1.0,
            "training": {},
        }
    )
)


class Runner:
    """The model over rows of state, as `service.runtime.runner.Runner` has it."""

    def __init__(self, capacity):
        self.artifact = types.SimpleNamespace(name=MODEL, version=VERSION, manifest=ABOUT, digest=b"hash" * 4)
        self._rows = np.zeros((capacity, 2), np.float32)

    def clear(self, slot):
        """Puts a session's state back to its start."""
        self._rows[slot] = 0

    def read(self, slots):
        """Returns copies of states [N, 2]."""
        return self._rows[slots]

    def put(self, slots, states):
        """Overwrites states [N, 2]."""
        self._rows[slots] = states

    def step(self, slots, x, times):
        """Applies one step to each of B sessions; x is [B, 1]."""
        rows = self._rows[slots]  # (B, 2)
        rows[:, 0] = np.fmod(rows[:, 0] * np.float32(5) + x[:, 0], np.float32(MODULUS))
        rows[:, 1] += 1
        self._rows[slots] = rows
        return rows, np.ones(len(slots), np.bool_)

    def scan(self, slots, x, times, lengths):
        """Applies lengths[b] steps to each of B sessions; x is [B, T, 1]."""
        y = np.zeros((*x.shape[:2], 2), np.float32)
        for t in range(x.shape[1]):
            left = lengths > t
            y[left, t] = self.step(slots[left], x[left, t], None)[0]
        return y, np.ones(len(slots), np.bool_)

    def forecast(self, slot, time, horizon, future):
        """Returns [H, 2], from the state alone."""
        return np.array([forecast_of(*self._rows[slot], ahead) for ahead in range(horizon)], np.float32)


def forecast_of(hashed, count, ahead):
    """Returns the forecast of a state `ahead` steps after the next."""
    return (int(hashed) + 7 * ahead) % MODULUS, int(count)


class Truth:
    """What each step of a session is given, and what it answers.

    A session's inputs depend on its id, the step's index, and its *life*: each reset begins another one. The
    inputs of a constant session are all the same, for clients that do not number their steps.
    """

    def __init__(self, name, *, is_constant=False):
        self.name = name
        self.is_constant = is_constant
        self.life = 0
        self._hashes = {}

    def x(self, index, life=None):
        """Returns the input of a step."""
        if self.is_constant:
            return float(zlib.crc32(self.name.encode()) % MODULUS)
        life = self.life if life is None else life
        return float(zlib.crc32(f"{self.name}/{life}/{index}".encode()) % MODULUS)

    def life_of(self, index, x):
        """Returns the latest life in which a step has this input; None if there is none."""
        if self.is_constant:
            return 0 if x == self.x(0) else None
        return next((life for life in range(self.life, -1, -1) if self.x(index, life) == x), None)

    def y(self, index, life=None):
        """Returns the prediction after a step."""
        life = 0 if self.is_constant else self.life if life is None else life
        hashes = self._hashes.setdefault(life, [])
        while len(hashes) <= index:
            before = hashes[-1] if hashes else 0
            hashes.append((5 * before + int(self.x(len(hashes), life))) % MODULUS)
        return float(hashes[index]), float(index + 1)

    def forecast(self, num_steps, horizon):
        """Returns the forecast after `num_steps` steps of the present life."""
        state = self.y(num_steps - 1)
        return tuple(tuple(map(float, forecast_of(*state, ahead))) for ahead in range(horizon))

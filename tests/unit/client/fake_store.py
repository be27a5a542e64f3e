"""A store for fake servers: what of their sessions survives a crash, and who owns each.

A row's steps are written by its owner alone; whoever takes it over raises its epoch, and a write of an
earlier owner fails. Knows nothing of servers and calls.
"""

# ruff: noqa: D102 - as in fake_streamcell

import dataclasses


@dataclasses.dataclass
class Row:
    """A session in the store."""

    owner: object
    epoch: int = 1
    applied: list = dataclasses.field(default_factory=list)  # (x, time_ns, y)


class FakeStore:
    """Rows by session; `lag_steps` is how far they stay behind what was applied, None: nothing is written."""

    def __init__(self, lag_steps=0):
        self.lag_steps = lag_steps
        self.rows: dict[str, Row] = {}

    def create(self, session_id, owner):
        self.rows[session_id] = Row(owner)

    def claim(self, session_id, owner):
        """Takes a row over."""
        row = self.rows[session_id]
        row.owner, row.epoch = owner, row.epoch + 1
        return row

    def write(self, held, owner, num_steps=None):
        """Writes the first steps of a session; False: another owner has it."""
        row = self.rows.get(held.session_id)
        if row is None or row.owner is not owner or row.epoch != held.epoch:
            return False
        if num_steps is None and self.lag_steps is not None:
            num_steps = max(len(held.applied) - self.lag_steps, held.num_durable_steps)
        if num_steps:
            row.applied = held.applied[:num_steps]
            held.num_durable_steps = num_steps
        return True

"""A store for fake servers: which steps of a session survive a crash, and which server owns the session.

Only a row's owner writes its steps. A server that takes a row over raises its epoch, and then a write of the
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
    """Rows by session. Each row lacks the last `lag_steps` steps applied; with None nothing is written."""

    def __init__(self, lag_steps=0):
        self.lag_steps = lag_steps
        self.rows: dict[str, Row] = {}

    def create(self, session_id, owner):
        self.rows[session_id] = Row(owner)

    def claim(self, session_id, owner):
        """Gives a row to another owner."""
        row = self.rows[session_id]
        row.owner, row.epoch = owner, row.epoch + 1
        return row

    def write(self, session, owner, num_steps=None):
        """Writes the first steps of a session; returns False if another owner has it."""
        row = self.rows.get(session.session_id)
        if row is None or row.owner is not owner or row.epoch != session.epoch:
            return False
        if num_steps is None and self.lag_steps is not None:
            num_steps = max(len(session.applied) - self.lag_steps, session.num_durable_steps)
        if num_steps:
            row.applied = session.applied[:num_steps]
            session.num_durable_steps = num_steps
        return True

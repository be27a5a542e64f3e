"""A reference to one session in memory, and what is asked of a session. Moves and ends nothing."""

from typing import NamedTuple

from service.engine import session_key
from service.engine.engine import Engine


class SessionRef(NamedTuple):
    """One session in memory: its engine, its slot there, and the slot's generation when the session had it.

    A reference outlives its session. `is_live` says whether the session is still there; a session that moved
    to another version of its model is found by `current`.
    """

    engine: Engine
    slot: int
    generation: int

    @classmethod
    def at(cls, engine: Engine, slot: int) -> "SessionRef":
        """Returns a reference to the session that is in a slot now."""
        return cls(engine, slot, engine.sessions.generation.item(slot))

    @property
    def is_live(self) -> bool:
        """Whether the session is still in its slot."""
        return self.engine.sessions.is_live(self.slot, self.generation)

    @property
    def current(self) -> "SessionRef":
        """The reference to where the session is now, which may be on another version of its model."""
        ref = self
        while ref.engine.succession.has_begun:  # false nearly always
            moved = ref.engine.succession.next_place(ref.slot, ref.generation)
            if moved is None:
                break
            ref = SessionRef(*moved)
        return ref

    @property
    def is_busy(self) -> bool:
        """Whether the session has work under way."""
        return self.engine.is_busy(self.slot)

    @property
    def session_id(self) -> str:
        """The id by which the session's principal knows it."""
        return session_key.id_of(self.engine.sessions.key(self.slot))

    @property
    def next_step_index(self) -> int:
        """The index of the session's next step."""
        return self.engine.sessions.progress.next_step.item(self.slot)

    @property
    def last_time_ns(self) -> int:
        """The time of the session's last step, Unix ns."""
        return self.engine.sessions.progress.last_time.item(self.slot)

    @property
    def num_durable_steps(self) -> int:
        """How many of the session's steps are in the store; 0 where there is none."""
        durability = self.engine.sessions.durability
        return durability.num_durable.item(self.slot) if durability.is_enabled else 0

    @property
    def is_durable(self) -> bool:
        """Whether the session is answered only once its steps are in the store."""
        return self.engine.sessions.durability.is_durable.item(self.slot)

    @property
    def epoch(self) -> int:
        """How many owners the session has had; 1 where there is no store."""
        durability = self.engine.sessions.durability
        return durability.epoch.item(self.slot) if durability.is_enabled else 1

"""A reference to one session in memory, and what callers ask about a session. Changes nothing."""

from collections.abc import Iterable
from typing import NamedTuple

from service.engine import session_key
from service.engine.engine import Engine


class SessionRef(NamedTuple):
    """One session in memory: its engine, its slot, and the generation of the slot.

    A reference may outlive the session: `is_live` says whether the session is still in its slot, and
    `current` finds a session that moved to another version of its model.
    """

    engine: Engine
    slot: int
    generation: int

    @classmethod
    def at(cls, engine: Engine, slot: int) -> "SessionRef":
        """Returns a reference to the session that is in a slot now."""
        return cls(engine, slot, engine.sessions.generation.item(slot))

    @classmethod
    def find(cls, engines: Iterable[Engine], key: str) -> "SessionRef | None":
        """Returns a reference to the session with a key, on one of several engines; None if none has it."""
        for engine in engines:
            slot = engine.sessions.find(key)
            if slot is not None:
                return cls.at(engine, slot)
        return None

    @property
    def is_live(self) -> bool:
        """Whether the session is still in its slot."""
        return self.engine.sessions.is_live(self.slot, self.generation)

    @property
    def current(self) -> "SessionRef":
        """A reference to the session's present place, which may be on another version of its model."""
        ref = self
        while ref.engine.succession.has_begun:  # nearly always false
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
        """The session's id, as its principal gave it."""
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
        """How many of the session's steps are in the store; 0 if there is no store."""
        durability = self.engine.sessions.durability
        return durability.num_durable.item(self.slot) if durability.is_enabled else 0

    @property
    def is_durable(self) -> bool:
        """Whether the session is answered only once its steps are in the store."""
        return self.engine.sessions.durability.is_durable.item(self.slot)

    @property
    def epoch(self) -> int:
        """How many owners the session has had; 1 if there is no store."""
        sessions = self.engine.sessions
        return sessions.ownership.epoch.item(self.slot) if sessions.durability.is_enabled else 1

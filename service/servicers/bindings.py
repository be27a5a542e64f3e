"""The sessions bound to one stream: numbers in place of ids. Knows the catalog, not the transport."""

import dataclasses

import numpy as np

from service import errors
from service.admission import session_ended
from service.catalog import Catalog
from service.engine import Engine
from service.errors import StreamcellError
from service.sessions import Int64s


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """The sessions of a frame: `slots` and `generations` of those found, and what is wrong with the others.

    `found` [k] are the positions, among the frame's `count` entries, of the sessions in the columns.
    """

    engine: Engine
    count: int
    found: Int64s
    slots: Int64s
    generations: Int64s
    missing: dict[int, StreamcellError]


class Bindings:
    """Sessions by number. A session that ends stays bound, and is then refused as ended."""

    def __init__(self, catalog: Catalog, principal: str, max_sessions: int) -> None:
        self._catalog = catalog
        self._principal = principal
        self._max_sessions = max_sessions
        self._bound: list[tuple[Engine, int, int]] = []  # engine, slot, generation by number
        self._slots: Int64s = np.zeros(0, np.int64)
        self._generations: Int64s = np.zeros(0, np.int64)
        self._engine_of_all: Engine | None = None  # looked up at the first frame that names them all
        self._is_each_once = False

    def __len__(self) -> int:
        return len(self._bound)

    def bind(self, session_ids: list[str]) -> list[tuple[Engine, int]]:
        """Gives sessions the next numbers, in order.

        Raises:
            StreamcellError: one is not open, or there are more than a stream may bind; none is bound.
        """
        if len(self) + len(session_ids) > self._max_sessions:
            raise errors.invalid_argument(
                "session_ids", f"a stream binds {self._max_sessions} sessions at most"
            )
        found = [self._catalog.find(self._principal, session_id) for session_id in session_ids]
        slots = np.array([slot for _, slot in found], np.int64)
        generations = np.array([engine.sessions.generation[slot] for engine, slot in found], np.int64)
        self._bound += [
            (engine, slot, generation)
            for (engine, slot), generation in zip(found, generations.tolist(), strict=True)
        ]
        self._engine_of_all = None
        self._slots = np.concatenate([self._slots, slots])
        self._generations = np.concatenate([self._generations, generations])
        return found

    def one(self, number: int) -> tuple[Engine, int, int]:
        """Returns engine, slot and generation of a bound session.

        Raises:
            StreamcellError: no session has this number.
        """
        try:
            return self._bound[number]
        except IndexError:
            raise _not_bound("session", number, len(self)) from None

    def all(self) -> Selection:
        """Returns every bound session, in order.

        Raises:
            StreamcellError: none is bound, one is bound twice, or they run on several models.
        """
        if self._engine_of_all is None:
            self._engine_of_all = _only({engine for engine, _, _ in self._bound}, "session_raw")
            self._is_each_once = len(np.unique(self._slots)) == len(self)
        return _living(self._engine_of_all, self._slots, self._generations, self._is_each_once)

    def numbered(self, numbers: Int64s) -> Selection:
        """Returns bound sessions by number.

        Raises:
            StreamcellError: a number is not bound, stands twice, or the sessions run on several models.
        """
        if len(numbers) and int(numbers.max()) >= len(self):
            raise _not_bound("session_raw", int(numbers.max()), len(self))
        engine = _only({self._bound[number][0] for number in numbers.tolist()}, "session_raw")
        return _living(engine, self._slots[numbers], self._generations[numbers], is_each_once=False)

    def named(self, session_ids: list[str]) -> Selection:
        """Returns sessions by id; those that cannot be found are told in `missing`.

        Raises:
            StreamcellError: an id stands twice, the sessions run on several models, or none is found.
        """
        engines: set[Engine] = set()
        found, slots, missing = [], [], {}
        for at, session_id in enumerate(session_ids):
            try:
                engine, slot = self._catalog.find(self._principal, session_id)
            except StreamcellError as error:
                missing[at] = error
                continue
            engines.add(engine)
            found.append(at)
            slots.append(slot)
        if not found:
            raise missing[0]
        engine = _only(engines, "session_ids")
        column = np.array(slots, np.int64)
        generations = engine.sessions.generation[column]
        _check_once(column, "session_ids")
        return Selection(engine, len(session_ids), np.array(found, np.int64), column, generations, missing)


def _only(engines: set[Engine], field: str) -> Engine:
    """Returns the engine that all sessions of a frame run on."""
    if not engines:
        raise errors.invalid_argument(
            "session_ids", "the frame names no session, and none is bound to the stream"
        )
    if len(engines) > 1:
        names = ", ".join(sorted(f"{engine.name}/{engine.version}" for engine in engines))
        raise errors.invalid_argument(field, f"the sessions run on {names}: one model a frame")
    return next(iter(engines))


def _check_once(slots: Int64s, field: str) -> None:
    if len(np.unique(slots)) < len(slots):
        raise errors.invalid_argument(field, "a session stands twice: give its steps in one entry")


def _living(engine: Engine, slots: Int64s, generations: Int64s, is_each_once: bool) -> Selection:
    """Selects the sessions that have not ended since they were bound."""
    count, found = len(slots), np.arange(len(slots))
    missing: dict[int, StreamcellError] = {}
    ended = engine.sessions.generation[slots] != generations
    if ended.any():
        found = np.flatnonzero(~ended)
        missing = {at: session_ended() for at in np.flatnonzero(ended).tolist()}
        slots, generations = slots[found], generations[found]
    if not len(found):
        raise session_ended()
    if not is_each_once:
        _check_once(slots, "session_raw")
    return Selection(engine, count, found, slots, generations, missing)


def _not_bound(field: str, number: int, count: int) -> StreamcellError:
    return errors.invalid_argument(field, f"no session has number {number}; this stream has bound {count}")

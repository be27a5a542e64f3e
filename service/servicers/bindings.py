"""The sessions bound to one stream: numbers in place of ids. Knows the catalog, not the transport."""

import contextlib
import dataclasses
from collections.abc import Mapping

import numpy as np

from service import errors
from service.catalog import Catalog, NotResident
from service.engine import Engine
from service.errors import StreamcellError
from service.sessions import Int64s

_NOTHING: Mapping[str, StreamcellError] = {}


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
        self._ids: list[str] = []
        self._epochs: list[int] = []
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
        found = self._find_all(session_ids)
        slots = np.array([slot for _, slot in found], np.int64)
        generations = np.array([engine.sessions.generation[slot] for engine, slot in found], np.int64)
        self._bound += [
            (engine, slot, generation)
            for (engine, slot), generation in zip(found, generations.tolist(), strict=True)
        ]
        self._ids += session_ids
        self._epochs += [int(engine.sessions.epoch[slot]) for engine, slot in found]
        self._engine_of_all = None
        self._slots = np.concatenate([self._slots, slots])
        self._generations = np.concatenate([self._generations, generations])
        return found

    def _find_all(self, session_ids: list[str]) -> list[tuple[Engine, int]]:
        found, absent = [], []
        for session_id in session_ids:
            try:
                found.append(self._catalog.find(self._principal, session_id))
            except NotResident:
                absent.append(session_id)
        if absent:
            raise self._absent(absent, len(session_ids), "session_ids")
        return found

    def _absent(self, absent: list[str], count: int, field: str) -> StreamcellError:
        """Returns what a message of `count` sessions is told of which some may be in the store.

        All of them must be in memory at a time: else those that come would send the others away for ever.
        """
        most = max(engine.max_sessions for engine in self._catalog.engines)
        if count <= most:
            return NotResident(absent)
        return errors.invalid_argument(
            field, f"{count} sessions in one message, of which {most} have room in memory: name fewer"
        )

    def id_of(self, number: int) -> str:
        """Returns the id of a bound session, "" where the number is not bound."""
        return self._ids[number] if number < len(self._ids) else ""

    def ids_of(self, numbers: bytes) -> list[str]:
        """Returns the ids of bound sessions by number, packed as in a frame; of all where it is empty."""
        if not numbers:
            return self._ids
        whole = numbers[: len(numbers) // 4 * 4]
        return [self.id_of(number) for number in np.frombuffer(whole, "<u4").tolist()]

    def one(self, number: int) -> tuple[Engine, int, int]:
        """Returns engine, slot and generation of a bound session.

        Raises:
            StreamcellError: no session has this number.
        """
        try:
            engine, slot, generation = self._bound[number]
        except IndexError:
            raise _not_bound("session", number, len(self)) from None
        if engine.sessions.is_stored and engine.sessions.generation.item(slot) != generation:
            self._bind_again(number)
        return self._bound[number]

    def _bind_again(self, number: int) -> None:
        """Looks up a session that has left its slot, which one from the store does; one that ended stays so.

        Raises:
            NotResident: it may be in the store.
        """
        engine, slot = self._catalog.find(self._principal, self._ids[number])
        epoch = int(engine.sessions.epoch[slot])
        if epoch <= self._epochs[number]:  # another session under the same id
            return
        generation = int(engine.sessions.generation[slot])
        self._bound[number] = engine, slot, generation
        self._slots[number], self._generations[number] = slot, generation
        self._epochs[number] = epoch
        self._engine_of_all = None

    def _bind_all_again(self, numbers: Int64s, failed: Mapping[str, StreamcellError], count: int) -> None:
        """Does so for each of these numbers that has to; `count`: how many the frame has.

        Raises:
            NotResident: some may be in the store.
            StreamcellError: the frame has too many.
        """
        absent = []
        for number in numbers.tolist():
            engine, slot, generation = self._bound[number]
            if engine.sessions.generation.item(slot) == generation or self._ids[number] in failed:
                continue
            with contextlib.suppress(StreamcellError):  # it ended, as its entry will say
                try:
                    self._bind_again(number)
                except NotResident:
                    absent.append(self._ids[number])
        if absent:
            raise self._absent(absent, count, "session_raw")

    def all(self, failed: Mapping[str, StreamcellError] = _NOTHING) -> Selection:
        """Returns every bound session, in order; `failed` could not be brought from the store, by id.

        Raises:
            NotResident: some may be in the store.
            StreamcellError: none is bound, one is bound twice, or they run on several models.
        """
        if self._catalog.keeper is not None:
            self._bind_all_again(self._gone(np.arange(len(self))), failed, len(self))
        if self._engine_of_all is None:
            self._engine_of_all = _only({engine for engine, _, _ in self._bound}, "session_raw")
            self._is_each_once = len(np.unique(self._slots)) == len(self)
        return _living(self._engine_of_all, self._slots, self._generations, self._is_each_once)

    def _gone(self, numbers: Int64s) -> Int64s:
        """Returns those of the numbers whose sessions have left their slots."""
        if not len(numbers):
            return numbers
        if self._engine_of_all is not None:
            found = self._engine_of_all.sessions.generation[self._slots[numbers]]
        else:
            bound = [self._bound[number] for number in numbers.tolist()]
            found = np.array([engine.sessions.generation[slot] for engine, slot, _ in bound], np.int64)
        gone: Int64s = numbers[found != self._generations[numbers]]
        return gone

    def numbered(self, numbers: Int64s, failed: Mapping[str, StreamcellError] = _NOTHING) -> Selection:
        """Returns bound sessions by number; `failed` could not be brought from the store, by id.

        Raises:
            NotResident: some may be in the store.
            StreamcellError: a number is not bound, stands twice, or the sessions run on several models.
        """
        if len(numbers) and int(numbers.max()) >= len(self):
            raise _not_bound("session_raw", int(numbers.max()), len(self))
        if self._catalog.keeper is not None:
            self._bind_all_again(self._gone(numbers), failed, len(numbers))
        engine = _only({self._bound[number][0] for number in numbers.tolist()}, "session_raw")
        return _living(engine, self._slots[numbers], self._generations[numbers], is_each_once=False)

    def named(self, session_ids: list[str], failed: Mapping[str, StreamcellError] = _NOTHING) -> Selection:
        """Returns sessions by id; those that cannot be found are told in `missing`.

        Args:
            failed: those that could not be brought from the store, and why.

        Raises:
            NotResident: some may be in the store.
            StreamcellError: an id stands twice, the sessions run on several models, or none is found.
        """
        engines: set[Engine] = set()
        found: list[int] = []
        slots: list[int] = []
        absent: list[str] = []
        missing: dict[int, StreamcellError] = {}
        for at, session_id in enumerate(session_ids):
            try:
                engine, slot = self._catalog.find(self._principal, session_id)
            except NotResident as error:
                if session_id in failed:
                    missing[at] = failed[session_id]
                else:
                    absent += error.session_ids
                continue
            except StreamcellError as error:
                missing[at] = error
                continue
            engines.add(engine)
            found.append(at)
            slots.append(slot)
        if absent:
            raise self._absent(absent, len(session_ids), "session_ids")
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
        missing = {at: errors.session_ended(None) for at in np.flatnonzero(ended).tolist()}
        slots, generations = slots[found], generations[found]
    if not len(found):
        raise errors.session_ended(None)
    if not is_each_once:
        _check_once(slots, "session_raw")
    return Selection(engine, count, found, slots, generations, missing)


def _not_bound(field: str, number: int, count: int) -> StreamcellError:
    return errors.invalid_argument(field, f"no session has number {number}; this stream has bound {count}")

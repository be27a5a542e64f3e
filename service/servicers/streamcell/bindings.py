"""The sessions bound to one stream: numbers in place of ids. Knows the catalog, not the transport."""

import contextlib
from collections.abc import Mapping

import numpy as np

from service import errors
from service.arrays import Int64s
from service.catalog import migration as moves
from service.catalog.catalog import Catalog, NotResident
from service.engine.engine import Engine
from service.errors import StreamcellError
from service.servicers.streamcell.selections import Part, Selection, Split, check_once, living, split

_NOTHING: Mapping[str, StreamcellError] = {}


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
        self._engines: set[Engine] = set()  # on which any was bound
        self._split_of_all: Split | None = None  # made at the first frame that names them all
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
        self._engines.update(engine for engine, _ in found)
        self._split_of_all = None
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
            NotResident: it may be in the store, or is to be moved to another version.
            StreamcellError: no session has this number; it has ended, and its model has left.
        """
        try:
            engine, slot, generation = self._bound[number]
        except IndexError:
            raise _not_bound("session", number, len(self)) from None
        if not (engine.was_superseded or engine.sessions.is_stored):
            return engine, slot, generation
        if engine.successor is not None or engine.sessions.generation.item(slot) != generation:
            self._bind_again(number)
            engine, slot, generation = self._bound[number]
        if engine.has_left:
            raise errors.session_ended(engine.sessions.end_in(slot))
        return engine, slot, generation

    def _bind_again(self, number: int) -> None:
        """Looks up a session that has left its slot, or is to; one that ended stays bound to what it was.

        Raises:
            NotResident: it may be in the store, or is to be moved to another version.
        """
        engine, slot, generation = self._bound[number]
        engine, slot, generation = engine.whereabouts(slot, generation)
        if engine.sessions.generation.item(slot) == generation:
            arrived = moves.arrive(engine, slot)
            if arrived is None:
                raise NotResident([self._ids[number]])
            self._put(number, *arrived)
        elif engine.sessions.is_stored:
            engine, slot = self._catalog.find(self._principal, self._ids[number])
            if engine.sessions.epoch.item(slot) > self._epochs[number]:  # else another session of the same id
                self._put(number, engine, slot)

    def _put(self, number: int, engine: Engine, slot: int) -> None:
        generation = engine.sessions.generation.item(slot)
        self._bound[number] = engine, slot, generation
        self._slots[number], self._generations[number] = slot, generation
        self._epochs[number] = engine.sessions.epoch.item(slot)
        self._engines.add(engine)
        self._split_of_all = None

    @property
    def _may_be_elsewhere(self) -> bool:
        return self._catalog.keeper is not None or any(engine.was_superseded for engine in self._engines)

    def _look_again(self, numbers: Int64s, failed: Mapping[str, StreamcellError], count: int) -> None:
        """Binds those of the numbers again whose sessions have left their slots, or are to.

        Args:
            count: how many sessions the frame has.

        Raises:
            NotResident: some may be in the store, or are to be moved to another version.
            StreamcellError: the frame has too many.
        """
        gone = [number for number in self._gone(numbers).tolist() if self._ids[number] not in failed]
        self._move_together(gone)
        absent = []
        for number in gone:
            with contextlib.suppress(StreamcellError):  # it ended, as its entry will say
                try:
                    self._bind_again(number)
                except NotResident:
                    absent.append(self._ids[number])
        if absent:
            raise self._absent(absent, count, "session_raw")

    def _move_together(self, numbers: list[int]) -> None:
        """Moves the sessions that are to move and have no work under way; each alone would take longer."""
        to_move: dict[Engine, dict[int, None]] = {}
        for number in numbers:
            engine, slot, generation = self._bound[number]
            engine, slot, generation = engine.whereabouts(slot, generation)
            lives = engine.sessions.generation.item(slot) == generation
            if engine.successor is not None and lives and not engine.is_busy(slot):
                to_move.setdefault(engine, {})[slot] = None
        for engine, slots in to_move.items():
            engine.move(list(slots))

    def _gone(self, numbers: Int64s) -> Int64s:
        """Returns those of the numbers whose sessions have left their slots, or are to."""
        if self._split_of_all is not None and len(self._split_of_all) == 1:
            ((engine, _),) = self._split_of_all
            if engine.successor is not None:
                return numbers
            gone = engine.sessions.generation[self._slots[numbers]] != self._generations[numbers]
        else:
            bound = (self._bound[number] for number in numbers.tolist())
            gone = np.array(
                [
                    engine.successor is not None or engine.sessions.generation.item(slot) != generation
                    for engine, slot, generation in bound
                ],
                np.bool_,
            )
        found: Int64s = numbers[gone]
        return found

    def all(self, failed: Mapping[str, StreamcellError] = _NOTHING) -> Selection:
        """Returns every bound session, in order; `failed` could not be brought from the store, by id.

        Raises:
            NotResident: some may be in the store, or are to be moved to another version.
            StreamcellError: none is bound, one is bound twice, or they run on several models.
        """
        if self._may_be_elsewhere:
            self._look_again(np.arange(len(self)), failed, len(self))
        if self._split_of_all is None:
            self._split_of_all = split([engine for engine, _, _ in self._bound], "session_raw")
            self._is_each_once = all(
                len(np.unique(self._slots[at])) == len(at) for _, at in self._split_of_all
            )
        return living(self._split_of_all, self._slots, self._generations, self._is_each_once)

    def numbered(self, numbers: Int64s, failed: Mapping[str, StreamcellError] = _NOTHING) -> Selection:
        """Returns bound sessions by number; `failed` could not be brought from the store, by id.

        Raises:
            NotResident: some may be in the store, or are to be moved to another version.
            StreamcellError: a number is not bound, stands twice, or the sessions run on several models.
        """
        if len(numbers) and int(numbers.max()) >= len(self):
            raise _not_bound("session_raw", int(numbers.max()), len(self))
        if self._may_be_elsewhere:
            self._look_again(numbers, failed, len(numbers))
        parts = split([self._bound[number][0] for number in numbers.tolist()], "session_raw")
        return living(parts, self._slots[numbers], self._generations[numbers], is_each_once=False)

    def named(self, session_ids: list[str], failed: Mapping[str, StreamcellError] = _NOTHING) -> Selection:
        """Returns sessions by id; those that cannot be found are told in `missing`.

        Args:
            failed: those that could not be brought from the store, and why.

        Raises:
            NotResident: some may be in the store.
            StreamcellError: an id stands twice, the sessions run on several models, or none is found.
        """
        engines: list[Engine] = []
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
            engines.append(engine)
            found.append(at)
            slots.append(slot)
        if absent:
            raise self._absent(absent, len(session_ids), "session_ids")
        if not found:
            raise missing[0]
        column, places = np.array(slots, np.int64), np.array(found, np.int64)
        parts = []
        for engine, its in split(engines, "session_ids"):
            check_once(column[its], "session_ids")
            parts.append(Part(engine, places[its], column[its], engine.sessions.generation[column[its]]))
        return Selection(len(session_ids), parts, missing)


def _not_bound(field: str, number: int, count: int) -> StreamcellError:
    return errors.invalid_argument(field, f"no session has number {number}; this stream has bound {count}")

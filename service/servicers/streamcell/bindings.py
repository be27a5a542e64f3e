"""The sessions bound to one stream: numbers in place of ids. Knows the catalog, not the transport."""

import contextlib
from collections.abc import Mapping

import numpy as np

from service import errors
from service.arrays import Int64s
from service.catalog import migration
from service.catalog.catalog import Catalog, NotResident
from service.engine.engine import Engine
from service.engine.session_ref import SessionRef
from service.errors import StreamcellError
from service.servicers.streamcell.selections import (
    EngineEntries,
    Selection,
    Split,
    check_once,
    select_live,
    split,
)

_NOTHING: Mapping[str, StreamcellError] = {}


class Bindings:
    """Sessions by number. A session that ends stays bound, and is then refused as ended."""

    def __init__(self, catalog: Catalog, principal: str, max_sessions: int) -> None:
        self._catalog = catalog
        self._principal = principal
        self._max_sessions = max_sessions
        self._bound: list[SessionRef] = []  # by number
        self._ids: list[str] = []
        self._epochs: list[int] = []
        self._slots: Int64s = np.zeros(0, np.int64)
        self._generations: Int64s = np.zeros(0, np.int64)
        self._engines: set[Engine] = set()  # on which any was bound
        self._split_of_all: Split | None = None  # made at the first frame that names them all
        self._is_each_once = False

    def __len__(self) -> int:
        return len(self._bound)

    # -- Single sessions -------------------------------------------------------------------------------

    def bind(self, session_ids: list[str]) -> list[SessionRef]:
        """Gives sessions the next numbers, in order.

        Raises:
            StreamcellError: one is not open, or there are more than a stream may bind; none is bound.
        """
        if len(self) + len(session_ids) > self._max_sessions:
            raise errors.invalid_argument(
                "session_ids", f"a stream binds {self._max_sessions} sessions at most"
            )
        found = self._find_all(session_ids)
        self._bound += found
        self._ids += session_ids
        self._epochs += [session.epoch for session in found]
        self._engines.update(session.engine for session in found)
        self._split_of_all = None
        slots = np.array([session.slot for session in found], np.int64)
        generations = np.array([session.generation for session in found], np.int64)
        self._slots = np.concatenate([self._slots, slots])
        self._generations = np.concatenate([self._generations, generations])
        return found

    def id_of(self, number: int) -> str:
        """Returns the id of a bound session, "" where the number is not bound."""
        return self._ids[number] if number < len(self._ids) else ""

    def ids_of(self, numbers: bytes) -> list[str]:
        """Returns the ids of bound sessions by number, packed as in a frame; all if `numbers` is empty."""
        if not numbers:
            return self._ids
        whole = numbers[: len(numbers) // 4 * 4]
        return [self.id_of(number) for number in np.frombuffer(whole, "<u4").tolist()]

    def one(self, number: int) -> SessionRef:
        """Returns a bound session.

        Raises:
            NotResident: it may be in the store, or is to move to another version first.
            StreamcellError: no session has this number; it has ended, and its model has left.
        """
        try:
            session = self._bound[number]
        except IndexError:
            raise _not_bound("session", number, len(self)) from None
        engine = session.engine
        if not (engine.succession.has_begun or engine.sessions.durability.is_enabled):
            return session
        if engine.succession.successor is not None or not session.is_live:
            self._bind_again(number)
            session = self._bound[number]
        if session.engine.succession.is_unloaded:
            raise errors.session_ended(session.engine.sessions.endings.in_slot(session.slot))
        return session

    # -- The sessions of a frame -----------------------------------------------------------------------

    def all(self, failed: Mapping[str, StreamcellError] = _NOTHING) -> Selection:
        """Returns every bound session, in order; `failed` could not be fetched from the store, by id.

        Raises:
            NotResident: some may be in the store, or are to move to another version first.
            StreamcellError: none is bound, one is bound twice, or they run on several models.
        """
        if self._may_be_elsewhere:
            self._look_again(np.arange(len(self)), failed, len(self))
        if self._split_of_all is None:
            self._split_of_all = split([session.engine for session in self._bound], "session_raw")
            self._is_each_once = all(
                len(np.unique(self._slots[at])) == len(at) for _, at in self._split_of_all
            )
        return select_live(self._split_of_all, self._slots, self._generations, self._is_each_once)

    def numbered(self, numbers: Int64s, failed: Mapping[str, StreamcellError] = _NOTHING) -> Selection:
        """Returns bound sessions by number; `failed` could not be fetched from the store, by id.

        Raises:
            NotResident: some may be in the store, or are to move to another version first.
            StreamcellError: a number is not bound, stands twice, or the sessions run on several models.
        """
        if len(numbers) and int(numbers.max()) >= len(self):
            raise _not_bound("session_raw", int(numbers.max()), len(self))
        if self._may_be_elsewhere:
            self._look_again(numbers, failed, len(numbers))
        parts = split([self._bound[number].engine for number in numbers.tolist()], "session_raw")
        return select_live(parts, self._slots[numbers], self._generations[numbers], is_each_once=False)

    def named(self, session_ids: list[str], failed: Mapping[str, StreamcellError] = _NOTHING) -> Selection:
        """Returns sessions by id; those that cannot be found stand in `missing`.

        Args:
            session_ids: the sessions.
            failed: those that could not be fetched from the store, and why.

        Raises:
            NotResident: some may be in the store.
            StreamcellError: an id stands twice, the sessions run on several models, or none is found.
        """
        found: dict[int, SessionRef] = {}
        absent: list[str] = []
        missing: dict[int, StreamcellError] = {}
        for at, session_id in enumerate(session_ids):
            try:
                found[at] = self._catalog.find(self._principal, session_id)
            except NotResident as error:
                if session_id in failed:
                    missing[at] = failed[session_id]
                else:
                    absent += error.session_ids
            except StreamcellError as error:
                missing[at] = error
        if absent:
            raise self._absent(absent, len(session_ids), "session_ids")
        if not found:
            raise missing[0]
        positions = np.array(list(found), np.int64)
        slots = np.array([session.slot for session in found.values()], np.int64)
        generations = np.array([session.generation for session in found.values()], np.int64)
        parts = []
        for engine, its in split([session.engine for session in found.values()], "session_ids"):
            check_once(slots[its], "session_ids")
            parts.append(EngineEntries(engine, positions[its], slots[its], generations[its]))
        return Selection(len(session_ids), parts, missing)

    def _find_all(self, session_ids: list[str]) -> list[SessionRef]:
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
        """Returns the error for a message of `count` sessions, some of which may be in the store.

        All of them must be in memory at a time: otherwise those that come would evict the others for ever.
        """
        most = max(engine.residents.max_sessions for engine in self._catalog.versions.engines)
        if count <= most:
            return NotResident(absent)
        return errors.invalid_argument(
            field, f"{count} sessions in one message, of which {most} have room in memory: name fewer"
        )

    # -- Sessions that are not where they were bound ---------------------------------------------------

    def _bind_again(self, number: int) -> None:
        """Looks up a session that has left its slot, or is to; a session that ended stays bound as it was.

        Raises:
            NotResident: it may be in the store, or is to move to another version first.
        """
        session = self._bound[number].current
        if session.is_live:
            arrived = migration.migrate_if_due(session)
            if arrived is None:
                raise NotResident([self._ids[number]])
            self._put(number, arrived)
        elif session.engine.sessions.durability.is_enabled:
            found = self._catalog.find(self._principal, self._ids[number])
            if found.epoch > self._epochs[number]:  # otherwise it is another session of the same id
                self._put(number, found)

    def _put(self, number: int, session: SessionRef) -> None:
        self._bound[number] = session
        self._slots[number], self._generations[number] = session.slot, session.generation
        self._epochs[number] = session.epoch
        self._engines.add(session.engine)
        self._split_of_all = None

    @property
    def _may_be_elsewhere(self) -> bool:
        return self._catalog.persistence.has_store or any(
            engine.succession.has_begun for engine in self._engines
        )

    def _look_again(self, numbers: Int64s, failed: Mapping[str, StreamcellError], count: int) -> None:
        """Binds those of the numbers again whose sessions have left their slots, or are to.

        Args:
            numbers: the sessions.
            failed: those that could not be fetched from the store, by id.
            count: how many sessions the frame has.

        Raises:
            NotResident: some may be in the store, or are to move to another version first.
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
            session = self._bound[number].current
            is_due = session.engine.succession.successor is not None
            if is_due and session.is_live and not session.is_busy:
                to_move.setdefault(session.engine, {})[session.slot] = None
        for engine, slots in to_move.items():
            engine.move(list(slots))

    def _gone(self, numbers: Int64s) -> Int64s:
        """Returns those of the numbers whose sessions have left their slots, or are to."""
        if self._split_of_all is not None and len(self._split_of_all) == 1:
            ((engine, _),) = self._split_of_all
            if engine.succession.successor is not None:
                return numbers
            gone = engine.sessions.generation[self._slots[numbers]] != self._generations[numbers]
        else:
            bound = (self._bound[number] for number in numbers.tolist())
            gone = np.array(
                [session.engine.succession.successor is not None or not session.is_live for session in bound],
                np.bool_,
            )
        found: Int64s = numbers[gone]
        return found


def _not_bound(field: str, number: int, count: int) -> StreamcellError:
    return errors.invalid_argument(field, f"no session has number {number}; this stream has bound {count}")

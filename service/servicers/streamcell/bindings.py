"""The sessions bound to one stream, which requests name by number in place of the id.

Owns the numbers, and follows each session to where it is now. Does not know messages nor the transport.
"""

import contextlib

import numpy as np

from service import errors
from service.arrays import Int64s
from service.catalog import migration
from service.catalog.catalog import Catalog, NotResident
from service.engine.engine import Engine
from service.engine.session_key import key_of
from service.engine.session_ref import SessionRef
from service.errors import StreamcellError
from service.servicers.streamcell.pending import NO_FETCH_ERRORS, FetchErrors
from service.servicers.streamcell.selections import (
    EngineEntries,
    EngineSplit,
    Selection,
    check_unique,
    select_live,
    split_by_engine,
)


class Bindings:
    """Sessions by number. A session that ends stays bound, and its number is refused from then on.

    Args:
        catalog: finds sessions.
        principal: the caller, whose own sessions alone are found.
        max_sessions: most sessions that the stream may bind.
    """

    def __init__(self, catalog: Catalog, principal: str, max_sessions: int) -> None:
        self._catalog = catalog
        self._principal = principal
        self._max_sessions = max_sessions
        # Columns by number.
        self._bound: list[SessionRef] = []
        self._ids: list[str] = []
        self._epochs: list[int] = []
        self._slots: Int64s = np.zeros(0, np.int64)
        self._generations: Int64s = np.zeros(0, np.int64)
        self._engines: set[Engine] = set()  # every engine that a bound session has been on
        self._all_split: EngineSplit | None = None  # None until a frame of all bound sessions comes
        self._all_are_unique = False

    def __len__(self) -> int:
        return len(self._bound)

    # -- Single sessions -------------------------------------------------------------------------------

    def bind(self, session_ids: list[str]) -> list[SessionRef]:
        """Gives sessions the next numbers, in order.

        Raises:
            NotResident: a session may be in the store, or has to move to another version first.
            StreamcellError: a session is not open, or there are more than a stream may bind; none is bound.
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
        self._all_split = None
        slots = np.array([session.slot for session in found], np.int64)
        generations = np.array([session.generation for session in found], np.int64)
        self._slots = np.concatenate([self._slots, slots])
        self._generations = np.concatenate([self._generations, generations])
        return found

    def id_of(self, number: int) -> str:
        """Returns the id of a bound session; "" if the number is not bound."""
        return self._ids[number] if number < len(self._ids) else ""

    def ids_of(self, numbers: bytes) -> list[str]:
        """Returns the ids of sessions by number, packed uint32; the ids of all if `numbers` is empty."""
        if not numbers:
            return self._ids
        whole = numbers[: len(numbers) // 4 * 4]
        return [self.id_of(number) for number in np.frombuffer(whole, "<u4").tolist()]

    def session_of(self, number: int) -> SessionRef:
        """Returns the session with a number, which may have ended.

        Raises:
            NotResident: the session may be in the store, has to move to another version first, or was idle
                for so long that another server may have taken it over.
            StreamcellError: no session has this number; the session has ended and its model is unloaded.
        """
        try:
            session = self._bound[number]
        except IndexError:
            raise _not_bound("session", number, len(self)) from None
        engine = session.engine
        if not (engine.succession.has_begun or engine.sessions.durability.is_enabled):
            return session
        if engine.succession.successor is not None or not session.is_live:
            self._rebind(number)
            session = self._bound[number]
        if session.is_live and self._catalog.persistence.must_confirm(session):
            raise NotResident([self._ids[number]])
        if session.engine.succession.is_unloaded:
            raise errors.session_ended(session.engine.sessions.endings.in_slot(session.slot))
        return session

    # -- The sessions of a frame -----------------------------------------------------------------------

    def select_all(self, fetch_errors: FetchErrors = NO_FETCH_ERRORS) -> Selection:
        """Returns every bound session, in order; a session of `fetch_errors` is not looked for again.

        Raises:
            NotResident: some sessions may be in the store, or have to move to another version first.
            StreamcellError: no session is bound or none is live, one is bound twice, or they run on
                several models.
        """
        if self._may_be_elsewhere:
            self._rebind_displaced(np.arange(len(self)), fetch_errors, len(self))
        if self._all_split is None:
            self._all_split = split_by_engine([session.engine for session in self._bound], "session_raw")
            self._all_are_unique = all(
                len(np.unique(self._slots[at])) == len(at) for _, at in self._all_split
            )
        return select_live(
            self._all_split,
            self._slots,
            self._generations,
            are_unique=self._all_are_unique,
            why_missing=lambda position: self._why_missing(position, fetch_errors),
        )

    def select_by_number(self, numbers: Int64s, fetch_errors: FetchErrors = NO_FETCH_ERRORS) -> Selection:
        """Returns bound sessions by number; a session of `fetch_errors` is not looked for again.

        Raises:
            NotResident: some sessions may be in the store, or have to move to another version first.
            StreamcellError: a number is not bound, a session stands twice, none is live, or they run on
                several models.
        """
        if len(numbers) and int(numbers.max()) >= len(self):
            raise _not_bound("session_raw", int(numbers.max()), len(self))
        if self._may_be_elsewhere:
            self._rebind_displaced(numbers, fetch_errors, len(numbers))
        parts = split_by_engine([self._bound[number].engine for number in numbers.tolist()], "session_raw")
        return select_live(
            parts,
            self._slots[numbers],
            self._generations[numbers],
            are_unique=False,
            why_missing=lambda position: self._why_missing(int(numbers[position]), fetch_errors),
        )

    def select_by_id(self, session_ids: list[str], fetch_errors: FetchErrors = NO_FETCH_ERRORS) -> Selection:
        """Returns sessions by id, bound or not; `missing` has the sessions that cannot be found.

        Raises:
            NotResident: some sessions may be in the store, or have to move to another version first.
            StreamcellError: a session stands twice, the sessions run on several models, or none is found.
        """
        found, missing = self._find_each(session_ids, fetch_errors)
        if not found:
            raise missing[0]
        positions = np.array(list(found), np.int64)
        slots = np.array([session.slot for session in found.values()], np.int64)
        generations = np.array([session.generation for session in found.values()], np.int64)
        parts = []
        engines = [session.engine for session in found.values()]
        for engine, of_engine in split_by_engine(engines, "session_ids"):
            check_unique(slots[of_engine], "session_ids")
            entries = EngineEntries(engine, positions[of_engine], slots[of_engine], generations[of_engine])
            parts.append(entries)
        return Selection(len(session_ids), parts, missing)

    def _why_missing(self, number: int, fetch_errors: FetchErrors) -> StreamcellError:
        """Returns why a bound session is not in memory: it could not be fetched, or it has ended."""
        session_id = self._ids[number]
        if session_id in fetch_errors:
            return fetch_errors[session_id]
        endings = self._bound[number].engine.sessions.endings
        return errors.session_ended(endings.of(key_of(self._principal, session_id)))

    def _find_each(
        self, session_ids: list[str], fetch_errors: FetchErrors
    ) -> tuple[dict[int, SessionRef], dict[int, StreamcellError]]:
        """Returns by position the sessions that are found, and why the others are not."""
        found: dict[int, SessionRef] = {}
        missing: dict[int, StreamcellError] = {}
        absent: list[str] = []
        for position, session_id in enumerate(session_ids):
            try:
                found[position] = self._catalog.find(self._principal, session_id)
            except NotResident as error:
                if session_id in fetch_errors:
                    missing[position] = fetch_errors[session_id]
                else:
                    absent += error.session_ids
            except StreamcellError as error:
                missing[position] = error
        if absent:
            raise self._not_resident_error(absent, len(session_ids), "session_ids")
        return found, missing

    def _find_all(self, session_ids: list[str]) -> list[SessionRef]:
        found, absent = [], []
        for session_id in session_ids:
            try:
                found.append(self._catalog.find(self._principal, session_id))
            except NotResident:
                absent.append(session_id)
        if absent:
            raise self._not_resident_error(absent, len(session_ids), "session_ids")
        return found

    def _not_resident_error(self, absent: list[str], count: int, field: str) -> StreamcellError:
        """Returns the error for a message of `count` sessions, some of which may be in the store.

        A message needs all its sessions in memory at a time: more than fit would evict one another for ever.
        """
        max_resident = max(engine.residents.max_sessions for engine in self._catalog.versions.engines)
        if count <= max_resident:
            return NotResident(absent)
        return errors.invalid_argument(
            field, f"{count} sessions in one message, but memory has room for {max_resident}: name fewer"
        )

    # -- Sessions that left the slots where they were bound ------------------------------------------

    def _rebind(self, number: int) -> None:
        """Binds a number to where its session is now; a session that ended stays bound as it was.

        Raises:
            NotResident: the session may be in the store, or has to move to another version first.
            StreamcellError: the session has ended.
        """
        session = self._bound[number].current
        if session.is_live:
            arrived = migration.migrate_if_due(session)
            if arrived is None:
                raise NotResident([self._ids[number]])
            self._set(number, arrived)
        elif session.engine.sessions.durability.is_enabled:
            found = self._catalog.find(self._principal, self._ids[number])
            if found.epoch > self._epochs[number]:  # otherwise it is another session of the same id
                self._set(number, found)

    def _set(self, number: int, session: SessionRef) -> None:
        self._bound[number] = session
        self._slots[number], self._generations[number] = session.slot, session.generation
        self._epochs[number] = session.epoch
        self._engines.add(session.engine)
        self._all_split = None

    @property
    def _may_be_elsewhere(self) -> bool:
        return self._catalog.persistence.has_store or any(
            engine.succession.has_begun for engine in self._engines
        )

    def _rebind_displaced(self, numbers: Int64s, fetch_errors: FetchErrors, count: int) -> None:
        """Binds again the numbers whose sessions have left their slots or are due to move.

        Args:
            numbers: the sessions of a frame.
            fetch_errors: the sessions that are left as they are, by id.
            count: how many sessions the frame has.

        Raises:
            NotResident: some sessions may be in the store, or have to move to another version first.
            StreamcellError: the frame has more sessions than fit in memory.
        """
        displaced = self._displaced(numbers).tolist()
        displaced = [number for number in displaced if self._ids[number] not in fetch_errors]
        self._migrate_idle(displaced)
        absent = [self._ids[number] for number in self._unconfirmed(numbers)]
        absent = [session_id for session_id in absent if session_id not in fetch_errors]
        for number in displaced:
            with contextlib.suppress(StreamcellError):  # the session ended: the frame's entry gets that error
                try:
                    self._rebind(number)
                except NotResident:
                    absent.append(self._ids[number])
        if absent:
            raise self._not_resident_error(absent, count, "session_raw")

    def _unconfirmed(self, numbers: Int64s) -> list[int]:
        """Returns the numbers whose sessions were idle for so long that another server may have them."""
        found: list[int] = []
        for engine in self._engines:
            due = self._catalog.persistence.slots_to_confirm(engine, self._slots[numbers])
            if len(due):  # seldom
                slots = set(due.tolist())
                bound = ((number, self._bound[number]) for number in numbers.tolist())
                found += [
                    number
                    for number, session in bound
                    if session.engine is engine and session.is_live and session.slot in slots
                ]
        return found

    def _migrate_idle(self, numbers: list[int]) -> None:
        """Moves the sessions that are due to move and idle, all at once: one by one would take longer."""
        to_move: dict[Engine, dict[int, None]] = {}
        for number in numbers:
            session = self._bound[number].current
            is_due = session.engine.succession.successor is not None
            if is_due and session.is_live and not session.is_busy:
                to_move.setdefault(session.engine, {})[session.slot] = None
        for engine, slots in to_move.items():
            engine.move(list(slots))

    def _displaced(self, numbers: Int64s) -> Int64s:
        """Returns the numbers whose sessions have left their slots or are due to move to another version."""
        if self._all_split is not None and len(self._all_split) == 1:
            ((engine, _),) = self._all_split
            if engine.succession.successor is not None:
                return numbers
            is_displaced = engine.sessions.generation[self._slots[numbers]] != self._generations[numbers]
        else:
            bound = (self._bound[number] for number in numbers.tolist())
            is_displaced = np.array(
                [session.engine.succession.successor is not None or not session.is_live for session in bound],
                np.bool_,
            )
        displaced: Int64s = numbers[is_displaced]
        return displaced


def _not_bound(field: str, number: int, count: int) -> StreamcellError:
    return errors.invalid_argument(field, f"no session has number {number}; this stream has bound {count}")

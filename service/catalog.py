"""All engines of a server: which model a name means, and which engine has a session.

Owns what is server-wide: names, session ids, draining. Does not know protos.
"""

import re
import secrets
from collections.abc import Iterable

from service import errors
from service.engine import Engine
from service.errors import Reason, StreamcellError

_ID = re.compile(r"[!-~]{1,128}")


class Catalog:
    """The engines, by model name and version."""

    def __init__(self, engines: Iterable[Engine]) -> None:
        self.engines = sorted(engines, key=lambda engine: (engine.name, _version_order(engine.version)))
        self._by_model = {f"{engine.name}/{engine.version}": engine for engine in self.engines}
        # The newest version comes last, and stays.
        self._by_model.update({engine.name: engine for engine in self.engines})
        self.is_draining = False

    def choose(self, model: str) -> Engine:
        """Returns the engine for "NAME", "NAME/VERSION" or, where one model is served, "".

        Raises:
            StreamcellError: MODEL_NOT_FOUND; INVALID_ARGUMENT for "" where several are served.
        """
        names = sorted({engine.name for engine in self.engines})
        if not model and len(names) > 1:
            raise errors.invalid_argument("model", f"several are served, name one of {', '.join(names)}")
        engine = self._by_model.get(model or names[0])
        if engine is None:
            raise errors.model_not_found(model, ", ".join(sorted(self._by_model)))
        return engine

    def find(self, principal: str, session_id: str) -> tuple[Engine, int]:
        """Returns the engine and slot of a session.

        Raises:
            StreamcellError: DRAINING; SESSION_NOT_FOUND, SESSION_EXPIRED; INVALID_ARGUMENT for an empty id.
        """
        if self.is_draining:
            raise errors.draining()
        key = _key(principal, session_id)
        for engine in self.engines:
            slot = engine.sessions.find(key)
            if slot is not None:
                return engine, slot
        raise self._missing(key, session_id)

    def open(self, principal: str, session_id: str, model: str) -> tuple[Engine, int]:
        """Opens a session; an empty id is replaced by a random one.

        Raises:
            StreamcellError: DRAINING; SESSION_EXISTS; INVALID_ARGUMENT; MODEL_NOT_FOUND; SESSIONS_FULL.
        """
        if self.is_draining:
            raise errors.draining()
        session_id = session_id or secrets.token_urlsafe(12)
        if not _ID.fullmatch(session_id):
            raise errors.invalid_argument(
                "session_id", "must be 1 to 128 printable ASCII characters, no spaces"
            )
        key = _key(principal, session_id)
        if any(engine.sessions.find(key) is not None for engine in self.engines):
            raise errors.session_exists(session_id)
        engine = self.choose(model)
        return engine, engine.open(key)

    def check_model(self, engine: Engine, session_id: str, model: str) -> None:
        """Checks that a session on `engine` runs on the model a request names, if it names one.

        Raises:
            StreamcellError: MODEL_CHANGED.
        """
        runs_on = f"{engine.name}/{engine.version}"
        if model and model not in (engine.name, runs_on):
            raise errors.model_changed(session_id, model, runs_on)

    def _missing(self, key: str, session_id: str) -> StreamcellError:
        if not session_id:
            return errors.invalid_argument("session_id", "is required")
        if any(engine.sessions.has_expired(key) for engine in self.engines):
            return errors.session_expired(session_id)
        return errors.session_not_found(session_id)


def is_missing(error: StreamcellError) -> bool:
    """Tells whether an error says that there is no such session, for whatever reason."""
    return error.reason in (Reason.SESSION_NOT_FOUND, Reason.SESSION_EXPIRED, Reason.SESSION_EVICTED)


def session_id_of(engine: Engine, slot: int) -> str:
    """Returns the id that a session's principal knows it by."""
    return engine.sessions.key(slot).split("\0", 1)[1]


def _key(principal: str, session_id: str) -> str:
    # Unambiguous whatever the id holds: a principal has no NUL, so the first one ends it.
    return f"{principal}\0{session_id}"


def _version_order(version: str) -> tuple[bool, int, str]:
    return (True, int(version), "") if version.isdecimal() else (False, 0, version)

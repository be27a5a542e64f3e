"""The key of a session: who it belongs to and its id there, as one text. Knows no sessions."""

import re

_ID = re.compile(r"[!-~]{1,128}")
ID_RULE = "must be 1 to 128 printable ASCII characters, no spaces"


def key_of(principal: str, session_id: str) -> str:
    """Returns the key by which a principal's session is known in memory and in the store."""
    # Unambiguous whatever the id holds: a principal has no NUL, so the first NUL ends it.
    return f"{principal}\0{session_id}"


def id_of(key: str) -> str:
    """Returns the id by which the session's principal knows it."""
    return key.split("\0", 1)[1]


def is_session_id(text: str) -> bool:
    """Returns whether a text may be a session's id; `ID_RULE` says what may."""
    return _ID.fullmatch(text) is not None

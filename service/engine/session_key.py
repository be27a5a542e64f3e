"""The key of a session: its principal and its id as one text. Does not know sessions."""

import re

_ID = re.compile(r"[!-~]{1,128}")
ID_RULE = "must be 1 to 128 printable ASCII characters, no spaces"


def key_of(principal: str, session_id: str) -> str:
    """Returns the key by which a principal's session is known in memory and in the store."""
    # Unambiguous for every id: a principal has no NUL, so the first NUL ends the principal.
    return f"{principal}\0{session_id}"


def principal_of(key: str) -> str:
    """Returns the session's principal."""
    return key.split("\0", 1)[0]


def id_of(key: str) -> str:
    """Returns the session's id, as its principal gave it."""
    return key.split("\0", 1)[1]


def is_session_id(text: str) -> bool:
    """Returns whether a text is valid as a session's id, by `ID_RULE`."""
    return _ID.fullmatch(text) is not None

"""Which store a URL names. Does not connect to a store, and knows of each store only its URL schemes."""

from service.errors import ConfigError
from service.store.base import Store
from service.store.sqlite import SqliteStore

_FORMS = "memory: (none), sqlite:PATH, redis://HOST, rediss://HOST (with TLS) or unix://PATH (a Redis here)"


def store_of(url: str) -> Store | None:
    """Returns the store that a URL names, not opened yet; None for memory:, where sessions are in no store.

    Raises:
        ConfigError: the URL names no store, or a package is missing. No message repeats a password.
    """
    scheme, colon, rest = url.partition(":")
    if url == "memory:":
        return None
    if colon and scheme == "sqlite":
        return _sqlite(rest)
    if colon and scheme in ("redis", "rediss", "unix"):
        return _redis(url)
    # The message has the scheme alone: the URL may be another program's, with a password in it.
    raise ConfigError(f"--store: {scheme[:32] + colon!r} names no store: give it {_FORMS}")


def _sqlite(path: str) -> Store:
    if not path or "\0" in path:
        raise ConfigError("--store: sqlite: needs the path of a file, as in sqlite:sessions.db")
    return SqliteStore(path)


def _redis(url: str) -> Store:
    try:
        from service.store.redis import RedisStore  # here: only this store needs the package redis
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise ConfigError(
            "--store: the package redis is missing, install it: pip install 'streamcell[redis]'"
        ) from None
    return RedisStore(url)

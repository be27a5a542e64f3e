"""Which store a URL names, and how a wrong URL is refused."""

import sys

import pytest

from service.errors import ConfigError
from service.store import urls


async def test_urls_name_stores(tmp_path, monkeypatch):
    """A URL names a store, by a relative path too. Nothing is connected or created."""
    monkeypatch.chdir(tmp_path)
    assert urls.store_of("memory:") is None
    found = {}
    for url in (
        "sqlite:x/s.db",
        "redis://u:secret@h:1/2",
        "rediss://h?ssl_cert_reqs=none",
        "unix:///r.sock?db=3",
    ):
        store = urls.store_of(url)
        found[url] = str(store)
        await store.close()
    assert list(found.values()) == [
        f"sqlite:{tmp_path}/x/s.db",
        "redis://h:1/2",
        "rediss://h",
        "unix:///r.sock",
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "url",
    [
        "", "sessions.db", "memory:x", "postgres://u:secret@h/d", "sqlite:", "sqlite:a\0b", "redis:", "redis://",
        "redis://:secret@", "redis://:sec/secret@h", "redis://:1/secret@h", "redis://:sec?secret@h",
        "redis://:sec#secret@h", "redis://h:secret", "redis://h/secret", "redis://h?decode_responses=secret",
        "redis://[secret/", "redis://h:0", "rediss://h/1/secret", "unix://", "unix://h/secret",
    ],
)  # fmt: skip
def test_wrong_urls_are_refused(url):
    """A wrong URL is refused with the flag's name, and the message never repeats a password."""
    with pytest.raises(ConfigError, match=r"^--store: ") as refused:
        urls.store_of(url)
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_missing_package_is_named(monkeypatch):
    """Without redis-py a redis URL says what to install. Nothing but redis URLs needs the package."""
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.delitem(sys.modules, "service.store.redis")
    with pytest.raises(ConfigError, match=r"^--store: .*pip install 'streamcell\[redis\]'"):
        urls.store_of("redis://localhost")

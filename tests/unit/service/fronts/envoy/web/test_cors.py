"""CORS: which origins' pages may call."""

import pytest

from service.fronts.envoy.web.cors import Origins


@pytest.mark.parametrize(
    ("flag", "origin", "allowed"),
    [
        ("*", b"https://any.example", b"*"),
        ("https://a, https://b", b"https://b", b"https://b"),
        ("https://a", b"https://a.evil", None),
        ("https://a", b"null", None),
    ],
)
def test_which_origins_are_allowed(flag, origin, allowed):
    """Whole origins, or all; the answer to another origin only says that the answer depends on the origin."""
    asked = {b"origin": origin, b"access-control-request-method": b"POST"}
    assert dict(Origins(flag).preflight("OPTIONS", asked)).get(b"access-control-allow-origin") == allowed
    assert Origins(flag).preflight("POST", asked) is None
    assert Origins("").preflight("OPTIONS", asked) is None

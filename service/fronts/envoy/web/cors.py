"""CORS, after the Fetch standard: the headers by which browsers let a page of another origin call.

Owns which origins may call, and which headers the web protocols' clients send and read. Does not know which
methods there are.
"""

from collections.abc import Awaitable

from service.fronts.envoy.asgi import START, Event, Send
from service.fronts.envoy.wire import Headers

_PREFLIGHT: Headers = [
    (b"access-control-allow-methods", b"POST"),
    (
        b"access-control-allow-headers",
        b"content-type, connect-protocol-version, connect-timeout-ms, grpc-timeout, x-grpc-web, x-user-agent",
    ),
    (b"access-control-max-age", b"7200"),  # seconds; no browser remembers the answer longer
]
_EXPOSED = (b"access-control-expose-headers", b"grpc-status, grpc-message, grpc-status-details-bin")


class Origins:
    """The origins whose pages may call.

    Args:
        flag: the origins, separated by commas; `*` for all. Empty: no origin, and no header of CORS is sent.
    """

    def __init__(self, flag: str) -> None:
        self._origins = frozenset(each.strip().encode() for each in flag.split(",") if each.strip())

    def preflight(self, method: str, headers: dict[bytes, bytes]) -> Headers | None:
        """Returns the headers that answer a browser's preflight request; None for any other request."""
        if method != "OPTIONS" or b"access-control-request-method" not in headers or not self._origins:
            return None
        return [*self._allow(headers[b"origin"]), *_PREFLIGHT] if b"origin" in headers else None

    def with_cors(self, send: Send, headers: dict[bytes, bytes]) -> Send:
        """Returns a `send` whose answers the calling page may read, if its origin is allowed."""
        if not self._origins or b"origin" not in headers:
            return send
        added = [*self._allow(headers[b"origin"]), _EXPOSED]

        def send_with(event: Event) -> Awaitable[None]:
            if event["type"] == START:
                event = {**event, "headers": [*event["headers"], *added]}
            return send(event)

        return send_with

    def _allow(self, origin: bytes) -> Headers:
        if b"*" in self._origins:
            return [(b"access-control-allow-origin", b"*")]
        varies = (b"vary", b"origin")  # caches: the answer depends on the origin
        return [(b"access-control-allow-origin", origin), varies] if origin in self._origins else [varies]

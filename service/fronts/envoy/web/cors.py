"""What browsers must be told before a page of another origin may call: CORS, after the Fetch standard.

Knows which origins may, and what the web protocols' clients send and read; not what they call.
"""

from collections.abc import Awaitable

from service.fronts.envoy.calls import START, Event, Send
from service.fronts.envoy.wire import Headers

_PREFLIGHT: Headers = [
    (b"access-control-allow-methods", b"POST"),
    (
        b"access-control-allow-headers",
        b"content-type, connect-protocol-version, connect-timeout-ms, grpc-timeout, x-grpc-web, x-user-agent",
    ),
    (b"access-control-max-age", b"7200"),  # seconds, the longest that browsers keep it
]
_READ = (b"access-control-expose-headers", b"grpc-status, grpc-message, grpc-status-details-bin")


class Origins:
    """The origins whose pages may call.

    Args:
        flag: the origins, by commas; `*` for all; empty for none, and then nothing is said.
    """

    def __init__(self, flag: str) -> None:
        self._origins = frozenset(each.strip().encode() for each in flag.split(",") if each.strip())

    def preflight(self, method: str, headers: dict[bytes, bytes]) -> Headers | None:
        """Returns the headers that answer a browser's question before a call; None if this is none."""
        if method != "OPTIONS" or b"access-control-request-method" not in headers or not self._origins:
            return None
        return [*self._allowing(headers[b"origin"]), *_PREFLIGHT] if b"origin" in headers else None

    def over(self, send: Send, headers: dict[bytes, bytes]) -> Send:
        """Returns a `send` that lets the page that called read the answer, if it may call."""
        if not self._origins or b"origin" not in headers:
            return send
        added = [*self._allowing(headers[b"origin"]), _READ]

        def send_with(event: Event) -> Awaitable[None]:
            if event["type"] == START:
                event = {**event, "headers": [*event["headers"], *added]}
            return send(event)

        return send_with

    def _allowing(self, origin: bytes) -> Headers:
        if b"*" in self._origins:
            return [(b"access-control-allow-origin", b"*")]
        varies = (b"vary", b"origin")  # for caches: to another origin the answer is another
        return [(b"access-control-allow-origin", origin), varies] if origin in self._origins else [varies]

"""gRPC-Web as text, for clients that cannot read bytes: base64 around an application that speaks bytes.

After gRPC's "PROTOCOL-WEB" (grpc/grpc, doc/PROTOCOL-WEB.md). Either side may send several pieces, each with
padding. Does not know what the bytes mean.
"""

import base64
import binascii
import re
from collections.abc import Awaitable

from connectrpc.code import Code
from connectrpc.errors import ConnectError

from service.fronts.envoy.asgi import BODY, START, Event, Receive, Send

CONTENT_TYPE = b"application/grpc-web-text"
_PIECE = re.compile(rb"[^=]+=*")  # up to the padding, if any


def as_bytes(receive: Receive) -> Receive:
    """Returns a `receive` that decodes a request."""
    rest = b""

    async def receive_bytes() -> Event:
        nonlocal rest
        event = await receive()
        if event["type"] != "http.request":
            return event
        text = rest + event["body"]
        cut = len(text) if not event["more_body"] else len(text) // 4 * 4
        text, rest = text[:cut], text[cut:]
        try:
            body = b"".join(base64.b64decode(piece, validate=True) for piece in _PIECE.findall(text))
        except binascii.Error as error:
            raise ConnectError(Code.INVALID_ARGUMENT, f"the request is no base64: {error}") from None
        return {**event, "body": body}

    return receive_bytes


def as_text(send: Send) -> Send:
    """Returns a `send` that encodes an answer."""

    def send_text(event: Event) -> Awaitable[None]:
        if event["type"] == START:
            headers = [pair for pair in event["headers"] if pair[0] != b"content-type"]
            event = {**event, "headers": [*headers, (b"content-type", CONTENT_TYPE + b"+proto")]}
        elif event["type"] == BODY:
            event = {**event, "body": base64.b64encode(event["body"])}
        return send(event)

    return send_text

"""A client of plain HTTP, like curl and browsers, with gRPC-Web's frames made by hand."""

import asyncio
import dataclasses
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from tests.integration.conftest import BOUND_SECONDS

JSON = "application/json"
GRPC_WEB = "application/grpc-web+proto"
TRAILERS_FLAG = 0x80


@dataclasses.dataclass
class Reply:
    """The answer to a request."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body's JSON."""
        return json.loads(self.body)

    @property
    def refusal(self) -> tuple[int, str, str]:
        """An error in Connect's form: the HTTP status, the code, and the reason in its details or ""."""
        debug = [detail["debug"] for detail in self.json.get("details", ())]
        return self.status, self.json["code"], debug[0]["reason"] if debug else ""

    @property
    def frames(self) -> tuple[list[bytes], dict[str, str]]:
        """A gRPC-Web answer's messages and trailers; without a body the trailers are its headers."""
        return frames_of(self.body) if self.body else ([], {k.lower(): v for k, v in self.headers.items()})


def frames_of(body: bytes) -> tuple[list[bytes], dict[str, str]]:
    """Returns the messages and trailers of a body."""
    messages, trailers = [], {}
    while body:
        end = 5 + int.from_bytes(body[1:5], "big")
        if body[0] & TRAILERS_FLAG:
            lines = body[5:end].decode().strip().split("\r\n")
            trailers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        else:
            messages.append(body[5:end])
        body = body[end:]
    return messages, {name: urllib.parse.unquote(value) for name, value in trailers.items()}


async def request(address: str, path: str, body: bytes | None, method: str = "POST", **headers: str) -> Reply:
    """Makes a request; _ in a header's name stands for -."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    asked = urllib.request.Request(f"http://{address}{path}", body, given, method=method)

    def answer() -> Reply:
        try:
            with urllib.request.urlopen(asked, timeout=BOUND_SECONDS) as found:  # noqa: S310  # of ours
                return Reply(found.status, found.headers, found.read())
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, error.headers, error.read())

    return await asyncio.to_thread(answer)


async def post(address: str, path: str, message: Any, **headers: str) -> Reply:
    """Posts a message as JSON, like `curl --json`."""
    return await request(address, path, json.dumps(message).encode(), content_type=JSON, **headers)

"""Questions to a running Envoy: where it listens, whether it is still sending. Changes nothing."""

import contextlib
import http.client
import json
import pathlib
import socket

from service.config import Address

_ANSWER_SECONDS = 10.0
# Of the clients' listener alone: the administration also counts its own requests, this question among them.
_SENDING = r"^http\.ingress_http\.downstream_(rq_active|cx_tx_bytes_buffered)$"


class EnvoyAdmin:
    """Envoy's administration, on a socket in the file system; each method blocks until Envoy answers."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path

    def listen_address(self) -> Address | None:
        """Returns the address at which Envoy listens; None if Envoy does not listen yet."""
        try:
            statuses = json.loads(self._page("/listeners?format=json"))["listener_statuses"]
            found = statuses[0]["local_address"]["socket_address"]
        except (OSError, http.client.HTTPException, ValueError, LookupError):
            return None
        return Address(found["address"], found["port_value"])

    def is_sending(self) -> bool:
        """Returns whether answers are still on their way to clients; False if Envoy is gone."""
        try:
            lines = self._page(f"/stats?filter={_SENDING}")
            return any(int(line.rpartition(": ")[2]) for line in lines.splitlines())
        except (OSError, http.client.HTTPException, ValueError):
            return False

    def _page(self, path: str) -> str:
        with contextlib.closing(_Connection(self._path)) as connection:
            connection.request("GET", path)
            return connection.getresponse().read().decode()


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: pathlib.Path) -> None:
        super().__init__("localhost", timeout=_ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

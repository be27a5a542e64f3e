"""Questions to a running Envoy: where it listens, whether it is still sending. Changes nothing."""

import contextlib
import http.client
import json
import pathlib
import socket
from urllib.parse import quote

from service.config import Address

_ANSWER_SECONDS = 10.0
_TLS = (
    r"^tls_inspector\.tls_(not_)?found$|^listener\..*\.ssl\.fail_verify_(no_cert|error)$"
    r"|^sds\..*\.update_rejected$"
)
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

    def tls_counts(self) -> dict[str, int]:
        """Returns Envoy's counts about TLS, by the ends of the counters' names; {} if Envoy is gone.

        `tls_found` and `tls_not_found`: connections that began with TLS, and with something else.
        `fail_verify_no_cert` and `fail_verify_error`: clients without a certificate, and with a bad one.
        `update_rejected`: new files that Envoy did not take.
        """
        counts: dict[str, int] = {}
        try:
            for line in self._page(f"/stats?filter={quote(_TLS)}").splitlines():
                name, _, count = line.rpartition(": ")
                end = name.rpartition(".")[2]
                counts[end] = counts.get(end, 0) + int(count)
        except (OSError, http.client.HTTPException, ValueError):
            return {}
        return counts

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

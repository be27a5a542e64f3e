"""The HTTP listener of the metrics page: few connections at a time, each for a bounded time.

Python's own server with a thread for each connection. When the connections are as many as may be, the oldest
whose request has not arrived gives way, so clients that never end their requests keep nobody out. Does not
know what the page shows.
"""

import contextlib
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from typing import Any, BinaryIO

from prometheus_client import MetricsHandler
from prometheus_client.registry import CollectorRegistry

from service.telemetry import faults

MAX_CONNECTIONS = 16  # Prometheus needs one
_REQUEST_SECONDS = 10.0  # from the connection to the end of the request, and again for the answer's way out
_MAX_REQUEST_BYTES = 16 << 10
_BACKLOG = 1024  # connections that the system accepts ahead


class _Head:
    """The lines of a request; beyond a bound on all of them together the request has ended.

    The library takes a request that ends amid its headers for a complete one, so `is_cut` tells.
    """

    def __init__(self, lines: BinaryIO) -> None:
        self._lines = lines
        self._num_left = _MAX_REQUEST_BYTES
        self.is_cut = False

    def readline(self, limit: int) -> bytes:
        """Returns the next line, b"" at the end."""
        line = self._lines.readline(min(limit, self._num_left))
        self._num_left -= len(line)
        self.is_cut |= not line
        return line

    def close(self) -> None:
        """Closes the lines."""
        self._lines.close()


class _Handler(MetricsHandler):
    timeout = _REQUEST_SECONDS  # of each piece of a request, and of the whole answer
    server: "PageServer"

    def setup(self) -> None:
        super().setup()
        self.rfile: Any = _Head(self.rfile)

    def do_GET(self) -> None:  # noqa: N802  # the library's name
        if not self.rfile.is_cut:
            self.server.record_arrival(self.connection)
            super().do_GET()


class PageServer(ThreadingHTTPServer):
    """Serves a registry's page over HTTP, once `serve_forever` runs.

    Args:
        host: a name or a numeric address.
        port: 0 picks a free one; `server_port` is the one in use.

    Raises:
        OSError: the address cannot be listened on.
    """

    request_queue_size = _BACKLOG

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self.address_family = family
        self._clock = clock
        self._lock = threading.Condition()
        self._arriving: dict[socket.socket, float] = {}  # when each connected, the oldest first
        self._answering: set[socket.socket] = set()
        self._closing: set[socket.socket] = set()  # told to end; their threads have not ended yet
        super().__init__((str(address[0]), int(address[1])), _Handler.factory(registry))

    def server_bind(self) -> None:
        """Binds the socket; unlike the library, asks no name service for the host's full name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    # -- On the thread of the listener -------------------------------------------------------------

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serves a new connection on a thread of its own, or closes it if nothing gives way."""
        if self._admit(request):
            super().process_request(request, client_address)
        else:
            super().shutdown_request(request)

    def _admit(self, request: socket.socket) -> bool:
        with self._lock:
            # Ends take no time but their thread's turn, and threads are bounded by waiting for it.
            self._lock.wait_for(lambda: len(self._closing) < MAX_CONNECTIONS, _REQUEST_SECONDS)
            if len(self._arriving) + len(self._answering) >= MAX_CONNECTIONS:
                oldest = next(iter(self._arriving), None)
                if oldest is None:
                    return False
                self._end(oldest)
            self._arriving[request] = self._clock()
            return True

    def service_actions(self) -> None:
        """Ends connections whose requests are late; called every half second."""
        with self._lock:
            latest = self._clock() - _REQUEST_SECONDS
            for request in [each for each, since in self._arriving.items() if since <= latest]:
                self._end(request)

    def _end(self, request: socket.socket) -> None:
        """Makes the thread that reads a connection see its end."""
        del self._arriving[request]
        self._closing.add(request)
        with contextlib.suppress(OSError):  # the client may have ended it
            request.shutdown(socket.SHUT_RDWR)

    # -- On the threads of connections -------------------------------------------------------------

    def record_arrival(self, request: socket.socket) -> None:
        """Records that a connection's request is complete: the connection gives way no more."""
        with self._lock:
            if self._arriving.pop(request, None) is not None:
                self._answering.add(request)

    def shutdown_request(self, request: Any) -> None:
        """Closes a connection and forgets it."""
        with self._lock:
            self._arriving.pop(request, None)
            self._answering.discard(request)
            self._closing.discard(request)
            self._lock.notify()
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs a fault; that a client went away is none."""
        error = sys.exception()
        if isinstance(error, Exception) and not isinstance(error, OSError):
            faults.report(error)

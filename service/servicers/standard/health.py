"""The standard health service (grpc.health.v1): Check, List, and Watch, which streams changes.

Owns each service's status and the open watches. Does not know why the server is or is not serving.
"""

from typing import Any

from grpc_health.v1 import health_pb2 as pb

from service import errors
from service.errors import Reason, StreamcellError
from service.rpc.methods import Call, Streaming, Unary, parse
from service.rpc.stream import Stream

SERVICE = pb.DESCRIPTOR.services_by_name["Health"].full_name
_NOT_ASKED = "\0"  # a watch whose request has not come; no service has this name


class HealthServicer:
    """The status of each service; "" stands for the server as a whole.

    All are NOT_SERVING at first.
    """

    def __init__(self, services: list[str]) -> None:
        self._status = dict.fromkeys(["", *services], pb.HealthCheckResponse.NOT_SERVING)
        self._watches: set[_Watch] = set()

    def set_all(self, *, is_serving: bool) -> None:
        """Sets every service's status, and sends it to each watch for which it is a change."""
        status = pb.HealthCheckResponse.SERVING if is_serving else pb.HealthCheckResponse.NOT_SERVING
        self._status = dict.fromkeys(self._status, status)
        for watch in self._watches:
            watch.send_if_changed()

    def methods(self) -> list[Unary[Any] | Streaming]:
        """Returns the service's methods."""
        return [
            Unary(f"/{SERVICE}/Check", pb.HealthCheckRequest, self._check, is_work=False, is_public=True),
            Unary(f"/{SERVICE}/List", pb.HealthListRequest, self._list, is_work=False, is_public=True),
            Streaming(f"/{SERVICE}/Watch", self._watch, is_public=True),
        ]

    def status(self, service: str) -> "pb.HealthCheckResponse.ServingStatus.ValueType":
        """Returns a service's status; SERVICE_UNKNOWN if the server has no such service."""
        return self._status.get(service, pb.HealthCheckResponse.SERVICE_UNKNOWN)

    def remove(self, watch: "_Watch") -> None:
        """Removes a watch, which gets no further changes."""
        self._watches.discard(watch)

    async def _check(self, request: pb.HealthCheckRequest, call: Call) -> pb.HealthCheckResponse:
        if request.service not in self._status:
            raise errors.refusal(Reason.SERVICE_NOT_FOUND)
        return pb.HealthCheckResponse(status=self.status(request.service))

    async def _list(self, request: pb.HealthListRequest, call: Call) -> pb.HealthListResponse:
        statuses = {name: pb.HealthCheckResponse(status=status) for name, status in self._status.items()}
        return pb.HealthListResponse(statuses=statuses)

    def _watch(self, stream: Stream, call: Call) -> "_Watch":
        watch = _Watch(self, stream)
        self._watches.add(watch)
        return watch


class _Watch:
    """One client's Watch: sends the service's status at once, and again at each change."""

    def __init__(self, health: HealthServicer, stream: Stream) -> None:
        self._health = health
        self._stream = stream
        self._service = _NOT_ASKED
        self._last_sent: int | None = None

    def receive(self, raw: bytes) -> None:
        self._service = parse(pb.HealthCheckRequest, raw).service
        self.send_if_changed()

    def send_if_changed(self) -> None:
        status = self._health.status(self._service)
        if self._service != _NOT_ASKED and status != self._last_sent:
            self._last_sent = status
            self._stream.send(pb.HealthCheckResponse(status=status).SerializeToString())

    def stop(self, error: StreamcellError | None) -> None:
        if error is None:  # the client half-closed: it has nothing more to ask, and listens on
            return
        if self._service == _NOT_ASKED:  # a drain began before the request came: no service is serving
            self._service = ""
            self.send_if_changed()
        self._health.remove(self)
        self._stream.end(error)

    def cancel(self) -> None:
        self._health.remove(self)

"""The standard health service (grpc.health.v1): Check, List, and Watch as a stream of changes."""

from typing import Any

from grpc_health.v1 import health_pb2 as pb

from service import errors
from service.errors import Reason, StreamcellError
from service.rpc.methods import Call, Streaming, Unary, parse
from service.rpc.stream import Stream

SERVICE = pb.DESCRIPTOR.services_by_name["Health"].full_name
_NOT_ASKED = "\0"  # no service has this name


class HealthServicer:
    """The health of each service; "" stands for the server as a whole."""

    def __init__(self, services: list[str]) -> None:
        self._status = dict.fromkeys(["", *services], pb.HealthCheckResponse.NOT_SERVING)
        self._watches: set[_Watch] = set()

    def set_all(self, *, is_serving: bool) -> None:
        """Sets every service's status and tells all who watch."""
        status = pb.HealthCheckResponse.SERVING if is_serving else pb.HealthCheckResponse.NOT_SERVING
        self._status = dict.fromkeys(self._status, status)
        for watch in self._watches:
            watch.tell()

    def methods(self) -> list[Unary[Any] | Streaming]:
        """Returns the service's methods."""
        return [
            Unary(f"/{SERVICE}/Check", pb.HealthCheckRequest, self._check, is_work=False),
            Unary(f"/{SERVICE}/List", pb.HealthListRequest, self._list, is_work=False),
            Streaming(f"/{SERVICE}/Watch", self._watch),
        ]

    def status(self, service: str) -> "pb.HealthCheckResponse.ServingStatus.ValueType":
        """Returns a service's status, SERVICE_UNKNOWN for one that is not here."""
        return self._status.get(service, pb.HealthCheckResponse.SERVICE_UNKNOWN)

    def forget(self, watch: "_Watch") -> None:
        """Takes a watch off the list."""
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
    """One client's Watch: the status now, and again whenever it changes."""

    def __init__(self, health: HealthServicer, stream: Stream) -> None:
        self._health = health
        self._stream = stream
        self._service = _NOT_ASKED
        self._last: int | None = None

    def receive(self, raw: bytes) -> None:
        self._service = parse(pb.HealthCheckRequest, raw).service
        self.tell()

    def tell(self) -> None:
        status = self._health.status(self._service)
        if self._service != _NOT_ASKED and status != self._last:
            self._last = status
            self._stream.send(pb.HealthCheckResponse(status=status).SerializeToString())

    def stop(self, error: StreamcellError | None) -> None:
        if error is None:  # the client's half-close is no end: it only listens
            return
        if self._service == _NOT_ASKED:  # it begins in a drain: whatever it would ask of, nothing serves
            self._service = ""
            self.tell()
        self._health.forget(self)
        self._stream.end(error)

    def cancel(self) -> None:
        self._health.forget(self)

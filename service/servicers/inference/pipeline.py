"""Inference requests between message and sequence: reads a message, finds its engine, counts failures.

Serves the unary method and the stream. Does not know how a sequence keeps its order.
"""

from collections.abc import Callable
from functools import partial

from streamcell.inference import open_inference_pb2 as pb

from service.catalog.catalog import Catalog
from service.catalog.versions import NotLoaded
from service.config import Config
from service.engine.engine import Engine
from service.errors import StreamcellError
from service.rpc.methods import Call, parse
from service.servicers.inference.inference_request import InferenceRequest
from service.servicers.inference.parameters import (
    RequestParameters,
    choose_engine,
    read_parameters,
    read_rows,
)
from service.servicers.inference.request_cache import RequestCache
from service.servicers.inference.sequences import Sequences
from service.servicers.inference.tensors import UNREAD, single_row
from service.telemetry.metrics import Metrics


class InferencePipeline:
    """Reads messages, submits their requests to the sequences, and counts the requests that fail."""

    def __init__(self, catalog: Catalog, settings: Config, metrics: Metrics) -> None:
        self._catalog = catalog
        self._max_steps = settings.max_message_steps
        self._sequences = Sequences(catalog)
        self._cache = RequestCache()
        self._metrics = metrics
        catalog.versions.on_change.append(self._clear_cache)

    def read(
        self, message: pb.ModelInferRequest, call: Call, on_done: "Callable[[InferenceRequest], None]"
    ) -> InferenceRequest:
        """Returns the request of a message; `on_done` is called when the request is done.

        Raises:
            NotLoaded: the model is to be loaded first, by `load`.
            StreamcellError: the request is refused.
        """
        engine = self._engine_of(message)
        started_ns = engine.now()
        try:
            parameters = read_parameters(engine, message, call.principal)
            request = InferenceRequest(
                self._for_current_version(parameters),
                UNREAD,
                message.id,
                arrived_ns=started_ns,
                on_done=on_done,
            )
            self._read_rows(request, message)
        except StreamcellError:
            self._count_failure(engine, started_ns)
            raise
        return request

    def read_bytes(
        self, raw: bytes, call: Call, on_done: "Callable[[InferenceRequest], None]"
    ) -> InferenceRequest:
        """Returns the request of a message's bytes; reads little of them if the cache has the parameters.

        Raises:
            NotLoaded, StreamcellError: as `read`.
        """
        found = self._cache.find(call.principal, raw)
        if found is not None:
            parameters, request_id, row = found
            # Nearly every message comes here: keywords would add 0.1 µs.
            return InferenceRequest(parameters, single_row(row), request_id, parameters.engine.now(), on_done)
        request = self.read(parse(pb.ModelInferRequest, raw), call, on_done)
        if request.rows.is_row and request.rows.times is None:
            self._cache.add(call.principal, raw, request.parameters)
        return request

    def _engine_of(self, message: pb.ModelInferRequest) -> Engine:
        try:
            return choose_engine(self._catalog, message.model_name, message.model_version)
        except NotLoaded:
            # The sequence that the request continues may have moved to the version that leads.
            leader, parameters = self._catalog.versions.get(message.model_name), message.parameters
            continues = "sequence_id" in parameters and not (
                "sequence_start" in parameters and parameters["sequence_start"].bool_param
            )
            model = f"{message.model_name}/{message.model_version}"
            if continues and leader is not None and self._catalog.versions.has_taken_over(leader, model):
                return leader
            raise

    def _for_current_version(self, parameters: RequestParameters) -> RequestParameters:
        """Returns parameters for the version that has the sequence in memory, if none is asked for."""
        engine, key = parameters.engine, parameters.key
        if key and not parameters.version and engine.sessions.find(key) is None:
            for other in self._catalog.versions.engines:
                if other.name == engine.name and other.sessions.find(key) is not None:
                    return parameters._replace(engine=other)
        return parameters

    def _read_rows(self, request: InferenceRequest, message: pb.ModelInferRequest) -> None:
        """Reads a request's rows; leaves rows for later that may suit another version and not this one."""
        parameters = request.parameters
        try:
            request.rows = read_rows(parameters, message, self._max_steps, parameters.engine)
        except StreamcellError:
            if not self._may_be_on_other_version(parameters):
                raise
            request.read_rows = partial(read_rows, parameters, message, self._max_steps)

    def _may_be_on_other_version(self, parameters: RequestParameters) -> bool:
        """Returns whether a sequence may turn out to be on a version that takes other rows."""
        if not parameters.key or parameters.version:
            return False
        catalog = self._catalog
        is_one_of_many = sum(each.name == parameters.engine.name for each in catalog.versions.engines) > 1
        return is_one_of_many or (catalog.persistence.has_store and not parameters.is_start)

    def _clear_cache(self) -> None:
        """Drops all cached parameters: they name engines, and a version has come, left or taken the lead."""
        self._cache = RequestCache()

    async def load(self, message: pb.ModelInferRequest) -> None:
        """Loads the model of a message into memory, if its version has left and can come back."""
        await self._catalog.versions.load(f"{message.model_name}/{message.model_version}")

    def submit(self, request: InferenceRequest) -> None:
        """Queues a request.

        Raises:
            StreamcellError: the request is refused; nothing moves.
        """
        try:
            self._sequences.submit(request)
        except StreamcellError:
            self.count_failure(request)
            raise

    def withdraw(self, request: InferenceRequest) -> None:
        """Withdraws a request whose caller is gone."""
        self._sequences.withdraw(request)

    def count_failure(self, request: InferenceRequest) -> None:
        """Counts a request that is done and failed."""
        self._count_failure(request.parameters.engine, request.arrived_ns)

    def _count_failure(self, engine: Engine, started_ns: int) -> None:
        failed = self._metrics.of_model(engine.name, engine.version).inference_failed_seconds
        failed.observe((engine.now() - started_ns) * 1e-9)

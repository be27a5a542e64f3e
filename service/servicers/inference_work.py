"""Requests of the Open Inference Protocol, from message to message, for the unary method and the stream."""

from collections.abc import Callable

from streamcell.inference import open_inference_pb2 as pb

from service.catalog import Catalog
from service.config import Config
from service.engine import Engine
from service.errors import StreamcellError
from service.metrics import Metrics
from service.rpc import Call
from service.servicers import inference_request
from service.servicers.inference_reply import Replies
from service.servicers.inference_sequences import Run, Sequences


class Inference:
    """Reads requests, has their runs done, and makes their responses; counts what fails."""

    def __init__(self, catalog: Catalog, settings: Config, metrics: Metrics) -> None:
        self._catalog = catalog
        self._max_steps = settings.max_message_steps
        self._sequences = Sequences(catalog)
        self._replies = {engine: Replies(engine) for engine in catalog.engines}
        self._failed = {
            engine: metrics.of_model(engine.name, engine.version).inference_failed_seconds
            for engine in catalog.engines
        }

    def read(
        self,
        request: pb.ModelInferRequest,
        call: Call,
        on_done: "Callable[[Run], None]",
        may_be_held: bool = False,
    ) -> Run:
        """Returns the run that a request asks for; `on_done` is called when it is done.

        Raises:
            StreamcellError: the request is refused.
        """
        engine = inference_request.choose(self._catalog, request.model_name, request.model_version)
        started_ns = engine.now()
        try:
            ask = inference_request.read(engine, request, self._max_steps)
        except StreamcellError:
            self._count_failure(engine, started_ns)
            raise
        return Run(ask, call.principal, may_be_held, started_ns, on_done)

    def submit(self, run: Run) -> None:
        """Has a run done.

        Raises:
            StreamcellError: it is refused; nothing moves.
        """
        try:
            self._sequences.submit(run)
        except StreamcellError:
            self._count_failure(run.ask.engine, run.arrived_ns)
            raise

    def withdraw(self, run: Run) -> None:
        """Takes a run back, its caller being gone."""
        self._sequences.withdraw(run)

    def response(self, run: Run) -> pb.ModelStreamInferResponse:
        """Returns the response to a run that is done, to be encoded before the next is asked for.

        Raises:
            StreamcellError: the run failed.
        """
        if run.error is not None:
            self._count_failure(run.ask.engine, run.arrived_ns)
            raise run.error
        return self._replies[run.ask.engine].of(run)

    def _count_failure(self, engine: Engine, started_ns: int) -> None:
        self._failed[engine].observe((engine.now() - started_ns) * 1e-9)

"""Requests of the Open Inference Protocol, from message to message, for the unary method and the stream."""

from collections.abc import Callable
from functools import partial

from streamcell.inference import open_inference_pb2 as pb

from service.catalog.catalog import Catalog
from service.catalog.versions import NotLoaded
from service.config import Config
from service.engine.engine import Engine
from service.errors import StreamcellError
from service.rpc.router import Call, parse
from service.servicers.inference import parameters as inference_request
from service.servicers.inference.inference_request import Run
from service.servicers.inference.parameters import Ask
from service.servicers.inference.request_cache import Heads
from service.servicers.inference.sequences import Sequences
from service.servicers.inference.tensors import UNREAD, one
from service.telemetry.metrics import Metrics


class Inference:
    """Reads requests, has their runs done, and makes their responses; counts what fails."""

    def __init__(self, catalog: Catalog, settings: Config, metrics: Metrics) -> None:
        self._catalog = catalog
        self._max_steps = settings.max_message_steps
        self._sequences = Sequences(catalog)
        self._heads = Heads()
        self._metrics = metrics
        catalog.versions.on_change.append(self._forget)

    def read(self, request: pb.ModelInferRequest, call: Call, on_done: "Callable[[Run], None]") -> Run:
        """Returns the run that a request asks for; `on_done` is called when it is done.

        Raises:
            NotLoaded: its model is to be loaded first: `load`.
            StreamcellError: the request is refused.
        """
        engine = self._engine_of(request)
        started_ns = engine.now()
        try:
            ask = self._at_home(inference_request.ask_of(engine, request, call.principal))
            run = Run(ask, UNREAD, request.id, call.principal, started_ns, on_done)
            self._read_rows(run, request)
        except StreamcellError:
            self._count_failure(engine, started_ns)
            raise
        return run

    def _read_rows(self, run: Run, request: pb.ModelInferRequest) -> None:
        """Reads a run's rows; those that its version does not take later, where they may be for another."""
        ask = run.ask
        try:
            run.rows = inference_request.rows_of(ask, request, self._max_steps, ask.engine)
        except StreamcellError:
            if not self._may_be_elsewhere(ask):
                raise
            run.read = partial(inference_request.rows_of, ask, request, self._max_steps)

    def _at_home(self, ask: Ask) -> Ask:
        """Returns an ask that names no version for the one that its sequence is on, if that is in memory."""
        engine, key = ask.engine, ask.key
        if key and not ask.version and engine.sessions.find(key) is None:
            for other in self._catalog.versions.engines:
                if other.name == engine.name and other.sessions.find(key) is not None:
                    return ask._replace(engine=other)
        return ask

    def _may_be_elsewhere(self, ask: Ask) -> bool:
        """Tells whether a sequence may turn out to be on a version that takes other rows."""
        if not ask.key or ask.version:
            return False
        catalog = self._catalog
        is_one_of_many = sum(each.name == ask.engine.name for each in catalog.versions.engines) > 1
        return is_one_of_many or (catalog.persistence.has_store and not ask.is_start)

    def _engine_of(self, request: pb.ModelInferRequest) -> Engine:
        try:
            return inference_request.choose(self._catalog, request.model_name, request.model_version)
        except NotLoaded:
            # The sequence that such a request goes on with has moved to the version that leads.
            leader, parameters = self._catalog.versions.get(request.model_name), request.parameters
            goes_on = "sequence_id" in parameters and not (
                "sequence_start" in parameters and parameters["sequence_start"].bool_param
            )
            model = f"{request.model_name}/{request.model_version}"
            if goes_on and leader is not None and self._catalog.versions.goes_on(model, leader):
                return leader
            raise

    def read_bytes(self, raw: bytes, call: Call, on_done: "Callable[[Run], None]") -> Run:
        """Does so with a request's bytes: at a part of the cost where its like was read before.

        Raises:
            NotLoaded, StreamcellError: as `read`.
        """
        found = self._heads.find(call.principal, raw)
        if found is not None:
            ask, name, row = found
            return Run(ask, one(row), name, call.principal, ask.engine.now(), on_done)
        run = self.read(parse(pb.ModelInferRequest, raw), call, on_done)
        if run.rows.is_row and run.rows.times is None:
            self._heads.learn(call.principal, raw, run.ask)
        return run

    def _forget(self) -> None:
        """Has all be read anew: what was for one version is for another now, and what left is not kept."""
        self._heads = Heads()

    async def load(self, request: pb.ModelInferRequest) -> None:
        """Has the model of a request in memory, if its version has left and can come back."""
        await self._catalog.versions.load(f"{request.model_name}/{request.model_version}")

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

    def check(self, run: Run) -> None:
        """Checks that a run that is done has not failed.

        Raises:
            StreamcellError: it has.
        """
        if run.error is not None:
            self._count_failure(run.ask.engine, run.arrived_ns)
            raise run.error

    def _count_failure(self, engine: Engine, started_ns: int) -> None:
        failed = self._metrics.of_model(engine.name, engine.version).inference_failed_seconds
        failed.observe((engine.now() - started_ns) * 1e-9)

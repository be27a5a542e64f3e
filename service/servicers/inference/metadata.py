"""The methods that describe the server and its models: health, metadata, configuration, statistics, index.

Does not know inference requests.
"""

import importlib.metadata
import json
import time
from collections.abc import Callable
from typing import Any

from streamcell.inference import open_inference_pb2 as pb

from service import errors
from service.catalog.catalog import Catalog
from service.catalog.versions import NotLoaded
from service.config import Config
from service.engine.engine import Engine
from service.errors import Reason, StreamcellError
from service.rpc.methods import Call
from service.servicers.inference import tensors
from service.servicers.inference.parameters import choose_engine
from service.telemetry.metrics import HistogramChild, Metrics

EXTENSIONS = ("sequence", "sequence(string_id)", "statistics", "model_configuration", "model_repository")
_PLATFORM, _BACKEND = "pytorch_torchscript", "pytorch"
_TYPES = {tensors.FP32: pb.TYPE_FP32, tensors.INT64: pb.TYPE_INT64}
_NEVER = (1 << 63) - 1
_Metadata = pb.ModelMetadataResponse.TensorMetadata
_Index = pb.RepositoryIndexResponse.ModelIndex


class MetadataServicer:
    """Answers the methods that describe the server and its models.

    Args:
        catalog: the models.
        settings: the bounds that a model's configuration names.
        metrics: the instruments that the models' statistics are read from.
        wall_clock: Unix ns.
    """

    def __init__(
        self,
        catalog: Catalog,
        settings: Config,
        metrics: Metrics,
        *,
        wall_clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._catalog = catalog
        self._settings = settings
        self._metrics = metrics
        self._wall_clock = wall_clock

    async def server_live(self, request: pb.ServerLiveRequest, call: Call) -> pb.ServerLiveResponse:
        """Answers ServerLive."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: pb.ServerReadyRequest, call: Call) -> pb.ServerReadyResponse:
        """Answers ServerReady."""
        return pb.ServerReadyResponse(ready=not self._why_not_ready())

    async def model_ready(self, request: pb.ModelReadyRequest, call: Call) -> pb.ModelReadyResponse:
        """Answers ModelReady."""
        try:
            choose_engine(self._catalog, request.name, request.version, field="name")
        except NotLoaded:  # the first request for the version loads it
            pass
        except StreamcellError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=not self._why_not_ready())

    def _why_not_ready(self) -> str:
        """Returns why the server is not ready; empty if it is."""
        if self._catalog.is_draining:
            return errors.refusal(Reason.DRAINING).message
        return self._catalog.why_not_ready

    async def server_metadata(
        self, request: pb.ServerMetadataRequest, call: Call
    ) -> pb.ServerMetadataResponse:
        """Answers ServerMetadata."""
        version = importlib.metadata.version("streamcell")
        return pb.ServerMetadataResponse(name="streamcell", version=version, extensions=EXTENSIONS)

    async def _load_engine(self, name: str, version: str) -> Engine:
        """Returns the engine of a model, loaded if need be."""
        try:
            return choose_engine(self._catalog, name, version, field="name")
        except NotLoaded:
            await self._catalog.versions.load(f"{name}/{version}")
            return choose_engine(self._catalog, name, version, field="name")

    async def model_metadata(self, request: pb.ModelMetadataRequest, call: Call) -> pb.ModelMetadataResponse:
        """Answers ModelMetadata."""
        engine = await self._load_engine(request.name, request.version)
        versions = [each.version for each in self._catalog.versions.engines if each.name == engine.name]
        return pb.ModelMetadataResponse(
            name=engine.name,
            versions=[engine.version] if request.version else versions,
            platform=_PLATFORM,
            inputs=[
                _Metadata(name=name, datatype=kind, shape=[-1, size])
                for name, (kind, size) in tensors.inputs_of(engine).items()
            ],
            outputs=[
                _Metadata(name=tensors.Y, datatype=tensors.FP32, shape=[-1, len(engine.manifest.outputs)])
            ],
            properties=_properties(engine),
        )

    async def model_config(self, request: pb.ModelConfigRequest, call: Call) -> pb.ModelConfigResponse:
        """Answers ModelConfig."""
        engine = await self._load_engine(request.name, request.version)
        idle = round(self._settings.session_ttl_seconds * 1e6) or _NEVER
        config = pb.ModelConfig(
            name=engine.name,
            platform=_PLATFORM,
            backend=_BACKEND,
            max_batch_size=1,
            default_model_filename="model.pt",
            input=[
                pb.ModelInput(name=name, data_type=_TYPES[kind], dims=[size], optional=name == tensors.TIME)
                for name, (kind, size) in tensors.inputs_of(engine).items()
            ],
            output=[
                pb.ModelOutput(name=tensors.Y, data_type=pb.TYPE_FP32, dims=[len(engine.manifest.outputs)])
            ],
            sequence_batching=pb.ModelSequenceBatching(
                max_sequence_idle_microseconds=idle,
                oldest=pb.ModelSequenceBatching.StrategyOldest(
                    max_candidate_sequences=self._settings.max_resident_sessions
                ),
            ),
            parameters={
                name: pb.ModelParameter(string_value=text) for name, text in _properties(engine).items()
            },
        )
        return pb.ModelConfigResponse(config=config)

    async def repository_index(
        self, request: pb.RepositoryIndexRequest, call: Call
    ) -> pb.RepositoryIndexResponse:
        """Answers RepositoryIndex."""
        reason = self._why_not_ready()
        if reason and request.ready:
            return pb.RepositoryIndexResponse()
        state = "UNAVAILABLE" if reason else "READY"
        models = [
            _Index(name=engine.name, version=engine.version, state=state, reason=reason)
            for engine in self._catalog.versions.engines
        ]
        return pb.RepositoryIndexResponse(models=models)

    async def model_statistics(
        self, request: pb.ModelStatisticsRequest, call: Call
    ) -> pb.ModelStatisticsResponse:
        """Answers ModelStatistics."""
        engines = self._catalog.versions.engines
        if request.name:
            engines = [engine for engine in engines if engine.name == request.name]
        if request.version:
            engines = [engine for engine in engines if engine.version == request.version]
        if request.name and not engines:
            choose_engine(  # raises an error that lists the models
                self._catalog, request.name, request.version, field="name"
            )
        return pb.ModelStatisticsResponse(model_stats=[self._statistics(engine) for engine in engines])

    def _statistics(self, engine: Engine) -> pb.ModelStatistics:
        metrics = self._metrics.of_model(engine.name, engine.version)
        computed = _duration(metrics.compute_seconds)
        since = engine.last_applied_ns
        last_ns = 0 if since is None else self._wall_clock() - (engine.now() - since)
        return pb.ModelStatistics(
            name=engine.name,
            version=engine.version,
            last_inference=last_ns // 1_000_000,
            inference_count=_total(metrics.steps),
            execution_count=metrics.batch_steps.count,
            inference_stats=pb.InferStatistics(
                success=_duration(metrics.step_seconds),
                fail=_duration(metrics.inference_failed_seconds),
                queue=_duration(metrics.queue_seconds),
                compute_input=pb.StatisticDuration(count=computed.count),
                compute_infer=computed,
                compute_output=pb.StatisticDuration(count=computed.count),
                cache_hit=pb.StatisticDuration(count=_total(metrics.repeated_steps)),
            ),
        )


def _duration(histogram: HistogramChild) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=histogram.count, ns=round(histogram.sum * 1e9))


def _total(counter: Any) -> int:
    """Returns the value of a Prometheus counter, as a scrape would read it."""
    return sum(
        int(sample.value)
        for family in counter.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    )


def _properties(engine: Engine) -> dict[str, str]:
    manifest = engine.manifest
    return {
        tensors.X: json.dumps([part.name for part in manifest.inputs]),
        tensors.Y: json.dumps([part.name for part in manifest.outputs]),
        "description": manifest.description,
        "uses_time": str(manifest.uses_time).lower(),
        "step_interval_seconds": repr(manifest.step_interval_seconds),
    }

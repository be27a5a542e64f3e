"""The Open Inference Protocol (KServe v2) with Triton's extensions: the methods of GRPCInferenceService."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from google.protobuf.message import Message
from streamcell.inference import open_inference_pb2 as pb

from service import futures
from service.catalog.catalog import Catalog
from service.catalog.versions import NotLoaded
from service.config import Config
from service.rpc.methods import Call, Streaming, Unary
from service.rpc.stream import Stream
from service.servicers.inference.metadata import MetadataServicer
from service.servicers.inference.pipeline import InferencePipeline
from service.servicers.inference.response import ResponseBuilder
from service.servicers.inference.stream import InferStream
from service.servicers.turns import in_turn
from service.telemetry.metrics import Metrics

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_PUBLIC = ("ServerLive", "ServerReady")  # what probes ask, which have no token


class InferenceServicer:
    """Connects the protocol's methods to the parts that answer them."""

    def __init__(self, catalog: Catalog, settings: Config, metrics: Metrics) -> None:
        self._metadata = MetadataServicer(catalog, settings, metrics)
        self._pipeline = InferencePipeline(catalog, settings, metrics)
        self._responses = ResponseBuilder()

    def methods(self) -> list[Unary[Any] | Streaming]:
        """Returns the service's methods."""
        metadata = self._metadata
        described: dict[str, tuple[type[Message], Callable[[Any, Call], Awaitable[Message]]]] = {
            "ServerLive": (pb.ServerLiveRequest, metadata.server_live),
            "ServerReady": (pb.ServerReadyRequest, metadata.server_ready),
            "ModelReady": (pb.ModelReadyRequest, metadata.model_ready),
            "ServerMetadata": (pb.ServerMetadataRequest, metadata.server_metadata),
            "ModelMetadata": (pb.ModelMetadataRequest, metadata.model_metadata),
            "ModelConfig": (pb.ModelConfigRequest, metadata.model_config),
            "ModelStatistics": (pb.ModelStatisticsRequest, metadata.model_statistics),
            "RepositoryIndex": (pb.RepositoryIndexRequest, metadata.repository_index),
        }
        listed: list[Unary[Any] | Streaming] = [
            Unary(f"/{SERVICE}/{name}", *parts, is_work=False, is_public=name in _PUBLIC)
            for name, parts in described.items()
        ]
        return [
            *listed,
            Unary(f"/{SERVICE}/ModelInfer", pb.ModelInferRequest, self.model_infer),
            Streaming(f"/{SERVICE}/ModelStreamInfer", self.model_stream_infer),
        ]

    async def model_infer(self, message: pb.ModelInferRequest, call: Call) -> pb.ModelInferResponse:
        """Answers ModelInfer."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        resolve = futures.sets(done)
        try:
            request = self._pipeline.read(message, call, resolve)
        except NotLoaded:
            await self._pipeline.load(message)
            request = self._pipeline.read(message, call, resolve)
        request.may_be_delayed = True
        await in_turn(request.engine, call.account_number, partial(self._pipeline.submit, request))
        try:
            await done
        except asyncio.CancelledError:
            self._pipeline.withdraw(request)
            raise
        if request.error is not None:
            self._pipeline.count_failure(request)
            raise request.error
        return self._responses.build(request).infer_response

    def model_stream_infer(self, stream: Stream, call: Call) -> InferStream:
        """Begins a ModelStreamInfer."""
        return InferStream(stream, call, self._pipeline)

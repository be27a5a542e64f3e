"""The Open Inference Protocol (KServe v2) with Triton's extensions: the methods of GRPCInferenceService."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.message import Message
from streamcell.inference import open_inference_pb2 as pb

from service.catalog.catalog import Catalog
from service.catalog.versions import NotLoaded
from service.config import Config
from service.rpc.router import Call, Stream, Streaming, Unary
from service.servicers.inference.inference_request import Run
from service.servicers.inference.metadata import About
from service.servicers.inference.pipeline import Inference
from service.servicers.inference.response import Replies
from service.servicers.inference.stream import InferStream
from service.telemetry.metrics import Metrics

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


class InferenceServicer:
    """Puts the protocol's parts together."""

    def __init__(self, catalog: Catalog, settings: Config, metrics: Metrics) -> None:
        self._about = About(catalog, settings, metrics)
        self._inference = Inference(catalog, settings, metrics)
        self._replies = Replies()

    def methods(self) -> list[Unary[Any] | Streaming]:
        """Returns the service's methods."""
        about = self._about
        tells: dict[str, tuple[type[Message], Callable[[Any, Call], Awaitable[Message]]]] = {
            "ServerLive": (pb.ServerLiveRequest, about.server_live),
            "ServerReady": (pb.ServerReadyRequest, about.server_ready),
            "ModelReady": (pb.ModelReadyRequest, about.model_ready),
            "ServerMetadata": (pb.ServerMetadataRequest, about.server_metadata),
            "ModelMetadata": (pb.ModelMetadataRequest, about.model_metadata),
            "ModelConfig": (pb.ModelConfigRequest, about.model_config),
            "ModelStatistics": (pb.ModelStatisticsRequest, about.model_statistics),
            "RepositoryIndex": (pb.RepositoryIndexRequest, about.repository_index),
        }
        listed: list[Unary[Any] | Streaming] = [
            Unary(f"/{SERVICE}/{name}", *parts, is_work=False) for name, parts in tells.items()
        ]
        return [
            *listed,
            Unary(f"/{SERVICE}/ModelInfer", pb.ModelInferRequest, self.model_infer),
            Streaming(f"/{SERVICE}/ModelStreamInfer", self.model_stream_infer),
        ]

    async def model_infer(self, request: pb.ModelInferRequest, call: Call) -> pb.ModelInferResponse:
        """Answers ModelInfer."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def settle(_: Run) -> None:
            if not done.done():
                done.set_result(None)

        try:
            run = self._inference.read(request, call, settle)
        except NotLoaded:
            await self._inference.load(request)
            run = self._inference.read(request, call, settle)
        run.may_be_held = True
        self._inference.submit(run)
        try:
            await done
        except asyncio.CancelledError:
            self._inference.withdraw(run)
            raise
        self._inference.check(run)
        return self._replies.of(run).infer_response

    def model_stream_infer(self, stream: Stream, call: Call) -> InferStream:
        """Begins a ModelStreamInfer."""
        return InferStream(stream, call, self._inference)

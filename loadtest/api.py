"""A connection to a Streamcell server, whose calls of the load take and return bytes.

Messages are serialised once, before they are sent many times. Does not know when or how often calls are made.
"""

import functools
from typing import Any

from grpc import aio
from streamcell.access import Access
from streamcell.channel import open_channel
from streamcell.v1 import streamcell_pb2 as pb

_SERVICE = f"/{pb.DESCRIPTOR.services_by_name['StreamcellService'].full_name}/"
_CALL_SECONDS = 30.0  # timeout of calls outside the measured load


class Connection:
    """One connection of its own, however many there are to the same server.

    The token is the one that there is when the connection is made: to look for another one at each call would
    cost the load.
    """

    def __init__(self, target: str, access: Access | None = None) -> None:
        tls, token = (access.tls, access.token) if access is not None else (None, None)
        self._metadata = token.metadata() if token is not None else None
        options: list[tuple[str, Any]] = [
            ("grpc.use_local_subchannel_pool", 1),  # otherwise all channels would share one connection
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_retries", 0),
        ]
        if tls is not None and tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", tls.server_name))
        self._channel: aio.Channel = open_channel(target, tls, options)
        self.step: Any = self._unary("Step")
        self.prime: Any = self._unary("Prime")
        self.forecast: Any = self._unary("Forecast")
        self.stream: Any = self._with_token(self._channel.stream_stream(_SERVICE + "Stream", None, None))
        self._list_models: Any = self._unary("ListModels")
        self._open_session: Any = self._unary("OpenSession")
        self._close_session: Any = self._unary("CloseSession")

    def _unary(self, name: str) -> Any:
        return self._with_token(self._channel.unary_unary(_SERVICE + name, None, None))

    def _with_token(self, method: Any) -> Any:
        return functools.partial(method, metadata=self._metadata) if self._metadata else method

    async def list_models(self) -> pb.ListModelsResponse:
        """Returns the models served.

        Raises:
            grpc.aio.AioRpcError: the call failed.
        """
        request = pb.ListModelsRequest().SerializeToString()
        return pb.ListModelsResponse.FromString(await self._list_models(request, timeout=_CALL_SECONDS))

    async def open_session(self, session_id: str, model: str) -> pb.OpenSessionResponse:
        """Opens a new session.

        Raises:
            grpc.aio.AioRpcError: the call failed.
        """
        request = pb.OpenSessionRequest(session_id=session_id, model=model, mode=pb.OPEN_MODE_CREATE)
        raw = await self._open_session(request.SerializeToString(), timeout=_CALL_SECONDS)
        return pb.OpenSessionResponse.FromString(raw)

    async def close_session(self, session_id: str) -> None:
        """Closes a session, if it is there.

        Raises:
            grpc.aio.AioRpcError: the call failed.
        """
        request = pb.CloseSessionRequest(session_id=session_id, allow_missing=True)
        await self._close_session(request.SerializeToString(), timeout=_CALL_SECONDS)

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close(None)

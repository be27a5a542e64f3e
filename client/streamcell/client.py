"""The client: opens and closes the connection to a server, lists its models and makes sessions.

Knows nothing of what sessions send over the connection.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from streamcell import convert
from streamcell.channel import split_targets
from streamcell.connection import Connection
from streamcell.errors import NotOpen
from streamcell.retry import Sources
from streamcell.session import Session, open_request
from streamcell.token import Tokens, token_of
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.values import Limits, Model, OpenMode, RetryPolicy, Timeout, Tls


class Client:
    """A connection to a server, used with `async with`; it connects with the first call.

    Example:
        async with Client("localhost:50051") as client:
            print([model.name for model in await client.models()])
            async with client.session(model="nyc-taxi") as session:
                prediction = await session.step([10_844.0])

    Args:
        target: "HOST:PORT", or several with commas between: the client uses the next one when one is gone. Or
            any name that gRPC resolves: "dns:///HOST:PORT" for all addresses of a name, or
            "ipv4:IP:PORT,IP:PORT".
        tls: settings of an encrypted connection; absent: plain text.
        token: a bearer token, or a function that returns the one to use now, such as a `TokenFile`; sent with
            every call and stream. It goes to other machines over TLS only, unless it is a `Token` that says
            otherwise.
        metadata: sent with every call; keys in lower case.
        timeout: how long connecting, a call and a silent connection may take.
        limits: how many steps and bytes may be in memory or in a message at once.
        retry: how often and how fast failed attempts are repeated.
        sources: where time and chance come from, for tests.
    """

    def __init__(
        self,
        target: str,
        *,
        tls: Tls | None = None,
        token: Tokens = None,
        metadata: Mapping[str, str] | None = None,
        timeout: Timeout | None = None,
        limits: Limits | None = None,
        retry: RetryPolicy | None = None,
        sources: Sources | None = None,
    ) -> None:
        self.target = target
        self._tls = tls
        self._token = token_of(token)
        self._metadata = dict(metadata or {})
        if self._token is not None:
            self._token.check_way(split_targets(target), has_tls=tls is not None, metadata=self._metadata)
        self._timeout = timeout or Timeout()
        self._limits = limits or Limits()
        self._retry = retry or RetryPolicy()
        self._sources = sources or Sources()
        self._connection: Connection | None = None

    async def __aenter__(self) -> Self:
        # Not in the constructor: a channel belongs to the event loop that is running when it is made.
        self._connection = Connection(
            self.target,
            tls=self._tls,
            token=self._token,
            metadata=self._metadata,
            timeout=self._timeout,
            limits=self._limits,
            retry=self._retry,
            sources=self._sources,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection = self._open_connection()
        self._connection = None
        await connection.aclose()

    async def models(self) -> tuple[Model, ...]:
        """Lists the models that the server serves, by name, then version."""
        connection = self._open_connection()
        reply = await connection.unary_repeated(lambda stub: stub.ListModels, pb.ListModelsRequest())
        return tuple(map(convert.to_model, reply.models))

    def session(
        self,
        *,
        model: str | None = None,
        session_id: str | None = None,
        mode: OpenMode = "open",
        durable: bool = False,
        keep: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> Session:
        """Returns a session; its `async with` opens it.

        Args:
            model: "NAME" (its newest version) or "NAME/VERSION"; absent: the only model served, or the
                model of the session that `session_id` finds.
            session_id: absent: a random id.
            mode: "open" finds the session or creates it; "create" refuses one that exists, "resume" one that
                does not.
            durable: the server answers a step only once the step is in its store.
            keep: leaves the session on the server at the end. Without `keep` a session that was created
                here is closed; a session that was found always stays.
            metadata: sent with every call of the session beside the client's, keys in lower case. The key
                x-session-id, by which a balancer can send a session's calls to one server, is the session's
                id unless it is given here.
        """
        request = open_request(model=model, session_id=session_id, mode=mode, durable=durable)
        return Session(self._open_connection(), request, keep=keep, metadata=metadata or {})

    def _open_connection(self) -> Connection:
        if self._connection is None:
            raise NotOpen("the client is not open: use it inside its `async with`")
        return self._connection

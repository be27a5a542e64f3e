"""The client: one connection to a server, and the way to its models and sessions.

Owns the connection's life. What sessions do on it is theirs.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from streamcell import convert
from streamcell.connection import Connection
from streamcell.errors import NotOpen
from streamcell.retry import Sources
from streamcell.session import Session, open_request
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.values import Limits, Model, OpenMode, RetryPolicy, Timeout, Tls


class Client:
    """A connection to a server, used with `async with`; it connects when first needed.

    Args:
        target: "HOST:PORT", or several with commas between: the next one is tried when one goes. Or any name
            that gRPC resolves: "dns:///HOST:PORT" for all addresses of a name, "ipv4:IP:PORT,IP:PORT".
        tls: encrypts; absent: plain text.
        metadata: sent with every call, such as {"authorization": "Bearer …"}; keys in lower case.
        timeout: how long things may take.
        limits: how much may be held or sent at once.
        retry: how failed attempts are repeated.
        sources: where time and chance come from, for tests.
    """

    def __init__(
        self,
        target: str,
        *,
        tls: Tls | None = None,
        metadata: Mapping[str, str] | None = None,
        timeout: Timeout | None = None,
        limits: Limits | None = None,
        retry: RetryPolicy | None = None,
        sources: Sources | None = None,
    ) -> None:
        self.target = target
        self._tls = tls
        self._metadata = dict(metadata or {})
        self._timeout = timeout or Timeout()
        self._limits = limits or Limits()
        self._retry = retry or RetryPolicy()
        self._sources = sources or Sources()
        self._connection: Connection | None = None

    async def __aenter__(self) -> Self:
        # Here and not in the constructor: a channel belongs to the event loop that is running.
        self._connection = Connection(
            self.target,
            tls=self._tls,
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
        """Lists the models served, by name, then version."""
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
    ) -> Session:
        """Returns a session, to be opened by its `async with`.

        Args:
            model: "NAME" (its newest version) or "NAME/VERSION"; absent: the only model served, or the
                one that a session found by its id runs on.
            session_id: absent: a random one.
            mode: "open" finds the session or creates it, "create" and "resume" insist on one of them.
            durable: each step is answered only once it is in the server's store.
            keep: leaves the session on the server at the end. Otherwise it is closed if it was created
                here; one that was found is always left.
        """
        return Session(self._open_connection(), open_request(model, session_id, mode, durable), keep=keep)

    def _open_connection(self) -> Connection:
        if self._connection is None:
            raise NotOpen("the client is not open: use it inside its `async with`")
        return self._connection

"""How a session is found again after its server was lost, and brought to where it was answered.

OpenSession takes it over wherever it is. A server that stands behind gets the steps that it lacks by Prime,
up to the last one answered: their predictions were handed out, and those of later steps are still wanted.
A server that never heard of it gets all of it, if all of it is held. Knows nothing of the calls that
were interrupted.
"""

import asyncio

from streamcell import convert
from streamcell.connection import Connection
from streamcell.convert import History
from streamcell.errors import SessionNotFound, StreamcellError
from streamcell.pieces import in_pieces
from streamcell.position import SessionPosition
from streamcell.retry import Backoff, is_curable, is_reopenable
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.values import SessionInfo


class Recovery:
    """Recovers one session."""

    def __init__(self, connection: Connection, position: SessionPosition) -> None:
        self._connection = connection
        self._position = position
        # A stream and a call beside it may find out at once that their server is gone.
        self._one_at_a_time = asyncio.Lock()

    async def recover(self, backoff: Backoff) -> None:
        """Connects again and makes sure that the session is there, as far as it was answered.

        Each attempt begins with asking where the session stands, so that one which was interrupted goes on
        where it got to.

        Raises:
            SessionGone: it is no longer there, and not all of its steps are held.
            ModelChanged: the id is now that of a session on another model.
            StepGap: the server stands behind steps that are no longer held.
            StreamcellError: the last attempt's.
        """
        async with self._one_at_a_time:
            while True:
                try:
                    info = await self._open_again()
                except StreamcellError as error:
                    await backoff.pause(error, is_reopenable)
                    continue
                self._position.check_covered(info)
                try:
                    await self._send_again(info)
                except StreamcellError as error:
                    await backoff.pause(error, is_curable)
                else:
                    return

    async def _open_again(self) -> SessionInfo:
        """Takes the session over and returns where it stands."""
        position = self._position
        request = pb.OpenSessionRequest(session_id=position.session_id, mode=pb.OPEN_MODE_RESUME)
        try:
            info = await self._open(request)
        except SessionNotFound:
            if not position.reaches_start:
                raise
            info = await self._create_anew()
        return info

    async def _open(self, request: pb.OpenSessionRequest) -> SessionInfo:
        reply = await self._connection.unary_reconnecting(lambda stub: stub.OpenSession, request)
        info = convert.to_session_info(reply.session)
        self._position.check_model(info)
        self._position.limits = convert.to_limits(self._connection.limits, reply.limits)
        return info

    async def _create_anew(self) -> SessionInfo:
        """Opens a session that its server lost before any of it was stored."""
        position = self._position
        info = await self._open(
            pb.OpenSessionRequest(
                session_id=position.session_id,
                model=position.model,
                mode=pb.OPEN_MODE_CREATE,
                durable=position.durable,
            )
        )
        position.created_anew()
        return info

    async def _reset_again(self) -> SessionInfo:
        """Repeats a reset that another owner may not know of."""
        position = self._position
        request = pb.ResetSessionRequest(session_id=position.session_id)
        reply = await self._connection.unary(lambda stub: stub.ResetSession, request)
        info = convert.to_session_info(reply.session)
        position.end_reset(info)
        return info

    async def _send_again(self, info: SessionInfo) -> None:
        """Sends the steps that a server lacks of those that were answered."""
        position = self._position
        if position.must_reset(info):
            info = await self._reset_again()
        position.learn_durable(info.num_durable_steps)
        step_index = info.next_step_index
        for history in position.tail.histories(step_index, position.next_step_index):
            await self._prime(step_index, history)
            step_index += history.num_steps

    async def _prime(self, step_index: int, history: History) -> None:
        position = self._position

        async def send(start: int, stop: int) -> None:
            x_raw, time_raw = history.between(start, stop).packed()
            request = pb.PrimeRequest(
                session_id=position.session_id, x_raw=x_raw, time_raw=time_raw, step_index=step_index + start
            )
            reply = await self._connection.unary(lambda stub: stub.Prime, request)
            position.learn_durable(reply.num_durable_steps)

        await in_pieces(history, position.limits, send)

"""Finds a session again after its server was lost, and brings the server up to the last step answered.

OpenSession takes the session over from any server. If the server lacks steps that were answered, Prime sends
them again, up to the last one answered: the caller has their predictions already, but still waits for those
of later steps. If the server does not know the session, it is created again and gets all of its steps,
provided that the tail has all of them. Knows nothing of the calls that were interrupted.
"""

import asyncio

from streamcell import convert
from streamcell.convert import History
from streamcell.errors import SessionNotFound, StreamcellError
from streamcell.pieces import in_pieces
from streamcell.position import SessionPosition
from streamcell.retry import Backoff, is_curable, is_reopenable
from streamcell.session_connection import SessionConnection
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.values import SessionInfo


class Recovery:
    """Recovers one session, so that a caller need not notice that its server was lost."""

    def __init__(self, connection: SessionConnection, position: SessionPosition) -> None:
        self._connection = connection
        self._position = position
        # A stream and a call beside it may both find that their server is gone.
        self._one_at_a_time = asyncio.Lock()

    async def recover(self, backoff: Backoff) -> None:
        """Connects again and makes sure that the server has every step of the session that was answered.

        Each attempt first asks where the session stands, so that it goes on where an interrupted attempt
        stopped.

        Raises:
            SessionGone: the session is gone, and the tail does not have all of its steps.
            ModelChanged: the id now belongs to a session on another model.
            StepGap: the server lacks steps that the tail no longer has.
            StreamcellError: the error of the last attempt.
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
        """Creates the session again under its id, after its server lost it before storing any step."""
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
        """Repeats a reset that the session's new server may not know of."""
        position = self._position
        request = pb.ResetSessionRequest(session_id=position.session_id)
        reply = await self._connection.unary(lambda stub: stub.ResetSession, request)
        info = convert.to_session_info(reply.session)
        position.end_reset(info)
        return info

    async def _send_again(self, info: SessionInfo) -> None:
        """Sends the answered steps that the server lacks."""
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

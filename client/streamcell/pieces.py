"""Sends a history in as many messages as its length needs.

Knows how much of a history fits into a message, but not how a message is sent.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from streamcell.convert import History
from streamcell.errors import MessageTooLarge, TooManySteps
from streamcell.values import Limits

Reply = TypeVar("Reply")

_MESSAGE_MARGIN_BYTES = 1024  # room in a message for everything beside its columns


async def in_pieces(history: History, limits: Limits, send: Callable[[int, int], Awaitable[Reply]]) -> Reply:
    """Sends a history of at least one step piece by piece, each after the reply to the one before.

    Args:
        history: what to send.
        limits: what fits into a message; if a server takes less, the pieces are halved.
        send: sends the steps from `start` up to before `stop`.

    Returns:
        The reply to the last piece.
    """
    room_bytes = max(limits.message_bytes - _MESSAGE_MARGIN_BYTES, 1)
    piece_steps = max(1, min(limits.message_steps, room_bytes // max(history.step_bytes, 1)))
    start = 0
    while True:
        stop = min(start + piece_steps, history.num_steps)
        try:
            reply = await send(start, stop)
        except (TooManySteps, MessageTooLarge):
            if stop - start == 1:
                raise
            piece_steps = (stop - start) // 2  # this server takes less than its limits say
            continue
        if stop == history.num_steps:
            return reply
        start = stop

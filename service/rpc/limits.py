"""How large a request may be: the bound that is answered with a reason, and the bound at which reading stops.

Does not know methods, streams or transports.
"""

from service import errors
from service.errors import Reason

HARD_LIMIT_FACTOR = 4
"""A front reads requests of up to this many times a bound, so that they can be refused with their reason."""


def check_message_size(raw: bytes, max_message_bytes: int) -> None:
    """Checks the size of a client's message.

    Raises:
        StreamcellError: RESOURCE_EXHAUSTED, the message is larger than `max_message_bytes`.
    """
    if len(raw) > max_message_bytes:
        raise errors.refusal(
            Reason.MESSAGE_TOO_LARGE, got_bytes=len(raw), max_message_bytes=max_message_bytes
        )

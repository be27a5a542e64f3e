"""The window of a stream: the steps taken from the caller whose predictions are not yet given back.

Only keeps count: uses no clock, no event loop and no connection. It numbers steps, says which one to send
next, matches replies to steps in order, and bounds the number of steps. After a broken connection `rewind`
makes every unanswered step unsent again. Steps that were answered and that a server may still lose are in
the tail instead.
"""

import dataclasses
from array import array
from collections import deque

from streamcell.errors import StreamcellError
from streamcell.values import Prediction


@dataclasses.dataclass(frozen=True, slots=True)
class NumberedStep:
    """A step with its index in the session."""

    step_index: int
    x: "array[float]"
    time_ns: int | None


class Window:
    """Steps from `first_step_index` on, at most `window_steps` of them without a prediction given back."""

    def __init__(self, first_step_index: int, window_steps: int) -> None:
        self._next_step_index = first_step_index
        self._window_steps = window_steps
        self._unanswered: deque[NumberedStep] = deque()
        self._num_sent = 0  # of the unanswered
        self._answered: deque[Prediction] = deque()

    @property
    def has_room(self) -> bool:
        """Whether another step may be taken."""
        return len(self._unanswered) + len(self._answered) < self._window_steps

    @property
    def has_unanswered(self) -> bool:
        """Whether a step waits for its reply, sent or not."""
        return bool(self._unanswered)

    @property
    def has_unsent(self) -> bool:
        """Whether a step waits to be sent."""
        return self._num_sent < len(self._unanswered)

    @property
    def has_answered(self) -> bool:
        """Whether a prediction waits to be given back."""
        return bool(self._answered)

    def append(self, x: "array[float]", time_ns: int | None) -> None:
        """Numbers a step and adds it; there must be room."""
        assert self.has_room, "a step was taken without room"  # noqa: S101 - a mistake of the stream
        self._unanswered.append(NumberedStep(self._next_step_index, x, time_ns))
        self._next_step_index += 1

    def send_next(self) -> NumberedStep:
        """Returns the first unsent step, which counts as sent from now on."""
        step = self._unanswered[self._num_sent]
        self._num_sent += 1
        return step

    def rewind(self) -> None:
        """Makes every unanswered step unsent again."""
        self._num_sent = 0

    def answer(self, prediction: Prediction) -> None:
        """Records the reply to the first unanswered step.

        Raises:
            StreamcellError: the reply is to another step, which the protocol rules out.
        """
        due = self._unanswered[0].step_index if self._num_sent else None
        if prediction.step_index != due:
            wanted = "none is due" if due is None else f"step {due} is due"
            raise StreamcellError(f"the server answered step {prediction.step_index} where {wanted}")
        self._unanswered.popleft()
        self._num_sent -= 1
        self._answered.append(prediction)

    def take(self) -> Prediction:
        """Gives back the earliest prediction."""
        return self._answered.popleft()

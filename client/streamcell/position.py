"""How far a session has got, as far as the server's answers say, with the tail of its steps.

Only keeps count: uses no clock, no event loop and no connection. It recognises a server that lacks steps
which were answered. What to do about that is the recovery's affair.
"""

from streamcell.convert import History
from streamcell.errors import ModelChanged, StepGap
from streamcell.tail import Tail
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.values import Limits, SessionInfo


class SessionPosition:
    """The position of one session: its next step, its model, and the steps that may have to be sent again."""

    def __init__(self, info: SessionInfo, limits: Limits) -> None:
        self.session_id = info.session_id
        self.model_name = info.model_name
        self.model_version = info.model_version
        self.durable = info.durable
        self.limits = limits
        self.next_step_index = info.next_step_index
        self.tail = Tail(info.next_step_index, limits.tail_steps)
        # The epoch of the server that reset the session, as long as no step since then is known to be in the
        # store. The store may still have the steps from before the reset, and another server would bring
        # them back.
        self._reset_epoch: int | None = None
        self._is_reset_in_doubt = False  # whether a reset began and did not end

    @property
    def model(self) -> str:
        """The model as requests name it."""
        return f"{self.model_name}/{self.model_version}"

    @property
    def reaches_start(self) -> bool:
        """Whether the tail has every step of the session."""
        return self.tail.first_step_index == 0

    def sending(self, step_index: int, history: History) -> None:
        """Records steps that are about to be sent, for the first time or again."""
        self.tail.append(step_index, history)

    def answered(self, reply: pb.StepResponse | pb.PrimeResponse) -> None:
        """Records the reply to the next steps."""
        self.next_step_index = reply.step_index + 1
        self.learn_durable(reply.num_durable_steps)

    def learn_durable(self, num_durable_steps: int) -> None:
        """Drops the steps that are in the store from the tail."""
        if num_durable_steps:
            self._reset_epoch = None
            self.tail.trim(num_durable_steps)

    def adopt(self, info: SessionInfo) -> None:
        """Goes on from where the server says the session stands."""
        self.next_step_index = info.next_step_index
        self.tail.move_to(info.next_step_index)
        if info.next_step_index == 0 and self._is_reset_in_doubt:  # a reset whose reply never came
            self._reset_epoch = info.epoch
        elif self.must_reset(info):
            self._reset_epoch = None
        self._is_reset_in_doubt = False
        self.learn_durable(info.num_durable_steps)

    def begin_reset(self) -> None:
        """Forgets every step: whether the reset succeeds or not, earlier answers no longer count."""
        self.next_step_index = 0
        self.tail.move_to(0)
        self._reset_epoch = None
        self._is_reset_in_doubt = True

    def end_reset(self, info: SessionInfo) -> None:
        """Records which server reset the session."""
        self._reset_epoch = info.epoch
        self._is_reset_in_doubt = False

    def created_anew(self) -> None:
        """Records that a new session was created under this id, with no steps in the store."""
        self._reset_epoch = None
        self._is_reset_in_doubt = False

    def must_reset(self, info: SessionInfo) -> bool:
        """Returns whether a server may have the session as it was before it was reset."""
        return self._reset_epoch is not None and info.epoch != self._reset_epoch

    def check(self, info: SessionInfo) -> None:
        """Makes sure that a server has every step that was answered.

        Raises:
            ModelChanged: the id now belongs to a session on another model.
            StepGap: the server lacks steps.
        """
        self.check_model(info)
        if self.must_reset(info):
            raise self._behind(info.next_step_index, "the session was reset")
        self.check_reached(info.next_step_index, self.next_step_index)
        self.learn_durable(info.num_durable_steps)

    def check_model(self, info: SessionInfo) -> None:
        """Makes sure that the session runs on its model.

        Raises:
            ModelChanged: it runs on another model.
        """
        if info.model_name != self.model_name:
            raise ModelChanged(
                f"session {self.session_id} ran on model {self.model_name} and now runs on {info.model_name}",
                reason="MODEL_CHANGED",
            )

    def check_reached(self, next_step_index: int, num_answered: int) -> None:
        """Makes sure that a server which takes `next_step_index` next has the first `num_answered` steps.

        Raises:
            StepGap: it lacks some.
        """
        if next_step_index < num_answered:
            raise self._behind(next_step_index, f"step {num_answered - 1} was answered")

    def check_covered(self, info: SessionInfo) -> None:
        """Makes sure that the tail has every answered step that a server lacks.

        Raises:
            StepGap: the tail no longer has some of them.
        """
        next_step_index = 0 if self.must_reset(info) else info.next_step_index
        if next_step_index < min(self.next_step_index, self.tail.first_step_index):
            held = f"only steps from {self.tail.first_step_index} on are held"
            raise self._behind(
                info.next_step_index, f"step {self.next_step_index - 1} was answered and {held}"
            )

    def _behind(self, next_step_index: int, but: str) -> StepGap:
        return StepGap(
            f"session {self.session_id} stands at step {next_step_index} on the server, but {but}: its state"
            " was lost. refresh() goes on from where the server stands",
            reason="STEP_GAP",
            metadata={"expected_step_index": str(next_step_index)},
        )

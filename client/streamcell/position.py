"""Where a session stands, as far as the server's answers tell, and the tail of its steps.

Pure bookkeeping, without clock, loop or wire. It tells a server that stands behind what was answered from
one that does not; what is to be done about it is the recovery's.
"""

from streamcell.convert import History
from streamcell.errors import ModelChanged, StepGap
from streamcell.tail import Tail
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.values import Limits, SessionInfo


class Place:
    """The place of one session."""

    def __init__(self, info: SessionInfo, limits: Limits) -> None:
        self.session_id = info.session_id
        self.model_name = info.model_name
        self.model_version = info.model_version
        self.durable = info.durable
        self.limits = limits
        self.next_step_index = info.next_step_index
        self.tail = Tail(info.next_step_index, limits.tail_steps)
        # The owner that reset the session, while nothing since is known to be in the store: the store may
        # still hold what was before, so that another owner would bring it back.
        self._reset_epoch: int | None = None

    @property
    def model(self) -> str:
        """The model as requests name it."""
        return f"{self.model_name}/{self.model_version}"

    @property
    def reaches_start(self) -> bool:
        """Whether the tail holds every step there was."""
        return self.tail.first_step_index == 0

    def sending(self, step_index: int, history: History) -> None:
        """Notes steps that go out now, for the first time or again."""
        self.tail.append(step_index, history)

    def answered(self, reply: pb.StepResponse | pb.PrimeResponse) -> None:
        """Notes the reply to the next steps."""
        self.next_step_index = reply.step_index + 1
        self.learn_durable(reply.num_durable_steps)

    def learn_durable(self, num_durable_steps: int) -> None:
        """Lets go of what is in the store."""
        if num_durable_steps:
            self._reset_epoch = None
            self.tail.trim(num_durable_steps)

    def adopt(self, info: SessionInfo) -> None:
        """Takes the server's word for where the session stands."""
        self.next_step_index = info.next_step_index
        self.tail.move_to(info.next_step_index)
        if info.next_step_index == 0:  # perhaps by a reset whose reply never came
            self._reset_epoch = info.epoch
        elif self.must_reset(info):
            self._reset_epoch = None
        self.learn_durable(info.num_durable_steps)

    def begin_reset(self) -> None:
        """Forgets every step: whatever becomes of the reset, earlier answers bind no more."""
        self.next_step_index = 0
        self.tail.move_to(0)
        self._reset_epoch = None

    def end_reset(self, info: SessionInfo) -> None:
        """Notes who reset the session."""
        self._reset_epoch = info.epoch

    def created_anew(self) -> None:
        """Notes that the session under this id is a new one, with nothing before it."""
        self._reset_epoch = None

    def must_reset(self, info: SessionInfo) -> bool:
        """Tells whether a server may stand where the session was before it was reset."""
        return self._reset_epoch is not None and info.epoch != self._reset_epoch

    def check(self, info: SessionInfo) -> None:
        """Makes sure that a server stands where the session was answered, or further.

        Raises:
            ModelChanged: the id is now that of a session on another model.
            StepGap: it stands behind.
        """
        self.check_model(info)
        if self.must_reset(info):
            raise self._behind(info.next_step_index, "the session was reset")
        self.check_reached(info.next_step_index, self.next_step_index)
        self.learn_durable(info.num_durable_steps)

    def check_model(self, info: SessionInfo) -> None:
        """Makes sure that the session runs on its model.

        Raises:
            ModelChanged: it does not.
        """
        if info.model_name != self.model_name:
            raise ModelChanged(
                f"session {self.session_id} ran on model {self.model_name} and now runs on {info.model_name}",
                reason="MODEL_CHANGED",
            )

    def check_reached(self, stands_at: int, answered: int) -> None:
        """Makes sure that a server has the first `answered` steps.

        Raises:
            StepGap: it has not.
        """
        if stands_at < answered:
            raise self._behind(stands_at, f"step {answered - 1} was answered")

    def check_covered(self, info: SessionInfo) -> None:
        """Makes sure that what a server lacks can be sent again.

        Raises:
            StepGap: steps are missing that are no longer held.
        """
        stands_at = 0 if self.must_reset(info) else info.next_step_index
        if stands_at < min(self.next_step_index, self.tail.first_step_index):
            held = f"only steps from {self.tail.first_step_index} on are held"
            raise self._behind(
                info.next_step_index, f"step {self.next_step_index - 1} was answered and {held}"
            )

    def _behind(self, stands_at: int, but: str) -> StepGap:
        return StepGap(
            f"session {self.session_id} stands at step {stands_at} on the server, but {but}: its state was"
            " lost. refresh() goes on from where the server stands",
            reason="STEP_GAP",
            metadata={"expected_step_index": str(stands_at)},
        )

"""Callers that are rivals take turns, whichever method they call: seven modest ones beside a greedy one.

Every client here sends more as soon as the server takes it, so that shares do not depend on the clients.
"""

import asyncio
import collections
import itertools

import pytest
from streamcell.v1 import streamcell_pb2 as pb

from service.rpc.statuses import RefusedError
from tests.fakes import Served, turn
from tests.inference import SERVICE, infer

MODEST = [f"modest-{number}" for number in range(7)]
CALLERS = [*MODEST, "greedy"]
GREED = 50
NUM_SESSIONS = 16  # of a stream, each with a step that lacks an answer
SHARE = 32  # steps of one of two rivals in the queue
NUM_STEPS = 400  # of one modest caller


@pytest.fixture
async def served():
    """A server whose callers take turns."""
    return Served(takes_turns=True, max_resident_sessions=2000, max_batch_steps=1024)


async def steps_of_stream(served, session_ids, principal):
    """Opens sessions; returns a step of each as a message of Stream."""
    await served.open(*session_ids, principal=principal)
    return [pb.StreamRequest(step=pb.StepRequest(session_id=each, x=(1, 2))) for each in session_ids]


async def steps_of_inference(served, session_ids, principal):
    """Begins sequences; returns a step of each as a message of ModelStreamInfer."""
    for each in session_ids:
        start = infer([[1, 2]], sequence_id=each, sequence_start=True)
        await served.ask(f"{SERVICE}/ModelInfer", start, principal)
    return [infer([[1, 2]], sequence_id=each) for each in session_ids]


class Client:
    """A stream whose transport has another message whenever the server reads."""

    def __init__(self, served, path, messages, principal):
        self._stream = served.stream(path, principal)
        self._messages = itertools.cycle([each.SerializeToString() for each in messages])
        self._num_unanswered = 0
        self._stream.on_change = self.go_on
        self._is_going = False
        self.num_answers = 0

    def go_on(self):
        """Takes what is answered and sends what there is room for."""
        if self._is_going:
            return
        self._is_going = True
        while self._stream.take() is not None:
            self._num_unanswered -= 1
            self.num_answers += 1
        while not self._stream.is_full and self._num_unanswered < NUM_SESSIONS:
            self._num_unanswered += 1
            self._stream.receive(next(self._messages))
        self._is_going = False


@pytest.mark.parametrize(
    ("path", "begin"),
    [
        ("/streamcell.v1.StreamcellService/Stream", steps_of_stream),
        (f"{SERVICE}/ModelStreamInfer", steps_of_inference),
    ],
    ids=["Stream", "ModelStreamInfer"],
)
async def test_fifty_times_the_streams_are_no_larger_share(served, path, begin):
    """Each caller has an eighth of the answers, nearly."""
    clients = collections.defaultdict(list)
    for number in range(GREED):
        for principal in CALLERS if number == 0 else CALLERS[-1:]:
            session_ids = [f"{number}-{each}" for each in range(NUM_SESSIONS)]
            messages = await begin(served, session_ids, principal)
            clients[principal].append(Client(served, path, messages, principal))
    each_client = [client for mine in clients.values() for client in mine]

    def answers(principal):
        return sum(client.num_answers for client in clients[principal])

    while answers(MODEST[0]) < NUM_STEPS:
        for client in each_client:
            client.go_on()
        await turn()
    found = {principal: answers(principal) for principal in CALLERS}
    least = 0.9 * sum(found.values()) / len(CALLERS)
    assert min(found.values()) >= least, found
    assert not served.errors


async def test_fifty_times_the_calls_are_no_larger_share(served):
    """Nor is it of unary steps: each caller calls again when it is answered."""
    answers = collections.Counter()
    has_begun, is_over = asyncio.Event(), asyncio.Event()

    async def call_again_and_again(principal, session_id):
        await served.open(session_id, principal=principal)
        while not is_over.is_set():
            await served.ask("Step", pb.StepRequest(session_id=session_id, x=(1, 2)), principal)
            answers[principal] += not is_over.is_set()
            if answers[MODEST[0]] == NUM_STEPS // 4 and not has_begun.is_set():
                has_begun.set()  # whoever called first had no rival yet
                answers.clear()
            if answers[MODEST[0]] == NUM_STEPS:
                is_over.set()

    async with asyncio.TaskGroup() as group:
        for principal in CALLERS:
            for number in range(NUM_SESSIONS * (GREED if principal == CALLERS[-1] else 1)):
                group.create_task(call_again_and_again(principal, f"{number}"))
    assert min(answers.values()) >= 0.9 * sum(answers.values()) / len(CALLERS), answers


class TestWaitingCalls:
    """A unary step that waits for its caller's turn."""

    @staticmethod
    async def waiting(served):
        """Returns the task of a step of session `s`, which waits for a turn, and the tasks ahead of it."""
        sessions = [f"{number}" for number in range(SHARE)]
        await served.open("s", *sessions, principal="greedy")
        await served.open("other", principal="modest")
        ahead = [ask(served, "modest", "other"), *(ask(served, "greedy", each) for each in sessions)]
        step = ask(served, "greedy", "s")
        await turn()  # in which each submits, or finds that it has to wait
        return step, ahead

    async def test_it_is_answered_after_the_steps_ahead(self, served):
        """It is queued when they are done."""
        order = []
        step, ahead = await self.waiting(served)
        for each in (step, *ahead):
            each.add_done_callback(order.append)
        assert (await step).step_index == 0
        assert order[-1] is step
        assert set(order) == {step, *ahead}

    async def test_it_asks_nothing_once_its_call_is_cancelled(self, served):
        """Nor does it keep the calls behind it waiting."""
        step, ahead = await self.waiting(served)
        behind = ask(served, "greedy", "s")
        step.cancel()
        assert (await behind).step_index == 0
        await asyncio.gather(*ahead)

    async def test_it_finds_no_session_that_was_closed_meanwhile(self, served):
        """It does not end up in the session that has the slot now."""
        step, _ = await self.waiting(served)
        await served.ask("CloseSession", pb.CloseSessionRequest(session_id="s"), "greedy")
        await served.open("new", principal="greedy")
        with pytest.raises(RefusedError):
            await step
        assert (await ask(served, "greedy", "new")).step_index == 0


def ask(served, principal, session_id):
    """Returns the task of a unary step."""
    request = pb.StepRequest(session_id=session_id, x=(1, 2))
    return asyncio.create_task(served.ask("Step", request, principal))

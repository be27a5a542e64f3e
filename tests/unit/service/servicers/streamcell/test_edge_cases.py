"""What once went wrong in the corners, and must not again."""

import json
import pathlib

import numpy as np
import pytest
import torch
from streamcell.v1 import streamcell_pb2 as pb
from torch import Tensor, nn

from service.catalog.catalog import Catalog
from service.catalog.versions import Versions
from service.engine.progress import TIME_ABSENT
from service.engine.work import INDEX_NEXT, Phase, Step
from service.errors import ConfigError, Reason, StreamcellError
from service.rpc.statuses import RefusedError
from service.runtime import artifact, manifest
from service.runtime.manifest import ManifestError
from service.servicers.streamcell.bindings import Bindings
from tests import fakes
from tests.fakes import CPU, Alone, Rig, Served, ending, manifest_of, save, talk


def test_a_time_at_the_end_of_time_touches_nobody_else():
    """A session whose following time does not fit an int64 is refused alone; its batchmates are served."""
    rig = Rig(fakes.recurrence(uses_time=True))
    a, b = rig.open("a", "b")
    rig.step(a, [1, 2], time=2**62)
    rig.step(b, [1, 2], time=5)
    rig.run()
    bad, good = rig.step(a, [1, 2]), rig.step(b, [1, 2])
    rig.run()
    assert good.error is None
    assert bad.error.metadata["field"] == "time_ns"


def test_time_does_not_wrap_round_within_a_block():
    """The same for a block, whose following times wrap to negative ones silently."""
    rig = Rig(fakes.recurrence(uses_time=True))
    (a,) = rig.open("a")
    rig.step(a, [1, 2], time=2**62)
    block = rig.block([a], [[[1, 2]] * 3])
    rig.run()
    assert block.errors[0].metadata["field"] == "time_raw"


async def test_a_bound_session_that_ended_fails_its_entry_alone():
    """A frame over all bound sessions runs the rest, though one ended and another has its slot now."""
    served = Served()
    await served.open("a")
    stream = served.stream()
    await talk(stream, pb.StreamRequest(config=pb.StreamConfig(session_ids=["a"])))
    await served.ask("CloseSession", pb.CloseSessionRequest(session_id="a"))
    await served.open("b")  # takes a's slot
    await talk(stream, pb.StreamRequest(config=pb.StreamConfig(session_ids=["b"])))
    (found,) = await talk(stream, pb.StreamRequest(frame=pb.Frame(x_raw=np.ones(4, "<f4").tobytes())))
    assert found.error.reason == ""
    assert [(one.entry, one.error.reason) for one in found.frame.errors] == [(0, "SESSION_NOT_FOUND")]
    assert np.frombuffer(found.frame.y_raw, "<f4")[2:].tobytes() == Alone(fakes.recurrence()).step([1, 1])


@pytest.mark.parametrize(
    "changes",
    [
        {"step_interval_seconds": float("nan")},
        {"step_interval_seconds": float("inf")},
        {"step_interval_seconds": 1e300},
        {"state": {"size": float("inf"), "layout": []}},
        {"uses_time": "false"},
        {"state": {"size": 3.7, "layout": [{"name": "a", "offset": 0, "size": 3.2}]}},
    ],
    ids=str,
)
def test_numbers_that_are_none_are_damage(changes):
    """Numbers that are not finite, not whole, or no truth values are refused as damage."""
    with pytest.raises(ManifestError):
        manifest.parse(json.dumps(manifest_of(**changes)))


def step_of(slot, on_done):
    """Returns a step of a session."""
    return Step(slot, 0, bytes(8), time=TIME_ABSENT, index=INDEX_NEXT, arrived_ns=0, on_done=on_done)


def test_blocks_are_served_though_single_steps_fill_every_batch():
    """With max_batch_steps single steps ready in every iteration a block still gets its turn."""
    rig = Rig(max_batch_steps=4)
    slots = rig.open(*"abcde")

    def again(work):
        rig.engine.submit(step_of(work.slot, again))

    for slot in slots[:4]:
        rig.engine.submit(step_of(slot, again))
    block = rig.block([slots[4]], [[[1, 1]]])
    for _ in range(100):
        rig.loop.turn()
    assert block.phase is Phase.DONE


async def test_an_open_that_is_refused_leaves_no_session_behind():
    """OpenSession on a full queue opens and answers, or is refused and opens nothing."""
    served = Served(max_queue_steps=1)
    await served.open("a")
    (engine,) = served.engines
    engine.submit(step_of(0, lambda _: None))
    try:
        found = await served.ask("OpenSession", pb.OpenSessionRequest())
        assert found.created  # answering without queueing would be right, too
    except RefusedError:
        assert len(engine.sessions) == 1


def test_a_manifest_that_is_not_utf8(tmp_path):
    """Is told in one line with the path, not by a UnicodeDecodeError."""
    path = tmp_path / "model.pt"
    torch.jit.save(
        torch.jit.script(fakes.Recurrence()), str(path), _extra_files={"manifest.json": b"\xff\xfe{"}
    )
    with pytest.raises(ConfigError, match=r"model\.pt: "):
        artifact.load("m", "1", path, CPU)


class Raises(fakes.Recurrence):
    """A script that refuses its input itself."""

    @torch.jit.export
    def step(self, x: Tensor, time: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Is the contract's step, in a way of its own."""
        assert x.size(1) == 7, "seven inputs"
        return x, state


class ReturnsThree(nn.Module):
    """A script whose step returns three tensors."""

    @torch.jit.export
    def step(self, x: Tensor, time: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Is the contract's step, in a way of its own."""
        return x, state, state

    @torch.jit.export
    def scan(self, x: Tensor, time: Tensor, lengths: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Is the contract's scan, in a way of its own."""
        return x, state

    @torch.jit.export
    def forecast(self, state: Tensor, time: Tensor, horizon: int, future: Tensor) -> Tensor:
        """Is the contract's forecast, in a way of its own."""
        return torch.zeros(state.size(0), horizon, 2)


class Doubles(ReturnsThree):
    """A script that computes in float64: the first step's scatter would fail, at every client's step."""

    @torch.jit.export
    def step(self, x: Tensor, time: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Is the contract's step, in a way of its own."""
        return x.double(), state.double()


@pytest.mark.parametrize("module", [Raises(), ReturnsThree(), Doubles()], ids=lambda one: type(one).__name__)
def test_a_script_that_is_not_the_contracts(tmp_path: pathlib.Path, module):
    """Whatever a script's try-out raises or returns is a one-line ConfigError with the path."""
    path = save(tmp_path / "model.pt", module)
    with pytest.raises(ConfigError, match=r"model\.pt: ") as caught:
        artifact.load("m", "1", path, CPU)
    assert "\n" not in str(caught.value)


async def test_a_client_that_was_done_is_not_sent_elsewhere():
    """A stream half-closed before the drain, all of it answered, ends with OK."""
    served = Served()
    await served.open("a")
    stream = served.stream()
    request = pb.StreamRequest(step=pb.StepRequest(session_id="a", x=[1, 2]))
    stream.receive(request.SerializeToString())
    stream.half_close()
    served.catalog.is_draining = True
    served.router.drain()
    assert await ending(stream) is None


async def test_the_field_at_fault_is_the_one_given():
    """A frame that names a session twice by number names session_raw."""
    rig = Rig()
    house = Catalog(Versions([rig.engine]))
    house.open("", "a", "")
    bindings = Bindings(house, "", 5)
    bindings.bind(["a"])
    with pytest.raises(StreamcellError) as caught:
        bindings.numbered(np.array([0, 0]))
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert caught.value.metadata["field"] == "session_raw"


def test_a_cell_call_has_max_batch_steps_at_most():
    """A group of entries formed in an empty batch and resumed beside single steps has a call of its own."""
    rig = Rig(max_batch_steps=4)
    slots = rig.open(*"abcdefgh")
    rig.block(slots[:4], [[[1, 1]] * 3] * 4)
    rig.loop.turn()
    for slot in slots[4:7]:
        rig.step(slot, [0, 0])
    batch = rig.engine._scheduler.schedule()
    rows = len(batch.steps) + sum(len(piece.entries) for piece in batch.pieces if not piece.block.is_long)
    assert rows <= 4

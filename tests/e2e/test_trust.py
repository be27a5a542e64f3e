"""What a real server trusts, on either front: the artifacts on its list, and the snapshots of its keys."""

import hashlib
import shutil
import signal
import subprocess
import sys

import grpc
import pytest
from grpc_status import rpc_status
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

from service.engine.snapshot_keys import SnapshotKeys
from tests import fakes
from tests.e2e.conftest import BOUND_SECONDS, ROOT

NAME = "recurrence"
FIRST, SECOND = bytes(range(32)).hex(), bytes(range(1, 33)).hex()


@pytest.fixture
def files(tmp_path):
    """A folder with version 1, version 2 beside it, a list that has version 1 alone, and a key."""
    fakes.save(tmp_path / "models" / NAME / "1" / "model.pt")
    fakes.save(tmp_path / "2.pt", fakes.Sharper())
    allow(tmp_path, "models/recurrence/1/model.pt")
    (tmp_path / "keys").write_text(f"{FIRST}\n")
    return tmp_path


def allow(folder, *names):
    """Writes the list, as sha256sum would."""
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "allowed.sha256").write_text("".join(lines))


def flags(folder):
    """Returns the flags that name the files."""
    found = ["--models", f"{folder}/models", "--models-poll-seconds", "0", "--reload-seconds", "0"]
    return [
        *found,
        "--device",
        "cpu",
        "--allowed-artifacts",
        f"{folder}/allowed.sha256",
        "--snapshot-key",
        f"{folder}/keys",
    ]


def versions(stub):
    """Returns the versions in memory."""
    models = stub.ListModels(pb.ListModelsRequest(), timeout=BOUND_SECONDS).models
    return {model.version for model in models}


def refusal(stub, request):
    """Returns the words with which a restore is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        stub.RestoreSession(request, timeout=BOUND_SECONDS)
    assert rpc_status.from_call(caught.value).code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    return caught.value.details()


def test_what_is_not_vouched_for_is_refused_until_it_is(start_server, files):
    """A version off the list is rejected, an unsigned snapshot refused; SIGHUP reads list and keys again."""
    server = start_server(*flags(files))
    with grpc.insecure_channel(server.event("serving")["listen"]) as channel:
        stub = stubs.StreamcellServiceStub(channel)
        target = files / "models" / NAME / "2" / "model.pt"
        target.parent.mkdir()
        shutil.copy(files / "2.pt", target)
        server.signal(signal.SIGHUP)
        rejected = server.event("model_rejected")
        assert hashlib.sha256(target.read_bytes()).hexdigest() in rejected["why"]
        assert versions(stub) == {"1"}
        stub.Step(pb.StepRequest(session_id="s", step_index=0, x=[1.0, 2.0]), timeout=BOUND_SECONDS)
        taken = stub.SnapshotSession(pb.SnapshotSessionRequest(session_id="s"), timeout=BOUND_SECONDS)
        signed = pb.RestoreSessionRequest(snapshot=taken.snapshot, session_id="restored")
        bare = pb.RestoreSessionRequest(snapshot=taken.snapshot[48:], session_id="bare")
        assert "it is not signed" in refusal(stub, bare)
        assert stub.RestoreSession(signed, timeout=BOUND_SECONDS).session.next_step_index == 1
        allow(files, "models/recurrence/1/model.pt", "2.pt")
        (files / "new").write_text(f"{SECOND}\n")
        (files / "new").replace(files / "keys")
        server.signal(signal.SIGHUP)
        server.event("file_reloaded")
        assert "signed with another key" in refusal(stub, signed)
        server.event("model_loaded")
        assert versions(stub) >= {"2"}
    server.signal()
    assert server.wait() == 0


def test_nothing_starts_on_what_is_not_on_the_list(start_server, files):
    """The server ends with status 2, and says which hash it lacks."""
    allow(files, "2.pt")
    server = start_server(*flags(files))
    assert server.wait() == 2
    text = "\n".join(server.lines)
    assert hashlib.sha256((files / "models" / NAME / "1" / "model.pt").read_bytes()).hexdigest() in text
    assert "--allowed-artifacts" in text


def test_the_command_makes_a_key_that_the_server_takes(tmp_path):
    """What it prints goes into the file as it is."""
    command = [sys.executable, "-m", "service", "snapshot-key"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=BOUND_SECONDS)
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "keys").write_text(done.stdout)
    keys = SnapshotKeys(str(tmp_path / "keys"))
    assert keys.verified(keys.sign(b"a session")) == b"a session"

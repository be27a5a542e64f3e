"""New versions of a model under load: no step fails, whatever comes into the models' folder."""

import contextlib
import dataclasses
import shutil
import signal
import threading

import grpc
import numpy as np
import pytest
import torch
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

from service.runtime import artifact
from tests import fakes
from tests.e2e.conftest import BOUND_SECONDS, samples
from tests.fakes import bits

X = np.random.default_rng(7).standard_normal((64, 2)).astype(np.float32)
NAME = "recurrence"
MANY = 40  # steps of each client before and after a change


@pytest.fixture
def models(tmp_path):
    """Returns the models' folder, with version 1; the file for version 2 is beside the folder."""
    fakes.save(tmp_path / "models" / NAME / "1" / "model.pt")
    fakes.save(tmp_path / "2.pt", fakes.Sharper())
    return tmp_path / "models"


def put(models, version, source):
    """Copies a file into the folder as a version."""
    path = models / NAME / version / "model.pt"
    path.parent.mkdir()
    shutil.copy(source, path)
    return path


@pytest.fixture
def serve(start_server, models):
    """Starts a server that looks at the folder on SIGHUP alone, and returns it with a stub."""
    with contextlib.ExitStack() as stack:

        def serve(*flags):
            bounds = ["--max-batch-steps", "64", "--models-poll-seconds", "0"]
            server = start_server("--models", str(models), *bounds, *flags)
            server.serving = server.event("serving")
            channel = stack.enter_context(grpc.insecure_channel(server.serving["listen"]))
            return server, stubs.StreamcellServiceStub(channel)

        yield serve


@dataclasses.dataclass
class Client:
    """One session that is stepped until it is stopped; `ys` has its predictions, `failed` its error."""

    session_id: str
    kind: str
    failed: BaseException | None = None

    def __post_init__(self):
        self.ys = []
        self.is_stopping = threading.Event()
        self._has_grown = threading.Condition()

    def run(self, stub):
        """Steps the session until it is stopped, or fails."""
        try:
            {"unary": self._unary, "stream": self._stream, "frame": self._frame}[self.kind](stub)
        except BaseException as error:
            self.failed = error
        with self._has_grown:
            self.is_stopping.set()
            self._has_grown.notify_all()

    def _record(self, y):
        with self._has_grown:
            self.ys.append(bits(y))
            self._has_grown.notify_all()

    def wait_for_steps(self, count=MANY):
        """Waits for `count` more predictions; raises the error if the client fails."""
        with self._has_grown:
            wanted = len(self.ys) + count
            assert self._has_grown.wait_for(
                lambda: len(self.ys) >= wanted or self.is_stopping.is_set(), BOUND_SECONDS
            )
        assert self.failed is None, self.failed

    def _unary(self, stub):
        while not self.is_stopping.is_set():
            index = len(self.ys)
            request = pb.StepRequest(session_id=self.session_id, x=X[index % 64], step_index=index)
            self._record(stub.Step(request, timeout=BOUND_SECONDS).y)

    def _requests(self, window):
        """Yields requests while some are under way, so that the session is never idle."""
        yield pb.StreamRequest(config=pb.StreamConfig(session_ids=[self.session_id]))
        index = 0
        while not self.is_stopping.is_set():
            window.acquire()
            row = X[index % 64]
            if self.kind == "frame":
                yield pb.StreamRequest(frame=pb.Frame(x_raw=row.tobytes()))
            else:
                yield pb.StreamRequest(step=pb.StepRequest(session=0, x=row))
            index += 1

    def _stream(self, stub):
        window = threading.Semaphore(3)
        for answer in stub.Stream(self._requests(window), timeout=BOUND_SECONDS):
            kind = answer.WhichOneof("response")
            if kind == "config":
                continue
            assert kind in ("step", "frame"), answer
            if kind == "frame":
                assert not answer.frame.errors, answer
            y = answer.step.y if kind == "step" else np.frombuffer(answer.frame.y_raw, np.float32)
            self._record(y)
            window.release()

    _frame = _stream


@contextlib.contextmanager
def load(stub, prefix):
    """Runs clients of every kind, each on a session of its own."""
    clients = [
        Client(f"{prefix}-{kind}-{number}", kind) for kind in ("unary", "stream", "frame") for number in "ab"
    ]
    for client in clients:
        stub.OpenSession(pb.OpenSessionRequest(session_id=client.session_id), timeout=BOUND_SECONDS)
    threads = [threading.Thread(target=client.run, args=(stub,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        for client in clients:
            client.wait_for_steps()
        yield clients
    finally:
        for client in clients:
            client.is_stopping.set()
        for thread in threads:
            thread.join(BOUND_SECONDS)
        assert [client.failed for client in clients] == [None] * len(clients)


def version_of(stub, session_id):
    """Returns the version that a session runs on."""
    request = pb.GetSessionRequest(session_id=session_id)
    return stub.GetSession(request, timeout=BOUND_SECONDS).session.model_version


def opened(stub, session_id, **fields):
    """Opens a session and returns the version that it runs on."""
    request = pb.OpenSessionRequest(session_id=session_id, **fields)
    return stub.OpenSession(request, timeout=BOUND_SECONDS).session.model_version


def statuses(stub):
    """Returns the status of each version."""
    models = stub.ListModels(pb.ListModelsRequest(), timeout=BOUND_SECONDS).models
    return {model.version: pb.ModelStatus.Name(model.status)[13:] for model in models}


def sample(server, name, **labels):
    """Returns a value of a metric; None if there is no such sample."""
    found = samples(server.serving["metrics"], name)
    found = [value for given, value in found if labels.items() <= given.items()]
    return found[0] if found else None


def alone(models, version="1"):
    """Returns a session of a version that is computed alone, without a server."""
    path = models / NAME / version / "model.pt"
    return fakes.Alone(artifact.load(NAME, version, path, torch.device("cpu")))


def folded(session, num_steps):
    """Returns a session's predictions for the first steps of a client."""
    return [session.step(X[index % 64]) for index in range(num_steps)]


def test_a_new_version_under_load(serve, models, tmp_path):
    """No step fails; sessions stay on the old version, new sessions get the new one; the old one leaves."""
    server, stub = serve()
    with load(stub, "old") as clients:
        put(models, "2", tmp_path / "2.pt")
        server.signal(signal.SIGHUP)
        assert server.event("model_loaded")["model"] == f"{NAME}/2"
        assert server.event("model_retiring")["model"] == f"{NAME}/1"
        assert opened(stub, "new") == "2"
        assert statuses(stub) == {"1": "RETIRING", "2": "SERVING"}
        with load(stub, "young") as young:
            for client in clients:
                client.wait_for_steps()
        assert {version_of(stub, client.session_id) for client in clients} == {"1"}
        assert {version_of(stub, client.session_id) for client in young} == {"2"}
    for client in clients:
        assert client.ys == folded(alone(models), len(client.ys))
    for client in young:
        assert client.ys == folded(alone(models, "2"), len(client.ys))
    for client in clients:
        stub.CloseSession(pb.CloseSessionRequest(session_id=client.session_id), timeout=BOUND_SECONDS)
    assert server.event("model_left")["model"] == f"{NAME}/1"
    assert statuses(stub) == {"2": "SERVING"}
    assert sample(server, "streamcell_model_info", version="1") is None
    assert sample(server, "streamcell_model_info", version="2") == 1
    server.signal()
    assert server.wait() == 0


@pytest.mark.parametrize("store", ["memory:", "sqlite:sessions.db"])
def test_sessions_migrate_between_two_steps(serve, models, tmp_path, store):
    """No step fails; each session continues on the new version with its state from the old one."""
    store = store.replace("sessions.db", str(tmp_path / "sessions.db"))
    often = ["--checkpoint-interval-seconds", "0.01"]
    server, stub = serve("--on-new-version", "migrate", "--store", store, *often)
    with load(stub, "s") as clients:
        put(models, "2", tmp_path / "2.pt")
        server.signal(signal.SIGHUP)
        assert server.event("model_left")["model"] == f"{NAME}/1"
        for client in clients:
            client.wait_for_steps()
        assert {version_of(stub, client.session_id) for client in clients} == {"2"}
    for client in clients:
        old, new = alone(models), alone(models, "2")
        num_old = 0
        while client.ys[num_old] == old.step(X[num_old % 64]):
            new.state = old.state
            num_old += 1
        assert num_old >= MANY
        rest = [new.step(X[index % 64]) for index in range(num_old, len(client.ys))]
        assert len(rest) >= MANY
        assert client.ys[num_old:] == rest
    assert sample(server, "streamcell_sessions_migrated_total", version="2") == len(clients)


def test_a_bad_file_is_logged_and_changes_nothing(serve, models, tmp_path):
    """A second bad file is logged again; a good file is loaded then, and serving goes on throughout."""
    server, stub = serve()
    whole = (tmp_path / "2.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    with load(stub, "s") as clients:
        path = put(models, "2", tmp_path / "half.pt")
        for _ in range(2):
            server.signal(signal.SIGHUP)
            rejected = server.event("model_rejected")
            assert rejected["model"] == f"{NAME}/2"
            assert "not a readable TorchScript file" in rejected["why"]
            assert opened(stub, "s-unary-a") == "1"
            assert statuses(stub) == {"1": "SERVING"}
            path.write_bytes(path.read_bytes() + b"more")
        assert sample(server, "streamcell_model_rejected_total") == 2
        shutil.copy(tmp_path / "2.pt", path)
        server.signal(signal.SIGHUP)
        assert server.event("model_retiring")["successor"] == f"{NAME}/2"
        for client in clients:
            client.wait_for_steps()


def test_a_new_version_is_noticed_without_a_signal(start_server, models, tmp_path):
    """The server polls the folder."""
    server = start_server("--models", str(models), "--models-poll-seconds", "0.05", "--max-batch-steps", "4")
    server.event("serving")
    put(models, "2", tmp_path / "2.pt")
    assert server.event("model_retiring")["successor"] == f"{NAME}/2"
    assert server.event("model_left")["model"] == f"{NAME}/1"


def test_every_worker_loads_a_new_version(serve, models, tmp_path):
    """SIGHUP to the server reaches its workers, and each worker finds a session of an old version."""
    server, stub = serve("--workers", "2", "--checkpoint-interval-seconds", "0.05")
    assert opened(stub, "s") == "1"
    put(models, "2", tmp_path / "2.pt")
    server.signal(signal.SIGHUP)
    for _ in range(2):
        assert server.event("model_loaded")["model"] == f"{NAME}/2"
    expected = folded(alone(models), 20)
    for number in range(20):  # a connection for each, so that they spread over the workers
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(server.serving["listen"], options) as channel:
            other = stubs.StreamcellServiceStub(channel)
            assert opened(other, f"new{number}") == "2"
            request = pb.OpenSessionRequest(session_id="s")
            session = other.OpenSession(request, timeout=BOUND_SECONDS).session
            assert session.model_version == "1"
            for index in range(session.next_step_index, number + 1):
                step = pb.StepRequest(session_id="s", x=X[index], step_index=index)
                assert bits(other.Step(step, timeout=BOUND_SECONDS).y) == expected[index]

"""Who may come in, on both fronts and by every API: certificates, tokens, and whose a session is."""

import asyncio
import base64
import dataclasses
import json
import time
from urllib.parse import quote

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf import descriptor_pool, json_format
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc import aio
from grpc_health.v1 import health_pb2
from grpc_status.rpc_status import from_call
from streamcell.inference import open_inference_pb2 as inference
from streamcell.v1 import streamcell_pb2 as pb
from streamcell.v1 import streamcell_pb2_grpc as stubs

from service.config import Config
from service.errors import ConfigError
from service.fronts.envoy.wire import frame
from service.identity.tokens import issue
from service.server import Server
from tests.certificates import Authority
from tests.inference import infer
from tests.integration import web
from tests.integration.conftest import BOUND_SECONDS, answer, refusal, settings
from tests.subjects import SUBJECTS

OURS, OPEN_INFERENCE = "/streamcell.v1.StreamcellService/", "/inference.GRPCInferenceService/"
PUBLIC = {
    "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/List", "/grpc.health.v1.Health/Watch",
    f"{OPEN_INFERENCE}ServerLive", f"{OPEN_INFERENCE}ServerReady",
}  # fmt: skip
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
SERVICES = ("streamcell.v1.StreamcellService", "inference.GRPCInferenceService", HEALTH)
MODEL = "mackey-glass"


def methods():
    """Yields the path and descriptor of every method that the server has."""
    for service in SERVICES:
        for method in descriptor_pool.Default().FindServiceByName(service).methods:
            yield f"/{service}/{method.name}", method


METHODS = dict(methods())
UNARY = [path for path, method in METHODS.items() if not method.server_streaming]
STREAMING = [path for path, method in METHODS.items() if method.server_streaming]


def request_about(path, session_id, snapshot=b""):
    """Returns a request of a method about a session."""
    kind = GetMessageClass(METHODS[path].input_type)
    name = path.rpartition("/")[2]
    if name == "ModelInfer":
        return infer([[0.5]], model=MODEL, sequence_id=session_id)
    fields = {field.name for field in kind.DESCRIPTOR.fields}
    given = {
        "session_id": session_id,
        "model": MODEL if name == "OpenSession" else "",
        "mode": pb.OPEN_MODE_RESUME if name == "OpenSession" else 0,
        "x": [0.5] if name in ("Step", "Prime") else [],
        "horizon_steps": 2,
        "snapshot": snapshot,
        "name": MODEL,
        "model_name": MODEL,
    }
    return kind(**{key: value for key, value in given.items() if key in fields and value})


@dataclasses.dataclass
class Outcome:
    """How a call ended, as far as its caller can see; texts have X for the session's id."""

    code: str
    message: str
    details: list[tuple[str, dict[str, str]]]
    response: bytes = b""


class Caller:
    """Calls methods by path with one `authorization`; each API is a class of its own."""

    def __init__(self, target, authorization):
        self.target = target
        self.authorization = authorization

    async def call(self, path, message, session_id=""):
        """Returns the outcome of a call."""
        raise NotImplementedError


def details_of(status, session_id):
    """Returns reasons and metadata of a status."""
    found = []
    for detail in status.details if status else ():
        info = ErrorInfo()
        if detail.Unpack(info):
            metadata = {key: value.replace(session_id or "\0", "X") for key, value in info.metadata.items()}
            found.append((info.reason, metadata))
    return found


class GrpcCaller(Caller):
    """By gRPC."""

    async def call(self, path, message, session_id=""):
        """Returns the outcome of a call."""
        metadata = [("authorization", self.authorization)] if self.authorization else None
        async with aio.insecure_channel(self.target) as channel:
            method = channel.unary_unary(path)
            try:
                raw = await method(message.SerializeToString(), metadata=metadata, timeout=BOUND_SECONDS)
            except aio.AioRpcError as error:
                text = (error.details() or "").replace(session_id or "\0", "X")
                return Outcome(error.code().name, text, details_of(from_call(error), session_id))
            return Outcome("OK", "", [], raw)


class ConnectCaller(Caller):
    """By Connect, with JSON."""

    async def call(self, path, message, session_id=""):
        """Returns the outcome of a call."""
        headers = {"authorization": self.authorization} if self.authorization else {}
        given = json_format.MessageToDict(message, preserving_proto_field_name=True)
        reply = await web.post(self.target, path, given, **headers)
        if reply.status == 200:
            return Outcome("OK", "", [], reply.body)
        found = reply.json
        details = [
            (each["debug"]["reason"], each["debug"].get("metadata", {}))
            for each in found.get("details", ())
            if "reason" in each["debug"]
        ]
        shown = json.loads(json.dumps(details).replace(session_id or "\0", "X"))
        text = found.get("message", "").replace(session_id or "\0", "X")
        return Outcome(found["code"].upper(), text, [(reason, metadata) for reason, metadata in shown])


class GrpcWebCaller(Caller):
    """By gRPC-Web."""

    async def call(self, path, message, session_id=""):
        """Returns the outcome of a call."""
        headers = {"authorization": self.authorization} if self.authorization else {}
        body = frame(message.SerializeToString())
        reply = await web.request(self.target, path, body, content_type=web.GRPC_WEB, **headers)
        messages, trailers = reply.frames
        code = grpc_code(int(trailers["grpc-status"]))
        status = Status.FromString(decoded(trailers["grpc-status-details-bin"])) if code != "OK" else None
        text = trailers.get("grpc-message", "").replace(session_id or "\0", "X")
        return Outcome(code, text, details_of(status, session_id), messages[0] if messages else b"")


def decoded(text):
    """Returns the bytes of a header with bytes."""
    return base64.b64decode(text + "=" * (-len(text) % 4))


def grpc_code(number):
    """Returns a code's name."""
    return next(code.name for code in grpc.StatusCode if code.value[0] == number)


APIS = {"grpc": GrpcCaller, "connect": ConnectCaller, "grpc-web": GrpcWebCaller}


@dataclasses.dataclass
class Tokens:
    """Headers `authorization` of all kinds."""

    alice: str
    bob: str
    signed: str
    refused: dict[str, str]


def make_tokens(folder):
    """Returns headers, and the settings by which a server knows them."""
    made = {name: issue(name, float("inf")) for name in ("alice", "bob")}
    stale, record = issue("alice", time.time() - 1)
    lines = [each.line() for _, each in made.values()] + [record.line()]
    (folder / "tokens").write_text("\n".join(lines))
    key, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    (folder / "keys.pem").write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))

    def signed(signing_key=key, seconds=3600, **changes):
        claims = {"sub": "alice", "aud": "streamcell", "exp": time.time() + seconds, **changes}
        return f"Bearer {jwt.encode(claims, signing_key, 'ES256')}"

    alice, bob = (f"Bearer {token}" for token, _ in made.values())
    refused = {
        "no token": "",
        "wrong token": alice[:-1] + ("A" if alice[-1] != "A" else "B"),
        "expired token": f"Bearer {stale}",
        "no scheme": alice.removeprefix("Bearer "),
        "two tokens": f"{alice},{alice}",
        "signed by another": signed(other),
        "signed, expired": signed(seconds=-60),
        "signed, for others": signed(aud="other"),
    }
    given = {
        "tokens": str(folder / "tokens"),
        "jwt_keys": str(folder / "keys.pem"),
        "jwt_audience": "streamcell",
    }
    return Tokens(alice, bob, signed(), refused), given


@pytest.fixture
async def doors(start, front, tmp_path):
    """A server that knows tokens, headers of all kinds, and the APIs of its front."""
    tokens, given = make_tokens(tmp_path)
    peer = await start(**given)
    apis = APIS if front == "envoy" else {"grpc": GrpcCaller}
    return str(peer.server.listen), tokens, apis, peer


async def open_as(target, authorization, session_id):
    """Opens a session, and applies two steps."""
    caller = GrpcCaller(target, authorization)
    opened = await caller.call(
        f"{OURS}OpenSession", pb.OpenSessionRequest(session_id=session_id, model=MODEL)
    )
    assert opened.code == "OK"
    for _ in range(2):
        assert (await caller.call(f"{OURS}Step", pb.StepRequest(session_id=session_id, x=[0.5]))).code == "OK"
    snapshot = await caller.call(f"{OURS}SnapshotSession", pb.SnapshotSessionRequest(session_id=session_id))
    return pb.SnapshotSessionResponse.FromString(snapshot.response)


class TestTokens:
    """Callers with, without, and with the wrong token."""

    async def test_a_caller_without_a_valid_token_learns_nothing(self, doors):
        """Every method, unary and streaming, by every API: the same error whatever is wrong; probes apart."""
        target, tokens, apis, _ = doors
        await open_as(target, tokens.alice, "mine")
        seen = set()
        for path in UNARY:
            for kind in apis.values():
                for header in tokens.refused.values():
                    found = await kind(target, header).call(path, request_about(path, "mine"))
                    if path in PUBLIC:
                        assert found.code == "OK", path
                        continue
                    assert (found.code, found.details) == ("UNAUTHENTICATED", [("UNAUTHENTICATED", {})]), path
                    assert found.response == b""
                    seen.add(found.message)
        async with aio.insecure_channel(target) as channel:
            for path in STREAMING:
                for header in tokens.refused.values():
                    call = channel.stream_stream(path)(
                        metadata=[("authorization", header)] if header else None
                    )
                    if path in PUBLIC:
                        await call.write(b"")
                        assert await asyncio.wait_for(call.read(), BOUND_SECONDS) != aio.EOF
                        call.cancel()
                        continue
                    assert (
                        await asyncio.wait_for(call.code(), BOUND_SECONDS) is grpc.StatusCode.UNAUTHENTICATED
                    )
                    seen.add(await call.details())
        assert len(seen) == 1
        assert seen.pop().startswith("the call shows no token that is valid here")

    async def test_another_callers_session_is_like_one_that_never_was(self, doors):
        """Each method that names a session ends alike for bob, by every API; alice's stands as it stood."""
        target, tokens, apis, _ = doors
        before = await open_as(target, tokens.alice, "mine")
        named = [path for path in UNARY if "session_id" in METHODS[path].input_type.fields_by_name]
        named.append(f"{OPEN_INFERENCE}ModelInfer")
        assert len(named) == 11
        for path in named:
            if path.endswith("RestoreSession"):
                continue  # names a session that is to be
            for kind in apis.values():
                others = kind(target, tokens.bob)
                theirs = await others.call(path, request_about(path, "mine"), "mine")
                never = await others.call(path, request_about(path, "gone"), "gone")
                assert theirs == never, path
                assert theirs.code == "NOT_FOUND", path
                assert [reason for reason, _ in theirs.details] == ["SESSION_NOT_FOUND"], path
        caller = GrpcCaller(target, tokens.alice)
        after = await caller.call(f"{OURS}SnapshotSession", pb.SnapshotSessionRequest(session_id="mine"))
        assert pb.SnapshotSessionResponse.FromString(after.response).session.next_step_index == 2
        assert before.session.next_step_index == 2

    async def test_another_callers_session_is_not_found_on_streams(self, doors):
        """By id, as a binding, and in frames."""
        target, tokens, _, _ = doors
        await open_as(target, tokens.alice, "mine")
        await open_as(target, tokens.bob, "own")
        async with aio.insecure_channel(target) as channel:
            stub = stubs.StreamcellServiceStub(channel)
            call = stub.Stream(metadata=[("authorization", tokens.bob)])
            for session_id in ("mine", "gone"):
                await call.write(pb.StreamRequest(step=pb.StepRequest(session_id=session_id, x=[0.5])))
            mine, gone = [(await answer(call)).error for _ in range(2)]
            assert mine.reason == gone.reason == "SESSION_NOT_FOUND"
            assert mine.message.replace("mine", "gone") == gone.message
            pair = pb.Frame(session_ids=["own", "mine", "gone"], x_raw=b"\0\0\0\x3f" * 3)
            await call.write(pb.StreamRequest(frame=pair))
            errors = (await answer(call)).frame.errors
            assert [(each.entry, each.error.reason) for each in errors] == [
                (1, "SESSION_NOT_FOUND"),
                (2, "SESSION_NOT_FOUND"),
            ]
            bound = stub.Stream(metadata=[("authorization", tokens.bob)])
            await bound.write(pb.StreamRequest(config=pb.StreamConfig(session_ids=["mine"])))
            assert (await answer(bound)).error.reason == "SESSION_NOT_FOUND"
            infer_call = channel.stream_stream(
                f"{OPEN_INFERENCE}ModelStreamInfer",
                inference.ModelInferRequest.SerializeToString,
                inference.ModelStreamInferResponse.FromString,
            )(metadata=[("authorization", tokens.bob)])
            await infer_call.write(infer([[0.5]], model=MODEL, sequence_id="mine"))
            response = await asyncio.wait_for(infer_call.read(), BOUND_SECONDS)
            assert "sequence 'mine' of mackey-glass/1 is not live" in response.error_message

    async def test_the_right_token_serves_by_every_api(self, doors):
        """A token of the file and a signed one with the same principal reach the same session."""
        target, tokens, apis, _ = doors
        await open_as(target, tokens.alice, "mine")
        for header in (tokens.alice, tokens.signed):
            for kind in apis.values():
                caller = kind(target, header)
                for path in (f"{OURS}GetSession", f"{OURS}Step", f"{OURS}Forecast", f"{OURS}ListModels"):
                    found = await caller.call(path, request_about(path, "mine"))
                    assert found.code == "OK", (path, found)
        opened = await GrpcCaller(target, tokens.bob).call(
            f"{OURS}OpenSession", pb.OpenSessionRequest(session_id="mine", model=MODEL)
        )
        assert pb.OpenSessionResponse.FromString(opened.response).created

    async def test_refusals_are_counted_by_why(self, doors):
        """An operator sees whether tokens are missing, unknown or expired."""
        target, tokens, _, peer = doors
        for header in tokens.refused.values():
            await GrpcCaller(target, header).call(f"{OURS}ListModels", pb.ListModelsRequest())
        samples = await peer.samples()
        found = {
            dict(labels)["why"]: value
            for (name, labels), value in samples.items()
            if name == "streamcell_unauthenticated_total"
        }
        assert found == {"missing": 2, "unknown": 4, "expired": 2, "certificate": 0}


class TestCertificates:
    """TLS with client certificates."""

    async def test_a_session_belongs_to_the_one_whom_the_certificate_names(self, start, tmp_path):
        """The table of awkward subjects: two share a session exactly if they share the principal."""
        authority = Authority()
        cert, key = authority.server().save(tmp_path, "server")
        (tmp_path / "ca.pem").write_bytes(authority.pem)
        peer = await start(tls_cert=cert, tls_key=key, tls_client_ca=str(tmp_path / "ca.pem"))
        seen, found, expected = set(), {}, {}
        for title, subject, names, principal in SUBJECTS:
            issued = authority.issue(subject, *names)
            credentials = grpc.ssl_channel_credentials(authority.pem, issued.key, issued.certificate)
            target = f"localhost:{peer.server.listen.port}"
            async with aio.secure_channel(target, credentials) as channel:
                stub = stubs.StreamcellServiceStub(channel)
                try:
                    opened = await stub.OpenSession(
                        pb.OpenSessionRequest(session_id="mine", model=MODEL), timeout=BOUND_SECONDS
                    )
                    found[title] = "new" if opened.created else "known"
                except aio.AioRpcError as error:
                    found[title] = error.code().name
            if principal is None:
                expected[title] = "UNAUTHENTICATED"
            else:
                expected[title] = "known" if principal in seen else "new"
                seen.add(principal)
        assert found == expected

    async def test_a_client_cannot_forge_the_header_that_has_its_certificate(self, peer, start, tmp_path):
        """What Envoy forwards replaces what a client sends; without certificates the header says nothing."""
        authority = Authority()
        cert, key = authority.server().save(tmp_path, "server")
        (tmp_path / "ca.pem").write_bytes(authority.pem)
        tls = await start(tls_cert=cert, tls_key=key, tls_client_ca=str(tmp_path / "ca.pem"))
        alice, bob = authority.client("alice"), authority.client("bob")
        forged = [("x-forwarded-client-cert", f'Hash=00;Cert="{quote(alice.certificate.decode(), safe="")}"')]
        target = f"localhost:{tls.server.listen.port}"
        for issued in (alice, bob):
            credentials = grpc.ssl_channel_credentials(authority.pem, issued.key, issued.certificate)
            async with aio.secure_channel(target, credentials) as channel:
                stub = stubs.StreamcellServiceStub(channel)
                opened = await stub.OpenSession(
                    pb.OpenSessionRequest(session_id="mine", model=MODEL), metadata=forged
                )
                assert opened.created
        session_id = await peer.open()
        resumed = pb.OpenSessionRequest(session_id=session_id, mode=pb.OPEN_MODE_RESUME)
        assert not (await peer.stub.OpenSession(resumed, metadata=forged)).created

    async def test_a_client_without_a_certificate_does_not_come_in(self, start, tmp_path):
        """TLS ends the connection before a call."""
        authority, other = Authority(), Authority("another")
        cert, key = authority.server().save(tmp_path, "server")
        (tmp_path / "ca.pem").write_bytes(authority.pem)
        peer = await start(tls_cert=cert, tls_key=key, tls_client_ca=str(tmp_path / "ca.pem"))
        mallory = other.client("alice")
        for pair in ((None, None), (mallory.key, mallory.certificate)):
            credentials = grpc.ssl_channel_credentials(authority.pem, *pair)
            async with aio.secure_channel(f"localhost:{peer.server.listen.port}", credentials) as channel:
                stub = stubs.StreamcellServiceStub(channel)
                found = await refusal(stub.ListModels(pb.ListModelsRequest()))
                assert found.code == "UNAVAILABLE"


async def test_a_server_needs_what_its_settings_name(tmp_path):
    """A file of tokens that is not there, or has something else in it, is told before the server listens."""
    with pytest.raises(ConfigError, match=r"^--tokens: .*: No such file"):
        Server(settings(tokens=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match=r"^--jwt-keys: goes with --jwt-audience"):
        Config(jwt_keys="keys.json")

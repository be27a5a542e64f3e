"""The protocols for curl and browsers, Connect and gRPC-Web, on the envoy front alone."""

import asyncio
import base64
import gzip
import http.client
import json

import numpy as np
import pytest
import pytest_asyncio
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from streamcell.v1 import streamcell_pb2 as pb

from service.errors import REASONS, Code, Reason
from tests.integration.conftest import BOUND_SECONDS, folded, inputs, settings, unused_id
from tests.integration.echo_service import ECHO_SERVERS, SECRET
from tests.integration.raw import message
from tests.integration.web import GRPC_WEB, JSON, frames_of, post, request

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one server for all of it

MAX_BYTES = 10_000
DEADLINES_MS = (50, 500, 5000)  # on a busy machine a short deadline may pass before the method begins
ORIGIN = "https://a.example"
SERVICE = "/streamcell.v1.StreamcellService"
CONNECT = {  # each canonical code's name and HTTP status in the Connect protocol
    Code.INVALID_ARGUMENT: ("invalid_argument", 400),
    Code.DEADLINE_EXCEEDED: ("deadline_exceeded", 504),
    Code.NOT_FOUND: ("not_found", 404),
    Code.ALREADY_EXISTS: ("already_exists", 409),
    Code.RESOURCE_EXHAUSTED: ("resource_exhausted", 429),
    Code.FAILED_PRECONDITION: ("failed_precondition", 400),
    Code.ABORTED: ("aborted", 409),
    Code.OUT_OF_RANGE: ("out_of_range", 400),
    Code.UNIMPLEMENTED: ("unimplemented", 501),
    Code.INTERNAL: ("internal", 500),
    Code.UNAVAILABLE: ("unavailable", 503),
    Code.UNAUTHENTICATED: ("unauthenticated", 401),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server():
    """The echo service inside Envoy."""
    server = ECHO_SERVERS["envoy"]()
    server.address = await server.start(
        settings(front="envoy", max_message_bytes=MAX_BYTES, cors_origins=f"{ORIGIN}, https://b.example:8443")
    )
    yield server
    await server.stop()


@pytest.fixture
def address(server):
    """The server's address."""
    return server.address


async def take_events(address):
    """Returns what the echo service has recorded since the last call."""
    return (await post(address, "/t/Events", "")).json.split(",")


async def until_recorded(address, *events, seen=()):
    """Waits until the echo service has recorded some events; `seen` are those taken before."""
    seen = [*seen]
    async with asyncio.timeout(BOUND_SECONDS):
        while not set(events) <= set(seen):
            seen += await take_events(address)


class TestCalls:
    """Calls by the Connect protocol."""

    async def test_json_is_answered_with_json_and_bytes_with_bytes(self, address):
        """The requests are plain HTTP/1.1; the content type's parameters and case do not matter."""
        for content_type in (JSON, "application/json; charset=utf-8", "Application/JSON"):
            found = await request(address, "/t/Echo", b'"h\xc3\xbc"', content_type=content_type)
            assert (found.status, found.headers["content-type"], found.json) == (200, JSON, "hü")
        raw = StringValue(value="hü").SerializeToString()
        found = await request(address, "/t/Echo", raw, content_type="application/proto")
        assert (found.status, found.headers["content-type"], found.body) == (200, "application/proto", raw)

    async def test_requests_may_be_compressed_and_answers_are_compressed_on_request(self, address):
        """The encoding is gzip; an unknown encoding is refused."""
        packed = gzip.compress(json.dumps("x" * 500).encode())
        found = await request(
            address, "/t/Echo", packed, content_type=JSON, content_encoding="gzip", accept_encoding="gzip"
        )
        assert found.headers["content-encoding"] == "gzip"
        assert json.loads(gzip.decompress(found.body)) == "x" * 500
        found = await request(address, "/t/Echo", packed, content_type=JSON, content_encoding="snappy")
        assert found.refusal == (501, "unimplemented", "")

    async def test_a_deadline_ends_the_waiting_on_both_sides(self, address):
        """The deadline may be in either protocol's header; the behaviour is cancelled."""
        seen = []
        for timeout_ms in DEADLINES_MS:
            found = await post(address, "/t/Wait", "a", connect_timeout_ms=str(timeout_ms))
            assert found.refusal == (504, "deadline_exceeded", "")
            seen += await take_events(address)
            if "waits a" in seen:
                break
        await until_recorded(address, "waits a", "left a", seen=seen)
        for timeout_ms in DEADLINES_MS:
            headers = {"content_type": GRPC_WEB, "grpc_timeout": f"{timeout_ms}m"}
            found = await request(address, "/t/Wait", message("b"), **headers)
            assert found.frames[1]["grpc-status"] == "4"
            seen += await take_events(address)
            if "waits b" in seen:
                break
        await until_recorded(address, "waits b", "left b", seen=seen)

    async def test_the_behaviour_of_a_client_that_goes_away_is_cancelled(self, address):
        """The cancellation comes although the request was complete long before."""
        connection = http.client.HTTPConnection(address, timeout=BOUND_SECONDS)
        connection.request("POST", "/t/Wait", b'"c"', {"content-type": JSON})
        await until_recorded(address, "waits c")
        connection.close()
        await until_recorded(address, "left c")

    async def test_a_connection_serves_one_request_after_another(self, address):
        """HTTP/1.1's connections stay open, with errors or without."""

        def run():
            connection = http.client.HTTPConnection(address, timeout=BOUND_SECONDS)
            found = []
            for path, body in (
                ("/t/Echo", b'"a"'),
                ("/t/Refuse", b'"STEP_GAP"'),
                ("/t/Nix", b""),
                ("/t/Echo", b'"b"'),
            ):
                connection.request("POST", path, body, {"content-type": JSON})
                reply = connection.getresponse()
                found.append((reply.status, bool(reply.read())))
                assert connection.sock is not None, "the server closed the connection"
            connection.close()
            return found

        assert await asyncio.to_thread(run) == [(200, True), (400, True), (404, True), (200, True)]

    async def test_odd_headers_do_no_harm(self, address):
        """Headers may hold bytes that are no text, be they read or not."""

        def run():
            connection = http.client.HTTPConnection(address, timeout=BOUND_SECONDS)
            connection.putrequest("POST", "/t/Echo")
            headers = {
                "content-type": JSON,
                "content-length": "4",
                "x-odd": b"\xff",
                "connect-timeout-ms": b"\xe9",
            }
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders(b'"hi"')
            reply = connection.getresponse()
            found = reply.status, reply.read()
            connection.close()
            return found

        assert await asyncio.to_thread(run) == (200, b'"hi"')


class TestErrors:
    """Errors in Connect's form."""

    async def test_every_error_has_its_http_status_code_message_and_details(self, address):
        """The error is JSON for every encoding of the request, and people can read the details."""
        for reason in Reason:
            name, status = CONNECT[REASONS[reason].code]
            raw = StringValue(value=reason).SerializeToString()
            for found in (
                await post(address, "/t/Refuse", reason),
                await request(address, "/t/Refuse", raw, content_type="application/proto"),
            ):
                assert found.refusal == (status, name, reason)
                assert found.headers["content-type"] == JSON
                assert found.json["message"] == f"as asked: {reason} ü %"
                info, retry = found.json["details"]
                assert (info["type"], retry["type"]) == ("google.rpc.ErrorInfo", "google.rpc.RetryInfo")
                assert info["debug"]["metadata"] == {"asked": reason}
                assert ErrorInfo.FromString(base64.b64decode(info["value"] + "==")).reason == reason
                assert RetryInfo.FromString(base64.b64decode(retry["value"] + "==")).retry_delay.nanos == 5e8

    async def test_a_fault_says_an_id_and_nothing_else(self, address):
        """The fault is INTERNAL, as over gRPC."""
        found = await post(address, "/t/Refuse", "fault")
        assert found.refusal == (500, "internal", "INTERNAL")
        assert "error_id" in found.json["message"]
        assert SECRET not in found.body.decode()

    @pytest.mark.parametrize(
        "body",
        [b"", b"{", b"7", b"null!", b"\xff\xfe", b"[" * 5000, b"9" * 5000, b'{"value": "x"}', b'"\\ud800"'],
    )
    async def test_text_that_is_no_message_in_json_is_an_invalid_argument(self, address, body):
        """The error names the message that was expected; the next request is served."""
        found = await request(address, "/t/Echo", body, content_type=JSON)
        assert found.refusal == (400, "invalid_argument", "INVALID_ARGUMENT")
        assert "google.protobuf.StringValue" in found.json["message"]
        assert len(found.json["message"]) < 500
        assert (await post(address, "/t/Echo", "after")).json == "after"

    async def test_bytes_that_are_no_message_are_an_invalid_argument(self, address):
        """The error has its reason, as over gRPC."""
        found = await request(address, "/t/Echo", b"\xff\xff", content_type="application/proto")
        assert found.refusal == (400, "invalid_argument", "INVALID_ARGUMENT")

    @pytest.mark.parametrize(
        "content_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/jso"]
    )
    async def test_the_error_for_another_content_type_lists_the_content_types(self, address, content_type):
        """The status is 415, and text and headers list what is served."""
        found = await request(address, "/t/Echo", b'"hi"', content_type=content_type)
        assert found.status == 415
        for served in ("application/grpc", "application/grpc-web", "application/json", "application/proto"):
            assert served in found.body.decode()
            assert served in found.headers["accept"].split(", ")

    async def test_another_path_or_method_is_an_error_that_says_so(self, address):
        """An unknown path is 404 in Connect's form; a wrong method is 405 with the method that is allowed."""
        for path in ("/t/None", "/", "/t", "/t/Echo/", "/none.Service/Echo"):
            found = await post(address, path, "hi")
            assert found.refusal == (404, "unimplemented", "")
        for method in ("PUT", "GET", "DELETE"):
            found = await request(address, "/t/Echo", None, method=method, content_type=JSON)
            assert (found.status, found.headers["allow"]) == (405, "POST")

    async def test_streams_are_refused_with_a_sentence(self, address):
        """Each protocol has its form: 501, gRPC-Web's status, the last envelope of Connect's stream."""
        found = await post(address, "/t/Talk", "say x")
        assert found.refusal == (501, "unimplemented", "NOT_IMPLEMENTED")
        assert "application/grpc" in found.json["message"]
        found = await request(address, "/t/Talk", message("say x"), content_type=GRPC_WEB)
        assert found.frames[1]["grpc-status"] == "12"
        enveloped = b"\0\0\0\0\4" + b'"hi"'
        found = await request(address, "/t/Talk", enveloped, content_type="application/connect+json")
        assert (found.status, found.body[0]) == (200, 2)
        assert json.loads(found.body[5:])["error"]["code"] == "unimplemented"
        assert (
            await request(address, "/t/Echo", enveloped, content_type="application/connect+json")
        ).status == 404

    @pytest.mark.parametrize(
        ("body", "headers", "reason"),
        [
            (json.dumps("x" * (MAX_BYTES + 100)).encode(), {}, "MESSAGE_TOO_LARGE"),
            (json.dumps("x" * 10 * MAX_BYTES).encode(), {}, ""),
            (gzip.compress(json.dumps("x" * 1000 * MAX_BYTES).encode()), {"content_encoding": "gzip"}, ""),
        ],
    )
    async def test_a_message_too_large_is_refused(self, address, body, headers, reason):
        """Over the bound the error has its reason; far over it the message is not read to its end."""
        found = await request(address, "/t/Echo", body, content_type=JSON, **headers)
        assert found.refusal == (429, "resource_exhausted", reason)
        assert (await post(address, "/t/Echo", "after")).json == "after"

    @pytest.mark.parametrize("value", ["soon", "-1", "12345678901"])
    async def test_a_deadline_that_is_not_valid_is_refused(self, address, value):
        """The protocol allows at most ten digits."""
        found = await post(address, "/t/Echo", "hi", connect_timeout_ms=value)
        assert found.refusal == (400, "invalid_argument", "")


class TestGrpcWeb:
    """gRPC-Web's frames."""

    @pytest.mark.parametrize("content_type", ["application/grpc-web", GRPC_WEB, f"{GRPC_WEB}; charset=utf-8"])
    async def test_an_answer_is_a_message_and_a_frame_of_trailers(self, address, content_type):
        """The content type of the answer is bytes for every spelling of the request's."""
        found = await request(address, "/t/Echo", message("hü"), content_type=content_type, x_grpc_web="1")
        assert (found.status, found.headers["content-type"]) == (200, GRPC_WEB)
        assert found.frames == ([message("hü")[5:]], {"grpc-status": "0"})

    async def test_errors_have_their_details_in_the_trailers(self, address):
        """The trailers hold the status, the message, and google.rpc.Status."""
        found = await request(address, "/t/Refuse", message("STEP_GAP"), content_type=GRPC_WEB)
        messages, trailers = found.frames
        assert (found.status, messages) == (200, [])
        assert (trailers["grpc-status"], trailers["grpc-message"]) == ("9", "as asked: STEP_GAP ü %")
        status, info = (
            Status.FromString(base64.b64decode(trailers["grpc-status-details-bin"] + "==")),
            ErrorInfo(),
        )
        assert status.details[0].Unpack(info)
        assert info.reason == "STEP_GAP"

    async def test_frames_may_hold_json(self, address):
        """The answer is JSON too."""
        body = b"\0\0\0\0\4" + b'"hi"'
        found = await request(address, "/t/Echo", body, content_type="application/grpc-web+json")
        assert found.frames == ([b'"hi"'], {"grpc-status": "0"})

    async def test_frames_may_be_base64(self, address):
        """Requests may come in one piece or in several, each with padding; the answer is base64 as well."""
        raw = message("hü")
        for body in (base64.b64encode(raw), base64.b64encode(raw[:4]) + base64.b64encode(raw[4:])):
            found = await request(address, "/t/Echo", body, content_type="application/grpc-web-text")
            assert found.headers["content-type"] == "application/grpc-web-text+proto"
            pieces = [piece + b"=" * (-len(piece) % 4) for piece in found.body.split(b"=") if piece]
            assert frames_of(b"".join(map(base64.b64decode, pieces))) == ([raw[5:]], {"grpc-status": "0"})
        found = await request(address, "/t/Echo", b"no base64!", content_type="application/grpc-web-text")
        assert found.status == 200
        assert b"grpc-status: 3" in base64.b64decode(found.body)

    @pytest.mark.parametrize(
        ("status", "body"),
        [
            ("8", message("x" * (MAX_BYTES + 100))),
            ("8", b"\0\xff\xff\xff\xff"),
            ("3", b"\0\0\0\0\2\xff\xff"),
            ("3", message("hi")[:-1]),
            ("12", b""),
            ("12", message("hi") * 2),
        ],
    )
    async def test_bad_frames_are_refused(self, address, status, body):
        """Each has its status; the next request is served."""
        found = await request(address, "/t/Echo", body, content_type=GRPC_WEB)
        assert (found.status, found.frames[1]["grpc-status"]) == (200, status)
        assert (await post(address, "/t/Echo", "after")).json == "after"


ASKING = {"access_control_request_method": "POST", "access_control_request_headers": "content-type"}


class TestBrowsers:
    """CORS."""

    async def test_a_browser_may_ask_before_it_calls(self, address):
        """The flag's origins may send the headers of the protocols' clients; other origins may not."""
        for origin in (ORIGIN, "https://b.example:8443"):
            found = await request(address, "/t/Echo", None, method="OPTIONS", origin=origin, **ASKING)
            assert (found.status, found.body) == (204, b"")
            assert found.headers["access-control-allow-origin"] == origin
            assert found.headers["access-control-allow-methods"] == "POST"
            allowed = found.headers["access-control-allow-headers"].split(", ")
            wanted = {
                "content-type",
                "connect-protocol-version",
                "connect-timeout-ms",
                "grpc-timeout",
                "x-grpc-web",
            }
            assert wanted <= set(allowed)
            assert int(found.headers["access-control-max-age"]) > 0
            assert found.headers["vary"] == "origin"
        other = await request(
            address, "/t/Echo", None, method="OPTIONS", origin="https://evil.example", **ASKING
        )
        assert "access-control-allow-origin" not in other.headers

    async def test_a_page_of_an_allowed_origin_may_read_the_answer(self, address):
        """The page reads errors and gRPC-Web's status too. Another origin, or none, gets no such header."""
        for body, status in (("hi", 200), ("STEP_GAP", 400)):
            path = "/t/Echo" if status == 200 else "/t/Refuse"
            found = await post(address, path, body, origin=ORIGIN)
            assert (found.status, found.headers["access-control-allow-origin"]) == (status, ORIGIN)
            assert "grpc-status" in found.headers["access-control-expose-headers"]
        assert (
            "access-control-allow-origin" not in (await post(address, "/t/Echo", "", origin="null")).headers
        )
        assert "access-control-expose-headers" not in (await post(address, "/t/Echo", "")).headers

    async def test_origins_are_all_or_none_by_flag(self):
        """`*` allows all origins; without the flag no header of CORS is sent."""
        for flag, allowed in (("*", "*"), ("", None)):
            server = ECHO_SERVERS["envoy"]()
            address = await server.start(settings(front="envoy", cors_origins=flag))
            try:
                asked = await request(address, "/t/Echo", None, method="OPTIONS", origin=ORIGIN, **ASKING)
                called = await post(address, "/t/Echo", "hi", origin=ORIGIN)
                for found in (asked, called):
                    assert found.headers["access-control-allow-origin"] == allowed
                assert (asked.status, called.json) == (204 if allowed else 415, "hi")
            finally:
                await server.stop()


@pytest.fixture
def front():
    """Servers of this file run inside Envoy."""
    return "envoy"


class TestServer:
    """The whole server, and both fronts."""

    @pytest.mark.asyncio(loop_scope="function")
    async def test_a_session_by_json_alone(self, peer, mackey_glass):
        """Open, steps, a history, a forecast, close: the numbers are the artifact's, bit for bit."""
        address, x = str(peer.server.listen), inputs(seed=9, num_steps=3000)
        session_id = unused_id()

        async def call(method, **given):
            found = await post(address, f"{SERVICE}/{method}", given)
            assert found.status == 200, found.body
            return found.json

        names = {model["name"] for model in (await call("ListModels"))["models"]}
        assert names == {"mackey-glass", "nyc-taxi"}
        opened = await call("OpenSession", sessionId=session_id, model="mackey-glass")
        assert opened["session"]["sessionId"] == session_id
        y = [(await call("Step", session_id=session_id, x=row.tolist()))["y"] for row in x[:3]]
        assert np.array_equal(np.array(y, np.float32), folded(mackey_glass, x[:3]))
        primed = await call("Prime", sessionId=session_id, x=x[3:].ravel().tolist())
        assert primed["stepIndex"] == "2999"
        forecast = await call("Forecast", sessionId=session_id, horizonSteps=3)
        assert np.isfinite(np.array(forecast["y"])).all()
        found = await peer.stub.GetSession(pb.GetSessionRequest(session_id=session_id))
        assert found.session.next_step_index == 3000
        await call("CloseSession", sessionId=session_id)
        found = await post(address, f"{SERVICE}/Step", {"sessionId": session_id, "x": [0.5]})
        assert found.refusal == (404, "not_found", "SESSION_NOT_FOUND")

    @pytest.mark.asyncio(loop_scope="function")
    async def test_the_open_inference_protocol_by_json(self, peer, mackey_glass):
        """The unary methods serve a sequence from start to end, and errors; predictions are base64."""
        address, x = str(peer.server.listen), inputs(seed=10, num_steps=3)

        async def call(method, given):
            return await post(address, f"/inference.GRPCInferenceService/{method}", given)

        def asked(at, **parameters):
            tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1]}
            tensor["contents"] = {"fp32Contents": x[at].tolist()}
            parameters = {"sequence_id": {"int64Param": 7}, **parameters}
            return {"modelName": "mackey-glass", "inputs": [tensor], "parameters": parameters}

        assert (await call("ServerReady", {})).json == {"ready": True}
        metadata = (await call("ModelMetadata", {"name": "mackey-glass"})).json
        assert [(each["name"], each["datatype"], each["shape"]) for each in metadata["inputs"]] == [
            ("x", "FP32", ["-1", "1"])
        ]
        flags = {"sequence_start": 0, "sequence_end": 2}
        y = b""
        for at in range(3):
            found = await call(
                "ModelInfer", asked(at, **{k: {"boolParam": at == on} for k, on in flags.items()})
            )
            assert found.status == 200, found.body
            assert found.json["parameters"]["step_index"] == {"int64Param": str(at)}
            y += base64.b64decode(found.json["rawOutputContents"][0])
        assert y == folded(mackey_glass, x).tobytes()
        found = await call("ModelInfer", asked(0))
        assert found.refusal == (404, "not_found", "SESSION_NOT_FOUND")

    @pytest.mark.asyncio(loop_scope="function")
    async def test_health_by_json_and_errors_in_the_metrics(self, own_peer):
        """Every method with a descriptor is served; refusals count as over gRPC, bad JSON among them."""
        address = str(own_peer.server.listen)
        assert (await post(address, "/grpc.health.v1.Health/Check", {})).json == {"status": "SERVING"}
        for given in ({"sessionId": "x", "stepindex": 3}, {"x": [1]}):
            found = await post(address, f"{SERVICE}/Step", given)
            assert found.refusal == (400, "invalid_argument", "INVALID_ARGUMENT")
        labels = (("code", "INVALID_ARGUMENT"), ("method", f"{SERVICE}/Step"), ("reason", "INVALID_ARGUMENT"))
        assert (await own_peer.samples())["streamcell_errors_total", labels] == 2

    @pytest.mark.asyncio(loop_scope="function")
    async def test_a_drain_waits_for_calls_and_then_aborts_them(self):
        """The error of a call that never ends says that the server stops."""
        server = ECHO_SERVERS["envoy"]()
        address = await server.start(settings(front="envoy", drain_timeout_seconds=1.0))
        waiting = asyncio.create_task(post(address, "/t/Wait", "d"))
        await until_recorded(address, "waits d")
        assert not await server.drain()
        found = await waiting
        assert found.refusal == (499, "canceled", "")
        assert "stopping" in found.json["message"]
        await server.stop()

    @pytest.mark.asyncio(loop_scope="function")
    async def test_the_grpcio_front_speaks_grpc_alone(self):
        """The connection of a client of plain HTTP/1.1 ends."""
        server = ECHO_SERVERS["grpcio"]()
        address = await server.start(settings(front="grpcio"))
        with pytest.raises((http.client.HTTPException, OSError)):
            await post(address, "/t/Echo", "hi")
        await server.stop()

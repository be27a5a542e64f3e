"""gRPC's rules on both fronts: statuses, deadlines, cancellation, half-close, flow control, odd bytes."""

import asyncio
import gzip

import grpc
import pytest
import pytest_asyncio
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc.error_details_pb2 import ErrorInfo
from grpc import aio
from grpc_status.rpc_status import from_call
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.errors import REASONS, Reason
from tests.integration.conftest import BOUND_SECONDS, settings
from tests.integration.echo_service import ECHO_SERVERS, SECRET
from tests.integration.raw import RawClient, message

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one server a front, for all tests

MAX_BYTES = 10_000
PACKED = gzip.compress(message("hi")[5:], mtime=0)  # its bytes name a test, so every process needs the same


@pytest.fixture(params=ECHO_SERVERS, scope="module")
def echo_front(request):
    """Each test runs on every front."""
    return request.param


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address(echo_front):
    """The address of an echo server."""
    server = ECHO_SERVERS[echo_front]()
    yield await server.start(
        settings(
            front=echo_front, max_message_bytes=MAX_BYTES, max_stream_messages=16, max_early_resets=100_000
        )
    )
    await server.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def client(address):
    """A client of bare frames."""
    client = await RawClient.connect(address)
    yield client
    await client.close()


@pytest_asyncio.fixture(loop_scope="module")
async def channel(address):
    """A channel of grpcio."""
    async with aio.insecure_channel(address) as channel:
        yield channel


def unary(channel, name, **options):
    """Returns a unary method."""
    return channel.unary_unary(f"/t/{name}", StringValue.SerializeToString, StringValue.FromString, **options)


def talk(channel, **options):
    """Begins a Talk."""
    method = channel.stream_stream("/t/Talk", StringValue.SerializeToString, StringValue.FromString)
    return method(**options)


def said(text):
    """Returns a request."""
    return StringValue(value=text)


async def bounded(awaitable):
    """Waits for a bounded time."""
    return await asyncio.wait_for(awaitable, BOUND_SECONDS)


async def until_recorded(client, *events, seen=()):
    """Waits until the echo service has recorded some events, among others; `seen` are those taken before."""
    seen = [*seen]
    async with asyncio.timeout(BOUND_SECONDS):
        while not set(events) <= set(seen):
            seen += await client.take_events()


class TestHowCallsEnd:
    """Statuses."""

    async def test_every_status_comes_with_its_message_and_details(self, channel):
        """Unary calls and streams have the code, a message beyond ASCII, and ErrorInfo in the trailers."""
        for reason in Reason:
            stream = talk(channel)
            await stream.write(said("say before"))
            await stream.write(said(reason))
            assert (await bounded(stream.read())).value == "say before"
            for call in (unary(channel, "Refuse")(said(reason)), stream):
                assert (await bounded(call.code())).value[0] == REASONS[reason].code
                assert await call.details() == f"as asked: {reason} ü %"
                status, info = from_call(await error_of(call)), ErrorInfo()
                assert status.details[0].Unpack(info)
                assert (info.reason, dict(info.metadata)) == (reason, {"asked": reason})

    @pytest.mark.parametrize("path", ["/t/Refuse", "/t/Talk"])
    async def test_an_error_says_when_to_repeat_the_call(self, client, path):
        """After a delay, or not at all on a server that drains; a fault says nothing about repeating."""
        found = {}
        for reason in ("DRAINING", "OVERLOADED", "STORE_UNAVAILABLE", "fault"):
            headers = (await client.call(path, message(reason))).headers
            found[reason] = headers.get("grpc-retry-pushback-ms")
        assert found == {"DRAINING": "-1", "OVERLOADED": "500", "STORE_UNAVAILABLE": "500", "fault": None}

    async def test_a_fault_says_an_id_and_nothing_else(self, channel):
        """A fault of a call or a stream is INTERNAL."""
        stream = talk(channel)
        await stream.write(said("fault"))
        for call in (unary(channel, "Refuse")(said("fault")), stream):
            assert await bounded(call.code()) == grpc.StatusCode.INTERNAL
            assert "error_id" in await call.details()
            assert SECRET not in await call.details()

    @pytest.mark.parametrize(
        ("outcome", "path", "data", "headers"),
        [
            (("200", "0"), "/t/Echo", message("hi"), {}),
            (("200", "0"), "/t/Echo", message("hi"), {"content_type": "application/grpc+proto"}),
            (("200", "0"), "/t/Echo", b"\0\0\0\0\0", {}),
            (
                ("200", "0"),
                "/t/Echo",
                b"\1" + len(PACKED).to_bytes(4, "big") + PACKED,
                {"grpc_encoding": "gzip"},
            ),
            (("200", "0"), "/t/Echo", message("hi"), {"grpc_encoding": "gzip"}),
            (("200", "12"), "/t/None", message("hi"), {}),
            (("200", "12"), "/", message("hi"), {}),
            (("200", "13"), "/t/Echo", b"\1\0\0\0\3\x1f\x8bx", {"grpc_encoding": "gzip"}),
            (("200", "13"), "/t/Echo", b"\1\0\0\0\2xx", {}),
            (("200", "13"), "/t/Echo", message("hi"), {"grpc_timeout": "soon"}),
            (("200", "8"), "/t/Echo", message("x" * (MAX_BYTES + 100)), {}),
            (("200", "8"), "/t/Echo", b"\0\xff\xff\xff\xff", {}),
            (("200", "3"), "/t/Echo", b"\0\0\0\0\2\xff\xff", {}),
            (("200", "4"), "/t/Wait", message("x"), {"grpc_timeout": "0n"}),
            (("200", "4"), "/t/Wait", message("x"), {"grpc_timeout": "20m"}),
            (("200", "4"), "/t/Talk", message("keep late"), {"grpc_timeout": "20m"}),
            (("200", "0"), "/t/Talk", message("quiet"), {}),
            (("200", "0"), "/t/Talk", message("end") + message("say late"), {}),
            (("200", "8"), "/t/Talk", message("quiet") + b"\0\xff\xff\xff\xff", {}),
        ],
    )
    async def test_how_a_call_ends(self, client, outcome, path, data, headers):
        """Each request has its HTTP and gRPC status; the connection goes on."""
        assert (await client.call(path, data, **headers)).outcome == outcome
        assert (await client.call("/t/Echo", message("after"))).texts == ["after"]

    @pytest.mark.parametrize(
        ("grpcio", "envoy", "data", "headers"),
        [
            # grpcio takes any content type; a front with further protocols must not.
            (("200", "0"), ("415", ""), message("hi"), {"content_type": "text/plain"}),
            (("", "reset"), ("405", ""), b"", {"method": "GET"}),
            (("", "reset"), ("400", ""), message("hi"), {"te": None}),
            # The protocol says UNIMPLEMENTED for an unknown encoding.
            (("200", "13"), ("200", "12"), message("hi"), {"grpc_encoding": "snappy"}),
            # grpcio reads one message and leaves the rest unread.
            (("200", "0"), ("200", "12"), message("one") + message("two"), {}),
        ],
    )
    async def test_where_the_fronts_differ(self, client, echo_front, grpcio, envoy, data, headers):
        """No client library sends these requests; each front refuses or tolerates them in its own way."""
        outcome = {"grpcio": grpcio, "envoy": envoy}[echo_front]
        assert (await client.call("/t/Echo", data, **headers)).outcome == outcome
        assert (await client.call("/t/Echo", message("after"))).texts == ["after"]


async def error_of(call):
    """Returns the error that a call ended with."""
    with pytest.raises(aio.AioRpcError) as caught:
        await (call if isinstance(call, aio.UnaryUnaryCall) else call.read())
    return caught.value


class TestRequests:
    """Headers, encodings, and the library's two clients."""

    @pytest.mark.parametrize("size", [15_000, 17_000, 30_000])
    async def test_metadata_is_bounded(self, client, size):
        """Both fronts refuse too many bytes of headers with a status; the connection goes on."""
        # grpcio's bound is a setting of HTTP/2, which holds once the client has acknowledged it.
        assert (await client.call("/t/Echo", message("before"))).texts == ["before"]
        for changes in ({"x_one": "v" * size}, {f"x_{number}": "v" * 5 for number in range(size // 42)}):
            outcome = (await client.call("/t/Echo", message("hi"), **changes)).outcome
            assert outcome == ("200", "0" if size < 16_384 else "8")
        assert (await client.call("/t/Echo", message("after"))).texts == ["after"]

    async def test_requests_that_grpcio_compresses_arrive(self, channel):
        """Both encodings of the library are read."""
        for way in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            text = "x" * 5000
            assert (await bounded(unary(channel, "Echo")(said(text), compression=way))).value == text

    async def test_the_blocking_client_is_served_as_well(self, address):
        """It is grpcio's other client; here it runs in a thread of its own."""

        def run():
            with grpc.insecure_channel(address) as channel:
                echo = channel.unary_unary("/t/Echo", StringValue.SerializeToString, StringValue.FromString)
                echoed = [echo(said(str(number)), timeout=BOUND_SECONDS).value for number in range(3)]
                method = channel.stream_stream(
                    "/t/Talk", StringValue.SerializeToString, StringValue.FromString
                )
                requests = iter([said("say a"), said("say b")])
                return echoed, [answer.value for answer in method(requests, timeout=BOUND_SECONDS)]

        assert await asyncio.to_thread(run) == (["0", "1", "2"], ["say a", "say b"])


class TestDeadlinesAndCancellation:
    """Calls that the client gives up."""

    async def test_a_deadline_ends_the_waiting_on_both_sides(self, channel, client):
        """The behaviour is cancelled, so that a step that waits is withdrawn."""
        seen = []
        for seconds in (0.05, 0.5, 5):  # on a busy machine a short deadline may pass before the method begins
            call = unary(channel, "Wait")(said("a"), timeout=seconds)
            assert await bounded(call.code()) == grpc.StatusCode.DEADLINE_EXCEEDED
            seen += await client.take_events()
            if "waits a" in seen:
                break
        await until_recorded(client, "waits a", "left a", seen=seen)

    async def test_the_behaviour_of_a_cancelled_call_is_cancelled(self, channel, client):
        """The cancellation comes although the request was complete long before."""
        call = unary(channel, "Wait")(said("b"))
        await until_recorded(client, "waits b")
        call.cancel()
        await until_recorded(client, "left b")

    async def test_the_behaviour_of_a_cancelled_stream_is_cancelled(self, channel, client):
        """The client may cancel before its half-close or after."""
        for half_closes in (False, True):
            stream = talk(channel)
            await stream.write(said(f"keep {half_closes}"))
            await stream.write(said("say x"))
            await bounded(stream.read())
            if half_closes:
                await stream.done_writing()
                await until_recorded(client, f"half-closed {half_closes}")
            stream.cancel()
            await until_recorded(client, f"cancelled {half_closes}")

    async def test_a_connection_outlives_its_calls_however_many_are_cancelled(self, client):
        """With a bound on early resets that fits a gateway, the stream beside its cancelled calls goes on."""
        beside = client.open("/t/Talk")
        for number in range(11):
            for _ in range(100):
                stream = client.open("/t/Wait")
                client.send(stream, message("x"), end=True)
                client.reset(stream)
            client.send(beside, message(f"say {number}"))
            await client.until(lambda count=number + 1: len(client.answers[beside].texts) == count)
        client.send(beside, b"", end=True)
        assert (await client.answer(beside)).outcome == ("200", "0")
        await client.take_events()

    async def test_a_lost_connection_cancels_its_calls(self, address, client):
        """A client that vanishes leaves nothing waiting."""
        other = await RawClient.connect(address)
        other.send(other.open("/t/Wait"), message("c"), end=True)
        stream = other.open("/t/Talk")
        other.send(stream, message("keep d") + message("say x"))
        await other.until(lambda: other.answers[stream].texts == ["say x"])
        await until_recorded(client, "waits c")
        await other.close()
        await until_recorded(client, "left c", "cancelled d")

    async def test_a_reset_amid_a_message_disturbs_nobody(self, client):
        """After half a frame and a reset, another stream of the connection goes on."""
        beside = client.open("/t/Talk")
        client.send(beside, message("say 1"))
        for cut in range(1, len(message("say x"))):
            stream = client.open("/t/Talk")
            client.send(stream, message("say x")[:cut])
            client.reset(stream)
        client.send(beside, message("say 2"), end=True)
        assert (await client.answer(beside)).texts == ["say 1", "say 2"]


class TestStreams:
    """Messages and flow control."""

    async def test_a_half_closed_stream_is_still_answered(self, channel):
        """The client is done first; the server answers every message and ends."""
        stream = talk(channel)
        for number in range(50):
            await stream.write(said(f"say {number}"))
        await stream.done_writing()
        assert [answer.value async for answer in stream] == [f"say {number}" for number in range(50)]
        assert await stream.code() == grpc.StatusCode.OK

    async def test_the_server_may_end_first(self, client):
        """The client gets its status although it has not half-closed."""
        stream = client.open("/t/Talk")
        client.send(stream, message("say x") + message("end"))
        answer = await client.answer(stream)
        assert (answer.outcome, answer.texts) == (("200", "0"), ["say x"])

    async def test_messages_split_at_every_byte(self, client):
        """Messages arrive whole wherever HTTP/2 cuts them, and several messages may come in one piece."""
        stream = client.open("/t/Talk")
        data = message("say one") + message("say two") + message("say three")
        for byte in data:
            client.send(stream, bytes([byte]))
        client.send(stream, data, end=True)
        assert (await client.answer(stream)).texts == ["say one", "say two", "say three"] * 2

    async def test_answers_come_while_the_client_is_silent(self, client):
        """A message's answer does not wait for the next message, nor for the end."""
        stream = client.open("/t/Talk")
        for number in range(3):
            client.send(stream, message(f"say {number}"))
            await client.until(lambda count=number + 1: len(client.answers[stream].texts) == count)
        client.send(stream, b"", end=True)
        assert (await client.answer(stream)).outcome == ("200", "0")

    @pytest.mark.slow
    async def test_a_stream_may_be_silent_for_six_minutes(self, channel):
        """No idle time-out of a proxy ends the stream: some sensors report once an hour."""
        stream = talk(channel)
        for text in ("say before", "say after"):
            await stream.write(said(text))
            assert (await bounded(stream.read())).value == text
            await asyncio.sleep(360 if text == "say before" else 0)
        await stream.done_writing()
        assert await bounded(stream.code()) == grpc.StatusCode.OK

    async def test_the_server_stops_reading_from_a_client_that_stops_reading(self, address):
        """Its answers wait within bounds while others are served, and all arrive once it reads on."""
        slow, other = await RawClient.connect(address, window=1000), await RawClient.connect(address)
        slow.takes = False
        stream = slow.open("/t/Talk")
        slow.send(stream, message("flood 40"))
        await slow.until(lambda: slow.answers[stream].data)
        assert (await other.call("/t/Echo", message("hi"))).texts == ["hi"]
        slow.takes = True
        slow.reopen(stream)
        slow.send(stream, b"", end=True)
        answer = await slow.answer(stream)
        assert [int(text) for text in answer.texts] == list(range(40))
        for client in (slow, other):
            await client.close()

    async def test_a_client_may_send_any_number_of_window_updates(self, client):
        """A client of gRPC sends one for every message it reads, and many messages come in one piece."""
        stream = client.open("/t/Talk")
        client.send(stream, message("say hi"))
        await client.until(lambda: client.answers[stream].texts)
        for _ in range(1000):
            client.widen(stream)
        client.send(stream, message("say on"), end=True)
        assert (await client.answer(stream)).texts == ["say hi", "say on"]

    async def test_a_thousand_streams_on_one_connection(self, client):
        """All streams are open at once, each with its own answers."""
        streams = [client.open("/t/Talk") for _ in range(1000)]
        for number, stream in enumerate(streams):
            client.send(stream, message(f"say {number}"))
        for number, stream in enumerate(streams):
            client.send(stream, message(f"say again {number}"), end=True)
        for number, stream in enumerate(streams):
            assert (await client.answer(stream)).texts == [f"say {number}", f"say again {number}"]


class TestConnections:
    """Connections, GOAWAY and pings."""

    async def test_a_thousand_connections(self, address):
        """Each connection has a stream of its own."""
        clients = [await RawClient.connect(address) for _ in range(1000)]
        for number, client in enumerate(clients):
            client.send(client.open("/t/Talk"), message(f"say {number}"), end=True)
        for number, client in enumerate(clients):
            assert (await client.answer(1)).texts == [f"say {number}"]
            await client.close()

    async def test_a_client_that_goes_away_gently_has_its_answers(self, client):
        """GOAWAY from the client ends none of its open streams."""
        stream = client.open("/t/Talk")
        client.send(stream, message("say a"))
        client.go_away()
        client.send(stream, message("say b"), end=True)
        assert (await client.answer(stream)).texts == ["say a", "say b"]

    async def test_pings_are_answered(self, client):
        """A client may check that the server is there."""
        client.ping()
        await client.until(lambda: "PingAckReceived" in client.events)

    async def test_a_client_that_pings_without_end_is_limited(self, address, echo_front):
        """The grpcio front closes the connection by its keepalive rules; Envoy answers, within a bound."""
        client = await RawClient.connect(address)
        for _ in range(20):
            client.ping()
        if echo_front == "grpcio":
            await client.until(lambda: {"ConnectionTerminated", "closed"} & set(client.events))
        else:
            await client.until(lambda: client.events.count("PingAckReceived") == 20)
            assert (await client.call("/t/Echo", message("after"))).texts == ["after"]
        await client.close()


class TestOddBytes:
    """Bytes that are no messages."""

    @hypothesis_settings(
        max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(st.lists(st.tuples(st.integers(0, 3), st.binary(min_size=1, max_size=40)), max_size=25))
    async def test_garbage_on_some_streams_never_reaches_another(self, client, pieces):
        """Three streams of a connection carry random bytes; the fourth's messages come back unchanged."""
        streams = [client.open("/t/Talk") for _ in range(4)]
        expected = []
        for which, data in pieces:
            if which == 3:
                expected.append(f"say {data.hex()}")
                client.send(streams[3], message(expected[-1]))
            elif not client.answers[streams[which]].is_ended:
                client.send(streams[which], data)
        client.send(streams[3], b"", end=True)
        answer = await client.answer(streams[3])
        assert (answer.outcome, answer.texts) == (("200", "0"), expected)
        for stream in streams[:3]:
            if not client.answers[stream].is_ended:
                client.reset(stream)

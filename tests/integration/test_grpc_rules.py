"""gRPC's rules, kept alike by both fronts: statuses, deadlines, cancellation, half-close, flow, odd bytes."""

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

from service.errors import CODES, Reason
from tests.integration.conftest import BOUND_SECONDS, settings
from tests.integration.echo_service import HOUSES, SECRET
from tests.integration.raw import RawClient, message

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one server a front, for all of it

MAX_BYTES = 10_000
PACKED = gzip.compress(message("hi")[5:], mtime=0)  # its bytes name a test: alike in every process


@pytest.fixture(params=HOUSES, scope="module")
def house_front(request):
    """Each test runs on every front."""
    return request.param


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address(house_front):
    """Where a house is served."""
    house = HOUSES[house_front]()
    yield await house.start(settings(front=house_front, max_message_bytes=MAX_BYTES, max_stream_messages=16))
    await house.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def client(address):
    """A client of bare frames."""
    client = await RawClient.connect(address)
    yield client
    await client.close()


@pytest_asyncio.fixture(loop_scope="module")
async def channel(address):
    """A channel of grpcio's."""
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
    """Waits, but not for ever."""
    return await asyncio.wait_for(awaitable, BOUND_SECONDS)


async def until_told(client, *events):
    """Waits until the house has seen these of its callers; others may come too."""
    seen = []
    async with asyncio.timeout(BOUND_SECONDS):
        while not set(events) <= set(seen):
            seen += await client.told()
    return seen


# -- How calls end -----------------------------------------------------------------------------------


async def test_every_status_comes_with_its_message_and_details(channel):
    """Unary and streaming alike: code, message beyond ASCII, ErrorInfo in the trailing metadata."""
    for reason in Reason:
        stream = talk(channel)
        await stream.write(said("say before"))
        await stream.write(said(reason))
        assert (await bounded(stream.read())).value == "say before"
        for call in (unary(channel, "Refuse")(said(reason)), stream):
            assert (await bounded(call.code())).value[0] == CODES[reason]
            assert await call.details() == f"as asked: {reason} ü %"
            status, info = from_call(await error_of(call)), ErrorInfo()
            assert status.details[0].Unpack(info)
            assert (info.reason, dict(info.metadata)) == (reason, {"asked": reason})


@pytest.mark.parametrize("path", ["/t/Refuse", "/t/Talk"])
async def test_an_error_says_when_to_repeat_the_call(client, path):
    """After its delay, and on a server that drains not at all; a fault says nothing of it."""
    found = {}
    for reason in ("DRAINING", "OVERLOADED", "STORE_UNAVAILABLE", "fault"):
        headers = (await client.call(path, message(reason))).headers
        found[reason] = headers.get("grpc-retry-pushback-ms")
    assert found == {"DRAINING": "-1", "OVERLOADED": "500", "STORE_UNAVAILABLE": "500", "fault": None}


async def error_of(call):
    """Returns the error that a call ended with."""
    with pytest.raises(aio.AioRpcError) as caught:
        await (call if isinstance(call, aio.UnaryUnaryCall) else call.read())
    return caught.value


async def test_a_fault_says_an_id_and_nothing_else(channel):
    """INTERNAL, on a call and on a stream."""
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
        (("200", "0"), "/t/Echo", b"\1" + len(PACKED).to_bytes(4, "big") + PACKED, {"grpc_encoding": "gzip"}),
        (("200", "0"), "/t/Echo", message("hi"), {"grpc_encoding": "gzip"}),
        (("200", "12"), "/t/None", message("hi"), {}),
        (("200", "12"), "/", message("hi"), {}),
        (("200", "13"), "/t/Echo", b"\1\0\0\0\2xx", {"grpc_encoding": "gzip"}),
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
async def test_what_comes_of_a_call(client, outcome, path, data, headers):
    """The HTTP and the gRPC status; the connection goes on."""
    assert (await client.call(path, data, **headers)).outcome == outcome
    assert (await client.call("/t/Echo", message("after"))).texts == ["after"]


@pytest.mark.parametrize(
    ("grpcio", "envoy", "data", "headers"),
    [
        # grpcio takes any content type; a front that may serve others too must not.
        (("200", "0"), ("415", ""), message("hi"), {"content_type": "text/plain"}),
        (("", "reset"), ("405", ""), b"", {"method": "GET"}),
        (("", "reset"), ("400", ""), message("hi"), {"te": None}),
        # The protocol has UNIMPLEMENTED for an encoding that is not known.
        (("200", "13"), ("200", "12"), message("hi"), {"grpc_encoding": "snappy"}),
        # grpcio reads one message and leaves the rest unread.
        (("200", "0"), ("200", "12"), message("one") + message("two"), {}),
    ],
)
async def test_where_the_fronts_differ(client, house_front, grpcio, envoy, data, headers):
    """No client library does any of this; each front refuses it its own way, or bears with it."""
    outcome = {"grpcio": grpcio, "envoy": envoy}[house_front]
    assert (await client.call("/t/Echo", data, **headers)).outcome == outcome
    assert (await client.call("/t/Echo", message("after"))).texts == ["after"]


@pytest.mark.parametrize("size", [15_000, 17_000, 60_000])
async def test_metadata_is_bounded(client, size):
    """By bytes alike on both fronts, and not by their number; the connection goes on."""
    # grpcio's bound is one of HTTP/2's settings: it holds from the client's acknowledgement on.
    assert (await client.call("/t/Echo", message("before"))).texts == ["before"]
    for changes in ({"x_one": "v" * size}, {f"x_{number}": "v" * 5 for number in range(size // 42)}):
        outcome = (await client.call("/t/Echo", message("hi"), **changes)).outcome
        assert outcome == ("200", "0" if size < 16_384 else "8")
    assert (await client.call("/t/Echo", message("after"))).texts == ["after"]


async def test_compression_of_grpcios_own_client(channel):
    """Requests compressed by the library arrive."""
    for way in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        text = "x" * 5000
        assert (await bounded(unary(channel, "Echo")(said(text), compression=way))).value == text


async def test_the_blocking_client_is_served_as_well(address):
    """Grpcio's other client, from a thread of its own."""

    def run():
        with grpc.insecure_channel(address) as channel:
            echo = channel.unary_unary("/t/Echo", StringValue.SerializeToString, StringValue.FromString)
            echoed = [echo(said(str(number)), timeout=BOUND_SECONDS).value for number in range(3)]
            method = channel.stream_stream("/t/Talk", StringValue.SerializeToString, StringValue.FromString)
            requests = iter([said("say a"), said("say b")])
            return echoed, [answer.value for answer in method(requests, timeout=BOUND_SECONDS)]

    assert await asyncio.to_thread(run) == (["0", "1", "2"], ["say a", "say b"])


# -- Deadlines and cancellation ----------------------------------------------------------------------


async def test_a_deadline_ends_the_waiting_on_both_sides(channel, client):
    """The behaviour is cancelled, so that a step that waits is withdrawn."""
    call = unary(channel, "Wait")(said("a"), timeout=0.05)
    assert await bounded(call.code()) == grpc.StatusCode.DEADLINE_EXCEEDED
    await until_told(client, "waits a", "left a")


async def test_a_cancelled_call_is_told_to_its_behaviour(channel, client):
    """Though its request was complete long before."""
    call = unary(channel, "Wait")(said("b"))
    await until_told(client, "waits b")
    call.cancel()
    await until_told(client, "left b")


async def test_a_cancelled_stream_is_told_to_its_behaviour(channel, client):
    """Before and after the client's half-close."""
    for half_closes in (False, True):
        stream = talk(channel)
        await stream.write(said(f"keep {half_closes}"))
        await stream.write(said("say x"))
        await bounded(stream.read())
        if half_closes:
            await stream.done_writing()
            await until_told(client, f"half-closed {half_closes}")
        stream.cancel()
        await until_told(client, f"cancelled {half_closes}")


async def test_a_connection_outlives_its_calls_however_many_are_cancelled(client):
    """A gateway's clients with short deadlines are no attack: the stream beside them goes on."""
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
    await client.told()


async def test_a_lost_connection_cancels_its_calls(address, client):
    """A client that vanishes leaves nothing waiting."""
    other = await RawClient.connect(address)
    other.send(other.open("/t/Wait"), message("c"), end=True)
    stream = other.open("/t/Talk")
    other.send(stream, message("keep d") + message("say x"))
    await other.until(lambda: other.answers[stream].texts == ["say x"])
    await until_told(client, "waits c")
    await other.close()
    await until_told(client, "left c", "cancelled d")


async def test_a_reset_amid_a_message_disturbs_nobody(client):
    """Half a frame and then a reset: the stream beside it on the connection goes on."""
    beside = client.open("/t/Talk")
    client.send(beside, message("say 1"))
    for cut in range(1, len(message("say x"))):
        stream = client.open("/t/Talk")
        client.send(stream, message("say x")[:cut])
        client.reset(stream)
    client.send(beside, message("say 2"), end=True)
    assert (await client.answer(beside)).texts == ["say 1", "say 2"]


# -- Streams -----------------------------------------------------------------------------------------


async def test_a_half_closed_stream_is_still_answered(channel):
    """The client is done first; the server answers all and ends."""
    stream = talk(channel)
    for number in range(50):
        await stream.write(said(f"say {number}"))
    await stream.done_writing()
    assert [answer.value async for answer in stream] == [f"say {number}" for number in range(50)]
    assert await stream.code() == grpc.StatusCode.OK


async def test_the_server_may_end_first(client):
    """The client has not half-closed: it has its status all the same."""
    stream = client.open("/t/Talk")
    client.send(stream, message("say x") + message("end"))
    answer = await client.answer(stream)
    assert (answer.outcome, answer.texts) == (("200", "0"), ["say x"])


async def test_messages_split_at_every_byte(client):
    """However HTTP/2 cuts them, messages are whole; several in a piece are several."""
    stream = client.open("/t/Talk")
    data = message("say one") + message("say two") + message("say three")
    for byte in data:
        client.send(stream, bytes([byte]))
    client.send(stream, data, end=True)
    assert (await client.answer(stream)).texts == ["say one", "say two", "say three"] * 2


async def test_answers_come_while_the_client_says_no_more(client):
    """The first message's answer does not wait for another message, nor for the end."""
    stream = client.open("/t/Talk")
    for number in range(3):
        client.send(stream, message(f"say {number}"))
        await client.until(lambda count=number + 1: len(client.answers[stream].texts) == count)
    client.send(stream, b"", end=True)
    assert (await client.answer(stream)).outcome == ("200", "0")


@pytest.mark.slow
async def test_a_stream_may_be_silent_for_six_minutes(channel):
    """No proxy's idle time-out ends it: sensors that report once an hour are clients too."""
    stream = talk(channel)
    for text in ("say before", "say after"):
        await stream.write(said(text))
        assert (await bounded(stream.read())).value == text
        await asyncio.sleep(360 if text == "say before" else 0)
    await stream.done_writing()
    assert await bounded(stream.code()) == grpc.StatusCode.OK


async def test_a_reader_that_stops_reading_is_not_read_either(address):
    """Its answers wait within bounds, others are served; it has all of them once it reads on."""
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


async def test_a_reader_may_ask_for_more_as_often_as_it_likes(client):
    """As gRPC's own does for every message it reads, while many of them come in one piece."""
    stream = client.open("/t/Talk")
    client.send(stream, message("say hi"))
    await client.until(lambda: client.answers[stream].texts)
    for _ in range(1000):
        client.widen(stream)
    client.send(stream, message("say on"), end=True)
    assert (await client.answer(stream)).texts == ["say hi", "say on"]


async def test_a_thousand_streams_on_one_connection(client):
    """All at once, each with its own answers."""
    streams = [client.open("/t/Talk") for _ in range(1000)]
    for number, stream in enumerate(streams):
        client.send(stream, message(f"say {number}"))
    for number, stream in enumerate(streams):
        client.send(stream, message(f"say again {number}"), end=True)
    for number, stream in enumerate(streams):
        assert (await client.answer(stream)).texts == [f"say {number}", f"say again {number}"]


async def test_a_thousand_connections(address):
    """Each with a stream of its own."""
    clients = [await RawClient.connect(address) for _ in range(1000)]
    for number, client in enumerate(clients):
        client.send(client.open("/t/Talk"), message(f"say {number}"), end=True)
    for number, client in enumerate(clients):
        assert (await client.answer(1)).texts == [f"say {number}"]
        await client.close()


async def test_a_client_that_goes_away_gently_has_its_answers(client):
    """GOAWAY from the client ends no stream that it has open."""
    stream = client.open("/t/Talk")
    client.send(stream, message("say a"))
    client.go_away()
    client.send(stream, message("say b"), end=True)
    assert (await client.answer(stream)).texts == ["say a", "say b"]


async def test_pings_are_answered(client):
    """A client that looks whether the server is there hears that it is."""
    client.ping()
    await client.until(lambda: "PingAckReceived" in client.events)


async def test_a_client_that_pings_without_end_is_sent_away(address, house_front):
    """The grpcio front enforces its keepalive rules; Envoy answers, and bounds what it is owed."""
    client = await RawClient.connect(address)
    for _ in range(20):
        client.ping()
    if house_front == "grpcio":
        await client.until(lambda: {"ConnectionTerminated", "closed"} & set(client.events))
    else:
        await client.until(lambda: client.events.count("PingAckReceived") == 20)
        assert (await client.call("/t/Echo", message("after"))).texts == ["after"]
    await client.close()


# -- Odd bytes ---------------------------------------------------------------------------------------


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 3), st.binary(min_size=1, max_size=40)), max_size=25))
async def test_garbage_on_some_streams_never_reaches_another(client, pieces):
    """Random bytes on three streams of a connection; the fourth's messages come back as they went."""
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

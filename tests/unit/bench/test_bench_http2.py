"""A client's HTTP/2 frames, checked against h2, a complete implementation."""

import h2.config
import h2.connection
import h2.events
import pytest

from bench import http2


@pytest.fixture
def server():
    """A server's connection that has received the client's first bytes."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    connection.initiate_connection()
    connection.receive_data(http2.opening())
    return connection


def test_server_understands_a_request(server):
    """It sees the headers, the message, and the end."""
    headers = {":method": "POST", ":scheme": "http", ":path": "/a/B", ":authority": "c:1", "te": "trailers"}
    events = server.receive_data(http2.request(headers, 1))
    events += server.receive_data(
        http2.frame(http2.DATA, http2.END_STREAM, 1, http2.message(b"x" * 70_000)[:16_000])
    )
    received, data, ended = events
    assert dict(received.headers) == {name.encode(): value.encode() for name, value in headers.items()}
    assert data.data == b"\0\0\x01\x11\x70" + b"x" * 15_995
    assert isinstance(ended, h2.events.StreamEnded)


def test_server_has_the_largest_flow_control_window(server):
    """Of the stream and of the connection."""
    headers = {":method": "POST", ":scheme": "http", ":path": "/", ":authority": "c"}
    server.receive_data(http2.request(headers, 1))
    assert server.local_flow_control_window(1) == 2**31 - 1


@pytest.mark.parametrize("size", [1, 8, 9, 10, 1000])
def test_reader_joins_pieces(server, size):
    """Of any size, also smaller than a frame's header."""
    server.receive_data(
        http2.request({":method": "POST", ":scheme": "http", ":path": "/", ":authority": "c"}, 1)
    )
    server.data_to_send()
    server.send_headers(1, [(":status", "200")])
    server.send_data(1, b"hello")
    server.send_headers(1, [("grpc-status", "0")], end_stream=True)
    sent = server.data_to_send()
    reader = http2.Reader()
    frames = [each for at in range(0, len(sent), size) for each in reader.feed(sent[at : at + size])]
    assert [each[0] for each in frames] == [http2.HEADERS, http2.DATA, http2.HEADERS]
    assert [each[2] for each in frames] == [1, 1, 1]
    assert frames[1][3] == b"hello"
    assert [bool(each[1] & http2.END_STREAM) for each in frames] == [False, False, True]


def test_long_headers_have_long_lengths():
    """A token may have more than 126 bytes; the examples of RFC 7541, C.1, give the form."""
    for size, length in ((126, b"\x7e"), (127, b"\x7f\x00"), (254, b"\x7f\x7f"), (1337, b"\x7f\xba\x09")):
        frame = http2.request({"a": "x" * size}, 1)
        assert frame[9:] == b"\0\1a" + length + b"x" * size

"""Questions to Envoy's administration, over a socket that answers with Envoy's own text."""

import contextlib
import http.server
import re
import socketserver
import threading
import urllib.parse

import pytest

from service.fronts.envoy.admin import EnvoyAdmin

STATS = """\
http.admin.downstream_cx_tx_bytes_buffered: {admin_bytes}
http.admin.downstream_rq_active: 1
http.ingress_http.downstream_cx_tx_bytes_buffered: {num_bytes}
http.ingress_http.downstream_rq_active: {num_requests}
"""


@contextlib.contextmanager
def administration(path, page):
    """Serves a page on a socket: each request gets the lines that its filter selects."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            (wanted,) = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)["filter"]
            lines = [line for line in page.splitlines() if re.search(wanted, line.partition(":")[0])]
            self.wfile.write("\n".join(lines).encode())

        def log_message(self, *_):
            pass

        def address_string(self):
            return ""

    with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield EnvoyAdmin(path)
        server.shutdown()
        serving.join()


@pytest.mark.parametrize(
    ("num_requests", "num_bytes", "is_sending"), [(0, 0, False), (1, 0, True), (0, 7, True)]
)
def test_a_question_is_no_answer_on_its_way(tmp_path, num_requests, num_bytes, is_sending):
    """The question itself is an active request of the administration, and does not delay a drain."""
    page = STATS.format(admin_bytes=9, num_requests=num_requests, num_bytes=num_bytes)
    with administration(tmp_path / "admin.sock", page) as admin:
        assert admin.is_sending() is is_sending


def test_an_envoy_that_is_gone_sends_nothing(tmp_path):
    """It sends nothing and listens nowhere, so a drain does not wait for it."""
    admin = EnvoyAdmin(tmp_path / "none.sock")
    assert not admin.is_sending()
    assert admin.listen_address() is None


TLS_STATS = """\
tls_inspector.tls_found: 7
tls_inspector.tls_not_found: 2
tls_inspector.sni_found: 7
listener.127.0.0.1_0.ssl.fail_verify_error: 3
listener.127.0.0.1_0.ssl.fail_verify_no_cert: 4
listener.127.0.0.1_0.ssl.handshake: 5
listener.[__1]_0.ssl.fail_verify_error: 1
sds.server.update_rejected: 1
sds.server.update_success: 8
"""


def test_connections_of_the_wrong_kind_are_counted(tmp_path):
    """Of all listeners together; nothing is told by an Envoy that is gone."""
    with administration(tmp_path / "admin.sock", TLS_STATS) as admin:
        assert admin.tls_counts() == {
            "tls_found": 7, "tls_not_found": 2, "fail_verify_error": 4, "fail_verify_no_cert": 4,
            "update_rejected": 1,
        }  # fmt: skip
    assert EnvoyAdmin(tmp_path / "none.sock").tls_counts() == {}

"""The demo's own arithmetic, and its promise to leave no server behind."""

import asyncio
import importlib
import math
import os
import pathlib
import re
import signal
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[3]
EXAMPLES = ROOT / "client/examples"
needs_server = pytest.mark.skipif(
    not (ROOT / "model/artifacts/nyc-taxi").exists() or not (ROOT / "service/__main__.py").exists(),
    reason="needs the server and the shipped models",
)
BUCKETS = [(0.1, 10.0), (0.2, 30.0), (0.4, 100.0), (math.inf, 100.0)]


def example(name):
    """A module beside the demo."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        return importlib.import_module(name)


class TestLatency:
    """The step latency, estimated from the server's page of metrics."""

    @pytest.mark.parametrize(
        ("q", "expected"),
        [(0.05, 0.05), (0.1, 0.1), (0.2, 0.15), (0.3, 0.2), (0.65, 0.3), (1.0, 0.4), (0.0, 0.0)],
    )
    def test_a_quantile_is_linear_within_a_bucket(self, q, expected):
        """A quantile lies as far into its bucket as its rank among the bucket's observations."""
        assert example("own_server").quantile(q, reversed(BUCKETS)) == pytest.approx(expected)

    def test_a_quantile_at_the_edges(self):
        """Beyond the last finite bound it is that bound; without observations there is none."""
        quantile = example("own_server").quantile
        assert quantile(0.99, [(0.1, 1.0), (math.inf, 100.0)]) == 0.1
        assert math.isnan(quantile(0.5, []))
        assert math.isnan(quantile(0.5, [(0.1, 0.0), (math.inf, 0.0)]))

    def test_buckets_are_those_of_one_model(self):
        """A page of metrics with several models gives the buckets of the model asked for."""
        text = "\n".join([
            "# TYPE streamcell_step_seconds histogram",
            'streamcell_step_seconds_bucket{le="0.1",model="a",version="1"} 3',
            'streamcell_step_seconds_bucket{le="+Inf",model="a",version="1"} 4',
            'streamcell_step_seconds_bucket{le="0.1",model="b",version="1"} 9',
            'streamcell_step_seconds_sum{model="a",version="1"} 1',
            'streamcell_step_seconds_count{model="a",version="1"} 4', "",
        ])  # fmt: skip
        assert example("own_server").latency_buckets(text, "a", "1") == [(0.1, 3.0), (math.inf, 4.0)]


def test_running_errors():
    """MAE and altMAPE are over all predictions so far."""
    errors = example("comparison").Errors()
    assert math.isnan(errors.alt_mape)
    errors.add(3.0, 2.0)
    errors.add(5.0, 8.0)
    assert errors.mae == 2.0
    assert errors.alt_mape == 0.4


async def run_demo(*arguments, stop_after=None, stop_with=signal.SIGINT):
    """Runs the demo; returns status, output, errors; interrupts it after a line that contains a word."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(EXAMPLES / "demo.py"), *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, env=os.environ | {"STREAMCELL_DEMO_TEST": str(os.getpid())},
    )  # fmt: skip
    out = b""
    while stop_after is not None and (line := await process.stdout.readline()):
        out += line
        if stop_after in line:
            process.send_signal(stop_with)
            break
    rest, err = await process.communicate()
    return process.returncode, (out + rest).decode(), err.decode()


def addresses(out):
    """The server's addresses, as the demo printed them."""
    return [(host, int(port)) for host, port in re.findall(r"(127\.0\.0\.1):([1-9]\d*)", out)]


async def assert_nothing_listens(where):
    """Every address refuses connections: the server that listened there is gone."""
    assert where
    for host, port in where:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, port)


def children_of_this_test():
    """Processes that still carry this test's mark in their environment."""
    mark = f"STREAMCELL_DEMO_TEST={os.getpid()}".encode()
    return [path for path in pathlib.Path("/proc").glob("[0-9]*/environ") if mark in _read(path)]


def _read(path):
    try:
        return path.read_bytes()
    except OSError:  # gone meanwhile, or another user's
        return b""


class TestRun:
    """The demo as a user runs it, in a process of its own."""

    @needs_server
    async def test_a_short_series_is_shown_whole_and_the_server_goes(self, tmp_path):
        """Every row of a short file has its line; the summary and the forecast follow; no server is left."""
        path = tmp_path / "short.csv"
        path.write_text("timestamp,value\n" + "".join(f"2026-01-01 00:{m:02}:00,{m % 7}\n" for m in range(9)))
        status, out, err = await run_demo("--csv", str(path))
        assert (status, err) == (0, "")
        assert len(re.findall(r"^2026-01-01 00:0\d:00 .* \|", out, re.MULTILINE)) == 9
        assert "60 s apart" in out
        assert re.search(r"p50 \d+\.\d+ ms, p99 \d+\.\d+ ms", out)
        assert max(len(line) for line in out.splitlines() if str(path) not in line) <= 100
        await assert_nothing_listens(addresses(out))

    @needs_server
    @pytest.mark.parametrize(
        ("word", "number"),
        [(b"starting a server", signal.SIGINT), (b"actual", signal.SIGINT), (b"actual", signal.SIGTERM)],
    )
    async def test_a_signal_stops_the_server_too(self, word, number):
        """Ctrl-C, or being told to end, while the server starts or in the middle of the series, ends both."""
        status, out, err = await run_demo(stop_after=word, stop_with=number)
        assert (status, err) == (128 + number, "")
        if word == b"actual":
            await assert_nothing_listens(addresses(out))
        assert children_of_this_test() == []

    async def test_a_bad_file_is_one_line_and_status_1(self, tmp_path):
        """What is wrong with the file is said before any server starts."""
        path = tmp_path / "bad.csv"
        path.write_text("timestamp,value\n2026-01-01,1\n2026-01-02,x\n2026-01-03,3\n")
        status, out, err = await run_demo("--csv", str(path))
        assert (status, out) == (1, "")
        assert err.count("\n") == 1
        assert "line 3" in err

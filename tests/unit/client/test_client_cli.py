"""The command: piping a series, line by line, and one line for whatever goes wrong."""

import asyncio
import contextlib
import csv
import io
import os
import signal
import struct
import sys
import threading

import pytest
from fake_streamcell import Fault, expected
from hypothesis import given, settings
from hypothesis import strategies as st
from streamcell import cli
from streamcell.lines import read_lines
from streamcell.predict import shortest

SERIES = "timestamp,value\n2026-01-01 00:00:00,1\n2026-01-01 00:01:00,2\n2026-01-01 00:02:00,4\n"


class Outcome:
    """The exit status and the output of a command."""

    def __init__(self, status, out, err):
        self.status = status
        self.out = out
        self.err = err

    @property
    def table(self):
        """The output's rows, by column."""
        return list(csv.DictReader(io.StringIO(self.out)))


@pytest.fixture
def command(server, capsys):
    """Runs the command in a thread of its own, with its own event loop, against the fake server."""

    async def run(*arguments, target=None):
        given = [*arguments, "--target", target or server.target]
        status = await asyncio.to_thread(cli.run, given)
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


@pytest.fixture
def series(tmp_path):
    """Writes a file and returns its path."""

    def write(text):
        path = tmp_path / "series.csv"
        path.write_text(text)
        return str(path)

    return write


async def refuse_step_1(request):
    """A hook that finds fault with the second step."""
    if request.step_index == 1:
        raise Fault("INVALID_ARGUMENT", "INVALID_ARGUMENT", "x: too odd", metadata={"field": "x"})


@contextlib.asynccontextmanager
async def running(server, *arguments):
    """The command as a process of its own, between pipes."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "streamcell", "predict", "--target", server.target, *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        # About a server that is cut off hard, gRPC's core would write a note of its own.
        # Output is to come in time by the command's own doing, so Python's switch for that stays off.
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(sys.path), "GRPC_VERBOSITY": "NONE", "PYTHONUNBUFFERED": ""},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@settings(deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_numbers_are_as_short_as_exact(value):
    """The text read back as float32 is the value itself."""
    assert struct.unpack("f", struct.pack("f", float(shortest(value))))[0] == value
    assert len(shortest(value)) <= len(f"{value:.9g}")


class TestPredict:
    """A series goes in, predictions come out."""

    async def test_a_file_is_predicted(self, command, series, server):
        """Each row has what had been predicted for it, which is empty for the first."""
        outcome = await command("predict", "--model", "tiny", "--csv", series(SERIES))
        assert (outcome.status, outcome.err) == (0, "")
        assert list(outcome.table[0]) == ["time", "step_index", "value", "predicted_h", "predicted_index"]
        assert [row["time"] for row in outcome.table] == [line[:19] for line in SERIES.splitlines()[1:]]
        assert [row["step_index"] for row in outcome.table] == ["0", "1", "2"]
        assert [row["value"] for row in outcome.table] == ["1", "2", "4"]
        predictions = [shortest(value) for value in expected([[1.0], [2.0], [4.0]])]
        assert [row["predicted_h"] for row in outcome.table] == ["", *predictions[:2]]
        assert server.sessions == {}

    async def test_a_forecast_follows_the_rows(self, command, series):
        """--horizon adds rows with times and indexes that go on, and no values."""
        outcome = await command("predict", "--csv", series(SERIES), "--horizon", "2")
        ahead = outcome.table[3:]
        assert [(row["time"], row["step_index"], row["value"]) for row in ahead] == [
            ("2026-01-01 00:03:00", "3", ""), ("2026-01-01 00:04:00", "4", ""),
        ]  # fmt: skip
        assert [row["predicted_h"] for row in ahead] == ["5.25", "5.25"]

    async def test_a_named_session_goes_on(self, command, series, server):
        """A second part of the series continues the session that the first part left."""
        first = await command("predict", "--session", "mine", "--csv", series(SERIES))
        assert first.status == 0
        second = await command("predict", "--session", "mine", "--csv", series("time,value\n2026-01-02,1\n"))
        assert [row["step_index"] for row in second.table] == ["3"]
        assert len(server.sessions["mine"].applied) == 4

    async def test_rows_that_the_session_has_are_left_out(self, command, series, server):
        """A command that is run again with a longer file applies the new rows alone, and says so."""
        assert (await command("predict", "--session", "mine", "--csv", series(SERIES))).err == ""
        longer = SERIES + "2026-01-01 00:03:00,8\n"
        again = await command("predict", "--session", "mine", "--csv", series(longer))
        assert [(row["time"], row["step_index"]) for row in again.table] == [("2026-01-01 00:03:00", "3")]
        assert again.err == "streamcell: 3 rows left out: session mine has them already\n"
        assert [x for x, _, _ in server.sessions["mine"].applied] == [[1], [2], [4], [8]]

    async def test_a_file_that_the_session_has_whole_gives_its_forecast(self, command, series, server):
        """Nothing is applied, and the output is a header and the forecast, from the file's last time."""
        await command("predict", "--session", "mine", "--csv", series(SERIES))
        again = await command("predict", "--session", "mine", "--csv", series(SERIES), "--horizon", "1")
        assert again.status == 0
        assert [(row["time"], row["step_index"]) for row in again.table] == [("2026-01-01 00:03:00", "3")]
        assert len(server.sessions["mine"].applied) == 3

    async def test_output_goes_to_a_file(self, command, series, tmp_path):
        """--out gets everything that standard output would get."""
        outcome = await command("predict", "--csv", series(SERIES), "--out", str(tmp_path / "out.csv"))
        assert outcome.out == ""
        assert len((tmp_path / "out.csv").read_text().splitlines()) == 4


class TestModels:
    """The command lists the models."""

    async def test_models_are_listed(self, command):
        """A line for each model, with its inputs and outputs."""
        outcome = await command("models")
        title, line = outcome.out.splitlines()
        assert title.split() == ["MODEL", "SESSIONS", "INTERVAL", "INPUTS", "OUTPUTS", "DESCRIPTION"]
        assert line.split("  ")[0] == "tiny/1"
        assert "h, index" in line


class TestFaults:
    """Each fault is one line on standard error and status 1, wrong usage status 2."""

    @pytest.mark.parametrize(
        ("text", "message", "num_rows"),
        [
            (SERIES + "2026-01-01 00:03:00,x\n", "line 5, column value: 'x' is not a number", 3),
            (SERIES + "2026-01-01 00:02:00,1\n", "line 5, column timestamp: 2026-01-01 00:02:00 is the", 3),
            (
                "date,b,c\n1,2,3\n",
                "line 1: 2 value columns beside the time (date) where the model takes 1 input",
                0,
            ),
            ("timestamp,value\n", "no rows", 0),
            ("", "no rows", 0),
        ],
    )
    async def test_a_series_that_is_wrong_is_one_line_and_status_1(
        self, command, series, text, message, num_rows
    ):
        """The rows before the fault are answered; the line names file, line and column."""
        outcome = await command("predict", "--csv", series(text))
        assert outcome.status == 1
        assert len(outcome.table) == num_rows
        assert outcome.err.count("\n") == 1
        assert message in outcome.err
        assert "series.csv" in outcome.err

    async def test_bytes_that_are_no_text_are_named(self, command, tmp_path):
        """A file in another encoding fails with its line."""
        path = tmp_path / "latin.csv"
        path.write_bytes(SERIES.encode() + b"\xff\xfe,1\n")
        outcome = await command("predict", "--csv", str(path))
        assert outcome.status == 1
        assert "not UTF-8 text" in outcome.err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("predict", "--csv", "missing.csv"), "streamcell: missing.csv: No such file"),
            (("predict", "--csv", "/"), "streamcell: /: Is a directory"),
            (("predict", "--csv", os.devnull, "--model", "nix"), "no model nix"),
            (("models", "--tls-ca", "missing.pem"), "streamcell: --tls-ca: missing.pem: No such file"),
        ],
    )
    async def test_other_faults_are_one_line_too(self, command, arguments, message):
        """Files, models and authorities that are not there are named."""
        outcome = await command(*arguments)
        assert outcome.status == 1
        assert outcome.err.count("\n") == 1
        assert message in outcome.err

    async def test_a_server_that_is_not_there_is_named(self, command, server):
        """The line begins with the target."""
        await server.stop()
        outcome = await command("models", target=server.target)
        assert outcome.status == 1
        assert outcome.err.startswith(f"streamcell: {server.target}: ")

    async def test_a_row_that_the_server_refuses_has_its_line_named(self, command, series, server):
        """What only the server finds wrong is said with the line it was about."""
        server.before = refuse_step_1
        outcome = await command("predict", "--csv", series(SERIES))
        assert outcome.status == 1
        assert "series.csv: line 3: x: too odd" in outcome.err

    @pytest.mark.parametrize("arguments", [["predict", "--horizon", "-1"], ["predict", "--nix"], []])
    def test_wrong_usage_is_status_2(self, arguments, capsys):
        """An unknown option, a wrong number and no command are wrong usage."""
        with pytest.raises(SystemExit) as caught:
            cli.run(arguments)
        assert caught.value.code == 2

    def test_help_says_how_times_are_read(self, capsys):
        """The help says that times without an offset are UTC."""
        with pytest.raises(SystemExit):
            cli.run(["predict", "--help"])
        assert "UTC where no offset is given" in capsys.readouterr().out


class TestPipe:
    """The command as a process between two pipes."""

    async def test_lines_are_answered_as_they_come(self, server):
        """A pipe gets the answer to each line before it sends the next; its end is the command's."""
        async with running(server) as process:
            process.stdin.write(b"timestamp,value\n")
            for minute in range(3):
                process.stdin.write(f"2026-01-01 00:0{minute}:00,{minute}\n".encode())
                if minute == 0:
                    assert (await process.stdout.readline()).startswith(b"time,step_index,value,")
                line = await process.stdout.readline()
                assert line.startswith(f"2026-01-01 00:0{minute}:00,{minute},{minute},".encode())
            process.stdin.close()
            assert await process.stderr.read() == b""
            assert await process.wait() == 0

    async def test_a_restarted_server_is_not_noticed(self, server):
        """The pipe goes on after a lost connection, without a word on standard error."""
        async with running(server) as process:
            process.stdin.write(b"timestamp,value\n2026-01-01,1\n")
            await process.stdout.readline()
            await process.stdout.readline()
            await server.stop()
            await server.start()
            process.stdin.write(b"2026-01-02,1\n")
            line = await process.stdout.readline()
            assert line.startswith(b"2026-01-02,1,1,1,")
            process.stdin.close()
            assert await process.stderr.read() == b""
            assert await process.wait() == 0

    async def test_ctrl_c_is_quiet_and_leaves_no_session(self, server):
        """An interrupt while waiting for a line ends with 130, says nothing and closes the session."""
        async with running(server) as process:
            process.stdin.write(b"timestamp,value\n2026-01-01,1\n")
            await process.stdout.readline()
            await process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
            assert await process.stderr.read() == b""
        assert server.sessions == {}

    async def test_a_reader_that_went_away_is_quiet(self, server):
        """A broken pipe ends the command without a word."""
        async with running(server) as process:
            process.stdin.write(b"timestamp,value\n2026-01-01,1\n")
            await process.stdout.readline()
            await process.stdout.readline()
            process.stdout._transport.close()  # as `head` does
            process.stdin.write(b"2026-01-02,1\n2026-01-03,1\n")
            assert await process.wait() == 141
            assert await process.stderr.read() == b""


class TestLines:
    """Lines are read from a descriptor as they come."""

    async def test_lines_come_whole_whatever_the_chunks(self):
        """Chunks that split lines and characters make no difference; a last line needs no end."""
        reading, writing = os.pipe()
        text = "﻿über,1\r\nzwei\n\ndrei"

        def write():
            for byte in text.encode():
                os.write(writing, bytes([byte]))
            os.close(writing)

        thread = threading.Thread(target=write)
        thread.start()
        lines = [line async for line in read_lines(reading)]
        thread.join()
        os.close(reading)
        assert lines == ["über,1", "zwei", "", "drei"]

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    async def test_a_line_may_end_in_any_way(self, tmp_path, end):
        """Blank lines stay, and the end of the last line begins no new one."""
        path = tmp_path / "lines"
        path.write_bytes(end.join(["a", "", "b", ""]).encode())
        descriptor = os.open(path, os.O_RDONLY)
        assert [line async for line in read_lines(descriptor)] == ["a", "", "b"]
        os.close(descriptor)

    async def test_a_descriptor_that_cannot_be_read_is_an_error(self):
        """The operating system's word reaches the caller."""
        reading, writing = os.pipe()
        os.close(reading)
        with pytest.raises(OSError, match="Bad file descriptor"):
            _ = [line async for line in read_lines(reading)]
        os.close(writing)

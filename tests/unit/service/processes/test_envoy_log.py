"""What a process with Envoy inside writes: what is passed on, when, and what never is."""

import asyncio
import json

import pytest

from service.processes.envoy_log import EnvoyLog
from tests.fakes import turn

CAUSE = "cannot bind '127.0.0.1:80': Address already in use"
FAILURE = json.dumps(
    {"event": "envoy", "message": f"error `{CAUSE}` initializing config ' {{secret}}'", "level": "critical"}
)
WARNING = '{"event": "envoy", "message": "a listener is odd", "level": "error"}'
SERVERS = '{"event": "model_loaded", "level": "info"}'


class Rig:
    """A log, and the process that writes it."""

    def __init__(self):
        self.process, self.passed_on = asyncio.StreamReader(), []
        self.log = EnvoyLog(self.process, lambda line: self.passed_on.append(line.removesuffix("\n")))

    async def write(self, *lines):
        """Writes lines."""
        self.process.feed_data("".join(f"{line}\n" for line in lines).encode())
        await turn()

    async def end(self):
        """Ends the process and returns the cause that Envoy gave."""
        self.process.feed_eof()
        return await self.log.why_failed()


class TestFailedStart:
    """An Envoy that does not start."""

    async def test_the_cause_is_kept_and_the_configuration_is_not_shown(self):
        """Nor is what Envoy says on the way there, nor the cause again as plain text."""
        rig = Rig()
        await rig.write(WARNING, FAILURE, CAUSE)
        assert await rig.end() == CAUSE
        assert rig.passed_on == []

    async def test_a_cause_is_one_line_of_bounded_length(self):
        """Envoy's causes may have several lines, with parts of the configuration."""
        rig = Rig()
        await rig.write(FAILURE.replace("cannot bind", "cannot\\n bind " + "x" * 5000))
        cause = await rig.end()
        assert cause.startswith("cannot bind xxx")
        assert len(cause) == 300

    async def test_without_a_cause_everything_is_passed_on(self):
        """Such as the lines of a crash."""
        rig = Rig()
        await rig.write(WARNING, "Caught a signal")
        assert await rig.end() == ""
        assert sorted(rig.passed_on) == sorted([WARNING, "Caught a signal"])


class TestLines:
    """What is passed on."""

    async def test_the_servers_lines_are_passed_on_at_once(self):
        """Whatever is in them, and Envoy's once it has started."""
        rig = Rig()
        await rig.write(WARNING, SERVERS, "plain text", "[]", "")
        assert rig.passed_on == [SERVERS, "plain text", "[]", ""]
        rig.log.release()
        assert rig.passed_on[4:] == [WARNING]
        await rig.write(WARNING)
        assert rig.passed_on[5:] == [WARNING]
        await rig.end()

    async def test_lines_come_in_pieces_and_the_last_may_lack_its_end(self):
        """A long line is one, and bytes that are no text are shown as such."""
        rig = Rig()
        rig.process.feed_data(b"x" * 200_000)
        rig.process.feed_data(b"\xff\nlast")
        rig.process.feed_eof()
        await rig.log.close()
        assert rig.passed_on == ["x" * 200_000 + "\ufffd", "last"]

    async def test_a_configuration_is_never_shown(self):
        """Not after the start, either."""
        rig = Rig()
        rig.log.release()
        await rig.write(FAILURE)
        await rig.end()
        assert rig.passed_on == []


@pytest.mark.parametrize("text", ["null", "3", '{"event": 1}', "{", '{"event": "envoy"}'])
async def test_any_text_is_a_line(text):
    """Nothing that is written ends the passing on."""
    rig = Rig()
    rig.log.release()
    await rig.write(text, SERVERS)
    await rig.end()
    assert rig.passed_on == [text, SERVERS]

"""Leads the life of a worker process within Envoy: start, ready, drain, stop. Serves nothing itself.

Stays light: torch is in the worker alone.
"""

import asyncio
import contextlib
import http.client
import json
import os
import pathlib
import signal
import socket
import sys
import tempfile
import time
from typing import Any

from service import config, control, log
from service.config import Address, Config
from service.control import Channel
from service.errors import ConfigError
from service.fronts import envoy_process

_APPLICATION = "service.worker:application"
_POLL_SECONDS = 0.02
_FLUSH_SECONDS = 5.0  # how long the last answers may take to leave, clients being slow
_STOP_SECONDS = 10.0  # how long Envoy may take to end
# Envoy's own lines, as the server's log has them.
_LOG_FORMAT = '{"event": "envoy", "message": "%j", "level": "%l", "time": "%Y-%m-%dT%T%z"}'


class Worker:
    """One Envoy with a server within."""

    def __init__(self, process: asyncio.subprocess.Process, channel: Channel, admin: pathlib.Path) -> None:
        self.process = process
        self._channel = channel
        self._admin = admin

    @classmethod
    async def start(cls, settings: Config, folder: pathlib.Path, application: str = _APPLICATION) -> "Worker":
        """Starts a worker that serves the ASGI application `module:name`; `folder` is for its sockets.

        Raises:
            ConfigError: the front cannot be had here, or a file cannot be read.
        """
        admin = folder / "admin.sock"
        configuration = envoy_process.configuration(settings, application, admin)
        ours, theirs = socket.socketpair()
        variables = {
            **os.environ,
            **envoy_process.environment(),
            **config.to_environment(settings),
            control.VARIABLE: str(theirs.fileno()),
        }
        with theirs:
            process = await asyncio.create_subprocess_exec(
                envoy_process.program(),
                *("--config-yaml", json.dumps(configuration)),
                *("--log-level", "error", "--log-format", _LOG_FORMAT),
                *(
                    "--use-dynamic-base-id",
                    "--concurrency",
                    "1",
                ),  # Python takes more time than one thread of Envoy's
                env=variables,
                pass_fds=[theirs.fileno()],
                stdout=sys.stderr,
                start_new_session=True,  # a terminal's Ctrl-C is for the supervisor, who drains
            )
        return cls(process, await Channel.of(ours), admin)

    async def ready(self) -> tuple[Address, str]:
        """Waits until it serves; returns where, and where its metrics are.

        Raises:
            ConfigError: it cannot start; the message says why.
        """
        told = await self._channel.receive()
        if told is None:
            raise ConfigError(f"--front: Envoy ended before it served (status {await self.process.wait()})")
        if told["event"] == "failed":
            await self.process.wait()
            raise ConfigError(told["why"])
        while (address := await asyncio.to_thread(self._listening)) is None:
            if self.process.returncode is not None:
                raise ConfigError(f"--listen: Envoy cannot listen (status {self.process.returncode})")
            await asyncio.sleep(_POLL_SECONDS)
        return address, told["metrics"]

    def _listening(self) -> Address | None:
        """Asks Envoy where it listens; None as long as it does not."""
        try:
            statuses = _Admin(self._admin).listeners()
            found = statuses[0]["local_address"]["socket_address"]
        except (OSError, http.client.HTTPException, ValueError, LookupError):
            return None
        return Address(found["address"], found["port_value"])

    async def drain(self) -> bool:
        """Has it finish what is in flight; tells whether all was."""
        self._channel.send(order="drain")
        told = await self._channel.receive()
        if told is None:
            return False
        deadline = time.monotonic() + _FLUSH_SECONDS
        while time.monotonic() < deadline and await asyncio.to_thread(self._is_sending):  # noqa: ASYNC110 (Envoy can only be asked)
            await asyncio.sleep(_POLL_SECONDS)
        return bool(told["clean"])

    def _is_sending(self) -> bool:
        """Asks Envoy whether answers are on their way to clients still."""
        try:
            return any(_Admin(self._admin).gauges("downstream_rq_active|downstream_cx_tx_bytes_buffered"))
        except (OSError, http.client.HTTPException, ValueError):
            return False

    async def stop(self) -> None:
        """Ends the process, if need be by force."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
            try:
                await asyncio.wait_for(self.process.wait(), _STOP_SECONDS)
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
        await self._channel.close()


class _Admin(http.client.HTTPConnection):
    """Envoy's administration, on a socket in the file system."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__("localhost", timeout=_STOP_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

    def listeners(self) -> list[dict[str, Any]]:
        statuses: list[dict[str, Any]] = json.loads(self._page("/listeners?format=json"))["listener_statuses"]
        return statuses

    def gauges(self, pattern: str) -> list[int]:
        lines = self._page(f"/stats?filter={pattern}").splitlines()
        return [int(line.rpartition(": ")[2]) for line in lines]

    def _page(self, path: str) -> str:
        with contextlib.closing(self):
            self.request("GET", path)
            return self.getresponse().read().decode()


async def run(settings: Config) -> int:
    """Serves until a signal, and returns the exit status: 0 after a clean drain, else 1.

    The first SIGTERM or SIGINT drains, a second one ends at once. If the worker ends by itself, so does this.

    Raises:
        ConfigError: the server cannot start; the message says why.
    """
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    _check_free(settings.listen)
    with tempfile.TemporaryDirectory(prefix="streamcell-") as folder:
        worker = await Worker.start(settings, pathlib.Path(folder))
        try:
            return await _lead(worker, settings, signals)
        finally:
            await worker.stop()


async def _lead(worker: Worker, settings: Config, signals: "asyncio.Queue[signal.Signals]") -> int:
    told, ended = asyncio.create_task(signals.get()), asyncio.create_task(worker.process.wait())
    # Stage 1: ready.
    ready = asyncio.create_task(worker.ready())
    await asyncio.wait((ready, told), return_when=asyncio.FIRST_COMPLETED)
    if ready.done():
        listen, metrics = ready.result()
        log.info("serving", listen=str(listen), metrics=metrics)
    # Stage 2: serve, until told to stop.
    await asyncio.wait((told, ended), return_when=asyncio.FIRST_COMPLETED)
    if not told.done():
        log.warning("stopped", clean=False, why=f"Envoy ended by itself, with status {ended.result()}")
        return 1
    log.info("draining", signal=told.result().name, timeout_seconds=settings.drain_timeout_seconds)
    # Stage 3: drain, unless told again.
    drained, again = asyncio.create_task(worker.drain()), asyncio.create_task(signals.get())
    await asyncio.wait((drained, again), return_when=asyncio.FIRST_COMPLETED)
    if not drained.done():
        log.warning("stopped", clean=False, why="a second signal")
        return 1
    is_clean = drained.result()
    await worker.stop()
    log.info("stopped", clean=is_clean)
    return 0 if is_clean else 1


def _check_free(address: Address) -> None:
    """Sees to it that a port that is taken is said as on the other front; Envoy would say it its own way."""
    if not address.port:
        return
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError:
            raise ConfigError(
                f"--listen: cannot listen on {address}: is it taken, or another machine's?"
            ) from None

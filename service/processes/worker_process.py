"""A worker process as its supervisor sees it: start, ready, page, reload, drain, stop. Serves nothing itself.

Stays light: torch is in the worker alone.
"""

import asyncio
import contextlib
import json
import os
import pathlib
import secrets
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from service import config
from service.config import Address, Config
from service.errors import ConfigError
from service.fronts.envoy import launch
from service.fronts.envoy.admin import EnvoyAdmin
from service.processes import control
from service.processes.control import Channel

APPLICATION = "service.worker:application"
_POLL_SECONDS = 0.02
_FLUSH_SECONDS = 5.0  # how long the last answers may take to leave, clients being slow
_STOP_SECONDS = 10.0  # how long a process may take to end
# Envoy's own lines, as the server's log has them.
_LOG_FORMAT = '{"event": "envoy", "message": "%j", "level": "%l", "time": "%Y-%m-%dT%T%z"}'


class Worker:
    """A process with a server within, which says itself when it listens."""

    name = "the worker"

    def __init__(self, process: asyncio.subprocess.Process, channel: Channel) -> None:
        self.process = process
        self._channel = channel
        self._awaited: dict[str, asyncio.Future[dict[str, Any] | None]] = {}
        self._is_gone = False
        self._hearing = asyncio.create_task(self._hear())

    async def ready(self) -> Address:
        """Waits until it serves; returns where.

        Raises:
            ConfigError: it cannot start; the message says why.
        """
        told = await self._told("started")
        if told is None:
            status = await self.process.wait()
            raise ConfigError(f"--front: {self.name} ended before it served (status {status})")
        if told["failed"]:
            await self.process.wait()
            raise ConfigError(told["failed"])
        return Address(*told["listen"])

    async def page(self) -> str | None:
        """Returns its page of metrics, None if it is gone."""
        told = await self._ask("page")
        return told["page"] if told else None

    def reload(self) -> None:
        """Has it look for new versions of the models now."""
        self._channel.send(order="reload")

    async def drain(self) -> bool:
        """Has it finish what is in flight; tells whether all was."""
        told = await self._ask("drain")
        return bool(told and told["clean"])

    async def stop(self) -> None:
        """Ends the process, if need be by force."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
            try:
                await asyncio.wait_for(self.process.wait(), _STOP_SECONDS)
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
        self._hearing.cancel()
        await self._channel.close()

    async def _ask(self, order: str) -> dict[str, Any] | None:
        self._channel.send(order=order)
        return await self._told(order)

    async def _told(self, event: str) -> dict[str, Any] | None:
        """Returns the next message of a kind, None if the process is gone; several may wait for the same."""
        if self._is_gone:
            return None
        if event not in self._awaited:
            self._awaited[event] = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._awaited[event])

    async def _hear(self) -> None:
        while (told := await self._channel.receive()) is not None:
            if told["event"] in self._awaited:
                self._awaited.pop(told["event"]).set_result(told)
        self._is_gone = True
        for future in self._awaited.values():
            future.set_result(None)


class _EnvoyWorker(Worker):
    """Envoy with a server within: Envoy listens, and has answers left when the server has none."""

    name = "Envoy"

    def __init__(self, process: asyncio.subprocess.Process, channel: Channel, admin: EnvoyAdmin) -> None:
        super().__init__(process, channel)
        self._admin = admin

    async def ready(self) -> Address:
        await super().ready()
        while (address := await asyncio.to_thread(self._admin.listen_address)) is None:
            if self.process.returncode is not None:
                raise ConfigError(f"--listen: Envoy cannot listen (status {self.process.returncode})")
            await asyncio.sleep(_POLL_SECONDS)
        return address

    async def drain(self) -> bool:
        is_clean = await super().drain()
        deadline = time.monotonic() + _FLUSH_SECONDS
        while time.monotonic() < deadline and await asyncio.to_thread(self._admin.is_sending):  # noqa: ASYNC110 (Envoy can only be asked)
            await asyncio.sleep(_POLL_SECONDS)
        return is_clean


async def start(settings: Config, folder: pathlib.Path, application: str) -> Worker:
    """Starts a worker.

    Args:
        folder: for its socket.
        application: the ASGI application `module:name` that Envoy serves.

    Raises:
        ConfigError: the front cannot be had here, or a file cannot be read.
    """
    if settings.front != "envoy":
        return Worker(*await _spawn(settings, [sys.executable, "-m", "service.worker"], {}))
    socket_path = folder / f"{secrets.token_hex(8)}.sock"
    command = [
        launch.program(),
        *("--config-yaml", json.dumps(launch.configuration(settings, application, socket_path))),
        *("--log-level", "error", "--log-format", _LOG_FORMAT, "--use-dynamic-base-id"),
        *("--concurrency", "1"),  # Python takes more time than one thread of Envoy's
    ]
    spawned = await _spawn(settings, command, launch.environment())
    return _EnvoyWorker(*spawned, EnvoyAdmin(socket_path))


async def _spawn(
    settings: Config, command: Sequence[str], environment: Mapping[str, str]
) -> tuple[asyncio.subprocess.Process, Channel]:
    ours, theirs = socket.socketpair()
    with theirs:
        variables = {control.VARIABLE: str(theirs.fileno()), **config.to_environment(settings), **environment}
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, **variables},
            pass_fds=[theirs.fileno()],
            stdout=sys.stderr,
            start_new_session=True,  # a terminal's Ctrl-C is for the supervisor, who drains
        )
    return process, await Channel.of(ours)

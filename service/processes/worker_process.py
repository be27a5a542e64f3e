"""A worker process as its supervisor sees it: start, ready, page, reload, drain, stop.

Stays light: only the worker imports torch. Does not serve calls itself.
"""

import asyncio
import contextlib
import json
import os
import secrets
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast

from service import config
from service.config import Address, Config
from service.errors import ConfigError
from service.fronts.envoy import launch
from service.fronts.envoy.admin import EnvoyAdmin
from service.processes import control, envoy_log
from service.processes.control import Channel
from service.processes.envoy_log import EnvoyLog
from service.processes.listeners import EnvoyListener, Listener, ServerListener
from service.processes.server_folder import ServerFolder

APPLICATION = "service.worker:application"
_STOP_SECONDS = 10.0  # the longest wait for a process to end


class WorkerProcess:
    """A process with a server inside.

    Args:
        process: the process.
        channel: the supervisor's end of the line to the process.
        listener: what listens for the process's clients.
        log: what passes on the lines of Envoy, if the process is Envoy.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        channel: Channel,
        listener: Listener,
        log: EnvoyLog | None = None,
    ) -> None:
        self._process = process
        self._log = log
        self._channel = channel
        self._listener = listener
        self._pending_replies: dict[str, asyncio.Future[dict[str, Any] | None]] = {}
        self._is_gone = False
        self._receiving = asyncio.create_task(self._receive_replies())

    @property
    def name(self) -> str:
        """The process's name in messages."""
        return self._listener.name

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.returncode is None

    async def ready(self) -> Address:
        """Waits until the worker serves; returns its address.

        Raises:
            ConfigError: the worker cannot start; the message says why.
        """
        started = await self._reply("started")
        if started is None:
            status = await self._process.wait()
            why = await self._why_failed()
            raise ConfigError(f"--front: {self.name} ended before it served (status {status}){why}")
        if started["failed"]:
            await self._process.wait()
            raise ConfigError(started["failed"])
        try:
            found = await self._listener.wait_until_listening(self._process, Address(*started["listen"]))
        except ConfigError as error:
            raise ConfigError(f"{error}{await self._why_failed()}") from None
        if self._log is not None:
            self._log.release()
        return found

    async def _why_failed(self) -> str:
        """Returns the cause that the process gave for its end, after a colon; "" if it runs or gave none."""
        if self._log is None or self.is_alive:
            return ""
        cause = await self._log.why_failed()
        return f": {cause}" if cause else ""

    async def page(self) -> str | None:
        """Returns the worker's page of metrics; None if the worker is gone."""
        reply = await self._request("page")
        return reply["page"] if reply else None

    async def tls_counts(self) -> Mapping[str, int]:
        """Returns Envoy's counts about TLS, by the ends of the counters' names."""
        return await self._listener.tls_counts()

    def reload(self) -> None:
        """Orders the worker to look for new versions of the models now."""
        self._channel.send(order="reload")

    def become_lame_duck(self) -> None:
        """Orders the worker to report NOT_SERVING from now on, and to serve on."""
        self._channel.send(order="lame_duck")

    async def drain(self) -> bool:
        """Orders the worker to finish its active calls; returns whether all of them finished."""
        reply = await self._request("drain")
        await self._listener.flush()
        return bool(reply and reply["clean"])

    async def wait(self) -> int:
        """Waits until the process ends; returns its status."""
        return await self._process.wait()

    async def stop(self) -> None:
        """Ends the process, by force if it does not end in time. May be called twice."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), _STOP_SECONDS)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        self._receiving.cancel()
        await self._channel.close()
        if self._log is not None:
            await self._log.close()

    async def _request(self, order: str) -> dict[str, Any] | None:
        self._channel.send(order=order)
        return await self._reply(order)

    async def _reply(self, event: str) -> dict[str, Any] | None:
        """Returns the next message of a kind; None if the process is gone. Several callers may wait."""
        if self._is_gone:
            return None
        if event not in self._pending_replies:
            self._pending_replies[event] = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._pending_replies[event])

    async def _receive_replies(self) -> None:
        while (reply := await self._channel.receive()) is not None:
            if reply["event"] in self._pending_replies:
                self._pending_replies.pop(reply["event"]).set_result(reply)
        self._is_gone = True
        for future in self._pending_replies.values():
            future.set_result(None)


async def start(settings: Config, folder: ServerFolder, application: str) -> WorkerProcess:
    """Starts a worker.

    Args:
        folder: where the socket of Envoy's administration is made; it lasts as long as the worker.
        application: the ASGI application `module:name` that Envoy serves.

    Raises:
        ConfigError: the front cannot run here, or a file cannot be read.
        OSError: the system cannot start a process.
    """
    if settings.front != "envoy":
        spawned = await _spawn(settings, folder, [sys.executable, "-m", "service.worker"], {})
        return WorkerProcess(*spawned, ServerListener())
    name = secrets.token_hex(8)
    socket_path, configuration_path = folder.path / f"{name}.sock", folder.path / f"{name}.json"
    configuration_path.write_text(json.dumps(launch.configuration(settings, application, socket_path)))
    command = [
        launch.program(),
        *("--config-path", str(configuration_path)),
        *("--log-level", "error", "--log-format", envoy_log.FORMAT),
        "--disable-hot-restart",  # which would leave a file in /dev/shm for each start
        *("--concurrency", "1"),  # Python takes more time than one thread of Envoy
    ]
    spawned = await _spawn(settings, folder, command, launch.environment(socket_path), is_read=True)
    lines = cast(asyncio.StreamReader, spawned[0].stdout)
    return WorkerProcess(*spawned, EnvoyListener(EnvoyAdmin(socket_path)), EnvoyLog(lines))


async def _spawn(
    settings: Config,
    folder: ServerFolder,
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    is_read: bool = False,
) -> tuple[asyncio.subprocess.Process, Channel]:
    """Starts a process with a channel to it; `is_read`: what it writes comes as its `stdout`."""
    ours, theirs = socket.socketpair()
    with theirs, contextlib.ExitStack() as on_failure:
        on_failure.callback(ours.close)
        variables = {control.VARIABLE: str(theirs.fileno()), **config.to_environment(settings), **environment}
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, **variables},
            pass_fds=[theirs.fileno(), folder.lock],
            stdout=asyncio.subprocess.PIPE if is_read else sys.stderr,
            stderr=asyncio.subprocess.STDOUT if is_read else None,
            start_new_session=True,  # a terminal's Ctrl-C is for the supervisor, which drains
        )
        on_failure.pop_all()
    return process, await Channel.of(ours)

"""From a file to an engine that can serve: loaded, warm, on the one device of all models.

Knows what to do where CUDA cannot be used. Does not know which versions there are, nor who leads.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from service.catalog.folder import Version
from service.config import Config
from service.engine.engine import Engine
from service.errors import ConfigError
from service.runtime import artifact, cuda
from service.runtime.cuda_runner import runner_for
from service.runtime.runner import Runner
from service.telemetry import log
from service.telemetry.metrics import Metrics


class Loaded(NamedTuple):
    """A warm model."""

    runner: Runner
    warm_up_seconds: float


class Loader:
    """Makes the engines of a server.

    Raises:
        ConfigError: the device cannot be had.
    """

    def __init__(self, settings: Config, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        try:
            self.device = cuda.pick_device(settings.device)
        except RuntimeError as error:
            raise ConfigError(f"--device: {error}") from None

    def first(self, found: Iterable[Version]) -> tuple[list[Loaded], dict[Version, str]]:
        """Returns every model warm, and why the others cannot be served; each name has one that can.

        On the CPU where `auto` finds CUDA, but it cannot be used.

        Raises:
            ConfigError: a name has none; the message is of one of its versions.
        """
        versions = list(found)
        try:
            return self._each_name(versions)
        except Exception as error:  # the driver's, the memory's, a script's: whatever it is, the CPU may do
            if self.device.type == "cpu":
                raise
            why = _why_cuda(error)
            if self._settings.device != "auto":
                raise ConfigError(f"--device: cannot serve on CUDA: {why}") from error
        log.warning("cuda_unusable", why=why, effect="serving on the CPU")
        self.device = cuda.pick_device("cpu")
        return self._each_name(versions)

    def _each_name(self, versions: Sequence[Version]) -> tuple[list[Loaded], dict[Version, str]]:
        loaded: list[Loaded] = []
        failed: dict[Version, ConfigError] = {}
        for version in versions:
            try:
                loaded.append(self.load(version))
            except ConfigError as error:
                if not self._is_at_fault(version):
                    raise
                failed[version] = error
        served = {each.runner.artifact.name for each in loaded}
        for version, reason in failed.items():
            if version.name not in served:
                raise reason
        return loaded, {version: str(reason) for version, reason in failed.items()}

    def _is_at_fault(self, version: Version) -> bool:
        """Tells whether a file that cannot be served on the device cannot be on the CPU either."""
        if self.device.type == "cpu":
            return True
        try:
            artifact.load(version.name, version.version, version.path, cuda.pick_device("cpu"))
        except ConfigError:
            return True
        return False

    def load(self, version: Version) -> Loaded:
        """Returns one model, warm; may run on a thread of its own, beside those that serve.

        Raises:
            ConfigError: the file cannot be served.
            Exception: whatever the driver or the script raises.
        """
        started, settings = time.monotonic(), self._settings
        model = artifact.load(version.name, version.version, version.path, self.device)
        runner = runner_for(model, settings.max_resident_sessions)
        runner.warm_up(
            min(settings.max_batch_steps, settings.max_resident_sessions), settings.max_piece_steps
        )
        return Loaded(runner, time.monotonic() - started)

    def engine(self, loaded: Loaded) -> Engine:
        """Returns the engine of a model; logs it. Needs a running loop."""
        model = loaded.runner.artifact
        engine = Engine(
            loaded.runner,
            self._settings,
            self._metrics.of_model(model.name, model.version),
            loop=asyncio.get_running_loop(),
            clock=time.monotonic_ns,
        )
        self._metrics.models.labels(*self._labels(engine)).set(1)
        log.info(
            "model_loaded",
            model=str(model),
            device=str(model.device),
            warm_up_seconds=round(loaded.warm_up_seconds, 3),
        )
        return engine

    def drop(self, engine: Engine) -> None:
        """Shows a model no more, whose engine has left."""
        self._metrics.models.remove(*self._labels(engine))

    def _labels(self, engine: Engine) -> tuple[str, str, str, str]:
        return engine.name, engine.version, str(self.device), str(4 * engine.manifest.state_size)


def why(error: Exception) -> str:
    """Returns in one line why a model cannot be served."""
    return str(error) if isinstance(error, ConfigError) else cuda.reason_of(error)


def _why_cuda(error: Exception) -> str:
    """Returns why CUDA cannot be used: an error of ours names the file, what it came from says the rest."""
    text, reason = str(error), cuda.reason_of(error)
    if not isinstance(error, ConfigError):
        return reason
    return text if reason in text else f"{text}: {reason}"

"""Makes an engine from a file: loaded, warm, on the one device of all models.

Falls back to the CPU where CUDA cannot be used. Does not know which versions there are, nor which one leads.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from service.accounts import Accounts
from service.catalog.folder import Version
from service.config import Config
from service.engine.engine import Engine
from service.errors import ConfigError
from service.runtime import artifact, cuda
from service.runtime.allowed_artifacts import AllowedArtifacts
from service.runtime.cuda_runner import runner_for
from service.runtime.runner import Runner
from service.telemetry import log
from service.telemetry.metrics import Metrics


class WarmModel(NamedTuple):
    """A model that is loaded and has run once, so that its first step is as fast as any."""

    runner: Runner
    warm_up_seconds: float


class Loader:
    """Makes the engines of a server, of files that are on the list of allowed artifacts, if there is one.

    Args:
        settings: the device and the bounds.
        metrics: the instruments.
        accounts: count the steps that are queued; None where callers have no principals.

    Raises:
        ConfigError: there is no such device, or the list cannot be read.
    """

    def __init__(self, settings: Config, metrics: Metrics, accounts: Accounts | None = None) -> None:
        self._settings = settings
        self._metrics = metrics
        self._count_steps = None if accounts is None else accounts.take_steps
        self.allowed = AllowedArtifacts(settings.allowed_artifacts)
        try:
            self.device = cuda.pick_device(settings.device)
        except RuntimeError as error:
            raise ConfigError(f"--device: {error}") from None

    def load_all(self, found: Iterable[Version]) -> tuple[list[WarmModel], dict[Version, str]]:
        """Loads the versions with which a server starts.

        All models are on the CPU if the device is `auto` and CUDA is there, but cannot be used.

        Returns:
            Every model that can be served, and for each other version why it cannot.

        Raises:
            ConfigError: no version of a name can be served; the message is of one of them.
        """
        versions = list(found)
        try:
            return self._load_each(versions)
        except Exception as error:  # of the driver, the memory, a script: the CPU may do in every case
            if self.device.type == "cpu":
                raise
            why = _cuda_reason_of(error)
            if self._settings.device != "auto":
                raise ConfigError(f"--device: cannot serve on CUDA: {why}") from error
        log.warning("cuda_unusable", why=why, effect="serving on the CPU")
        self.device = cuda.pick_device("cpu")
        return self._load_each(versions)

    def _load_each(self, versions: Sequence[Version]) -> tuple[list[WarmModel], dict[Version, str]]:
        loaded: list[WarmModel] = []
        failed: dict[Version, ConfigError] = {}
        for version in versions:
            try:
                loaded.append(self.load(version))
            except ConfigError as error:
                if not self._is_broken(version):
                    raise
                failed[version] = error
        served = {each.runner.artifact.name for each in loaded}
        for version, reason in failed.items():
            if version.name not in served:
                raise reason
        return loaded, {version: str(reason) for version, reason in failed.items()}

    def _is_broken(self, version: Version) -> bool:
        """Returns whether a file that cannot be served on the device cannot be served on the CPU either."""
        if self.device.type == "cpu":
            return True
        try:
            device = cuda.pick_device("cpu")
            artifact.load(version.name, version.version, version.path, device, allowed=self.allowed)
        except ConfigError:
            return True
        return False

    def load(self, version: Version) -> WarmModel:
        """Returns one model, warm; may run on a thread of its own while other models serve.

        Raises:
            ConfigError: the file cannot be served.
            Exception: the driver or the script fails.
        """
        started, settings = time.monotonic(), self._settings
        model = artifact.load(version.name, version.version, version.path, self.device, allowed=self.allowed)
        runner = runner_for(model, settings.max_resident_sessions)
        runner.warm_up(
            min(settings.max_batch_steps, settings.max_resident_sessions), settings.max_piece_steps
        )
        return WarmModel(runner, time.monotonic() - started)

    def make_engine(self, warm: WarmModel) -> Engine:
        """Returns the engine of a model, and logs the model. Needs a running loop."""
        model = warm.runner.artifact
        engine = Engine(
            warm.runner,
            self._settings,
            self._metrics.of_model(model.name, model.version),
            loop=asyncio.get_running_loop(),
            clock=time.monotonic_ns,
            count_steps=self._count_steps,
        )
        self._metrics.models.labels(*self._labels(engine)).set(1)
        log.info(
            "model_loaded",
            model=str(model),
            device=str(model.device),
            warm_up_seconds=round(warm.warm_up_seconds, 3),
        )
        return engine

    def drop_sample(self, engine: Engine) -> None:
        """Removes a model from the metrics, once its engine has left memory."""
        self._metrics.models.remove(*self._labels(engine))

    def _labels(self, engine: Engine) -> tuple[str, str, str, str]:
        return engine.name, engine.version, str(self.device), str(4 * engine.manifest.state_size)


def reason_of(error: Exception) -> str:
    """Returns in one line why a model cannot be served."""
    return str(error) if isinstance(error, ConfigError) else cuda.reason_of(error)


def _cuda_reason_of(error: Exception) -> str:
    """Returns why CUDA cannot be used: a ConfigError names the file, and its cause says the rest."""
    text, reason = str(error), cuda.reason_of(error)
    if not isinstance(error, ConfigError):
        return reason
    return text if reason in text else f"{text}: {reason}"

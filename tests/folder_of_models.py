"""A server over a folder of models, without a network; a test calls for each look at the folder."""

import asyncio
import gc
import shutil
import time

import numpy as np
from streamcell.v1 import streamcell_pb2 as pb

from service.catalog.folder import Folder
from service.catalog.loader import Loader
from service.catalog.watcher import ModelWatcher
from service.runtime import artifact
from tests import fakes
from tests.fakes import CPU, Alone, Served, bits

X = np.random.default_rng(8).standard_normal((40, 2)).astype(np.float32)
NAME = "recurrence"
LAYOUT_OF_3 = {
    "size": 3,
    "layout": [
        {"name": name, "offset": at, "size": 1} for at, name in enumerate(("trend", "level", "clock"))
    ],
}
INPUTS, OUTPUTS = (fakes.manifest_of()[name] for name in ("inputs", "outputs"))
ARTIFACTS = {  # by version: the module and what its manifest has other than version 1's
    "1": (None, {}),
    "2": (fakes.Sharper(), {}),
    "3": (None, {"state": LAYOUT_OF_3}),
    "more inputs": (fakes.Other(2), {"inputs": [*INPUTS, {"name": "depth", "unit": "m"}]}),
    "more outputs": (fakes.Other(3), {"outputs": [*OUTPUTS, {**OUTPUTS[1], "name": "low", "quantile": 0.1}]}),
}


class FolderServer:
    """A server over a folder of models.

    Args:
        folder: where the models are.
        files: artifacts to put into the folder, by a name such as "2".
        store: where sessions are stored, if anywhere.
        changes: settings.
    """

    def __init__(self, folder, files, store=None, **changes):
        self.path = folder
        self.files = files
        self.store = store
        self.changes = {"models": folder, "models_poll_seconds": 0, "max_batch_steps": 4, **changes}
        self.folder = Folder(folder)
        self.folder.look()

    async def start(self):
        """Loads the versions in the folder, and starts writing to the store; does not watch the folder."""
        rejected = {}

        def engines(settings, metrics):
            self.loader = Loader(settings, metrics)
            warm_models, failed = self.loader.load_all(self.folder.versions.values())
            rejected.update(failed)
            return [self.loader.make_engine(each) for each in warm_models]

        changes = {"checkpoint_interval_seconds": 0.01, "session_ttl_seconds": 0, **self.changes}
        self.served = Served(store=self.store, clock=time.monotonic_ns, engines=engines, **changes)
        self.catalog = self.served.catalog
        if self.store is not None:
            await self.served.write_behind.start()
        self.models = ModelWatcher(
            self.served.settings, self.folder, self.loader, self.catalog, self.served.metrics
        )
        self.catalog.versions.on_disk = self.models
        for version, why in rejected.items():
            self.models.reject(version, why)
        return self

    async def stop(self):
        """Stops watching and writing."""
        await self.models.stop()
        if self.store is not None:
            await self.served.write_behind.abandon()

    def put(self, version, file="", name=NAME):
        """Puts a file, or the one made for the version, into the folder as a version."""
        path = self.path / name / version / "model.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.files[file or version], path)
        return path

    async def notice(self, version, file=""):
        """Puts a version into the folder and looks twice: then the version counts as complete."""
        self.put(version, file)
        await self.models.look()
        await self.models.look()

    def alone(self, version, file=""):
        """Returns a session of a version that is computed alone, without a server."""
        path = self.files[file or version]
        return Alone(artifact.load(NAME, version, path, CPU))

    def retire(self):
        """Moves sessions of retiring versions, and unloads versions that are unused."""
        self.models.retirement.advance()

    async def check_unloaded(self, reference):
        """Unloads unused versions; the referent of a weak reference is gone then, without the collector."""
        self.served.engines.clear()
        gc.disable()
        try:
            self.retire()
            await fakes.turn()
            assert reference() is None, gc.get_referrers(reference())
        finally:
            gc.enable()

    def statuses(self):
        """Returns the status of each version in memory."""
        return {
            f"{engine.name}/{engine.version}": "RETIRING" if engine.succession.is_retiring else "SERVING"
            for engine in self.catalog.versions.engines
        }

    async def version_of(self, session_id):
        """Returns the version that a session runs on."""
        request = pb.GetSessionRequest(session_id=session_id)
        return (await self.served.ask("GetSession", request)).session.model_version

    async def step(self, session_id, row, **fields):
        """Returns the bits of a prediction."""
        request = pb.StepRequest(session_id=session_id, x=X[row], **fields)
        return bits((await self.served.ask("Step", request)).y)

    def sample(self, name, **labels):
        """Returns a value of a metric; None if there is no such sample."""
        return self.served.metrics.registry.get_sample_value(name, labels or None)

    def model_info(self, version):
        """Returns the sample that says that a version is served; None if it is not."""
        labels = {"model": NAME, "version": version, "device": "cpu", "state_bytes": "12"}
        return self.sample("streamcell_model_info", **labels)


async def until(condition):
    """Waits until a condition is true, at most a minute."""
    async with asyncio.timeout(60):
        while not condition():
            await fakes.turn()

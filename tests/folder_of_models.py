"""A server over a folder of models, without a network: its folder is looked at when told."""

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
OTHER_LAYOUT = {
    "size": 3,
    "layout": [
        {"name": name, "offset": at, "size": 1} for at, name in enumerate(("trend", "level", "clock"))
    ],
}
INPUTS, OUTPUTS = (fakes.manifest_of()[name] for name in ("inputs", "outputs"))
MADE = {
    "1": (None, {}),
    "2": (fakes.Sharper(), {}),
    "3": (None, {"state": OTHER_LAYOUT}),
    "more inputs": (fakes.Other(2), {"inputs": [*INPUTS, {"name": "depth", "unit": "m"}]}),
    "more outputs": (fakes.Other(3), {"outputs": [*OUTPUTS, {**OUTPUTS[1], "name": "low", "quantile": 0.1}]}),
}


class House:
    """A server over a folder, which is looked at when told."""

    def __init__(self, folder, files, store=None, **changes):
        self.path = folder
        self.files = files
        self.store = store
        self.changes = {"models": folder, "models_poll_seconds": 0, "max_batch_steps": 4, **changes}
        self.folder = Folder(folder)
        self.folder.look()

    async def start(self):
        """Loads what is there."""
        rejected = {}

        def engines(settings, metrics):
            self.loader = Loader(settings, metrics)
            loaded, failed = self.loader.first(self.folder.versions.values())
            rejected.update(failed)
            return [self.loader.engine(each) for each in loaded]

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
        """Ends what it began."""
        await self.models.stop()
        if self.store is not None:
            await self.served.write_behind.abandon()

    def put(self, version, made="", name=NAME):
        """Puts a file into the folder as a version."""
        path = self.path / name / version / "model.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.files[made or version], path)
        return path

    async def notice(self, version, made=""):
        """Puts a version there and has it looked at until it is settled."""
        self.put(version, made)
        await self.models.look()
        await self.models.look()

    def alone(self, version, made=""):
        """Returns a session of a version by itself."""
        path = self.files[made or version]
        return Alone(artifact.load(NAME, version, path, CPU))

    async def lets_go(self, gone):
        """Lets versions leave that nobody uses; holds that one's memory is free then, collector or not."""
        self.served.engines.clear()
        gc.disable()
        try:
            self.models.retire()
            await fakes.turn()
            assert gone() is None, gc.get_referrers(gone())
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
        """Returns a value from the metrics, None where there is none."""
        return self.served.metrics.registry.get_sample_value(name, labels or None)


async def until(condition):
    """Waits until something holds; bounded."""
    async with asyncio.timeout(20):
        while not condition():
            await fakes.turn()

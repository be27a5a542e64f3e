"""The workers' pages of metrics as one page."""

import asyncio

from service.processes.worker_pages import WorkerPages

STEPS = "# HELP steps_total Steps.\n# TYPE steps_total counter\nsteps_total {}\n"
FAULTS = (
    "# HELP streamcell_background_faults_total Faults.\n# TYPE streamcell_background_faults_total counter\n"
    'streamcell_background_faults_total{task="write_behind"} 3\n'
)


class FakeWorker:
    """A worker with a page, or None if it is gone."""

    def __init__(self, text):
        self._text = text

    async def page(self):
        """Returns the page."""
        return self._text


async def samples(workers, *faults, is_single=False):
    """Returns the collected samples as (family, name, labels) -> value."""
    pages = WorkerPages(workers, is_single=is_single, loop=asyncio.get_running_loop())
    for task in faults:
        pages.count_fault(task)
    families = list(await asyncio.to_thread(pages.collect))
    assert len({family.name for family in families}) == len(families), "a family stands twice"
    return {
        (family.name, sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


async def test_each_sample_has_its_worker_as_a_label():
    """A worker that is gone is left out."""
    workers = {0: FakeWorker(STEPS.format(1)), 1: FakeWorker(STEPS.format(2)), 2: FakeWorker(None)}
    assert await samples(workers) == {
        ("steps", "steps_total", ("worker", "0")): 1,
        ("steps", "steps_total", ("worker", "1")): 2,
    }


async def test_the_samples_of_an_only_worker_stay_as_they_are():
    """No label is added."""
    assert await samples({0: FakeWorker(STEPS.format(1))}, is_single=True) == {("steps", "steps_total"): 1}


async def test_faults_of_the_supervisor_stand_beside_those_of_the_workers():
    """In one family, with `supervisor` as the worker."""
    name = "streamcell_background_faults"
    own = (name, f"{name}_total", ("task", "worker_replacement"), ("worker", "supervisor"))
    theirs = (name, f"{name}_total", ("task", "write_behind"), ("worker", "0"))
    faults = ["worker_replacement"] * 2
    assert await samples({0: FakeWorker(FAULTS)}, *faults) == {own: 2, theirs: 3}
    assert await samples({}, *faults) == {own: 2}
    assert await samples({0: FakeWorker(FAULTS)}, *faults, is_single=True) == {own: 2, theirs[:3]: 3}

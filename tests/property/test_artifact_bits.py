"""A row's bits depend on that row alone: not on batch, place, neighbours, threads or grouping.

Hypothesis tries it on a small new network of each kind of cell, and on every shipped artifact.
"""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.artifact import load_artifact, save_artifact
from model.cells import CELLS
from model.manifest import Column, Manifest, layout_of, next_mean_of
from model.network import Architecture, Network, state_layout

SHIPPED = sorted((Path(__file__).parents[2] / "model" / "artifacts").glob("*/*/model.pt"))
POOL_ROWS, POOL_STEPS, HORIZON = 1024, 6, 52
INTERVAL_NS = 300 * 10**9


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Returns whether two tensors agree to the bit, NaN included."""
    return a.shape == b.shape and torch.equal(
        a.contiguous().view(torch.int32), b.contiguous().view(torch.int32)
    )


class Pool:
    """Holds many rows of streams, and the reference results of one large batch on one thread."""

    def __init__(self, script, manifest: Manifest) -> None:
        self.script = script
        generator = torch.Generator().manual_seed(0)
        num_inputs = len(manifest.inputs)
        noise = torch.randn(POOL_ROWS, POOL_STEPS, num_inputs, generator=generator)
        self.x = script.mean + 2.0 * script.scale * noise
        starts = torch.randint(0, 2 * 10**18, (POOL_ROWS, 1), generator=generator)
        self.time = starts + torch.arange(POOL_STEPS) * INTERVAL_NS
        state = torch.zeros(POOL_ROWS, manifest.state_size)
        states, ys = [state], []
        for t in range(POOL_STEPS):
            y, state = script.step(self.x[:, t], self.time[:, t], state)
            states.append(state)
            ys.append(y)
        self.y = torch.stack(ys, 1)  # (rows, T, O)
        self.states = torch.stack(states, 1)  # (rows, T + 1, S)
        self.forecasts = script.forecast(state, self.time[:, -1], HORIZON, torch.zeros(POOL_ROWS, HORIZON, 0))


def fresh(kind: str, folder: Path) -> Pool:
    """Makes a small scripted network of the kind with random weights, saved and loaded."""
    architecture = Architecture(
        num_inputs=3,
        num_outputs=2,
        interval_ns=INTERVAL_NS,
        uses_time=True,
        cell=kind,
        hidden_size=48,
        num_layers=2,
        head_steps=4,
        head_size=16,
    )
    torch.manual_seed(1)
    network = Network(architecture)
    network.mean.copy_(torch.tensor([1.0, 20.0, 300.0]))
    network.scale.copy_(torch.tensor([0.5, 7.0, 90.0]))
    inputs = tuple(Column(name, "") for name in "abc")
    manifest = Manifest(
        name=kind,
        version="1",
        description="Random.",
        attribution="none",
        inputs=inputs,
        outputs=tuple(next_mean_of(column) for column in inputs[:2]),
        state=layout_of(state_layout(architecture)),
        uses_time=True,
        step_interval_seconds=INTERVAL_NS / 1e9,
    )
    save_artifact(network, manifest, folder / "model.pt")
    artifact = load_artifact(folder / "model.pt")
    return Pool(artifact.script, artifact.manifest)


@pytest.fixture(
    scope="module", params=[*sorted(CELLS), *SHIPPED], ids=lambda p: p if isinstance(p, str) else p.parts[-3]
)
def pool(request, tmp_path_factory) -> Pool:
    """Returns each network under test, with its reference results from one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            if isinstance(request.param, str):
                return fresh(request.param, tmp_path_factory.mktemp(request.param))
            artifact = load_artifact(request.param)
            return Pool(artifact.script, artifact.manifest)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def restored_threads():
    """Puts the number of threads back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


BATCHES = st.one_of(
    st.integers(1, 40), st.sampled_from([63, 64, 65, 100, 127, 129, 255, 256, 257, 511, 1023, 1024])
)


@st.composite
def cases(draw):
    """Draws a batch: rows in some order, those of them that are spoilt, the value, the number of threads."""
    size = draw(BATCHES)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows = torch.randperm(POOL_ROWS, generator=generator)[:size]
    spoilt = torch.zeros(size, dtype=torch.bool)
    if draw(st.booleans()):
        spoilt = torch.rand(size, generator=generator) < 0.3
    return (
        rows,
        spoilt,
        draw(st.sampled_from([float("nan"), float("inf"), -float("inf"), 3e38])),
        draw(st.sampled_from([1, 2])),
    )


@settings(max_examples=25, deadline=None)
@given(case=cases(), before=st.integers(0, POOL_STEPS - 1))
def test_step(pool, case, before):
    """A step gives a row the same y and state in any batch, at any place and beside any neighbours."""
    rows, spoilt, value, threads = case
    torch.set_num_threads(threads)
    x, state = pool.x[rows, before].clone(), pool.states[rows, before].clone()
    x[spoilt] = value
    state[spoilt & (rows % 2 == 0)] = value
    with torch.inference_mode():
        y, after = pool.script.step(x, pool.time[rows, before], state)
    sound = ~spoilt
    assert same_bits(y[sound], pool.y[rows, before][sound])
    assert same_bits(after[sound], pool.states[rows, before + 1][sound])


@settings(max_examples=25, deadline=None)
@given(case=cases(), steps=st.integers(1, POOL_STEPS), seed=st.integers(0, 2**31))
def test_scan(pool, case, steps, seed):
    """A scan over mixed lengths, 0 among them, leaves each row where single steps leave it."""
    rows, spoilt, value, threads = case
    torch.set_num_threads(threads)
    lengths = torch.randint(0, steps + 1, rows.shape, generator=torch.Generator().manual_seed(seed))
    x = pool.x[rows, :steps].clone()
    x[spoilt] = value
    with torch.inference_mode():
        y, after = pool.script.scan(x, pool.time[rows, :steps], lengths, pool.states[rows, 0])
    sound = ~spoilt
    applied = (torch.arange(steps) < lengths.unsqueeze(1)).unsqueeze(2)
    expected = torch.where(applied, pool.y[rows, :steps], 0.0)
    assert same_bits(y[sound], expected[sound])
    assert same_bits(after[sound], pool.states[rows, lengths][sound])


@settings(max_examples=8, deadline=None)
@given(case=cases(), horizon=st.integers(1, HORIZON))
def test_forecast(pool, case, horizon):
    """A forecast gives a row the same bits in any batch and at any horizon."""
    rows, spoilt, value, threads = case
    torch.set_num_threads(threads)
    state = pool.states[rows, POOL_STEPS].clone()
    state[spoilt] = value
    with torch.inference_mode():
        y = pool.script.forecast(state, pool.time[rows, -1], horizon, torch.zeros(len(rows), horizon, 0))
    assert same_bits(y[~spoilt], pool.forecasts[rows, :horizon][~spoilt])


def test_first_forecast_is_the_last_prediction(pool):
    """The first column of `forecast` has the bits of the last step's y."""
    assert same_bits(pool.forecasts[:, 0], pool.y[:, -1])


def test_views_and_odd_addresses(pool):
    """Rows cut out of larger arrays, at odd addresses and with gaps, give the same bits as whole arrays."""
    num_inputs, state_size = pool.x.size(2), pool.states.size(2)
    for rows in (1, 3, 5, 64):
        wide = torch.zeros(rows, state_size + 7)[:, 3 : 3 + state_size]
        wide.copy_(pool.states[:rows, 2])
        narrow = torch.zeros(rows * num_inputs + 1)[1:].view(rows, num_inputs)
        narrow.copy_(pool.x[:rows, 2])
        with torch.inference_mode():
            y, after = pool.script.step(narrow, pool.time[:rows, 2], wide)
        assert same_bits(y, pool.y[:rows, 2])
        assert same_bits(after, pool.states[:rows, 3])

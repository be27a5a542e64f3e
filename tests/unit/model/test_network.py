"""The network's three methods, eager and scripted."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.cells import CELLS
from model.network import Architecture, Network, state_layout

HALF_HOUR_NS = 1800 * 10**9
TAXI_LIKE = Architecture(
    num_inputs=1, num_outputs=1, interval_ns=HALF_HOUR_NS, uses_time=True, hidden_size=16, head_steps=6
)
MANY = Architecture(
    num_inputs=3,
    num_outputs=3,
    interval_ns=HALF_HOUR_NS,
    uses_time=True,
    hidden_size=16,
    num_layers=2,
    head_steps=5,
    head_size=16,
)
SOME = replace(MANY, num_outputs=2, offsets=False, uses_time=False, head_size=0)
BARE = Architecture(
    num_inputs=4, num_outputs=1, hidden_size=32, head_size=16, head_steps=1, scaled=False, offsets=False
)
ARCHITECTURES = {"taxi-like": TAXI_LIKE, "many": MANY, "some": SOME, "bare": BARE}
KINDS = {f"many, {kind}": replace(MANY, cell=kind) for kind in CELLS}


def network_of(architecture: Architecture) -> Network:
    """Returns a network with seeded weights and a scaling other than none."""
    torch.manual_seed(3)
    network = Network(architecture).eval()
    if architecture.scaled:
        network.mean.copy_(torch.linspace(5.0, 9.0, architecture.num_inputs))
        network.scale.copy_(torch.linspace(2.0, 3.0, architecture.num_inputs))
    return network


def stream_of(architecture: Architecture, rows: int, steps: int) -> tuple[Tensor, Tensor]:
    """Returns inputs (B, T, F) and consecutive times (B, T)."""
    generator = torch.Generator().manual_seed(4)
    x = 7.0 + 3.0 * torch.randn(rows, steps, architecture.num_inputs, generator=generator)
    starts = torch.randint(0, 2 * 10**18, (rows, 1), generator=generator)
    return x, starts + torch.arange(steps) * architecture.interval_ns


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Returns whether two tensors agree to the bit, NaN included."""
    return a.shape == b.shape and torch.equal(
        a.contiguous().view(torch.int32), b.contiguous().view(torch.int32)
    )


class TestScan:
    """Many steps at once."""

    @pytest.mark.parametrize(
        "architecture", [*ARCHITECTURES.values(), *KINDS.values()], ids=[*ARCHITECTURES, *KINDS]
    )
    @torch.inference_mode()
    def test_scan_equals_folded_steps_and_script_equals_eager(self, architecture):
        """A scan has the bits of single steps, and the scripted network has those of the eager network."""
        network = network_of(architecture)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            scripted = torch.jit.script(network)
        x, time = stream_of(architecture, rows=5, steps=4)
        lengths = torch.tensor([4, 0, 2, 4, 1])
        before = 0.5 * torch.randn(5, network.state_size)
        for runner in (
            network,
            scripted,
            scripted,
            scripted,
        ):  # the script is optimised after its first calls
            y, state = runner.scan(x, time, lengths, before)
            folded = before
            for t in range(4):
                predicted, stepped = runner.step(x[:, t], time[:, t], folded)
                applied = (t < lengths).unsqueeze(1)
                folded = torch.where(applied, stepped, folded)
                assert same_bits(y[:, t], torch.where(applied, predicted, 0.0))
            assert same_bits(state, folded)
            assert same_bits(state, network.scan(x, time, lengths, before)[1])
            forecast = runner.forecast(state, time[:, -1], 13, torch.zeros(5, 13, 0))
            assert same_bits(forecast, network.forecast(state, time[:, -1], 13, torch.zeros(5, 13, 0)))

    @torch.inference_mode()
    def test_nothing_applied_changes_nothing(self):
        """Lengths of zero, no time steps and no rows leave the state as it was."""
        network = network_of(MANY)
        state = torch.randn(3, network.state_size)
        x, time = stream_of(MANY, rows=3, steps=4)
        y, after = network.scan(x, time, torch.zeros(3, dtype=torch.int64), state)
        assert same_bits(after, state)
        assert not y.any()
        y, after = network.scan(x[:, :0], time[:, :0], torch.zeros(3, dtype=torch.int64), state)
        assert same_bits(after, state)
        assert y.shape == (3, 0, 3)
        y, after = network.step(x[:0, 0], time[:0, 0], state[:0])
        assert (y.shape, after.shape) == ((0, 3), (0, network.state_size))


class TestForecast:
    """Many steps ahead."""

    @pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
    @torch.inference_mode()
    def test_first_forecast_is_the_steps_prediction(self, architecture):
        """At any horizon the first forecast has the bits of the step's y, and the state stays as it was."""
        network = network_of(architecture)
        x, time = stream_of(architecture, rows=6, steps=3)
        y, state = network.scan(x, time, torch.full((6,), 3), torch.zeros(6, network.state_size))
        kept = state.clone()
        for horizon in (
            1,
            2,
            architecture.head_steps,
            architecture.head_steps + 1,
            3 * architecture.head_steps + 2,
        ):
            forecast = network.forecast(state, time[:, -1], horizon, torch.zeros(6, horizon, 0))
            assert forecast.shape == (6, horizon, architecture.num_outputs)
            assert same_bits(forecast[:, 0], y[:, -1])
        assert same_bits(state, kept)

    @pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
    @torch.inference_mode()
    def test_past_the_direct_range_a_forecast_feeds_itself(self, architecture):
        """Past the direct steps, a forecast takes its predictions as inputs and steps on."""
        network = network_of(architecture)
        x, time = stream_of(architecture, rows=4, steps=3)
        _, state = network.scan(x, time, torch.full((4,), 3), torch.zeros(4, network.state_size))
        direct, outputs = architecture.head_steps, architecture.num_outputs
        forecast = network.forecast(state, time[:, -1], 2 * direct, torch.zeros(4, 2 * direct, 0))
        rest = network.mean[outputs:].expand(4, -1)
        for k in range(direct):
            now = time[:, -1] + (k + 1) * architecture.interval_ns
            _, state = network.step(torch.cat([forecast[:, k], rest], 1), now, state)
        again = network.forecast(state, now, direct, torch.zeros(4, direct, 0))
        assert same_bits(forecast[:, direct:], again)


class TestInputs:
    """Scaling, time and dropout."""

    @torch.inference_mode()
    def test_scaling_is_inside(self):
        """Shifted and stretched inputs, with matching statistics, give outputs changed in the same way."""
        plain, scaled = (
            network_of(replace(TAXI_LIKE, uses_time=False)),
            network_of(replace(TAXI_LIKE, uses_time=False)),
        )
        plain.mean.zero_(), plain.scale.fill_(1.0)
        scaled.mean.fill_(100.0), scaled.scale.fill_(10.0)
        x, time = stream_of(TAXI_LIKE, rows=4, steps=5)
        lengths, state = torch.full((4,), 5), torch.zeros(4, plain.state_size)
        y, _ = plain.scan(x, time, lengths, state)
        y_scaled, _ = scaled.scan(100.0 + 10.0 * x, time, lengths, state)
        torch.testing.assert_close(y_scaled, 100.0 + 10.0 * y, atol=1e-3, rtol=1e-5)

    @torch.inference_mode()
    def test_time_counts_only_where_used_and_repeats_weekly(self):
        """A week later gives the same bits, three hours later others; without a calendar, time is ignored."""
        x, time = stream_of(TAXI_LIKE, rows=4, steps=1)
        hour = 3600 * 10**9
        with_time, without = network_of(TAXI_LIKE), network_of(replace(TAXI_LIKE, uses_time=False))
        state = torch.zeros(4, with_time.state_size)
        y, _ = with_time.step(x[:, 0], time[:, 0], state)
        assert same_bits(with_time.step(x[:, 0], time[:, 0] + 7 * 24 * hour, state)[0], y)
        assert same_bits(with_time.step(x[:, 0], time[:, 0] - 10_000 * 7 * 24 * hour, state)[0], y)
        assert not torch.equal(with_time.step(x[:, 0], time[:, 0] + 3 * hour, state)[0], y)
        assert same_bits(
            without.step(x[:, 0], time[:, 0], state)[0], without.step(x[:, 0], 0 * time[:, 0], state)[0]
        )

    def test_dropout_only_while_training(self):
        """Dropout changes predictions in training mode, and none in evaluation mode."""
        network = network_of(replace(TAXI_LIKE, dropout=0.5))
        z, x = torch.randn(4, 16), torch.randn(4, 1)
        assert torch.equal(network.direct_values(z, x), network.direct_values(z, x))
        network.train()
        assert not torch.equal(network.direct_values(z, x), network.direct_values(z, x))


class TestState:
    """The state row."""

    def test_state_layout_names_every_part(self):
        """The layout names h and c of each layer and the last input, and its sizes are the state's."""
        assert state_layout(MANY) == [
            ("layers.0.h", 16),
            ("layers.0.c", 16),
            ("layers.1.h", 16),
            ("layers.1.c", 16),
            ("last_x", 3),
        ]
        assert state_layout(replace(SOME, cell="gru")) == [("layers.0.h", 16), ("layers.1.h", 16)]
        assert Network(MANY).state_size == 67

    @torch.inference_mode()
    def test_state_holds_what_its_layout_says(self):
        """The last input stands at the end in plain units, and the head predicts from the h at the front."""
        network = network_of(TAXI_LIKE)
        x, time = stream_of(TAXI_LIKE, rows=4, steps=1)
        y, state = network.step(x[:, 0], time[:, 0], torch.zeros(4, network.state_size))
        assert same_bits(state[:, -1:], x[:, 0])
        assert same_bits(network.next_value(state[:, :16], x[:, 0]), y)
        assert not state.isnan().any()
        assert math.isfinite(float(y.sum()))


class TestArchitecture:
    """Shapes that cannot be built."""

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"cell": "transformer"}, "cell"),
            ({"hidden_size": 20}, "hidden size"),
            ({"hidden_size": 0}, "hidden size"),
            ({"head_size": 3}, "head size"),
            ({"num_outputs": 2}, "outputs"),
            ({"num_layers": 0}, "layers"),
            ({"head_steps": 0}, "head steps"),
            ({"interval_ns": 0}, "interval"),
        ],
    )
    def test_impossible_architectures_are_refused(self, change, named):
        """A shape that cannot be built is refused, and the message names the field."""
        with pytest.raises(ValueError, match=named):
            replace(TAXI_LIKE, **change)

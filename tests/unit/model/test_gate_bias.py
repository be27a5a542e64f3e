"""Where gates' biases begin: what a cell remembers before it has learned anything."""

import math

import numpy as np
import pytest
import torch

from model.cells import CELLS
from model.gate_bias import set_gate_bias
from model.network import Architecture, Network

HIDDEN = 64
GATES = {"lstm": ["input", "forget", "candidate", "output"], "gru": ["reset", "update", "candidate"]}
GATES["peephole"] = GATES["lstm"]
KEEPING = {"lstm": "forget", "peephole": "forget", "gru": "update"}
gated = pytest.mark.parametrize("cell", sorted(KEEPING))


def network_of(cell, kind="uniform", longest_steps=100):
    """Returns a network of two layers; its first weights and the draws are the seed's."""
    torch.manual_seed(5)
    made = Network(Architecture(num_inputs=1, num_outputs=1, cell=cell, hidden_size=HIDDEN, num_layers=2))
    set_gate_bias(made.cells, kind, longest_steps=longest_steps)
    return made


def biases(network):
    """Returns the sum of both biases of each gate, as one row of all layers' units for each gate."""
    sums = [(cell.bias_ih + cell.bias_hh).detach().view(-1, HIDDEN) for cell in network.cells]
    return dict(zip(GATES[network_kind(network)], torch.cat(sums, 1), strict=True))


def network_kind(network):
    """Returns the name of a network's cells."""
    return next(name for name, kind in CELLS.items() if type(network.cells[0]) is kind)


class TestBiases:
    """The biases of the gates that keep, and no others."""

    @gated
    def test_one_is_added_before_the_keeping_gate(self, cell):
        """The gate keeps σ(1) = 0.73 of the memory; every other gate begins as torch has it."""
        before, after = biases(network_of(cell)), biases(network_of(cell, "one"))
        for gate, found in after.items():
            expected = torch.ones(2 * HIDDEN) if gate == KEEPING[cell] else before[gate]
            assert torch.equal(found, expected), gate

    @gated
    def test_chrono_gives_each_unit_a_memory_of_its_own(self, cell):
        """Of 1 / (1 − f) steps: uniform between 2 and the longest; what f lets go, the LSTM's i lets in."""
        before, after = biases(network_of(cell)), biases(network_of(cell, "chrono", longest_steps=1000))
        kept = torch.sigmoid(after[KEEPING[cell]].double())
        steps = 1.0 / (1.0 - kept)
        assert steps.min() >= 2.0 - 1e-4
        assert steps.max() <= 1000 * (1 + 1e-3)
        assert float(steps.mean()) == pytest.approx(501, rel=0.15)
        assert np.unique(steps).size == 2 * HIDDEN
        for gate in set(after) - {KEEPING[cell], "input"}:
            assert torch.equal(after[gate], before[gate]), gate
        if "input" in after:
            assert torch.equal(after["input"], -after["forget"])

    @pytest.mark.parametrize("cell", sorted(CELLS))
    def test_uniform_draws_nothing_and_changes_nothing(self, cell):
        """So that the same seed goes on to the same training."""
        made = network_of(cell)
        drawn = torch.rand(1)
        torch.manual_seed(5)
        plain = Network(
            Architecture(num_inputs=1, num_outputs=1, cell=cell, hidden_size=HIDDEN, num_layers=2)
        )
        assert torch.equal(torch.rand(1), drawn)
        for name, value in plain.state_dict().items():
            assert torch.equal(value, made.state_dict()[name]), name


@gated
def test_a_memory_lasts_as_long_as_its_bias_says(cell):
    """With no input and no weights, what is in the memory is f^t of it after t steps."""
    network = network_of(cell, "chrono", longest_steps=50)
    made = network.cells[0]
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.startswith("weight"):
                parameter.zero_()
        for bias in (made.bias_ih, made.bias_hh):  # the candidate's, so that nothing enters
            index = GATES[cell].index("candidate")
            bias[index * HIDDEN : (index + 1) * HIDDEN] = 0.0
        kept = torch.sigmoid(biases(network)[KEEPING[cell]][:HIDDEN])
        h = c = torch.ones(4, HIDDEN)
        for _ in range(10):
            h, c = made(made.project(torch.zeros(4, 1)), h, c)
        memory = h if cell == "gru" else c
    assert memory[0].numpy() == pytest.approx((kept**10).numpy(), rel=1e-3)


def test_a_cell_without_such_a_gate_is_an_error():
    """An Elman network has none."""
    with pytest.raises(ValueError, match="no gate that keeps its memory"):
        network_of("elman", "one")


def test_a_window_of_one_step_is_an_error():
    """There is no memory to spread."""
    with pytest.raises(ValueError, match="at least 2 steps, not 1"):
        network_of("lstm", "chrono", longest_steps=1)


class TestTraining:
    """The option of `train`."""

    def test_it_is_in_the_manifest_and_in_the_weights(self, command, tiny, tiny_csv, tmp_path):
        """A training that begins elsewhere ends elsewhere."""
        found = {}
        for kind in ("uniform", "chrono"):
            folder = tmp_path / kind
            options = ["--csv", tiny_csv, "--gate-bias", kind, "--name", "m", "--out", folder]
            assert command("train", *options, *tiny)[0] == 0
            status, text, _ = command("inspect", "--artifact", folder / "m" / "1" / "model.pt")
            assert status == 0
            assert f"gate_bias: {kind}" in text
            found[kind] = torch.jit.load(folder / "m" / "1" / "model.pt").state_dict()["cells.0.bias_ih"]
        longest = found["chrono"][16:32].max()
        assert longest > found["uniform"][16:32].max() + 0.5
        assert longest < math.log(12)

    def test_an_elman_network_refuses_it_in_one_line(self, refused, tiny, tiny_csv, tmp_path):
        """Before anything is trained."""
        options = ["--csv", tiny_csv, "--cell", "elman", "--gate-bias", "one", "--out", tmp_path]
        assert "no gate that keeps its memory" in refused("train", *options, *tiny)

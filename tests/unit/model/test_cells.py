"""The cells against torch's own layers, weights copied over."""

import pytest
import torch
from torch import Tensor, nn

from model.cells import CELL_STATE_KINDS, CELLS, LSTMCell, PeepholeLSTMCell, RecurrentCell, tanh

TORCH_LAYERS = {"elman": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
TORCH_CELLS = {"elman": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}
NUM_INPUTS, HIDDEN, STEPS, ROWS = 3, 16, 20, 5


def stack_like(layer: nn.Module, kind: str, num_layers: int) -> list[RecurrentCell]:
    """Returns a stack of our cells with the weights of torch's layer."""
    cells = []
    for index in range(num_layers):
        cell = CELLS[kind](NUM_INPUTS if index == 0 else HIDDEN, HIDDEN)
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        cell.load_state_dict({name: getattr(layer, f"{name}_l{index}") for name in names})
        cells.append(cell)
    return cells


def run(cells: list[RecurrentCell], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Runs our stack over x (T, B, I): outputs (T, B, H), last h and last c (layers, B, H)."""
    last_h, last_c = [], []
    for cell in cells:
        h = c = torch.zeros(x.size(1), HIDDEN)
        outputs = []
        for step in x:
            h, c = cell(cell.project(step), h, c)
            outputs.append(h)
        x = torch.stack(outputs)
        last_h.append(h)
        last_c.append(c)
    return x, torch.stack(last_h), torch.stack(last_c)


class TestAgainstTorch:
    """Elman cell, LSTM and GRU beside torch's own, weights copied over."""

    @pytest.mark.parametrize("kind", sorted(TORCH_LAYERS))
    @pytest.mark.parametrize("num_layers", [1, 3])
    def test_equals_torch(self, kind, num_layers):
        """Outputs, h and c of every layer equal torch's to 1e-5."""
        torch.manual_seed(0)
        layer = TORCH_LAYERS[kind](NUM_INPUTS, HIDDEN, num_layers)
        x = 2.0 * torch.randn(STEPS, ROWS, NUM_INPUTS)
        expected, state = layer(x)
        expected_h, expected_c = state if kind == "lstm" else (state, None)

        outputs, h, c = run(stack_like(layer, kind, num_layers), x)

        torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(h, expected_h, atol=1e-5, rtol=0)
        if expected_c is not None:
            torch.testing.assert_close(c, expected_c, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("kind", sorted(TORCH_LAYERS))
    def test_gradients_equal_torchs(self, kind):
        """The gradients of every weight and of the input equal torch's."""
        torch.manual_seed(1)
        layer = TORCH_LAYERS[kind](NUM_INPUTS, HIDDEN, 2)
        cells = stack_like(layer, kind, 2)
        x = torch.randn(STEPS, ROWS, NUM_INPUTS)
        theirs, ours = x.clone().requires_grad_(), x.clone().requires_grad_()

        layer(theirs)[0].square().mean().backward()
        run(cells, ours)[0].square().mean().backward()

        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)
        for index, cell in enumerate(cells):
            for name, parameter in cell.named_parameters():
                expected = getattr(layer, f"{name}_l{index}").grad
                torch.testing.assert_close(parameter.grad, expected, atol=1e-6, rtol=1e-4)

    @pytest.mark.parametrize("kind", sorted(TORCH_CELLS))
    def test_weights_interchange_both_ways(self, kind):
        """A cell's state dict loads strictly into torch's cell of the same kind, and back."""
        ours = CELLS[kind](NUM_INPUTS, HIDDEN)
        theirs = TORCH_CELLS[kind](NUM_INPUTS, HIDDEN)
        theirs.load_state_dict(ours.state_dict())
        CELLS[kind](NUM_INPUTS, HIDDEN).load_state_dict(theirs.state_dict())


class TestPeepholeLSTM:
    """The peephole LSTM, which torch does not have."""

    def test_peephole_without_peepholes_is_an_lstm(self):
        """With zero peephole weights, as before training, the peephole LSTM equals the LSTM."""
        lstm, peephole = LSTMCell(NUM_INPUTS, HIDDEN), PeepholeLSTMCell(NUM_INPUTS, HIDDEN)
        peephole.load_state_dict(lstm.state_dict(), strict=False)
        x, h, c = torch.randn(ROWS, NUM_INPUTS), torch.randn(ROWS, HIDDEN), torch.randn(ROWS, HIDDEN)
        expected = lstm(lstm.project(x), h, c)
        for ours, theirs in zip(peephole(peephole.project(x), h, c), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)

    def test_peephole_follows_its_equations(self):
        """The input and forget gates see the old cell state, the output gate sees the updated cell state."""
        cell = PeepholeLSTMCell(NUM_INPUTS, HIDDEN)
        for weight in (cell.weight_ci, cell.weight_cf, cell.weight_co):
            nn.init.normal_(weight)
        x, h, c = torch.randn(ROWS, NUM_INPUTS), torch.randn(ROWS, HIDDEN), torch.randn(ROWS, HIDDEN)
        gates = x @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + cell.bias_hh
        i, f, g, o = gates.chunk(4, 1)
        i, f = torch.sigmoid(i + cell.weight_ci * c), torch.sigmoid(f + cell.weight_cf * c)
        expected_c = f * c + i * torch.tanh(g)
        expected_h = torch.sigmoid(o + cell.weight_co * expected_c) * torch.tanh(expected_c)

        new_h, new_c = cell(cell.project(x), h, c)

        torch.testing.assert_close(new_h, expected_h, atol=1e-5, rtol=0)
        torch.testing.assert_close(new_c, expected_c, atol=1e-5, rtol=0)


class TestCellState:
    """Which cells change c."""

    @pytest.mark.parametrize("kind", sorted(CELLS))
    def test_only_kinds_with_a_cell_state_change_c(self, kind):
        """A cell without a cell state returns the c that it was given."""
        cell = CELLS[kind](NUM_INPUTS, HIDDEN)
        h, c = torch.randn(ROWS, HIDDEN), torch.randn(ROWS, HIDDEN)
        _, new_c = cell(cell.project(torch.randn(ROWS, NUM_INPUTS)), h, c)
        assert torch.equal(new_c, c) == (kind not in CELL_STATE_KINDS)


class TestTanh:
    """The cheap hyperbolic tangent."""

    def test_tanh_is_near_enough(self):
        """It stays within 2e-7 of the exact tanh, and at ±1 for huge inputs."""
        x = torch.linspace(-20, 20, 100_001, dtype=torch.float64)
        error = tanh(x.float()).double() - torch.tanh(x.float().double())
        assert error.abs().max() < 2e-7
        assert tanh(torch.tensor([-1e30, 1e30])).tolist() == [-1.0, 1.0]

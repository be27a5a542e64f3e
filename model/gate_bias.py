"""Owns how long a gated cell remembers before it has learned anything: where the biases of its gates begin.

Knows nothing of training.

With a gate that keeps a share f of the memory at each step, what entered t steps ago is still there by f^t:
the memory lasts about 1 / (1 − f) steps. Biases near zero keep a half, which is a memory of two steps.

- `one`: a bias of one, so f = σ(1) ≈ 0.73, nearly four steps (Jozefowicz, Zaremba & Sutskever 2015, "An
  empirical exploration of recurrent network architectures").
- `chrono`: every hidden unit gets a memory of its own, T steps, uniform between 2 and the longest (Tallec &
  Ollivier 2018, "Can recurrent neural networks warp time?"): the bias is log(T − 1), so that 1 / (1 − f) = T.
  The LSTM's input gate begins at the opposite, and lets in what the forget gate lets go.

The gate that keeps is the LSTM's forget gate and the GRU's update gate; the Elman network has none.
"""

from collections.abc import Iterable

import torch

from model.cells import GRUCell, LSTMCell, PeepholeLSTMCell, RecurrentCell

KINDS = ("uniform", "one", "chrono")
"""Where the biases begin: `uniform` leaves them as torch has them."""

_LSTM_INPUT_GATE, _LSTM_FORGET_GATE, _GRU_UPDATE_GATE = 0, 1, 1


def set_gate_bias(cells: Iterable[RecurrentCell], kind: str, *, longest_steps: int) -> None:
    """Sets the biases of all cells' gates that keep, and draws from torch's random numbers for `chrono`.

    Args:
        longest_steps: the longest memory that `chrono` gives to a unit.

    Raises:
        ValueError: the cell has no gate that keeps its memory, or the longest memory is under two steps.
    """
    if kind == "uniform":
        return
    if kind == "chrono" and longest_steps < 2:
        raise ValueError(f"gate bias: chrono needs a window of at least 2 steps, not {longest_steps}")
    for cell in cells:
        if not isinstance(cell, LSTMCell | PeepholeLSTMCell | GRUCell):
            raise ValueError(
                f"gate bias: this kind of cell has no gate that keeps its memory, so {kind} is no use"
            )
        hidden_size = cell.weight_hh.size(1)
        if kind == "one":
            _set(cell, _keeping_gate(cell), torch.ones(hidden_size))
            continue
        steps = torch.empty(hidden_size).uniform_(2.0, float(longest_steps))
        _set(cell, _keeping_gate(cell), torch.log(steps - 1.0))
        if not isinstance(cell, GRUCell):
            _set(cell, _LSTM_INPUT_GATE, -torch.log(steps - 1.0))


def _keeping_gate(cell: RecurrentCell) -> int:
    return _GRU_UPDATE_GATE if isinstance(cell, GRUCell) else _LSTM_FORGET_GATE


@torch.no_grad()
def _set(cell: RecurrentCell, gate: int, bias: torch.Tensor) -> None:
    """Sets the bias (H) of one gate: the sum of the two that each gate has."""
    rows = slice(gate * len(bias), (gate + 1) * len(bias))
    cell.bias_ih[rows] = bias
    cell.bias_hh[rows] = 0.0

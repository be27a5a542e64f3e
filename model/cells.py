"""Owns one time step of each recurrent cell, every gate written out and named as in the literature.

Parameters carry the names, shapes and gate order of torch.nn.RNNCell, LSTMCell and GRUCell, so weights
interchange. Knows nothing of layers, scaling or time.

Each cell works in two parts, so that the input's product can be taken for many time steps at once:
`project(x)` gives the input's share of all gates, `forward(projected, h, c)` takes one step. A cell that is
not among `CELL_STATE_KINDS` returns the c that it was given.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def tanh(x: Tensor) -> Tensor:
    """Returns the hyperbolic tangent as 2σ(2x) − 1, within 2e-7, at a third of the cost."""
    return 2.0 * torch.sigmoid(2.0 * x) - 1.0


class RecurrentCell(nn.Module):
    """Holds what all cells share: one fused projection of the input, one of h, for all gates."""

    def __init__(self, num_inputs: int, hidden_size: int, num_gates: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(num_gates * hidden_size, num_inputs))
        self.weight_hh = nn.Parameter(torch.empty(num_gates * hidden_size, hidden_size))
        self.bias_ih = nn.Parameter(torch.empty(num_gates * hidden_size))
        self.bias_hh = nn.Parameter(torch.empty(num_gates * hidden_size))
        bound = 1.0 / math.sqrt(hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def project(self, x: Tensor) -> Tensor:
        """Returns the input's share of all gates: (B, I) gives (B, gates·H)."""
        return torch.mm(x, self.weight_ih.t()).add_(self.bias_ih + self.bias_hh)

    def gates(self, projected: Tensor, h: Tensor) -> Tensor:
        """Adds the share of h to the input's: (B, gates·H), into `projected` itself if no gradient is due."""
        if torch.is_grad_enabled():
            return torch.addmm(projected, h, self.weight_hh.t())
        return projected.addmm_(h, self.weight_hh.t())


class ElmanCell(RecurrentCell):
    """Steps Elman's simple recurrent network (Elman 1990, "Finding structure in time").

    h = tanh(W x + b + U h + b')
    """

    def __init__(self, num_inputs: int, hidden_size: int) -> None:
        super().__init__(num_inputs, hidden_size, 1)

    def forward(self, projected: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Takes one time step: projected (B, H), h (B, H); c passes through."""
        return tanh(self.gates(projected, h)), c


class LSTMCell(RecurrentCell):
    """Steps long short-term memory with a forget gate.

    Hochreiter & Schmidhuber 1997, "Long short-term memory"; Gers, Schmidhuber & Cummins 2000, "Learning to
    forget":

        i = σ(W_i x + U_i h)       input gate
        f = σ(W_f x + U_f h)       forget gate
        g = tanh(W_g x + U_g h)    candidate
        o = σ(W_o x + U_o h)       output gate
        c = f c + i g              cell update
        h = o tanh(c)
    """

    def __init__(self, num_inputs: int, hidden_size: int) -> None:
        super().__init__(num_inputs, hidden_size, 4)
        slope = torch.ones(4, hidden_size)
        slope[2] = 2.0
        self.register_buffer("slope", slope.flatten(), persistent=False)  # (4H)
        self.slope: Tensor

    def forward(self, projected: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Takes one time step: projected (B, 4H), h and c (B, H)."""
        # The candidate's tanh(x) is 2σ(2x) − 1: with its columns doubled, one sigmoid serves all four gates.
        gates = self.gates(projected, h).mul_(self.slope).sigmoid_()  # (B, 4H)
        input_gate, forget_gate, candidate, output_gate = gates.view(-1, 4, c.size(1)).unbind(
            1
        )  # (B, H) each
        c = (forget_gate * c).sub_(input_gate).addcmul_(input_gate, candidate, value=2.0)
        return torch.addcmul(-output_gate, output_gate, torch.sigmoid(c + c), value=2.0), c


class PeepholeLSTMCell(RecurrentCell):
    """Steps an LSTM whose gates also see the cell state.

    Gers & Schmidhuber 2000, "Recurrent nets that time and count"; Gers, Schraudolph & Schmidhuber 2002,
    "Learning precise timing with LSTM recurrent networks". As LSTMCell, with one weight per
    cell (p, element-wise):

        i = σ(W_i x + U_i h + p_i c)
        f = σ(W_f x + U_f h + p_f c)
        o = σ(W_o x + U_o h + p_o c')    c' is the updated cell state
    """

    def __init__(self, num_inputs: int, hidden_size: int) -> None:
        super().__init__(num_inputs, hidden_size, 4)
        self.weight_ci = nn.Parameter(torch.zeros(hidden_size))
        self.weight_cf = nn.Parameter(torch.zeros(hidden_size))
        self.weight_co = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, projected: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Takes one time step: projected (B, 4H), h and c (B, H)."""
        gates = self.gates(projected, h)  # (B, 4H)
        to_input, to_forget, to_candidate, to_output = gates.chunk(4, 1)  # (B, H) each
        input_gate = torch.sigmoid(to_input + self.weight_ci * c)
        forget_gate = torch.sigmoid(to_forget + self.weight_cf * c)
        candidate = tanh(to_candidate)
        c = forget_gate * c + input_gate * candidate
        output_gate = torch.sigmoid(to_output + self.weight_co * c)
        return output_gate * tanh(c), c


class GRUCell(RecurrentCell):
    """Steps the gated recurrent unit.

    Cho et al. 2014, "Learning phrase representations using RNN encoder-decoder", equations 5 to 8, with the
    reset gate applied after the product with h, as torch and cuDNN do:

        r = σ(W_r x + U_r h)                  reset gate
        z = σ(W_z x + U_z h)                  update gate
        n = tanh(W_n x + b + r (U_n h + b'))  candidate
        h = (1 − z) n + z h
    """

    def __init__(self, num_inputs: int, hidden_size: int) -> None:
        super().__init__(num_inputs, hidden_size, 3)

    def project(self, x: Tensor) -> Tensor:
        """Returns the input's share of all gates: (B, I) gives (B, 3H)."""
        return torch.mm(x, self.weight_ih.t()).add_(self.bias_ih)

    def forward(self, projected: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Takes one time step: projected (B, 3H), h (B, H); c passes through."""
        recurrent = torch.addmm(self.bias_hh, h, self.weight_hh.t())  # (B, 3H)
        two = 2 * h.size(1)
        reset_gate, update_gate = torch.sigmoid(projected[:, :two] + recurrent[:, :two]).chunk(
            2, 1
        )  # (B, H) each
        candidate = tanh(projected[:, two:] + reset_gate * recurrent[:, two:])
        return candidate + update_gate * (h - candidate), c


CELLS: dict[str, Callable[[int, int], RecurrentCell]] = {
    "elman": ElmanCell,
    "lstm": LSTMCell,
    "peephole": PeepholeLSTMCell,
    "gru": GRUCell,
}
"""Makes a cell of each kind from the numbers of its inputs and hidden units."""

CELL_STATE_KINDS = frozenset({"lstm", "peephole"})
"""The kinds that carry a cell state c beside h."""

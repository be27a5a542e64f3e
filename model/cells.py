"""Owns one time step of each recurrent cell, with every gate written out and named as in the literature.

Knows nothing of layers, scaling or time.

From the plain recurrent network to the LSTM: Elman (1990) feeds the hidden state h back beside the next
input. Through n steps the gradient is then a product of n Jacobians, diag(1 − h²) U each, and that product
vanishes exponentially where the network holds a memory that noise does not erase (Bengio, Simard & Frasconi
1994, "Learning long-term dependencies with gradient descent is difficult"). What lies far back teaches the
weights nothing. The LSTM (Hochreiter & Schmidhuber 1997) adds a cell state c, which changes by a sum
instead of a product with U:

1. Forget gate: f says how much of c stays (Gers, Schmidhuber & Cummins 2000; in 1997 all of it stayed).
2. Input gate: i says how much enters of the candidate g, which is made of the input x and of h.
3. Cell update: c' = f c + i g. Along this path ∂c'/∂c is f; where f is near 1, the gradient does not
   vanish.
4. Output gate: o says how much of the cell state shows, h' = o tanh(c').

Peepholes (Gers & Schmidhuber 2000) let the gates see c. The GRU (Cho et al. 2014) has no c, and one update
gate in place of forget and input gate. One or many in, one or many out is decided above the cells, in
`model.network`: `step` takes one input and gives one output, `scan` takes many and gives many (the last of
them alone is many in, one out), `forecast` gives many after one.

Parameters carry the names, shapes and gate order of torch.nn.RNNCell, LSTMCell and GRUCell, so weights
interchange.

Each cell works in two parts, so that the input's product can be taken for many time steps at once:
`project(x)` gives the input's share of all gates, `forward(projected, h, c)` takes one step. A cell that is
not among `CELL_STATE_KINDS` returns the c that it was given.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def tanh(x: Tensor) -> Tensor:
    """Returns the hyperbolic tangent as 2σ(2x) − 1: within 2e-7 of torch.tanh, at a third of its cost."""
    return 2.0 * torch.sigmoid(2.0 * x) - 1.0


class RecurrentCell(nn.Module):
    """Holds the parameters that all cells share: one projection of the input and one of h, for all gates.

    Weights begin uniform within ±1/√H, as in torch.
    """

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
        """Adds the share of h to the input's: (B, gates·H); without gradients, into `projected` itself."""
        if torch.is_grad_enabled():
            return torch.addmm(projected, h, self.weight_hh.t())
        return projected.addmm_(h, self.weight_hh.t())


class ElmanCell(RecurrentCell):
    """Steps the simple recurrent network of Elman 1990, "Finding structure in time".

    W is `weight_ih`, U is `weight_hh`:

        h' = tanh(W x + b_ih + U h + b_hh)    hidden state

    Elman's hidden units were logistic; tanh is what torch.nn.RNNCell has.
    """

    def __init__(self, num_inputs: int, hidden_size: int) -> None:
        super().__init__(num_inputs, hidden_size, 1)

    def forward(self, projected: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Takes one time step: projected (B, H), h (B, H); c passes through."""
        return tanh(self.gates(projected, h)), c


class LSTMCell(RecurrentCell):
    """Steps the long short-term memory with a forget gate.

    Hochreiter & Schmidhuber 1997, "Long short-term memory"; Gers, Schmidhuber & Cummins 2000, "Learning to
    forget: Continual prediction with LSTM". The weights hold the gates in this order; biases are left out:

        i = σ(W_i x + U_i h)       input gate
        f = σ(W_f x + U_f h)       forget gate
        g = tanh(W_g x + U_g h)    candidate
        o = σ(W_o x + U_o h)       output gate
        c' = f c + i g             cell update
        h' = o tanh(c')            hidden state
    """

    def __init__(self, num_inputs: int, hidden_size: int) -> None:
        super().__init__(num_inputs, hidden_size, 4)
        slope = torch.ones(4, hidden_size)  # one row per gate: i, f, g, o
        slope[2] = 2.0
        self.register_buffer("slope", slope.flatten(), persistent=False)  # (4H)
        self.slope: Tensor

    def forward(self, projected: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Takes one time step: projected (B, 4H), h and c (B, H)."""
        # The candidate's tanh(x) is 2σ(2x) − 1: with its columns doubled, one sigmoid serves all four gates.
        gates = self.gates(projected, h).mul_(self.slope).sigmoid_()  # (B, 4H)
        by_gate = gates.view(-1, 4, c.size(1))  # (B, 4, H)
        input_gate, forget_gate, candidate, output_gate = by_gate.unbind(1)  # (B, H) each
        # f c + i (2 candidate − 1), then o (2σ(2c) − 1), in as few operations as torch offers.
        c = (forget_gate * c).sub_(input_gate).addcmul_(input_gate, candidate, value=2.0)
        return torch.addcmul(-output_gate, output_gate, torch.sigmoid(c + c), value=2.0), c


class PeepholeLSTMCell(RecurrentCell):
    """Steps an LSTM whose gates also see the cell state through peepholes.

    Gers & Schmidhuber 2000, "Recurrent nets that time and count"; Gers, Schraudolph & Schmidhuber 2002,
    "Learning precise timing with LSTM recurrent networks". A peephole p has one weight per hidden unit and
    multiplies element by element. Biases are left out here:

        i = σ(W_i x + U_i h + p_i c)     input gate
        f = σ(W_f x + U_f h + p_f c)     forget gate
        g = tanh(W_g x + U_g h)          candidate
        c' = f c + i g                   cell update
        o = σ(W_o x + U_o h + p_o c')    output gate, which sees the updated cell state
        h' = o tanh(c')                  hidden state
    """

    def __init__(self, num_inputs: int, hidden_size: int) -> None:
        super().__init__(num_inputs, hidden_size, 4)
        self.weight_ci = nn.Parameter(torch.zeros(hidden_size))
        self.weight_cf = nn.Parameter(torch.zeros(hidden_size))
        self.weight_co = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, projected: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Takes one time step: projected (B, 4H), h and c (B, H)."""
        gates = self.gates(projected, h)  # (B, 4H), before σ and tanh
        net_input, net_forget, net_candidate, net_output = gates.chunk(4, 1)  # (B, H) each
        input_gate = torch.sigmoid(net_input + self.weight_ci * c)
        forget_gate = torch.sigmoid(net_forget + self.weight_cf * c)
        candidate = tanh(net_candidate)
        c = forget_gate * c + input_gate * candidate
        output_gate = torch.sigmoid(net_output + self.weight_co * c)
        return output_gate * tanh(c), c


class GRUCell(RecurrentCell):
    """Steps the gated recurrent unit.

    Cho et al. 2014, "Learning phrase representations using RNN encoder-decoder for statistical machine
    translation", equations 5 to 8, with the reset gate applied after the product with h, as torch and cuDNN
    do. The biases of r and z are left out here:

        r = σ(W_r x + U_r h)                        reset gate
        z = σ(W_z x + U_z h)                        update gate
        n = tanh(W_n x + b_ih + r (U_n h + b_hh))   candidate
        h' = (1 − z) n + z h                        hidden state
    """

    def __init__(self, num_inputs: int, hidden_size: int) -> None:
        super().__init__(num_inputs, hidden_size, 3)

    def project(self, x: Tensor) -> Tensor:
        """Returns the input's share of all gates: (B, I) gives (B, 3H), without the bias of h."""
        return torch.mm(x, self.weight_ih.t()).add_(self.bias_ih)

    def forward(self, projected: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Takes one time step: projected (B, 3H), h (B, H); c passes through."""
        recurrent = torch.addmm(self.bias_hh, h, self.weight_hh.t())  # (B, 3H)
        split = 2 * h.size(1)  # columns of r and z; those of n follow
        both_gates = torch.sigmoid(projected[:, :split] + recurrent[:, :split])  # (B, 2H)
        reset_gate, update_gate = both_gates.chunk(2, 1)  # (B, H) each
        candidate = tanh(projected[:, split:] + reset_gate * recurrent[:, split:])
        return candidate + update_gate * (h - candidate), c


CELLS: dict[str, Callable[[int, int], RecurrentCell]] = {
    "elman": ElmanCell,
    "lstm": LSTMCell,
    "peephole": PeepholeLSTMCell,
    "gru": GRUCell,
}
"""The constructor of each kind of cell: takes the number of inputs and the hidden size."""

CELL_STATE_KINDS = frozenset({"lstm", "peephole"})
"""The kinds that carry a cell state c beside h."""

"""Owns the network that becomes the artifact: scaling, calendar, a stack of cells, a head for many horizons.

Knows nothing of files, training or manifests.

All methods are pure functions of rows. On the CPU a row's bits depend on that row alone. The rules for it
were measured with torch 2.13 and MKL on one and two threads; tests/property/test_artifact_bits.py holds
them:

* A product of float32 rows has the same bits for every number of rows that is a multiple of 4, and others for
  the numbers below and between. So rows are padded to a multiple of ROW_MULTIPLE.
* A product with fewer than 16 columns has other bits. So the hidden size and the head's rows are multiples of
  COLUMN_MULTIPLE.
* torch.sigmoid rounds the last numel % 32 elements differently. Both multiples together leave no such rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from model.calendar_features import NUM_FEATURES, WEEK_NS, calendar_table, slot_ns_of
from model.cells import CELL_STATE_KINDS, CELLS, RecurrentCell

ROW_MULTIPLE = 4
COLUMN_MULTIPLE = 16

Weights = dict[str, Tensor]
"""A network's parameters and buffers by name, as in its state_dict."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Describes a network's shape; the weights and the scaling come from training."""

    num_inputs: int
    num_outputs: int
    """The outputs are predictions of the first `num_outputs` inputs."""
    interval_ns: int = 0
    """Time between two steps; 0 where the series has no fixed interval."""
    uses_time: bool = False
    cell: str = "lstm"
    hidden_size: int = 128
    num_layers: int = 1
    head_size: int = 0
    """Width of the head's hidden layer, ReLU; 0 for a linear head."""
    head_steps: int = 48
    """Steps ahead that the head predicts directly."""
    scaled: bool = True
    """The inputs' mean and standard deviation are inside; where false, values are used as they come."""
    offsets: bool = True
    """The head predicts differences from the last value, which the state then holds."""
    dropout: float = 0.0
    """Share of the top layer's h that is dropped before the head, in training only."""

    def __post_init__(self) -> None:
        if self.cell not in CELLS:
            raise ValueError(f"cell: {self.cell!r} is not one of {', '.join(CELLS)}")
        if self.hidden_size < 1 or self.hidden_size % COLUMN_MULTIPLE:
            raise ValueError(f"hidden size: {self.hidden_size} is not a multiple of {COLUMN_MULTIPLE}")
        if self.head_size % COLUMN_MULTIPLE:
            raise ValueError(f"head size: {self.head_size} is not a multiple of {COLUMN_MULTIPLE}")
        if not 1 <= self.num_outputs <= self.num_inputs:
            raise ValueError(f"outputs: {self.num_outputs} is not from 1 to the {self.num_inputs} inputs")
        if self.num_layers < 1 or self.head_steps < 1 or self.head_size < 0:
            raise ValueError("layers and head steps must be at least 1, the head size at least 0")
        if self.uses_time and self.interval_ns < 1:
            raise ValueError("a network that uses time needs the interval of its series, over 0 ns")


def _whole_multiple(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _missing_rows(num_rows: int, multiple: int = ROW_MULTIPLE) -> int:
    # The constant comes in as a default value, because a script cannot read a global number.
    return (multiple - num_rows % multiple) % multiple


def _padded(rows: Tensor, missing: int) -> Tensor:
    if missing == 0:
        return rows
    return torch.constant_pad_nd(rows, [0, 0] * (rows.dim() - 1) + [0, missing])


class Network(nn.Module):
    """Predicts a series step by step from a flat row of state; the artifact is this module, scripted.

    Shapes: B rows, T time steps, F inputs, I features (the scaled inputs and the calendar), H hidden size,
    O outputs, S state, K steps that the head predicts directly, N rows of any kind.
    A state row holds h (and c) of each layer, then the last input where the head predicts offsets from it.
    """

    if TYPE_CHECKING:
        cells: Sequence[RecurrentCell]

    num_inputs: Final[int]
    num_outputs: Final[int]
    hidden_size: Final[int]
    head_steps: Final[int]
    interval_ns: Final[int]
    slot_ns: Final[int]
    week_ns: Final[int]
    uses_time: Final[bool]
    scaled: Final[bool]
    offsets: Final[bool]
    has_dense: Final[bool]
    has_cell_state: Final[bool]
    state_size: Final[int]
    next_rows: Final[int]

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.num_inputs, self.num_outputs = architecture.num_inputs, architecture.num_outputs
        self.hidden_size, self.head_steps = architecture.hidden_size, architecture.head_steps
        self.interval_ns, self.week_ns = architecture.interval_ns, WEEK_NS
        self.uses_time, self.scaled = architecture.uses_time, architecture.scaled
        self.offsets, self.has_dense = architecture.offsets, architecture.head_size > 0
        self.has_cell_state = architecture.cell in CELL_STATE_KINDS
        self.state_size = sum(size for _, size in state_layout(architecture))
        self.next_rows = _whole_multiple(self.num_outputs, COLUMN_MULTIPLE)
        self.slot_ns = slot_ns_of(self.interval_ns) if self.uses_time else 1
        self._add_cells(architecture)
        self._add_head(architecture)
        self.register_buffer("mean", torch.zeros(self.num_inputs))
        self.register_buffer("scale", torch.ones(self.num_inputs))
        table = torch.from_numpy(calendar_table(self.slot_ns)) if self.uses_time else torch.zeros(0)
        self.register_buffer("calendar", table)  # (slots of a week, NUM_FEATURES)
        self.mean: Tensor
        self.scale: Tensor
        self.calendar: Tensor

    def _add_cells(self, architecture: Architecture) -> None:
        num_features = self.num_inputs + (NUM_FEATURES if self.uses_time else 0)
        widths = [num_features] + [self.hidden_size] * (architecture.num_layers - 1)
        cells = nn.ModuleList(CELLS[architecture.cell](width, self.hidden_size) for width in widths)
        self.cells = cells  # type: ignore[assignment]  # a sequence of cells to the type checker

    def _add_head(self, architecture: Architecture) -> None:
        self.dense = nn.Linear(self.hidden_size, architecture.head_size) if self.has_dense else nn.Identity()
        num_head_rows = _whole_multiple(self.head_steps * self.num_outputs, COLUMN_MULTIPLE)
        self.head = nn.Linear(architecture.head_size or self.hidden_size, num_head_rows)
        self.dropout = nn.Dropout(architecture.dropout)

    @torch.jit.export
    def step(self, x: Tensor, time: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Applies one time step to every row: one input in, one prediction out.

        x (B, F), time (B) in Unix ns and state (B, S) give the prediction of the next step (B, O) and the new
        state (B, S).
        """
        num_rows = x.size(0)
        missing = _missing_rows(num_rows)
        x, state = _padded(x, missing), _padded(state, missing)
        parts: list[Tensor] = []
        layer_input = self.features(x, _padded(time, missing) if self.uses_time else time)  # (B, I)
        offset = 0
        for cell in self.cells:
            h, c, offset = self.layer_state(state, offset)
            h, c = cell(cell.project(layer_input), h, c)
            parts.append(h)
            if self.has_cell_state:
                parts.append(c)
            layer_input = h  # (B, H)
        if self.offsets:
            parts.append(x)
        return self.next_value(layer_input, x)[:num_rows], torch.cat(parts, 1)[:num_rows]

    @torch.jit.export
    def scan(self, x: Tensor, time: Tensor, lengths: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Applies the first lengths[b] time steps to each row b, with the bits that `step` gives one by one.

        x (B, T, F), time (B, T) in Unix ns, lengths (B) from 0 to T and state (B, S) give the predictions of
        each next step (B, T, O), zeros past a row's length, and the state after that length (B, S).
        """
        num_rows, num_steps = x.size(0), x.size(1)
        if num_rows == 0 or num_steps == 0:
            return x.new_zeros([num_rows, num_steps, self.num_outputs]), state.clone()
        missing = _missing_rows(num_rows)
        x, time = _padded(x, missing), _padded(time, missing)
        # A padding row runs to the end: where all the others do too, no step needs a mask.
        lengths = torch.constant_pad_nd(lengths, [0, missing], num_steps)
        steps = x.transpose(0, 1).reshape(-1, self.num_inputs)  # (T·B, F)
        features = self.features(steps, time.t().reshape(-1))  # (T·B, I)
        h, state = self.unroll(features, steps, lengths, _padded(state, missing))  # (T·B, H), (B, S)
        y = self.next_value(h, steps).view(num_steps, -1, self.num_outputs).transpose(0, 1)  # (B, T, O)
        applied = torch.arange(num_steps, device=x.device).unsqueeze(0) < lengths.unsqueeze(1)  # (B, T)
        y = torch.where(applied.unsqueeze(2), y, torch.zeros_like(y))
        return y[:num_rows].contiguous(), state[:num_rows]

    @torch.jit.export
    def forecast(self, state: Tensor, time: Tensor, horizon: int, future: Tensor) -> Tensor:
        """Predicts `horizon` steps ahead from the state alone, and leaves the state as it was.

        state (B, S) after at least one step and time (B) of the last step give predictions (B, horizon, O).
        Past the K steps that the head predicts directly, the predictions are fed back as inputs; an input
        that is no output is fed its mean. `future` is ignored: these networks take no inputs known in
        advance.
        """
        num_rows = state.size(0)
        missing = _missing_rows(num_rows)
        state, time = _padded(state, missing), _padded(time, missing)
        parts = [self.direct_forecast(state)]  # (B, K, O)
        known = self.head_steps
        while known < horizon:
            x = self.inputs_from(parts[-1])  # (B, K, F)
            ahead = torch.arange(1, self.head_steps + 1, device=time.device) * self.interval_ns  # (K)
            times = time.unsqueeze(1) + ahead  # (B, K)
            time = times[:, -1]
            steps = x.transpose(0, 1).reshape(-1, self.num_inputs)  # (K·B, F)
            lengths = torch.full_like(time, self.head_steps)
            _, state = self.unroll(self.features(steps, times.t().reshape(-1)), steps, lengths, state)
            parts.append(self.direct_forecast(state))
            known += self.head_steps
        return torch.cat(parts, 1)[:num_rows, :horizon].contiguous()

    def features(self, x: Tensor, time: Tensor) -> Tensor:
        """Scales x (N, F) and appends the calendar features of time (N): (N, I)."""
        if self.scaled:
            x = (x - self.mean) / self.scale
        if self.uses_time:
            slot = torch.remainder(time, self.week_ns).div(self.slot_ns, rounding_mode="floor")  # (N)
            x = torch.cat([x, self.calendar[slot]], 1)
        return x

    def layer_state(self, state: Tensor, offset: int) -> tuple[Tensor, Tensor, int]:
        """Returns a layer's h and c, (B, H) each, at the offset in the state row, and the next offset.

        A cell without a cell state gets h for c.
        """
        end = offset + self.hidden_size
        h = state[:, offset:end]
        if not self.has_cell_state:
            return h, h, end
        return h, state[:, end : end + self.hidden_size], end + self.hidden_size

    def unroll(self, features: Tensor, x: Tensor, lengths: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the cells over the time steps of all rows, a layer at a time.

        features (T·B, I) of x (T·B, F), lengths (B) and state (B, S) give the top layer's h (T·B, H) and the
        new state (B, S).
        """
        num_rows = state.size(0)
        num_steps = features.size(0) // num_rows
        shortest = int(lengths.min())
        parts: list[Tensor] = []
        layer_input = features
        offset = 0
        for cell in self.cells:
            h, c, offset = self.layer_state(state, offset)
            projected = cell.project(layer_input).view(num_steps, num_rows, -1)  # (T, B, gates·H)
            hs: list[Tensor] = []
            for t, share in enumerate(projected.unbind(0)):  # (B, gates·H)
                next_h, next_c = cell(share, h, c)
                if t >= shortest:  # a row that is over keeps its state
                    applied = (lengths > t).unsqueeze(1)  # (B, 1)
                    next_h, next_c = torch.where(applied, next_h, h), torch.where(applied, next_c, c)
                h, c = next_h, next_c
                hs.append(h)
            parts.append(h)
            if self.has_cell_state:
                parts.append(c)
            layer_input = torch.cat(hs)  # (T·B, H)
        if self.offsets:
            parts.append(self.last_input(x.view(num_steps, num_rows, -1), lengths, state[:, offset:]))
        return layer_input, torch.cat(parts, 1)

    def last_input(self, x: Tensor, lengths: Tensor, earlier: Tensor) -> Tensor:
        """Returns each row's last applied input of x (T, B, F), or the earlier one where none was: (B, F)."""
        last = (lengths - 1).clamp(min=0).view(1, -1, 1).expand(1, x.size(1), x.size(2))
        return torch.where((lengths > 0).unsqueeze(1), x.gather(0, last).squeeze(0), earlier)

    def head_input(self, h: Tensor) -> Tensor:
        """Applies dropout and, where there is one, the head's hidden layer to the top layer's h (N, H)."""
        h = self.dropout(h)
        if self.has_dense:
            h = torch.relu(self.dense(h))
        return h

    def next_value(self, h: Tensor, x: Tensor) -> Tensor:
        """Predicts the next step alone, from the top layer's h (N, H) and the input x (N, F): (N, O)."""
        weight, bias = self.head.weight[: self.next_rows], self.head.bias[: self.next_rows]
        y = torch.mm(self.head_input(h), weight.t()).add_(bias)[:, : self.num_outputs]
        return self.to_units(y, x)

    def direct_values(self, h: Tensor, x: Tensor) -> Tensor:
        """Predicts all direct steps, from the top layer's h (N, H) and the input x (N, F): (N, K, O)."""
        y = torch.mm(self.head_input(h), self.head.weight.t()).add_(self.head.bias)  # (N, at least K·O)
        y = y[:, : self.head_steps * self.num_outputs].view(-1, self.head_steps, self.num_outputs)
        return self.to_units(y, x.unsqueeze(1))

    def to_units(self, y: Tensor, x: Tensor) -> Tensor:
        """Turns the head's output (…, O) into plain units, given the last input (…, F)."""
        if self.scaled:
            y = y * self.scale[: self.num_outputs]
        if self.offsets:
            return y + x[..., : self.num_outputs]
        return y + self.mean[: self.num_outputs] if self.scaled else y

    def direct_forecast(self, state: Tensor) -> Tensor:
        """Predicts all direct steps from the top layer and last input at the state row's end: (B, K, O)."""
        end = state.size(1) - (self.num_inputs if self.offsets else 0)
        top = end - self.hidden_size * (2 if self.has_cell_state else 1)
        return self.direct_values(state[:, top : top + self.hidden_size], state[:, end:])

    def inputs_from(self, y: Tensor) -> Tensor:
        """Turns predictions y (B, K, O) into inputs (B, K, F): an input that is no output gets its mean."""
        if self.num_inputs == self.num_outputs:
            return y
        rest = self.mean[self.num_outputs :].expand(y.size(0), y.size(1), -1)
        return torch.cat([y, rest], 2)


def state_layout(architecture: Architecture) -> list[tuple[str, int]]:
    """Lists the parts of a state row in order, each with its name and its size in floats."""
    names = ["h", "c"] if architecture.cell in CELL_STATE_KINDS else ["h"]
    layers = range(architecture.num_layers)
    layout = [(f"layers.{i}.{name}", architecture.hidden_size) for i in layers for name in names]
    return [*layout, ("last_x", architecture.num_inputs)] if architecture.offsets else layout


def network_with(architecture: Architecture, weights: Weights) -> Network:
    """Builds a network with these weights, in evaluation mode."""
    network = Network(architecture)
    network.load_state_dict(weights)
    return network.eval()

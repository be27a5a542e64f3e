"""The pool of state rows: one row of float32 per slot, on the device where the model runs.

Does not know sessions, nor what the values mean.
"""

import numpy as np
import torch
from torch import Tensor


class StatePool:
    """Rows [capacity, size] of float32; a session begins with a row of zeros."""

    def __init__(self, capacity: int, size: int, device: torch.device) -> None:
        if device.type == "cpu":
            # np.zeros takes memory only as rows are written; torch.zeros would take all of it at once.
            self.rows = torch.from_numpy(np.zeros((capacity, size), np.float32))
        else:
            self.rows = torch.zeros((capacity, size), dtype=torch.float32, device=device)

    def clear(self, slot: int) -> None:
        """Puts a row back to zeros."""
        self.rows[slot].zero_()

    def gather(self, slots: Tensor) -> Tensor:
        """Returns copies of the rows at `slots` (int64 [B], on the device), as [B, S]."""
        return self.rows.index_select(0, slots)

    def scatter(self, slots: Tensor, rows: Tensor) -> None:
        """Writes rows [B, S] to `slots` (int64 [B]), each slot once."""
        self.rows.index_copy_(0, slots, rows)

"""Recurrent cells that can be vectorised over tasks."""

import torch.nn.functional as F
from torch import Tensor, nn


class LSTMCell(nn.LSTMCell):
    """`torch.nn.LSTMCell` in plain operations: the fused one has no rule for `torch.vmap`.

    S. Hochreiter, J. Schmidhuber: Long Short-Term Memory. Neural Computation, 1997; with the forget gate of
    F. Gers, J. Schmidhuber, F. Cummins: Learning to Forget. 2000.
    """

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Inputs (M, inputs), state (hidden, cell) of (M, size) each -> the next state."""
        hidden, cell = state
        gates = F.linear(x, self.weight_ih, self.bias_ih) + F.linear(hidden, self.weight_hh, self.bias_hh)
        enter, forget, content, leave = gates.chunk(4, dim=-1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * content.tanh()
        return leave.sigmoid() * cell.tanh(), cell

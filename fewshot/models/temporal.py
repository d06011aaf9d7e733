"""Causal layers over a sequence: dilated convolutions and attention. An element sees itself and those before it."""

import math

import torch
from torch import Tensor, nn


class TemporalConvolution(nn.Module):
    """Densely connected, dilated, gated convolutions that together see `length` elements back.

    N. Mishra, M. Rohaninejad, X. Chen, P. Abbeel: A Simple Neural Attentive Meta-Learner. ICLR 2018 ("TC block").

    Differs from the paper in that dilations start at 1, where it writes 2, so that neighbours are seen.

    Args:
        inputs: numbers of an element.
        filters: numbers that each convolution adds.
        length: of the longest sequence.
    """

    def __init__(self, inputs: int, filters: int, length: int) -> None:
        super().__init__()
        self.dilations = [2**power for power in range(max(1, math.ceil(math.log2(length))))]
        widths = [inputs + number * filters for number in range(len(self.dilations))]
        self.layers = nn.ModuleList(nn.Linear(2 * width, 2 * filters) for width in widths)
        self.outputs = inputs + len(self.dilations) * filters

    def forward(self, x: Tensor) -> Tensor:
        """(…, T, inputs) -> (…, T, outputs)."""
        for layer, dilation in zip(self.layers, self.dilations, strict=True):
            before = torch.cat([torch.zeros_like(x[..., :dilation, :]), x], dim=-2)[..., : x.shape[-2], :]
            content, gate = layer(torch.cat([before, x], dim=-1)).chunk(2, dim=-1)
            x = torch.cat([x, content.tanh() * gate.sigmoid()], dim=-1)
        return x


class CausalAttention(nn.Module):
    """Each element looks at itself and those before it; what it finds is laid beside it.

    A. Vaswani et al.: Attention Is All You Need. NIPS 2017, one head; as in SNAIL (Mishra et al. 2018).

    Args:
        inputs: numbers of an element.
        keys, values: sizes of what is looked for and of what is found.
    """

    def __init__(self, inputs: int, keys: int, values: int) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(inputs, keys), nn.Linear(inputs, values)
        self.key = nn.Linear(inputs, keys, bias=False)  # a bias would add the same to all that a query is matched to
        self.outputs = inputs + values

    def forward(self, x: Tensor) -> Tensor:
        """(…, T, inputs) -> (…, T, outputs)."""
        length = x.shape[-2]
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        queries, keys = self.query(x), self.key(x)
        match = (queries @ keys.mT / math.sqrt(keys.shape[-1])).masked_fill(later, -torch.inf)
        return torch.cat([x, match.softmax(-1) @ self.value(x)], dim=-1)

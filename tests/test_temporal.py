"""Layers over a sequence are causal, and reach as far back as they say."""

import pytest
import torch
from torch import nn

from fewshot.models.temporal import CausalAttention, TemporalConvolution

LAYERS = [TemporalConvolution(3, 4, 6), CausalAttention(3, 4, 5)]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_an_element_changes_nothing_before_it(layer: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 3)
    before = layer(x)
    assert before.shape == (2, 6, layer.outputs)
    for place in range(6):
        changed = x.clone()
        changed[:, place] += 1
        after = layer(changed)
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.allclose(after[:, place], before[:, place])


@pytest.mark.parametrize("length", [1, 2, 5, 8, 26])
def test_the_last_element_sees_the_first(length: int) -> None:
    x = torch.randn(length, 3, requires_grad=True)
    for layer in (TemporalConvolution(3, 4, length), CausalAttention(3, 4, 5)):
        (gradient,) = torch.autograd.grad(layer(x)[-1].sum(), x)
        assert (gradient[0] != 0).any()

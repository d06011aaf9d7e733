"""Batch normalisation, 2×2 max-pooling and ReLU as one layer, whose derivatives pass over few large tensors."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.models.normalization import (
    BatchNorm,
    Sums,
    channel_dot,
    channel_sum,
    combine,
    count,
    second_derivative,
    statistics,
    wide,
)
from fewshot.models.pooling import MaxPool2x2, at, maxima, spread_over
from fewshot.models.vmap_rule import tasks_in_front


class BatchNormPoolReLU(BatchNorm):
    """(M, C, H, W) -> (M, C, H//2, W//2): relu(max_pool2d(batch_norm(x), 2)), values, derivatives and ties alike.

    Only a quarter of what is normalised outlives the pooling. So the winners of the windows are found before
    normalising, which keeps or turns their order by the sign of the scale, and are normalised alone; and of the
    gradient that comes back three quarters are zero, so that sums of it are sums over the winners. On a CPU, where
    such a step is bound by memory, half of a block's passes over large tensors go away. On a GPU, and where others'
    statistics are used, the three layers follow each other.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(M, C, H, W) -> (M, C, H//2, W//2)."""
        if x.is_cuda or self.mean.numel() or torch.compiler.is_compiling():
            return F.relu(MaxPool2x2()(super().forward(x)))
        single = x.to(torch.promote_types(x.dtype, torch.float32))  # half precision is for products, not for sums
        if torch.is_grad_enabled():
            y, _, _, mean, rstd = _NormPoolReLU.apply(single, self.weight, self.bias, self.eps)
        else:
            y, mean, rstd = _Value.apply(single, self.weight, self.bias, self.eps)
        if self.observer is not None:
            self.observer((mean, rstd.pow(-2) - self.eps))
        return y.to(x.dtype)


# Letters as in normalization.py. Of every window q is the winner: x_q what stood there, z_q = (x_q − μ) r. With h the
# incoming gradient where the ReLU lets it through, g is h at the winners and zero elsewhere, so that Σ g = Σ h and
# Σ g z = Σ h z_q.


class _Value(torch.autograd.Function):
    """Without derivatives: the winners' places need not be known."""

    @staticmethod
    def forward(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean, rstd = statistics(x, eps)
        height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
        key = _key(x, gamma)
        rows = torch.maximum(key[..., 0:height:2, :], key[..., 1:height:2, :])
        winners = torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])
        if key is not x:
            winners = winners * wide(gamma.sign())
        return _activation(winners, gamma, beta, mean, rstd), mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], int]:
        *tensors, eps = inputs
        return _Value.apply(*tasks_in_front(info.batch_size, in_dims, tensors), eps), 0


class _NormPoolReLU(torch.autograd.Function):
    """Returns y, x_q, the places of the winners (flat in H × W), μ and r."""

    @staticmethod
    def forward(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, ...]:
        mean, rstd = statistics(x, eps)
        key = _key(x, gamma)
        winners, places = maxima(key)
        if key is not x:
            winners = at(x, places)
        return _activation(winners, gamma, beta, mean, rstd), winners, places, mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, gamma, *_ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, gamma, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, y, winners, places, mean, rstd = ctx.saved_tensors
        h = torch.where(y > 0, grads[0], 0)
        return *_NormPoolBackward.apply(h, x, gamma, winners, places, mean, rstd), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], int]:
        *tensors, eps = inputs
        return _NormPoolReLU.apply(*tasks_in_front(info.batch_size, in_dims, tensors), eps), 0


class _NormPoolBackward(torch.autograd.Function):
    """h -> dL/dx = γ r (g − mean(g) − z mean(g z)), dL/dγ = Σ h z_q, dL/dβ = Σ h."""

    @staticmethod
    def forward(
        h: Tensor, x: Tensor, gamma: Tensor, winners: Tensor, places: Tensor, mean: Tensor, rstd: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        m, scale = count(x), gamma * rstd
        grad_beta = channel_sum(h)
        grad_gamma = (channel_sum(h * winners) - mean * grad_beta) * rstd
        of_x = -scale * rstd * grad_gamma / m
        constant = -scale * grad_beta / m - mean * of_x
        grad_x = _line(x, of_x, constant)
        there = _line(winners, of_x, constant).addcmul_(h, wide(scale))
        return spread_over(grad_x, places, there), grad_gamma, grad_beta

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, *output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *_NormPoolSecond.apply(*grads, *ctx.saved_tensors), None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[tuple[Tensor, ...], int]:
        return _NormPoolBackward.apply(*tasks_in_front(info.batch_size, in_dims, inputs)), 0


class _NormPoolSecond(torch.autograd.Function):
    """`second_derivative`, with every sum over g a sum over the winners. There is no third derivative."""

    @staticmethod
    def forward(*inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u, a, b, h, x, gamma, winners, places, mean, rstd, m_t, m_s = inputs
        of_u = at(u, places)
        sums = Sums(count(x), channel_sum(u), channel_dot(u, x), channel_sum(of_u * h), m_t, m_s)
        by_g, by_x, of_h, grad_gamma = second_derivative(sums, a, b, gamma, mean, rstd)
        grad_h = combine(of_u, by_g[0], winners, by_g[1], mean, by_g[2])
        grad_x = combine(u, by_x[0], x, by_x[1], mean, by_x[2])
        there = combine(of_u, by_x[0], winners, by_x[1], mean, by_x[2]).addcmul_(h, wide(of_h))
        return grad_h, spread_over(grad_x, places, there), grad_gamma

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[tuple[Tensor, ...], int]:
        return _NormPoolSecond.apply(*tasks_in_front(info.batch_size, in_dims, inputs)), 0


def _line(x: Tensor, of_x: Tensor, constant: Tensor) -> Tensor:
    """In two operations: of three numbers, two of them the same for a channel, PyTorch has no fast loop."""
    return (x * wide(of_x)).add_(wide(constant))


def _key(x: Tensor, gamma: Tensor) -> Tensor:
    """What has its maxima where γ z has them; x itself where no scale is negative or zero."""
    return x if (gamma > 0).all() else x * wide(gamma.sign())


def _activation(winners: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    scale = gamma * rstd
    return _line(winners, scale, beta - mean * scale).relu_()

"""Normalisation layers that keep no statistics between calls."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fewshot.errors import UserError
from fewshot.models.vmap_rule import tasks_in_front


def normalization(name: str, channels: int) -> nn.Module:
    """The layer called "batch", "group" (of 8 channels), "layer" (all channels of an image) or "none"."""
    match name:
        case "batch":
            return BatchNorm(channels)
        case "group":
            if channels % 8:
                raise UserError(f"model.norm=group needs model.hidden divisible by 8, not {channels}")
            return nn.GroupNorm(channels // 8, channels)
        case "layer":
            return nn.GroupNorm(1, channels)
        case "none":
            return nn.Identity()
    raise UserError(f"model.norm={name} is not one of batch, group, layer, none")


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation with the statistics of the batch at hand, in training and evaluation alike.

    S. Ioffe, C. Szegedy: Batch Normalization, ICML 2015, as MAML uses it: no running statistics, so the
    answer to a query depends on the other queries of its batch (transductive).

    Values and gradients are those of `torch.nn.functional.batch_norm`; the second derivative, which PyTorch
    composes of many more passes over the activations, is written out below in eight.

    Where others' statistics are to be used, they are put in the place of the buffers `mean` and `variance`
    (C,), which are empty otherwise, by `torch.func.functional_call`; who wants to know those of the batch
    asks `observed`.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels, track_running_stats=False)
        self.register_buffer("mean", torch.empty(0), persistent=False)
        self.register_buffer("variance", torch.empty(0), persistent=False)
        self.observer: Callable[[tuple[Tensor, Tensor]], None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(M, C, H, W) -> (M, C, H, W)."""
        single = x.to(torch.promote_types(x.dtype, torch.float32))  # half precision is for products, not for sums
        return self._normalise(single).to(x.dtype)

    def _normalise(self, x: Tensor) -> Tensor:
        if self.mean.numel():
            if self.observer is not None:
                self.observer((x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)))
            scale = self.weight * (self.variance + self.eps).rsqrt()
            return x * scale[:, None, None] + (self.bias - self.mean * scale)[:, None, None]
        if torch.compiler.is_compiling():  # what the compiler fuses by itself needs no hand-written derivative
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
            if self.observer is not None:
                self.observer((mean, variance))
            scale = self.weight * (variance + self.eps).rsqrt()
            return (x - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]
        y, mean, rstd = _BatchNorm.apply(x, self.weight, self.bias, self.eps)
        if self.observer is not None:
            self.observer((mean, rstd.pow(-2) - self.eps))
        return y


@contextlib.contextmanager
def observed(module: nn.Module) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Within it, every batch normalisation of the module tells the mean and variance (C,) of its last batch."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, BatchNorm)}
    try:
        for name, layer in layers.items():
            layer.observer = partial(seen.__setitem__, name)
        yield seen
    finally:
        for layer in layers.values():
            layer.observer = None


# Letters of one channel of m = M*H*W numbers: μ its mean, r = 1/√(variance + eps), z = (x − μ) r,
# y = γ z + β. "Mean" is the mean over those m numbers. All below takes any number of leading dimensions,
# x (…, M, C, H, W) and γ (…, C), so that the rule for vmap is to put the tasks in front: the rule that
# PyTorch would generate costs a millisecond of Python at every call.


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean, centred, rstd = _centred(x, eps)
        return centred.mul_(wide(gamma * rstd)).add_(wide(beta)), mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, gamma, *_ = inputs
        _, mean, rstd = output
        ctx.mark_non_differentiable(mean, rstd)
        ctx.save_for_backward(x, gamma, mean, rstd)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *_BatchNormBackward.apply(grads[0], *ctx.saved_tensors), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], int]:
        *tensors, eps = inputs
        return _BatchNorm.apply(*tasks_in_front(info.batch_size, in_dims, tensors), eps), 0


class _BatchNormBackward(torch.autograd.Function):
    """g = dL/dy -> dL/dx = γ r (g − mean(g) − z mean(g z)), dL/dγ = Σ g z, dL/dβ = Σ g."""

    @staticmethod
    def forward(g: Tensor, x: Tensor, gamma: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m = count(x)
        grad_beta = channel_sum(g)
        grad_gamma = (channel_dot(g, x) - mean * grad_beta) * rstd
        scale = gamma * rstd
        grad_x = combine(g, scale, x, -scale * rstd * grad_gamma / m, mean, -scale * grad_beta / m)
        return grad_x, grad_gamma, grad_beta

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        _, grad_gamma, grad_beta = output
        ctx.save_for_backward(*inputs, grad_gamma, grad_beta)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *_BatchNormSecond.apply(*grads, *ctx.saved_tensors), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[tuple[Tensor, ...], int]:
        return _BatchNormBackward.apply(*tasks_in_front(info.batch_size, in_dims, inputs)), 0


class _BatchNormSecond(torch.autograd.Function):
    """`second_derivative` of whole activations. There is no third derivative."""

    @staticmethod
    def forward(*inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u, a, b, g, x, gamma, mean, rstd, m_t, m_s = inputs
        sums = Sums(count(x), channel_sum(u), channel_dot(u, x), channel_dot(u, g), m_t, m_s)
        by_g, by_x, of_g, grad_gamma = second_derivative(sums, a, b, gamma, mean, rstd)
        grad_x = combine(u, by_x[0], x, by_x[1], mean, by_x[2]).addcmul_(g, wide(of_g))
        return combine(u, by_g[0], x, by_g[1], mean, by_g[2]), grad_x, grad_gamma

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[tuple[Tensor, ...], int]:
        return _BatchNormSecond.apply(*tasks_in_front(info.batch_size, in_dims, inputs)), 0


class Sums(NamedTuple):
    """What the second derivative takes from whole activations, per channel: (…, C) each."""

    m: int  # numbers of a channel
    u: Tensor  # Σ u
    ux: Tensor  # Σ u x
    ug: Tensor  # Σ u g
    gz: Tensor  # Σ g z
    g: Tensor  # Σ g


Factors = tuple[Tensor, Tensor, Tensor]  # of u, of x − μ, and a constant


def second_derivative(
    sums: Sums, a: Tensor, b: Tensor, gamma: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Factors, Factors, Tensor, Tensor]:
    """Derivatives of L = Σ u·dx + a·dγ + b·dβ by g, x and γ, for u, a, b the gradients that come in.

    With the means s = mean(g), t = mean(g z), U = mean(u), V = mean(u z), D = mean(u g):
    L = m [γ r (D − U s − V t) + a t + b s]. All that depends on x does so through r and z, and
    dr/dx = −r² z / m, d(Σ c z)/dx = r (c − mean(c) − z mean(c z)); here c = −γ r t u + (a − γ r V) g.

    Returns:
        What dL/dg and dL/dx are combined of, what g is multiplied by in the latter beside that, and dL/dγ.
    """
    m, scale = sums.m, gamma * rstd
    s, t, mean_u = sums.g / m, sums.gz / m, sums.u / m
    mean_uz = (sums.ux / m - mean * mean_u) * rstd
    bracket = sums.ug / m - mean_u * s - mean_uz * t
    cu, cg = -scale * t, a - scale * mean_uz
    along_z = rstd * (cu * mean_uz + cg * t) + scale * rstd * bracket
    by_g = (scale, rstd * cg, b - scale * mean_u)
    by_x = (rstd * cu, -rstd * along_z, -rstd * (cu * mean_u + cg * s))
    return by_g, by_x, rstd * cg, rstd * bracket * m


def statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """μ and r."""
    mean, _, rstd = _centred(x, eps)
    return mean, rstd


def _centred(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = channel_sum(x) / count(x)
    centred = x - wide(mean)
    squares = torch.linalg.vector_norm(centred.flatten(-2), dim=-1).square().sum(-2)
    return mean, centred, (squares / count(x) + eps).rsqrt()


def count(x: Tensor) -> int:
    """The numbers of one channel."""
    return x.shape[-4] * x.shape[-2] * x.shape[-1]


def channel_sum(x: Tensor) -> Tensor:
    """Per channel: (…, M, C, H, W) -> (…, C). Pixels first: three dimensions at once take twenty times as long."""
    return x.flatten(-2).sum(-1).sum(-2)


def channel_dot(left: Tensor, right: Tensor) -> Tensor:
    """Sum of products per channel: (…, M, C, H, W) twice -> (…, C)."""
    with torch.autocast(left.device.type, enabled=False):  # which takes this for a product of matrices
        return torch.linalg.vecdot(left.flatten(-2), right.flatten(-2)).sum(-2)


def combine(u: Tensor, of_u: Tensor, x: Tensor, of_x: Tensor, mean: Tensor, constant: Tensor) -> Tensor:
    """u·of_u + (x − mean)·of_x + constant, with factors of each channel: (…, M, C, H, W)."""
    return (u * wide(of_u)).addcmul_(x, wide(of_x)).add_(wide(constant - mean * of_x))


def wide(per_channel: Tensor) -> Tensor:
    """(…, C) -> (…, 1, C, 1, 1)."""
    return per_channel[..., None, :, None, None]

"""Max-pooling, where PyTorch's own takes a sixth of a meta-step."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.models.vmap_rule import tasks_in_front


class MaxPool2x2(nn.Module):
    """2×2 max-pooling with stride 2: (…, C, H, W) -> (…, C, H//2, W//2), an odd last row or column dropped.

    Values, derivatives and ties are those of `torch.nn.functional.max_pool2d`, whose kernel for a CPU is slow
    at finding where each maximum stood unless the channels come last.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(…, C, H, W) -> (…, C, H//2, W//2)."""
        if x.is_cuda or torch.compiler.is_compiling():
            return F.max_pool2d(x, 2)
        if torch.is_grad_enabled():
            return _MaxPool2x2.apply(x)[0]
        height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
        rows = torch.maximum(x[..., 0:height:2, :], x[..., 1:height:2, :])
        return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])


class _MaxPool2x2(torch.autograd.Function):
    """Returns the maxima and, flat in H × W, where they stood."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return maxima(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.size = inputs[0].shape[-2:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _Spread.apply(grads[0], *ctx.saved_tensors, *ctx.size)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[tuple[Tensor, Tensor], int]:
        return _MaxPool2x2.apply(*tasks_in_front(info.batch_size, in_dims, inputs)), 0


class _Spread(torch.autograd.Function):
    """Numbers (…, C, h, w) to their places in (…, C, H, W), zeros elsewhere; the other way in the derivative.

    By itself so that zeros are written once: `scatter` on what may be differentiated copies them first.
    """

    @staticmethod
    def forward(g: Tensor, places: Tensor, height: int, width: int) -> Tensor:
        return spread_over(g.new_zeros((*places.shape[:-2], height, width)), places, g)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        return at(grads[0], places), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        *tensors, height, width = inputs
        return _Spread.apply(*tasks_in_front(info.batch_size, in_dims, tensors), height, width), 0


def maxima(x: Tensor) -> tuple[Tensor, Tensor]:
    """(…, M, C, H, W) -> of every 2×2 window the maximum, and its place, flat in H × W: (…, M, C, H//2, W//2) each."""
    *leading, channels, height, width = x.shape
    images = x.movedim(-3, -1).reshape(-1, height, width, channels).permute(0, 3, 1, 2)
    found, places = F.max_pool2d(images.contiguous(memory_format=torch.channels_last), 2, return_indices=True)
    shape = (*leading, *found.shape[1:])
    return found.reshape(shape).contiguous(), places.reshape(shape).contiguous()


def at(x: Tensor, places: Tensor) -> Tensor:
    """What stands at places (…, h, w) of x (…, H, W)."""
    return x.flatten(-2).gather(-1, places.flatten(-2)).unflatten(-1, places.shape[-2:])


def spread_over(x: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """x (…, H, W) with values (…, h, w) at their places; x itself may be overwritten."""
    return x.flatten(-2).scatter_(-1, places.flatten(-2), values.flatten(-2)).view_as(x)

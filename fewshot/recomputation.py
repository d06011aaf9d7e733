"""Computing again what a derivative needs, in place of keeping it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

Tree = Any  # tensors, and what else there is, in dictionaries, lists and tuples


def recomputed(function: Callable[..., Tree], *inputs: Tree) -> Tree:
    """function(*inputs); for its derivative the inputs alone are kept, and the function is computed a second time.

    T. Chen, B. Xu, C. Zhang, C. Guestrin: Training Deep Nets with Sublinear Memory Cost. 2016. Unlike
    `torch.utils.checkpoint` it works inside `torch.vmap` and around `torch.func.grad`, and can be nested.

    Args:
        function: pure; of what it returns only tensors count. A tensor that is no input of it gets no derivative.
    """
    leaves, spec = tree_flatten(inputs)
    holes, returned = _holes(leaves), list[Any]()

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:  # keeps no tensor: it lives as long as the graph
        found, out = tree_flatten(function(*tree_unflatten(_filled(holes, tensors), spec)))
        returned[:] = [_holes(found), out]
        return tuple(leaf for leaf in found if isinstance(leaf, Tensor))

    tensors = _Recomputed.apply(flat, *(leaf for leaf in leaves if isinstance(leaf, Tensor)))
    return tree_unflatten(_filled(returned[0], tensors), returned[1])


_HOLE = object()


def _holes(leaves: list[Any]) -> list[Any]:
    """The leaves without their tensors."""
    return [_HOLE if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _filled(leaves: list[Any], tensors: Iterable[Tensor]) -> list[Any]:
    """The leaves, with tensors in the holes."""
    rest = iter(tensors)
    return [next(rest) if leaf is _HOLE else leaf for leaf in leaves]


class _Recomputed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        return function(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.function = inputs[0]
        ctx.set_materialize_grads(False)  # states that nobody asks for get none
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    @torch.no_grad()  # or the function around this one would keep what happens in here for a derivative of its own
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        smooth = [place for place, tensor in enumerate(tensors) if tensor.is_floating_point()]

        def product(*varied: Tensor) -> Tensor:
            filled = list(tensors)
            for place, tensor in zip(smooth, varied, strict=True):
                filled[place] = tensor
            # Its gradient is the vector-Jacobian product. `torch.func.vjp` differentiates after it has left the level
            # at which it computed, which breaks functions of others that are nested in this one.
            pairs = zip(ctx.function(*filled), gradients, strict=True)
            return torch.stack([(out * gradient).sum() for out, gradient in pairs if gradient is not None]).sum()

        derivative = torch.func.grad(product, argnums=tuple(range(len(smooth))))
        found: list[Tensor | None] = [None] * len(tensors)
        for place, gradient in zip(smooth, derivative(*(tensors[place] for place in smooth)), strict=True):
            found[place] = gradient
        return None, *found

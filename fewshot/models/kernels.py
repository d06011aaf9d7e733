"""Arithmetic that a compiler may make one loop of.

Between convolutions a step reads and writes the same activations over and over: PyTorch takes every operation by
itself. A function that is marked here as a kernel stays as it reads; inside `fused` it is compiled, so that what it
does to a number is done while that number is at hand.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")

_SIZES = 64  # for which a kernel is compiled, each by itself: layers, support and query, a last smaller chunk
_fusing: ContextVar[bool] = ContextVar("fusing", default=False)


def kernel(function: Callable[Arguments, Value]) -> Callable[Arguments, Value]:
    """Marks a function of tensors, without branches on what is in them, that knows nothing of derivatives."""

    @functools.wraps(function)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Value:
        if not _fusing.get() or torch.is_grad_enabled():  # what is compiled may not be differentiated again
            return function(*args, **kwargs)
        args, kwargs = tree_map_only(Tensor, Tensor.detach, (args, kwargs))
        with torch._dynamo.config.patch(recompile_limit=_SIZES):
            return _compiled(function)(*args, **kwargs)

    return run


@contextlib.contextmanager
def fused() -> Iterator[None]:
    """Within it, kernels are compiled: seconds at the first call with tensors of other sizes, less time after."""
    token = _fusing.set(True)
    try:
        yield
    finally:
        _fusing.reset(token)


@functools.cache
def _compiled(function: Callable[Arguments, Value]) -> Callable[Arguments, Value]:
    return torch.compile(function, dynamic=False, fullgraph=True)

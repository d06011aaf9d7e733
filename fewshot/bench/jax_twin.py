"""The same outer step in JAX: `jit` of the gradient of a `vmap` over tasks, which inlines the inner gradients."""

import os
from typing import Any

import torch

from fewshot.bench.case import Case, PlainNetwork
from fewshot.tasks import TaskBatch


def jax_twin(network: PlainNetwork, case: Case) -> Any:
    """As the peers: (network, case) -> a step. Tensors are shared with PyTorch, not copied, where JAX can."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the others need the GPU's memory too
    import jax
    from jax import numpy as jnp

    names = [name for name, _ in network.named_parameters()]
    blocks = [names[4 * i : 4 * i + 4] for i in range(case.blocks)]  # kernel, bias, scale, shift
    weight, bias = names[-2:]

    def forward(params: dict[str, Any], x: Any) -> Any:
        for kernel, shift, scale, offset in blocks:
            padding = [(case.padding, case.padding)] * 2
            x = jax.lax.conv_general_dilated(x, params[kernel], (1, 1), padding)
            x = x + params[shift][:, None, None]
            centred = x - x.mean((0, 2, 3), keepdims=True)
            x = centred * jax.lax.rsqrt(jnp.square(centred).mean((0, 2, 3), keepdims=True) + 1e-5)
            x = jnp.maximum(x * params[scale][:, None, None] + params[offset][:, None, None], 0)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        return x.reshape(len(x), -1) @ params[weight].T + params[bias]

    def loss(params: dict[str, Any], x: Any, y: Any) -> Any:
        return -jnp.take_along_axis(jax.nn.log_softmax(forward(params, x)), y[:, None], axis=1).mean()

    def task_loss(params: dict[str, Any], task: tuple[Any, ...]) -> Any:
        support_x, support_y, query_x, query_y = task
        fast = params
        for _ in range(case.inner_steps):
            gradients = jax.grad(loss)(fast, support_x, support_y)
            if not case.create_graph:
                gradients = jax.lax.stop_gradient(gradients)
            fast = {name: fast[name] - case.inner_lr * gradients[name] for name in names}
        return loss(fast, query_x, query_y)

    def meta_loss(params: dict[str, Any], tasks: tuple[Any, ...]) -> Any:
        return jax.vmap(task_loss, (None, 0))(params, tasks).mean()

    compiled = jax.jit(jax.grad(meta_loss))

    def step(batch: TaskBatch) -> None:
        with jax.enable_x64(batch.support_x.dtype == torch.float64):  # it has no 64 bits unless told so
            params = {name: _to_jax(value.detach()) for name, value in network.named_parameters()}
            gradients = jax.block_until_ready(compiled(params, tuple(_to_jax(tensor) for tensor in batch)))
        for name, parameter in network.named_parameters():
            found = torch.from_dlpack(gradients[name])
            parameter.grad = found.clone() if parameter.grad is None else parameter.grad + found

    return step


def _to_jax(tensor: torch.Tensor) -> Any:
    from jax import numpy as jnp

    if tensor.dtype == torch.int64:
        tensor = tensor.int()  # as JAX counts
    return jnp.from_dlpack(tensor.contiguous())

"""The differentiable inner loop. If you read one file of this project, read this one.

A learner adapts to a task by a few steps of gradient descent on the task's support loss. The whole loop
is one pure function: parameters in, parameters out, nothing stored. What is done with the sequence it
yields (take the last, score every state, sum the losses of all) is the caller's business.
"""

from __future__ import annotations  # what stands inside a function would be evaluated, which torch.compile cannot

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fewshot.inner_optimizers import InnerOptimizer, Params, Rates
from fewshot.recomputation import recomputed

Given = Any  # a tree of tensors


def gradient_descent(
    loss: Callable[[Params, Given, int], Tensor],
    params: Params,
    given: Given = None,
    *,
    steps: int,
    optimizer: InnerOptimizer,
    lr: Callable[[Given, int], Rates],
    create_graph: bool,
    recompute: bool = False,
) -> Iterator[Params]:
    """Yields the parameters after 0, 1, …, `steps` steps of `optimizer` on `loss`.

    Second order (`create_graph=True`, MAML): the step itself is differentiable, so a gradient taken
    through the yielded parameters contains d(gradient)/d(params), the Hessian of the support loss.

    First order (`create_graph=False`, FO-MAML): the gradient of every step is a constant. Nothing that
    happens inside `loss` is recorded for the outer gradient, which then is the gradient of the query
    loss at the adapted parameters (Finn et al. 2017, §5.2), at a fraction of the time and memory.

    Under `torch.no_grad` (evaluation) nothing is recorded either way.

    Args:
        loss: loss(parameters, given, step): the support loss of one task, a scalar; pure.
        params: name -> tensor of any shape; never changed in place.
        given: what else loss and step size depend on: the support set, what is meta-learned and does not adapt.
        steps: number of gradient steps, at least 0.
        optimizer: what turns a gradient into a step; its state starts anew with the task.
        lr: lr(given, step): step size for that loss (a *mean* over the support set: a sum needs a smaller one).
        create_graph: the one switch between MAML and FO-MAML.
        recompute: second order without keeping what happens inside the steps: it is computed again for the outer
            gradient, in sections of √steps, whose beginnings are kept. The same numbers, for more time: memory
            grows with the root of the steps, by parameters and not by activations.
    """

    def advance(state: tuple[Params, Any], given: Given, step: int) -> tuple[Params, Any]:
        params, momenta = state
        # torch.func.grad records inside itself whatever the mode; the mode decides whether the *outer*
        # level sees that work. It must never be switched on where the caller has switched it off.
        with torch.set_grad_enabled(create_graph and torch.is_grad_enabled()):
            gradients = torch.func.grad(loss)(params, given, step)
        return optimizer.step(params, gradients, momenta, lr(given, step))

    def section(state: tuple[Params, Any], given: Given, first: int, end: int) -> list[tuple[Params, Any]]:
        states = []
        for step in range(first, end):
            state = recomputed(advance, state, given, step)
            states.append(state)
        return states

    state = (params, optimizer.start(params))
    yield params
    if recompute and create_graph and torch.is_grad_enabled():
        length = math.isqrt(max(steps - 1, 0)) + 1
        for first in range(0, steps, length):
            states = recomputed(section, state, given, first, min(first + length, steps))
            yield from (params for params, _ in states)
            state = states[-1]
    else:
        for step in range(steps):
            state = advance(state, given, step)
            yield state[0]


def with_gradient(value: Tensor, params: Params, gradient: Params) -> Tensor:
    """A scalar that is `value`, and whose derivative by `params` is `gradient`, whatever `value` came from.

    For learners whose meta-gradient is not the derivative of the loss that they report (Reptile, iMAML).

    Args:
        value: ().
        params: name -> tensor.
        gradient: name -> tensor of that shape; parameters without a name here get no gradient.
    """
    terms = [((params[name] - params[name].detach()) * g.detach()).sum() for name, g in gradient.items()]
    return value.detach() + torch.stack(terms).sum()

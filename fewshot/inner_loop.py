"""The differentiable inner loop. If you read one file of this project, read this one.

A learner adapts to a task by a few steps of gradient descent on the task's support loss. The whole loop
is one pure function: parameters in, parameters out, nothing stored. What is done with the sequence it
yields (take the last, score every state, sum the losses of all) is the caller's business.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Params = dict[str, Tensor]


def gradient_descent(
    loss: Callable[[Params], Tensor],
    params: Params,
    *,
    steps: int,
    lr: float,
    create_graph: bool,
) -> Iterator[Params]:
    """Yields the parameters after 0, 1, …, `steps` steps of gradient descent on `loss`.

    Second order (`create_graph=True`, MAML): the step itself is differentiable, so a gradient taken
    through the yielded parameters contains d(gradient)/d(params), the Hessian of the support loss.

    First order (`create_graph=False`, FO-MAML): the gradient of every step is a constant. Nothing that
    happens inside `loss` is recorded for the outer gradient, which then is the gradient of the query
    loss at the adapted parameters (Finn et al. 2017, §5.2), at a fraction of the time and memory.

    Under `torch.no_grad` (evaluation) nothing is recorded either way.

    Args:
        loss: the support loss of one task as a function of the parameters, a scalar; pure.
        params: name -> tensor of any shape; never changed in place.
        steps: number of gradient steps, at least 0.
        lr: step size for that loss (a *mean* over the support set: a sum needs a smaller one).
        create_graph: the one switch between MAML and FO-MAML.
    """
    yield params
    for _ in range(steps):
        # torch.func.grad records inside itself whatever the mode; the mode decides whether the *outer*
        # level sees that work. It must never be switched on where the caller has switched it off.
        with torch.set_grad_enabled(create_graph and torch.is_grad_enabled()):
            gradients = torch.func.grad(loss)(params)
        params = {name: value - lr * gradients[name] for name, value in params.items()}
        yield params

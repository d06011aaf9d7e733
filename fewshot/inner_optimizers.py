"""Optimisers of the inner loop, as pure functions: parameters and state in, parameters and state out.

`torch.optim` writes into the parameters; here every step makes new ones, so that a gradient can pass through
the steps. Each takes the same steps as its namesake there.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewshot.errors import UserError

Params = dict[str, Tensor]
Rates = float | Mapping[str, Tensor]  # one step size, or one for each tensor or weight, by name
State = Any  # a tree of tensors

_LARGEST_CLIP = 1e18  # its square is still a number of 32 bits


class InnerOptimizer(ABC):
    """What turns the gradient of a support loss into a step.

    Args:
        clip: largest norm of one task's inner gradient, all tensors together; longer ones are scaled down.
            None: never.
    """

    def __init__(self, clip: float | None = None) -> None:
        if clip is not None and not clip > 0:
            raise UserError(f"algo.inner_optimizer.clip={clip} must be positive, or null for no clipping")
        if clip is not None and clip > _LARGEST_CLIP:
            raise UserError(
                f"algo.inner_optimizer.clip={clip} must be at most {_LARGEST_CLIP:.0e}, or null for no clipping"
            )
        self.clip = clip

    def step(self, params: Params, gradients: Params, state: State, lr: Rates) -> tuple[Params, State]:
        """One step: the parameters after it, and the state for the next one."""
        if self.clip is not None:
            gradients = _clipped(gradients, self.clip)
        directions, state = self.directions(gradients, state)
        rate = (lambda name: lr[name]) if isinstance(lr, Mapping) else (lambda name: lr)
        return {name: value - rate(name) * directions[name] for name, value in params.items()}, state

    @abstractmethod
    def start(self, params: Params) -> State:
        """The state before the first step of a task."""

    @abstractmethod
    def directions(self, gradients: Params, state: State) -> tuple[Params, State]:
        """What is taken from the parameters, per unit of step size; and the next state."""


class SGD(InnerOptimizer):
    """Gradient descent, with or without momentum.

    Args:
        momentum: μ; the direction is v ← μ v + gradient. 0: the gradient itself.
        clip: as in `InnerOptimizer`.
    """

    def __init__(self, *, momentum: float = 0.0, clip: float | None = None) -> None:
        super().__init__(clip)
        if not 0 <= momentum < 1:
            raise UserError(f"algo.inner_optimizer.momentum={momentum} must be at least 0 and below 1")
        self.momentum = momentum

    def start(self, params: Params) -> State:
        """Velocity zero; nothing without momentum."""
        return {name: torch.zeros_like(value) for name, value in params.items()} if self.momentum else None

    def directions(self, gradients: Params, state: State) -> tuple[Params, State]:
        """The velocity, or the gradient."""
        if not self.momentum:
            return gradients, None
        velocity = {name: self.momentum * state[name] + gradient for name, gradient in gradients.items()}
        return velocity, velocity


class Adam(InnerOptimizer):
    """D. Kingma, J. Ba: Adam: A Method for Stochastic Optimization. ICLR 2015. https://arxiv.org/abs/1412.6980

    Differs from the paper in √(v + ε²) where that has √v + ε: the root has no derivative at 0, where the
    gradient of a dead unit stands, and a meta-gradient through it would not be a number.

    Args:
        beta1, beta2: how much of the two moments a step keeps.
        eps: ε, below which gradients no longer count as signs.
        clip: as in `InnerOptimizer`.
    """

    def __init__(
        self, *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, clip: float | None = None
    ) -> None:
        super().__init__(clip)
        if not (0 <= beta1 < 1 and 0 <= beta2 < 1 and eps > 0):
            raise UserError(
                f"algo.inner_optimizer: beta1={beta1} and beta2={beta2} must be at least 0 and below 1, "
                f"eps={eps} above 0"
            )
        self.beta1 = beta1
        self.beta2 = beta2
        self.eps = eps

    def start(self, params: Params) -> State:
        """No steps, moments zero."""
        zeros = {name: torch.zeros_like(value) for name, value in params.items()}
        return 0, zeros, zeros

    def directions(self, gradients: Params, state: State) -> tuple[Params, State]:
        """The first moment over the root of the second, both corrected for their start at zero."""
        steps, first, second = state
        steps += 1
        first = {name: self.beta1 * first[name] + (1 - self.beta1) * g for name, g in gradients.items()}
        second = {name: self.beta2 * second[name] + (1 - self.beta2) * g * g for name, g in gradients.items()}
        grown, spread = 1 - self.beta1**steps, 1 - self.beta2**steps
        directions = {name: first[name] / grown / (second[name] / spread + self.eps**2).sqrt() for name in gradients}
        return directions, (steps, first, second)


def _clipped(gradients: Params, largest: float) -> Params:
    squares = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum()
    # The maximum stands under the root: the norm has no derivative at 0.
    scale = largest / squares.clamp_min(largest**2).sqrt()
    return {name: gradient * scale for name, gradient in gradients.items()}

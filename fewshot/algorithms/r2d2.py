"""R2-D2: the head of every task is a ridge regression, solved in closed form."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fewshot.algorithms.base import Algorithm, Stage
from fewshot.errors import UserError
from fewshot.inner_optimizers import Params
from fewshot.models.parts import parts
from fewshot.tasks import TaskKind


class Ridge(NamedTuple):
    """A fitted task."""

    params: Params
    weight: Tensor  # (D + 1, outputs); the last row is the bias


class R2D2(Algorithm):
    """Ridge Regression Differentiable Discriminator.

    L. Bertinetto, J. Henriques, P. Torr, A. Vedaldi: Meta-learning with differentiable closed-form solvers.
    ICLR 2019. https://arxiv.org/abs/1805.08136

    The body embeds the support set, and ridge regression from embeddings to one-hot labels gives the task's
    head; the solution is a formula, so the meta-gradient passes through it exactly. Its outputs become logits by
    a scale and a shift, which are meta-learned like the body and the strength λ of the regularisation.

    Differs from the authors' code in that λ is learned (as in the paper; its scripts fix it). As there, sums
    over the support set are means, so that λ does not depend on shots, and the bias is regularised too.

    Args:
        model: of two parts; its own head is not used.
        kind: the task kind; regression is fitted as it is.
        regularization: λ at the start.
        scale: of the logits at the start.
        task_chunk: tasks computed together; None: all.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: TaskKind,
        *,
        regularization: float,
        scale: float,
        task_chunk: int | None = None,
    ) -> None:
        super().__init__()
        if not (regularization > 0 and scale > 0):
            raise UserError(f"algo.regularization={regularization} and algo.scale={scale} must be positive")
        self.body, head = parts(model, type(self).__name__)
        self.kind = kind
        self.outputs = head.out_features
        self.log_regularization = nn.Parameter(torch.tensor(math.log(regularization)))
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.shift = nn.Parameter(torch.tensor(0.0))
        self.task_chunk = task_chunk

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings with a one at the end: (M, …) -> (M, D + 1)."""
        embeddings = self.body(x)
        return torch.cat([embeddings, torch.ones_like(embeddings[:, :1])], dim=1)

    def fit(self, params: Params, support_x: Tensor, support_y: Tensor, *, stage: Stage = "test") -> Iterator[Ridge]:
        """The ridge regression of the support set."""
        x = functional_call(self, params, (support_x,))
        y = self.kind.encode(support_y, self.outputs).to(x.dtype)
        yield Ridge(params, ridge(x, y, params["log_regularization"].exp() * len(x)))

    def predict(self, fitted: Ridge, query_x: Tensor) -> Tensor:
        """Its outputs, scaled and shifted: (M, …) -> (M, outputs)."""
        outputs = functional_call(self, fitted.params, (query_x,)) @ fitted.weight
        return fitted.params["scale"] * outputs + fitted.params["shift"]


def ridge(x: Tensor, y: Tensor, regularization: Tensor) -> Tensor:
    """argmin over W of |x W − y|² + λ |W|²: x (M, D), y (M, outputs), λ () -> (D, outputs).

    The smaller of the two equal systems is solved, (xᵀx + λ) W = xᵀy or W = xᵀ (xxᵀ + λ)⁻¹ y (Woodbury).
    """
    if len(x) <= x.shape[1]:
        return x.mT @ torch.linalg.solve(x @ x.mT + regularization * _eye(x, len(x)), y)
    return torch.linalg.solve(x.mT @ x + regularization * _eye(x, x.shape[1]), x.mT @ y)


def _eye(like: Tensor, size: int) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)

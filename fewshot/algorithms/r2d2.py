"""R2-D2: the head of every task is a ridge regression, solved in closed form."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fewshot.algorithms.embedding_based import EmbeddingBased
from fewshot.errors import UserError
from fewshot.inner_optimizers import Params
from fewshot.tasks import Stage, TaskKind


class R2D2(EmbeddingBased):
    """Ridge Regression Differentiable Discriminator.

    L. Bertinetto, J. Henriques, P. Torr, A. Vedaldi: Meta-learning with differentiable closed-form solvers.
    ICLR 2019. https://arxiv.org/abs/1805.08136

    The body embeds the support set, and ridge regression from embeddings to one-hot labels gives the task's
    head; the solution is a formula, so the meta-gradient passes through it exactly. Its outputs become logits by
    a scale and a shift, which are meta-learned like the body and the strength λ of the regularisation.

    Differs from the authors' code in that λ is learned (as in the paper; its scripts fix it). As there, sums
    over the support set are means, so that λ does not depend on shots, and the bias is regularised too.

    Args:
        model, kind, …: as in `EmbeddingBased`; regression is fitted as it is, and needs scale=1.
        regularization: λ at the start.
        scale: of the logits at the start.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: TaskKind,
        *,
        regularization: float,
        scale: float,
        running_momentum: float | None = None,
        task_chunk: int | str | None = None,
    ) -> None:
        super().__init__(model, kind, running_momentum=running_momentum, task_chunk=task_chunk)
        if not (regularization > 0 and scale > 0):
            raise UserError(f"algo.regularization={regularization} and algo.scale={scale} must be positive")
        self.log_regularization = nn.Parameter(torch.tensor(math.log(regularization)))
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.shift = nn.Parameter(torch.tensor(0.0))

    def heads(self, params: Params, embeddings: Tensor, support_y: Tensor, stage: Stage) -> Iterator[Tensor]:
        """The ridge regression of the support set: (D + 1, outputs), the last row is the bias."""
        x = _with_ones(embeddings)
        y = self.kind.encode(support_y, stage).to(x.dtype)
        yield ridge(x, y, params["log_regularization"].exp() * len(x))

    def answer(self, params: Params, head: Tensor, embeddings: Tensor) -> Tensor:
        """Its outputs, scaled and shifted: (M, D) -> (M, outputs)."""
        return params["scale"] * (_with_ones(embeddings) @ head) + params["shift"]


def ridge(x: Tensor, y: Tensor, regularization: Tensor) -> Tensor:
    """argmin over W of |x W − y|² + λ |W|²: x (M, D), y (M, outputs), λ () -> (D, outputs).

    The smaller of the two equal systems is solved, (xᵀx + λ) W = xᵀy or W = xᵀ (xxᵀ + λ)⁻¹ y (Woodbury); in 32 bits
    or more, since nothing solves in fewer.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    x, y = x.to(wide), y.to(wide)
    with torch.autocast(x.device.type, enabled=False):
        if len(x) <= x.shape[1]:
            return x.mT @ torch.linalg.solve(x @ x.mT + regularization * _eye(x, len(x)), y)
        return torch.linalg.solve(x.mT @ x + regularization * _eye(x, x.shape[1]), x.mT @ y)


def _with_ones(embeddings: Tensor) -> Tensor:
    """(M, D) -> (M, D + 1)."""
    return torch.cat([embeddings, torch.ones_like(embeddings[:, :1])], dim=1)


def _eye(like: Tensor, size: int) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)

"""MetaOptNet: the head of every task is a multi-class support vector machine."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fewshot.algorithms.embedding_based import EmbeddingBased
from fewshot.algorithms.quadratic_program import solve_svm_dual
from fewshot.errors import UserError
from fewshot.inner_optimizers import Params
from fewshot.tasks import Stage, TaskKind


class MetaOptNet(EmbeddingBased):
    """MetaOptNet-SVM.

    K. Lee, S. Maji, A. Ravichandran, S. Soatto: Meta-Learning with Differentiable Convex Optimization. CVPR 2019.
    https://arxiv.org/abs/1904.03758

    The body embeds the support set, and the support vector machine of Crammer and Singer (2001) on it gives the
    task's head. It is the optimum of a quadratic program; the meta-gradient follows from the conditions that
    hold at the optimum.

    Differs from the paper in that the query loss is the plain cross-entropy, where its best models smooth the
    labels, and in that the derivative is that of one more Newton step from the solution, which is the same.

    Args:
        model, kind, …: as in `EmbeddingBased`; for classification.
        cost: C, the largest weight of a support image that is on the wrong side.
        solver_steps: steps of the interior-point solver.
        scale: of the logits at the start; learned.
    """

    needs_classes = True

    def __init__(
        self,
        model: nn.Module,
        kind: TaskKind,
        *,
        cost: float,
        solver_steps: int,
        scale: float = 1.0,
        running_momentum: float | None = None,
        task_chunk: int | str | None = None,
    ) -> None:
        super().__init__(model, kind, running_momentum=running_momentum, task_chunk=task_chunk)
        if not (cost > 0 and scale > 0):
            raise UserError(f"algo.cost={cost} and algo.scale={scale} must be positive")
        if solver_steps < 1:
            raise UserError(f"algo.solver_steps={solver_steps} must be at least 1")
        self.cost = cost
        self.solver_steps = solver_steps
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def heads(self, params: Params, embeddings: Tensor, support_y: Tensor, stage: Stage) -> Iterator[Tensor]:
        """The support vector machine of the support set: (D, N)."""
        exact = embeddings.double()  # products of 32-bit numbers need not be positive semi-definite
        targets = self.kind.encode(support_y, stage)
        alpha = solve_svm_dual(exact @ exact.mT, targets, cost=self.cost, steps=self.solver_steps)
        yield embeddings.mT @ alpha.to(embeddings.dtype)

    def answer(self, params: Params, head: Tensor, embeddings: Tensor) -> Tensor:
        """Scaled scores: (M, D) -> (M, N)."""
        return params["scale"] * (embeddings @ head)

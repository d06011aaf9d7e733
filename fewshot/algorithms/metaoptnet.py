"""MetaOptNet: the head of every task is a multi-class support vector machine."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fewshot.algorithms.base import Algorithm, Stage
from fewshot.algorithms.quadratic_program import solve_svm_dual
from fewshot.errors import UserError
from fewshot.inner_optimizers import Params
from fewshot.models.parts import parts
from fewshot.tasks import TaskKind


class SVM(NamedTuple):
    """A fitted task."""

    params: Params
    weight: Tensor  # (D, N)


class MetaOptNet(Algorithm):
    """MetaOptNet-SVM.

    K. Lee, S. Maji, A. Ravichandran, S. Soatto: Meta-Learning with Differentiable Convex Optimization. CVPR 2019.
    https://arxiv.org/abs/1904.03758

    The body embeds the support set, and the support vector machine of Crammer and Singer (2001) on it gives the
    task's head. It is the optimum of a quadratic program; the meta-gradient follows from the conditions that
    hold at the optimum.

    Differs from the paper in that the query loss is the plain cross-entropy, where its best models smooth the
    labels, and in that the derivative is that of one more Newton step from the solution, which is the same.

    Args:
        model: of two parts; its own head is not used.
        kind: the task kind: classification.
        cost: C, the largest weight of a support image that is on the wrong side.
        solver_steps: steps of the interior-point solver.
        scale: of the logits at the start; learned.
        task_chunk: tasks computed together; None: all.
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
        task_chunk: int | None = None,
    ) -> None:
        super().__init__()
        if not (cost > 0 and scale > 0):
            raise UserError(f"algo.cost={cost} and algo.scale={scale} must be positive")
        if solver_steps < 1:
            raise UserError(f"algo.solver_steps={solver_steps} must be at least 1")
        self.body, head = parts(model, type(self).__name__)
        self.kind = kind
        self.n_way = head.out_features
        self.cost = cost
        self.solver_steps = solver_steps
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.task_chunk = task_chunk

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings: (M, …) -> (M, D)."""
        return self.body(x)

    def fit(self, params: Params, support_x: Tensor, support_y: Tensor, *, stage: Stage = "test") -> Iterator[SVM]:
        """The support vector machine of the support set."""
        x = functional_call(self, params, (support_x,))
        targets = self.kind.encode(support_y, self.n_way)
        exact = x.double()  # products of 32-bit numbers need not be positive semi-definite
        alpha = solve_svm_dual(exact @ exact.mT, targets, cost=self.cost, steps=self.solver_steps)
        yield SVM(params, x.mT @ alpha.to(x.dtype))

    def predict(self, fitted: SVM, query_x: Tensor) -> Tensor:
        """Scaled scores: (M, …) -> (M, N)."""
        return fitted.params["scale"] * (functional_call(self, fitted.params, (query_x,)) @ fitted.weight)

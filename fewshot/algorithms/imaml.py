"""iMAML: the meta-gradient of a regularised inner problem, from its solution alone."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fewshot.algorithms.base import Outcome, last
from fewshot.algorithms.gradient_based import GradientBased
from fewshot.errors import UserError
from fewshot.inner_loop import with_gradient
from fewshot.inner_optimizers import InnerOptimizer, Params
from fewshot.tasks import TaskBatch, TaskKind


class IMAML(GradientBased):
    """Implicit MAML.

    A. Rajeswaran, C. Finn, S. Kakade, S. Levine: Meta-Learning with Implicit Gradients. NeurIPS 2019.
    https://arxiv.org/abs/1909.04630

    A task's parameters φ minimise its support loss plus λ/2 |φ − θ|². At the minimum dφ/dθ = (I + H/λ)⁻¹, with
    H the Hessian of the support loss there, whatever path led to it; the meta-gradient is that matrix times the
    gradient of the query loss at φ, which a few steps of conjugate gradients compute from products with H.

    Differs from the authors' code in that the regularisation stays in evaluation, where their command for measuring
    leaves it out. Their damping of H is `cg_damping`. The derivative is that of the minimum, which `inner_steps` of
    gradient descent approach only: with too few of them it is no loss's gradient, and meta-training can diverge. On
    `data=sinusoid` with `outer.optimizer.lr=0.01`, 4 steps of 0.003 did so under five seeds of six, 64 under none.

    Args:
        model, kind, …: as in `GradientBased`.
        regularization: λ, for the mean support loss.
        cg_steps: steps of conjugate gradients.
        cg_damping: is added to λ under the Hessian; 0 is exact.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: TaskKind,
        *,
        inner_steps: int,
        eval_inner_steps: int,
        test_inner_steps: int | None = None,
        inner_lr: float,
        inner_optimizer: InnerOptimizer | None = None,
        regularization: float,
        cg_steps: int,
        cg_damping: float = 0.0,
        task_chunk: int | str | None = None,
    ) -> None:
        super().__init__(
            model,
            kind,
            inner_steps=inner_steps,
            eval_inner_steps=eval_inner_steps,
            test_inner_steps=test_inner_steps,
            inner_lr=inner_lr,
            inner_optimizer=inner_optimizer,
            create_graph=False,
            task_chunk=task_chunk,
        )
        if not regularization > 0 or cg_damping < 0:
            raise UserError(
                f"algo.regularization={regularization} must be positive and algo.cg_damping={cg_damping} at least 0"
            )
        if cg_steps < 1:
            raise UserError(f"algo.cg_steps={cg_steps} must be at least 1")
        self.regularization = regularization
        self.cg_steps = cg_steps
        self.cg_damping = cg_damping

    def penalty(self, fast: Params, params: Params) -> Tensor:
        """λ/2 |φ − θ|²."""
        distance = torch.stack([(value - params[name]).square().sum() for name, value in fast.items()]).sum()
        return self.regularization / 2 * distance

    @torch.no_grad()
    def _implicit(self, params: Params, task: TaskBatch) -> tuple[Outcome, Params]:
        """The query loss at the solution, and its derivative by the parameters that the task started from."""
        fitted = last(self.fit(params, task.support_x, task.support_y, stage="train"))
        solution = {name: value for name, value in fitted.items() if self.adapts(name)}

        def support_loss(fast: Params) -> Tensor:
            return self.kind.loss(self.predict(fitted | fast, task.support_x), task.support_y)

        def query_loss(fast: Params) -> Tensor:
            return self.judge(fitted | fast, task).loss

        def matrix(vector: Params) -> Params:
            product = torch.func.grad(lambda fast: _dot(torch.func.grad(support_loss)(fast), vector))(solution)
            scale = self.regularization + self.cg_damping
            return {name: value + product[name] / scale for name, value in vector.items()}

        gradient = torch.func.grad(query_loss)(solution)
        return self.judge(fitted, task), conjugate_gradients(matrix, gradient, self.cg_steps)

    def meta_loss(self, params: Params, task: TaskBatch) -> Outcome:
        """The query loss, with the implicit derivative."""
        outcome, gradient = self._implicit(params, task)
        return Outcome(with_gradient(outcome.loss, params, gradient), outcome.score)


def conjugate_gradients(matrix: Callable[[Params], Params], right: Params, steps: int) -> Params:
    """Solves matrix(x) = right for a symmetric positive matrix given by its products, from x = 0.

    M. Hestenes, E. Stiefel: Methods of Conjugate Gradients for Solving Linear Systems, 1952. Exact after as many
    steps as there are unknowns. Stops early where nothing is left of the residual, or where the matrix turns out
    not to be positive along a direction (T. Steihaug: The Conjugate Gradient Method and Trust Regions, 1983).
    """
    solution = {name: torch.zeros_like(value) for name, value in right.items()}
    residual = direction = right
    squares = _dot(residual, residual)
    tiny = torch.finfo(squares.dtype).tiny
    going = torch.ones_like(squares)  # 1, and 0 from where it has stopped
    for _ in range(steps):
        product = matrix(direction)
        curvature = _dot(direction, product)
        going = going * (curvature > tiny)
        length = going * squares / curvature.clamp_min(tiny)
        solution = {name: value + length * direction[name] for name, value in solution.items()}
        residual = {name: value - length * product[name] for name, value in residual.items()}
        before, squares = squares, _dot(residual, residual)
        direction = {
            name: value + squares / before.clamp_min(tiny) * direction[name] for name, value in residual.items()
        }
    return solution


def _dot(left: Params, right: Params) -> Tensor:
    return torch.stack([(value * right[name]).sum() for name, value in left.items()]).sum()

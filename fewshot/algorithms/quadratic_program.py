"""The dual of the multi-class support vector machine, solved so that it can be differentiated."""

import torch
from torch import Tensor


def solve_svm_dual(gram: Tensor, targets: Tensor, *, cost: float, steps: int) -> Tensor:
    """The dual variables α of the support vector machine of K. Crammer and Y. Singer (JMLR 2, 2001).

        minimise   ½ Σ_n α_nᵀ K α_n − Σ_m α_{m, y_m}   over α (M, N)
        such that  α ≤ C·targets,  Σ_n α_mn = 0 for every m

    A primal-dual interior-point method with a fixed number of steps (S. Wright, Primal-Dual Interior-Point
    Methods, 1997; with a fixed centring), in float64 and without a graph. The result
    comes with its derivative by `gram`: one Newton step on the optimality conditions from the solution stays
    there, and its derivative is the one that the implicit function theorem gives.

    Args:
        gram: K (M, M) float64, positive semi-definite.
        targets: one-hot labels (M, N).
        cost: C > 0.
        steps: steps of the solver; 15 bring the gap below 1e-6 for tasks of a few hundred variables.

    Returns:
        α (M, N) float64.
    """
    images, ways = targets.shape
    bound = cost * targets.double().flatten()  # α ≤ bound
    linear = -targets.double().flatten()
    sums = torch.eye(images, dtype=torch.float64, device=gram.device).repeat_interleave(ways, dim=1)  # (M, M*N)
    with torch.no_grad():
        point = _interior_point(_quadratic(gram.detach(), ways), linear, bound, sums, steps)
    alpha = point[0]
    if torch.is_grad_enabled():
        quadratic = _quadratic(gram, ways)
        slack, multiplier, equality = point[1:]
        residual = quadratic @ alpha + linear + multiplier + sums.mT @ equality  # zero but for the derivative
        step, *_ = _newton(
            quadratic.detach(),
            sums,
            slack,
            multiplier,
            residual,
            *(torch.zeros_like(p) for p in (alpha, alpha, equality)),
        )
        alpha = alpha + (step - step.detach())
    return alpha.view(images, ways)


def _quadratic(gram: Tensor, ways: int) -> Tensor:
    """K for every class, in the order of α flattened: (M*N, M*N), with a trace of a ridge for its null space."""
    eye = torch.eye(ways, dtype=torch.float64, device=gram.device)
    ridge = 1e-8 * gram.detach().diagonal().mean() + 1e-12
    gram = gram + ridge * torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    return (gram[:, None, :, None] * eye[None, :, None, :]).reshape(len(gram) * ways, len(gram) * ways)


def _interior_point(quadratic: Tensor, linear: Tensor, bound: Tensor, sums: Tensor, steps: int) -> tuple[Tensor, ...]:
    """α, its slack bound − α, and the multipliers of both kinds of constraints."""
    alpha, equality = torch.zeros_like(linear), torch.zeros_like(sums[:, 0])
    slack = multiplier = torch.ones_like(linear)
    for _ in range(steps):
        gap = (slack * multiplier).mean()
        residuals = (
            quadratic @ alpha + linear + multiplier + sums.mT @ equality,
            alpha + slack - bound,
            slack * multiplier - 0.1 * gap,
            sums @ alpha,
        )
        moves = _newton(quadratic, sums, slack, multiplier, *residuals)
        length = 0.99 * torch.minimum(_longest(slack, moves[1]), _longest(multiplier, moves[2]))
        alpha, slack, multiplier, equality = (
            value + length * move for value, move in zip((alpha, slack, multiplier, equality), moves, strict=True)
        )
    return alpha, slack, multiplier, equality


def _newton(
    quadratic: Tensor,
    sums: Tensor,
    slack: Tensor,
    multiplier: Tensor,
    dual: Tensor,
    primal: Tensor,
    complementary: Tensor,
    equal: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The moves of α, slack and both multipliers that set the linearised residuals to zero.

    Slack and multiplier are eliminated first, which leaves a positive definite matrix Q + diag(multiplier/slack),
    and then α, which leaves one as large as the number of images.
    """
    ratio = multiplier / slack
    factor = torch.linalg.cholesky(quadratic + torch.diag_embed(ratio))
    right = -dual + complementary / slack - ratio * primal
    solved = torch.cholesky_solve(torch.cat([right[:, None], sums.mT], dim=1), factor)  # (M*N, 1 + M)
    by_right, by_sums = solved[:, 0], solved[:, 1:]
    equality = torch.linalg.solve(sums @ by_sums, sums @ by_right + equal)
    alpha = by_right - by_sums @ equality
    slack_move = -primal - alpha
    multiplier_move = (-complementary - multiplier * slack_move) / slack
    return alpha, slack_move, multiplier_move, equality


def _longest(value: Tensor, move: Tensor) -> Tensor:
    """The longest step, at most 1, that keeps every entry positive."""
    limits = torch.where(move < 0, -value / move.clamp_max(-1e-300), torch.ones_like(value))
    return limits.amin().clamp_max(1.0)

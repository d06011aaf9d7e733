"""The meta-gradient of a meta-batch, which several processes may share, without the tasks that came to no number."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fewshot import ranks
from fewshot.algorithms.base import Outcome
from fewshot.errors import UserError
from fewshot.tasks import TaskBatch

_MOST_STEPS = 3  # in a row: a task may be unlucky, a run of them is a setting


class MetaStep(NamedTuple):
    """What the tasks of an outer step came to, of all processes together; means over those that were kept."""

    loss: Tensor  # ()
    score: Tensor  # ()
    observed: dict[str, Tensor]  # for `Algorithm.absorb`
    norm: Tensor  # (), of the meta-gradient
    bad: list[int]  # which tasks of the meta-batch were left out
    tasks: int  # of the meta-batch


class BadTasks:
    """Keeps numbers that are not finite away from the weights.

    Attributes:
        total: tasks that were left out so far.
        in_a_row: steps, up to the latest, of which each had such tasks.
    """

    def __init__(self) -> None:
        self.total = 0
        self.in_a_row = 0

    def gradient(
        self,
        backward: Callable[[TaskBatch], Outcome],
        parameters: Iterable[nn.Parameter],
        batch: TaskBatch,
        *,
        of_fewer: Callable[[TaskBatch], Outcome] | None = None,
    ) -> MetaStep:
        """Fills `.grad` as if the meta-batch had never held the tasks whose loss is not finite.

        Where none is left, or the gradient of finite losses is not finite, there is no gradient at all: every `.grad`
        is None, by which an optimiser leaves the weights as they are. Every process comes to the same.

        Args:
            backward: adds the meta-gradient of a batch to `.grad`.
            batch: this process's part of the meta-batch, as many tasks as every other's.
            of_fewer: the same of any number of tasks, where `backward` is compiled for that of a whole batch.
        """
        weights = list(parameters)
        _clear(weights)
        outcome = backward(batch)
        finite = torch.isfinite(outcome.loss)
        own = int(finite.sum())
        if own < len(finite):
            _clear(weights)
            if own:
                outcome = (of_fewer or backward)(TaskBatch(*(tensor[finite] for tensor in batch)))
        kept = ranks.gathered(finite)
        loss, score, observed = _over_all(weights, outcome, own)
        norm = torch.nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
        if not kept.any():
            norm = torch.full_like(norm, torch.nan)
        if not torch.isfinite(norm):
            _clear(weights)
            kept, observed = torch.zeros_like(kept), {}
        bad: list[int] = (~kept).nonzero().flatten().tolist()
        self.total += len(bad)
        self.in_a_row = self.in_a_row + 1 if bad else 0
        return MetaStep(loss, score, observed, norm, bad, len(kept))

    def refuse_too_many(self, step: MetaStep, number: int, last_good: Callable[[], str]) -> None:
        """Ends the run at the third step in a row with such tasks.

        Args:
            step: the latest, of this number.
            last_good: names the checkpoint to go back to.
        """
        if self.in_a_row < _MOST_STEPS:
            return
        named = ", ".join(map(str, step.bad[:8])) + (", …" if len(step.bad) > 8 else "")
        raise UserError(
            f"outer step {number}: the meta-loss or its gradient is not finite for {len(step.bad)} of {step.tasks} "
            f"tasks (number {named}), step {self.in_a_row} in a row with such tasks; none of them reached the weights. "
            f"Last good checkpoint: {last_good()}. Lower algo.inner_lr or outer.optimizer.lr, or set "
            "algo.inner_optimizer.clip or outer.grad_clip"
        )


def _over_all(weights: list[nn.Parameter], outcome: Outcome, tasks: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss, score and what was observed, means over the kept tasks of all processes; their mean gradient in `.grad`.

    A weight that no process has a gradient for keeps none: an optimiser with momentum would move it by a zero.
    """
    if ranks.alone():
        unknown = torch.nan if tasks == 0 else 0.0
        return outcome.loss.mean() + unknown, outcome.score.mean() + unknown, outcome.observed
    names, seen = list(outcome.observed), list(outcome.observed.values())
    reached = torch.tensor([float(p.grad is not None) for p in weights], device=outcome.loss.device)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in weights]
    told = [outcome.loss.mean(), outcome.score.mean(), reached, *seen, *gradients]
    loss, score, reached, *rest = ranks.mean_over_tasks(told, tasks)
    for parameter, gradient, some in zip(weights, rest[len(seen) :], reached.tolist(), strict=True):
        parameter.grad = gradient.detach() if some else None
    return loss, score, dict(zip(names, rest[: len(seen)], strict=True))


def _clear(weights: list[nn.Parameter]) -> None:
    for parameter in weights:
        parameter.grad = None

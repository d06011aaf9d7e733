"""Tasks whose numbers are not finite: left out of the meta-gradient, counted, and at some point too many."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from fewshot.algorithms.base import Outcome
from fewshot.errors import UserError
from fewshot.tasks import TaskBatch

_MOST_STEPS = 3  # in a row: a task may be unlucky, a run of them is a setting


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
    ) -> tuple[Outcome, Tensor, list[int]]:
        """Fills `.grad` as if the meta-batch had never held the tasks whose loss is not finite.

        Where none is left, or the gradient of finite losses is not finite, there is no gradient at all: every `.grad`
        is None, by which an optimiser leaves the weights as they are.

        Args:
            backward: adds the meta-gradient of a batch to `.grad`.
            of_fewer: the same of any number of tasks, where `backward` is compiled for that of a whole batch.

        Returns:
            What came of the tasks that were kept, the norm of the gradient (), and which tasks were left out.
        """
        weights = list(parameters)

        def attempt(backward: Callable[[TaskBatch], Outcome], tasks: TaskBatch) -> tuple[Outcome, Tensor]:
            _clear(weights)
            outcome = backward(tasks)
            return outcome, torch.nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])

        outcome, norm = attempt(backward, batch)
        kept = torch.isfinite(outcome.loss)
        if not kept.all() and kept.any():
            outcome, norm = attempt(of_fewer or backward, TaskBatch(*(tensor[kept] for tensor in batch)))
        if not (kept.any() and torch.isfinite(norm)):
            _clear(weights)
            kept, outcome = torch.zeros_like(kept), outcome._replace(observed={})
        bad: list[int] = (~kept).nonzero().flatten().tolist()
        self.total += len(bad)
        self.in_a_row = self.in_a_row + 1 if bad else 0
        return outcome, norm, bad

    def refuse_too_many(self, bad: list[int], tasks: int, step: int, last_good: Callable[[], str]) -> None:
        """Ends the run at the third step in a row with such tasks.

        Args:
            bad: those of the latest step, of so many tasks.
            last_good: names the checkpoint to go back to.
        """
        if self.in_a_row < _MOST_STEPS:
            return
        named = ", ".join(map(str, bad[:8])) + (", …" if len(bad) > 8 else "")
        raise UserError(
            f"outer step {step}: the meta-loss or its gradient is not finite for {len(bad)} of {tasks} tasks "
            f"(number {named}), step {self.in_a_row} in a row with such tasks; none of them reached the weights. "
            f"Last good checkpoint: {last_good()}. Lower algo.inner_lr or outer.optimizer.lr, or set "
            "algo.inner_optimizer.clip or outer.grad_clip"
        )


def _clear(weights: list[nn.Parameter]) -> None:
    for parameter in weights:
        parameter.grad = None

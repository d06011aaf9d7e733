"""Reptile: move the initialisation towards where training on a task leads."""

import torch
from torch import nn

from fewshot.algorithms.base import Outcome, last
from fewshot.algorithms.gradient_based import GradientBased
from fewshot.errors import UserError
from fewshot.inner_loop import with_gradient
from fewshot.inner_optimizers import InnerOptimizer, Params
from fewshot.tasks import Stage, TaskBatch, TaskKind


class Reptile(GradientBased):
    """Reptile.

    A. Nichol, J. Achiam, J. Schulman: On First-Order Meta-Learning Algorithms. 2018.
    https://arxiv.org/abs/1803.02999

    Training on a task is plain training, in small batches, on all of its images; the meta-gradient is the
    initialisation minus where that arrived. With outer SGD of step size ε the initialisation moves by ε of the
    way: towards one task's weights (`data.meta_batch_size=1`, serial), or the mean of several (batched).

    Differs from the authors' code in that the inner optimiser starts anew with each task, where theirs carries
    its moments from task to task; so evaluation has no state to put back. Batches are taken in turn from the
    task's images, which stand in random order.

    Args:
        model, kind, …: as in `GradientBased`. Training takes inner_steps on support and query images alike.
        inner_batch, eval_inner_batch: images of a step in training and in evaluation; None: all.
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
        inner_batch: int | None = None,
        eval_inner_batch: int | None = None,
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
        for key, value in {"inner_batch": inner_batch, "eval_inner_batch": eval_inner_batch}.items():
            if value is not None and value < 1:
                raise UserError(f"algo.{key}={value} must be at least 1, or null for all images")
        self.inner_batch = inner_batch
        self.eval_inner_batch = eval_inner_batch

    def examples(self, step: int, total: int, stage: Stage) -> slice | list[int]:
        """The next images in turn."""
        size = self.inner_batch if stage == "train" else self.eval_inner_batch
        if size is None or size >= total:
            return slice(None)
        return [place % total for place in range(step * size, (step + 1) * size)]

    @torch.no_grad()
    def _trained(self, params: Params, task: TaskBatch) -> Params:
        every = task.all_as_queries()
        trained = last(self.fit(params, every.query_x, every.query_y, stage="train"))
        return trained

    def meta_loss(self, params: Params, task: TaskBatch) -> Outcome:
        """The loss on the queries, which were trained on as well; its derivative is said to be start − end."""
        trained = self._trained(params, task)
        with torch.no_grad():
            loss, score, _ = self.judge(trained, task)
        away = {name: start.detach() - trained[name] for name, start in params.items() if self.adapts(name)}
        return Outcome(with_gradient(loss, params, away), score)

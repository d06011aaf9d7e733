"""Transfer learning, the floor that meta-learning has to beat: train a plain classifier, fine-tune it."""

import torch
from torch import Tensor, nn

from fewshot.algorithms.gradient_based import GradientBased
from fewshot.inner_loop import Params
from fewshot.tasks import TaskBatch, TaskKind


class Transfer(GradientBased):
    """A classifier of a few fixed classes, all of whose weights are fine-tuned on each task's support set.

    The "base" solver of homework 15 of H.-Y. Lee's Machine Learning course, spring 2022 (assistants'
    notebook). Training sees N classes, the same under the same labels in every batch, and no inner loop;
    a new task then starts gradient descent from that classifier, head included.

    Differs from the homework in that a batch trains on all its labelled images, where that trains on the
    support images alone; how many batches it sees is `trainer.max_steps`, as everywhere.

    Args:
        model, kind, eval_inner_steps, test_inner_steps, inner_lr, task_chunk: as in `GradientBased`.
    """

    fixed_labels = True

    def __init__(
        self,
        model: nn.Module,
        kind: TaskKind,
        *,
        eval_inner_steps: int,
        test_inner_steps: int | None = None,
        inner_lr: float,
        task_chunk: int | None = None,
    ) -> None:
        super().__init__(
            model,
            kind,
            inner_steps=0,
            eval_inner_steps=eval_inner_steps,
            test_inner_steps=test_inner_steps,
            inner_lr=inner_lr,
            create_graph=False,
            task_chunk=task_chunk,
        )

    def meta_loss(self, params: Params, task: TaskBatch) -> tuple[Tensor, Tensor]:
        """The classifier's loss on all images of a batch of fixed classes, and its score; both ()."""
        labels = torch.cat([task.support_y, task.query_y])
        predictions = self.predict(params, torch.cat([task.support_x, task.query_x]))
        return self.kind.loss(predictions, labels), self.kind.score(predictions, labels)

"""Transfer learning, the floor that meta-learning has to beat: train a plain classifier, fine-tune it."""

from torch import nn

from fewshot.algorithms.base import Outcome
from fewshot.algorithms.gradient_based import GradientBased
from fewshot.inner_optimizers import InnerOptimizer, Params
from fewshot.tasks import TaskBatch, TaskKind


class Transfer(GradientBased):
    """A classifier of a few fixed classes, all of whose weights are fine-tuned on each task's support set.

    The "base" solver of homework 15 of H.-Y. Lee's Machine Learning course, spring 2022 (assistants'
    notebook). Training sees N classes, the same under the same labels in every batch, and no inner loop;
    a new task then starts gradient descent from that classifier, head included.

    Differs from the homework in that a batch trains on all its labelled images, where that trains on the
    support images alone; how many batches it sees is `trainer.max_steps`, as everywhere.

    Args:
        model, kind, …: as in `GradientBased`. The model has an output for every training class; those of a
            new task's labels are its first N.
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
        inner_optimizer: InnerOptimizer | None = None,
        adapt_norm: bool = True,
        task_chunk: int | str | None = None,
    ) -> None:
        super().__init__(
            model,
            kind,
            inner_steps=0,
            eval_inner_steps=eval_inner_steps,
            test_inner_steps=test_inner_steps,
            inner_lr=inner_lr,
            inner_optimizer=inner_optimizer,
            create_graph=False,
            adapt_norm=adapt_norm,
            task_chunk=task_chunk,
        )

    def meta_loss(self, params: Params, task: TaskBatch) -> Outcome:
        """The classifier's loss on all images of a batch of fixed classes, and its score."""
        return self.judge(params, task.all_as_queries())

"""MAML and FO-MAML: learn an initialisation from which a few gradient steps learn a task."""

from torch import nn

from fewshot.algorithms.gradient_based import GradientBased
from fewshot.errors import UserError
from fewshot.tasks import TaskKind


class MAML(GradientBased):
    """Model-Agnostic Meta-Learning.

    C. Finn, P. Abbeel, S. Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks.
    ICML 2017. https://arxiv.org/abs/1703.03400

    The parameters are the start of gradient descent on the support loss of any task; meta-training
    moves them so that the loss on the task's queries, after those steps, is low. `create_graph` is the
    one difference between MAML (the meta-gradient passes through the inner steps) and FO-MAML (§5.2).

    Differs from the paper in that the inner loss is the mean over the support set, where the paper's code
    sums over it; all parameters adapt, batch-norm scale and shift included, where that code adapts no
    batch-norm parameter; and pooling takes the place of strides (as in the networks of its successors).

    Args:
        model, kind, inner_steps, eval_inner_steps, test_inner_steps, inner_lr, task_chunk: as in
            `GradientBased`; at least one step in training.
        create_graph: True: MAML; False: FO-MAML.
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
        create_graph: bool,
        task_chunk: int | None = None,
    ) -> None:
        super().__init__(
            model,
            kind,
            inner_steps=inner_steps,
            eval_inner_steps=eval_inner_steps,
            test_inner_steps=test_inner_steps,
            inner_lr=inner_lr,
            create_graph=create_graph,
            task_chunk=task_chunk,
        )
        if inner_steps < 1:
            raise UserError(f"algo.inner_steps={inner_steps} must be at least 1")

"""MAML and FO-MAML: learn an initialisation from which a few gradient steps learn a task."""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.func import functional_call

from fewshot.algorithms.base import Algorithm
from fewshot.errors import UserError
from fewshot.inner_loop import Params, gradient_descent
from fewshot.tasks import TaskKind


class MAML(Algorithm):
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
        model: images (M, C, H, W) -> predictions (M, N); without hidden state.
        kind: the task kind, which gives loss and score.
        inner_steps, eval_inner_steps: gradient steps on the support set in training, and elsewhere.
        inner_lr: step size for the mean support loss.
        create_graph: True: MAML; False: FO-MAML.
        task_chunk: tasks adapted together; None: all of the meta-batch.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: TaskKind,
        *,
        inner_steps: int,
        eval_inner_steps: int,
        inner_lr: float,
        create_graph: bool,
        task_chunk: int | None = None,
    ) -> None:
        super().__init__()
        if inner_steps < 1 or eval_inner_steps < 0:
            raise UserError(
                f"algo.inner_steps={inner_steps} must be at least 1 and "
                f"algo.eval_inner_steps={eval_inner_steps} at least 0"
            )
        if not inner_lr > 0:
            raise UserError(f"algo.inner_lr={inner_lr} must be positive")
        self.model = model
        self.kind = kind
        self.inner_steps = inner_steps
        self.eval_inner_steps = eval_inner_steps
        self.inner_lr = inner_lr
        self.create_graph = create_graph
        self.task_chunk = task_chunk

    def forward(self, x: Tensor) -> Tensor:
        """The network at its meta-learned initialisation: (M, C, H, W) -> (M, N)."""
        return self.model(x)

    def fit(self, params: Params, support_x: Tensor, support_y: Tensor, *, training: bool = False) -> Iterator[Params]:
        """The parameters after each gradient step on the support loss, the initialisation first."""

        def support_loss(params: Params) -> Tensor:
            return self.kind.loss(functional_call(self, params, (support_x,)), support_y)

        return gradient_descent(
            support_loss,
            params,
            steps=self.inner_steps if training else self.eval_inner_steps,
            lr=self.inner_lr,
            create_graph=self.create_graph and training,
        )

    def predict(self, fitted: Params, query_x: Tensor) -> Tensor:
        """The network with adapted parameters: (M, C, H, W) -> (M, N)."""
        return functional_call(self, fitted, (query_x,))

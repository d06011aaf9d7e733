"""What learners have in common that adapt a network to a task by gradient descent."""

from abc import ABC
from collections.abc import Iterator

from torch import Tensor, nn
from torch.func import functional_call

from fewshot.algorithms.base import Algorithm, Stage
from fewshot.errors import UserError
from fewshot.inner_loop import Params, gradient_descent
from fewshot.tasks import TaskKind


class GradientBased(Algorithm, ABC):
    """Fits a task by gradient descent on its support loss, from the meta-learned parameters, all of them.

    Args:
        model: images (M, C, H, W) -> predictions (M, N); without hidden state.
        kind: the task kind, which gives loss and score.
        inner_steps, eval_inner_steps: gradient steps on the support set in training, and elsewhere.
        test_inner_steps: gradient steps in testing, where they differ from validation's; None: they do not.
        inner_lr: step size for the mean support loss.
        create_graph: whether the meta-gradient passes through the steps.
        task_chunk: tasks adapted together; None: all of the meta-batch.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: TaskKind,
        *,
        inner_steps: int,
        eval_inner_steps: int,
        test_inner_steps: int | None,
        inner_lr: float,
        create_graph: bool,
        task_chunk: int | None,
    ) -> None:
        super().__init__()
        if eval_inner_steps < 0 or (test_inner_steps or 0) < 0:
            raise UserError(
                f"algo.eval_inner_steps={eval_inner_steps} and algo.test_inner_steps={test_inner_steps} "
                "must be at least 0"
            )
        if not inner_lr > 0:
            raise UserError(f"algo.inner_lr={inner_lr} must be positive")
        self.model = model
        self.kind = kind
        self.inner_steps = inner_steps
        self.eval_inner_steps = eval_inner_steps
        self.test_inner_steps = eval_inner_steps if test_inner_steps is None else test_inner_steps
        self.inner_lr = inner_lr
        self.create_graph = create_graph
        self.task_chunk = task_chunk

    def forward(self, x: Tensor) -> Tensor:
        """The network before any adaptation: (M, C, H, W) -> (M, N)."""
        return self.model(x)

    def fit(self, params: Params, support_x: Tensor, support_y: Tensor, *, stage: Stage = "test") -> Iterator[Params]:
        """The parameters after each gradient step on the support loss, the initialisation first."""

        def support_loss(params: Params) -> Tensor:
            return self.kind.loss(self.predict(params, support_x), support_y)

        return gradient_descent(
            support_loss,
            params,
            steps=self.steps(stage),
            lr=self.inner_lr,
            create_graph=self.create_graph and stage == "train",
        )

    def predict(self, fitted: Params, query_x: Tensor) -> Tensor:
        """The network with these parameters: (M, C, H, W) -> (M, N)."""
        return functional_call(self, fitted, (query_x,))

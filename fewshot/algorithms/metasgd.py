"""Meta-SGD: the step size of every single weight is learned along with where it starts."""

import torch
from torch import nn

from fewshot.algorithms.gradient_based import GradientBased, of_parameters, per_parameter
from fewshot.inner_optimizers import InnerOptimizer, Params, Rates
from fewshot.tasks import TaskKind


class MetaSGD(GradientBased):
    """Meta-SGD.

    Z. Li, F. Zhou, F. Chen, H. Li: Meta-SGD: Learning to Learn Quickly for Few-Shot Learning. 2017.
    https://arxiv.org/abs/1707.09835

    MAML with a vector of step sizes, one per weight, that is meta-learned too: it decides how far and, since
    a step size may become negative, in which direction a weight moves.

    Differs from the paper in that all step sizes start at `inner_lr`, where it draws each uniformly from
    0.005 to 0.1; and in what `MAML` here differs in from its own.

    Args:
        model, kind, …: as in `GradientBased`; inner_lr is where the step sizes start.
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
        create_graph: bool,
        adapt_norm: bool = True,
        task_chunk: int | None = None,
    ) -> None:
        super().__init__(
            model,
            kind,
            inner_steps=inner_steps,
            eval_inner_steps=eval_inner_steps,
            test_inner_steps=test_inner_steps,
            inner_lr=inner_lr,
            inner_optimizer=inner_optimizer,
            create_graph=create_graph,
            adapt_norm=adapt_norm,
            task_chunk=task_chunk,
        )
        adapted = {name: value for name, value in self.named_parameters() if self.adapts(name)}
        self.inner_lrs = per_parameter({name: torch.full_like(value, inner_lr) for name, value in adapted.items()})

    def lr(self, params: Params, step: int) -> Rates:
        """The learned step size of every weight."""
        return of_parameters(params, "inner_lrs")

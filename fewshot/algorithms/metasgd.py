"""Meta-SGD: the step size of every single weight is learned along with where it starts."""

import torch

from fewshot.algorithms.gradient_based import GradientBased, of_parameters, per_parameter
from fewshot.inner_optimizers import Params, Rates


class MetaSGD(GradientBased):
    """Meta-SGD.

    Z. Li, F. Zhou, F. Chen, H. Li: Meta-SGD: Learning to Learn Quickly for Few-Shot Learning. 2017.
    https://arxiv.org/abs/1707.09835

    MAML with a vector of step sizes, one per weight, that is meta-learned too: it decides how far and, since
    a step size may become negative, in which direction a weight moves.

    Differs from the paper in that all step sizes start at `inner_lr`, where it draws each uniformly from
    0.005 to 0.1; and in what `MAML` here differs in from its own.
    """

    def extend(self) -> None:
        """A step size for every weight that adapts, `inner_lr` at first."""
        adapted = {name: value for name, value in self.named_parameters() if self.adapts(name)}
        rates = {name: torch.full_like(value, self.inner_lr) for name, value in adapted.items()}
        self.inner_lrs = per_parameter(rates)

    def lr(self, params: Params, step: int) -> Rates:
        """The learned step size of every weight."""
        return of_parameters(params, "inner_lrs")

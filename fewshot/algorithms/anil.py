"""ANIL: of a network that was meta-learned as in MAML, only the head adapts."""

from fewshot.algorithms.gradient_based import GradientBased
from fewshot.models.parts import is_head


class ANIL(GradientBased):
    """Almost No Inner Loop.

    A. Raghu, M. Raghu, S. Bengio, O. Vinyals: Rapid Learning or Feature Reuse? Towards Understanding the
    Effectiveness of MAML. ICLR 2020. https://arxiv.org/abs/1909.09157

    The body is the same for all tasks, and gradient steps on the support set change the head alone. The body
    learns from the queries, through the adapted head (`create_graph`) and directly.

    Differs from the paper in nothing but what `MAML` here differs in from its own.
    """

    def adapts(self, name: str) -> bool:
        """The head's parameters."""
        return is_head(self.model, name.removeprefix("model."), type(self).__name__)

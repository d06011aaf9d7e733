"""BOIL: the head stays as meta-learned, the body adapts."""

from fewshot.algorithms.gradient_based import GradientBased
from fewshot.models.parts import is_head


class BOIL(GradientBased):
    """Body Only update in the Inner Loop.

    J. Oh, H. Yoo, C. Kim, S.-Y. Yun: BOIL: Towards Representation Change for Few-shot Learning. ICLR 2021.
    https://arxiv.org/abs/2008.08882

    The opposite of ANIL: a task's gradient steps change how images are represented, and leave the classifier
    on top as it is. The head is still meta-learned.

    Differs from the paper in nothing but what `MAML` here differs in from its own.
    """

    def adapts(self, name: str) -> bool:
        """All but the head's parameters."""
        return super().adapts(name) and not is_head(self.model, name.removeprefix("model."), type(self).__name__)

"""ProtoMAML: MAML whose head starts, for every task, as the classifier of its prototypes."""

import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.algorithms.gradient_based import GradientBased
from fewshot.algorithms.prototypes import prototypes
from fewshot.inner_optimizers import Params
from fewshot.models.parts import parts
from fewshot.tasks import Stage


class ProtoMAML(GradientBased):
    """Proto-MAML.

    E. Triantafillou et al.: Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few Examples.
    ICLR 2020, §2.3. https://arxiv.org/abs/1903.03096

    The squared distance to a prototype c is, up to what all classes share, a linear function of the embedding,
    with weight 2c and bias −|c|²: a prototypical network has a linear head, computed from the support set.
    Here gradient steps start from that head and the body, and the meta-gradient passes through the prototypes
    (`create_graph`: and through the steps).

    Differs from the paper in that all training tasks have the same number of ways.
    """

    needs_classes = True
    any_way = True

    def adopt(self, model: nn.Module) -> nn.Module:
        """The body; the model's own head is not used."""
        return parts(model, type(self).__name__)[0]

    def start(self, params: Params, support_x: Tensor, support_y: Tensor, stage: Stage) -> Params:
        """The body as meta-learned, the head from the prototypes."""
        centres = prototypes(super().predict(params, support_x), self.kind.encode(support_y, stage))
        head = {"weight": 2 * centres, "bias": -centres.square().sum(-1)}
        return super().start(params, support_x, support_y, stage) | head

    def predict(self, fitted: Params, query_x: Tensor) -> Tensor:
        """The head on top of the body: (M, …) -> (M, N)."""
        body = {name: value for name, value in fitted.items() if name not in ("weight", "bias")}
        return F.linear(super().predict(body, query_x), fitted["weight"], fitted["bias"])

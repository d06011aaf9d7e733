"""CAVIA: a task adapts nothing but a short context vector, which modulates one layer."""

from torch import Tensor, nn
from torch.func import functional_call

from fewshot.algorithms.gradient_based import GradientBased
from fewshot.errors import UserError
from fewshot.inner_optimizers import InnerOptimizer, Params
from fewshot.tasks import Stage, TaskKind


class CAVIA(GradientBased):
    """Fast Context Adaptation via Meta-Learning.

    L. Zintgraf, K. Shiarlis, V. Kurin, K. Hofmann, S. Whiteson: Fast Context Adaptation via Meta-Learning.
    ICML 2019. https://arxiv.org/abs/1810.03642

    A task starts with a context of zeros and takes gradient steps on it alone; a meta-learned linear map turns
    the context into a change of one layer. The weights of the network are the same for all tasks.

    Differs from the paper in that the map has no bias and scales are changed by 1 + what it returns, so that
    before adaptation the network is left as it is. On a linear layer the map's output is added to the bias,
    which is the same as the paper's concatenation of the context to the layer's input.

    Args:
        model, kind, …: as in `GradientBased`.
        context: length of the context vector.
        layer: name of the modulated layer in the model. Of a normalisation layer the scale and the shift are
            modulated (per channel, FiLM), of a linear or convolutional layer the bias.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: TaskKind,
        *,
        context: int,
        layer: str,
        inner_steps: int,
        eval_inner_steps: int,
        test_inner_steps: int | None = None,
        inner_lr: float,
        inner_optimizer: InnerOptimizer | None = None,
        create_graph: bool,
        task_chunk: int | str | None = None,
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
            task_chunk=task_chunk,
        )
        if context < 1:
            raise UserError(f"algo.context={context} must be at least 1")
        layers = dict(model.named_modules())
        bias = getattr(layers.get(layer), "bias", None)
        if not isinstance(bias, Tensor):
            choices = ", ".join(name for name, module in layers.items() if getattr(module, "bias", None) is not None)
            raise UserError(f"algo.layer={layer} is no layer of {type(model).__name__} with a bias: one of {choices}")
        self.layer = f"model.{layer}"
        weight = layers[layer].weight
        self.scales = isinstance(weight, Tensor) and weight.dim() == 1
        self.modulation = nn.Linear(context, len(bias) * (2 if self.scales else 1), bias=False)

    def start(self, params: Params, support_x: Tensor, support_y: Tensor, stage: Stage) -> Params:
        """A context of zeros."""
        weight = params["modulation.weight"]
        return {"context": weight.new_zeros(weight.shape[1])}

    def predict(self, fitted: Params, query_x: Tensor) -> Tensor:
        """The network with its layer modulated by the context: (M, …) -> (M, N)."""
        network = {name: value for name, value in fitted.items() if name != "context"}
        shift = fitted["modulation.weight"] @ fitted["context"]
        if self.scales:
            shift, scale = shift.chunk(2)
            network[f"{self.layer}.weight"] = fitted[f"{self.layer}.weight"] * (1 + scale)
        network[f"{self.layer}.bias"] = fitted[f"{self.layer}.bias"] + shift
        return functional_call(self, network, (query_x,))

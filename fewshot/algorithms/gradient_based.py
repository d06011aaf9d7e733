"""What learners have in common that adapt a network to a task by gradient descent."""

from __future__ import annotations  # what stands inside a function would be evaluated, which torch.compile cannot

from abc import ABC
from collections.abc import Iterator

from torch import Tensor, nn
from torch.func import functional_call

from fewshot.algorithms.base import Algorithm
from fewshot.errors import UserError
from fewshot.inner_loop import gradient_descent
from fewshot.inner_optimizers import SGD, InnerOptimizer, Params, Rates
from fewshot.tasks import Stage, TaskKind


class GradientBased(Algorithm, ABC):
    """Fits a task by gradient descent on its support loss, from meta-learned parameters.

    What an algorithm may say of itself: which part of the model it takes (`adopt`), what it learns beside that
    (`extend`), which parameters adapt (`adapts`), where they start (`start`), the step size (`lr`), what the network
    has at one step only (`at_step`), which examples a step sees (`examples`), what else counts as support loss
    (`penalty`), whether the meta-gradient passes through the steps (`second_order`). Here: all of the
    network adapts, from where it stands, with one step size.

    Args:
        model: inputs (M, …) -> predictions (M, N); without hidden state.
        kind: the task kind, which gives loss and score.
        inner_steps, eval_inner_steps: gradient steps on the support set in training, and elsewhere.
        test_inner_steps: gradient steps in testing, where they differ from validation's; None: they do not.
        inner_lr: step size for the mean support loss.
        inner_optimizer: what turns its gradient into a step; None: gradient descent.
        create_graph: whether the meta-gradient passes through the steps.
        adapt_norm: whether the scales and shifts of normalisation layers adapt too, or stay as meta-learned.
        task_chunk: tasks adapted together; None: all of the meta-batch; "auto": as many as memory holds.
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
        task_chunk: int | str | None = None,
    ) -> None:
        super().__init__()
        if inner_steps < 1 and not self.fixed_labels:  # a classifier of fixed classes trains without tasks
            raise UserError(f"algo.inner_steps={inner_steps} must be at least 1")
        if eval_inner_steps < 0 or (test_inner_steps or 0) < 0:
            raise UserError(
                f"algo.eval_inner_steps={eval_inner_steps} and algo.test_inner_steps={test_inner_steps} "
                "must be at least 0"
            )
        if not inner_lr > 0:
            raise UserError(f"algo.inner_lr={inner_lr} must be positive")
        self.model = self.adopt(model)
        self.kind = kind
        self.inner_steps = inner_steps
        self.eval_inner_steps = eval_inner_steps
        self.test_inner_steps = eval_inner_steps if test_inner_steps is None else test_inner_steps
        self.inner_lr = inner_lr
        self.inner_optimizer = inner_optimizer or SGD()
        self.create_graph = create_graph
        self.adapt_norm = adapt_norm
        self.task_chunk = task_chunk
        self._norms = norm_parameters(self)
        self.extend()

    def forward(self, x: Tensor) -> Tensor:
        """The network before any adaptation: (M, …) -> (M, N)."""
        return self.model(x)

    def adopt(self, model: nn.Module) -> nn.Module:
        """The part of the model that this learner works with."""
        return model

    def extend(self) -> None:
        """Registers what is meta-learned beside the network."""

    def adapts(self, name: str) -> bool:
        """Whether gradient descent on a task changes the parameter of this name."""
        return name.startswith("model.") and (self.adapt_norm or name not in self._norms)

    def start(self, params: Params, support_x: Tensor, support_y: Tensor, stage: Stage) -> Params:
        """Where the adapted parameters stand before the first step."""
        return {name: value for name, value in params.items() if self.adapts(name)}

    def lr(self, params: Params, step: int) -> Rates:
        """The step size of a step, or one for every adapted parameter."""
        return self.inner_lr

    def at_step(self, params: Params, step: int) -> Params:
        """What the network has at this step alone, by the name of its place."""
        return {}

    def examples(self, step: int, total: int, stage: Stage) -> slice | list[int]:
        """Which of the support examples a step sees."""
        return slice(None)

    def second_order(self) -> bool:
        """Whether the meta-gradient passes through the inner steps now."""
        return self.create_graph

    def penalty(self, fast: Params, params: Params) -> Tensor | float:
        """What is added to the support loss, for adapted parameters and those they started from."""
        return 0.0

    def fit(self, params: Params, support_x: Tensor, support_y: Tensor, *, stage: Stage = "test") -> Iterator[Params]:
        """The network's parameters after each gradient step on the support loss, the initialisation first."""

        def network(fast: Params, params: Params, step: int) -> Params:
            return params | fast | self.at_step(params, step)

        def support_loss(fast: Params, given: tuple[Params, Tensor, Tensor], step: int) -> Tensor:
            params, x, y = given
            shown = self.examples(step, len(y), stage)
            predictions = self.predict(network(fast, params, step), x[shown])
            return self.kind.loss(predictions, y[shown]) + self.penalty(fast, params)

        states = gradient_descent(
            support_loss,
            self.start(params, support_x, support_y, stage),
            (params, support_x, support_y),
            steps=self.steps(stage),
            optimizer=self.inner_optimizer,
            lr=lambda given, step: self.lr(given[0], step),
            create_graph=self.second_order() and stage == "train",
            recompute=self.recompute,
        )
        for step, state in enumerate(states):
            yield network(state, params, step)

    def predict(self, fitted: Params, query_x: Tensor) -> Tensor:
        """The network with these parameters: (M, …) -> (M, N)."""
        return functional_call(self, fitted, (query_x,))


def per_parameter(values: Params) -> nn.ParameterDict:
    """Values that are meta-learned beside the network, under the names of what they belong to."""
    return nn.ParameterDict({name.replace(".", "/"): value.detach().clone() for name, value in values.items()})


def of_parameters(params: Params, place: str) -> Params:
    """Undoes `per_parameter`, for the one that stands at `place`: network name -> value."""
    prefix = f"{place}."
    return {
        name.removeprefix(prefix).replace("/", "."): value for name, value in params.items() if name.startswith(prefix)
    }


def norm_parameters(module: nn.Module) -> tuple[str, ...]:
    """The names of the parameters that belong to normalisation layers."""
    layers = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
    return tuple(
        f"{place}.{name}"
        for place, layer in module.named_modules()
        if isinstance(layer, layers)
        for name, _ in layer.named_parameters(recurse=False)
    )

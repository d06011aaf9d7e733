"""The fully connected network of few-shot regression."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn

from fewshot.errors import UserError
from fewshot.models.parts import BodyAndHead


class MLP(BodyAndHead):
    """Linear layers with ReLUs between them; images are flattened.

    C. Finn, P. Abbeel, S. Levine: Model-Agnostic Meta-Learning, ICML 2017, §5.1: two hidden layers of 40,
    1,761 parameters for one input and one output.

    Args:
        input_shape: of one input, without the batch; given by the data.
        n_out: outputs; given by the data.
        hidden: units of each hidden layer, at least one layer.
        init_std: weights start normal with this standard deviation, cut off at twice it, biases at 0 (MAML's
            code: 0.01); None: as PyTorch's layers start them.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        n_out: int,
        *,
        hidden: Sequence[int] = (40, 40),
        init_std: float | None = None,
    ) -> None:
        if not hidden or min(hidden) < 1:
            raise UserError(f"model.hidden={list(hidden)} must be one or more numbers of at least 1")
        if init_std is not None and not init_std > 0:
            raise UserError(f"model.init_std={init_std} must be positive, or null for PyTorch's own start")
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in itertools.pairwise([math.prod(input_shape), *hidden]):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        super().__init__(nn.Sequential(*layers), nn.Linear(hidden[-1], n_out))
        if init_std is not None:
            for layer in self.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.trunc_normal_(layer.weight, std=init_std, a=-2 * init_std, b=2 * init_std)
                    torch.nn.init.zeros_(layer.bias)
